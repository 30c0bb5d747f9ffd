"""A cluster of Raft hosts in one thread, with a virtual clock, a lossy network and forgetful disks.

Owns: what is simulated (time, messages, crashes, partitions, packs, apply) and the rules that are
checked all the time: one leader per term, one entry per committed index, no acknowledged command
lost, no refused one applied, no stale read, no entry without its packs. What happens when is the
caller's: a test's script or a seed.
"""

from __future__ import annotations

import collections
import dataclasses
import functools
import heapq
import itertools
import random
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, cast

from quorepo.cluster.raft.configuration import voters_of
from quorepo.cluster.raft.group import RaftGroup
from quorepo.cluster.raft.group_log import GroupLog
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
from quorepo.cluster.raft.votes import VoteFile
from quorepo.internal.v1 import log_pb2, peer_pb2

__all__ = ["Cluster", "Command", "Node", "SimulatedCrash", "Violation", "voter"]

Record = tuple[bytes, int, int]


class Violation(AssertionError):
    """A promise of the engine was broken."""


class SimulatedCrash(BaseException):
    """The node lost its power in the middle of a write."""


def voter(replica_id: str, *, votes: bool = True) -> log_pb2.Replica:
    return log_pb2.Replica(
        replica_id=replica_id,
        node=replica_id.split("@")[0],
        peer_address=f"{replica_id}:1",
        votes=votes,
        stores_packs=True,
        may_lead=votes,
    )


@dataclasses.dataclass(frozen=True, slots=True)
class Command:
    """What the simulated state machine understands: an id, and the packs that it adds."""

    name: str
    packs: tuple[bytes, ...] = ()

    def encode(self) -> bytes:
        return b"|".join((self.name.encode(), *self.packs))

    @classmethod
    def decode(cls, data: bytes) -> Command:
        name, *packs = data.split(b"|")
        return cls(name.decode(), tuple(packs))


# ---- disk


class Disk:
    """What survives: synced journal, votes, applied state, packs."""

    def __init__(self) -> None:
        self.entries: dict[int, list[Record]] = {}
        self.votes: dict[int, tuple[int, str | None]] = {}
        self.state: dict[int, list[Entry]] = collections.defaultdict(list)
        self.packs: set[bytes] = set()


class MemoryJournal:
    """`journal.Journal` over a Disk: what was not synced may survive a crash in part."""

    is_open = True

    def __init__(self, disk: Disk, rng: random.Random) -> None:
        self._disk = disk
        self._rng = rng
        self._logs = {group: list(log) for group, log in disk.entries.items()}
        self._durable = {group: len(log) for group, log in self._logs.items()}
        self._pending: list[tuple[int, int, Record | None]] = []
        self.crash_in_sync = False

    def first_index(self, group: int) -> int:
        return 1 if self._logs.get(group) else 0

    def last_index(self, group: int) -> int:
        return len(self._logs.get(group, ()))

    def durable_index(self, group: int) -> int:
        return self._durable.get(group, 0)

    def term_at(self, group: int, index: int) -> int | None:
        log = self._logs.get(group, [])
        return log[index - 1][2] if 1 <= index <= len(log) else None

    def read(self, group: int, start: int, stop: int, bytes_max: int) -> list[Record]:
        found: list[Record] = []
        total = 0
        for record in self._logs.get(group, [])[start - 1 : stop - 1]:
            total += len(record[0])
            if found and total > bytes_max:
                break
            found.append(record)
        return found

    def append(self, group: int, index: int, term: int, data: bytes) -> None:
        log = self._logs.setdefault(group, [])
        if index != len(log) + 1 or (log and term < log[-1][2]):
            raise Violation(f"entry {index} of term {term} cannot follow {log[-1:]}")
        log.append((data, index, term))
        self._pending.append((group, index, (data, index, term)))

    def truncate_from(self, group: int, index: int) -> None:
        del self._logs[group][index - 1 :]
        self._durable[group] = min(self._durable.get(group, 0), index - 1)
        self._pending.append((group, index, None))

    def sync(self) -> None:
        if self.crash_in_sync and self._pending:
            self.crash()
            raise SimulatedCrash
        self._write(len(self._pending))
        self._durable = {group: len(log) for group, log in self._logs.items()}

    def crash(self) -> None:
        """Some beginning of what was not synced reached the disk."""
        self._write(self._rng.randint(0, len(self._pending)))

    def _write(self, count: int) -> None:
        for group, index, record in self._pending[:count]:
            log = self._disk.entries.setdefault(group, [])
            del log[index - 1 :]
            if record is not None:
                log.append(record)
        del self._pending[:count]

    def log(self, group: int) -> list[Record]:
        return self._logs.get(group, [])


