"""Checks of secret files and certificates."""

from __future__ import annotations

import datetime
import stat
from collections.abc import Iterator
from pathlib import Path

from quorepo.cluster.peer.certificates import EXPIRY_WARNING, node_dns_name
from quorepo.rpc.config import load_peer_credentials, load_tokens
from quorepo.rpc.doctor.findings import Finding, Machine
from quorepo.rpc.metrics import EdgeMetrics
from quorepo.rpc.tls import listener_certificates
from quorepo.storage.errors import ConfigError

__all__ = ["check_listener_certificates", "check_peer_certificate", "check_secret_files"]


def check_secret_files(machine: Machine) -> Iterator[Finding]:
    """Each is readable by this user and by nobody else."""
    seen = 0
    for key, path in _secret_files(machine):
        try:
            status = path.stat()
            path.open("rb").close()
        except FileNotFoundError:
            continue  # one that must be there is missed by the checks that use it
        except OSError as error:
            yield Finding(
                6,
                "error",
                f"{key} {path}: {error.strerror}",
                "run doctor as the user that runs the node; it must be able to read the file",
            )
            continue
        seen += 1
        if status.st_mode & 0o077:
            mode = stat.S_IMODE(status.st_mode)
            yield Finding(
                6,
                "error",
                f"{key} {path} is open to other users (mode {mode:04o})",
                f"chmod 600 {path}; who could read it may have: consider a new secret",
            )
    try:
        users = len(load_tokens(machine.config.auth.tokens_file))
    except ConfigError as error:
        if "is open to other users" not in error.message:
            yield Finding(6, "error", error.message, error.next_step or "correct the file")
        return
    yield Finding(6, "ok", f"{seen} secret files read, tokens of {users} user(s)")


def _secret_files(machine: Machine) -> Iterator[tuple[str, Path]]:
    config = machine.config
    candidates: list[tuple[str, Path | None]] = [
        ("auth.tokens_file", config.auth.tokens_file),
        ("cluster.tls.key_file", config.cluster.tls.key_file),
        ("cluster.tls.ca_key_file", config.cluster.tls.ca_key_file),
        ("cluster.bootstrap_secret_file", config.cluster.bootstrap_secret_file),
        ("cluster.join_token_file", config.cluster.join_token_file),
    ]
    for name in ("http", "grpc", "metrics"):
        tls = getattr(config, name).tls
        if tls is not None:
            candidates.append((f"{name}.tls.key_file", tls.key_file))
    yield from ((key, path) for key, path in candidates if path is not None)


def check_peer_certificate(machine: Machine) -> Iterator[Finding]:
    """Is it this node's, signed by the CA, and for how long yet?"""
    tls = machine.config.cluster.tls
    if not machine.config.cluster.peers and not tls.certificate_file.exists():
        yield Finding(
            7,
            "info",
            f"{tls.certificate_file} is not there yet; the node gets it when "
            "it joins or begins its cluster",
        )
        return
    try:
        credentials = load_peer_credentials(machine.config)
    except ConfigError as error:
        yield Finding(
            7,
            "error",
            error.message,
            error.next_step
            or "put a certificate of the cluster CA there, or the node does not start",
        )
        return
    yield _expiry(
        7,
        f"{node_dns_name(credentials.node)}",
        credentials.expires_at,
        f"put a new one into {tls.certificate_file} and restart this node",
    )


def check_listener_certificates(machine: Machine) -> Iterator[Finding]:
    """What clients are shown over HTTP, gRPC and for metrics."""
    metrics = EdgeMetrics()
    try:
        certificates = listener_certificates(machine.config, metrics)
    except ConfigError as error:
        yield Finding(8, "error", error.message, error.next_step or "correct the files")
        return
    if not certificates:
        yield Finding(8, "ok", "no TLS for clients: they are served on loopback only")
    now = datetime.datetime.now(datetime.UTC)
    for name in certificates:
        left = metrics.registry.get_sample_value(
            "quorepo_listener_certificate_expiry_seconds", {"listener": name}
        )
        assert left is not None
        step = f"put a new one into {name}.tls.certificate_file; it is taken without a restart"
        yield _expiry(8, f"{name}", now + datetime.timedelta(seconds=left), step)


def _expiry(number: int, what: str, end: datetime.datetime, step: str) -> Finding:
    left = end - datetime.datetime.now(datetime.UTC)
    text = f"{what}: valid until {end:%Y-%m-%d}, {left.days} days"
    return (
        Finding(number, "warning", text, step)
        if left < EXPIRY_WARNING
        else (Finding(number, "ok", text))
    )
