"""An edge over a fake core, in a thread of its own, so that a test drives it with the real git."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import socket
import threading
from collections.abc import Coroutine, Iterator
from pathlib import Path
from typing import Any, TypeVar

from quorepo.rpc.auth import Authenticator
from quorepo.rpc.config import NodeConfig
from quorepo.rpc.context import EdgeContext
from quorepo.rpc.http.server import git_application, metrics_application, start_server
from quorepo.rpc.node.edge import open_edge
from support.fake_core import FakeCore
from support.waiting import eventually

__all__ = ["TOKEN", "EdgeUnderTest", "edge_config", "running_edge"]

TOKEN = "a-token-for-tests-only"

_T = TypeVar("_T")


@dataclasses.dataclass
class EdgeUnderTest:
    edge: EdgeContext
    core: FakeCore
    loop: asyncio.AbstractEventLoop
    address: str
    metrics_url: str

    def url(self, path: str, token: str = TOKEN) -> str:
        return f"http://admin:{token}@{self.address}/{path}"

    def do(self, coroutine: Coroutine[Any, Any, _T]) -> _T:
        """Runs a coroutine in the edge's loop."""
        return asyncio.run_coroutine_threadsafe(coroutine, self.loop).result(timeout=60)

    def settle(self) -> None:
        """Waits until no git request is being served, and no work goes on without its client."""
        self.settle_requests()
        self.do(self.edge.drain(10.0))

    def settle_requests(self) -> None:
        """Waits until no git request is being served."""

        def idle() -> bool:
            gauge = self.edge.metrics.in_flight
            return all(
                gauge.labels(service)._value.get() == 0
                for service in ("git-upload-pack", "git-receive-pack")
            )

        eventually(idle, what="no request in flight")

    def uploads(self) -> list[str]:
        """What incoming pushes have left in quarantine."""
        return sorted(p.name for p in self.edge.reads.layout(1).quarantine.glob("upload-*"))

    def fetch_files(self) -> list[str]:
        """What fetches have left behind, finished answers that are kept not counted."""
        kept = self.edge.fetch_cache.paths()
        folder = self.edge.config.node.data_dir / "tmp"
        return sorted(path.name for path in folder.iterdir() if path not in kept)


def edge_config(data_dir: Path, **sections: dict[str, Any]) -> NodeConfig:
    """`sections` replace whole sections; a node that is not n1 is named in `node`."""
    ports = _free_ports(4)
    name = sections.get("node", {}).get("name", "n1")
    return NodeConfig.model_validate(
        {
            "node": {"name": "n1", "data_dir": data_dir},
            "cluster": {
                "peers": {name: f"127.0.0.1:{ports[3]}"},
                "tls": {  # the core's alone
                    "ca_file": data_dir.parent / "ca.pem",
                    "certificate_file": data_dir.parent / "n1.pem",
                    "key_file": data_dir.parent / "n1.key",
                },
            },
            "listen": {
                "http": f"127.0.0.1:{ports[0]}",
                "grpc": f"127.0.0.1:{ports[1]}",
                "metrics": f"127.0.0.1:{ports[2]}",
                "peer": f"127.0.0.1:{ports[3]}",
            },
            "auth": {"tokens_file": data_dir.parent / "tokens.toml"},
            "push": {"create_on_push": True},
            "workers": {"count": 2, "queue_max": 8},
            **sections,
        }
    )


@contextlib.contextmanager
def running_edge(config: NodeConfig) -> Iterator[EdgeUnderTest]:
    """Serves HTTP and metrics until the block ends."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever, name="edge")
    thread.start()

    def do(coroutine: Coroutine[Any, Any, _T]) -> _T:
        return asyncio.run_coroutine_threadsafe(coroutine, loop).result(timeout=60)

    stack = contextlib.AsyncExitStack()

    async def start() -> EdgeUnderTest:
        core = FakeCore(config.node.data_dir)
        stack.callback(core.close)
        edge = await stack.enter_async_context(
            open_edge(config, core, Authenticator({"admin": TOKEN}))
        )
        http = await start_server(git_application(edge), config.listen.http)
        stack.push_async_callback(http.cleanup)
        metrics = await start_server(metrics_application(edge), config.listen.metrics)
        stack.push_async_callback(metrics.cleanup)
        return EdgeUnderTest(
            edge, core, loop, config.listen.http, f"http://{config.listen.metrics}/metrics"
        )

    try:
        yield do(start())
    finally:
        do(stack.aclose())
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


def _free_ports(count: int) -> list[int]:
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    ports = [s.getsockname()[1] for s in sockets]
    for s in sockets:
        s.close()
    return ports
