"""The Raft transport between real grpc.aio nodes on loopback."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import logging
import random
import threading
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from grpc import aio
from support.peer_certificates import credentials_of
from support.peer_nodes import (
    CLUSTER,
    KEEPALIVE,
    Inbox,
    Lab,
    Node,
    connect,
    message,
    wait_until,
)

from quorepo.cluster.peer.clients import open_channel
from quorepo.cluster.peer.transport import TransportLimits
from quorepo.internal.v1 import peer_pb2, peer_pb2_grpc


@pytest_asyncio.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Lab]:
    lab = Lab(tmp_path)
    yield lab
    await lab.close()


async def test_messages_arrive_in_order_and_once(lab: Lab) -> None:
    one, two = await lab.pair()
    for start in range(0, 2000, 10):
        one.transport.send(two.replica_id, [message(n) for n in range(start, start + 10)])
        if start % 200 == 0:
            await asyncio.sleep(0)
    two.transport.send(one.replica_id, [message(7)])
    await wait_until(lambda: len(two.inbox.received) == 2000 and one.inbox.received)
    assert two.inbox.terms_from(one.replica_id) == list(range(2000))
    assert one.inbox.terms_from(two.replica_id) == [7]
    assert one.metrics.peer("n2").messages_sent._value.get() == 2000


async def test_another_thread_may_send(lab: Lab) -> None:
    one, two = await lab.pair()

    def run() -> None:
        for number in range(500):
            one.transport.send(two.replica_id, [message(number)])

    thread = threading.Thread(target=run)
    thread.start()
    await wait_until(lambda: len(two.inbox.received) == 500)
    thread.join()
    assert two.inbox.terms_from(one.replica_id) == list(range(500))


async def test_messages_larger_than_a_frame_arrive(lab: Lab) -> None:
    one, two = await lab.pair()
    sizes = [10, 3_500_000, 700_000, 700_000, 10]
    one.transport.send(two.replica_id, [message(n, size) for n, size in enumerate(sizes)])
    await wait_until(lambda: len(two.inbox.received) == len(sizes))
    assert two.inbox.terms_from(one.replica_id) == list(range(len(sizes)))


async def test_nothing_is_sent_to_the_own_or_an_unknown_replica(lab: Lab) -> None:
    one, two = await lab.pair()
    one.transport.send(one.replica_id, [message(1)])
    one.transport.send("n9@nowhere", [message(1)])
    one.transport.send(two.replica_id, [message(2)])
    await wait_until(lambda: two.inbox.received)
    assert one.inbox.received == []


async def test_order_holds_under_reconnects(lab: Lab) -> None:
    """Cuts the connection again and again: what arrives is increasing, and losses are reported."""
    one, two = await lab.node("n1"), await lab.node("n2")
    proxy = await lab.proxy(lambda: two.port)
    connect(one, two, through=proxy)
    connect(two, one)
    sent = 0
    for _ in range(8):
        await wait_until(lambda: one.inbox.connected)
        for _ in range(50):
            one.transport.send(two.replica_id, [message(sent), message(sent + 1)])
            sent += 2
            await asyncio.sleep(0)
        proxy.cut()
        await wait_until(lambda: not one.inbox.connected)
    await wait_until(lambda: one.inbox.connected)
    one.transport.send(two.replica_id, [message(sent)])
    await wait_until(lambda: sent in two.inbox.terms_from(one.replica_id))
    arrived = two.inbox.terms_from(one.replica_id)
    assert arrived == sorted(set(arrived))
    assert one.inbox.events.count(("disconnected", two.replica_id)) == 8


async def test_death_of_a_peer_is_reported_and_its_return_too(lab: Lab) -> None:
    one, two = await lab.pair()
    await two.stop()
    await wait_until(lambda: not one.inbox.connected)
    one.transport.send(two.replica_id, [message(1)])  # dropped, not kept for later
    two.inbox = Inbox()
    await two.start()
    connect(two, one)
    await wait_until(lambda: one.inbox.connected and two.inbox.connected)
    one.transport.send(two.replica_id, [message(2)])
    await wait_until(lambda: two.inbox.received)
    assert two.inbox.terms_from(one.replica_id) == [2]
    assert [word for word, _ in one.inbox.events] == ["connected", "disconnected", "connected"]


async def test_silent_peer_is_noticed(lab: Lab) -> None:
    """No RST, no FIN: the cable is pulled. HTTP/2 keepalive notices."""
    one, two = await lab.node("n1"), await lab.node("n2")
    there, back = await lab.proxy(lambda: two.port), await lab.proxy(lambda: one.port)
    connect(one, two, through=there)
    connect(two, one, through=back)
    await wait_until(lambda: one.inbox.connected and two.inbox.connected)
    there.silent.set()
    back.silent.set()
    await wait_until(lambda: not one.inbox.connected and not two.inbox.connected, timeout_s=4.0)


async def test_loss_of_answers_is_reported_too(lab: Lab) -> None:
    """Only the stream of the answers breaks: the sender of requests has to be told as well."""
    one, two = await lab.node("n1"), await lab.node("n2")
    back = await lab.proxy(lambda: one.port)
    connect(one, two)
    connect(two, one, through=back)
    await wait_until(lambda: one.inbox.connected and two.inbox.connected)
    back.cut()
    await wait_until(lambda: ("disconnected", two.replica_id) in one.inbox.events)
    await wait_until(lambda: one.inbox.connected and two.inbox.connected)


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"credentials": credentials_of("n2", signed_by="other", trusts="other")}, "not accepted"),
        ({"credentials": credentials_of("n3")}, "no certificate of node 'n2'"),
        ({"cluster_id": "cluster-2"}, "belongs to cluster 'cluster-2', not 'cluster-1'"),
        ({"served_as": "n3"}, "this node is 'n3', not 'n2'"),
    ],
)
async def test_wrong_peer_is_refused(
    lab: Lab, caplog: pytest.LogCaptureFixture, wrong: dict[str, Any], text: str
) -> None:
    caplog.set_level(logging.INFO)
    one, two = await lab.node("n1"), await lab.node("n2", **wrong)
    connect(one, two)

    def notes() -> list[str]:
        records = [r for r in caplog.records if r.getMessage() == "peer not connected"]
        return [r.__dict__["fields"]["detail"] for r in records]

    await wait_until(notes)
    await asyncio.sleep(0.3)  # some more attempts: the news is told once
    assert len(notes()) == 1
    assert text in notes()[0]
    assert not one.inbox.connected
    assert not two.inbox.events


async def test_refused_peer_is_told_of_once(lab: Lab, caplog: pytest.LogCaptureFixture) -> None:
    one, two = await lab.node("n1"), await lab.node("n2", cluster_id="cluster-2")

    def refusals() -> int:
        return sum(record.getMessage() == "peer refused" for record in caplog.records)

    connect(two, one)
    await wait_until(refusals)
    await asyncio.sleep(0.3)  # some more attempts
    assert refusals() == 1
    async with channel_as("n2", one) as channel:
        call = await open_stream(channel, one, two.replica_id)  # as n2 with its mistake corrected
        await hello_of(call, one)
        call.cancel()
    await wait_until(lambda: refusals() == 2)


async def test_new_disk_under_the_old_address_is_not_taken_for_the_old_replica(lab: Lab) -> None:
    one, two = await lab.node("n1"), await lab.node("n2", disk="new")
    old = two.replica()
    old.replica_id = "n2@old"
    one.transport.set_replicas([old])
    await asyncio.sleep(0.3)
    one.transport.send("n2@old", [message(1)])
    assert not one.inbox.connected
    assert not two.inbox.received


def channel_as(name: str, node: Node) -> aio.Channel:
    """A bare channel to `node` with the certificate of the node `name`."""
    return open_channel(node.peer, credentials_of(name), KEEPALIVE)


async def open_stream(
    channel: aio.Channel, node: Node, replica_id: str
) -> aio.StreamStreamCall[peer_pb2.RaftFrame, peer_pb2.RaftHello]:
    """A bare incoming stream of some replica."""
    call = peer_pb2_grpc.PeerStub(channel).Raft()
    await call.write(
        peer_pb2.RaftFrame(from_replica=replica_id, cluster_id=CLUSTER, to_node=node.name)
    )
    return call


async def hello_of(call: Any, node: Node) -> None:
    assert (await call.read()).replica_id == node.replica_id


async def write_until_it_fails(
    call: aio.StreamStreamCall[peer_pb2.RaftFrame, peer_pb2.RaftHello],
) -> None:
    async with asyncio.timeout(5):
        with contextlib.suppress(aio.AioRpcError, asyncio.InvalidStateError):
            while True:
                await call.write(peer_pb2.RaftFrame(messages=[message(2)]))
                await asyncio.sleep(0)


async def test_newer_stream_supersedes_the_older_one(lab: Lab) -> None:
    node = await lab.node("n1")
    async with channel_as("n2", node) as first_channel, channel_as("n2", node) as second_channel:
        old = await open_stream(first_channel, node, "n2@d1")
        await hello_of(old, node)
        await old.write(peer_pb2.RaftFrame(messages=[message(1)]))
        await wait_until(lambda: node.inbox.received)
        new = await open_stream(second_channel, node, "n2@d1")
        await hello_of(new, node)
        await write_until_it_fails(old)
        # INTERNAL is what grpc.aio makes of an answer that comes in the middle of a write.
        assert (await old.code()).name in {"ABORTED", "INTERNAL"}
        await new.write(peer_pb2.RaftFrame(messages=[message(3)]))
        await wait_until(lambda: ("n2@d1", 3) in node.inbox.received)
        assert node.inbox.terms_from("n2@d1") == [1, 3]
        new.cancel()


async def test_replica_outside_the_configuration_is_heard_and_answered(lab: Lab) -> None:
    """A newcomer whose entry this node has not seen yet may need its vote."""
    one, newcomer = await lab.node("n1"), await lab.node("n2")
    connect(newcomer, one)
    await wait_until(lambda: one.inbox.connected and newcomer.inbox.connected)
    newcomer.transport.send(one.replica_id, [message(5)])
    await wait_until(lambda: one.inbox.received)
    one.transport.send(newcomer.replica_id, [message(6)])
    await wait_until(lambda: newcomer.inbox.received)
    await newcomer.stop()
    await wait_until(lambda: not one.inbox.connected)
    await wait_until(lambda: newcomer.replica_id not in one.transport._links)


async def test_replica_that_leaves_the_configuration_is_disconnected(lab: Lab) -> None:
    one, two = await lab.pair()
    one.transport.set_replicas([one.replica()])
    two.transport.set_replicas([two.replica()])
    # Each keeps its link while the other one's stream lives; a restart of either ends both.
    await two.stop()
    await wait_until(lambda: not one.inbox.connected)
    await asyncio.sleep(0.2)
    assert not one.transport._links


async def test_moved_replica_is_reached_at_its_new_address(lab: Lab) -> None:
    one, two = await lab.pair()
    proxy = await lab.proxy(lambda: two.port)
    connect(one, two, through=proxy)
    await wait_until(lambda: proxy.forwarded_bytes and one.inbox.connected)
    assert [word for word, _ in one.inbox.events] == ["connected", "disconnected", "connected"]
    one.transport.send(two.replica_id, [message(1)])
    await wait_until(lambda: two.inbox.received)


async def test_queue_is_bounded_and_the_connection_goes_over_it(lab: Lab) -> None:
    """A peer that does not read costs its connection, not our memory."""
    limits = TransportLimits(keepalive=KEEPALIVE, queue_bytes_max=1_000_000, backoff_s_max=0.2)
    one, two = await lab.node("n1", limits=limits), await lab.node("n2")
    connect(one, two)
    connect(two, one)
    await wait_until(lambda: one.inbox.connected and two.inbox.connected)
    link = one.transport._links[two.replica_id]
    for number in range(2000):  # in one go: the loop has no chance to write
        one.transport.send(two.replica_id, [message(number, 10_000)])
        assert link._queue_bytes <= limits.queue_bytes_max
    await wait_until(lambda: ("disconnected", two.replica_id) in one.inbox.events)
    await wait_until(lambda: one.inbox.connected)
    one.transport.send(two.replica_id, [message(9999)])
    await wait_until(lambda: 9999 in two.inbox.terms_from(one.replica_id))
    assert link._counters.messages_dropped._value.get() >= 1900


async def test_peer_that_stops_reading_loses_its_connection(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The write in hand waits for the peer; the overflow has to end it all the same."""
    limits = TransportLimits(keepalive=KEEPALIVE, queue_bytes_max=4_000_000, backoff_s_max=0.2)
    one, two = await lab.node("n1", limits=limits), await lab.node("n2")

    async def read_nothing(_replica_id: str, _first: object, _context: object) -> None:
        await asyncio.Event().wait()

    monkeypatch.setattr(two.transport, "_read", read_nothing)
    connect(one, two)
    connect(two, one)
    await wait_until(lambda: one.inbox.connected)
    number = 0
    async with asyncio.timeout(10):
        while one.inbox.connected:
            number += 1
            one.transport.send(two.replica_id, [message(number, 100_000)])
            await asyncio.sleep(0)
    assert number > 40


