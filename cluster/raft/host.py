"""The one thread that drives all Raft groups of a node, and the thread-safe way in and out of it.

Owns: the Raft thread, its inbox, the order of a step (messages, turns, send, one sync of the
journal for all groups, what may leave only after it), the published status. Must not know what a
command means, where packs lie, or how messages travel.

Nothing in a step blocks but the journal's sync. Whatever it raises ends the process through
`on_fatal`: after a failed write, or in a state that the rules exclude, going on could lose or
invent data.
"""

from __future__ import annotations

import collections
import dataclasses
import logging
import random
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any, TypeVar

from quorepo.cluster.raft.commands import Attempt
from quorepo.cluster.raft.engine import Node
from quorepo.cluster.raft.errands import AmpleSpace, Errand, StoppableWaiter, refused
from quorepo.cluster.raft.group import LeaderWait, RaftGroup, Transfer
from quorepo.cluster.raft.group_log import GroupLog
from quorepo.cluster.raft.interface import (
    ApplySink,
    DiskSpace,
    GroupStart,
    GroupStatus,
    LogExtent,
    PackGate,
    Proposal,
    RaftConfig,
    RaftTransport,
    SnapshotClient,
)
from quorepo.cluster.raft.journal import Journal
from quorepo.cluster.raft.read_index import Reads
from quorepo.cluster.raft.replica_log import GroupLogLike, ReplicaLog
from quorepo.cluster.raft.status_board import StatusBoard
from quorepo.cluster.raft.votes import VoteFile
from quorepo.cluster.raft.wire import Message, WireError, decode_message, encode_message
from quorepo.internal.v1 import log_pb2, peer_pb2
from quorepo.storage.failpoints import failpoint

__all__ = ["RaftHost"]

log = logging.getLogger(__name__)

T = TypeVar("T")


