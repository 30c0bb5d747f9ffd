"""One group's replica: the parts of the engine put together, and what the host calls.

Owns: the order of things within one turn of the Raft thread. The rules are in the parts:

    engine.py       pysyncobj and what replaces its unsafe methods    heard.py   promises of others
    elections.py    pre-vote, votes, stepping down, failover        membership.py   replicas from
    the log appending.py    the follower's log, answers after the sync      commands.py
    proposals and their verdicts replication.py  the leader's sending
    read_index.py   linearizable reads      snapshots.py   where the log begins

A turn is: messages and requests (`receive`, `submit`, …), `turn`, the host's sync of the journal,
`after_sync`.
"""

from __future__ import annotations

import dataclasses
import logging
import math
import random
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any

from quorepo.cluster.raft.appending import Appending
from quorepo.cluster.raft.commands import Attempt, Commands
from quorepo.cluster.raft.deadlines import Deadlines, Waiter
from quorepo.cluster.raft.elections import Elections
from quorepo.cluster.raft.engine import CANDIDATE, LEADER, Node
from quorepo.cluster.raft.entries import NO_OP, encode_entry
from quorepo.cluster.raft.heard import Heard
from quorepo.cluster.raft.interface import (
    ApplySink,
    DiskSpace,
    GroupStart,
    GroupStatus,
    PackGate,
    RaftConfig,
    ReplicaStatus,
    Role,
    SnapshotClient,
)
from quorepo.cluster.raft.membership import Membership
from quorepo.cluster.raft.progress import Flow
from quorepo.cluster.raft.read_index import Read, ReadIndex
from quorepo.cluster.raft.replica_log import ReplicaLog
from quorepo.cluster.raft.replication import Replication
from quorepo.cluster.raft.snapshots import Snapshots
from quorepo.cluster.raft.wire import Message
from quorepo.storage.errors import FatalError, Unavailable

__all__ = ["LeaderWait", "RaftGroup", "Transfer"]

log = logging.getLogger(__name__)


class LeaderWait:
    """Somebody who waits for a leader."""

    def __init__(self, deadline: float) -> None:
        self.future: Future[str] = Future()
        self.future.set_running_or_notify_cancel()
        self.deadline = deadline

    @property
    def done(self) -> bool:
        return self.future.done()

    def expire(self) -> None:
        self.future.set_exception(Unavailable("no leader was elected in time"))

    def stop(self) -> None:
        self.future.set_exception(Unavailable("the node is stopping"))


@dataclasses.dataclass(slots=True)
class Transfer:
    """A leadership on its way to another replica."""

    deadline: float
    to: str | None
    future: Future[bool]
    target: Node | None = None
    asked: bool = False  # TimeoutNow was sent

    @property
    def done(self) -> bool:
        return self.future.done()

    def expire(self) -> None:
        self.future.set_result(False)

    stop = expire


