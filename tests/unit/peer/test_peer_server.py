"""The peer port: nothing without the secret, one owner per port, clear refusals."""

from __future__ import annotations

import logging
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from grpc import aio
from support.peer_nodes import KEEPALIVE, SECRET, Handler, Lab

from quorepo.cluster.peer.clients import PeerClients, bearer_metadata, channel_options
from quorepo.cluster.peer.server import PeerServer
from quorepo.internal.v1 import peer_pb2
from quorepo.storage.errors import FatalError

METHODS = ["Raft", "StagePack", "FetchPack", "Identify", "Rejoin", "GetStatus", "NoSuchMethod"]
REFUSED = [
    None,
    (),
    (("authorization", "Bearer "),),
    (("authorization", SECRET),),
    (("authorization", f"bearer {SECRET}"),),
    bearer_metadata(SECRET[:-1]),
    bearer_metadata(SECRET + "s"),
    (("authorization", "Bearer wrong"), ("x-authorization", f"Bearer {SECRET}")),
]


@pytest_asyncio.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Lab]:
    lab = Lab(tmp_path)
    yield lab
    await lab.close()


@pytest.mark.parametrize("method", METHODS)
async def test_no_method_answers_without_the_secret(
    lab: Lab, method: str, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    node = await lab.node("n1")
    async with aio.insecure_channel(node.address, options=channel_options(KEEPALIVE)) as channel:
        for metadata in REFUSED:
            call: Any = channel.stream_stream(f"/quorepo.internal.v1.Peer/{method}")
            opened = call(metadata=metadata)
            assert (await opened.code()).name == "UNAUTHENTICATED", metadata
            assert SECRET not in await opened.details()
    assert SECRET not in caplog.text


async def test_node_calls_reach_the_handler(lab: Lab) -> None:
    node = await lab.node("n1")
    request = peer_pb2.IdentifyRequest(node="n2", replica_id="n2@d1")
    answer = await node.clients.identify(node.address, request, 5.0)
    assert (answer.node, answer.replica_id) == ("answering", "n2@d1")
    assert (await node.clients.rejoin(node.address, peer_pb2.RejoinRequest(), 5.0)).accepted


async def test_port_in_use_is_a_clear_error(lab: Lab) -> None:
    """SO_REUSEPORT is on by default in gRPC: two nodes would silently share the traffic."""
    node = await lab.node("n1")
    second = PeerServer(secret=SECRET, node=Handler())
    with pytest.raises(FatalError, match=f"cannot listen for peers at {node.address}") as caught:
        await second.start(node.address)
    assert caught.value.exit_code == FatalError.EXIT_CONFIG
    await second.stop()


async def test_unformed_node_says_so() -> None:
    server = PeerServer(secret=SECRET, node=Handler())
    port = await server.start("127.0.0.1:0")
    clients = PeerClients(SECRET)
    stub: Any = clients.stub(f"127.0.0.1:{port}")
    raft = stub.Raft(metadata=clients.metadata)
    stage = stub.StagePack(metadata=clients.metadata)
    fetch = stub.FetchPack(peer_pb2.FetchPackRequest(), metadata=clients.metadata)
    for call in (raft, stage, fetch):
        assert (await call.code()).name == "UNAVAILABLE"
        assert "no cluster yet" in await call.details()
    request = peer_pb2.IdentifyRequest(node="n2", replica_id="n2@d1")
    assert (await clients.identify(f"127.0.0.1:{port}", request, 5.0)).node == "answering"
    await clients.close()
    await server.stop()
