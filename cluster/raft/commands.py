"""From a proposal to its verdict: the queue, forwarding, the leader's append, handing over to
apply, the result.

Owns: every open attempt of this replica, and what may be said of it when (raft-engine.md, "What a
proposer may conclude"). Must not know what a command means.

An attempt is one (index, term) in the log, and whoever proposed it waits for this replica's own
state:

    applied with that term at that index             APPLIED, with the result
    a later term is committed at or below that index  NOT_APPLIED: no log will ever hold it again
    refused before it was appended                   NOT_APPLIED
    anything else when the wait ends                 UNKNOWN
"""

from __future__ import annotations

import bisect
import collections
import logging
import queue
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from typing import Any

from google.protobuf.message import DecodeError

from quorepo.cluster.raft.configuration import ConfigurationHistory
from quorepo.cluster.raft.deadlines import Deadlines
from quorepo.cluster.raft.engine import Engine, Node
from quorepo.cluster.raft.entries import (
    COMMAND,
    CONFIGURATION,
    decode_entry,
    encode_entry,
)
from quorepo.cluster.raft.interface import Outcome, Proposal
from quorepo.cluster.raft.progress import Progress
from quorepo.cluster.raft.wire import Message, Refusal
from quorepo.storage.errors import FatalError

__all__ = ["Attempt", "Commands"]

log = logging.getLogger(__name__)

# Of one turn of the Raft thread: what is appended in a turn is synced in one fdatasync.
_COMMANDS_PER_TURN_MAX = 1024
_HANDED_OVER_BYTES_PER_TURN_MAX = 4 * 1024 * 1024


class Attempt:
    """One proposal's way through the engine. Called by pysyncobj when it refuses the command."""

    def __init__(
        self, deadline: float, payload_bytes: int, on_end: Callable[[Attempt], None]
    ) -> None:
        self.future: Future[Proposal] = Future()
        self.future.set_running_or_notify_cancel()  # nobody can take back what may be in a log
        self.deadline = deadline
        self.payload_bytes = payload_bytes
        self.sent = False  # left the queue: it may be, or come, in some log
        self.forward_id: int | None = None
        self.index: int | None = None
        self._on_end = on_end

    @property
    def done(self) -> bool:
        return self.future.done()

    def __call__(self, _result: object, reason: int) -> None:
        """pysyncobj's way to say that the command was certainly not appended."""
        self.end(Outcome.NOT_APPLIED, Refusal(reason).reason)

    def expire(self) -> None:
        self.end(Outcome.UNKNOWN if self.sent else Outcome.NOT_APPLIED, "timeout")

    def stop(self) -> None:
        self.end(Outcome.UNKNOWN if self.sent else Outcome.NOT_APPLIED, "stopped")

    def end(
        self, outcome: Outcome, reason: str, index: int = 0, term: int = 0, result: Any = None
    ) -> None:
        """Gives the verdict; only the first one counts."""
        if not self.done:
            self._on_end(self)
            self.future.set_result(Proposal(outcome, index, term, result, reason))