class RaftGroup(Elections, Appending, Replication, Membership, Commands, ReadIndex, Snapshots):
    """One replica of one group. Only the Raft thread calls it."""

    def __init__(
        self,
        *,
        group: int,
        replica_id: str,
        start: GroupStart,
        log: ReplicaLog,
        config: RaftConfig,
        sink: ApplySink,
        gate: PackGate,
        space: DiskSpace,
        snapshots: SnapshotClient | None,
        carry: Callable[[str, int, Message], bool],
        clock_ms: Callable[[], int],
        rng: random.Random,
        monotonic: Callable[[], float],
    ) -> None:
        super().__init__(
            group=group,
            replica_id=replica_id,
            log=log,
            applied_index=start.applied_index,
            config=config,
            sink=sink,
            gate=gate,
            space=space,
            carry=carry,
            clock_ms=clock_ms,
            rng=rng,
            monotonic=monotonic,
        )
        if log.has(start.applied_index) and log.term_at(start.applied_index) != start.applied_term:
            raise FatalError(
                f"group {group}: the state holds entry {start.applied_index} of term "
                f"{start.applied_term}, the journal has it with term "
                f"{log.term_at(start.applied_index)}; they are not of one node",
                exit_code=FatalError.EXIT_IO_ERROR,
            )
        self.deadlines = Deadlines()
        self._transfer: Transfer | None = None
        self._leader_waits: list[LeaderWait] = []
        self._leadership_seen: tuple[Node | None, int] = (None, self.current_term)
        self._begin_heard()
        self._begin_replication()
        self._begin_membership(start)
        self._begin_elections()
        self._begin_appending()
        self._begin_commands(start.applied_index)
        self._begin_read_index()
        self._begin_snapshots(snapshots)
        self._handlers: Mapping[str, Callable[[Node, Message], None]] = {
            "append_entries": self._on_append_entries,
            "snapshot_offer": self._on_snapshot_offer,
            "next_node_idx": self._on_append_reply,
            "pre_vote": self._on_pre_vote,
            "pre_vote_granted": self._on_pre_vote_granted,
            "request_vote": self._on_request_vote,
            "response_vote": self._on_response_vote,
            "term_notice": self._on_term_notice,
            "timeout_now": self._on_timeout_now,
            "apply_command": self._on_apply_command,
            "apply_command_response": self._on_apply_command_response,
            "read_index_request": self._on_read_index_request,
            "read_index_reply": self._on_read_index_reply,
            "leadership_ping": self._on_leadership_ping,
            "leadership_pong": self._on_leadership_pong,
        }

    # ---- what happens to a group between turns

    def receive(self, node: Node, message: Message, now: float) -> None:
        """A message from a peer, checked by wire.py."""
        self.now = now
        self.transport.deliver(node, message)

    def handle_message(self, node: Node, message: Message) -> None:
        self._handlers[message["type"]](node, message)

    def peer_connected(self, node: Node) -> None:
        self.note_peer_met()
        self.reprobe(node)

    def peer_disconnected(self, node: Node) -> None:
        self.reprobe(node)
        if node == self.leader:
            self.forwards_unanswered()
            self.reads_unanswered()
        self.note_leader_lost(node)

    def applied(self, up_to_index: int, results: Mapping[int, Any]) -> None:
        self.note_applied(up_to_index, results)
        self.release_reads()

    # ---- one turn

    def turn(self, now: float) -> None:
        """Everything that is due. The journal has to be synced afterwards, then `after_sync`
        called."""
        self.now = now
        self.deadlines.expire(now)
        self._note_leadership()
        self.look_for_packs()
        self._advance_transfer()
        self.let_go()
        self.decide_election()
        self.present_decisions()
        term = self.current_term
        self.doTick(0.0)
        if self.current_term != term:
            self.note_election()
        self.history.commit(self.commit_index)
        self._note_leadership()
        if self.is_leader:
            self.replicate()
        self.advance_reads()

    def after_sync(self, now: float) -> None:
        """The journal is synced: what waited for that may go on."""
        self.now = now
        self.release_answers()
        self.hand_over()

    def wake_at(self) -> float:
        """When the next turn is due if nothing happens; on the monotonic clock."""
        more = (
            self.has_more_commands
            or (self.is_leader and self.has_more_to_send)
            or self.has_more_to_hand_over()
            # A leader that is the only voter commits by itself, what the last turn has synced.
            or (
                self.is_leader and not self.other_voters and self.commit_index < self.log.last_index
            )
        )
        if more:
            return self.now
        return min(
            self.heartbeat_at if self.is_leader else math.inf,
            self.election_wake_at(),
            self.packs_wake_at(),
            self.reads_wake_at(),
            self.deadlines.next(),
        )

    # ---- leadership

    def become_leader(self) -> None:
        """Raft 5.2, 5.4.2, 8: a majority voted; the no-op makes what predecessors left
        committable."""
        own = self.own_replica()
        if own is None or not own.votes:
            raise FatalError(f"group {self.group}: {self.me.id!r} was elected and is no voter")
        self.leader = self.me
        self.set_state(LEADER)
        self.begin_leading()
        self.note_leading()
        index = self.log.last_index + 1
        self.log.append(encode_entry(NO_OP, self.clock_ms(), b""), index, self.current_term)
        self.set_no_op_index(index)
        log.info("leading", extra={"fields": {"group": self.group, "term": self.current_term}})
        self.send_heartbeats()

    def state_changed(self, old: int, new: int) -> None:
        if old == LEADER:
            log.info(
                "not leading any more",
                extra={"fields": {"group": self.group, "term": self.current_term}},
            )
            self.note_acknowledged()
            self.leadership_lost()
            self.reads_of_lost_leadership()
            self.leaving = False

    def _note_leadership(self) -> None:
        """Who leads in which term may have changed since the last look."""
        leadership = (self.leader, self.current_term)
        if leadership != self._leadership_seen:
            self._leadership_seen = leadership
            self.forwards_unanswered()
            self.reads_unanswered()
        if self.leader is not None and self._leader_waits:
            for wait in self._leader_waits:
                if not wait.done:
                    wait.future.set_result(self.leader.id)
            self._leader_waits.clear()

    def wait_for_leader(self, wait: LeaderWait) -> None:
        self.deadlines.add(wait)
        self._leader_waits = [other for other in self._leader_waits if not other.done]
        self._leader_waits.append(wait)

    # ---- handing over the leadership

    def transfer(self, transfer: Transfer) -> None:
        """Begins to hand over to `transfer.to`, or to the voter that is furthest (dissertation,
        3.10)."""
        target = self._transfer_target(transfer.to)
        busy = self._transfer is not None and not self._transfer.done
        if not self.is_leader or target is None or busy:
            transfer.future.set_result(False)
            return
        transfer.target = target
        self.deadlines.add(transfer)
        self._transfer = transfer
        self.leaving = True  # so that the target can catch up for good

    def _transfer_target(self, to: str | None) -> Node | None:
        able = [
            Node(replica.replica_id)
            for replica in self.history.current.replicas
            if replica.votes and replica.may_lead and replica.replica_id != self.me.id
        ]
        able = [node for node in able if node in self.connected and to in (None, node.id)]
        if to is None:
            low = {node for node, progress in self.progress.items() if progress.disk_low}
            able = [node for node in able if node not in low]
        return max(able, key=lambda node: (self.match_index.get(node, 0), node.id), default=None)

    def _advance_transfer(self) -> None:
        transfer = self._transfer
        if transfer is None:
            return
        if not self.is_leader and not transfer.done and self.leader is not None:
            transfer.future.set_result(self.leader != self.me)
        if transfer.done:
            self._transfer = None
            self.leaving = False
        elif self.is_leader and not transfer.asked and transfer.target is not None:
            # pysyncobj sends TimeoutNow when the target has the whole log, and refuses otherwise.
            self.transferLeadership(
                transfer.target, lambda _, reason: self._note_timeout_now(transfer, reason)
            )

    def _note_timeout_now(self, transfer: Transfer, reason: int) -> None:
        transfer.asked = reason == 0

    # ---- what others may see

    def promises_of(self, replica_id: str) -> Heard:
        """The least that the disk of that replica must still hold."""
        return self.heard_of(Node(replica_id), leading=self.is_leader)

    def role(self) -> Role:
        if self.state == LEADER:
            return "leader"
        own = self.own_replica()
        if own is None or not own.votes:
            return "learner"
        return "candidate" if self.state == CANDIDATE else "follower"

    def build_status(self) -> GroupStatus:
        replicas = []
        for replica in self.history.current.replicas:
            node = Node(replica.replica_id)
            own = node == self.me
            progress = self.progress.get(node) if self.is_leader else None
            match_index = self.match_index.get(node, 0) if self.is_leader else 0
            applied_index = progress.applied_index if progress else 0
            replicas.append(
                ReplicaStatus(
                    replica_id=replica.replica_id,
                    node=replica.node,
                    votes=replica.votes,
                    match_index=self.log.durable_index if own else match_index,
                    applied_index=self.applied_index if own else applied_index,
                    connected=own or node in self.connected,
                    disk_low=self.space.low() if own else bool(progress and progress.disk_low),
                    installs_snapshot=self.installing
                    if own
                    else progress is not None and progress.flow is Flow.SNAPSHOT,
                )
            )
        return GroupStatus(
            group=self.group,
            role=self.role(),
            leader=self.leader.id if self.leader is not None else None,
            term=self.current_term,
            commit_index=self.commit_index,
            last_index=self.log.last_index,
            applied_index=self.applied_index,
            configuration=self.history.current,
            replicas=tuple(replicas),
            first_index=self.log.first_index,
        )

    def status_key(self) -> tuple[object, ...]:
        """What of the status is told at once; indexes are told a little later."""
        return (
            self.state,
            self.leader,
            self.current_term,
            self.configuration_version,
            self.connections_changed,
        )

    def stop(self) -> None:
        """Ends every wait with what can be said now."""
        waiters: list[Waiter] = self.deadlines.end_all()
        for waiter in waiters:
            if isinstance(waiter, Attempt | Read | LeaderWait | Transfer):
                waiter.stop()
