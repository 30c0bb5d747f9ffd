"""The certificate files of a node, as `quorepo certificate` shows and makes them.

Must not know the command line.
"""

from __future__ import annotations

import dataclasses
import datetime
from collections.abc import Iterator, Sequence
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes

from quorepo.cluster.peer.authority import (
    LISTENER_LIFETIME,
    issue_listener_certificate,
    load_authority,
)
from quorepo.cluster.peer.certificates import (
    EXPIRY_WARNING,
    NODE_LIFETIME,
    issue_certificate,
    read_certificates,
)
from quorepo.rpc.config import NodeConfig
from quorepo.storage.errors import ConfigError
from quorepo.storage.layout import write_durably

__all__ = ["DescribedCertificate", "described_certificates", "issue_files"]


@dataclasses.dataclass(frozen=True, slots=True)
class DescribedCertificate:
    """One certificate; without a file it is made by the node while it runs."""

    use: str  # node, CA, http, grpc, metrics
    file: str
    names: Sequence[str]
    issuer: str = ""
    expires_at: datetime.datetime | None = None
    days_left: int | None = None
    fingerprint: str = ""  # SHA-256, hex

    @property
    def ends_soon(self) -> bool:
        """Must somebody act?"""
        return self.days_left is not None and self.days_left < EXPIRY_WARNING.days


def described_certificates(
    config: NodeConfig, now: datetime.datetime
) -> list[DescribedCertificate]:
    """What the node shows, and by whose word. Raises ConfigError."""
    return list(_described(config, now))


def _described(config: NodeConfig, now: datetime.datetime) -> Iterator[DescribedCertificate]:
    tls = config.cluster.tls
    chain = read_certificates(tls.certificate_file, "certificate_file")
    yield _describe("node", tls.certificate_file, chain[0], now)
    for authority in read_certificates(tls.ca_file, "ca_file"):
        yield _describe("CA", tls.ca_file, authority, now)
    for name in ("http", "grpc", "metrics"):
        listener = getattr(config, name).tls
        if listener is None:
            continue
        if listener.certificate_file is None:
            yield DescribedCertificate(name, "", ["signed by the cluster's CA at each start"])
            continue
        path = listener.certificate_file
        yield _describe(
            name, path, read_certificates(path, "certificate_file", f"{name}.tls")[0], now
        )


def _describe(
    use: str, path: Path, certificate: x509.Certificate, now: datetime.datetime
) -> DescribedCertificate:
    try:
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
        names = [str(name.value) for name in extension.value]
    except x509.ExtensionNotFound:
        names = [certificate.subject.rfc4514_string()]
    return DescribedCertificate(
        use=use,
        file=str(path),
        names=names,
        issuer=certificate.issuer.rfc4514_string(),
        expires_at=certificate.not_valid_after_utc,
        days_left=(certificate.not_valid_after_utc - now).days,
        fingerprint=certificate.fingerprint(hashes.SHA256()).hex(),
    )


def issue_files(
    config: NodeConfig,
    node: str,
    hosts: Sequence[str],
    lifetime: datetime.timedelta | None,
    folder: Path,
    now: datetime.datetime,
) -> list[Path]:
    """Writes a certificate for a node, or for a listener on `hosts`, its key and the CA.

    Raises:
        ConfigError: no CA key here, a name that can't be, or files are there; nothing was changed.
    """
    tls = config.cluster.tls
    if tls.ca_key_file is None:
        raise ConfigError(
            "this configuration names no cluster.tls.ca_key_file; nothing was changed",
            next_step="run it with the configuration of a node that has the CA's key",
        )
    authority = load_authority(tls.ca_file, tls.ca_key_file)
    name = node or "listener"
    paths = [folder / f"{name}.key", folder / f"{name}.pem", folder / "ca.pem"]
    for path in paths:
        if path.exists():
            raise ConfigError(
                f"{str(path)!r} exists; nothing was changed", next_step="choose another --out"
            )
    try:
        issued = (
            issue_certificate(authority, node, now, lifetime or NODE_LIFETIME)
            if node
            else issue_listener_certificate(authority, hosts, now, lifetime or LISTENER_LIFETIME)
        )
    except ValueError as error:
        raise ConfigError(f"{error}; nothing was changed") from error
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    write_durably(paths[0], issued.key_pem)
    write_durably(paths[1], issued.certificate_pem, 0o644)
    write_durably(paths[2], tls.ca_file.read_bytes(), 0o644)
    return paths
