"""Who leads: pre-vote, votes, stepping down, fast failover, handing the leadership over.

Owns: the election deadline and the votes of this replica's own campaign. Must not know of the
log's content beyond its last index and term, nor of followers' progress. The start of an election
itself is pysyncobj's.

Safety rests on two things only: one durable vote per term, and votes counted by distinct voters
of the configuration in force (Raft 5.2, 5.4.1). Pre-vote, stickiness and hurrying decide when
somebody asks for votes, never whether one may be given.
"""

from __future__ import annotations

import logging
import math
from typing import Literal

from quorepo.cluster.raft.configuration import ConfigurationHistory
from quorepo.cluster.raft.engine import FOLLOWER, Node
from quorepo.cluster.raft.heard import HeardOf
from quorepo.cluster.raft.wire import Message
from quorepo.internal.v1 import log_pb2
from quorepo.storage.failpoints import failpoint

__all__ = ["Elections"]

log = logging.getLogger(__name__)

# A follower that lost its connection to the leader asks for votes this soon: later than the next
# heartbeat, in case only its own side of the connection broke, and at a random moment, because all
# survivors notice at once. The next attempts of the same failover hurry too, so that a split vote
# does not cost a full timeout. Then the network may be slower than this: the timeouts hold again.
_HURRY_HEARTBEATS = 1.2
_HURRY_SPREAD_S = 0.15
_HURRIED_ATTEMPTS_MAX = 4

# Silence after which a voter that should not lead tries all the same, in longest election timeouts.
_LAST_RESORT_TIMEOUTS = 4.0


