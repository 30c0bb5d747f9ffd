"""The Raft thread: real threads, a real journal, real vote files; and what ends the process."""

from __future__ import annotations

import contextlib
import itertools
import random
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
from support.raft_cluster import Cluster, voter

from quorepo.cluster.raft.host import RaftHost
from quorepo.cluster.raft.interface import (
    Entry,
    GroupStart,
    Outcome,
    PackNeed,
    Proposal,
    RaftConfig,
)
from quorepo.cluster.raft.journal import Journal
from quorepo.internal.v1 import log_pb2, peer_pb2
from quorepo.storage import failpoints
from quorepo.storage.errors import FatalError, Unavailable

GROUPS = (0, 1)


class ThreadNode:
    """A node with its own journal and apply thread; messages go straight to the other hosts."""

    def __init__(self, replica_id: str, directory: Path, peers: dict[str, ThreadNode]) -> None:
        self.replica_id = replica_id
        self.directory = directory
        self.peers = peers
        self.state: dict[int, list[Entry]] = {group: [] for group in GROUPS}
        self.fatal: list[BaseException] = []
        self.replicas: list[str] = []
        self.start()

    def start(self) -> None:
        self.journal = Journal.open(self.directory / "journal")
        (self.directory / "votes").mkdir(exist_ok=True)
        founding = log_pb2.Configuration(replicas=[voter(name) for name in ("a@1", "b@1", "c@1")])
        self.apply_pool = ThreadPoolExecutor(1)
        self.host = RaftHost(
            replica_id=self.replica_id,
            groups={
                group: GroupStart(founding, len(state), state[-1].term if state else 0, None)
                for group, state in self.state.items()
            },
            journal=self.journal,
            votes_dir=self.directory / "votes",
            sink=self,
            gate=self,
            transport=self,
            config=RaftConfig(),
            on_fatal=self.fatal.append,
            clock_ms=lambda: time.time_ns() // 1_000_000,
            rng=random.Random(),
        )

    def stop(self) -> None:
        self.host.stop()
        self.apply_pool.shutdown()
        # After a failed write the journal refuses everything, as it should.
        with contextlib.suppress(FatalError):
            self.journal.close()

    def send(self, to_replica: str, messages: Sequence[peer_pb2.GroupMessage]) -> None:
        if to_replica in self.peers and self.replica_id in self.peers:
            self.peers[to_replica].host.deliver(self.replica_id, messages)

    def set_replicas(self, replicas: Sequence[log_pb2.Replica]) -> None:
        self.replicas = [replica.replica_id for replica in replicas]

    def submit(self, group: int, entries: Sequence[Entry]) -> None:
        self.apply_pool.submit(self._apply, group, entries)

    def _apply(self, group: int, entries: Sequence[Entry]) -> None:
        self.state[group].extend(entries)
        self.host.applied(group, entries[-1].index, {entry.index: entry.data for entry in entries})

    def backlog(self, group: int) -> int:
        return 0

    def missing(self, group: int, data: bytes) -> Sequence[PackNeed]:
        return ()

    def want(self, group: int, needs: Sequence[PackNeed], from_replica: str) -> None:
        raise AssertionError("no packs here")


def connect(nodes: dict[str, ThreadNode]) -> None:
    for one, other in itertools.permutations(nodes.values(), 2):
        one.host.peer_connected(other.replica_id)


@pytest.fixture
def nodes(tmp_path: Path) -> Iterator[dict[str, ThreadNode]]:
    nodes: dict[str, ThreadNode] = {}
    for name in ("a@1", "b@1", "c@1"):
        directory = tmp_path / name
        directory.mkdir()
        nodes[name] = ThreadNode(name, directory, nodes)
    every = list(nodes.values())
    for node in every:
        node.host.start()
    connect(nodes)
    yield nodes
    for node in every:
        node.stop()


def apply(node: ThreadNode, payload: bytes, group: int = 1) -> Proposal:
    """As the proposal driver does: repeats what was certainly not applied."""
    deadline = time.monotonic() + 10
    while time.monotonic() < deadline:
        node.host.wait_for_leader(group, 5.0).result()
        verdict = node.host.propose(group, payload, 5.0).result()
        if verdict.outcome is not Outcome.NOT_APPLIED:
            return verdict
    raise AssertionError(f"never applied: {verdict}")


