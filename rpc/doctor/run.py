"""The order of the doctor's checks. One that fails stops no other."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path

from quorepo.rpc.config import load_config, load_tokens
from quorepo.rpc.doctor import disk, network, secrets
from quorepo.rpc.doctor.findings import CHECKS, Finding, Machine
from quorepo.storage.errors import ConfigError

__all__ = ["examine"]


def examine(config_file: Path, *, token: str = "", timeout_s: float = 3.0) -> Iterator[Finding]:
    """Runs every check, in order of their numbers. Changes nothing.

    Args:
        token: for asking the other nodes; empty: one of the node's own, where it can be read.
        timeout_s: how long to wait for each other node.
    """
    try:
        config = load_config(config_file)
    except ConfigError as error:
        step = error.next_step or f"quorepo config validate --config {config_file}"
        yield Finding(1, "error", str(error), step)
        for number in CHECKS:
            if number > 1:
                yield Finding(number, "skipped", "needs a configuration", "see check 1")
        return
    yield Finding(1, "ok", f"{config_file}: node {config.node.name}")
    machine = Machine(
        config,
        config_file,
        disk.core_process(config.node.data_dir),
        token or _own_token(config.auth.tokens_file),
        timeout_s,
    )
    others = network.other_nodes(machine)
    checks: dict[int, Callable[[], Iterator[Finding]]] = {
        2: lambda: disk.check_data_directory(machine),
        3: lambda: disk.check_sync_latency(machine),
        4: lambda: disk.check_free_space(machine),
        5: lambda: disk.check_open_files(machine),
        6: lambda: secrets.check_secret_files(machine),
        7: lambda: secrets.check_peer_certificate(machine),
        8: lambda: secrets.check_listener_certificates(machine),
        9: lambda: network.check_versions(machine, others),
        10: lambda: network.check_addresses(machine),
        11: lambda: network.check_peers(machine, others),
        12: lambda: network.check_heard(machine, others),
        13: lambda: network.check_clocks(machine, others),
    }
    for number, check in checks.items():
        try:
            yield from check()
        except OSError as error:
            yield Finding(
                number,
                "error",
                f"the check itself failed: {error}",
                "run doctor as the user that runs the node",
            )


def _own_token(path: Path) -> str:
    """A token that stands in the node's own file; empty when only digests do."""
    try:
        return next((t for t in load_tokens(path).values() if isinstance(t, str)), "")
    except ConfigError:
        return ""