class MemoryVotes:
    """`votes.VoteFile` over a Disk."""

    path = Path("votes")

    def __init__(self, disk: Disk, group: int) -> None:
        self._disk = disk
        self._group = group

    @property
    def exists(self) -> bool:
        return self._group in self._disk.votes

    @property
    def term(self) -> int:
        return self._disk.votes.get(self._group, (0, None))[0]

    @property
    def voted_for(self) -> str | None:
        return self._disk.votes.get(self._group, (0, None))[1]

    def store(self, term: int, voted_for: str | None) -> None:
        if term < self.term or (term == self.term and self.voted_for not in (None, voted_for)):
            raise Violation(f"vote ({term}, {voted_for}) after ({self.term}, {self.voted_for})")
        self._disk.votes[self._group] = (term, voted_for)


# ---- one node


class Node:
    """One node of the cluster; implements what the host needs of its surroundings."""

    def __init__(self, cluster: Cluster, replica_id: str) -> None:
        self.cluster = cluster
        self.replica_id = replica_id
        self.disk = Disk()
        self.host: RaftHost | None = None
        self.journal = MemoryJournal(self.disk, cluster.rng)
        self.queues: dict[int, collections.deque[Entry]] = {}
        self.apply_stalled = False
        self.linked: dict[str, int] = {}  # whom it believes to be connected to: which connection
        # Its monotonic clock minus the cluster's.
        self.skew_s = cluster.rng.uniform(-cluster.skew_s, cluster.skew_s)
        self.step_token = 0
        self.frozen_until = 0.0  # the process does not run before
        self.known: set[str] = set()  # whom the engine wants connections to

    def __str__(self) -> str:
        return self.replica_id

    def group(self, group: int = 1) -> RaftGroup:
        assert self.host is not None
        return self.host._groups[group]

    # RaftTransport

    def send(self, to_replica: str, messages: Sequence[peer_pb2.GroupMessage]) -> None:
        if to_replica in self.linked:
            self.cluster.carry(self, to_replica, messages)

    def set_replicas(self, replicas: Sequence[log_pb2.Replica]) -> None:
        self.known = {replica.replica_id for replica in replicas}

    # ApplySink

    def submit(self, group: int, entries: Sequence[Entry]) -> None:
        for entry in entries:
            if entry.index > len(self.disk.entries.get(group, ())):
                raise Violation(f"{self} applies entry {entry.index}, which its disk does not have")
            self.cluster.note_committed(self, entry)
        self.queues[group].extend(entries)
        self.cluster.after(self.cluster.rng.uniform(0, 0.005), lambda: self.apply(group))

    def backlog(self, group: int) -> int:
        return len(self.queues[group])

    def apply(self, group: int) -> None:
        """The apply thread's turn."""
        queue = self.queues.get(group)
        if self.host is None or not queue or self.apply_stalled:
            return
        results = {}
        while queue:
            entry = queue.popleft()
            state = self.disk.state[group]
            if entry.index != len(state) + 1:
                raise Violation(f"{self} applies entry {entry.index} after {len(state)}")
            state.append(entry)
            results[entry.index] = f"result of {entry.data!r}"
        self.host.applied(group, len(self.disk.state[group]), results)
        self.cluster.poke(self)

    # PackGate

    def missing(self, group: int, data: bytes) -> Sequence[PackNeed]:
        packs = Command.decode(data).packs
        return [PackNeed("r", pack, pack, 1, 1) for pack in packs if pack not in self.disk.packs]

    def want(self, group: int, needs: Sequence[PackNeed], from_replica: str) -> None:
        host = self.host
        assert host is not None
        for need in needs:
            self.cluster.fetch(self, host, group, need, from_replica)


# ---- the cluster


