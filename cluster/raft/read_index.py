"""Linearizable reads on any replica: the read index (Raft, section 8; dissertation, 6.4).

Owns: reads that wait for a leader, for the leader's confirmation, or for this replica's state.
Must not know what is read.

A read may be served from a state that has applied up to an index I, when I was the commit index
of a leader after the read arrived, and that leader was still the leader then:

1. only after the no-op of its term is committed does a leader know all that its predecessors
   committed;
2. it takes its commit index, and then asks the voters to confirm its term. A majority that
   answers in that term cannot have elected a later leader before it answered, so no later leader
   had committed anything when the index was taken;
3. the replica that was asked waits until its own state has applied that far.

A replica that asks the leader says its own term with that. If it is a voter, and in the leader's
term, its question confirms the leader for the reads that wait for its answer, for it was sent after
they began: of three voters nobody else has to be asked. For any other read it says nothing.

No clock is involved: a paused leader's reads wait, they are never stale. All reads that wait
share one round, and a round answers all older ones. Reads repeat nothing, so a lost answer is
simply asked for again.
"""

from __future__ import annotations

import collections
import dataclasses
import heapq
import itertools
import math
from collections.abc import Iterable
from concurrent.futures import Future

from quorepo.cluster.raft.deadlines import Deadlines
from quorepo.cluster.raft.engine import Engine, Node
from quorepo.cluster.raft.wire import Message
from quorepo.storage.errors import Unavailable

__all__ = ["Read", "ReadIndex"]

# Questions of other replicas that a leader keeps while it cannot answer yet; above it says so.
_QUESTIONS_MAX = 4096
# A leader asks the voters again for rounds that are this many heartbeats old.
_ROUNDS_MAX = 1024


class Read:
    """One read's wait."""

    def __init__(self, deadline: float) -> None:
        self.future: Future[int] = Future()
        self.future.set_running_or_notify_cancel()
        self.deadline = deadline

    @property
    def done(self) -> bool:
        return self.future.done()

    def resolve(self, index: int) -> None:
        if not self.done:
            self.future.set_result(index)

    def expire(self) -> None:
        self._fail("no leader that a majority confirms, or this replica is too far behind")

    def stop(self) -> None:
        self._fail("the node is stopping")

    def _fail(self, why: str) -> None:
        if not self.done:
            self.future.set_exception(Unavailable(f"no read index: {why}"))


class Reads:
    """The waits of one reader for several groups; told together that the host ends."""

    def __init__(self, groups: Iterable[int], deadline: float) -> None:
        self.by_group = {group: Read(deadline) for group in groups}
        self.deadline = deadline

    @property
    def done(self) -> bool:
        return all(read.done for read in self.by_group.values())

    def expire(self) -> None:
        for read in self.by_group.values():
            read.expire()

    def stop(self) -> None:
        for read in self.by_group.values():
            read.stop()


@dataclasses.dataclass(slots=True)
class Question:
    """Who wants to know the read index: reads of this replica, or another replica by its id for
    it. `confirms` when that was in this term as it asked."""

    reads: list[Read]
    node: Node | None = None
    read_id: int = 0
    confirms: bool = False


@dataclasses.dataclass(slots=True)
class Round:
    """One question to the voters: am I still the leader?"""

    index: int  # the commit index when it began
    questions: list[Question]
    confirmed: set[Node]


