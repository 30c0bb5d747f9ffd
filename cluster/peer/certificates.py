"""Certificates of the nodes: what stands in one, how they are made, and when a file is refused.

A cluster is its CA: whoever holds a certificate that the CA signed belongs to it, as the node that
the certificate names. The name is the DNS subject alternative name `<node>.node.quorepo`, exactly
one per certificate; addresses and ports play no part. Owns PEM and X.509. Must not know gRPC, or
who is a member at present.
"""

from __future__ import annotations

import dataclasses
import datetime
import hashlib
from collections.abc import Iterable, Sequence
from pathlib import Path

from cryptography import x509
from cryptography.exceptions import InvalidSignature
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from quorepo.storage.errors import ConfigError

__all__ = [
    "EXPIRY_WARNING",
    "MEMBER_DNS_NAME",
    "NODE_LIFETIME",
    "Credentials",
    "Issued",
    "authority_of_key",
    "certificate_pem",
    "check_dates",
    "checked_key",
    "issue_certificate",
    "key_pem",
    "load_credentials",
    "make_authority",
    "node_dns_name",
    "node_of_names",
    "read_certificates",
    "read_private",
    "sign_certificate",
    "sign_node",
]

EXPIRY_WARNING = datetime.timedelta(days=30)

_DOMAIN = ".node.quorepo"
# In every certificate of a node beside its name: whoever looks for any member verifies this one.
MEMBER_DNS_NAME = "member.quorepo"
# A clock that is hours off must not make a fresh certificate invalid.
_BACKDATED = datetime.timedelta(days=1)
_AUTHORITY_LIFETIME = datetime.timedelta(days=3650)
NODE_LIFETIME = datetime.timedelta(days=397)
_USES = (ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH)


def node_dns_name(node: str) -> str:
    """The name that stands in a node's certificate, and that its callers verify."""
    return node + _DOMAIN


def node_of_names(dns_names: Iterable[str]) -> str | None:
    """The node that a certificate with these DNS names is of; None when it is of none or many."""
    nodes = [name.removesuffix(_DOMAIN) for name in dns_names if name.endswith(_DOMAIN)]
    return nodes[0] if len(nodes) == 1 and nodes[0] and "." not in nodes[0] else None


@dataclasses.dataclass(frozen=True, slots=True)
class Issued:
    """A new certificate and its private key, PEM."""

    certificate_pem: bytes
    key_pem: bytes = dataclasses.field(repr=False)


@dataclasses.dataclass(frozen=True, slots=True)
class Credentials:
    """What a node shows to its peers and what it accepts from them, PEM; checked when loaded."""

    node: str
    ca_pem: bytes
    certificate_pem: bytes
    key_pem: bytes = dataclasses.field(repr=False)
    # When the first of the node's certificate and its CA ends.
    expires_at: datetime.datetime


# ---- making


def make_authority(now: datetime.datetime) -> Issued:
    """A new cluster CA: ECDSA P-256, ten years, signs nodes and no other CAs. `now` in UTC."""
    return authority_of_key(ec.generate_private_key(ec.SECP256R1()), now)


def authority_of_key(key: ec.EllipticCurvePrivateKey, now: datetime.datetime) -> Issued:
    """The cluster CA that has this key; its name follows from the key."""
    fingerprint = hashlib.sha256(_public_bytes(key.public_key())).hexdigest()[:16]
    # The name is unique, so that a certificate of another cluster is recognised by its issuer.
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"quorepo cluster {fingerprint}")])
    certificate = (
        _builder(name, name, key.public_key(), now, now + _AUTHORITY_LIFETIME)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(_key_usage(signs_certificates=True), critical=True)
        .sign(key, hashes.SHA256())
    )
    return Issued(certificate_pem(certificate), key_pem(key))


def issue_certificate(
    authority: Issued,
    node: str,
    now: datetime.datetime,
    lifetime: datetime.timedelta = NODE_LIFETIME,
) -> Issued:
    """A certificate for `node`, with a key of its own; for both ends of a connection.

    Raises ValueError when `authority` is not what `make_authority` makes.
    """
    key = ec.generate_private_key(ec.SECP256R1())
    return Issued(sign_node(authority, node, key.public_key(), now, lifetime), key_pem(key))


