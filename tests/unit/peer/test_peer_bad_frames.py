"""What a member may send that no correct member sends: garbage, giants, replays, wrong order, lies
about who speaks. Nothing of it may stop a node or change what it holds.
"""

from __future__ import annotations

import asyncio
import itertools
import os
import random
import struct
from collections.abc import AsyncIterator, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from grpc import aio
from support.peer_certificates import credentials_of
from support.peer_nodes import (
    CLUSTER,
    GROUP,
    KEEPALIVE,
    METHODS,
    SERVICE,
    Lab,
    Node,
    message,
    wait_until,
)

from quorepo.cluster.gate import StagedPackGate
from quorepo.cluster.peer.clients import PeerAddress, open_channel
from quorepo.cluster.raft.host import RaftHost
from quorepo.cluster.raft.interface import Entry, GroupStart, RaftConfig
from quorepo.cluster.raft.journal import Journal
from quorepo.internal.v1 import log_pb2, peer_pb2

Frame = peer_pb2.RaftFrame
NOT_A_MESSAGE = b"\x0a\xff\xff\xff\xff\x0fshort"  # announces 4 GiB


@pytest_asyncio.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Lab]:
    lab = Lab(tmp_path)
    yield lab
    await lab.close()


@pytest_asyncio.fixture
async def node(lab: Lab) -> Node:
    return await lab.node("n1")


@pytest_asyncio.fixture
async def channel(node: Node) -> AsyncIterator[aio.Channel]:
    """From n2, a member, with nothing between the test and the wire."""
    async with open_channel(node.peer, credentials_of("n2"), KEEPALIVE) as channel:
        yield channel


def first_frame(*messages: peer_pb2.GroupMessage, replica_id: str = "n2@d1") -> bytes:
    return Frame(
        from_replica=replica_id, cluster_id=CLUSTER, to_node="n1", messages=messages
    ).SerializeToString()


def frame(*messages: peer_pb2.GroupMessage) -> bytes:
    return Frame(messages=messages).SerializeToString()


async def raft_stream(channel: aio.Channel, *frames: bytes) -> Any:
    call: Any = channel.stream_stream(f"/{SERVICE.full_name}/Raft")()
    for data in frames:
        await call.write(data)
    return call


@pytest.mark.parametrize("method", sorted(set(METHODS) - {"Join"}))  # test_join_token.py
async def test_bytes_that_are_no_message_are_told_so(
    channel: aio.Channel, method: str, caplog: pytest.LogCaptureFixture
) -> None:
    call: Any = channel.stream_stream(f"/{SERVICE.full_name}/{method}")()
    await call.write(NOT_A_MESSAGE)
    await call.done_writing()
    assert (await call.code()).name == "INVALID_ARGUMENT"
    assert f"no message of {method}" in await call.details()
    assert "Traceback" not in caplog.text


async def test_random_bytes_never_open_a_stream(node: Node, channel: aio.Channel) -> None:
    rng = random.Random(20)
    for size in range(200):
        call = await raft_stream(channel, rng.randbytes(size))
        assert (await call.code()).name in {"INVALID_ARGUMENT", "FAILED_PRECONDITION"}
    assert node.inbox.events == []
    assert node.inbox.received == []


@pytest.mark.parametrize(
    ("first", "text"),
    [
        (frame(message(1)), "belongs to cluster"),
        (first_frame(replica_id=""), "is no replica id"),
        (first_frame(replica_id="n2"), "is no replica id"),
        (first_frame(replica_id="n2@"), "is no replica id"),
        (first_frame(replica_id="n3@d1"), "the certificate is of node 'n2', not of 'n3@d1'"),
        (first_frame(replica_id="n1@d1"), "the certificate is of node 'n2', not of 'n1@d1'"),
        (first_frame(replica_id=" n2@d1"), "the certificate is of node 'n2'"),
    ],
)
async def test_stream_must_begin_with_who_speaks(
    node: Node, channel: aio.Channel, first: bytes, text: str
) -> None:
    call = await raft_stream(channel, first)
    assert (await call.code()).name == "FAILED_PRECONDITION"
    assert text in await call.details()
    assert node.inbox.received == []


