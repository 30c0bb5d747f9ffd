"""A voter that should not lead (its node is drained) is no candidate while another can win."""

from __future__ import annotations

from support.raft_cluster import Cluster, Node, voter

from quorepo.cluster.raft.interface import Outcome


def drained_cluster(seed: int) -> tuple[Cluster, Node, Node]:
    """Three voters: who leads, and one that should not."""
    cluster = Cluster(seed, voters=3)
    cluster.majority_is_founders = False
    leader = cluster.wait_for_leader()
    drained = next(node for node in cluster.alive() if node is not leader)
    replicas = []
    for replica in leader.group().history.current.replicas:
        copied = voter(replica.replica_id)
        copied.may_lead = replica.replica_id != drained.group().me.id
        replicas.append(copied)
    assert cluster.result(cluster.change(leader, replicas)).outcome is Outcome.APPLIED
    cluster.run(0.5)
    return cluster, leader, drained


def test_the_other_voter_takes_over() -> None:
    cluster, leader, drained = drained_cluster(11)
    cluster.crash(leader)
    assert cluster.wait_for_leader() is not drained


def test_a_drained_voter_leads_as_the_last_resort() -> None:
    """Only its log can win: no leader at all would be worse than one that hands over soon."""
    cluster, leader, drained = drained_cluster(12)
    behind = next(node for node in cluster.alive() if node not in (leader, drained))
    cluster.crash(behind)
    assert cluster.apply(leader, "known to two").outcome is Outcome.APPLIED
    cluster.crash(leader)
    cluster.restart(behind)
    assert cluster.wait_for_leader(seconds=20.0) is drained