class RaftHost:
    """All groups of one node."""

    def __init__(
        self,
        *,
        replica_id: str,
        groups: Mapping[int, GroupStart],
        journal: Journal,
        votes_dir: Path,
        sink: ApplySink,
        gate: PackGate,
        transport: RaftTransport,
        config: RaftConfig,
        on_fatal: Callable[[BaseException], None],
        clock_ms: Callable[[], int],
        rng: random.Random,
        monotonic: Callable[[], float] = time.monotonic,
        open_log: Callable[[int], GroupLogLike] | None = None,
        space: DiskSpace | None = None,
        snapshots: SnapshotClient | None = None,
    ) -> None:
        """Opens the groups' logs; nothing is sent before `start` or the first `step`.

        Args:
            votes_dir: the folder of the vote files; made durable by its owner.
            on_fatal: called once, on the Raft thread, when the process must end.
            clock_ms: Unix time in ms, stamped on entries by a leader.
            monotonic: seconds, for every timeout.
            open_log: in place of a GroupLog over `journal` and a vote file in `votes_dir`.
            space: how much room the disk has; None: always enough.
            snapshots: told when this node needs a snapshot.

        Raises:
            FatalError: a log, a vote file and a state that are not of one another.
        """
        self._replica_id = replica_id
        self._journal = journal
        self._transport = transport
        self._config = config
        self._on_fatal = on_fatal
        self._monotonic = monotonic
        self._wake = threading.Condition()
        self._inbox: collections.deque[
            tuple[Callable[..., None], tuple[Any, ...], StoppableWaiter | None]
        ] = collections.deque()
        self._stopping = False
        self._ended = False
        self._pending = {group: [0, 0] for group in groups}  # open attempts: count, bytes
        self._outbox: dict[str, list[peer_pb2.GroupMessage]] = {}
        self._touched: set[int] = set(groups)  # groups to which something happened
        self._thread = threading.Thread(target=self._run, name="raft", daemon=True)

        def default_log(group: int) -> GroupLogLike:
            return GroupLog(journal, group, VoteFile(votes_dir / f"group-{group}.vote"))

        self._groups = {
            group: RaftGroup(
                group=group,
                replica_id=replica_id,
                start=start,
                log=ReplicaLog(group, (open_log or default_log)(group)),
                config=config,
                sink=sink,
                gate=gate,
                space=space or AmpleSpace(),
                snapshots=snapshots,
                carry=self._carry,
                clock_ms=clock_ms,
                rng=random.Random(rng.getrandbits(64)),  # noqa: S311 - timeouts and ids, no secrets
                monotonic=monotonic,
            )
            for group, start in sorted(groups.items())
        }
        self._wake_at = dict.fromkeys(self._groups, monotonic())
        self._status = StatusBoard(self._groups, monotonic())
        self._configuration_version = -1

    # ---- the thread

    def start(self) -> None:
        """Starts the Raft thread."""
        self._thread.start()

    def stop(self) -> None:
        """Ends the thread. Who waits is answered with what is true then; safe to repeat."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join()
        self._end()

    def _run(self) -> None:
        try:
            while True:
                timeout_s = self.step()
                with self._wake:
                    if not self._inbox and not self._stopping and timeout_s > 0:
                        self._wake.wait(timeout_s)
                    if self._stopping:
                        return
        except BaseException as error:
            log.critical("the raft thread ends", exc_info=True)
            self._on_fatal(error)
        finally:
            self._end()

    def _end(self) -> None:
        """Answers everybody who still waits."""
        with self._wake:
            if self._ended:
                return
            self._ended = True
            left = list(self._inbox)
            self._inbox.clear()
        for group in self._groups.values():
            group.stop()
        for _, _, waiter in left:
            if waiter is not None and not waiter.done:
                waiter.stop()

    def step(self) -> float:
        """One step; returns the seconds until the next is due. For the thread and simulators."""
        now = self._monotonic()
        self._take_inbox()
        due = [group for group, at in self._wake_at.items() if at <= now or group in self._touched]
        self._touched.clear()
        for group in due:
            self._groups[group].turn(now)
        # Followers write what they are sent while this node's own write is under way
        # (dissertation, 10.2.1).
        self._flush()
        failpoint("raft.step.before_sync")
        self._journal.sync()
        failpoint("raft.step.after_sync")
        for group in due:
            self._groups[group].after_sync(now)
            self._wake_at[group] = self._groups[group].wake_at()
        self._flush()
        self._tell_transport()
        self._status.publish(due, now)
        return max(0.0, min(self._next_wake(now)) - now)

    def _next_wake(self, now: float) -> list[float]:
        at_the_latest = now + self._config.election_timeout_s_max
        return [*self._wake_at.values(), *self._status.wake_at(), at_the_latest]

    def _take_inbox(self) -> None:
        # Only what is there now: a step must end under any load.
        for _ in range(len(self._inbox)):
            action, arguments, _ = self._inbox.popleft()
            action(*arguments)

    def _post(
        self,
        action: Callable[..., None],
        *arguments: Any,
        waiter: StoppableWaiter | None = None,
    ) -> None:
        with self._wake:
            if not self._ended:
                self._inbox.append((action, arguments, waiter))
                self._wake.notify()
                return
        if waiter is not None:
            waiter.stop()

    # ---- messages

    def deliver(self, from_replica: str, messages: Sequence[peer_pb2.GroupMessage]) -> None:
        """Messages from an authenticated peer, in order. Thread-safe."""
        self._post(self._receive, from_replica, messages)

    def _receive(self, from_replica: str, messages: Sequence[peer_pb2.GroupMessage]) -> None:
        node = Node(from_replica)
        now = self._monotonic()
        for message in messages:
            group = self._groups.get(message.group)
            if group is None:
                continue  # a group that this node has no replica of (any more)
            try:
                decoded = decode_message(message)
            except WireError as error:
                log.error(
                    "a message was dropped",
                    extra={"fields": {"from": from_replica, "why": str(error)}},
                )
                continue
            self._touched.add(message.group)
            group.receive(node, decoded, now)

    def peer_connected(self, replica_id: str) -> None:
        """Messages to this replica will be carried from now on. Thread-safe."""
        self._post(self._on_connected, replica_id)

    def peer_disconnected(self, replica_id: str) -> None:
        """The connection is gone, and with it what was in flight on it. Thread-safe."""
        self._post(self._on_disconnected, replica_id)

    def _on_connected(self, replica_id: str) -> None:
        for number, group in self._groups.items():
            self._touched.add(number)
            group.now = self._monotonic()
            group.transport.connected(Node(replica_id))

    def _on_disconnected(self, replica_id: str) -> None:
        self._outbox.pop(replica_id, None)
        for number, group in self._groups.items():
            self._touched.add(number)
            group.now = self._monotonic()
            group.transport.disconnected(Node(replica_id))

    def _carry(self, replica_id: str, group: int, message: Message) -> bool:
        self._outbox.setdefault(replica_id, []).append(encode_message(group, message))
        return True

    def _flush(self) -> None:
        """All messages of a step for one replica go out together."""
        outbox, self._outbox = self._outbox, {}
        for replica_id, messages in sorted(outbox.items()):
            self._transport.send(replica_id, messages)

    def _tell_transport(self) -> None:
        version = sum(group.configuration_version for group in self._groups.values())
        if version == self._configuration_version:
            return
        self._configuration_version = version
        replicas = {
            replica.replica_id: replica
            for group in self._groups.values()
            for replica in group.contacts()
            if replica.replica_id != self._replica_id
        }
        self._transport.set_replicas([replica for _, replica in sorted(replicas.items())])

    # ---- proposals and reads

    def propose(self, group: int, payload: bytes, timeout_s: float) -> Future[Proposal]:
        """Proposes a command to `group`, through its leader wherever that is. Thread-safe.

        The future never raises: what the cluster did is in the Proposal. NOT_APPLIED speaks for
        this attempt only. Reasons: no-leader, not-leader, leader-leaving, queue-full,
        packs-missing, denied, too-large, leader-changed, timeout, stopped; with UNKNOWN:
        leader-changed, timeout, answer-late, stopped.
        """
        if len(payload) > self._config.command_bytes_max:
            return refused("too-large")
        return self._submit(group, payload, timeout_s, configuration=False)

    def change_configuration(
        self, group: int, configuration: log_pb2.Configuration, timeout_s: float
    ) -> Future[Proposal]:
        """Proposes `configuration`, on the leader only ("not-leader" elsewhere). Thread-safe.

        "denied" unless it differs from the one in force in exactly one replica, no other change
        is under way, the leader keeps its vote, a new replica comes as a learner, and one that gets
        the vote has caught up. The reason is in this node's log.
        """
        payload = configuration.SerializeToString(deterministic=True)
        return self._submit(group, payload, timeout_s, configuration=True)

    def _submit(
        self, group: int, payload: bytes, timeout_s: float, *, configuration: bool
    ) -> Future[Proposal]:
        raft, pending = self._groups[group], self._pending[group]
        with self._wake:
            count_full = pending[0] >= self._config.proposal_queue_max
            if count_full or pending[1] >= self._config.proposal_queue_bytes_max:
                return refused("queue-full")
            pending[0] += 1
            pending[1] += len(payload)

        def ended(attempt: Attempt) -> None:
            with self._wake:
                pending[0] -= 1
                pending[1] -= attempt.payload_bytes
            raft.forget_attempt(attempt)

        attempt = Attempt(self._monotonic() + timeout_s, len(payload), ended)

        def submit() -> None:
            raft.submit(attempt, payload, configuration=configuration)
            self._touched.add(group)

        self._post(submit, waiter=attempt)
        return attempt.future

    def read_index(self, group: int, timeout_s: float) -> Future[int]:
        """Resolves once this replica's state holds everything acknowledged before this call.
        Thread-safe.

        The future raises Unavailable when no leader could be confirmed in time, this replica is
        too far behind, or the host stops. It waits through elections until then.
        """
        return self.read_indexes([group], timeout_s)[0]

    def read_indexes(self, groups: Sequence[int], timeout_s: float) -> list[Future[int]]:
        """`read_index` of several groups, asked in one message where one node leads them."""
        reads = Reads(groups, self._monotonic() + timeout_s)
        self._post(self._submit_reads, reads, waiter=reads)
        return [read.future for read in reads.by_group.values()]

    def _submit_reads(self, reads: Reads) -> None:
        for group, read in reads.by_group.items():
            self._touched.add(group)
            self._groups[group].submit_read(read)

    def wait_for_leader(self, group: int, timeout_s: float) -> Future[str]:
        """The replica id of the leader; the future raises Unavailable after `timeout_s`."""
        wait = LeaderWait(self._monotonic() + timeout_s)
        self._post_to(group, self._groups[group].wait_for_leader, wait)
        return wait.future

    def transfer_leadership(self, group: int, to_replica: str | None = None) -> Future[bool]:
        """True once another replica leads; None chooses the voter that is furthest. Leader only."""
        deadline = self._monotonic() + self._config.election_timeout_s_max
        transfer = Transfer(deadline, to_replica, Future())
        transfer.future.set_running_or_notify_cancel()
        self._post_to(group, self._groups[group].transfer, transfer)
        return transfer.future

    def _post_to(self, group: int, action: Callable[[Any], None], waiter: StoppableWaiter) -> None:
        def run() -> None:
            self._touched.add(group)
            action(waiter)

        self._post(run, waiter=waiter)

    # ---- reports from apply and from the pack gate

    def applied(self, group: int, up_to_index: int, results: Mapping[int, Any]) -> None:
        """The sink's report: everything up to `up_to_index` is durable in the state. Thread-
        safe."""

        def run() -> None:
            self._touched.add(group)
            self._groups[group].applied(up_to_index, results)

        self._post(run)

    def packs_arrived(self, group: int) -> None:
        """The gate's report: packs that were wanted are here. Thread-safe."""

        def run() -> None:
            self._touched.add(group)
            self._groups[group].look_for_packs(arrived=True)

        self._post(run)

    # ---- upkeep: what must happen on the Raft thread, between two turns

    def run_on(self, group: int, action: Callable[[RaftGroup], T]) -> Future[T]:
        """Runs `action` while nothing else happens to the group. Thread-safe.

        It must be quick. The future raises Unavailable when the host stops before; an exception of
        `action` ends the process.
        """
        errand: Errand[T] = Errand()

        def run() -> None:
            self._touched.add(group)
            errand.future.set_result(action(self._groups[group]))

        self._post(run, waiter=errand)
        return errand.future

    def extent(self, group: int) -> Future[LogExtent]:
        """How long the group's log and the whole journal are. Thread-safe."""

        def look(raft: RaftGroup) -> LogExtent:
            size, segments = self._journal.extent()
            extent = raft.extent()
            return dataclasses.replace(extent, journal_bytes=size, journal_segments=segments)

        return self.run_on(group, look)

    # ---- status

    def status(self, group: int) -> GroupStatus:
        """The newest published picture: indexes at most some 20 ms old, leadership current.
        Thread-safe."""
        return self._status.get(group)