async def test_own_replica_id_from_outside_is_refused(lab: Lab) -> None:
    node = await lab.node("n1")
    async with channel_as("n1", node) as channel:
        call = await open_stream(channel, node, node.replica_id)
        assert (await call.code()).name == "FAILED_PRECONDITION"
        assert "copied" in (await call.details() or "")


async def test_three_nodes_survive_chaos_with_order_kept(lab: Lab) -> None:
    """Threads send all the time while links are cut at random and one node restarts."""
    rng = random.Random(4711)
    nodes = [await lab.node(name) for name in ("n1", "n2", "n3")]
    proxies = [await lab.proxy(lambda node=node: node.port) for node in nodes]  # type: ignore[misc]

    def configure(node: Node) -> None:
        others = [
            other.replica(f"127.0.0.1:{proxy.port}")
            for other, proxy in zip(nodes, proxies, strict=True)
        ]
        node.transport.set_replicas(others)

    stop = threading.Event()
    counters = [itertools.count(), itertools.count(), itertools.count()]

    def run(position: int) -> None:
        while not stop.is_set():
            number = next(counters[position])
            for other in nodes:
                nodes[position].transport.send(other.replica_id, [message(number, number % 2000)])
            stop.wait(0.0005)

    for node in nodes:
        configure(node)
    threads = [threading.Thread(target=run, args=(position,)) for position in range(3)]
    for thread in threads:
        thread.start()
    try:
        for _ in range(15):
            await asyncio.sleep(rng.uniform(0.01, 0.08))
            rng.choice(proxies).cut()
        await nodes[2].stop()
        await nodes[2].start()
        configure(nodes[2])
        await wait_until(lambda: all(len(node.inbox.connected) == 2 for node in nodes))
        marks = [next(counter) for counter in counters]
        await wait_until(
            lambda: all(
                node.inbox.terms_from(other.replica_id)[-1:] > [mark]
                for node in nodes
                for other, mark in zip(nodes, marks, strict=True)
                if other is not node
            )
        )
    finally:
        stop.set()
        for thread in threads:
            thread.join()
    for node in nodes:
        for other in nodes:
            terms = node.inbox.terms_from(other.replica_id)
            assert terms == sorted(set(terms))


async def test_a_replica_that_moved_is_called_where_it_says_that_it_is(lab: Lab) -> None:
    """One of two moved: without this no majority would ever hear of its new address."""
    one, two = await lab.node("n1"), await lab.node("n2")
    listener = await asyncio.start_server(lambda _r, _w: None, "127.0.0.1", 0)
    nobody = listener.sockets[0].getsockname()[1]
    listener.close()
    await listener.wait_closed()
    one.transport.set_replicas([one.replica(), two.replica(f"127.0.0.1:{nobody}")])
    connect(two, one)
    await wait_until(lambda: one.inbox.connected and two.inbox.connected)
    assert one.inbox.connected == {two.replica_id}