class ReadIndex(Engine):
    """The part of a group that makes reads linearizable."""

    applied_index: int
    deadlines: Deadlines

    def _begin_read_index(self) -> None:
        self._new_reads: list[Read] = []
        self._new_reads_at = -math.inf  # not to be asked before
        self._asked: dict[int, tuple[float, list[Read]]] = {}  # by id: when, and who waits
        self._questions: list[Question] = []  # leader: not yet in a round
        self._rounds: collections.OrderedDict[int, Round] = collections.OrderedDict()
        self._last_round = 0
        self._round_asked_at = -math.inf
        self._unapplied: list[tuple[int, int, Read]] = []  # heap by index
        self._unapplied_order = itertools.count()

    def submit_read(self, read: Read) -> None:
        self.deadlines.add(read)
        self._new_reads.append(read)

    def reads_wake_at(self) -> float:
        """When `advance_reads` has something to do next, beside messages."""
        wake_at = math.inf
        if self._new_reads and not self.is_leader and self._can_ask_leader():
            wake_at = self._new_reads_at
        if self._rounds:
            wake_at = min(wake_at, self._round_asked_at + self.config.heartbeat_interval_s)
        if self._asked:
            oldest = next(iter(self._asked.values()))[0]
            wake_at = min(wake_at, oldest + self.config.election_timeout_s_min)
        return wake_at

    def _can_ask_leader(self) -> bool:
        return self.leader is not None and self.leader in self.connected

    def advance_reads(self) -> None:
        """After pysyncobj's tick: asks whoever has to be asked."""
        if self.is_leader:
            self._begin_round()
        else:
            self._ask_leader()

    # ---- a replica that does not lead

    def _ask_leader(self) -> None:
        self._ask_again_unanswered()
        reads = [read for read in self._new_reads if not read.done]
        self._new_reads = reads
        if not reads or self.now < self._new_reads_at or not self._can_ask_leader():
            return
        assert self.leader is not None
        read_id = self.rng.getrandbits(
            64
        )  # a counter would match answers from before a restart (S6)
        if self.send(self.leader, "read_index_request", read_id=read_id):
            self._asked[read_id] = (self.now, reads)
            self._new_reads = []

    def _ask_again_unanswered(self) -> None:
        """A question without an answer for an election timeout was lost on the way."""
        patience_s = self.config.election_timeout_s_min
        for read_id, (asked_at, reads) in list(self._asked.items()):
            if asked_at + patience_s > self.now:
                return  # they are in the order of time
            del self._asked[read_id]
            self._new_reads.extend(reads)

    def reads_unanswered(self) -> None:
        """The leader changed, or the connection to it is gone: its answers will not come."""
        for _, reads in self._asked.values():
            self._new_reads.extend(reads)
        self._asked.clear()
        self._new_reads_at = -math.inf

    def _on_read_index_reply(self, node: Node, message: Message) -> None:
        asked = self._asked.pop(message["read_id"], None)
        if asked is None:
            return
        if message["index"]:
            self._wait_until_applied(asked[1], message["index"])
        else:
            # It does not lead any more, and this replica will hear who does.
            self._new_reads.extend(asked[1])
            self._new_reads_at = self.now + self.config.heartbeat_interval_s

    # ---- the leader

    def _on_read_index_request(self, node: Node, message: Message) -> None:
        question = Question([], node, message["read_id"], message["term"] == self.current_term)
        if self.is_leader and len(self._questions) < _QUESTIONS_MAX:
            self._questions.append(question)
        else:
            self._answer_question(question, 0)

    def _begin_round(self) -> None:
        reads = [read for read in self._new_reads if not read.done]
        self._new_reads = []
        if reads:
            self._questions.append(Question(reads))
        self._ask_voters_again()
        no_op_index = self.no_op_index
        if not self._questions or no_op_index is None or self.commit_index < no_op_index:
            return
        if len(self._rounds) >= _ROUNDS_MAX:
            return
        self._last_round += 1
        self._rounds[self._last_round] = Round(self.commit_index, self._questions, {self.me})
        self._questions = []
        self._confirm(self._last_round)
        if self._last_round in self._rounds:
            self._ask_voters()

    def _ask_voters(self) -> None:
        self._round_asked_at = self.now
        for node in sorted(self.other_voters, key=str):
            self.send(node, "leadership_ping", round=self._last_round)

    def _ask_voters_again(self) -> None:
        """Questions on a connection that was lost are not repeated by anybody else."""
        if self._rounds and self.now >= self._round_asked_at + self.config.heartbeat_interval_s:
            self._ask_voters()

    def _on_leadership_ping(self, node: Node, message: Message) -> None:
        if message["term"] < self.current_term:
            self.send(node, "term_notice")
            return
        if message["term"] > self.current_term:
            self.step_down(message["term"])  # as for anything of a newer term (Raft 5.1)
        self.send(node, "leadership_pong", round=message["round"])

    def _on_leadership_pong(self, node: Node, message: Message) -> None:
        """The voter was in this term after every round up to this one had begun."""
        if not self.is_leader or message["term"] != self.current_term:
            return
        self.heard_at[node] = self.now
        for number, round_ in self._rounds.items():
            if number > message["round"]:
                break
            round_.confirmed.add(node)
        self._confirm(message["round"])

    def _confirm(self, number: int) -> None:
        """Answers all rounds up to the newest one, not above `number`, that a majority
        confirmed."""
        confirmed = [
            key
            for key, round_ in self._rounds.items()
            if key <= number and self.is_majority(round_.confirmed)
        ]
        if confirmed:
            for key in [key for key in self._rounds if key <= confirmed[-1]]:
                round_ = self._rounds.pop(key)
                for question in round_.questions:
                    self._answer_question(question, round_.index)
        for key in [key for key in self._rounds if key <= number]:
            self._answer_confirming(self._rounds[key])
            if not self._rounds[key].questions:
                del self._rounds[key]

    def _answer_confirming(self, round_: Round) -> None:
        """Answers those whose own question makes a majority of what the round has."""
        left = []
        for question in round_.questions:
            asker = {question.node} if question.node is not None and question.confirms else set()
            if asker and self.is_majority(round_.confirmed | asker):
                self._answer_question(question, round_.index)
            else:
                left.append(question)
        round_.questions = left

    def _answer_question(self, question: Question, index: int) -> None:
        if question.node is not None:
            self.send(question.node, "read_index_reply", read_id=question.read_id, index=index)
        elif index:
            self._wait_until_applied(question.reads, index)
        else:
            self._new_reads.extend(question.reads)

    def reads_of_lost_leadership(self) -> None:
        """This replica led and does no more: nobody can be confirmed by it."""
        questions = [q for round_ in self._rounds.values() for q in round_.questions]
        questions += self._questions
        self._rounds.clear()
        self._questions = []
        for question in questions:
            self._answer_question(question, 0)

    # ---- this replica's state

    def _wait_until_applied(self, reads: Iterable[Read], index: int) -> None:
        for read in reads:
            if self.applied_index >= index:
                read.resolve(index)
            elif not read.done:
                heapq.heappush(self._unapplied, (index, next(self._unapplied_order), read))

    def release_reads(self) -> None:
        """The state has applied more."""
        while self._unapplied and self._unapplied[0][0] <= self.applied_index:
            index, _, read = heapq.heappop(self._unapplied)
            read.resolve(index)
