"""Who leads, how soon another does, and that a replica which must not lead never tries."""

from __future__ import annotations

import pytest
from support.raft_cluster import Cluster, Node, voter

from quorepo.cluster.raft.interface import Outcome
from quorepo.internal.v1 import peer_pb2
from quorepo.storage.errors import FatalError


def followers_of(cluster: Cluster, leader: Node) -> list[Node]:
    return [node for node in cluster.alive() if node is not leader]


def terms(cluster: Cluster) -> list[int]:
    return [node.group().current_term for node in cluster.alive()]


@pytest.mark.parametrize("voters", [1, 2, 3, 5])
def test_one_leader_is_elected(voters: int) -> None:
    cluster = Cluster(voters, voters=voters)
    leader = cluster.wait_for_leader(seconds=3.0)
    cluster.run(3.0)
    assert cluster.leader() is leader
    assert len({node.group().current_term for node in cluster.alive()}) == 1
    assert all(node.group().leader == leader.group().me for node in cluster.alive())


@pytest.mark.parametrize("seed", range(20))
def test_killed_leader_is_replaced_well_within_a_second(seed: int) -> None:
    cluster = Cluster(seed)
    leader = cluster.wait_for_leader()
    cluster.run(1.0)
    cluster.crash(leader)
    killed_at = cluster.now
    cluster.wait_for_leader(seconds=3.0)
    assert cluster.now - killed_at < 0.8


def test_silent_leader_is_replaced_by_timeout() -> None:
    """Its connections stay up, as with a machine that lost its power behind a switch."""
    cluster = Cluster(1)
    leader = cluster.wait_for_leader()
    leader.frozen_until = cluster.now + 60
    cluster.run(0.4)
    assert cluster.leader() is leader
    cluster.run_until(lambda: cluster.leader() is not leader, 3.0)


def test_replica_that_was_cut_off_does_not_disturb_the_leader() -> None:
    cluster = Cluster(2)
    leader = cluster.wait_for_leader()
    lonely, other = followers_of(cluster, leader)
    term = leader.group().current_term
    cluster.partition([leader, other], [lonely])
    cluster.run(10.0)
    cluster.heal()
    cluster.run(3.0)
    assert cluster.leader() is leader
    assert terms(cluster) == [term] * 3


def test_follower_that_alone_lost_the_leader_is_not_elected() -> None:
    """The other follower still hears the leader, so it sticks to it."""
    cluster = Cluster(3)
    leader = cluster.wait_for_leader()
    lonely, _ = followers_of(cluster, leader)
    cluster.blocked.add(frozenset((leader.replica_id, lonely.replica_id)))
    cluster.disconnect(leader, lonely)
    term = leader.group().current_term
    cluster.run(5.0)
    assert cluster.leader() is leader
    assert terms(cluster) == [term] * 3


def test_leader_without_majority_steps_down_in_time() -> None:
    cluster = Cluster(4)
    leader = cluster.wait_for_leader()
    cluster.partition([leader], followers_of(cluster, leader), notice_s=60.0)
    cluster.run(cluster.config.leader_fallback_timeout_s + 0.2)
    assert not leader.group().is_leader
    assert leader.group().role() == "follower"


def test_replica_without_the_newest_entries_is_not_elected() -> None:
    cluster = Cluster(5)
    leader = cluster.wait_for_leader()
    behind, uptodate = followers_of(cluster, leader)
    cluster.partition([leader, uptodate])
    assert cluster.apply(leader, "only on two").outcome is Outcome.APPLIED
    cluster.partition([behind, uptodate])
    cluster.crash(leader)
    assert cluster.wait_for_leader(seconds=5.0) is uptodate


def test_vote_is_kept_over_a_restart() -> None:
    cluster = Cluster(6)
    cluster.wait_for_leader()
    node = cluster.nodes["n1@1"]
    term, voted_for = node.disk.votes[1]
    assert voted_for is not None
    cluster.crash(node)
    cluster.restart(node)
    cluster.run(0.001)
    ask = peer_pb2.GroupMessage(group=1, term=term)
    ask.request_vote.last_log_index = 1000
    ask.request_vote.last_log_term = term
    assert node.host is not None
    node.host.deliver("stranger@1", [ask])
    cluster.run(0.01)
    assert node.disk.votes[1] == (term, voted_for)


def test_second_leader_in_one_term_ends_the_process() -> None:
    cluster = Cluster(7)
    leader = cluster.wait_for_leader()
    lie = peer_pb2.GroupMessage(group=1, term=leader.group().current_term)
    lie.append_entries.prev_log_index = 1
    assert leader.host is not None
    leader.host.deliver("n9@1", [lie])
    with pytest.raises(FatalError, match="two leaders in term"):
        leader.host.step()


