"""Linearizable reads: on any replica, never stale, however the leader is cut off."""

from __future__ import annotations

import pytest
from support.raft_cluster import Cluster, Node

from quorepo.cluster.raft.engine import Node as RaftNode
from quorepo.cluster.raft.interface import Outcome
from quorepo.storage.errors import Unavailable


def followers_of(cluster: Cluster, leader: Node) -> list[Node]:
    return [node for node in cluster.alive() if node is not leader]


@pytest.mark.parametrize("voters", [1, 3])
def test_read_on_any_replica_sees_what_was_acknowledged(voters: int) -> None:
    cluster = Cluster(1, voters=voters)
    leader = cluster.wait_for_leader()
    for i in range(10):
        index = cluster.apply(leader, f"c{i}").index
        for node in cluster.alive():
            assert cluster.result(cluster.read(node)) >= index


def test_read_on_a_follower_waits_for_its_own_state() -> None:
    cluster = Cluster(2)
    leader = cluster.wait_for_leader()
    follower = followers_of(cluster, leader)[0]
    follower.apply_stalled = True
    index = cluster.apply(leader, "not there yet").index
    future = cluster.read(follower)
    cluster.run(0.5)
    assert not future.done()
    follower.apply_stalled = False
    follower.apply(1)
    assert cluster.result(future) >= index


@pytest.mark.parametrize("notice_s", [0.002, 60.0])
def test_leader_that_was_replaced_cannot_serve_a_stale_read(notice_s: float) -> None:
    """Also when it has not noticed yet, and believes in all its connections."""
    cluster = Cluster(3)
    old = cluster.wait_for_leader()
    others = followers_of(cluster, old)
    cluster.partition(others, notice_s=notice_s)
    reads = []
    new = None
    for _ in range(100):
        reads.append(cluster.read(old, timeout_s=1.0))
        cluster.run(0.05)
        if new is None and cluster.leader() not in (old, None):
            new = cluster.wait_for_leader()
            assert cluster.apply(new, "unknown to the old leader").outcome is Outcome.APPLIED
    assert new is not None
    cluster.run(2.0)
    answered = [future for future in reads if future.exception() is None]
    assert len(answered) < len(reads)  # Cluster.read checks that those which were are not stale
    assert isinstance(reads[-1].exception(), Unavailable)


def test_new_leader_answers_only_once_it_knows_what_is_committed() -> None:
    """Raft, section 8: its no-op has to be committed first."""
    cluster = Cluster(4)
    old = cluster.wait_for_leader()
    acknowledged = cluster.apply(old, "acknowledged").index
    cluster.crash(old)
    reads = []
    for _ in range(200):
        reads += [cluster.read(node, timeout_s=5.0) for node in cluster.alive()]
        cluster.run(0.005)
    for future in reads:
        assert cluster.result(future) >= acknowledged


def test_read_waits_through_an_election() -> None:
    cluster = Cluster(5)
    leader = cluster.wait_for_leader()
    reader = followers_of(cluster, leader)[0]
    cluster.crash(leader)
    cluster.run(0.003)
    future = cluster.read(reader, timeout_s=5.0)
    cluster.wait_for_leader()
    assert cluster.result(future, 1.0) > 0


def test_read_without_a_majority_ends_with_its_deadline() -> None:
    cluster = Cluster(6)
    leader = cluster.wait_for_leader()
    for node in followers_of(cluster, leader):
        cluster.crash(node)
    future = cluster.read(leader, timeout_s=0.5)
    cluster.run(0.6)
    assert isinstance(future.exception(), Unavailable)


def test_reads_that_wait_share_one_round() -> None:
    cluster = Cluster(7)
    leader = cluster.wait_for_leader()
    follower = followers_of(cluster, leader)[0]
    cluster.run(0.02)
    before = cluster.messages
    reads = [cluster.read(follower) for _ in range(200)]
    for future in reads:
        cluster.result(future)
    assert cluster.messages - before < 40


def test_lost_questions_are_asked_again() -> None:
    cluster = Cluster(8)
    leader = cluster.wait_for_leader()
    follower, other = followers_of(cluster, leader)
    cluster.disconnect(leader, other, notice_s=0.05)
    cluster.disconnect(leader, follower, notice_s=0.05)
    reads = [cluster.read(node, timeout_s=5.0) for node in (leader, follower)]
    for future in reads:
        assert cluster.result(future) > 0


def test_answer_to_an_older_round_confirms_no_newer_one() -> None:
    """Of five voters: what one said before a read began must not count for that read."""
    cluster = Cluster(31, voters=5)
    leader = cluster.wait_for_leader()
    others = [RaftNode(node.replica_id) for node in followers_of(cluster, leader)]
    cluster.partition([leader])
    raft, rounds = leader.group(), []
    for _ in range(2):
        cluster.read(leader)
        cluster.run(0.05)
        rounds.append(max(raft._rounds))
    older, newer = rounds
    assert older < newer
    for node, number in ((others[0], older), (others[1], newer)):
        raft._on_leadership_pong(node, {"term": raft.current_term, "round": number})
    assert list(raft._rounds) == [newer]  # the older one was confirmed by three, this one by two
    raft._on_leadership_pong(others[2], {"term": raft.current_term, "round": newer})
    assert not raft._rounds


def test_of_three_voters_a_question_needs_no_other_voter() -> None:
    cluster = Cluster(32)
    leader = cluster.wait_for_leader()
    follower, other = followers_of(cluster, leader)
    index = cluster.apply(leader, "acknowledged").index
    cluster.crash(other)
    raft = leader.group()
    asked = raft._last_round
    assert cluster.result(cluster.read(follower)) >= index
    assert raft._last_round == asked + 1
    assert not raft._rounds


def test_a_question_confirms_only_the_reads_that_it_was_sent_for() -> None:
    """Another replica's reads, and the leader's own, may have begun after it was sent."""
    cluster = Cluster(33)
    leader = cluster.wait_for_leader()
    follower, other = (RaftNode(node.replica_id) for node in followers_of(cluster, leader))
    cluster.apply(leader, "acknowledged")
    cluster.partition([leader], notice_s=60.0)  # it believes in its connections
    raft, term = leader.group(), leader.group().current_term
    own = cluster.read(leader, timeout_s=60.0)
    cluster.run(0.01)
    raft._on_read_index_request(follower, {"read_id": 1, "term": term})
    raft._on_read_index_request(other, {"read_id": 2, "term": term - 1})  # says nothing of now
    raft.advance_reads()
    waiting = [question for round_ in raft._rounds.values() for question in round_.questions]
    assert [(q.node, q.read_id) for q in waiting] == [(None, 0), (other, 2)]  # and no `follower`
    assert not own.done()


def test_of_five_voters_a_question_counts_as_one() -> None:
    cluster = Cluster(34, voters=5)
    leader = cluster.wait_for_leader()
    asker, other, *_ = (RaftNode(node.replica_id) for node in followers_of(cluster, leader))
    cluster.partition([leader], notice_s=60.0)
    raft, term = leader.group(), leader.group().current_term
    raft._on_read_index_request(asker, {"read_id": 1, "term": term})
    raft.advance_reads()
    (number,) = raft._rounds
    raft._on_leadership_pong(asker, {"term": term, "round": number})  # the same voter
    assert number in raft._rounds
    raft._on_leadership_pong(other, {"term": term, "round": number})
    assert number not in raft._rounds