@dataclasses.dataclass(slots=True)
class Proposed:
    """A proposal and what the client was told."""

    command: Command
    group: int
    at: Node
    host: RaftHost
    verdict: Proposal | None = None


class Cluster:
    """Nodes, links and clients; everything happens in `run`."""

    def __init__(
        self,
        seed: int = 0,
        *,
        voters: int = 3,
        groups: Sequence[int] = (1,),
        config: RaftConfig | None = None,
        delay_s: tuple[float, float] = (0.0002, 0.002),
        skew_s: float = 0.0,
    ) -> None:
        self.rng = random.Random(seed)
        self.now = 1000.0
        self.config = config or RaftConfig()
        self.groups = tuple(groups)
        self.delay_s = delay_s
        self.skew_s = skew_s
        self.founding = log_pb2.Configuration(replicas=[voter(f"n{i}@1") for i in range(voters)])
        self.nodes: dict[str, Node] = {}
        self.blocked: set[frozenset[str]] = set()
        self.heal_after_s: tuple[float, float] = (0.02, 0.1)
        self.pack_fetch_fails = 0.0
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()
        self._last_delivery: dict[tuple[str, str], float] = {}
        self._connection: dict[frozenset[str], int] = {}  # number of the present one, of each pair
        self._connections = itertools.count(1)
        self.majority_is_founders = True  # False: members change, or a test speaks for them
        self.leaders: dict[tuple[int, int], str] = {}  # by group and term
        self.last_commit: dict[tuple[int, int], tuple[int, frozenset[str]]] = {}
        self.first_commit: dict[tuple[int, int], int] = {}  # of each leader
        self.votes: dict[tuple[int, int, str], str] = {}  # by group, term and voter
        self.committed: dict[tuple[int, int], Entry] = {}
        self.proposed: list[Proposed] = []
        self.acknowledged: dict[int, int] = dict.fromkeys(self.groups, 0)  # highest index told
        self.reads_done = 0
        # What a Future's callback found: an exception there would only be logged.
        self.broken: list[str] = []
        self.messages = 0
        self.bytes_sent = 0
        for replica in self.founding.replicas:
            self.add_node(replica.replica_id)

    # time

    def after(self, delay_s: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._events, (self.now + delay_s, next(self._order), action))

    def run(self, seconds: float) -> None:
        """Lets virtual time pass."""
        end = self.now + seconds
        while self._events and self._events[0][0] <= end:
            at, _, action = heapq.heappop(self._events)
            self.now = max(self.now, at)
            action()
            if self.broken:
                raise Violation(self.broken[0])
        self.now = end

    def run_until(self, condition: Callable[[], Any], seconds: float = 10.0) -> None:
        """Lets virtual time pass until `condition` holds; fails after `seconds`."""
        end = self.now + seconds
        while not condition():
            if self.now >= end:
                raise Violation(f"not reached in {seconds} s: {condition}")
            self.run(0.005)

    # nodes

    def add_node(self, replica_id: str) -> Node:
        node = self.nodes[replica_id] = Node(self, replica_id)
        self.start(node)
        for other in self.nodes.values():
            if other is not node:
                self.connect_later(node, other)
        return node

    def start(self, node: Node) -> None:
        """(Re)starts a node from its disk."""
        node.journal = MemoryJournal(node.disk, self.rng)
        node.queues = {group: collections.deque() for group in self.groups}
        node.apply_stalled = False
        starts = {}
        for group in self.groups:
            state = node.disk.state[group]
            configurations = [e.data for e in state if e.kind == "configuration"]
            starts[group] = GroupStart(
                founding=self.founding,
                applied_index=len(state),
                applied_term=state[-1].term if state else 0,
                applied_configuration=(
                    log_pb2.Configuration.FromString(configurations[-1]) if configurations else None
                ),
            )

        def open_log(group: int) -> GroupLog:
            votes = cast(VoteFile, MemoryVotes(node.disk, group))
            return GroupLog(cast(Journal, node.journal), group, votes)

        node.host = RaftHost(
            replica_id=node.replica_id,
            groups=starts,
            journal=cast(Journal, node.journal),
            votes_dir=Path("nowhere"),
            sink=node,
            gate=node,
            transport=node,
            config=self.config,
            on_fatal=lambda error: None,
            clock_ms=lambda: int(self.now * 1000),
            rng=self.rng,
            monotonic=lambda: self.now + node.skew_s,
            open_log=open_log,
        )
        self.poke(node)

    def crash(self, node: Node, *, power: bool = True) -> None:
        """kill -9, or a power cut: then what was not synced is gone in part, applied state too."""
        if node.host is None:
            return
        node.host = None
        node.step_token += 1
        node.journal.crash()
        node.queues = {}
        node.linked = {}
        if power:
            for state in node.disk.state.values():
                # SQLite with synchronous=NORMAL: a power cut may undo the last transactions.
                del state[self.rng.randint(max(0, len(state) - 5), len(state)) :]
        for other in self.nodes.values():
            if other is not node:
                self.disconnect(node, other)

    def restart(self, node: Node) -> None:
        if node.host is None:
            self.start(node)
            for other in self.nodes.values():
                if other is not node:
                    self.connect_later(node, other)

    def alive(self) -> list[Node]:
        return [node for node in self.nodes.values() if node.host is not None]

    def poke(self, node: Node, delay_s: float | None = None) -> None:
        """The node's Raft thread gets to run."""
        node.step_token += 1
        token = node.step_token
        delay = self.rng.uniform(0, 0.0005) if delay_s is None else delay_s
        delay = max(delay, node.frozen_until - self.now)

        def step() -> None:
            if token == node.step_token and node.host is not None:
                self.step(node)

        self.after(delay, step)

    def step(self, node: Node) -> None:
        assert node.host is not None
        try:
            wait_s = node.host.step()
        except SimulatedCrash:
            self.crash(node)
            return
        self._check_leaders(node)
        if self.rng.random() < 0.1:
            self._check_configuration(node)
        self.poke(node, max(wait_s, 0.0001))

    # links

    def connect_later(self, a: Node, b: Node) -> None:
        self.after(self.rng.uniform(*self.heal_after_s), lambda: self.connect(a, b))

    def connect(self, a: Node, b: Node) -> None:
        pair = frozenset((a.replica_id, b.replica_id))
        if a.host is None or b.host is None or pair in self.blocked or pair in self._connection:
            return
        if a.replica_id in b.linked or b.replica_id in a.linked:
            self.connect_later(a, b)  # one of them has not noticed yet that the last one broke
            return
        self._connection[pair] = number = next(self._connections)
        for one, other in ((a, b), (b, a)):
            one.linked[other.replica_id] = number
            assert one.host is not None
            one.host.peer_connected(other.replica_id)
            self.poke(one)

    def disconnect(self, a: Node, b: Node, *, notice_s: float = 0.002) -> None:
        """The connection breaks; each side notices after up to `notice_s`."""
        pair = frozenset((a.replica_id, b.replica_id))
        number = self._connection.pop(pair, None)
        if number is None:
            return
        for one, other in ((a, b), (b, a)):
            delay = self.rng.uniform(0, notice_s)
            self.after(delay, functools.partial(self._notice, one, other, number))
        self.connect_later(a, b)

    def _notice(self, one: Node, other: Node, number: int) -> None:
        if one.linked.get(other.replica_id) == number:
            del one.linked[other.replica_id]
            if one.host is not None:
                one.host.peer_disconnected(other.replica_id)
                self.poke(one)

    def partition(self, *sides: Sequence[Node], notice_s: float = 0.002) -> None:
        """Only nodes of one side hear each other; a node in no side hears nobody."""
        side_of = {node.replica_id: number for number, side in enumerate(sides) for node in side}
        self.blocked.clear()
        for a, b in itertools.combinations(self.nodes.values(), 2):
            side_a, side_b = side_of.get(a.replica_id), side_of.get(b.replica_id)
            if side_a is None or side_a != side_b:
                self.blocked.add(frozenset((a.replica_id, b.replica_id)))
                self.disconnect(a, b, notice_s=notice_s)
            else:
                self.connect_later(a, b)

    def heal(self) -> None:
        self.blocked.clear()
        for a, b in itertools.combinations(self.nodes.values(), 2):
            self.connect_later(a, b)

    def carry(
        self, sender: Node, to_replica: str, messages: Sequence[peer_pb2.GroupMessage]
    ) -> None:
        """In order on one connection; what is on its way when it breaks is lost."""
        for message in messages:
            self._check_promise(sender, to_replica, message)
        pair = frozenset((sender.replica_id, to_replica))
        connection = self._connection.get(pair)
        if connection is None:
            return  # broken, and not noticed yet
        frame = [message.SerializeToString() for message in messages]
        link = (sender.replica_id, to_replica)
        at = max(self.now + self.rng.uniform(*self.delay_s), self._last_delivery.get(link, 0.0))
        self._last_delivery[link] = at
        self.after(at - self.now, lambda: self._arrive(connection, pair, link, frame))

    def _arrive(
        self, connection: int, pair: frozenset[str], link: tuple[str, str], frame: list[bytes]
    ) -> None:
        receiver = self.nodes[link[1]]
        if self._connection.get(pair) != connection or receiver.host is None:
            return
        self.messages += len(frame)
        self.bytes_sent += sum(map(len, frame))
        messages = [peer_pb2.GroupMessage.FromString(data) for data in frame]
        receiver.host.deliver(link[0], messages)
        self.poke(receiver)

    def fetch(
        self, node: Node, host: RaftHost, group: int, need: PackNeed, from_replica: str
    ) -> None:
        def arrive() -> None:
            if node.host is not host or self.rng.random() < self.pack_fetch_fails:
                return
            if need.digest in self.nodes[from_replica].disk.packs:
                node.disk.packs.add(need.digest)
                host.packs_arrived(group)
                self.poke(node)

        self.after(self.rng.uniform(0.001, 0.3), arrive)

    # clients

    def leader(self, group: int = 1) -> Node | None:
        """The node that leads in the highest term, among those that run."""
        leading = [node for node in self.alive() if node.group(group).is_leader]
        return max(leading, key=lambda node: node.group(group).current_term, default=None)

    def wait_for_leader(self, group: int = 1, seconds: float = 10.0) -> Node:
        def ready() -> bool:
            node = self.leader(group)
            return node is not None and node.group(group).commit_index >= (
                node.group(group).no_op_index or 1 << 62
            )

        self.run_until(ready, seconds)
        leader = self.leader(group)
        assert leader is not None
        return leader

    def propose(
        self, node: Node, command: Command | str, group: int = 1, timeout_s: float = 5.0
    ) -> Proposed:
        assert node.host is not None
        if isinstance(command, str):
            command = Command(command)
        proposed = Proposed(command, group, node, node.host)
        self.proposed.append(proposed)
        future = node.host.propose(group, command.encode(), timeout_s)
        future.add_done_callback(lambda done: self._verdict(proposed, done))
        self.poke(node)
        return proposed

    def _verdict(self, proposed: Proposed, done: Future[Proposal]) -> None:
        verdict = proposed.verdict = done.result()
        if verdict.outcome is Outcome.APPLIED:
            entry = self.committed.get((proposed.group, verdict.index))
            if entry is None or entry.data != proposed.command.encode():
                self.broken.append(f"{proposed} was acknowledged, committed is {entry}")
            elif verdict.result != f"result of {entry.data!r}" or verdict.term != entry.term:
                self.broken.append(f"{proposed} got a wrong result")
            self.acknowledged[proposed.group] = max(
                self.acknowledged[proposed.group], verdict.index
            )

    def apply(
        self, node: Node, command: Command | str, group: int = 1, timeout_s: float = 5.0
    ) -> Proposal:
        """Proposes and lets time pass until there is a verdict."""
        proposed = self.propose(node, command, group, timeout_s)
        self.run_until(lambda: proposed.verdict is not None, timeout_s + 1)
        assert proposed.verdict is not None
        return proposed.verdict

    def read(self, node: Node, group: int = 1, timeout_s: float = 2.0) -> Future[int]:
        """A linearizable read; fails when it misses what was acknowledged before it began."""
        assert node.host is not None
        needed = self.acknowledged[group]
        future = node.host.read_index(group, timeout_s)

        def check(done: Future[int]) -> None:
            if done.exception() is None:
                applied = len(node.disk.state[group])
                if done.result() < needed or applied < done.result():
                    self.broken.append(
                        f"stale read at {node}: index {done.result()}, applied {applied}, "
                        f"acknowledged before {needed}"
                    )
                self.reads_done += 1

        future.add_done_callback(check)
        self.poke(node)
        return future

    def change(
        self, node: Node, replicas: Sequence[log_pb2.Replica], group: int = 1
    ) -> Future[Proposal]:
        assert node.host is not None
        configuration = log_pb2.Configuration(replicas=replicas)
        future = node.host.change_configuration(group, configuration, 3.0)
        self.poke(node)
        return future

    def result(self, future: Future[Any], seconds: float = 10.0) -> Any:
        self.run_until(future.done, seconds)
        return future.result()

    # rules

    def note_committed(self, node: Node, entry: Entry) -> None:
        key = (entry.group, entry.index)
        if key not in self.committed:
            self._check_stored_by_majority(entry)
        known = self.committed.setdefault(key, entry)
        if known != entry:
            raise Violation(f"{node} has {entry} committed where another has {known}")

    def _check_promise(self, sender: Node, to_replica: str, message: peer_pb2.GroupMessage) -> None:
        """What a replica says must be on its disk before it says so, and must not be taken back."""
        durable = sender.disk.entries.get(message.group, [])
        kind = message.WhichOneof("kind")
        if kind == "vote_granted":
            key = (message.group, message.term, sender.replica_id)
            if self.votes.setdefault(key, to_replica) != to_replica:
                raise Violation(f"{sender} votes for {self.votes[key]} and {to_replica} in {key}")
            term, voted_for = sender.disk.votes.get(message.group, (0, None))
            if term < message.term or (term == message.term and voted_for != to_replica):
                raise Violation(f"{sender} votes before its vote is durable")
        elif kind == "append_reply" and message.append_reply.success:
            if message.append_reply.next_index - 1 > len(durable):
                raise Violation(f"{sender} acknowledges what its disk does not have: {message}")
        elif kind == "append_entries" and message.append_entries.commit_index > len(durable):
            raise Violation(f"{sender} commits what its disk does not have: {message}")
        if message.term > sender.disk.votes.get(message.group, (0, None))[0] and kind not in (
            "pre_vote_granted",
        ):
            raise Violation(f"{sender} speaks in a term that its disk does not have: {message}")

    def _check_stored_by_majority(self, entry: Entry) -> None:
        """At the moment an entry is first known as committed, a majority has it durably."""
        if not self.majority_is_founders:
            return
        holders = 0
        for replica in self.founding.replicas:
            log = self.nodes[replica.replica_id].disk.entries.get(entry.group, [])
            holders += len(log) >= entry.index and log[entry.index - 1][2] == entry.term
        if 2 * holders <= len(self.founding.replicas):
            raise Violation(f"{entry} is committed and on {holders} disks only")

    def _check_leaders(self, node: Node) -> None:
        for number in self.groups:
            group = node.group(number)
            if not group.is_leader:
                continue
            key = (number, group.current_term)
            if key not in self.leaders:
                self._check_elected_by_majority(node, key)
            if self.leaders.setdefault(key, node.replica_id) != node.replica_id:
                raise Violation(f"two leaders in term {key}: {self.leaders[key]} and {node}")
            # Raft 5.4.2: only entries of its own term are committed by counting.
            known = self.first_commit.setdefault(key, group.commit_index)
            if known < group.commit_index < (group.no_op_index or 0):
                raise Violation(f"{node} committed {group.commit_index} of an older term")
            self._check_match_indexes(node, number)
            self._check_commit(node, number)
            self._check_changes(node, number)

    def _check_changes(self, node: Node, group: int) -> None:
        """One uncommitted change at a time, none before the leader knows what is committed."""
        if self.majority_is_founders:
            return
        raft = node.group(group)
        changes = [
            (index, term, data) for data, index, term in node.journal.log(group) if data[0] == 2
        ]
        open_terms = [term for index, term, _ in changes if index > raft.commit_index]
        if len(open_terms) > 1 and raft.current_term in open_terms:
            # Two of older terms are possible: the first was committed, this leader was not told.
            raise Violation(f"{node} has two changes under way")
        own = any(term == raft.current_term for _, term, _ in changes)
        if own and raft.commit_index < (raft.no_op_index or 0):
            raise Violation(f"{node} changed members before it knew what is committed")

    def _check_configuration(self, node: Node) -> None:
        if self.majority_is_founders:
            return
        for group in self.groups:
            changes = [data for data, _, _ in node.journal.log(group) if data[0] == 2]
            newest = changes[-1][9:] if changes else self.founding.SerializeToString()
            in_force = node.group(group).history.current
            if in_force != log_pb2.Configuration.FromString(newest):
                raise Violation(f"{node} has another configuration in force than its log")

    def _check_elected_by_majority(self, node: Node, key: tuple[int, int]) -> None:
        if not self.majority_is_founders:
            return
        votes = 1
        for replica in self.founding.replicas:
            if replica.replica_id != node.replica_id:
                votes += self.votes.get((*key, replica.replica_id)) == node.replica_id
        if 2 * votes <= len(self.founding.replicas):
            raise Violation(f"{node} leads {key} with {votes} votes")

    def _check_commit(self, node: Node, group: int) -> None:
        """When a leader's commit index moves, a majority of its voters has the entry durably."""
        raft = node.group(group)
        index, voters = raft.commit_index, voters_of(raft.history.current)
        key = (group, raft.current_term)
        before, voters_before = self.last_commit.get(key, (index, voters))
        self.last_commit[key] = (index, voters)
        if index <= max(before, 1):
            return
        entry = node.journal.log(group)[index - 1]
        holders = {
            other.replica_id
            for other in self.nodes.values()
            if entry in other.disk.entries.get(group, [])[index - 1 : index]
        }
        # The members may have changed in the same turn, after the commit.
        if not any(2 * len(holders & those) > len(those) for those in (voters, voters_before)):
            raise Violation(f"{node} committed entry {index}, stored by {sorted(holders)} only")

    def _check_match_indexes(self, node: Node, group: int) -> None:
        """What a leader believes to be on a follower's disk is there, while the follower is in its
        term: afterwards another leader may have changed it."""
        raft = node.group(group)
        log = node.journal.log(group)
        for peer, index in raft.match_index.items():
            if index == 0:
                continue
            disk = self.nodes[peer.id].disk
            if disk.votes.get(group, (0, None))[0] != raft.current_term:
                continue
            stored = disk.entries.get(group, [])
            if len(stored) < index or stored[index - 1] != log[index - 1]:
                raise Violation(f"{node} believes that {peer} stores entry {index}")

    def check_at_rest(self, group: int = 1, members: Sequence[Node] | None = None) -> None:
        """After healing: everybody has the same state, and every verdict was true."""
        members = members or list(self.nodes.values())
        states = {node.replica_id: node.disk.state[group] for node in members}
        longest = max(states.values(), key=len)
        for replica_id, state in states.items():
            if state != longest:
                raise Violation(f"{replica_id} has applied {len(state)} of {len(longest)}")
        names = collections.Counter(e.data for e in longest if e.kind == "command")
        for proposed in self.proposed:
            if proposed.group != group:
                continue
            times = names[proposed.command.encode()]
            if times > 1:
                raise Violation(f"{proposed} was applied {times} times")
            if proposed.verdict is None:
                continue
            outcome = proposed.verdict.outcome
            if outcome is Outcome.APPLIED and times != 1:
                raise Violation(f"acknowledged {proposed} was applied {times} times")
            if outcome is Outcome.NOT_APPLIED and times:
                raise Violation(f"refused {proposed} was applied")
        for node in self.alive():
            self.check_packs(node)

    def check_packs(self, node: Node) -> None:
        """Whoever has the log has the packs."""
        for group in self.groups:
            for data, index, _ in node.journal.log(group):
                if data[0] == 0 and node.missing(group, data[9:]):
                    raise Violation(f"{node} has entry {index} without its packs")

    def verdicts(self) -> Mapping[str, int]:
        """How often each verdict was given."""
        counts: collections.Counter[str] = collections.Counter()
        for proposed in self.proposed:
            verdict = proposed.verdict
            counts["open" if verdict is None else f"{verdict.outcome.name} {verdict.reason}"] += 1
        return counts
