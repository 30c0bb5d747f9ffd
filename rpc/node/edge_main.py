"""Entry point of the edge process: `python -m quorepo.rpc.node.edge_main --config F --runtime-dir
R`.

Owns which servers the edge has and in which order they start and stop. One event loop serves git
over HTTP, the public gRPC API and /metrics; packs are checked and built in worker processes.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import logging
import signal
import sys
from pathlib import Path

from quorepo.rpc.node.process import run_child
from quorepo.storage.errors import FatalError

__all__ = ["main"]

log = logging.getLogger(__name__)

_DRAIN_TIMEOUT_S = 10.0
_GRPC_GRACE_S = 2.0


async def _serve(config_path: Path, runtime_dir: Path) -> int:
    # Imported here: a child first ties its life to its parent's, and that must not take long.
    from quorepo.rpc.auth import Authenticator
    from quorepo.rpc.config import load_config, load_tokens
    from quorepo.rpc.derivation import Derivation
    from quorepo.rpc.grpc.server import GrpcServer
    from quorepo.rpc.http.server import git_application, metrics_application, start_server
    from quorepo.rpc.node.edge import open_edge
    from quorepo.rpc.tls import listener_certificates
    from quorepo.rpc.upkeep import Upkeep
    from quorepo.storage.logs import configure_logging, fields

    config = load_config(config_path)
    configure_logging("edge", config.node.name)
    authenticator = Authenticator(load_tokens(config.auth.tokens_file))
    stop = asyncio.Event()
    failures: list[FatalError] = []

    def fail(error: FatalError) -> None:
        failures.append(error)
        stop.set()

    loop = asyncio.get_running_loop()
    loop.add_signal_handler(signal.SIGTERM, stop.set)
    async with contextlib.AsyncExitStack() as stack:
        edge = await stack.enter_async_context(
            open_edge(config, runtime_dir / "core.sock", authenticator, on_fatal=fail)
        )
        tls = listener_certificates(config, edge.metrics)
        contexts = {name: certificate.ssl_context() for name, certificate in tls.items()}
        metrics = await start_server(
            metrics_application(edge), config.listen.metrics, contexts.get("metrics")
        )
        stack.push_async_callback(metrics.cleanup)
        http = await start_server(git_application(edge), config.listen.http, contexts.get("http"))
        stack.push_async_callback(http.cleanup)
        grpc_tls = tls["grpc"].grpc_credentials() if "grpc" in tls else None
        grpc_server = GrpcServer(edge, config.listen.grpc, grpc_tls)
        await grpc_server.start()
        for certificate in tls.values():
            watching = asyncio.create_task(certificate.watch(), name=f"tls {certificate.name}")
            stack.push_async_callback(_cancel, watching)
        upkeep = Upkeep(edge)
        stack.callback(upkeep.close)
        upkeeping = asyncio.create_task(upkeep.run(), name="upkeep")
        stack.push_async_callback(_cancel, upkeeping)
        deriving = asyncio.create_task(Derivation(edge).run(), name="derivation")
        stack.push_async_callback(_cancel, deriving)
        log.info(
            "edge is serving",
            extra=fields(
                http=config.listen.http, grpc=config.listen.grpc, metrics=config.listen.metrics
            ),
        )
        await stop.wait()
        log.info("edge is stopping")
        edge.stop_taking()
        upkeeping.cancel()
        deriving.cancel()
        async with asyncio.TaskGroup() as group:
            group.create_task(_stop_http(http))
            group.create_task(grpc_server.stop(_GRPC_GRACE_S))
            group.create_task(edge.drain(_DRAIN_TIMEOUT_S))
    if failures:
        raise failures[0]
    return 0


async def _cancel(task: asyncio.Task[None]) -> None:
    """Ends work in the background; a failure of its own would have been a bug."""
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task


async def _stop_http(runner: object) -> None:
    """Closes the listening sockets, then waits for the requests that are being served."""
    from aiohttp import web

    assert isinstance(runner, web.AppRunner)
    for site in list(runner.sites):
        await site.stop()
    await runner.cleanup()


def _run() -> int:
    parser = argparse.ArgumentParser(prog="quorepo edge")
    parser.add_argument("--config", type=Path, required=True)
    parser.add_argument("--runtime-dir", type=Path, required=True)
    arguments = parser.parse_args()
    return asyncio.run(_serve(arguments.config, arguments.runtime_dir))


def main() -> int:
    """Runs the edge until it is told to stop; returns the process's exit code."""
    return run_child("quorepo edge", _run)


if __name__ == "__main__":
    sys.exit(main())
