"""The log: what is acknowledged stays, what contradicts goes, and a follower always catches up."""

from __future__ import annotations

import pytest
from support.raft_cluster import Cluster, Node

from quorepo.cluster.raft.interface import Outcome, RaftConfig
from quorepo.internal.v1 import peer_pb2
from quorepo.storage.errors import FatalError


def followers_of(cluster: Cluster, leader: Node) -> list[Node]:
    return [node for node in cluster.alive() if node is not leader]


def append_from(
    term: int, prev: tuple[int, int], entries: list[tuple[int, int, bytes]], commit: int = 0
) -> peer_pb2.GroupMessage:
    """An append with `entries` (index, term, payload of a command)."""
    message = peer_pb2.GroupMessage(group=1, term=term)
    message.append_entries.commit_index = commit
    message.append_entries.prev_log_index, message.append_entries.prev_log_term = prev
    for index, entry_term, payload in entries:
        data = b"\x00" + bytes(8) + payload
        message.append_entries.entries.add(index=index, term=entry_term, data=data)
    return message


def lone_follower() -> Node:
    """A node whose peers are silent: the test is their voice."""
    cluster = Cluster(0)
    cluster.majority_is_founders = False
    node = cluster.nodes["n0@1"]
    for other in followers_of(cluster, node):
        cluster.crash(other)
    cluster.run(0.3)
    return node


def tell(node: Node, message: peer_pb2.GroupMessage, sender: str = "n1@1") -> None:
    assert node.host is not None
    node.host.deliver(sender, [message])
    node.host.step()


def log_of(node: Node) -> list[tuple[int, bytes]]:
    return [(term, data[9:]) for data, _, term in node.journal.log(1)]


def test_append_that_arrives_late_removes_nothing() -> None:
    """S1: everything behind prev was deleted, even what had been acknowledged."""
    node = lone_follower()
    old = append_from(1, (1, 0), [(2, 1, b"a")])
    tell(node, append_from(1, (1, 0), [(2, 1, b"a"), (3, 1, b"b"), (4, 1, b"c")]))
    tell(node, old)
    tell(node, append_from(1, (2, 1), []))
    assert log_of(node) == [(0, b""), (1, b"a"), (1, b"b"), (1, b"c")]


def test_only_what_contradicts_the_leader_is_removed() -> None:
    node = lone_follower()
    tell(node, append_from(1, (1, 0), [(2, 1, b"a"), (3, 1, b"b"), (4, 1, b"c")]))
    tell(node, append_from(2, (2, 1), [(3, 2, b"B")]), sender="n2@1")
    assert log_of(node) == [(0, b""), (1, b"a"), (2, b"B")]


def test_commit_index_never_covers_what_was_not_compared() -> None:
    """S2: the leader's commit index says nothing of entries behind its append."""
    node = lone_follower()
    tell(node, append_from(1, (1, 0), [(2, 1, b"a"), (3, 1, b"b"), (4, 1, b"c")]))
    tell(node, append_from(2, (2, 1), [], commit=4), sender="n2@1")
    assert node.group().commit_index == 2


def test_committed_entry_is_never_removed() -> None:
    node = lone_follower()
    tell(node, append_from(1, (1, 0), [(2, 1, b"a"), (3, 1, b"b")], commit=3))
    with pytest.raises(FatalError, match="committed"):
        tell(node, append_from(2, (1, 0), [(2, 2, b"A"), (3, 2, b"B")]), sender="n2@1")
    assert log_of(node) == [(0, b""), (1, b"a"), (1, b"b")]


def test_append_of_an_older_term_changes_nothing() -> None:
    node = lone_follower()
    tell(node, append_from(3, (1, 0), [(2, 3, b"new")]), sender="n2@1")
    tell(node, append_from(2, (1, 0), [(2, 2, b"old")], commit=2))
    assert log_of(node) == [(0, b""), (3, b"new")]
    assert node.group().commit_index == 1


def test_acknowledgement_of_an_old_term_is_not_counted() -> None:
    """S6: an answer that carried no term was counted by whoever led then."""
    cluster = Cluster(1)
    leader = cluster.wait_for_leader()
    cluster.partition([leader])
    cluster.run(0.01)
    cluster.propose(leader, "not on a majority")
    cluster.run(0.1)
    index = leader.group().log.last_index
    stale = peer_pb2.GroupMessage(group=1, term=leader.group().current_term - 1)
    stale.append_reply.success = True
    stale.append_reply.next_index = index + 1
    assert leader.host is not None
    for follower in followers_of(cluster, leader):
        leader.host.deliver(follower.replica_id, [stale])
    leader.host.step()
    assert leader.group().commit_index < index


def test_acknowledgements_of_strangers_and_learners_are_not_counted() -> None:
    cluster = Cluster(1)
    leader = cluster.wait_for_leader()
    cluster.partition([leader])
    cluster.run(0.01)
    cluster.propose(leader, "not on a majority")
    cluster.run(0.1)
    index = leader.group().log.last_index
    answer = peer_pb2.GroupMessage(group=1, term=leader.group().current_term)
    answer.append_reply.success = True
    answer.append_reply.next_index = index + 1
    assert leader.host is not None
    for stranger in ("n7@1", "n8@1"):
        leader.host.deliver(stranger, [answer])
    leader.host.step()
    assert leader.group().commit_index < index


def test_acknowledged_write_survives_a_power_cut_of_all_nodes() -> None:
    cluster = Cluster(2)
    leader = cluster.wait_for_leader()
    for i in range(20):
        assert cluster.apply(leader, f"c{i}").outcome is Outcome.APPLIED
    for node in list(cluster.nodes.values()):
        cluster.crash(node)
    for node in cluster.nodes.values():
        cluster.restart(node)
    cluster.wait_for_leader()
    cluster.run(2.0)
    cluster.check_at_rest()