def sign_node(
    authority: Issued,
    node: str,
    public_key: ec.EllipticCurvePublicKey,
    now: datetime.datetime,
    lifetime: datetime.timedelta = NODE_LIFETIME,
) -> bytes:
    """The certificate (PEM) of `node` for a key that it keeps. Raises as `issue_certificate`."""
    return sign_certificate(
        authority,
        public_key,
        common_name=node,
        names=[x509.DNSName(node_dns_name(node)), x509.DNSName(MEMBER_DNS_NAME)],
        uses=_USES,
        now=now,
        lifetime=lifetime,
    )


def sign_certificate(
    authority: Issued,
    public_key: ec.EllipticCurvePublicKey,
    *,
    common_name: str,
    names: Sequence[x509.GeneralName],
    uses: Sequence[x509.ObjectIdentifier],
    now: datetime.datetime,
    lifetime: datetime.timedelta,
) -> bytes:
    """A certificate (PEM) that signs nothing itself; ends with its CA at the latest.

    Raises ValueError when `authority` is not what `make_authority` makes.
    """
    issuer = x509.load_pem_x509_certificate(authority.certificate_pem)
    issuer_key = serialization.load_pem_private_key(authority.key_pem, password=None)
    if not isinstance(issuer_key, ec.EllipticCurvePrivateKey):
        raise ValueError("the CA's key is not an ECDSA key")
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])
    ends = min(now + lifetime, issuer.not_valid_after_utc)
    certificate = (
        _builder(subject, issuer.subject, public_key, now, ends)
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_key_usage(signs_certificates=False), critical=True)
        .add_extension(x509.ExtendedKeyUsage(uses), critical=False)
        .add_extension(x509.SubjectAlternativeName(names), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_key.public_key()),
            critical=False,
        )
        .sign(issuer_key, hashes.SHA256())
    )
    return certificate_pem(certificate)


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    public_key: ec.EllipticCurvePublicKey,
    now: datetime.datetime,
    not_after: datetime.datetime,
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public_key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(min(now, not_after) - _BACKDATED)
        .not_valid_after(not_after)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False)
    )


def _key_usage(*, signs_certificates: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not signs_certificates,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        key_cert_sign=signs_certificates,
        crl_sign=signs_certificates,
        encipher_only=False,
        decipher_only=False,
    )


def certificate_pem(certificate: x509.Certificate) -> bytes:
    """As it stands in a file."""
    return certificate.public_bytes(serialization.Encoding.PEM)


def key_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    """As it stands in a file of mode 0600."""
    return key.private_bytes(
        serialization.Encoding.PEM,
        serialization.PrivateFormat.PKCS8,
        serialization.NoEncryption(),
    )


# ---- loading


def load_credentials(
    node: str, ca_file: Path, certificate_file: Path, key_file: Path, now: datetime.datetime
) -> Credentials:
    """Reads and checks a node's files, so that a mistake is told at the start and by its name.

    `ca_file` may hold several CAs, for the time in which one is replaced. The node's certificate is
    signed by one of them directly.

    Raises:
        ConfigError: a file is missing, unusable, of another node or CA, expired, or the key is open
            to other users.
    """
    authorities = read_certificates(ca_file, "ca_file")
    certificate = read_certificates(certificate_file, "certificate_file")[0]
    what = f"cluster.tls.certificate_file {str(certificate_file)!r}"
    checked_key_pem = checked_key(certificate, key_file, what, "cluster.tls")
    _check_name(certificate, node, what)
    _check_uses(certificate, what)
    signers = [authority for authority in authorities if _signed_by(certificate, authority)]
    if not signers:
        raise ConfigError(
            f"{what} was not signed by a CA in cluster.tls.ca_file {str(ca_file)!r}",
            next_step="all nodes of a cluster need certificates of one CA",
        )
    check_dates(certificate, what, now)
    signer = max(signers, key=lambda authority: authority.not_valid_after_utc)  # it may be renewed
    check_dates(signer, f"the CA in cluster.tls.ca_file {str(ca_file)!r}", now)
    return Credentials(
        node=node,
        ca_pem=b"".join(certificate_pem(authority) for authority in authorities),
        certificate_pem=certificate_pem(certificate),
        key_pem=checked_key_pem,
        expires_at=min(certificate.not_valid_after_utc, signer.not_valid_after_utc),
    )


