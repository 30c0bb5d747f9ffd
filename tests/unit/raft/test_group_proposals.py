"""What a proposer is told, and that it is always told something."""

from __future__ import annotations

import pytest
from support.raft_cluster import Cluster, Node

from quorepo.cluster.raft.interface import Outcome, RaftConfig


def followers_of(cluster: Cluster, leader: Node) -> list[Node]:
    return [node for node in cluster.alive() if node is not leader]


def test_proposal_on_any_replica_is_applied_there_before_it_is_answered() -> None:
    cluster = Cluster(1)
    cluster.wait_for_leader()
    for node in cluster.alive():
        verdict = cluster.apply(node, f"from {node}")
        assert verdict.outcome is Outcome.APPLIED
        assert verdict.result == f"result of {f'from {node}'.encode()!r}"
        assert len(node.disk.state[1]) >= verdict.index


def test_leader_stamps_its_clock() -> None:
    cluster = Cluster(2)
    leader = cluster.wait_for_leader()
    follower = followers_of(cluster, leader)[0]
    before_ms = int(cluster.now * 1000)
    index = cluster.apply(follower, "when").index
    times = {entry.index: entry.time_ms for entry in follower.disk.state[1]}
    assert before_ms <= times[index] <= int(cluster.now * 1000)
    assert times[1] == 0
    assert times[2] > 0


def test_without_a_leader_nothing_is_applied() -> None:
    cluster = Cluster(3)
    cluster.run(0.1)
    verdict = cluster.apply(cluster.nodes["n0@1"], "too early")
    assert (verdict.outcome, verdict.reason) == (Outcome.NOT_APPLIED, "no-leader")


def test_follower_without_connection_to_the_leader_refuses() -> None:
    cluster = Cluster(4)
    leader = cluster.wait_for_leader()
    lonely = followers_of(cluster, leader)[0]
    cluster.partition([leader])
    cluster.run(0.01)
    verdict = cluster.apply(lonely, "nowhere to go")
    assert (verdict.outcome, verdict.reason) == (Outcome.NOT_APPLIED, "no-leader")


def test_forwarded_proposal_is_unknown_when_the_leader_dies() -> None:
    cluster = Cluster(5)
    leader = cluster.wait_for_leader()
    follower = followers_of(cluster, leader)[0]
    proposed = cluster.propose(follower, "in flight")
    cluster.run(0.0006)
    cluster.crash(leader)
    died_at = cluster.now
    cluster.run_until(lambda: proposed.verdict is not None, 5.0)
    assert proposed.verdict is not None
    assert proposed.verdict.outcome is Outcome.UNKNOWN
    assert cluster.now - died_at < 0.1


def test_entry_of_a_deposed_leader_is_certainly_not_applied_once_overtaken() -> None:
    cluster = Cluster(6)
    old = cluster.wait_for_leader()
    cluster.partition(followers_of(cluster, old))
    cluster.run(0.01)
    lost = [cluster.propose(old, f"lost{i}", timeout_s=60.0) for i in range(5)]
    cluster.run_until(lambda: cluster.leader() not in (old, None), 5.0)
    new = cluster.wait_for_leader()
    assert cluster.apply(new, "kept").outcome is Outcome.APPLIED
    cluster.heal()
    cluster.run(1.5)
    for proposed in lost:
        assert proposed.verdict is not None
        assert proposed.verdict.outcome is Outcome.NOT_APPLIED
        assert proposed.verdict.reason == "leader-changed"
    cluster.check_at_rest()


@pytest.mark.parametrize("at_leader", [True, False])
def test_every_wait_has_a_deadline(at_leader: bool) -> None:
    cluster = Cluster(7)
    leader = cluster.wait_for_leader()
    follower, other = followers_of(cluster, leader)
    leader.apply_stalled = follower.apply_stalled = other.apply_stalled = True
    proposed = cluster.propose(leader if at_leader else follower, "never applied", timeout_s=0.7)
    started_at = cluster.now
    cluster.run_until(lambda: proposed.verdict is not None, 5.0)
    assert 0.69 < cluster.now - started_at < 0.8
    assert proposed.verdict is not None
    assert (proposed.verdict.outcome, proposed.verdict.reason) == (Outcome.UNKNOWN, "timeout")


def test_too_many_waiting_proposals_are_refused() -> None:
    cluster = Cluster(8, config=RaftConfig(proposal_queue_max=10))
    leader = cluster.wait_for_leader()
    proposals = [cluster.propose(leader, f"c{i}") for i in range(15)]
    refused = [p for p in proposals if p.verdict is not None]
    assert len(refused) == 5
    for proposed in refused:
        assert proposed.verdict is not None
        assert proposed.verdict.reason == "queue-full"
    cluster.run(1.0)
    assert sum(p.verdict is not None for p in proposals) == 15
    assert cluster.apply(leader, "room again").outcome is Outcome.APPLIED


def test_waiting_bytes_are_limited() -> None:
    cluster = Cluster(8, config=RaftConfig(proposal_queue_bytes_max=1000))
    leader = cluster.wait_for_leader()
    first, second, third = (cluster.propose(leader, name * 600) for name in "abc")
    assert third.verdict is not None
    assert third.verdict.reason == "queue-full"
    cluster.run(1.0)
    for proposed in (first, second):
        assert proposed.verdict is not None
        assert proposed.verdict.outcome is Outcome.APPLIED


def test_leader_that_cannot_commit_stops_appending() -> None:
    cluster = Cluster(9, config=RaftConfig(proposal_queue_max=10))
    leader = cluster.wait_for_leader()
    cluster.partition(followers_of(cluster, leader), notice_s=60.0)
    last_index = leader.group().log.last_index
    for i in range(60):
        cluster.propose(leader, f"c{i}", timeout_s=0.01)
        cluster.run(0.02)
    assert leader.group().log.last_index <= last_index + 10


def test_too_large_command_is_refused() -> None:
    cluster = Cluster(10, config=RaftConfig(command_bytes_max=100))
    leader = cluster.wait_for_leader()
    verdict = cluster.apply(leader, "x" * 101)
    assert (verdict.outcome, verdict.reason) == (Outcome.NOT_APPLIED, "too-large")


def test_command_that_does_not_parse_is_refused_before_it_is_in_a_log() -> None:
    cluster = Cluster(11)
    leader = cluster.wait_for_leader()
    assert leader.host is not None
    future = leader.host.propose(1, b"\xff\xfe", 1.0)  # the simulated gate reads UTF-8
    cluster.poke(leader)
    verdict = cluster.result(future)
    assert (verdict.outcome, verdict.reason) == (Outcome.NOT_APPLIED, "denied")


def test_nobody_waits_for_a_host_that_stops() -> None:
    cluster = Cluster(12)
    leader = cluster.wait_for_leader()
    host = leader.host
    assert host is not None
    for other in followers_of(cluster, leader):
        cluster.crash(other)
    appended = cluster.propose(leader, "appended", timeout_s=60.0)
    cluster.run(0.1)
    queued = host.propose(1, b"queued", 60.0)
    read = host.read_index(1, 60.0)
    host.stop()
    assert appended.verdict is not None
    assert (appended.verdict.outcome, appended.verdict.reason) == (Outcome.UNKNOWN, "stopped")
    assert (queued.result().outcome, queued.result().reason) == (Outcome.NOT_APPLIED, "stopped")
    assert "stopping" in str(read.exception())
    late = host.propose(1, b"late", 60.0).result()
    assert (late.outcome, late.reason) == (Outcome.NOT_APPLIED, "stopped")
