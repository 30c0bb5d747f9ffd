"""The edge as a process of its own, beside a core that answers on its private socket."""

from __future__ import annotations

import asyncio
import contextlib
import os
import signal
import subprocess
import sys
import tempfile
import urllib.request
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc.aio
import pytest
from support.edge import TOKEN, edge_config
from support.fake_core import FakeCore
from support.git import WorkTree, git
from support.waiting import eventually

from quorepo.internal.v1 import core_pb2, core_pb2_grpc
from quorepo.rpc.config import NodeConfig
from quorepo.storage.errors import Unavailable


class _Service(core_pb2_grpc.CoreServicer):
    """A `FakeCore` behind the real protocol."""

    def __init__(self, core: FakeCore) -> None:
        self._core = core

    async def Propose(self, request: core_pb2.ProposeRequest, context: Any) -> Any:
        result = self._core.apply(request.group, request.command)
        return core_pb2.ProposeResponse(outcome=core_pb2.OUTCOME_APPLIED, result=result)

    async def ProposeMany(self, request: core_pb2.ProposeManyRequest, context: Any) -> Any:
        answers = [
            core_pb2.ProposeManyAnswer(response=await self.Propose(one, context))
            for one in request.requests
        ]
        return core_pb2.ProposeManyResponse(answers=answers)

    async def ReadIndex(self, request: core_pb2.CoreReadIndexRequest, context: Any) -> Any:
        try:
            positions = await self._core.read_index(request.groups, 1.0)
        except Unavailable as error:
            await context.abort(grpc.StatusCode.UNAVAILABLE, str(error))
        return core_pb2.CoreReadIndexResponse(
            positions=[
                core_pb2.GroupPosition(group=p.group, generation=p.generation, index=p.index)
                for p in positions.values()
            ]
        )

    async def ReplicatePack(self, request: core_pb2.ReplicatePackRequest, context: Any) -> Any:
        return core_pb2.ReplicatePackResponse(replicas=["n1"])

    async def GetStatus(self, request: Any, context: Any) -> Any:
        return await self._core.status()

    async def CreateJoinToken(
        self, request: core_pb2.CoreJoinTokenRequest, context: Any
    ) -> core_pb2.CoreJoinTokenResponse:
        raise NotImplementedError

    async def IdentifyNode(self, request: Any, context: Any) -> Any:
        return core_pb2.IdentifyNodeResponse(node=request.node, problem="nobody is there")

    async def TransferLeader(self, request: Any, context: Any) -> Any:
        return core_pb2.CoreTransferResponse(problem="nobody else is there")

    async def Verify(self, request: Any, context: Any) -> Any:
        return core_pb2.CoreVerifyResponse()

    async def GetMetrics(self, request: Any, context: Any) -> Any:
        return core_pb2.CoreMetrics(text=await self._core.metrics())


@contextlib.asynccontextmanager
async def serving_core(core: FakeCore, socket_path: Path) -> AsyncIterator[None]:
    server = grpc.aio.server()
    core_pb2_grpc.add_CoreServicer_to_server(_Service(core), server)
    server.add_insecure_port(f"unix:{socket_path}")
    await server.start()
    try:
        yield
    finally:
        await server.stop(None)


@pytest.fixture
def config(tmp_path: Path) -> NodeConfig:
    return edge_config(tmp_path / "data")


@pytest.fixture
def runtime_dir() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(prefix="qr") as folder:
        yield Path(folder)


@contextlib.contextmanager
def edge_process(config: NodeConfig, runtime_dir: Path) -> Iterator[subprocess.Popen[bytes]]:
    _write_files(config)
    path = config.node.data_dir.parent / "node.toml"
    process = subprocess.Popen(
        [
            *(sys.executable, "-P", "-m", "quorepo.rpc.node.edge_main"),
            *("--config", str(path), "--runtime-dir", str(runtime_dir)),
        ],
        env={**os.environ, "QUOREPO_PARENT_PID": str(os.getpid())},
        stderr=subprocess.PIPE,
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def _write_files(config: NodeConfig) -> None:
    folder = config.node.data_dir.parent
    (folder / "tokens.toml").write_text(f'admin = "{TOKEN}"\n')
    (folder / "tokens.toml").chmod(0o600)
    listen = config.listen
    (folder / "node.toml").write_text(
        f"""
        [node]
        name = "n1"
        data_dir = "data"
        [cluster]
        peers = {{ n1 = "{listen.peer}" }}
        tls = {{ ca_file = "ca.pem", certificate_file = "n1.pem", key_file = "n1.key" }}
        [listen]
        http = "{listen.http}"
        grpc = "{listen.grpc}"
        metrics = "{listen.metrics}"
        peer = "{listen.peer}"
        [auth]
        tokens_file = "tokens.toml"
        [push]
        create_on_push = true
        """
    )


def _read(url: str) -> str:
    with urllib.request.urlopen(url, timeout=10) as response:
        return str(response.read(), "utf-8")


async def test_the_edge_serves_before_during_and_after_a_core_and_stops_in_order(
    config: NodeConfig, runtime_dir: Path, work: WorkTree
) -> None:
    url = f"http://admin:{TOKEN}@{config.listen.http}/team/app"
    metrics = f"http://{config.listen.metrics}/metrics"
    oid = work.commit("first")
    with edge_process(config, runtime_dir) as process:
        shown = await asyncio.to_thread(eventually, lambda: _read(metrics))
        assert "quorepo_core_up 0" in shown
        health = f"http://{config.listen.http}/healthz"
        assert await asyncio.to_thread(eventually, lambda: _read(health)) == "ok\n"
        pending = asyncio.create_task(asyncio.to_thread(work.git, "push", url, "main"))
        core = FakeCore(config.node.data_dir)
        async with serving_core(core, runtime_dir / "core.sock"):
            await pending
            listed = await asyncio.to_thread(git, "ls-remote", url)
            assert oid in listed.stdout
            assert "quorepo_core_up 1" in await asyncio.to_thread(_read, metrics)
        core.close()
        process.send_signal(signal.SIGTERM)
        _out, log = await asyncio.to_thread(process.communicate, timeout=20)
        assert process.returncode == 0, log.decode()
        assert TOKEN.encode() not in log
        assert b"msg=push" in log