class Commands(Engine):
    """The part of a group that takes proposals and gives their results."""

    history: ConfigurationHistory
    deadlines: Deadlines
    progress: dict[Node, Progress]

    def _begin_commands(self, applied_index: int) -> None:
        self.applied_index = applied_index  # as the sink reports it: durable in the state
        self.installing = False  # a snapshot takes the place of the state: nothing is handed over
        self.has_more_commands = False
        self.leaving = False  # the leadership is being transferred: nothing new is appended
        self._forwarded: dict[int, Attempt] = {}
        self._waiting: dict[int, list[tuple[int, Attempt]]] = collections.defaultdict(list)
        # (first index, term) of each run of entries handed over: the term of an applied entry.
        self._terms: list[tuple[int, int]] = []
        self._handed: collections.deque[tuple[int, int]] = collections.deque()  # index, bytes
        self._handed_bytes = 0

    # ---- taking commands

    def submit(self, attempt: Attempt, payload: bytes, *, configuration: bool = False) -> None:
        """Queues a proposal of this node; its verdict comes through the attempt."""
        self.deadlines.add(attempt)
        self._applyCommand(payload, attempt, CONFIGURATION if configuration else COMMAND)

    def take_commands(self) -> None:
        """Takes what the queue holds: appends it, forwards it, or refuses it."""
        self.has_more_commands = False
        if not self.has_commands():
            return
        for _ in range(_COMMANDS_PER_TURN_MAX):
            try:
                command, callback = self.next_command()
            except queue.Empty:
                return
            if not (isinstance(callback, Attempt) and callback.done):
                self._take_command(command[0], command[1:], callback)
        self.has_more_commands = True

    def _take_command(self, kind: int, payload: bytes, callback: Any) -> None:
        if self.is_leader:
            refusal = self._refusal(kind, payload)
            if refusal is None:
                self._append(kind, payload, callback)
                return
        elif kind == CONFIGURATION or not isinstance(callback, Attempt):
            refusal = Refusal.NOT_LEADER  # only commands of this node are forwarded, and only once
        elif self.leader is None or self.leader not in self.connected:
            refusal = Refusal.NO_LEADER
        else:
            self._forward(self.leader, payload, callback)
            return
        self.refuse_command(callback, refusal)

    def _refusal(self, kind: int, payload: bytes) -> Refusal | None:
        """Why a leader does not append the command; None when it does."""
        if self.leaving:
            return Refusal.LEADER_LEAVING
        if kind == COMMAND and self._lacks_space():
            return Refusal.DISK_FULL
        if self.log.last_index - self.commit_index >= self.config.proposal_queue_max:
            return Refusal.QUEUE_FULL
        if kind == CONFIGURATION:
            if why := self.why_denied(payload):
                log.info(
                    "configuration denied", extra={"fields": {"group": self.group, "why": why}}
                )
                return Refusal.DENIED
            return None
        if len(payload) > self.config.command_bytes_max:
            return Refusal.DENIED
        try:
            missing = self.gate.missing(self.group, payload)
        except (DecodeError, ValueError, FatalError) as error:
            # Once in the log it would end every replica. The proposer has a bug, or is newer than
            # this program; that is no reason to end here, where nothing was written yet.
            log.error(
                "a command does not parse",
                extra={"fields": {"group": self.group, "error": str(error)}},
            )
            return Refusal.DENIED
        return Refusal.PACKS_MISSING if missing else None

    def _lacks_space(self) -> bool:
        """Whether this disk is below its reserve, or so many others are full that no majority could
        take an entry."""
        if self.space.low():
            return True
        able = {
            node
            for node in self.other_voters
            if not (p := self.progress.get(node)) or not p.disk_full
        }
        return not self.is_majority(able | {self.me})

    def _append(self, kind: int, payload: bytes, callback: Any) -> None:
        index, term = self.log.last_index + 1, self.current_term
        self.log.append(encode_entry(kind, self.clock_ms(), payload), index, term)
        if kind == CONFIGURATION:
            self.append_configuration(index, payload)
        if isinstance(callback, Attempt):
            self._wait_for(callback, index, term)
        else:
            node, request_id = callback
            self.send(
                node, "apply_command_response", request_id=request_id, log_idx=index, log_term=term
            )

    # ---- forwarding

    def _forward(self, leader: Node, payload: bytes, attempt: Attempt) -> None:
        """Asks the leader to append it. The id is random: pysyncobj's counter matched stale
        answers after a restart (S6)."""
        attempt.sent = True
        attempt.forward_id = self.rng.getrandbits(64)
        self._forwarded[attempt.forward_id] = attempt
        self.send(leader, "apply_command", request_id=attempt.forward_id, command=payload)

    def _on_apply_command(self, node: Node, message: Message) -> None:
        """A follower forwards: the same queue, and the answer goes back to it."""
        self._applyCommand(message["command"], (node, message["request_id"]), COMMAND)

    def _on_apply_command_response(self, node: Node, message: Message) -> None:
        attempt = self._forwarded.pop(message["request_id"], None)
        if attempt is None:
            return
        attempt.forward_id = None
        if message["error"]:
            attempt.end(Outcome.NOT_APPLIED, Refusal(message["error"]).reason)
            return
        self._wait_for(attempt, message["log_idx"], message["log_term"])

    def _wait_for(self, attempt: Attempt, index: int, term: int) -> None:
        """The attempt is entry (index, term) of some log: its verdict comes with this replica's
        apply."""
        attempt.sent = True
        if index <= self.applied_index:
            # Its result passed by before the leader's answer arrived (a connection was lost
            # between).
            other = (
                bool(self._terms) and index >= self._terms[0][0] and self._term_of(index) != term
            )
            if other:
                attempt.end(Outcome.NOT_APPLIED, "leader-changed")
            else:
                attempt.end(Outcome.UNKNOWN, "answer-late", index, term)
            return
        attempt.index = index
        self._waiting[index].append((term, attempt))

    def forget_attempt(self, attempt: Attempt) -> None:
        """The attempt has its verdict: nobody looks for it any more."""
        if attempt.forward_id is not None:
            self._forwarded.pop(attempt.forward_id, None)
        if attempt.index is not None and attempt.index in self._waiting:
            left = [item for item in self._waiting[attempt.index] if item[1] is not attempt]
            if left:
                self._waiting[attempt.index] = left
            else:
                del self._waiting[attempt.index]

    def forwards_unanswered(self) -> None:
        """The leader changed, or the connection to it is gone: its answers will not come."""
        for attempt in list(self._forwarded.values()):
            attempt.end(Outcome.UNKNOWN, "leader-changed")

    # ---- apply

    def hand_over(self) -> None:
        """Gives the apply sink what is committed and durable here, in order, a bounded way ahead.

        An entry is handed over once (S5): any exception here ends the process.
        """
        if self.installing or self.handed_over >= self.commit_index:
            return
        end = min(self.commit_index, self.log.durable_index)
        bytes_left = _HANDED_OVER_BYTES_PER_TURN_MAX
        while (start := self.handed_over + 1) <= end and bytes_left > 0:
            room = self.config.apply_backlog_max - len(self._handed)
            if room <= 0 or self._handed_bytes >= self.config.apply_backlog_bytes_max:
                return  # `applied` comes back here
            records = self.log.read(start, min(end, self.handed_over + room) + 1, bytes_left)
            if not records:
                raise FatalError(f"group {self.group}: committed entry {start} is not in the log")
            entries = []
            for data, index, term in records:
                try:
                    entries.append(decode_entry(self.group, index, term, data))
                except ValueError as error:
                    raise FatalError(f"group {self.group}: {error}") from error
                if not self._terms or self._terms[-1][1] != term:
                    self._terms.append((index, term))
                self._handed.append((index, len(data)))
                self._handed_bytes += len(data)
                bytes_left -= len(data) + 1
            self.set_handed_over(records[-1][1])
            self.sink.submit(self.group, entries)

    def has_more_to_hand_over(self) -> bool:
        """Whether `hand_over` stopped for the length of its turn only."""
        if self.handed_over >= self.commit_index:
            return False
        room = len(self._handed) < self.config.apply_backlog_max
        room = room and self._handed_bytes < self.config.apply_backlog_bytes_max
        room = room and not self.installing
        return room and self.handed_over < min(self.commit_index, self.log.durable_index)

    def note_applied(self, up_to_index: int, results: Mapping[int, Any]) -> None:
        """The sink's report: the state holds everything up to `up_to_index`, durably."""
        if up_to_index > self.handed_over:
            raise FatalError(
                f"group {self.group}: entry {up_to_index} was applied, but only entries up to "
                f"{self.handed_over} were handed over"
            )
        first = self.applied_index + 1
        if up_to_index < first:
            return
        term_before = self._term_of(first - 1) if self._terms and first > self._terms[0][0] else 0
        self.applied_index = up_to_index
        while self._handed and self._handed[0][0] <= up_to_index:
            self._handed_bytes -= self._handed.popleft()[1]
        for index in range(first, up_to_index + 1):
            for term, attempt in self._waiting.pop(index, ()):
                attempt.index = None
                if term == self._term_of(index):
                    attempt.end(Outcome.APPLIED, "", index, term, results.get(index))
                else:
                    attempt.end(Outcome.NOT_APPLIED, "leader-changed")
        if self._term_of(up_to_index) != term_before:
            self._refuse_overtaken(self._term_of(up_to_index))
        self._forget_old_terms()

    def note_installed(self, index: int, term: int) -> None:
        """The state came from elsewhere and holds everything up to `index`; what the entries before
        it gave to their proposers is not known here."""
        self.applied_index = index
        self.set_handed_over(index)
        self._terms = [(index, term)]
        self._handed.clear()
        self._handed_bytes = 0
        for passed in sorted(at for at in self._waiting if at <= index):
            for attempt_term, attempt in self._waiting.pop(passed):
                attempt.index = None
                attempt.end(Outcome.UNKNOWN, "answer-late", passed, attempt_term)
        self._refuse_overtaken(term)

    def _term_of(self, index: int) -> int:
        """The term of an entry that was handed over in this process."""
        return self._terms[bisect.bisect_right(self._terms, (index, 1 << 64)) - 1][1]

    def _refuse_overtaken(self, term: int) -> None:
        """An entry of `term` is committed. Terms never fall within a log, and every later leader
        has that entry: so an entry of an older term behind it is in no log of any leader to
        come."""
        for attempts in list(self._waiting.values()):
            for attempt_term, attempt in list(attempts):
                if attempt_term < term:
                    attempt.end(Outcome.NOT_APPLIED, "leader-changed")

    def _forget_old_terms(self) -> None:
        before = bisect.bisect_right(self._terms, (self.applied_index, 1 << 64)) - 1
        if before > 512:
            del self._terms[:before]
