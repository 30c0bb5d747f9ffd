"""The certificates of a demo: a CA of its own, and one certificate per node.

Owns the files ca.pem, ca.key, <node>.pem and <node>.key. They are made once and kept; one that is
missing, unusable or ends soon is made again. Must not know where the demo keeps its secrets, or
which node runs.
"""

from __future__ import annotations

import datetime
from collections.abc import Sequence
from pathlib import Path

from quorepo.cluster.peer.certificates import (
    EXPIRY_WARNING,
    Issued,
    issue_certificate,
    load_credentials,
    make_authority,
)
from quorepo.storage.errors import ConfigError
from quorepo.storage.layout import write_durably

__all__ = ["provide_certificates"]


def provide_certificates(folder: Path, nodes: Sequence[str], now: datetime.datetime) -> None:
    """Makes what `nodes` lack in `folder`. A CA that ends soon takes all certificates with it."""
    lacking = [node for node in nodes if not _usable(folder, node, now)]
    if not lacking:
        return
    certificate, key = folder / "ca.pem", folder / "ca.key"
    if certificate.exists() and key.exists():
        authority = Issued(certificate.read_bytes(), key.read_bytes())
        if _issue(folder, authority, lacking, now):
            return
    authority = make_authority(now)
    _write(certificate, key, authority)
    _issue(folder, authority, nodes, now)


def _issue(folder: Path, authority: Issued, nodes: Sequence[str], now: datetime.datetime) -> bool:
    """False when the CA is of no use for that: damaged, or at its end."""
    for node in nodes:
        try:
            issued = issue_certificate(authority, node, now)
        except ValueError:
            return False
        _write(folder / f"{node}.pem", folder / f"{node}.key", issued)
        if not _usable(folder, node, now):
            return False
    return True


def _usable(folder: Path, node: str, now: datetime.datetime) -> bool:
    files = (folder / "ca.pem", folder / f"{node}.pem", folder / f"{node}.key")
    try:
        return load_credentials(node, *files, now).expires_at - now > EXPIRY_WARNING
    except ConfigError:
        return False


def _write(certificate: Path, key: Path, issued: Issued) -> None:
    write_durably(key, issued.key_pem, 0o600)
    write_durably(certificate, issued.certificate_pem, 0o600)