def _read(path: Path, key: str, section: str = "cluster.tls") -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ConfigError(f"cannot read {section}.{key} {str(path)!r}: {error.strerror}") from error


def read_private(path: Path, key: str, section: str = "cluster.tls") -> bytes:
    """The content of a file that nobody but this user may read. Raises ConfigError."""
    content = _read(path, key, section)
    mode = path.stat().st_mode
    if mode & 0o077:
        raise ConfigError(
            f"{section}.{key} {str(path)!r} is open to other users (mode {mode & 0o777:04o})",
            next_step=f"chmod 600 {path}",
        )
    return content


def read_certificates(
    path: Path, key: str, section: str = "cluster.tls"
) -> Sequence[x509.Certificate]:
    """All certificates of a file. Raises ConfigError."""
    try:
        return x509.load_pem_x509_certificates(_read(path, key, section))
    except ValueError as error:
        raise ConfigError(
            f"{section}.{key} {str(path)!r} holds no certificate in PEM: {error}"
        ) from error


def checked_key(
    certificate: x509.Certificate, key_file: Path, certificate_name: str, section: str
) -> bytes:
    """The key in PEM, once it is seen to be private and the certificate's. Raises ConfigError."""
    what = f"{section}.key_file {str(key_file)!r}"
    pem = read_private(key_file, "key_file", section)
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except TypeError as error:  # the library's word for a missing password
        raise ConfigError(f"{what} is encrypted; a node starts without being asked") from error
    except ValueError as error:
        raise ConfigError(f"{what} holds no private key in PEM: {error}") from error
    if _public_bytes(key.public_key()) != _public_bytes(certificate.public_key()):
        raise ConfigError(f"{what} is not the key of {certificate_name}")
    return pem


def _check_name(certificate: x509.Certificate, node: str, what: str) -> None:
    try:
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
        names = extension.value.get_values_for_type(x509.DNSName)
    except x509.ExtensionNotFound:
        names = []
    if node_of_names(names) != node:
        found = ", ".join(n for n in names if n != MEMBER_DNS_NAME) or "no DNS name"
        raise ConfigError(
            f"{what} has {found}, but node.name {node!r} needs exactly {node_dns_name(node)!r} "
            "as its one name of a node"
        )


def _check_uses(certificate: x509.Certificate, what: str) -> None:
    try:
        uses = certificate.extensions.get_extension_for_class(x509.ExtendedKeyUsage).value
    except x509.ExtensionNotFound:
        return  # for every use
    if not set(_USES) <= set(uses):
        raise ConfigError(f"{what} must be for both serverAuth and clientAuth: nodes call nodes")


def check_dates(certificate: x509.Certificate, what: str, now: datetime.datetime) -> None:
    """Raises ConfigError when the certificate is not valid now."""
    if now >= certificate.not_valid_after_utc:
        raise ConfigError(f"{what} expired at {certificate.not_valid_after_utc:%Y-%m-%d %H:%M} UTC")
    if now < certificate.not_valid_before_utc:
        raise ConfigError(
            f"{what} is valid from {certificate.not_valid_before_utc:%Y-%m-%d %H:%M} UTC on, and "
            f"this node's clock says {now:%Y-%m-%d %H:%M} UTC"
        )


def _signed_by(certificate: x509.Certificate, authority: x509.Certificate) -> bool:
    try:
        constraints = authority.extensions.get_extension_for_class(x509.BasicConstraints)
        certificate.verify_directly_issued_by(authority)
    except (x509.ExtensionNotFound, InvalidSignature, ValueError, TypeError):
        return False
    return constraints.value.ca


def _public_bytes(key: object) -> bytes:
    encoded: bytes = key.public_bytes(  # type: ignore[attr-defined]
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return encoded
