"""How a node comes to its certificate: it makes the CA, derives it from a shared secret, or renews.

Owns the files of [cluster.tls], and that a death in between leaves something to go on from: the
certificate is written last, and whatever was written before is used again. A node without any that
has a join token asks a member (`joining.py`). Must not know who is a member.
"""

from __future__ import annotations

import contextlib
import dataclasses
import datetime
import logging
from collections.abc import Iterator
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec

from quorepo.cluster.peer.authority import (
    authority_of_secret,
    load_authority,
    read_bootstrap_secret,
)
from quorepo.cluster.peer.certificates import (
    EXPIRY_WARNING,
    Issued,
    key_pem,
    make_authority,
    read_certificates,
    sign_node,
)
from quorepo.cluster.raft.durable import DirectoryLock
from quorepo.storage.errors import ConfigError, Unavailable
from quorepo.storage.failpoints import failpoint
from quorepo.storage.layout import write_durably
from quorepo.storage.logs import fields

__all__ = ["TlsFiles", "enrol_founder", "enrol_with_secret", "own_key", "renew", "renewal_is_due"]

log = logging.getLogger(__name__)

_LOCK_WAIT_S = 5.0


@dataclasses.dataclass(frozen=True, slots=True)
class TlsFiles:
    """The files of [cluster.tls] of one node."""

    node: str
    ca: Path
    certificate: Path
    key: Path
    ca_key: Path | None

    @contextlib.contextmanager
    def locked(self) -> Iterator[None]:
        """One process at a time writes them. Raises ConfigError when another one does."""
        for path in (self.ca, self.certificate, self.key, self.ca_key):
            if path is not None:
                path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        try:
            lock = DirectoryLock(self.certificate.with_suffix(".lock"), _LOCK_WAIT_S)
        except Unavailable as error:
            raise ConfigError(
                f"{error}; nothing was changed", next_step="stop the other process of this node"
            ) from error
        try:
            yield
        finally:
            lock.release()

    def write(self, authority: Issued, key: bytes, certificate_pem: bytes) -> None:
        """Writes everything, the certificate last: with it the node has what it needs."""
        if self.ca_key is not None:
            failpoint("enrolment.before_ca_key")
            write_durably(self.ca_key, authority.key_pem)
        failpoint("enrolment.before_ca")
        write_durably(self.ca, authority.certificate_pem, 0o644)
        failpoint("enrolment.before_key")
        write_durably(self.key, key)
        failpoint("enrolment.before_certificate")
        write_durably(self.certificate, certificate_pem, 0o644)
        failpoint("enrolment.done")


def own_key(files: TlsFiles) -> tuple[ec.EllipticCurvePrivateKey, bytes]:
    """The node's private key and its PEM; made and kept when there is none. It never leaves."""
    with contextlib.suppress(FileNotFoundError, ValueError, TypeError):
        pem = files.key.read_bytes()
        key = serialization.load_pem_private_key(pem, password=None)
        if isinstance(key, ec.EllipticCurvePrivateKey):
            return key, pem
    key = ec.generate_private_key(ec.SECP256R1())
    pem = key_pem(key)
    write_durably(files.key, pem)
    return key, pem


def enrol_founder(files: TlsFiles, now: datetime.datetime) -> None:
    """Makes the CA of a new cluster and this node's certificate.

    Raises:
        ConfigError: files of a CA are there already and unusable.
    """
    assert files.ca_key is not None, "the configuration demands it"
    with files.locked():
        if files.ca_key.exists() and files.ca.exists():
            authority = load_authority(files.ca, files.ca_key)  # made by a start that died
        else:
            _refuse_foreign_ca(files)
            authority = make_authority(now)
        _issue(files, authority, now)
    log.info("certificates made", extra=fields(node=files.node))


def enrol_with_secret(files: TlsFiles, secret_file: Path, now: datetime.datetime) -> None:
    """Derives the CA that all founding nodes derive, and makes this node's certificate.

    Raises:
        ConfigError: the secret is missing, unusable, or not that of the CA that is there already.
    """
    assert files.ca_key is not None, "the configuration demands it"
    with files.locked():
        authority = authority_of_secret(read_bootstrap_secret(secret_file), now)
        if files.ca.exists():
            present = {c.subject for c in read_certificates(files.ca, "ca_file")}
            derived = x509.load_pem_x509_certificate(authority.certificate_pem).subject
            if derived not in present:
                raise ConfigError(
                    f"cluster.tls.ca_file {str(files.ca)!r} is of another cluster than "
                    f"cluster.bootstrap_secret_file {str(secret_file)!r}; nothing was changed",
                    next_step="copy the secret of the other founding nodes, or remove the CA file",
                )
        _issue(files, authority, now)
    log.info("certificates made from the shared secret", extra=fields(node=files.node))


def _refuse_foreign_ca(files: TlsFiles) -> None:
    """Somebody's CA lies there, without its key: it is not for us to replace it."""
    assert files.ca_key is not None
    if files.ca.exists() and not files.ca_key.exists():
        raise ConfigError(
            f"cluster.tls.ca_file {str(files.ca)!r} exists, its key {str(files.ca_key)!r} does "
            "not; nothing was changed",
            next_step="to begin a new cluster remove that file; to enter a cluster use "
            "[cluster] join",
        )


def _issue(files: TlsFiles, authority: Issued, now: datetime.datetime) -> None:
    key, pem = own_key(files)
    files.write(authority, pem, sign_node(authority, files.node, key.public_key(), now))


def renewal_is_due(files: TlsFiles, now: datetime.datetime) -> bool:
    """Does the certificate end soon, or has ended, and can this node sign another one?"""
    if files.ca_key is None or not files.ca_key.exists():
        return False
    certificate = read_certificates(files.certificate, "certificate_file")[0]
    return certificate.not_valid_after_utc - now < EXPIRY_WARNING


def renew(files: TlsFiles, now: datetime.datetime) -> None:
    """Signs another certificate for the same key.

    Raises:
        ConfigError: this node has no CA key, or files do not fit.
    """
    if files.ca_key is None:
        raise ConfigError(
            "this node has no cluster.tls.ca_key_file; nothing was changed",
            next_step="run `quorepo certificate issue --node NAME` where the CA's key is, and "
            "bring the files here",
        )
    with files.locked():
        authority = load_authority(files.ca, files.ca_key)
        key, _pem = own_key(files)
        write_durably(
            files.certificate, sign_node(authority, files.node, key.public_key(), now), 0o644
        )
    log.info("certificate renewed", extra=fields(node=files.node))