def test_write_is_acknowledged_with_one_of_three_nodes_down() -> None:
    cluster = Cluster(3)
    leader = cluster.wait_for_leader()
    cluster.crash(followers_of(cluster, leader)[0])
    assert cluster.apply(leader, "two are enough").outcome is Outcome.APPLIED


def test_nothing_is_acknowledged_without_a_majority() -> None:
    cluster = Cluster(4)
    leader = cluster.wait_for_leader()
    for node in followers_of(cluster, leader):
        cluster.crash(node)
    verdict = cluster.apply(leader, "one is not", timeout_s=1.0)
    assert (verdict.outcome, verdict.reason) == (Outcome.UNKNOWN, "timeout")


@pytest.mark.parametrize("batch_bytes", [1, 100, 262_144])
@pytest.mark.parametrize("delay_s", [(0.0001, 0.001), (0.08, 0.15)])
def test_follower_with_a_contradicting_log_catches_up(
    batch_bytes: int, delay_s: tuple[float, float]
) -> None:
    """S4: with round trips above the heartbeat period, probing and answers ran past each other."""
    config = RaftConfig(append_batch_bytes_max=batch_bytes, append_inflight_max=4)
    cluster = Cluster(5, config=config, delay_s=delay_s)
    old = cluster.wait_for_leader()
    cluster.partition(followers_of(cluster, old))
    for i in range(30):
        cluster.propose(old, f"lost{i}")
    new = cluster.wait_for_leader()
    cluster.run_until(lambda: cluster.leader() is not old, 5.0)
    new = cluster.wait_for_leader()
    for i in range(60):
        cluster.propose(new, f"kept{i}")
    cluster.run(8.0)
    cluster.heal()
    cluster.run_until(
        lambda: len(old.disk.state[1]) >= len(new.disk.state[1]) > 60, 60 if batch_bytes < 9 else 10
    )
    cluster.run(6.0)
    cluster.check_at_rest()


def test_large_entries_go_alone() -> None:
    cluster = Cluster(6, config=RaftConfig(append_batch_bytes_max=1000))
    leader = cluster.wait_for_leader()
    assert cluster.apply(leader, "x" * 100_000).outcome is Outcome.APPLIED


def test_apply_that_stands_still_holds_back_only_itself() -> None:
    cluster = Cluster(7, config=RaftConfig(apply_backlog_max=5))
    leader = cluster.wait_for_leader()
    slow = followers_of(cluster, leader)[0]
    slow.apply_stalled = True
    for i in range(50):
        assert cluster.apply(leader, f"c{i}").outcome is Outcome.APPLIED
    assert len(slow.queues[1]) <= 5
    slow.apply_stalled = False
    slow.apply(1)
    cluster.run(1.0)
    cluster.check_at_rest()


def test_state_ahead_of_the_journal_is_refused() -> None:
    cluster = Cluster(8)
    leader = cluster.wait_for_leader()
    cluster.apply(leader, "a")
    cluster.crash(leader, power=False)
    del leader.disk.entries[1][2:]
    with pytest.raises(FatalError, match="the journal lost what it had synced"):
        cluster.restart(leader)


def test_state_of_another_node_is_refused() -> None:
    cluster = Cluster(9)
    leader = cluster.wait_for_leader()
    cluster.apply(leader, "a")
    cluster.crash(leader, power=False)
    data, index, term = leader.disk.entries[1].pop()
    leader.disk.entries[1].append((data, index, term + 1))
    leader.disk.votes[1] = (term + 1, None)
    with pytest.raises(FatalError, match="not of one node"):
        cluster.restart(leader)


def test_entries_of_unknown_type_are_never_taken() -> None:
    """X2: pysyncobj unpickles its types 2 and 3."""
    node = lone_follower()
    for kind in (3, 4, 255):
        message = peer_pb2.GroupMessage(group=1, term=1)
        message.append_entries.prev_log_index = 1
        data = bytes([kind]) + bytes(8) + b"cos\nsystem\n"
        message.append_entries.entries.add(index=2, term=1, data=data)
        tell(node, message)
    assert log_of(node) == [(0, b"")]


def test_two_groups_share_a_node_and_nothing_else() -> None:
    cluster = Cluster(10, groups=(0, 1))
    first, second = cluster.wait_for_leader(0), cluster.wait_for_leader(1)
    assert cluster.apply(first, "in zero", group=0).outcome is Outcome.APPLIED
    assert cluster.apply(second, "in one", group=1).outcome is Outcome.APPLIED
    cluster.run(1.0)
    for group, name in ((0, b"in zero"), (1, b"in one")):
        cluster.check_at_rest(group)
        commands = [e.data for e in first.disk.state[group] if e.kind == "command"]
        assert commands == [name]


def test_leader_does_not_count_itself_for_what_it_has_not_synced() -> None:
    """Its followers may be faster than its own disk."""
    cluster = Cluster(11)
    leader = cluster.wait_for_leader()
    cluster.run(0.2)
    leader.journal.sync = lambda: None  # type: ignore[method-assign]
    index = leader.group().log.last_index
    cluster.propose(leader, "on the followers' disks only")
    cluster.run(0.1)
    for follower in followers_of(cluster, leader):
        assert len(follower.disk.entries[1]) == index + 1
    assert leader.group().commit_index == index
    del leader.journal.sync
    cluster.run(0.2)
    assert leader.group().commit_index == index + 1
