"""The peer port: only certificates of the cluster get in, one owner per port, clear refusals."""

from __future__ import annotations

from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import pytest
import pytest_asyncio
from grpc import aio
from support.peer_certificates import authority, credentials_of
from support.peer_nodes import (
    KEEPALIVE,
    METHODS,
    SERVICE,
    Handler,
    Lab,
    Node,
    ended_with,
    message,
    wait_until,
)

from quorepo.cluster.peer.certificates import Credentials
from quorepo.cluster.peer.clients import PeerAddress, PeerClients, open_channel
from quorepo.cluster.peer.server import PeerServer
from quorepo.internal.v1 import core_pb2, log_pb2, peer_pb2
from quorepo.storage.errors import FatalError


@pytest_asyncio.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Lab]:
    lab = Lab(tmp_path)
    yield lab
    await lab.close()


def anonymous(node: Node) -> aio.Channel:
    tls = grpc.ssl_channel_credentials(root_certificates=authority().certificate_pem)
    name = ("grpc.ssl_target_name_override", "n1.node.quorepo")
    return aio.secure_channel(node.address, tls, options=[name])


def plain(node: Node) -> aio.Channel:
    return aio.insecure_channel(node.address)


def channel_with(credentials: Credentials) -> Any:
    return lambda node: open_channel(node.peer, credentials, KEEPALIVE)


@pytest.mark.parametrize("method", [*METHODS, "NoSuchMethod"])
@pytest.mark.parametrize(
    "channel_to",
    [
        plain,
        anonymous,
        channel_with(credentials_of("n2", signed_by="other cluster")),
        channel_with(credentials_of("n2", signed_by="other cluster", trusts="other cluster")),
        channel_with(credentials_of("n2", valid_days=-0.5)),
    ],
    ids=["no TLS", "no certificate", "another CA's", "another cluster's node", "expired"],
)
async def test_no_method_is_reached_without_a_certificate_of_the_cluster(
    lab: Lab, method: str, channel_to: Any
) -> None:
    node = await lab.node("n1")
    async with channel_to(node) as channel:
        call: Any = channel.stream_stream(f"/{SERVICE.full_name}/{method}")(timeout=5)
        assert (await call.code()).name == "UNAVAILABLE"  # no connection came about
    assert not node.inbox.events


@pytest.mark.parametrize("method", METHODS)
async def test_certificate_that_names_no_node_is_refused(lab: Lab, method: str) -> None:
    """Signed by the CA, as an operator's may be that is for something else."""
    node = await lab.node("n1")
    async with open_channel(node.peer, credentials_of("www.shop"), KEEPALIVE) as channel:
        call: Any = channel.stream_stream(f"/{SERVICE.full_name}/{method}")
        code, words = await ended_with(call, b"")
        assert code == "PERMISSION_DENIED"
        assert "names no node" in words


async def test_unknown_method_is_told_so(lab: Lab) -> None:
    node = await lab.node("n1")
    async with open_channel(node.peer, credentials_of("n2"), KEEPALIVE) as channel:
        call: Any = channel.stream_stream(f"/{SERVICE.full_name}/NoSuchMethod")()
        assert (await call.code()).name == "UNIMPLEMENTED"


async def test_node_calls_reach_the_handler(lab: Lab) -> None:
    one, two = await lab.node("n1"), await lab.node("n2")
    request = peer_pb2.IdentifyRequest(node="n2", replica_id="n2@d1")
    answer = await two.clients.identify(one.peer, request, 5.0)
    assert (answer.node, answer.replica_id) == ("answering", "n2@d1")
    rejoin = peer_pb2.RejoinRequest(node="n2", replica_id="n2@d2")
    assert (await two.clients.rejoin(one.peer, rejoin, 5.0)).accepted
    status = await two.clients.status(one.peer, core_pb2.CoreStatusRequest(), 5.0)
    assert status.node == "answering"


@pytest.mark.parametrize(
    ("node", "replica_id"),
    [("n3", "n3@d2"), ("n2", "n3@d2"), ("n3", "n2@d2"), ("", ""), ("n2", "n2")],
)
async def test_a_node_brings_back_only_itself(lab: Lab, node: str, replica_id: str) -> None:
    one, two = await lab.node("n1"), await lab.node("n2")
    request = peer_pb2.RejoinRequest(node=node, replica_id=replica_id)
    with pytest.raises(aio.AioRpcError, match="the certificate is of node 'n2'") as caught:
        await two.clients.rejoin(one.peer, request, 5.0)
    assert caught.value.code() is grpc.StatusCode.PERMISSION_DENIED