def test_any_replica_takes_writes_and_reads(nodes: dict[str, ThreadNode]) -> None:
    for number, node in enumerate(nodes.values()):
        payload = b"payload %d" % number
        verdict = apply(node, payload)
        assert verdict.outcome is Outcome.APPLIED
        assert verdict.result == payload
        for reader in nodes.values():
            assert reader.host.read_index(1, 5.0).result() >= verdict.index
            assert payload in [entry.data for entry in reader.state[1]]
    assert not any(node.fatal for node in nodes.values())


def test_many_clients_at_once(nodes: dict[str, ThreadNode]) -> None:
    apply(nodes["a@1"], b"first")
    futures: list[Future[Proposal]] = []
    for number in range(200):
        node = list(nodes.values())[number % 3]
        futures.append(node.host.propose(1, b"%d" % number, 10.0))
    verdicts = [future.result() for future in futures]
    assert all(verdict.outcome is Outcome.APPLIED for verdict in verdicts)
    assert len({verdict.index for verdict in verdicts}) == 200


def test_acknowledged_writes_are_there_after_all_nodes_restarted(
    nodes: dict[str, ThreadNode],
) -> None:
    payloads = [b"%d" % number for number in range(20)]
    for payload in payloads:
        assert apply(nodes["a@1"], payload).outcome is Outcome.APPLIED
    for node in nodes.values():
        node.stop()
    for node in nodes.values():
        node.state = {group: [] for group in GROUPS}  # the state is lost, the journal is not
        node.start()
    for node in nodes.values():
        node.host.start()
    connect(nodes)
    apply(nodes["b@1"], b"after")
    applied = [entry.data for entry in nodes["b@1"].state[1] if entry.kind == "command"]
    assert applied == [*payloads, b"after"]


def test_failover_is_quick(nodes: dict[str, ThreadNode]) -> None:
    apply(nodes["a@1"], b"before")
    leader = nodes["a@1"].host.wait_for_leader(1, 5.0).result()
    del nodes[leader]
    for node in nodes.values():
        node.host.peer_disconnected(leader)
    started_at = time.monotonic()
    apply(next(iter(nodes.values())), b"after")
    assert time.monotonic() - started_at < 3.0  # well under a second on a machine of its own


def test_failed_sync_ends_the_process_and_acknowledges_nothing(
    nodes: dict[str, ThreadNode],
) -> None:
    apply(nodes["a@1"], b"before")
    leader = nodes[nodes["a@1"].host.wait_for_leader(1, 5.0).result()]
    others = [node for node in nodes.values() if node is not leader]
    for node in others:
        node.host.stop()
    with failpoints.enabled("journal.sync.before_fsync", "error"):
        verdict = leader.host.propose(1, b"lost", 5.0).result()
    assert verdict.outcome is Outcome.UNKNOWN
    assert [error.exit_code for error in leader.fatal if isinstance(error, FatalError)] == [
        FatalError.EXIT_IO_ERROR
    ]
    assert b"lost" not in [entry.data for entry in leader.state[1]]
    late = leader.host.propose(1, b"late", 5.0).result()
    assert (late.outcome, late.reason) == (Outcome.NOT_APPLIED, "stopped")


def test_exception_in_the_raft_thread_ends_the_process(nodes: dict[str, ThreadNode]) -> None:
    node = nodes["a@1"]
    apply(node, b"before")
    ended = threading.Event()

    def on_fatal(error: BaseException) -> None:
        node.fatal.append(error)
        ended.set()

    node.host._on_fatal = on_fatal
    node.host.applied(1, 10**9, {})
    assert ended.wait(5.0)
    assert "were handed over" in str(node.fatal[0])


def test_status_is_a_picture_of_one_moment(nodes: dict[str, ThreadNode]) -> None:
    apply(nodes["a@1"], b"before")
    leader = nodes["a@1"].host.wait_for_leader(1, 5.0).result()
    deadline = time.monotonic() + 5
    while time.monotonic() < deadline:
        status = nodes[leader].host.status(1)
        if all(replica.applied_index == status.commit_index for replica in status.replicas):
            break
    assert (status.role, status.leader, status.group) == ("leader", leader, 1)
    assert [replica.replica_id for replica in status.replicas] == ["a@1", "b@1", "c@1"]
    assert all(replica.connected and replica.votes for replica in status.replicas)
    assert {r.match_index for r in status.replicas} == {status.last_index}
    assert sorted(nodes[leader].replicas) == sorted({"a@1", "b@1", "c@1"} - {leader})


