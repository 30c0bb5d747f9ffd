"""What must never happen, checked while it happens, from outside the engine wherever possible.

Owns: everything that is known of the whole cluster: every entry ever appended, what is committed,
who was told what. Each check names the promise. A broken one raises Violation; inside callbacks of
futures, where exceptions are swallowed, it is kept in `broken` and raised at the next step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from quorepo.cluster.raft.configuration import voters_of
from quorepo.cluster.raft.interface import Entry
from quorepo.internal.v1 import log_pb2
from simulation.events import Violation

if TYPE_CHECKING:
    from simulation.client import Attempt
    from simulation.node import Node

__all__ = ["Rules"]

_EXPIRED = log_pb2.REJECTION_REASON_REQUEST_EXPIRED


class Rules:
    """The promises, over one schedule."""

    def __init__(self, groups: Sequence[int]) -> None:
        self.groups = groups
        self.nodes: dict[str, Node] = {}
        self.broken: list[str] = []
        self.entries: dict[tuple[int, int, int], tuple[bytes, int]] = {}
        self.committed: dict[tuple[int, int], Entry] = {}
        self.attempts: dict[tuple[int, bytes], Attempt] = {}
        self.committed_attempts: dict[tuple[int, bytes], int] = {}
        self.first_index: dict[tuple[int, bytes], int] = {}  # of each request id
        self.request_of: dict[tuple[int, int], bytes] = {}
        self.results: dict[tuple[int, int], bytes] = {}
        self.revisions: dict[tuple[int, str], int] = {}
        self.digests: dict[tuple[int, int], bytes] = {}
        self.leaders: dict[tuple[int, int], str] = {}
        self.votes: dict[tuple[int, int, str], str] = {}
        self.commits: dict[tuple[int, str], tuple[int, int, frozenset[str]]] = {}
        self.acknowledged = dict.fromkeys(groups, 0)  # highest index that somebody was told of
        self.seen = dict.fromkeys(groups, 0)  # highest applied index that a read was served from
        self._known_voters: dict[int, tuple[log_pb2.Configuration, frozenset[str]]] = {}
        self.reads = 0
        self.may_expire = False  # clocks are stepped by more than the exactly-once window

    def fail(self, what: str) -> None:
        self.broken.append(what)

    def raise_broken(self) -> None:
        if self.broken:
            raise Violation(self.broken[0])

    # ---- logs

    def check_append(
        self, node: Node, group: int, record: tuple[bytes, int, int], before: int
    ) -> None:
        """Log matching: (index, term) decides the entry and everything before it (Raft 5.3)."""
        data, index, term = record
        known = self.entries.setdefault((group, index, term), (data, before))
        if known != (data, before):
            raise Violation(f"log matching: {node} has another entry {index} of term {term}")
        if data[0] == 0 and index > 1 and (missing := node.missing(group, data[9:])):
            raise Violation(f"packs: {node} has entry {index} without {len(missing)} packs")

    def check_truncate(self, node: Node, group: int, index: int) -> None:
        """Nothing that is committed anywhere is removed from a log."""
        entry = self.committed.get((group, index))
        if entry is not None and node.journal.term_at(group, index) == entry.term:
            raise Violation(f"truncation: {node} removes entry {index}, which is committed")

    def check_restart(self, node: Node, group: int, index: int, term: int) -> None:
        """A log begins anew behind a committed entry, whose state is in force on this replica."""
        entry = self.committed.get((group, index))
        if entry is None or entry.term != term:
            raise Violation(f"snapshots: {node} begins at {index} of term {term}: {entry}")
        if node.journal.term_at(group, index) == term:
            raise Violation(f"snapshots: {node} drops a log that has entry {index} of term {term}")
        if node.states[group].position.applied_index < index:
            raise Violation(f"snapshots: {node} begins its log at {index} before it has the state")

    def note_committed(self, node: Node, entry: Entry) -> None:
        """A node hands an entry over to apply."""
        group, index = key = (entry.group, entry.index)
        if node.durable[group].get(index) != entry.term:
            raise Violation(f"durability: {node} applies entry {index}, which its disk lacks")
        known = self.committed.get(key)
        if known is not None:
            if known != entry:
                raise Violation(f"agreement: {node} committed {entry}, another {known}")
            return
        self.committed[key] = entry
        if entry.kind != "command":
            return
        attempt = self.attempts.get((group, entry.data))
        if attempt is None:
            raise Violation(f"invention: {entry} was never proposed")
        before = self.committed_attempts.setdefault((group, entry.data), index)
        if before != index:
            raise Violation(f"exactly once: {attempt} is entry {before} and {index}")
        if attempt.verdict == "not applied":
            raise Violation(f"verdicts: {attempt} was refused and is committed as {index}")
        self.first_index.setdefault((group, attempt.request.id), index)
        self.request_of[key] = attempt.request.id

    # ---- state

    def note_results(
        self, group: int, first: int, results: Sequence[log_pb2.Result | None]
    ) -> None:
        """Every replica gets the same result, a repeated request the one it had."""
        for index, result in enumerate(results, first):
            if result is None:
                continue
            data = result.SerializeToString(deterministic=True)
            known = self.results.get((group, index))
            if known is not None:
                if known != data:
                    raise Violation(f"state: two replicas have different results of {index}")
                continue
            self.results[group, index] = data
            original = self.first_index[group, self.request_of[group, index]]
            expired = result.rejection.reason == _EXPIRED
            if expired and not self.may_expire:
                raise Violation(f"clocks: entry {index} was refused as expired")
            if expired:
                continue
            if original != index and (group, original) in self.results:
                if self.results[group, original] != data and not self._expired(group, original):
                    raise Violation(f"exactly once: entry {index} repeats {original}, otherwise")
            elif original == index:
                self._note_revision(group, index, result)

    def _expired(self, group: int, index: int) -> bool:
        result = log_pb2.Result.FromString(self.results[group, index])
        return result.rejection.reason == _EXPIRED

    def _note_revision(self, group: int, index: int, result: log_pb2.Result) -> None:
        """A repository's revision advances by one with every effective transaction."""
        if result.WhichOneof("kind") != "transaction":
            return
        transaction = result.transaction
        entry = self.committed[group, index]
        repository = log_pb2.Command.FromString(entry.data).transaction.repository_id
        effective = any(ref.status == log_pb2.REF_STATUS_OK for ref in transaction.refs)
        expected = self.revisions.get((group, repository), 0) + effective
        if effective and transaction.revision.counter != expected:
            raise Violation(
                f"exactly once: entry {index} made revision {transaction.revision.counter} "
                f"of {repository}, {expected} was next"
            )
        self.revisions[group, repository] = expected

    def note_digest(self, node: Node, group: int, index: int, digest: bytes) -> None:
        """Equal state at equal index."""
        if self.digests.setdefault((group, index), digest) != digest:
            raise Violation(f"state: {node} differs from another replica at {index}")

    # ---- what is said

    def check_message(self, node: Node, to: str, group: int, message: dict[str, Any]) -> None:
        """What a replica says is on its disk before it says so, and is not taken back."""
        kind = message["type"]
        if kind == "next_node_idx":
            index = message["next_node_idx"] - 1
            if (
                message["success"]
                and index not in node.durable[group]
                and index >= node.first(group)
            ):
                raise Violation(f"durability: {node} acknowledges {index}, which its disk lacks")
        elif kind == "response_vote":
            key = (group, message["term"], node.replica_id)
            if self.votes.setdefault(key, to) != to:
                raise Violation(f"votes: {node} votes for {self.votes[key]} and {to} in {key}")
            if node.durable_vote(group) != (message["term"], to):
                raise Violation(f"votes: {node} votes before its vote is durable")
        elif kind == "append_entries":
            if node.durable_vote(group)[0] < message["term"]:
                raise Violation(f"votes: {node} leads a term that its disk does not have")
            index = message["commit_index"]
            if index not in node.durable[group] and index >= node.first(group):
                raise Violation(f"durability: {node} says {index} is committed, its disk lacks it")

    # ---- after every step of a node

    def check_step(self, node: Node) -> None:
        self.raise_broken()
        for group in self.groups:
            raft = node.raft(group)
            before = node.commit_seen[group]
            if raft.commit_index < before:
                raise Violation(f"commit: {node} goes back from {before} to {raft.commit_index}")
            node.commit_seen[group] = raft.commit_index
            if raft.is_leader:
                self._check_leader(node, group, raft)

    def _check_leader(self, node: Node, group: int, raft: Any) -> None:
        term = raft.current_term
        key = (group, term)
        leader = self.leaders.get(key)
        if leader is None:
            self.leaders[key] = node.replica_id
            voters = voters_of(raft.history.current)
            votes = {v for v in voters if self.votes.get((*key, v)) == node.replica_id}
            if 2 * len(votes | {node.replica_id} & voters) <= len(voters):
                raise Violation(f"votes: {node} leads term {term} with votes of {sorted(votes)}")
        elif leader != node.replica_id:
            raise Violation(f"one leader: {leader} and {node} lead term {term} of group {group}")
        self._check_commit(node, group, raft)
        self._check_changes(node, group, raft)
        self._check_match(node, group, raft, term)

    def _check_commit(self, node: Node, group: int, raft: Any) -> None:
        """A majority of its voters has durably what a leader commits, and it commits its own."""
        index, term = raft.commit_index, raft.current_term
        voters = self._voters(raft.history.current)
        place = (group, node.replica_id)
        before = self.commits.get(place)
        self.commits[place] = (term, index, voters)
        if before is None or before[0] != term or index <= before[1]:
            return
        no_op = raft.no_op_index
        if no_op is None or index < no_op:
            raise Violation(f"commit: {node} counts entry {index} of an older term (Raft 5.4.2)")
        entry_term = node.journal.term_at(group, index)
        holders = {
            other.replica_id
            for other in self.nodes.values()
            if other.durable[group].get(index) == entry_term or index < other.installed[group]
        }
        # The members may have changed in the same turn, after the commit.
        if not any(2 * len(holders & those) > len(those) for those in (voters, before[2])):
            raise Violation(f"commit: {node} commits {index}, which only {sorted(holders)} store")

    def _voters(self, configuration: log_pb2.Configuration) -> frozenset[str]:
        """`voters_of`, of each configuration once: no id twice, none that was ever removed."""
        known = self._known_voters.get(id(configuration))
        if known is None or known[0] is not configuration:
            ids = [replica.replica_id for replica in configuration.replicas]
            if len(set(ids)) < len(ids) or set(ids) & set(configuration.removed_replica_ids):
                raise Violation(f"membership: an id counts twice or came back: {configuration}")
            known = (configuration, voters_of(configuration))
            self._known_voters[id(configuration)] = known
        return known[1]

    def _check_match(self, node: Node, group: int, raft: Any, term: int) -> None:
        """What a leader believes to be on a follower's disk is there, while the follower is in
        its term: afterwards another leader may have changed it."""
        for peer, index in raft.match_index.items():
            other = self.nodes[peer.id]
            if index < 2 or other.wiped or other.durable_vote(group)[0] != term:
                continue
            if index < max(node.first(group), other.first(group)):
                continue
            if other.durable[group].get(index) != node.journal.term_at(group, index):
                raise Violation(f"replication: {node} believes that {other} stores entry {index}")

    def _check_changes(self, node: Node, group: int, raft: Any) -> None:
        """One uncommitted change at a time, none before the leader knows what is committed."""
        own = [index for index, term in node.changes[group].items() if term == raft.current_term]
        uncommitted = [index for index in own if index > raft.commit_index]
        if len(uncommitted) > 1:
            raise Violation(f"membership: {node} has two changes under way: {uncommitted}")
        if own and raft.commit_index < (raft.no_op_index or 0):
            raise Violation(f"membership: {node} changes members before its no-op is committed")

    def check_configuration(self, node: Node, group: int) -> None:
        """In force is the newest configuration of the log, committed or not."""
        raft = node.raft(group)
        newest = max(node.changes[group], default=0)
        if newest > raft.history.current_index:
            raise Violation(f"membership: {node} ignores the configuration at {newest}")

    # ---- reads

    def begin_read(self, group: int) -> tuple[int, int]:
        return self.acknowledged[group], self.seen[group]

    def end_read(self, node: Node, group: int, began: tuple[int, int], index: int) -> None:
        """A read sees what was acknowledged, and what other reads had seen, before it began."""
        applied = node.states[group].position.applied_index
        self.reads += 1
        if applied < index or index < began[0] or applied < max(began):
            self.fail(
                f"linearizability: a read at {node} got index {index} and state {applied}; "
                f"acknowledged before {began[0]}, seen by reads before {began[1]}"
            )
        self.seen[group] = max(self.seen[group], applied)
