"""Which replicas a group has, as its log says, and which changes of that are safe.

Owns: the configuration in force (the newest in the log, committed or not: Ongaro's dissertation,
4.1), going back when the log is cut, and the rule that one change differs in one replica. Pure;
must not know of messages.

Defect S3 of pysyncobj: its guard "one change at a time" never fires, and after a restart it knows
the configuration from applied entries only. Both gave two leaders in one term.
"""

from __future__ import annotations

from quorepo.internal.v1 import log_pb2

__all__ = ["ConfigurationHistory", "describe_change", "voters_of"]


class ConfigurationHistory:
    """The configurations of one group from the newest committed one on, by the index of their
    entry."""

    def __init__(self, base_index: int, base: log_pb2.Configuration) -> None:
        """`base` is in force at `base_index`, which is committed; index 0 for the founding one."""
        self._known: list[tuple[int, log_pb2.Configuration]] = [(base_index, base)]

    @property
    def current(self) -> log_pb2.Configuration:
        """The configuration in force."""
        return self._known[-1][1]

    @property
    def current_index(self) -> int:
        """Index of the entry that brought it into force."""
        return self._known[-1][0]

    def append(self, index: int, configuration: log_pb2.Configuration) -> None:
        """A configuration entry was appended to the log: it is in force at once."""
        assert index > self.current_index, (index, self.current_index)
        self._known.append((index, configuration))

    def truncate_from(self, index: int) -> bool:
        """The log was cut from `index` on; returns whether another configuration is in force
        now."""
        before = len(self._known)
        # The first is committed, so it is never cut (ReplicaLog.truncate_from sees to that).
        while len(self._known) > 1 and self._known[-1][0] >= index:
            del self._known[-1]
        return len(self._known) != before

    def restart(self, index: int, configuration: log_pb2.Configuration) -> None:
        """The log begins anew behind a snapshot of entry `index`."""
        self._known = [(index, configuration)]

    def commit(self, index: int) -> None:
        """Entries up to `index` are committed: forgets what can no longer come back."""
        while len(self._known) > 1 and self._known[1][0] <= index:
            del self._known[0]


def voters_of(configuration: log_pb2.Configuration) -> frozenset[str]:
    """The ids of the replicas that are counted."""
    return frozenset(r.replica_id for r in configuration.replicas if r.votes)


def describe_change(
    current: log_pb2.Configuration, proposed: log_pb2.Configuration, leader: str
) -> str:
    """Why a leader must not append `proposed`; empty when it may.

    Two configurations whose voters differ in one replica have no two disjoint majorities, so any
    majority of one sees what a majority of the other decided (dissertation, 4.1). A new replica
    comes as a learner: a voter with an empty log would be counted while it cannot help to commit.
    """
    before = {replica.replica_id: replica for replica in current.replicas}
    after = {replica.replica_id: replica for replica in proposed.replicas}
    if len(after) != len(proposed.replicas) or "" in after:
        return "replica ids must be unique and not empty"
    changed = sorted(
        replica_id
        for replica_id in before.keys() | after.keys()
        if before.get(replica_id) != after.get(replica_id)
    )
    if len(changed) != 1:
        return f"a change must differ in exactly one replica, this one differs in {len(changed)}"
    (replica_id,) = changed
    removed = set(current.removed_replica_ids)
    if replica_id in removed and replica_id in after:
        return f"replica {replica_id!r} was removed: its id is never used again"
    if not removed <= set(proposed.removed_replica_ids):
        return "the record of removed replicas must not shrink"
    own = after.get(leader)
    if own is None or not own.votes or not own.may_lead:
        return f"replica {leader!r} leads: transfer the leadership first"
    if replica_id not in before and after[replica_id].votes:
        return f"replica {replica_id!r} is new: it has to catch up as a learner before it votes"
    return ""