async def test_speaker_cannot_change_within_a_stream(node: Node, channel: aio.Channel) -> None:
    call = await raft_stream(channel, first_frame(message(1)))
    await call.read()
    await call.write(first_frame(message(2)))  # the same again is harmless
    await wait_until(lambda: node.inbox.terms_from("n2@d1") == [1, 2])
    await call.write(first_frame(message(3), replica_id="n3@d1"))
    assert (await call.code()).name == "FAILED_PRECONDITION"
    assert "goes on as 'n3@d1'" in await call.details()
    assert node.inbox.terms_from("n3@d1") == []
    assert node.inbox.terms_from("n2@d1") == [1, 2]


async def test_garbage_ends_a_stream_and_what_came_before_it_counts(
    node: Node, channel: aio.Channel
) -> None:
    call = await raft_stream(channel, first_frame(message(1)), frame(message(2)), NOT_A_MESSAGE)
    await call.read()
    assert (await call.code()).name == "INVALID_ARGUMENT"
    assert node.inbox.terms_from("n2@d1") == [1, 2]
    again = await raft_stream(channel, first_frame(message(3)))
    await wait_until(lambda: node.inbox.terms_from("n2@d1") == [1, 2, 3])
    again.cancel()


async def test_giant_frame_is_refused_before_it_is_read(lab: Lab, node: Node) -> None:
    unlimited = [("grpc.max_send_message_length", -1)]
    async with open_channel(node.peer, credentials_of("n2"), KEEPALIVE, unlimited) as channel:
        call = await raft_stream(channel, first_frame(message(1)))
        await call.read()
        await call.write(frame(message(2, 64 * 1024 * 1024)))
        assert (await call.code()).name == "RESOURCE_EXHAUSTED"
    assert node.inbox.terms_from("n2@d1") == [1]


