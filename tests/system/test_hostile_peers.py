"""What a live cluster is sent on its peer ports, with certificates that TLS takes: garbage, giants,
replays, and calls of nodes that belong elsewhere. Its processes go on, and pushes with them.

The engine's answers to each kind of frame are in unit/peer/test_peer_bad_frames.py; here the nodes
are processes and the frames are those of their own leader, recorded by a third node that is none.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import datetime
import json
import random
import socket
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc import aio
from support.demo import Demo
from support.git import WorkTree, refs_of
from support.peer_certificates import credentials_of
from support.peer_nodes import ended_with
from support.waiting import eventually

from quorepo.cluster.peer.certificates import Credentials, load_credentials
from quorepo.cluster.peer.clients import Keepalive, PeerAddress, open_channel
from quorepo.internal.v1 import peer_pb2
from quorepo.rpc.demo.layout import prepare

pytestmark = pytest.mark.system

STORAGE = 1
PATH = "hostile/peers"
SERVICE = peer_pb2.DESCRIPTOR.services_by_name["Peer"]
METHODS = sorted(method.name for method in SERVICE.methods)
NOT_A_MESSAGE = b"\x0a\xff\xff\xff\xff\x0fshort"  # announces 4 GiB
CONNECTIONS = 6
REPLAYS = 25


class Attacked:
    """Two nodes that run; the third is down, and the test speaks with its certificate."""

    def __init__(self, demo: Demo) -> None:
        self.demo = demo
        self.running = ["n1", "n2"]
        members = prepare(demo.directory).nodes
        self.addresses = {node.name: PeerAddress(node.name, node.peer) for node in members}
        identity = json.loads((demo.nodes["n3"].data_dir / "node.json").read_text())
        self.cluster_id: str = identity["cluster_id"]

    def replica_id(self, node: str) -> str:
        content = (self.demo.nodes[node].data_dir / "node.json").read_text()
        replica_id: str = json.loads(content)["replica_id"]
        return replica_id

    def credentials(self, node: str) -> Credentials:
        secrets = self.demo.directory / "secrets"
        files = (secrets / "ca.pem", secrets / f"{node}.pem", secrets / f"{node}.key")
        return load_credentials(node, *files, datetime.datetime.now(datetime.UTC))

    def channel(self, to: str, credentials: Credentials) -> aio.Channel:
        unlimited = [("grpc.max_send_message_length", -1)]
        return open_channel(self.addresses[to], credentials, Keepalive(), unlimited)

    def first_frame(self, speaker: str, to: str, **changes: Any) -> peer_pb2.RaftFrame:
        frame = peer_pb2.RaftFrame(
            from_replica=self.replica_id(speaker), cluster_id=self.cluster_id, to_node=to
        )
        frame.MergeFrom(peer_pb2.RaftFrame(**changes))
        return frame

    def processes(self) -> set[int]:
        """Supervisors, cores, edges: whoever is not in there any more was started again."""
        found, waiting = set(), [self.demo.nodes[name].pid for name in self.running]
        while waiting:
            process = Path("/proc") / str(waiting.pop())
            found.add(int(process.name))
            waiting += map(int, (process / "task" / process.name / "children").read_text().split())
        return found

    def push(self, work: WorkTree, node: str) -> str:
        """Through that node; as a user would who sees that nothing was changed, again."""
        oid = work.commit("change")
        url = self.demo.url(node, PATH)
        eventually(
            lambda: work.git("push", "-qf", url, "main", check=False).returncode == 0,
            timeout_s=60, what=f"a push through {node}",
        )  # fmt: skip
        return oid

    def check(self, work: WorkTree) -> None:
        for node in self.running:
            oid = self.push(work, node)
            refs = [refs_of(self.demo.url(name, PATH)) for name in self.running]
            assert [found["refs/heads/main"] for found in refs] == [oid, oid]


@pytest.fixture(scope="module")
def attacked(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Attacked]:
    with Demo(tmp_path_factory.mktemp("attacked") / "demo") as demo:
        attacked = Attacked(demo)
        demo.kill("n3")
        yield attacked


async def _garbage(attacked: Attacked, to: str) -> None:
    rng = random.Random(20)
    address = attacked.addresses[to].address
    host, _, port = address.rpartition(":")
    for data in (
        b"GET / HTTP/1.1\r\n\r\n",
        b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n",
        rng.randbytes(9999),
    ):
        with socket.create_connection((host, int(port)), timeout=60) as connection:
            connection.sendall(data)
    async with attacked.channel(to, attacked.credentials("n3")) as channel:
        for method in METHODS:
            call: Any = channel.stream_stream(f"/{SERVICE.full_name}/{method}")
            code, words = await ended_with(call, NOT_A_MESSAGE)
            assert code in {"INVALID_ARGUMENT", "PERMISSION_DENIED"}, (method, code, words)
        raft: Any = channel.stream_stream(f"/{SERVICE.full_name}/Raft")
        for size in (0, 1, 100, 10_000):
            code, _ = await ended_with(raft, rng.randbytes(size))
            assert code in {"INVALID_ARGUMENT", "FAILED_PRECONDITION"}
        for second, expected in (
            (rng.randbytes(300), "INVALID_ARGUMENT"),
            (NOT_A_MESSAGE, "INVALID_ARGUMENT"),
            (peer_pb2.RaftFrame(from_address="x" * (64 << 20)).SerializeToString(),
             "RESOURCE_EXHAUSTED"),
        ):  # fmt: skip
            first = attacked.first_frame("n3", to).SerializeToString()
            assert (await ended_with(raft, first, second))[0] == expected


def test_garbage_and_giants_of_a_member_end_their_stream_and_no_process(
    attacked: Attacked, work: WorkTree
) -> None:
    attacked.push(work, "n1")
    before = attacked.processes()
    for node in attacked.running:
        asyncio.run(_garbage(attacked, node))
    attacked.check(work)
    assert attacked.processes() == before


class Recorder:
    """In place of n3: takes what the others send it, byte by byte, and answers nothing."""

    def __init__(self, attacked: Attacked) -> None:
        self._attacked = attacked
        self.frames: dict[str, list[peer_pb2.RaftFrame]] = {}  # by the replica that sent them

    async def _raft(
        self, frames: AsyncIterator[bytes], _context: Any
    ) -> AsyncIterator[peer_pb2.RaftHello]:
        yield peer_pb2.RaftHello(replica_id=self._attacked.replica_id("n3"))
        speaker = ""
        async for data in frames:
            frame = peer_pb2.RaftFrame.FromString(data)
            speaker = frame.from_replica or speaker
            self.frames.setdefault(speaker, []).append(frame)

    def server(self) -> aio.Server:
        credentials = self._attacked.credentials("n3")
        server = aio.server()
        handler: Any = grpc.stream_stream_rpc_method_handler(
            self._raft, response_serializer=peer_pb2.RaftHello.SerializeToString
        )
        service = grpc.method_handlers_generic_handler(SERVICE.full_name, {"Raft": handler})
        server.add_generic_rpc_handlers((service,))
        tls = grpc.ssl_server_credentials(
            [(credentials.key_pem, credentials.certificate_pem)],
            root_certificates=credentials.ca_pem,
            require_client_auth=True,
        )
        server.add_secure_port(self._attacked.addresses["n3"].address, tls)
        return server


async def _recorded(attacked: Attacked, work: WorkTree) -> dict[str, list[peer_pb2.RaftFrame]]:
    """What both nodes say to n3 while pushes go on. It never answers, so a leader sends it entries
    once for each connection: it connects again and again."""
    recorder = Recorder(attacked)
    server = recorder.server()
    await server.start()
    try:
        for _ in range(CONNECTIONS):
            await asyncio.to_thread(attacked.push, work, "n1")
            told = {speaker: _entries(frames) for speaker, frames in recorder.frames.items()}
            async with contextlib.AsyncExitStack() as stack, asyncio.timeout(60):
                for node in attacked.running:
                    channel = attacked.channel(node, attacked.credentials("n3"))
                    await stack.enter_async_context(channel)
                    call: Any = channel.stream_stream(f"/{SERVICE.full_name}/Raft")()
                    await call.write(attacked.first_frame("n3", node).SerializeToString())
                while not any(
                    _entries(frames) > told.get(speaker, 0)
                    for speaker, frames in recorder.frames.items()
                ):
                    await asyncio.sleep(0.02)
    finally:
        await server.stop(None)
    return recorder.frames


def _entries(frames: list[peer_pb2.RaftFrame]) -> int:
    return sum(len(m.append_entries.entries) for f in frames for m in f.messages)


async def _replay(attacked: Attacked, speaker: str, frames: list[peer_pb2.RaftFrame]) -> int:
    """To the other node, as `speaker`, in any order and more than once, under its own streams.
    Returns how many streams were taken."""
    rng = random.Random(7)
    node = speaker.partition("@")[0]
    other = next(name for name in attacked.running if name != node)
    taken = 0
    async with attacked.channel(other, attacked.credentials(node)) as channel:
        raft: Any = channel.stream_stream(f"/{SERVICE.full_name}/Raft")
        for _ in range(REPLAYS):
            call: Any = raft(timeout=60)
            await call.write(attacked.first_frame(node, other).SerializeToString())
            taken += await call.read() is not aio.EOF
            for frame in rng.choices(frames, k=60):
                again = peer_pb2.RaftFrame(messages=[*frame.messages, *frame.messages])
                try:
                    await call.write(again.SerializeToString())
                except (aio.AioRpcError, asyncio.InvalidStateError):
                    break  # the speaker itself has come back on a newer stream
            call.cancel()
    return taken


def test_replayed_and_disordered_frames_of_the_leader_change_nothing(
    attacked: Attacked, work: WorkTree
) -> None:
    attacked.push(work, "n2")
    before = attacked.processes()
    recorded = asyncio.run(_recorded(attacked, work))
    speaker = max(recorded, key=lambda replica_id: _entries(recorded[replica_id]))

    async def attack() -> int:
        replaying = asyncio.create_task(_replay(attacked, speaker, recorded[speaker]))
        while not replaying.done():
            await asyncio.to_thread(attacked.push, work, random.choice(attacked.running))
        return await replaying

    assert asyncio.run(attack()) == REPLAYS
    attacked.check(work)
    assert attacked.processes() == before


async def _strangers(attacked: Attacked, to: str) -> None:
    elsewhere = credentials_of("n3", signed_by="another", trusts="another")
    # It believes this cluster, and is not believed.
    mixed = dataclasses.replace(elsewhere, ca_pem=attacked.credentials("n3").ca_pem)
    for stranger in (elsewhere, mixed):
        async with attacked.channel(to, stranger) as channel:
            for method in METHODS:
                refused: Any = channel.stream_stream(f"/{SERVICE.full_name}/{method}")
                assert (await ended_with(refused))[0] == "UNAVAILABLE", method
    # The same CA has signed for another cluster, which it must not: the cluster's id tells.
    async with attacked.channel(to, attacked.credentials("n3")) as channel:
        call: Any = channel.stream_stream(f"/{SERVICE.full_name}/Raft")
        frame = attacked.first_frame("n3", to, cluster_id="another-cluster")
        code, words = await ended_with(call, frame.SerializeToString())
        assert code == "FAILED_PRECONDITION"
        assert "belongs to cluster" in words


def test_certificates_and_frames_of_another_cluster_reach_nothing(
    attacked: Attacked, work: WorkTree
) -> None:
    before = attacked.processes()
    for node in attacked.running:
        asyncio.run(_strangers(attacked, node))
    attacked.check(work)
    assert attacked.processes() == before


async def _removed(attacked: Attacked, to: str) -> None:
    async with attacked.channel(to, attacked.credentials("n3")) as channel:
        for method in sorted(set(METHODS) - {"Identify", "Rejoin"}):
            call: Any = channel.stream_stream(f"/{SERVICE.full_name}/{method}")
            code, words = await ended_with(call, b"")
            assert code == "PERMISSION_DENIED", (method, code, words)
            assert "node 'n3' was removed" in words or method == "Join"


def test_certificate_of_a_removed_node_gets_nothing_that_is_stored(
    attacked: Attacked, work: WorkTree
) -> None:
    """The last test here: n3 does not come back."""
    attacked.push(work, "n1")
    attacked.demo.cli("node", "remove", "n3", "--yes", node="n1")
    for node in attacked.running:
        asyncio.run(_removed(attacked, node))
    attacked.check(work)
