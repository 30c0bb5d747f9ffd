"""Entry point of the core process: `python -m quorepo.rpc.node.core_main --config F --runtime-dir
R`.

Owns nothing but the hand-over: it reads the configuration and passes plain values to
`quorepo.cluster`, which must not know `quorepo.rpc`.
"""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

from quorepo.rpc.node.process import run_child

if TYPE_CHECKING:
    from quorepo.cluster.formation import FormationPlan
    from quorepo.rpc.config import NodeConfig

__all__ = ["main"]


def _run() -> int:
    import argparse
    from pathlib import Path

    parser = argparse.ArgumentParser(prog="quorepo core")
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--runtime-dir", type=Path, required=True)
    arguments = parser.parse_args()

    from quorepo import __version__
    from quorepo.cluster import core
    from quorepo.cluster.admission import AuthorityFiles
    from quorepo.cluster.sweep import Retention
    from quorepo.rpc.config import load_config, load_peer_credentials
    from quorepo.storage.logs import configure_logging

    config = load_config(arguments.config)
    configure_logging("core", config.node.name)
    return core.run(
        core.CoreSettings(
            node=config.node.name,
            data_dir=config.node.data_dir,
            socket_path=arguments.runtime_dir / "core.sock",
            peers=config.cluster.peers,
            credentials=load_peer_credentials(config),
            authority=AuthorityFiles(
                ca=config.cluster.tls.ca_file,
                ca_key=config.cluster.tls.ca_key_file,
                user_tokens=config.auth.tokens_file,
            ),
            formation=_formation_plan(config),
            peer_listen=config.listen.peer,
            http_url=config.advertise.http_url,
            grpc_address=config.advertise.grpc_address,
            metrics_url=config.advertise.metrics_url,
            version=__version__,
            raft=config.raft,
            reserve_bytes=config.storage.reserve_bytes,
            retention=Retention(
                sweep=config.storage.sweep,
                retired_s=config.storage.retired_retention_s,
                quarantine_s=config.storage.quarantine_retention_s,
                interval_s=config.storage.sweep_interval_s,
                scrub_interval_s=config.storage.scrub_interval_s,
                scrub_bytes_per_s=config.storage.scrub_bytes_per_s,
            ),
            limits=config.limits,
        )
    )


def _formation_plan(config: NodeConfig) -> FormationPlan:
    from quorepo.cluster.formation import FormationPlan

    cluster = config.cluster
    return FormationPlan(
        peer_address=config.advertise.peer_address,
        peers=cluster.peers,
        bootstrap=cluster.bootstrap,
        expect=cluster.bootstrap_expect or 0,
        contacts=tuple(cluster.join),
        rejoin_empty=cluster.rejoin_empty,
        level=_level(),
        marker=None if cluster.peers else cluster.tls.certificate_file.with_suffix(".cluster"),
    )


def _level() -> int:
    """A test may have this node stand for the release before."""
    import os

    from quorepo.cluster.state.levels import LEVEL

    return min(LEVEL, int(os.environ.get("QUOREPO_TEST_LEVEL") or LEVEL))


def main() -> int:
    """Runs the core until it is told to stop; returns the process's exit code."""
    return run_child("quorepo core", _run)


if __name__ == "__main__":
    sys.exit(main())
