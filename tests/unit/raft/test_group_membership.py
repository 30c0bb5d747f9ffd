"""Changing who the replicas are: learners first, one change at a time, taken back with the log."""

from __future__ import annotations

import pytest
from support.raft_cluster import Cluster, Node, voter

from quorepo.cluster.raft.engine import Node as RaftNode
from quorepo.cluster.raft.interface import Outcome
from quorepo.internal.v1 import log_pb2


def followers_of(cluster: Cluster, leader: Node) -> list[Node]:
    return [node for node in cluster.alive() if node is not leader]


def replicas_of(node: Node) -> list[log_pb2.Replica]:
    return list(node.group().history.current.replicas)


def moving(seed: int, voters: int = 3) -> tuple[Cluster, Node]:
    cluster = Cluster(seed, voters=voters)
    cluster.majority_is_founders = False
    return cluster, cluster.wait_for_leader()


def add_learner(cluster: Cluster, leader: Node, replica_id: str) -> Node:
    learner = cluster.add_node(replica_id)
    cluster.run(0.2)
    change = cluster.change(leader, [*replicas_of(leader), voter(replica_id, votes=False)])
    assert cluster.result(change).outcome is Outcome.APPLIED
    return learner


def promote(cluster: Cluster, leader: Node, replica_id: str) -> None:
    replicas = [
        voter(replica_id) if replica.replica_id == replica_id else replica
        for replica in replicas_of(leader)
    ]
    assert cluster.result(cluster.change(leader, replicas)).outcome is Outcome.APPLIED


def test_learner_follows_the_log_and_is_not_counted() -> None:
    cluster, leader = moving(1)
    cluster.apply(leader, "before")
    learner = add_learner(cluster, leader, "n3@1")
    cluster.run(0.5)
    assert learner.group().role() == "learner"
    assert learner.disk.state[1] == leader.disk.state[1]
    for node in followers_of(cluster, leader):
        if node is not learner:
            cluster.crash(node)
    verdict = cluster.apply(leader, "leader and learner are no majority", timeout_s=1.0)
    assert verdict.outcome is Outcome.UNKNOWN


def test_learner_becomes_a_voter_and_counts() -> None:
    cluster, leader = moving(2)
    learner = add_learner(cluster, leader, "n3@1")
    cluster.run(0.5)
    promote(cluster, leader, "n3@1")
    cluster.run(0.2)
    assert learner.group().role() == "follower"
    gone = next(node for node in followers_of(cluster, leader) if node is not learner)
    cluster.crash(gone)
    assert cluster.apply(leader, "three of four").outcome is Outcome.APPLIED


def test_replica_votes_before_it_knows_that_it_was_promoted() -> None:
    """Two voters and the promoted one: without its vote nobody could be elected any more."""
    cluster, leader = moving(3, voters=2)
    other = followers_of(cluster, leader)[0]
    learner = add_learner(cluster, leader, "n2@1")
    cluster.run(0.5)
    # The entry that promotes it reaches the other voter only.
    cluster.blocked.add(frozenset((leader.replica_id, learner.replica_id)))
    future = cluster.change(leader, [*replicas_of(leader)[:2], voter("n2@1")])
    cluster.run(0.0007)
    cluster.disconnect(leader, learner)
    assert cluster.result(future).outcome is Outcome.APPLIED
    knows = [r for r in replicas_of(learner) if r.replica_id == "n2@1" and r.votes]
    cluster.crash(leader)
    assert cluster.wait_for_leader(seconds=5.0) in (other, learner)
    assert cluster.apply(other, "goes on").outcome is Outcome.APPLIED or knows


def test_rejoin_of_a_node_that_lost_its_disk() -> None:
    """The old replica goes, the new one learns, then votes: three changes, one after the other."""
    cluster, leader = moving(4)
    for i in range(20):
        cluster.apply(leader, f"c{i}")
    lost = followers_of(cluster, leader)[0]
    cluster.crash(lost)
    rest = [r for r in replicas_of(leader) if r.replica_id != lost.replica_id]
    assert cluster.result(cluster.change(leader, rest)).outcome is Outcome.APPLIED
    new = add_learner(cluster, leader, lost.replica_id.replace("@1", "@2"))
    cluster.run(0.5)
    promote(cluster, leader, new.replica_id)
    cluster.crash(leader)
    successor = cluster.wait_for_leader(seconds=5.0)
    assert cluster.apply(successor, "two of three").outcome is Outcome.APPLIED
    assert new.disk.state[1] == successor.disk.state[1]


def test_removed_replica_hears_of_it_and_keeps_quiet() -> None:
    cluster, leader = moving(5)
    removed = followers_of(cluster, leader)[0]
    rest = [r for r in replicas_of(leader) if r.replica_id != removed.replica_id]
    assert cluster.result(cluster.change(leader, rest)).outcome is Outcome.APPLIED
    cluster.run(0.5)
    assert removed.group().role() == "learner"
    term = removed.group().current_term
    cluster.run(10.0)
    assert removed.group().current_term == term
    assert cluster.leader() is leader
    assert removed.group().me not in leader.group().peers