@pytest.mark.parametrize("seed", range(5))
def test_leadership_is_handed_over_under_load(seed: int) -> None:
    cluster = Cluster(seed)
    leader = cluster.wait_for_leader()
    target = followers_of(cluster, leader)[0]
    for i in range(50):
        cluster.propose(leader, f"load{i}")
    assert leader.host is not None
    future = leader.host.transfer_leadership(1, target.replica_id)
    cluster.poke(leader)
    started_at = cluster.now
    assert cluster.result(future) is True
    assert cluster.now - started_at < 0.5
    assert cluster.wait_for_leader() is target
    cluster.run(6.0)
    cluster.check_at_rest()


def test_leadership_cannot_be_handed_to_a_replica_that_is_away() -> None:
    cluster = Cluster(8)
    leader = cluster.wait_for_leader()
    away = followers_of(cluster, leader)[0]
    cluster.crash(away)
    cluster.run(0.1)
    assert leader.host is not None
    future = leader.host.transfer_leadership(1, away.replica_id)
    cluster.poke(leader)
    assert cluster.result(future) is False
    assert cluster.apply(leader, "goes on").outcome is Outcome.APPLIED


def test_transfer_that_fails_lets_the_leader_go_on() -> None:
    cluster = Cluster(9)
    leader = cluster.wait_for_leader()
    target = followers_of(cluster, leader)[0]
    target.frozen_until = cluster.now + 3.0
    cluster.propose(leader, "the target lacks this")
    assert leader.host is not None
    future = leader.host.transfer_leadership(1, target.replica_id)
    cluster.poke(leader)
    cluster.run(0.05)
    refused = cluster.apply(leader, "while leaving")
    assert (refused.outcome, refused.reason) == (Outcome.NOT_APPLIED, "leader-leaving")
    assert cluster.result(future) is False
    assert cluster.apply(leader, "afterwards").outcome is Outcome.APPLIED


def test_demoted_replica_never_campaigns() -> None:
    cluster = Cluster(10)
    leader = cluster.wait_for_leader()
    learner = followers_of(cluster, leader)[0]
    demoted = [
        voter(replica.replica_id, votes=replica.replica_id != learner.replica_id)
        for replica in cluster.founding.replicas
    ]
    assert cluster.result(cluster.change(leader, demoted)).outcome is Outcome.APPLIED
    cluster.run(0.5)
    for node in cluster.alive():
        if node is not learner:
            cluster.crash(node)
    term = learner.group().current_term
    cluster.run(10.0)
    assert learner.group().current_term == term
    assert learner.group().role() == "learner"


def lone_candidate() -> Node:
    """One of five, without peers that answer, in the middle of its election."""
    cluster = Cluster(11, voters=5)
    node = cluster.nodes["n0@1"]
    for other in followers_of(cluster, node):
        other.frozen_until = cluster.now + 60
    cluster.run(0.2)
    assert node.host is not None
    for term in range(2):  # a second election, so that there is an older term
        cluster.run_until(lambda: node.group()._pre_votes is not None, 5.0)
        granted = peer_pb2.GroupMessage(group=1, term=term)
        granted.pre_vote_granted.SetInParent()
        for voter_id in ("n1@1", "n2@1"):
            node.host.deliver(voter_id, [granted])
        cluster.poke(node)
        cluster.run(0.01)
    assert node.group().role() == "candidate"
    assert node.group().current_term == 2
    return node


def vote_from(node: Node, voter_id: str, term: int = 2) -> None:
    vote = peer_pb2.GroupMessage(group=1, term=term)
    vote.vote_granted.SetInParent()
    assert node.host is not None
    node.host.deliver(voter_id, [vote])
    node.host.step()


def test_votes_are_counted_by_voter() -> None:
    node = lone_candidate()
    for _ in range(3):
        vote_from(node, "n1@1")
    assert node.group().role() == "candidate"
    vote_from(node, "n2@1")
    assert node.group().role() == "leader"


def test_votes_of_an_older_term_are_not_counted() -> None:
    node = lone_candidate()
    for voter_id in ("n1@1", "n2@1", "n3@1"):
        vote_from(node, voter_id, term=1)
    assert node.group().role() == "candidate"


def test_votes_of_strangers_are_not_counted() -> None:
    node = lone_candidate()
    for voter_id in ("n6@1", "n7@1", "n8@1"):
        vote_from(node, voter_id)
    assert node.group().role() == "candidate"


@pytest.mark.parametrize("voters", [2, 4])
def test_half_of_the_voters_elect_nobody(voters: int) -> None:
    cluster = Cluster(12, voters=voters)
    nodes = list(cluster.nodes.values())
    cluster.partition(nodes[: voters // 2], nodes[voters // 2 :])
    cluster.run(5.0)
    assert not cluster.leaders
    assert terms(cluster) == [0] * voters