def after_new_disk(node: str) -> log_pb2.Configuration:
    """`node` came back with the disk d2 after it had lost d1."""
    replicas = [log_pb2.Replica(replica_id=f"{node}@d2", node=node)]
    return log_pb2.Configuration(replicas=replicas, removed_replica_ids=[f"{node}@d1"])


async def test_removed_replica_never_comes_back(lab: Lab) -> None:
    one, two = await lab.node("n1"), await lab.node("n2")
    one.configuration = after_new_disk("n2")
    rejoin = peer_pb2.RejoinRequest(node="n2", replica_id="n2@d1")
    with pytest.raises(aio.AioRpcError, match=r"'n2@d1' was removed.*empty its data directory"):
        await two.clients.rejoin(one.peer, rejoin, 5.0)
    rejoin.replica_id = "n2@d3"
    assert (await two.clients.rejoin(one.peer, rejoin, 5.0)).accepted


async def test_removed_node_gets_nothing_that_is_stored(lab: Lab) -> None:
    one, two = await lab.node("n1"), await lab.node("n2")
    one.configuration = log_pb2.Configuration(removed_replica_ids=["n2@d1"])
    async with open_channel(one.peer, credentials_of("n2"), KEEPALIVE) as channel:
        for method in set(METHODS) - {"Identify", "Rejoin"}:
            call: Any = channel.stream_stream(f"/{SERVICE.full_name}/{method}")
            code, words = await ended_with(call, b"")
            assert code == "PERMISSION_DENIED", method
            assert "node 'n2' was removed" in words
    # It may ask who is there, and whether it may come back.
    await two.clients.identify(one.peer, peer_pb2.IdentifyRequest(), 5.0)
    rejoin = peer_pb2.RejoinRequest(node="n2", replica_id="n2@d2")
    assert (await two.clients.rejoin(one.peer, rejoin, 5.0)).accepted


async def test_port_in_use_is_a_clear_error(lab: Lab) -> None:
    """SO_REUSEPORT is on by default in gRPC: two nodes would silently share the traffic."""
    node = await lab.node("n1")
    second = PeerServer(credentials=credentials_of("n1"), node=Handler())
    with pytest.raises(FatalError, match=f"cannot listen for peers at {node.address}") as caught:
        await second.start(node.address)
    assert caught.value.exit_code == FatalError.EXIT_CONFIG
    await second.stop()


async def test_unformed_node_says_so() -> None:
    server = PeerServer(credentials=credentials_of("n1"), node=Handler())
    peer = PeerAddress("n1", f"127.0.0.1:{await server.start('127.0.0.1:0')}")
    clients = PeerClients(credentials_of("n2"))
    stub: Any = clients.stub(peer)
    for call in (stub.Raft(), stub.StagePack(), stub.FetchPack(peer_pb2.FetchPackRequest())):
        assert (await call.code()).name == "UNAVAILABLE"
        assert "no cluster yet" in await call.details()
    request = peer_pb2.IdentifyRequest(node="n2", replica_id="n2@d1")
    assert (await clients.identify(peer, request, 5.0)).node == "answering"
    await clients.close()
    await server.stop()


async def test_caller_refuses_a_server_of_another_name_or_cluster(
    lab: Lab, caplog: pytest.LogCaptureFixture
) -> None:
    """What a mixed-up cluster.peers or a spoofed address leads to; told once, not per attempt."""
    node = await lab.node("n1")
    stranger = PeerClients(credentials_of("n2", signed_by="other", trusts="other"), KEEPALIVE)
    mixed_up = PeerAddress("n3", node.address)
    for clients, peer, text in (
        (node.clients, mixed_up, "no certificate of node 'n3'; correct cluster.peers"),
        (stranger, node.peer, "is not accepted (unable to get local issuer certificate)"),
    ):
        caplog.clear()
        for _ in range(2):
            with pytest.raises(aio.AioRpcError):
                await clients.identify(peer, peer_pb2.IdentifyRequest(), 5.0)
        told = [r.__dict__["fields"]["reason"] for r in caplog.records if "refused" in r.message]
        assert len(told) == 1
        assert text in told[0]
    await stranger.close()


async def test_replica_that_is_removed_loses_its_stream(lab: Lab) -> None:
    """n2 loses its disk and comes back as n2@d2 while the old process still talks."""
    one, two = await lab.pair()
    one.configuration = after_new_disk("n2")
    one.transport.set_replicas([one.replica()])
    await wait_until(lambda: not one.transport._members)
    two.transport.send(one.replica_id, [message(1)])
    await wait_until(lambda: not one.inbox.connected)
    assert one.inbox.received == []
