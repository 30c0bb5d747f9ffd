"""While a replica's state is switched to a snapshot: nothing is taken, nothing handed over.

The simulator hardly ever meets a leader whose log reaches back in that short time, so these two are
pinned here (simulation/mutations.py, NARROW).
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest
from support.raft_cluster import Cluster, Node

from quorepo.cluster.raft.interface import Entry, Outcome


class Recorder:
    """ApplySink."""

    def __init__(self) -> None:
        self.indexes: list[int] = []

    def submit(self, group: int, entries: Sequence[Entry]) -> None:
        self.indexes += [entry.index for entry in entries]

    def backlog(self, group: int) -> int:
        return 0


def follower_that_switches(cluster: Cluster) -> tuple[Node, Node]:
    """The leader, and a follower that has begun to put a later snapshot into force."""
    leader = cluster.wait_for_leader()
    assert cluster.apply(leader, "before").outcome is Outcome.APPLIED
    cluster.run(1.0)
    follower = next(node for node in cluster.alive() if node is not leader)
    raft = follower.group()
    assert raft.begin_install(raft.commit_index + 100, raft.current_term)
    return leader, follower


def test_entries_are_not_taken_while_the_state_is_switched() -> None:
    cluster = Cluster(1)
    leader, follower = follower_that_switches(cluster)
    last_index = follower.group().log.last_index
    assert cluster.apply(leader, "meanwhile").outcome is Outcome.APPLIED  # by the others
    cluster.run(2.0)
    assert follower.group().log.last_index == last_index
    assert cluster.leader() is leader  # it was heard all the time
    follower.group().cancel_install()
    cluster.run(2.0)
    cluster.check_at_rest()


def test_entries_are_not_handed_over_while_the_state_is_switched(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cluster = Cluster(2)
    _, follower = follower_that_switches(cluster)
    raft, sink = follower.group(), Recorder()
    monkeypatch.setattr(raft, "sink", sink)
    raft.set_handed_over(raft.commit_index - 1)  # as with an apply that is slow
    raft.hand_over()
    assert sink.indexes == []
    raft.cancel_install()
    raft.hand_over()
    assert sink.indexes == [raft.commit_index]
