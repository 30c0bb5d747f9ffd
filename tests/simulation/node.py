"""One simulated node: the product's host, journal, vote files and state, and its surroundings.

Owns: what a process of the product would: one Raft thread (`RaftHost.step`), one apply thread, the
pack gate; and the life of that process. Faults come from outside.
"""

from __future__ import annotations

import collections
import functools
import random
from collections.abc import Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from quorepo.cluster.raft.group import RaftGroup
from quorepo.cluster.raft.interface import Entry, GroupStart, PackNeed
from quorepo.cluster.snapshot.staging import finish_interrupted
from quorepo.cluster.state.store import StateStore
from quorepo.internal.v1 import log_pb2, peer_pb2
from quorepo.storage.errors import FatalError
from simulation.disk import VirtualDisk
from simulation.events import SimulatedCrash, Violation
from simulation.ledger import Ledger
from simulation.snapshots import Snapshots
from simulation.state import FileState, MemoryState, ReplicaState
from simulation.watched import WatchedHost, WatchedJournal

if TYPE_CHECKING:
    from simulation.cluster import Cluster

__all__ = ["Node"]


class Node(Ledger):
    """One node; see the module. Implements Endpoint, RaftTransport, ApplySink and PackGate."""

    def __init__(self, world: Cluster, replica_id: str) -> None:
        super().__init__(world.groups)
        self.world = world
        self.events = world.events
        self.rng = random.Random(world.events.rng.getrandbits(64))
        self.replica_id = replica_id
        self.disk = VirtualDisk(self.rng)
        self.states: dict[int, ReplicaState] = {
            group: self._new_state(group) for group in world.groups
        }
        self.packs: set[bytes] = set()  # durable
        self.host: WatchedHost | None = None
        self.life = 0
        self.lives = 0
        self.snapshots: Snapshots | None = None
        self.commit_seen = dict.fromkeys(world.groups, 0)  # in this life
        self.known: list[str] = []
        self.wiped = False  # its disk is gone for ever
        self.skew_s = self.rng.uniform(-world.setting.skew_s, world.setting.skew_s)
        self.clock_step_ms = 0
        self.busy_until = 0.0  # the Raft thread is inside a slow fsync, or the process is stopped
        self.apply_delay_s = world.setting.apply_delay_s
        self.apply_stalled = False
        self.reported_at = 0.0  # when the last report of apply arrives
        self._step_at = float("inf")
        self._token = 0
        self._queues: dict[int, collections.deque[Entry]] = {}
        self._applying: set[int] = set()

    def __str__(self) -> str:
        return self.replica_id

    def _new_state(self, group: int) -> ReplicaState:
        if self.world.setting.state_files:
            folder = self.world.scratch() / f"{self.replica_id}-{group}"
            return FileState(group, self.rng, folder)
        return MemoryState(group, self.rng, self.world.new_file)

    def raft(self, group: int) -> RaftGroup:
        assert self.host is not None
        return self.host._groups[group]

    def first(self, group: int) -> int:
        return self.journal.first_index(group)

    # ---- life

    def start(self) -> None:
        """Starts the process on what the disk has; a fault of the disk may end it again."""
        assert self.host is None
        assert not self.wiped
        try:
            self._start()
        except SimulatedCrash as crash:
            self.end(power=crash.power)
            self.world.restart_later(self)
        except FatalError as error:
            self._end_by_error(error)

    def _start(self) -> None:
        world, setting = self.world, self.world.setting
        self.lives += 1
        self.life = self.lives
        journal = WatchedJournal.open(
            cast(Path, self.disk.root / "journal"),
            segment_bytes_max=setting.segment_bytes_max,
            cache_bytes_max=setting.cache_bytes_max,
            clock_s=lambda: 0.0,
        )
        assert isinstance(journal, WatchedJournal)
        self.journal = journal
        journal.node = self
        self.note_recovered()
        self._finish_interrupted()
        self._queues = {group: collections.deque() for group in world.groups}
        self._applying.clear()
        self.apply_stalled = False
        self.snapshots = Snapshots(self)
        self.host = host = WatchedHost(
            replica_id=self.replica_id,
            groups={group: self._group_start(group) for group in world.groups},
            journal=journal,
            votes_dir=cast(Path, self.disk.root / "votes"),
            sink=self,
            gate=self,
            transport=cast(Any, self),
            config=setting.config,
            on_fatal=_never,
            clock_ms=self.clock_ms,
            rng=self.rng,
            monotonic=lambda: self.events.now + self.skew_s,
            snapshots=self.snapshots,
        )
        host.watch(self, lean=setting.lean)
        self.commit_seen = dict.fromkeys(world.groups, 0)
        self.known = []
        self._take_spent()
        self.events.note(f"{self} starts, life {self.life}")
        self.wake()

    def _finish_interrupted(self) -> None:
        """Before the engine looks at a log, as opening.py does."""
        for state in self.states.values():
            if state.has_layout:
                finish_interrupted(state.layout(), cast(StateStore, state), self.journal)

    def _group_start(self, group: int) -> GroupStart:
        position = self.states[group].position
        applied = position.configuration
        return GroupStart(
            founding=self.world.founding,
            applied_index=position.applied_index,
            applied_term=position.applied_term,
            applied_configuration=log_pb2.Configuration.FromString(applied) if applied else None,
        )

    def end(self, *, power: bool) -> None:
        """The process ends without a word: killed, or by a power cut."""
        self.events.note(f"{self} ends, {'power' if power else 'kill'}")
        self.host = None
        self.life = 0
        self._token += 1
        self._step_at = float("inf")
        self._queues = {}
        if self.snapshots is not None:
            self.snapshots.close()
            self.snapshots = None
        if power:
            self.disk.lose_power()
        for state in self.states.values():
            state.crash(power=power)
        self.disk.repair()
        self.disk.spent_s = 0.0
        self.busy_until = 0.0
        self.world.process_ended(self)

    def _end_by_error(self, error: FatalError) -> None:
        """An I/O error ends the process; somebody looks after the disk and starts it again."""
        injected = self.disk.fail_syncs or self.disk.space_bytes is not None
        if not injected or error.exit_code != FatalError.EXIT_IO_ERROR:
            raise Violation(f"{self} ended: {error}") from error
        self.world.count("ended by a disk error")
        self.end(power=self.rng.random() < 0.5)
        self.world.restart_later(self)

    # ---- the Raft thread

    def clock_ms(self) -> int:
        return int(self.events.now * 1000) + 1_700_000_000_000 + self.clock_step_ms

    def wake(self, delay_s: float | None = None) -> None:
        """The Raft thread gets to run."""
        if self.host is None:
            return
        now = self.events.now
        at = max(
            now + (self.rng.random() * 0.0005 if delay_s is None else delay_s), self.busy_until
        )
        if at < self._step_at:
            self._step_at = at
            self._token += 1
            self.events.after(at - now, functools.partial(self._step, self._token))

    def _step(self, token: int) -> None:
        if token != self._token or self.host is None:
            return
        if self.events.now < self.busy_until:
            self._step_at = float("inf")
            self.wake(0.0)
            return
        try:
            wait_s = self.host.step()
        except SimulatedCrash as crash:
            self.end(power=crash.power)
            self.world.restart_later(self)
            return
        except FatalError as error:
            self._end_by_error(error)
            return
        self._take_spent()
        self.world.rules.check_step(self)
        self._step_at = float("inf")
        self.wake(max(wait_s, 0.0001))

    def _take_spent(self) -> None:
        if self.disk.spent_s:
            self.busy_until = self.events.now + self.disk.spent_s
            self.disk.spent_s = 0.0

    # ---- RaftTransport and Endpoint

    def send(self, to_replica: str, messages: Sequence[peer_pb2.GroupMessage]) -> None:
        frame: Sequence[Any] = messages
        if not self.world.setting.lean:
            frame = [message.SerializeToString() for message in messages]
        self.world.network.send(self, to_replica, frame, self.disk.spent_s)

    def set_replicas(self, replicas: Sequence[log_pb2.Replica]) -> None:
        self.known = [replica.replica_id for replica in replicas]
        self.world.network.look_after(self)

    def deliver(self, from_replica: str, frame: Sequence[Any]) -> None:
        assert self.host is not None
        if not self.world.setting.lean:
            frame = [peer_pb2.GroupMessage.FromString(data) for data in frame]
        self.host.deliver(from_replica, frame)
        self.wake()

    def stream_up(self, to_replica: str) -> None:
        assert self.host is not None
        self.host.peer_connected(to_replica)
        self.wake()

    def stream_down(self, to_replica: str) -> None:
        assert self.host is not None
        self.host.peer_disconnected(to_replica)
        self.wake()

    # ---- ApplySink: a thread of its own

    def submit(self, group: int, entries: Sequence[Entry]) -> None:
        for entry in entries:
            self.world.rules.note_committed(self, entry)
        self._queues[group].extend(entries)
        self._apply_later(group)

    def backlog(self, group: int) -> int:
        return len(self._queues[group])

    def go_on(self) -> None:
        self.apply_stalled = False
        if self.host is not None:
            for group in self.world.groups:
                self._apply_later(group)

    def _apply_later(self, group: int) -> None:
        if group not in self._applying:
            self._applying.add(group)
            delay_s = self.rng.random() * self.apply_delay_s
            self.events.after(delay_s, functools.partial(self._apply, group, self.life))

    def _apply(self, group: int, life: int) -> None:
        if life != self.life:
            return
        self._applying.discard(group)
        queue = self._queues[group]
        if not queue or self.apply_stalled:
            return
        size = len(queue) if self.rng.random() < 0.7 else self.rng.randint(1, len(queue))
        batch = [queue.popleft() for _ in range(min(size, 256))]
        state = self.states[group]
        log_time_ms = state.position.log_time_ms
        results = state.apply(batch)
        if state.position.log_time_ms < log_time_ms:
            raise Violation(f"clocks: log time of {self} goes back at {state.position}")
        rules = self.world.rules
        rules.note_results(group, batch[0].index, results)
        last = batch[-1].index
        if last != state.position.applied_index:
            raise Violation(f"state: {self} applied {last} and is at {state.position}")
        if self.rng.random() < self.world.setting.digest_odds:
            rules.note_digest(self, group, last, state.digest())
        by_index = dict(zip((entry.index for entry in batch), results, strict=True))
        # Reports keep their order: one thread makes them.
        at = max(self.reported_at, self.events.now) + self.rng.random() * 0.001
        self.reported_at = at
        report = functools.partial(self._report, group, last, by_index, life)
        self.events.after(at - self.events.now, report)
        if queue:
            self._apply_later(group)

    def _report(self, group: int, last: int, results: Mapping[int, Any], life: int) -> None:
        if life == self.life and self.host is not None:
            self.host.applied(group, last, results)
            self.wake()

    # ---- PackGate

    def missing(self, group: int, data: bytes) -> Sequence[PackNeed]:
        needs = self.world.pack_needs(data)
        if not needs:
            return ()
        return [need for need in needs if need.digest not in self.packs]

    def want(self, group: int, needs: Sequence[PackNeed], from_replica: str) -> None:
        for need in needs:
            delay_s = self.rng.uniform(0.001, 0.4)
            fetched = functools.partial(self._fetched, group, need.digest, from_replica, self.life)
            self.events.after(delay_s, fetched)

    def _fetched(self, group: int, digest: bytes, from_replica: str, life: int) -> None:
        source = self.world.nodes.get(from_replica)
        if life != self.life or self.host is None or source is None or not source.life:
            return
        if digest in source.packs and self.rng.random() >= self.world.setting.fetch_fails:
            self.packs.add(digest)
            self.host.packs_arrived(group)
            self.wake()

    # ---- compaction

    def compact(self, group: int) -> None:
        """Cuts the journal, as compaction.py does: as far as the state is durable, and nobody
        who pulls a snapshot of it needs the rest."""
        if self.host is None or self.snapshots is None or self.events.now < self.busy_until:
            return
        durable, pinned = self.states[group].sync(), self.snapshots.pinned_index(group)
        first = self.journal.first_index(group)

        def cut(future: Future[int]) -> None:
            if future.result() > first:
                self.world.count("journals cut")

        def ask() -> None:
            if self.life == life and self.host is not None:
                future = self.host.run_on(group, lambda raft: raft.compact(durable, pinned))
                future.add_done_callback(cut)
                self.wake()

        life = self.life
        self.events.after(self.rng.choice((0.0, 0.2)) * self.rng.random(), ask)

    def forget_queued(self, group: int) -> None:
        """Apply pauses, and goes on with another state."""
        self._queues[group].clear()


def _never(error: BaseException) -> None:
    raise AssertionError("no thread is started here") from error
