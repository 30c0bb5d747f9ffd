"""The follower's side of the log: taking entries, refusing them, and saying so only once they are
durable.

Owns: the rules of AppendEntries (Raft 5.3), the pack gate in front of a follower's log, the
answers that wait for the journal's sync. Must not know how the leader chooses what to send.

Defects answered here: S1 (everything behind prev was deleted, matching or not), S2 and D5 (the
commit index ran over entries that nobody had compared), S6 (answers without a term).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from quorepo.cluster.raft.configuration import ConfigurationHistory
from quorepo.cluster.raft.engine import CANDIDATE, Engine, Node
from quorepo.cluster.raft.entries import (
    decode_configuration,
    is_command,
    is_configuration,
    payload_of,
)
from quorepo.cluster.raft.interface import PackNeed
from quorepo.cluster.raft.replica_log import LogRecord
from quorepo.cluster.raft.wire import Message
from quorepo.storage.errors import FatalError
from quorepo.storage.failpoints import failpoint

__all__ = ["Appending"]

# A fetch that failed is started again this often, for as long as the entry waits.
_WANT_AGAIN_S = 0.2
# Packs of later entries that are fetched while one entry waits.
_WANTED_AHEAD_MAX = 32


@dataclasses.dataclass(slots=True)
class HeldBack:
    """The entry that cannot be taken yet, because packs that it adds are not here."""

    index: int
    payload: bytes
    leader: Node
    look_again_at: float


class Appending(Engine):
    """The part of a group that follows."""

    history: ConfigurationHistory
    applied_index: int
    installing: bool

    def _begin_appending(self) -> None:
        self._answers: list[tuple[Node, Message]] = []  # wait for the sync
        self._held_back: HeldBack | None = None

    # ---- taking entries

    def _on_append_entries(self, node: Node, message: Message) -> None:
        if message["term"] < self.current_term:
            self.send(node, "term_notice")
            return
        self.follow(node, message["term"])
        if self.installing:
            self._answer(node, message, success=False, next_index=self.log.last_index + 1)
            return
        prev, prev_term, entries = self._beyond_commit(message)
        last_index = self.log.last_index
        if prev > last_index:
            self._answer(node, message, success=False, next_index=last_index + 1)
        elif self.log.term_at(prev) != prev_term:
            self._answer(node, message, success=False, next_index=self._conflict_at(prev))
        else:
            match_index = self._take_entries(node, prev, entries)
            self._commit_up_to(min(message["commit_index"], match_index))
            self._answer(node, message, success=True, next_index=match_index + 1)

    def follow(self, node: Node, term: int) -> None:
        """`node` leads `term`, which is not below ours."""
        other = self.is_leader or (self.leader is not None and self.leader != node)
        if term == self.current_term and other:
            raise FatalError(
                f"group {self.group} has two leaders in term {term}: {node.id!r} and "
                f"{self.leader.id if self.leader else self.me.id!r}"
            )
        if term > self.current_term or self.state == CANDIDATE:
            self.step_down(term)
        if self.leader != node:
            self._held_back = None
            self.leader = node
        self.note_contact(node)

    def _beyond_commit(self, message: Message) -> tuple[int, int, list[LogRecord]]:
        """The append without what is committed here: that part is in every later leader's log
        (Raft 5.4.3) and maybe cut from ours."""
        prev, prev_term, entries = message["prevLogIdx"], message["prevLogTerm"], message["entries"]
        commit_index = self.commit_index
        if prev >= commit_index:
            return prev, prev_term, entries
        known = entries[: commit_index - prev]
        committed_term = self.log.term_at(commit_index)
        if len(known) == commit_index - prev and known[-1][2] != committed_term:
            raise FatalError(
                f"group {self.group}: entry {commit_index} is committed with term "
                f"{committed_term}, but the leader of "
                f"term {message['term']} has it with term {known[-1][2]}"
            )
        return commit_index, committed_term, entries[len(known) :]

    def _conflict_at(self, prev: int) -> int:
        """Where the leader should try next: the first entry of the term that does not match at
        `prev`."""
        term = self.log.term_at(prev)
        index = prev
        while index - 1 > self.commit_index and self.log.term_at(index - 1) == term:
            index -= 1
        return index

    def _take_entries(self, node: Node, prev: int, entries: Sequence[LogRecord]) -> int:
        """Appends what is new; returns up to where the log is the leader's now.

        Entries are removed only when they contradict the leader's, never because they lie behind
        the append: an older append may arrive after a newer one was acknowledged (S1).
        """
        last_index = self.log.last_index
        changed = False
        match_index = prev
        for data, index, term in entries:
            if index <= last_index:
                if self.log.term_at(index) == term:
                    match_index = index
                    continue
                self.log.truncate_from(index, self.commit_index)
                changed |= self.history.truncate_from(index)
                last_index = index - 1
            if is_command(data) and self.space.full():
                self._held_back = HeldBack(index, payload_of(data), node, self.now + _WANT_AGAIN_S)
                break
            if is_command(data) and not self._holds_packs(node, index, payload_of(data)):
                self._want_packs_behind(node, index, entries)
                break
            self.log.append(data, index, term)
            last_index = match_index = index
            if is_configuration(data):
                self.history.append(index, decode_configuration(data))
                changed = True
        if self._held_back is not None and self._held_back.index <= match_index:
            self._held_back = None
        if changed:
            self.adopt_configuration()
        return match_index

    def _commit_up_to(self, index: int) -> None:
        """`index` is committed by the leader and was compared with its log (Raft 5.3, S2)."""
        if index > self.commit_index:
            self.set_commit_index(index)
            self.history.commit(index)

    # ---- packs (architecture, invariant 2)

    def _holds_packs(self, node: Node, index: int, payload: bytes) -> bool:
        """Whether this node durably holds the packs that the command adds; asks for them
        otherwise."""
        needs = self.gate.missing(self.group, payload)
        if not needs:
            return True
        self._held_back = HeldBack(index, payload, node, self.now + _WANT_AGAIN_S)
        self._want(needs, node)
        return False

    def _want_packs_behind(self, node: Node, index: int, entries: Sequence[LogRecord]) -> None:
        """Entry `index` is held back: the packs of those behind it can come at the same time."""
        needs: list[PackNeed] = []
        for data, behind, _ in entries:
            if behind > index and is_command(data):
                needs += self.gate.missing(self.group, payload_of(data))
            if len(needs) >= _WANTED_AHEAD_MAX:
                break
        if needs:
            self._want(needs[:_WANTED_AHEAD_MAX], node)

    def _want(self, needs: Sequence[PackNeed], node: Node) -> None:
        self.gate.want(self.group, needs, node.id)

    def packs_wake_at(self) -> float:
        return self._held_back.look_again_at if self._held_back is not None else math.inf

    def look_for_packs(self, *, arrived: bool = False) -> None:
        """Tells the leader when the missing packs are here; asks for them again when it is time."""
        held = self._held_back
        if held is None or not (arrived or self.now >= held.look_again_at):
            return
        if self.leader != held.leader:
            # Another term began, and `leader` is of the current one. Whoever leads it may have
            # another log, even if it is the same replica again: nothing may be claimed of it.
            self._held_back = None
            return
        if self.space.full():
            held.look_again_at = self.now + _WANT_AGAIN_S
            return
        needs = self.gate.missing(self.group, held.payload)
        if needs:
            held.look_again_at = self.now + _WANT_AGAIN_S
            self._want(needs, held.leader)
            return
        self._held_back = None
        # The log up to the entry before was compared with this leader's, in this term, when that
        # entry was held back; since then neither of the two has removed anything.
        self._queue_answer(held.leader, True, held.index, held.index - 1)

    # ---- answers

    def _answer(self, node: Node, message: Message, *, success: bool, next_index: int) -> None:
        self._queue_answer(node, success, next_index, message["prevLogIdx"])

    def _queue_answer(self, node: Node, success: bool, next_index: int, prev: int) -> None:
        answer = {
            "type": "next_node_idx",
            "term": self.current_term,
            "success": success,
            "next_node_idx": next_index,
            "prev": prev,
            "applied_index": self.applied_index,
            "waits_for_packs": self._held_back is not None,
            "disk_full": self.space.full(),
            "disk_low": self.space.low(),
        }
        self._answers.append((node, answer))

    def acknowledge_to(self, node: Node, index: int) -> None:
        """Tells `node`, which leads, that the log up to `index` is the same as its own; whatever
        was held back before is forgotten."""
        self._held_back = None
        self._queue_answer(node, True, index + 1, index)

    def release_answers(self) -> None:
        """The journal is synced: what the answers say is durable now (Raft 5.3, defect D1)."""
        answers, self._answers = self._answers, []
        for node, answer in answers:
            # An answer of an older term would speak for a log that a newer leader may have changed.
            if answer["term"] == self.current_term:
                failpoint("raft.append.before_reply")
                self._send_dict(node, answer)
