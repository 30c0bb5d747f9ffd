"""`quorepo serve`: one node in the foreground, as systemd, a container or the demo runs it.

Owns the order of start: configuration, pid file, runtime folder, supervisor. Must not know what the
processes do.
"""

from __future__ import annotations

import asyncio
import contextlib
import sys
from pathlib import Path

from quorepo.rpc.node.pid_file import AlreadyRunning, pid_file
from quorepo.rpc.node.process import EXIT_ALREADY_RUNNING, run_process
from quorepo.rpc.node.runtime_dir import runtime_directory
from quorepo.rpc.node.supervisor import Supervisor, node_children
from quorepo.storage.errors import FatalError
from quorepo.storage.logs import configure_logging

__all__ = ["serve"]

_WHY = {
    FatalError.EXIT_IO_ERROR: (
        "stopped after an I/O error of the disk; nothing acknowledged is lost as long as a "
        "majority of nodes lives; check the disk, then start the node again"
    ),
    FatalError.EXIT_CONFIG: (
        "stopped because the configuration or the data directory does not fit; the line above "
        "says what"
    ),
}


def serve(config_argument: str) -> int:
    """Runs the node configured by `config_argument` until it is told to stop.

    Returns:
        0 stopped as asked, 75 runs already, 74 I/O error of the disk, 78 wrong configuration.
    """
    return run_process("quorepo serve", lambda: _serve(config_argument))


def _serve(config_argument: str) -> int:
    from quorepo.rpc.config import load_config, load_peer_credentials, load_tokens
    from quorepo.rpc.node.enrol import enrol

    path = Path(config_argument).absolute()
    config = load_config(path)
    name = config.node.name
    configure_logging("supervisor", name)
    enrol(config, path)
    load_peer_credentials(config)
    load_tokens(config.auth.tokens_file)
    with contextlib.ExitStack() as stack:
        if config.node.pid_file is not None:
            try:
                stack.enter_context(pid_file(config.node.pid_file, config_argument))
            except AlreadyRunning as error:
                _say(f"node {name!r} was not started: {error}")
                return EXIT_ALREADY_RUNNING
        runtime_dir = stack.enter_context(runtime_directory())
        code = asyncio.run(_supervise(path, runtime_dir))
    if code in _WHY:
        _say(f"node {name!r}: {_WHY[code]}")
    return code


async def _supervise(config: Path, runtime_dir: Path) -> int:
    return await Supervisor(node_children(config, runtime_dir)).run()


def _say(text: str) -> None:
    print(f"quorepo serve: {text}", file=sys.stderr, flush=True)  # noqa: T201
