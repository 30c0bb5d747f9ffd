"""Entry point of the process that joins: `python -m quorepo.rpc.node.join_main --config F`.

Lives until a member has answered, before the node's other processes start. Owns nothing but the
hand-over of plain values to `quorepo.cluster`.
"""

from __future__ import annotations

import sys

from quorepo.rpc.node.process import run_child

__all__ = ["main"]


def _run() -> int:
    import argparse
    import asyncio
    from pathlib import Path

    parser = argparse.ArgumentParser(prog="quorepo join")
    parser.add_argument("--config", type=Path, required=True)
    arguments = parser.parse_args()

    from quorepo.cluster.joining import JoinPlan, enrol_with_token
    from quorepo.rpc.config import load_config
    from quorepo.rpc.node.enrol import tls_files
    from quorepo.storage.logs import configure_logging

    config = load_config(arguments.config)
    configure_logging("join", config.node.name)
    assert config.cluster.join_token_file is not None, "the parent looked"
    plan = JoinPlan(
        files=tls_files(config),
        token_file=config.cluster.join_token_file,
        data_dir=config.node.data_dir,
        peer_address=config.advertise.peer_address,
        contacts=config.cluster.join,
        user_tokens=config.auth.tokens_file,
    )
    asyncio.run(enrol_with_token(plan))
    return 0


def main() -> int:
    """Returns the process's exit code."""
    return run_child("quorepo join", _run)


if __name__ == "__main__":
    sys.exit(main())