def test_leader_cannot_remove_or_demote_itself() -> None:
    cluster, leader = moving(6)
    rest = [r for r in replicas_of(leader) if r.replica_id != leader.replica_id]
    for change in (rest, [*rest, voter(leader.replica_id, votes=False)]):
        verdict = cluster.result(cluster.change(leader, change))
        assert (verdict.outcome, verdict.reason) == (Outcome.NOT_APPLIED, "denied")


@pytest.mark.parametrize("kind", ["two at once", "new voter", "nothing", "same id twice", "no id"])
def test_unsafe_changes_are_denied(kind: str) -> None:
    cluster, leader = moving(7)
    now = replicas_of(leader)
    change = {
        "two at once": [*now, voter("n3@1", votes=False), voter("n4@1", votes=False)],
        "new voter": [*now, voter("n3@1")],
        "nothing": now,
        "same id twice": [*now, now[0]],
        "no id": [*now, voter("", votes=False)],
    }[kind]
    verdict = cluster.result(cluster.change(leader, change))
    assert (verdict.outcome, verdict.reason) == (Outcome.NOT_APPLIED, "denied")
    assert replicas_of(leader) == now


def test_one_change_at_a_time() -> None:
    cluster, leader = moving(8)
    now = replicas_of(leader)
    first = cluster.change(leader, [*now, voter("n3@1", votes=False)])
    cluster.run(0.0006)
    second = cluster.change(leader, [*now, voter("n3@1", votes=False), voter("n4@1", votes=False)])
    assert cluster.result(second).reason == "denied"
    assert cluster.result(first).outcome is Outcome.APPLIED


def test_learner_that_is_far_behind_is_not_promoted() -> None:
    cluster, leader = moving(9)
    learner = add_learner(cluster, leader, "n3@1")
    cluster.run(0.2)
    cluster.crash(learner)
    cluster.run(0.1)
    replicas = [voter(r.replica_id) for r in replicas_of(leader)]
    assert cluster.result(cluster.change(leader, replicas)).reason == "denied"


def test_learner_that_needs_a_snapshot_is_not_promoted() -> None:
    """Simulator, seed 20261124001006: it was few entries behind, and a whole state."""
    cluster, leader = moving(9)
    learner = add_learner(cluster, leader, "n3@1")
    cluster.run(0.2)
    raft = leader.group()
    replicas = [voter(r.replica_id) for r in replicas_of(leader)]
    payload = log_pb2.Configuration(replicas=replicas).SerializeToString()
    assert raft.why_denied(payload) == ""
    raft.match_index[RaftNode(learner.replica_id)] = raft.log.first_index - 1
    assert "still needs a snapshot" in raft.why_denied(payload)


def test_only_the_leader_changes_members() -> None:
    cluster, leader = moving(10)
    follower = followers_of(cluster, leader)[0]
    change = cluster.change(follower, [*replicas_of(leader), voter("n3@1", votes=False)])
    verdict = cluster.result(change)
    assert (verdict.outcome, verdict.reason) == (Outcome.NOT_APPLIED, "not-leader")


def test_change_that_is_overwritten_is_taken_back() -> None:
    cluster, old = moving(11)
    founders = replicas_of(old)
    others = followers_of(cluster, old)
    cluster.partition(others)
    cluster.run(0.01)
    gone = others[0].replica_id
    future = cluster.change(old, [r for r in founders if r.replica_id != gone])
    cluster.run(0.1)
    assert len(replicas_of(old)) == 2
    new = None
    cluster.run_until(lambda: cluster.leader() not in (old, None), 5.0)
    new = cluster.wait_for_leader()
    cluster.apply(new, "another history")
    cluster.heal()
    cluster.run(2.0)
    assert replicas_of(old) == founders
    assert cluster.result(future).outcome is Outcome.NOT_APPLIED


def test_configuration_in_the_log_is_in_force_after_a_restart() -> None:
    """S3: it was known from applied entries only, which gave two leaders in one term."""
    cluster, leader = moving(12)
    for node in cluster.alive():
        node.apply_stalled = True
    cluster.change(leader, [*replicas_of(leader), voter("n3@1", votes=False)])
    cluster.run(0.3)
    node = followers_of(cluster, leader)[0]
    assert not any(e.kind == "configuration" for e in node.disk.state[1])
    cluster.crash(node, power=False)
    cluster.restart(node)
    assert [r.replica_id for r in replicas_of(node)][-1] == "n3@1"


def test_transport_is_told_whom_to_connect_to() -> None:
    cluster, leader = moving(13)
    assert leader.known == {r.replica_id for r in replicas_of(leader)} - {leader.replica_id}
    add_learner(cluster, leader, "n3@1")
    assert "n3@1" in leader.known