async def test_bytes_that_are_no_tls_are_dropped(node: Node) -> None:
    for data in (b"GET / HTTP/1.1\r\n\r\n", b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", os.urandom(5000)):
        reader, writer = await asyncio.open_connection("127.0.0.1", node.port)
        writer.write(data)
        async with asyncio.timeout(5):
            while await reader.read(1000):
                pass
        writer.close()


# ---- with the real engine behind the port


class Engine:
    """A RaftHost of replica n1@d1 among n1, n2, n3, which are never asked: the test is n2."""

    def __init__(self, directory: Path) -> None:
        self.fatal: list[BaseException] = []
        self.entries: list[Entry] = []
        self.sent: list[peer_pb2.GroupMessage] = []
        (directory / "votes").mkdir(parents=True)
        self.journal = Journal.open(directory / "journal")
        founding = log_pb2.Configuration(
            replicas=[
                log_pb2.Replica(
                    replica_id=f"{name}@d1", node=name, votes=True, stores_packs=True, may_lead=True
                )
                for name in ("n1", "n2", "n3")
            ]
        )
        any_held: Any = self
        self.host = RaftHost(
            replica_id="n1@d1",
            groups={GROUP: GroupStart(founding, 0, 0, None)},
            journal=self.journal,
            votes_dir=directory / "votes",
            sink=self,
            gate=StagedPackGate(any_held, self, asyncio.get_running_loop(), lambda *_: []),
            transport=self,
            config=RaftConfig(),
            on_fatal=self.fatal.append,
            clock_ms=lambda: 0,
            rng=random.Random(1),
        )
        self.host.start()

    # what the host wants of its surroundings

    def submit(self, group: int, entries: Sequence[Entry]) -> None:
        self.entries += entries
        self.host.applied(group, entries[-1].index, {})

    def backlog(self, group: int) -> int:
        return 0

    def has(self, group: int, digest: bytes) -> bool:
        return True

    async def fetch(self, peers: Sequence[PeerAddress], header: peer_pb2.PackHeader) -> None: ...

    def send(self, to_replica: str, messages: Sequence[peer_pb2.GroupMessage]) -> None:
        self.sent += messages

    def set_replicas(self, replicas: Sequence[log_pb2.Replica]) -> None: ...

    def said(self, kind: str) -> Any:
        """The newest message of that kind which the engine sent."""
        return next((m for m in reversed(self.sent) if m.WhichOneof("kind") == kind), None)

    def applied_commands(self) -> list[bytes]:
        return [entry.data for entry in self.entries if entry.kind == "command"]


@pytest_asyncio.fixture
async def engine(node: Node, tmp_path: Path) -> AsyncIterator[Engine]:
    engine = Engine(tmp_path / "engine")
    node.transport.start(engine.host)
    yield engine
    engine.host.stop()
    engine.journal.close()
    assert engine.fatal == []


TERM = 7


def command(number: int) -> bytes:
    deleted = log_pb2.DeleteRepository(repository_id=str(number))
    return log_pb2.Command(version=1, delete_repository=deleted).SerializeToString()


def log_entry(index: int, payload: bytes) -> peer_pb2.LogEntry:
    return peer_pb2.LogEntry(index=index, term=TERM, data=struct.pack(">BQ", 0, 0) + payload)


def append(start: int, count: int, commit: int, *payloads: bytes) -> peer_pb2.GroupMessage:
    """An append of the leader n2 with the entries `start` to `start + count - 1`."""
    sent = peer_pb2.GroupMessage(group=GROUP, term=TERM)
    entries = [log_entry(i, command(i)) for i in range(start, start + count)]
    entries += [log_entry(start + count + i, data) for i, data in enumerate(payloads)]
    previous_term = TERM if start > 2 else 0
    sent.append_entries.CopyFrom(
        peer_pb2.AppendEntries(
            commit_index=commit,
            prev_log_index=start - 1,
            prev_log_term=previous_term,
            entries=entries,
        )
    )
    return sent


def appends(entries: int) -> Iterator[peer_pb2.GroupMessage]:
    start = 2
    for count in itertools.cycle([1, 3, 0, 2]):
        if start > entries:
            return
        yield append(start, count, max(1, start - 2))
        start += count


@pytest.mark.parametrize("seed", range(5))
async def test_replayed_and_disordered_appends_change_nothing(
    node: Node, channel: aio.Channel, engine: Engine, seed: int
) -> None:
    """A stream in order, with what it held before again and again in between, in any order."""
    rng = random.Random(seed)
    call = await raft_stream(channel, first_frame())
    said: list[peer_pb2.GroupMessage] = []
    for sent in appends(60):
        said.append(sent)
        await call.write(frame(sent, *rng.choices(said, k=rng.randint(0, 4))))
        if rng.random() < 0.3:
            ahead = rng.randint(2, 90)  # something that the log does not reach yet, or contains
            await call.write(frame(append(ahead, rng.randint(0, 3), 1)))
    last = said[-1].append_entries.entries[-1].index if said[-1].append_entries.entries else 60
    await call.write(frame(append(last + 1, 0, last)))
    await wait_until(lambda: len(engine.applied_commands()) >= last - 1 or engine.fatal)
    assert engine.applied_commands() == [command(i) for i in range(2, last + 1)]
    call.cancel()


def nonsense(rng: random.Random) -> peer_pb2.GroupMessage:
    """Any kind of message, any numbers; of a term that is over, so that it may claim no votes."""

    def number() -> int:
        return rng.choice([0, 1, 2, 3, 40, 2**31, 2**63, 2**64 - 1])

    made = peer_pb2.GroupMessage(group=rng.choice([0, GROUP, GROUP, GROUP, 77]), term=TERM - 1)
    kinds = made.DESCRIPTOR.oneofs_by_name["kind"].fields
    kind = rng.choice([None, *kinds])
    if kind is None:
        return made
    inner = getattr(made, kind.name)
    inner.SetInParent()
    for field in inner.DESCRIPTOR.fields:
        if field.name == "entries":
            for _ in range(rng.randint(0, 3)):
                data = rng.randbytes(rng.randint(0, 20))
                inner.entries.add(index=number(), term=number(), data=data)
        elif field.type == field.TYPE_MESSAGE:
            for _ in range(rng.randint(0, 2)):
                inner.configuration.replicas.add(replica_id=f"r{number()}", votes=number() % 2 > 0)
        elif field.type == field.TYPE_BYTES:
            setattr(inner, field.name, rng.randbytes(rng.randint(0, 50)))
        elif field.type == field.TYPE_BOOL:
            setattr(inner, field.name, rng.random() < 0.5)
        elif field.type == field.TYPE_ENUM:
            setattr(inner, field.name, rng.randint(0, 6))
        else:
            setattr(inner, field.name, number())
    return made


@pytest.mark.parametrize("seed", range(4))
async def test_nonsense_in_valid_frames_is_dropped(
    node: Node, channel: aio.Channel, engine: Engine, seed: int
) -> None:
    rng = random.Random(seed)
    call = await raft_stream(channel, first_frame(append(2, 3, 4)))
    for _ in range(200):
        await call.write(frame(*(nonsense(rng) for _ in range(5))))
    await call.write(frame(append(5, 2, 6)))
    await wait_until(lambda: len(engine.applied_commands()) >= 5 or engine.fatal)
    assert engine.applied_commands() == [command(i) for i in range(2, 7)]
    call.cancel()


async def test_entry_that_is_no_command_ends_the_process_and_is_not_in_the_log(
    node: Node, channel: aio.Channel, engine: Engine
) -> None:
    """No correct leader has one in its log: this node must not go on as if it knew better."""
    call = await raft_stream(channel, first_frame(append(2, 3, 4)))
    await wait_until(lambda: len(engine.applied_commands()) == 3)
    await call.write(frame(append(5, 1, 6, NOT_A_MESSAGE)))
    await wait_until(lambda: engine.fatal)
    assert "log entry holds no command" in str(engine.fatal.pop())
    assert engine.journal.last_index(GROUP) == 5
    call.cancel()


@pytest.mark.parametrize(
    "data",
    [NOT_A_MESSAGE, b"", log_pb2.Command(version=99).SerializeToString()],
    ids=["garbage", "nothing", "newer"],
)
async def test_forwarded_garbage_is_refused_by_a_leader_that_lives_on(
    node: Node, channel: aio.Channel, engine: Engine, data: bytes
) -> None:
    """It must not get into the log, where it would end every replica; nor end the leader."""
    call = await raft_stream(channel, first_frame())
    engine.host.peer_connected("n2@d1")
    await wait_until(lambda: engine.said("pre_vote"))
    await call.write(frame(answer(engine, "pre_vote", "pre_vote_granted")))
    await wait_until(lambda: engine.said("request_vote"))
    await call.write(frame(answer(engine, "request_vote", "vote_granted")))
    await wait_until(lambda: engine.host.status(GROUP).role == "leader")
    forwarded = peer_pb2.GroupMessage(group=GROUP, term=engine.host.status(GROUP).term)
    forwarded.forward.forward_id = 11
    forwarded.forward.data = data
    await call.write(frame(forwarded))
    await wait_until(lambda: engine.said("forward_reply") or engine.fatal)
    assert engine.said("forward_reply").forward_reply.error == peer_pb2.FORWARD_ERROR_DENIED
    call.cancel()


def answer(engine: Engine, asked: str, answered: str) -> peer_pb2.GroupMessage:
    granted = peer_pb2.GroupMessage(group=GROUP, term=engine.said(asked).term)
    getattr(granted, answered).SetInParent()
    return granted
