"""Join tokens: a key and a certificate with which a stranger may make one call, packed as text.

Owns the text and what a token's certificate looks like. The peer port asks everybody for a
certificate of the CA; a token holds one that names no node, so TLS lets the newcomer in and every
call but Join refuses it. Must not know whether a token was used already (`state/machine_join.py`).
"""

from __future__ import annotations

import base64
import binascii
import dataclasses
import datetime
import hashlib
from collections.abc import Iterable
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID
from google.protobuf.message import DecodeError

from quorepo.cluster.peer.certificates import (
    Credentials,
    Issued,
    certificate_pem,
    key_pem,
    read_private,
    sign_certificate,
)
from quorepo.internal.v1 import peer_pb2
from quorepo.storage.errors import ConfigError

__all__ = [
    "JOINER_DNS_NAME",
    "MintedToken",
    "is_joiner",
    "make_join_token",
    "read_join_token",
    "token_digest",
]

# The only name in a token's certificate; `certificates.node_of_names` finds no node in it.
JOINER_DNS_NAME = "joining.quorepo"

_PREFIX = "quorepo-join-1:"
_MAKE_ONE = "make one with `quorepo node token` on a member and save it there, mode 0600"


@dataclasses.dataclass(frozen=True, slots=True)
class MintedToken:
    """A fresh token; `digest` is what the directory knows it by."""

    text: str = dataclasses.field(repr=False)
    digest: bytes


def is_joiner(dns_names: Iterable[str]) -> bool:
    """Is a certificate with these names that of a join token?"""
    return list(dns_names) == [JOINER_DNS_NAME]


def token_digest(pem: bytes) -> bytes:
    """What a token is known by, from its certificate as TLS saw it (PEM)."""
    certificate = x509.load_pem_x509_certificate(pem)
    return hashlib.sha256(certificate.public_bytes(serialization.Encoding.DER)).digest()


def make_join_token(
    authority: Issued, now: datetime.datetime, lifetime: datetime.timedelta
) -> MintedToken:
    """A token that TLS accepts for `lifetime` at most."""
    key = ec.generate_private_key(ec.SECP256R1())
    pem = sign_certificate(
        authority,
        key.public_key(),
        common_name="quorepo join token",
        names=[x509.DNSName(JOINER_DNS_NAME)],
        uses=[ExtendedKeyUsageOID.CLIENT_AUTH],
        now=now,
        lifetime=lifetime,
    )
    der = serialization.Encoding.DER
    content = peer_pb2.JoinToken(
        ca_certificate=x509.load_pem_x509_certificate(authority.certificate_pem).public_bytes(der),
        certificate=x509.load_pem_x509_certificate(pem).public_bytes(der),
        key=key.private_bytes(der, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()),
    )
    encoded = base64.urlsafe_b64encode(content.SerializeToString()).rstrip(b"=").decode()
    return MintedToken(_PREFIX + encoded, token_digest(pem))


def read_join_token(path: Path, now: datetime.datetime) -> Credentials:
    """What a newcomer shows to members and accepts from them; names no node.

    Raises:
        ConfigError: missing, open to others, damaged, or over.
    """
    what = f"cluster.join_token_file {str(path)!r}"
    text = read_private(path, "join_token_file", section="cluster").strip()
    try:
        content = _decode(text)
        authority = x509.load_der_x509_certificate(content.ca_certificate)
        certificate = x509.load_der_x509_certificate(content.certificate)
        key = serialization.load_der_private_key(content.key, password=None)
        authority.verify_directly_issued_by(authority)
        certificate.verify_directly_issued_by(authority)
        if not isinstance(key, ec.EllipticCurvePrivateKey):
            raise ValueError("the key is of another kind")
    except Exception as error:
        # Whatever a damaged token makes of the decoders: it is damaged, and not shown.
        raise ConfigError(
            f"{what} holds no join token, or a damaged one", next_step=_MAKE_ONE
        ) from error
    if now >= certificate.not_valid_after_utc:
        raise ConfigError(
            f"{what} expired at {certificate.not_valid_after_utc:%Y-%m-%d %H:%M} UTC; nothing was "
            "changed",
            next_step=_MAKE_ONE,
        )
    return Credentials(
        node="",
        ca_pem=certificate_pem(authority),
        certificate_pem=certificate_pem(certificate),
        key_pem=key_pem(key),
        expires_at=certificate.not_valid_after_utc,
    )


def _decode(text: bytes) -> peer_pb2.JoinToken:
    encoded = text.removeprefix(_PREFIX.encode())
    if encoded == text:
        raise ValueError("not a join token")
    padded = encoded + b"=" * (-len(encoded) % 4)
    try:
        return peer_pb2.JoinToken.FromString(
            base64.b64decode(padded, altchars=b"-_", validate=True)
        )
    except (binascii.Error, DecodeError) as error:
        raise ValueError(str(error)) from error