# ---- one step, on the virtual clock


def test_messages_of_a_step_leave_together() -> None:
    cluster = Cluster(1, groups=(0, 1, 2))
    for group in (0, 1, 2):
        cluster.wait_for_leader(group)
    node = cluster.nodes["n0@1"]
    cluster.run(0.01)
    assert node.host is not None
    calls: list[tuple[str, int]] = []

    def send(to_replica: str, messages: Sequence[Any]) -> None:
        calls.append((to_replica, len(messages)))

    node.send = send  # type: ignore[method-assign]
    for _ in range(50):
        for group in (0, 1, 2):
            node.host.propose(group, b"x", 5.0)
    node.host.step()
    receivers = [to_replica for to_replica, _ in calls]
    assert len(receivers) == len(set(receivers))
    assert sum(count for _, count in calls) >= 50


def test_reads_of_several_groups_are_asked_in_one_message() -> None:
    cluster = Cluster(5, groups=(0, 1))
    leaders = [cluster.wait_for_leader(group) for group in (0, 1)]
    reader = next(node for node in cluster.alive() if node not in leaders)
    cluster.run(0.01)
    assert reader.host is not None
    sent: list[list[str]] = []
    send = reader.send

    def noted(to_replica: str, messages: Sequence[Any]) -> None:
        sent.append([message.WhichOneof("kind") for message in messages])
        send(to_replica, messages)

    reader.send = noted  # type: ignore[method-assign]
    reads = reader.host.read_indexes([0, 1], 5.0)
    reader.host.step()
    asked = [kinds for kinds in sent if "read_index_request" in kinds]
    assert sum(kinds.count("read_index_request") for kinds in asked) == 2
    assert len(asked) == len(set(map(id, leaders)))
    for read in reads:
        assert cluster.result(read) > 0


def test_one_sync_for_all_groups_of_a_step() -> None:
    cluster = Cluster(2, groups=(0, 1, 2), voters=1)
    for group in (0, 1, 2):
        cluster.wait_for_leader(group)
    node = cluster.nodes["n0@1"]
    syncs: list[int] = []
    sync = node.journal.sync

    def counted() -> None:
        syncs.append(1)
        sync()

    node.journal.sync = counted  # type: ignore[method-assign]
    assert node.host is not None
    for group in (0, 1, 2):
        node.host.propose(group, b"x", 5.0)
    node.host.step()
    assert len(syncs) == 1


def test_idle_host_sleeps_until_its_next_timer() -> None:
    cluster = Cluster(3)
    leader = cluster.wait_for_leader()
    cluster.run(1.0)
    for node in cluster.alive():
        assert node.host is not None
        node.host.step()
        slept_s = node.host.step()
        assert slept_s > 0.01, f"{node} wants to run again after {slept_s} s"
    assert cluster.leader() is leader


def test_waiting_for_a_leader_ends() -> None:
    cluster = Cluster(4)
    cluster.partition()
    node = cluster.nodes["n0@1"]
    assert node.host is not None
    waits = [node.host.wait_for_leader(1, 0.5), node.host.wait_for_leader(1, 30.0)]
    cluster.poke(node)
    cluster.run(1.0)
    assert isinstance(waits[0].exception(), Unavailable)
    cluster.heal()
    assert cluster.result(waits[1]) in cluster.nodes


def test_nonsense_from_a_peer_is_dropped() -> None:
    cluster = Cluster(5)
    leader = cluster.wait_for_leader()
    assert leader.host is not None
    term = leader.group().current_term
    nonsense = [
        peer_pb2.GroupMessage(group=1, term=term + 9),
        peer_pb2.GroupMessage(group=77, term=1, term_notice=peer_pb2.TermNotice()),
        peer_pb2.GroupMessage(group=1, term=99, append_entries=peer_pb2.AppendEntries()),
    ]
    leader.host.deliver("n1@1", nonsense)
    leader.host.step()
    assert leader.group().current_term == term
    assert cluster.apply(leader, "goes on").outcome is Outcome.APPLIED
