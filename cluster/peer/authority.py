"""The CA of a cluster in the hands of a member: its key, and what it signs beside `certificates`.

Owns reading the key, deriving a CA from the secret that founding nodes share, signing what a
joining node asks for, and certificates for listeners of clients. Must not know who may have one.

A certificate for clients names no node, so it opens no peer port (`certificates.node_of_names`).
"""

from __future__ import annotations

import base64
import binascii
import datetime
import ipaddress
import secrets
from collections.abc import Iterable
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.kdf.hkdf import HKDF
from cryptography.x509.oid import ExtendedKeyUsageOID

from quorepo.cluster.peer.certificates import (
    Issued,
    authority_of_key,
    certificate_pem,
    key_pem,
    read_certificates,
    read_private,
    sign_certificate,
)
from quorepo.storage.errors import ConfigError

__all__ = [
    "LISTENER_LIFETIME",
    "authority_of_secret",
    "fingerprint",
    "issue_listener_certificate",
    "load_authority",
    "make_bootstrap_secret",
    "read_bootstrap_secret",
]

LISTENER_LIFETIME = datetime.timedelta(days=90)

_SECRET_PREFIX = "quorepo-bootstrap-1:"  # noqa: S105 - not the secret
_SECRET_BYTES = 32
_MAKE_ONE = "make one with `quorepo init --bootstrap-expect N`, copy that file to every node"
# The order of the group of P-256 (SEC 2): private keys are 1 to this less 1.
_P256_ORDER = 0xFFFFFFFF00000000FFFFFFFFFFFFFFFFBCE6FAADA7179E84F3B9CAC2FC632551


def load_authority(ca_file: Path, ca_key_file: Path) -> Issued:
    """The CA whose key `ca_key_file` holds; its certificate stands in `ca_file`.

    Raises:
        ConfigError: a file is missing, unusable or open to others, or they do not fit.
    """
    pem = read_private(ca_key_file, "ca_key_file")
    try:
        key = serialization.load_pem_private_key(pem, password=None)
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"cluster.tls.ca_key_file {str(ca_key_file)!r} holds no private key in PEM: {error}"
        ) from error
    public = _public_der(key.public_key())
    for certificate in read_certificates(ca_file, "ca_file"):
        if _public_der(certificate.public_key()) == public:
            return Issued(certificate_pem(certificate), pem)
    raise ConfigError(
        f"cluster.tls.ca_key_file {str(ca_key_file)!r} is not the key of any CA in "
        f"cluster.tls.ca_file {str(ca_file)!r}"
    )


def fingerprint(ca_pem: bytes) -> str:
    """SHA-256 of the first certificate, hex: what two people compare."""
    return x509.load_pem_x509_certificate(ca_pem).fingerprint(hashes.SHA256()).hex()


def make_bootstrap_secret() -> bytes:
    """The content of a fresh bootstrap secret file."""
    encoded = base64.urlsafe_b64encode(secrets.token_bytes(_SECRET_BYTES)).rstrip(b"=")
    return _SECRET_PREFIX.encode() + encoded + b"\n"


def read_bootstrap_secret(path: Path) -> bytes:
    """The secret in a file that `make_bootstrap_secret` made.

    Raises:
        ConfigError: missing, open to others, or not such a file. A word that a person thought of is
            refused: whoever sees a certificate could guess on.
    """
    text = read_private(path, "bootstrap_secret_file", section="cluster").strip()
    encoded = text.removeprefix(_SECRET_PREFIX.encode())
    try:
        secret = base64.b64decode(encoded + b"=", altchars=b"-_", validate=True)
    except binascii.Error:
        secret = b""
    if encoded == text or len(secret) != _SECRET_BYTES:
        raise ConfigError(
            f"cluster.bootstrap_secret_file {str(path)!r} holds no bootstrap secret",
            next_step=_MAKE_ONE,
        )
    return secret


def authority_of_secret(secret: bytes, now: datetime.datetime) -> Issued:
    """The CA that follows from a shared secret: one key on every node that has the secret.

    The certificates that two nodes make differ in their dates; each verifies what the other signed,
    because name and key are the same.
    """
    derived = HKDF(
        algorithm=hashes.SHA256(), length=48, salt=None, info=b"quorepo cluster CA, P-256, 1"
    ).derive(secret)
    number = int.from_bytes(derived, "big") % (_P256_ORDER - 1) + 1
    return authority_of_key(ec.derive_private_key(number, ec.SECP256R1()), now)


def issue_listener_certificate(
    authority: Issued,
    hosts: Iterable[str],
    now: datetime.datetime,
    lifetime: datetime.timedelta = LISTENER_LIFETIME,
) -> Issued:
    """A certificate for servers only, for host names and IP addresses.

    Raises ValueError when there is no host, or one that is neither, or that nodes are known by.
    """
    names: list[x509.GeneralName] = []
    for host in dict.fromkeys(hosts):
        if host.lower().rstrip(".").endswith(".quorepo"):
            raise ValueError(f"{host!r} is a name of the cluster's own nodes")
        try:
            names.append(x509.IPAddress(ipaddress.ip_address(host)))
        except ValueError:
            names.append(x509.DNSName(host))
    if not names:
        raise ValueError("a certificate needs a host name or an address")
    key = ec.generate_private_key(ec.SECP256R1())
    certificate = sign_certificate(
        authority,
        key.public_key(),
        common_name="quorepo listener",
        names=names,
        uses=[ExtendedKeyUsageOID.SERVER_AUTH],
        now=now,
        lifetime=lifetime,
    )
    return Issued(certificate, key_pem(key))


def _public_der(key: object) -> bytes:
    encoded: bytes = key.public_bytes(  # type: ignore[attr-defined]
        serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    )
    return encoded