class Elections(HeardOf):
    """The part of a group that finds a leader."""

    history: ConfigurationHistory

    def _begin_elections(self) -> None:
        self._own_in: log_pb2.Configuration | None = None  # the configuration that has `_own`
        self._own: log_pb2.Replica | None = None
        self._election_deadline = self.now + self.election_timeout_s()
        self._campaign: Literal["", "pre-vote won", "asked by leader"] = ""
        self._pre_votes: set[Node] | None = None  # None: no pre-vote is going on
        self._votes: set[Node] = set()
        self._contact: Node | None = None  # the leader heard last
        self._contact_at = -math.inf
        self._began_at = self.now
        self._contact_lost = False  # its connection broke, and it was not heard since
        self._hurried_attempts = 0
        self._met_a_peer = False

    # ---- what a tick does

    def note_peer_met(self) -> None:
        """A peer has compared this disk with what it knows of it, and let it speak."""
        self._met_a_peer = True

    def _knows_itself(self) -> bool:
        """Whether this replica may vote at all, for others or itself. One whose disk is an old copy
        would vote a second time; it learns that at its first contact. Alone, there is nobody to
        ask."""
        return self._met_a_peer or not self.other_voters

    def own_replica(self) -> log_pb2.Replica | None:
        """This replica in the configuration in force; None when it is not part of it."""
        current = self.history.current
        if self._own_in is not current:
            own = (r for r in current.replicas if r.replica_id == self.me.id)
            self._own_in, self._own = current, next(own, None)
        return self._own

    def _may_lead(self) -> bool:
        own = self.own_replica()
        return own is not None and own.votes and own.may_lead

    def _campaigns_at(self) -> float:
        """When this replica asks for votes unless a leader is heard; never, for a learner.

        A voter that should not lead (its node is drained) waits until nobody else did: its log may
        be the only one that can win, and no leader at all would be worse. It hands over then.
        """
        own = self.own_replica()
        if own is None or not own.votes or not self._knows_itself():
            return math.inf
        if own.may_lead:
            return self._election_deadline
        silent_since = max(self._contact_at, self._began_at)
        patience_s = _LAST_RESORT_TIMEOUTS * self.config.election_timeout_s_max
        return max(self._election_deadline, silent_since + patience_s)

    def election_wake_at(self) -> float:
        """When `decide_election` has something to do next."""
        return math.inf if self.is_leader else self._campaigns_at()

    def decide_election(self) -> None:
        """Before pysyncobj's tick: whether it may start an election, or else a pre-vote when it
        is time."""
        self.may_be_elected = False
        at = math.inf if self.is_leader else self._campaigns_at()
        if at == math.inf:
            # A learner, a replica that was removed, or one that met nobody yet never campaigns.
            self._campaign = ""
            return
        if not self._campaign and self.now >= at:
            self._start_pre_vote()
        self.may_be_elected = bool(self._campaign)

    def note_election(self) -> None:
        """After a tick in which pysyncobj started an election: this replica voted for itself."""
        log.info(
            "election started",
            extra={
                "fields": {"group": self.group, "term": self.current_term, "why": self._campaign}
            },
        )
        self._campaign = ""
        self._pre_votes = None
        self._votes = {self.me}
        self._set_next_deadline()

    def _start_pre_vote(self) -> None:
        """Asks whether an election could be won, without touching any term (dissertation, 9.6)."""
        self._set_next_deadline()
        self._pre_votes = {self.me}
        for node in sorted(self.other_voters, key=str):
            self.send(
                node,
                "pre_vote",
                last_log_index=self.log.last_index,
                last_log_term=self.log.last_term,
            )
        self._count_pre_votes()

    def _count_pre_votes(self) -> None:
        if self._pre_votes is not None and self.is_majority(self._pre_votes):
            self._pre_votes = None
            self._campaign = "pre-vote won"

    def _set_next_deadline(self) -> None:
        if self._contact_lost and self._hurried_attempts < _HURRIED_ATTEMPTS_MAX:
            self._hurried_attempts += 1
            wait_s = _HURRY_HEARTBEATS * self.config.heartbeat_interval_s
            wait_s += self.rng.uniform(0.0, _HURRY_SPREAD_S)
            self._election_deadline = self.now + min(wait_s, self.config.election_timeout_s_max)
        else:
            self._election_deadline = self.now + self.election_timeout_s()

    def note_leader_lost(self, node: Node) -> None:
        """The connection to `node` is gone: when it led, there is no need to wait for silence."""
        if node != self._contact or self.is_leader:
            return
        self._contact_lost = True
        if self._may_lead():
            self._hurried_attempts = 0
            deadline = self._election_deadline
            self._set_next_deadline()
            self._election_deadline = min(deadline, self._election_deadline)

    # ---- terms

    def step_down(self, term: int, vote: str | None = None) -> None:
        """Goes on as a follower of `term`, which is not below the current one (Raft 5.1).

        `vote` is given to that replica in the same write, when the term is a new one.
        """
        if term > self.current_term:
            self.set_term(term, vote)
            self.leader = None
        if self.state != FOLLOWER:
            self.set_state(FOLLOWER)
        self._campaign = ""
        self._pre_votes = None

    def note_contact(self, node: Node) -> None:
        """A message of the current term's leader: no election is needed."""
        self._contact = node
        self._contact_at = self.now
        self._contact_lost = False
        self._hurried_attempts = 0
        if self._campaign == "pre-vote won":
            self._campaign = ""  # "asked by leader" stands: that leader wants to go
        self._pre_votes = None
        self._election_deadline = self.now + self.election_timeout_s()

    def leadership_lost(self) -> None:
        """This replica led and does no more."""
        self._contact = None
        self._contact_lost = False
        self._set_next_deadline()

    # ---- messages

    def _on_term_notice(self, node: Node, message: Message) -> None:
        if message["term"] > self.current_term:
            self.step_down(message["term"])

    def _on_pre_vote(self, node: Node, message: Message) -> None:
        if message["term"] < self.current_term:
            self.send(node, "term_notice")
        elif self._knows_itself() and not self._sticks_to_leader() and self._is_up_to_date(message):
            # The term of the question comes back, so that the asker knows which one was answered.
            self.send(node, "pre_vote_granted", term=message["term"])

    def _sticks_to_leader(self) -> bool:
        """Whether there is a leader worth keeping (dissertation, 4.2.3).

        One that this replica hears, unless their connection broke and nothing was heard since: then
        the silence that the timeout would wait for has been explained.
        """
        if self.is_leader:
            return True
        fresh = self.now - self._contact_at < self.config.election_timeout_s_min
        return fresh and not self._contact_lost

    def _is_up_to_date(self, message: Message) -> bool:
        """Raft 5.4.1: a log that ends in a later term, or in the same one and not before ours."""
        theirs = (message["last_log_term"], message["last_log_index"])
        return bool(theirs >= (self.log.last_term, self.log.last_index))

    def _on_pre_vote_granted(self, node: Node, message: Message) -> None:
        if self._pre_votes is not None and message["term"] == self.current_term:
            self._pre_votes.add(node)
            self._count_pre_votes()

    def _on_request_vote(self, node: Node, message: Message) -> None:
        """Raft 5.2, 5.4.1. A candidate asks the voters of its configuration, which may be newer
        than ours:

        a replica that does not know yet that it became a voter has to answer, or a group whose
        promoted replica is needed for the majority could not elect anybody (dissertation, 4.2.3).
        Learners are not asked by anybody.
        """
        self.note_term_of(node, message["term"])
        up_to_date = self._is_up_to_date(message) and self._knows_itself()
        if message["term"] > self.current_term:
            self.step_down(message["term"], node.id if up_to_date else None)
        if message["term"] < self.current_term:
            self.send(node, "term_notice")
            return
        if self.is_leader or not up_to_date:
            return
        if self.voted_for is None:
            self.set_term(self.current_term, node.id)
        if self.voted_for != node.id:
            return
        # The vote is durable: set_term returned.
        failpoint("raft.vote.before_reply")
        self._election_deadline = self.now + self.election_timeout_s()
        self.send(node, "response_vote")

    def _on_response_vote(self, node: Node, message: Message) -> None:
        """Counts distinct voters of the configuration in force; pysyncobj counts answers."""
        self.note_term_of(node, message["term"])
        if not self.is_candidate or message["term"] != self.current_term:
            return
        self._votes.add(node)
        if self.is_majority(self._votes):
            self.become_leader()

    def _on_timeout_now(self, node: Node, message: Message) -> None:
        """The leader hands over: campaign at once (dissertation, 3.10)."""
        if message["term"] == self.current_term and node == self.leader and self._may_lead():
            self._campaign = "asked by leader"
