"""Whoever has the log has the packs: the gate in front of every log (architecture, invariant 2)."""

from __future__ import annotations

from support.raft_cluster import Cluster, Command, Node

from quorepo.cluster.raft.interface import Outcome
from quorepo.internal.v1 import peer_pb2


def followers_of(cluster: Cluster, leader: Node) -> list[Node]:
    return [node for node in cluster.alive() if node is not leader]


def test_leader_without_the_packs_refuses() -> None:
    cluster = Cluster(1)
    leader = cluster.wait_for_leader()
    follower = followers_of(cluster, leader)[0]
    follower.disk.packs.add(b"p")
    for node in (leader, follower):
        verdict = cluster.apply(node, Command(f"at {node}", (b"p",)))
        assert (verdict.outcome, verdict.reason) == (Outcome.NOT_APPLIED, "packs-missing")
    assert not any(entry.kind == "command" for entry in cluster.committed.values())


def test_follower_fetches_what_it_misses_and_takes_the_entry_then() -> None:
    cluster = Cluster(2)
    leader = cluster.wait_for_leader()
    leader.disk.packs.add(b"p")
    proposed = cluster.propose(leader, Command("with pack", (b"p",)))
    after = cluster.propose(leader, "behind it")
    cluster.run(1.0)
    for done in (proposed, after):
        assert done.verdict is not None
        assert done.verdict.outcome is Outcome.APPLIED
    assert all(b"p" in node.disk.packs for node in cluster.alive())
    cluster.check_at_rest()


def test_nothing_is_committed_that_a_majority_has_no_packs_for() -> None:
    cluster = Cluster(3)
    cluster.pack_fetch_fails = 1.0
    leader = cluster.wait_for_leader()
    leader.disk.packs.add(b"p")
    commit_index = leader.group().commit_index
    verdict = cluster.apply(leader, Command("with pack", (b"p",)), timeout_s=3.0)
    assert (verdict.outcome, verdict.reason) == (Outcome.UNKNOWN, "timeout")
    assert leader.group().commit_index == commit_index
    # The log is held back, but heartbeats are not: nobody asks for an election.
    assert cluster.leader() is leader


def test_fetch_that_failed_is_started_again() -> None:
    cluster = Cluster(4)
    cluster.pack_fetch_fails = 1.0
    leader = cluster.wait_for_leader()
    leader.disk.packs.add(b"p")
    proposed = cluster.propose(leader, Command("with pack", (b"p",)), timeout_s=30.0)
    cluster.run(5.0)
    cluster.pack_fetch_fails = 0.0
    cluster.run_until(lambda: proposed.verdict is not None, 2.0)
    assert proposed.verdict is not None
    assert proposed.verdict.outcome is Outcome.APPLIED


def test_pack_that_comes_another_way_is_noticed() -> None:
    """Staged by a push, without `packs_arrived`: looked for again all the time."""
    cluster = Cluster(5)
    cluster.pack_fetch_fails = 1.0
    leader = cluster.wait_for_leader()
    leader.disk.packs.add(b"p")
    proposed = cluster.propose(leader, Command("with pack", (b"p",)), timeout_s=30.0)
    cluster.run(1.0)
    for node in cluster.alive():
        node.disk.packs.add(b"p")
    cluster.run_until(lambda: proposed.verdict is not None, 1.0)


def test_leader_resends_at_once_when_the_packs_arrived() -> None:
    cluster = Cluster(6)
    leader = cluster.wait_for_leader()
    slow, other = followers_of(cluster, leader)
    leader.disk.packs.add(b"p")
    other.disk.packs.add(b"p")
    cluster.pack_fetch_fails = 1.0
    index = cluster.apply(leader, Command("with pack", (b"p",))).index
    for i in range(200):
        cluster.apply(leader, f"c{i}")
    assert slow.group().log.last_index < index
    slow.disk.packs.add(b"p")
    assert slow.host is not None
    slow.host.packs_arrived(1)
    cluster.poke(slow)
    cluster.run(0.03)
    assert slow.group().log.last_index == leader.group().log.last_index
    cluster.check_packs(slow)


def test_log_that_is_held_back_is_not_sent_again_and_again() -> None:
    cluster = Cluster(7)
    leader = cluster.wait_for_leader()
    slow, other = followers_of(cluster, leader)
    cluster.pack_fetch_fails = 1.0
    leader.disk.packs.add(b"p")
    other.disk.packs.add(b"p")
    cluster.apply(leader, Command("with pack", (b"p",)))
    cluster.apply(leader, "x" * 100_000)
    cluster.run(1.0)
    before = cluster.bytes_sent
    cluster.run(10.0)
    assert cluster.bytes_sent - before < 100_000
    assert slow.group().leader == leader.group().me


def test_packs_do_not_matter_for_what_is_in_the_log_already() -> None:
    """The gate stands in front of an append; what a restart finds in the log is through it."""
    cluster = Cluster(8)
    leader = cluster.wait_for_leader()
    for node in cluster.alive():
        node.disk.packs.add(b"p")
    assert cluster.apply(leader, Command("with pack", (b"p",))).outcome is Outcome.APPLIED
    cluster.crash(leader)
    cluster.restart(leader)
    cluster.wait_for_leader()
    cluster.run(2.0)
    cluster.check_at_rest()


def test_packs_that_arrive_in_a_later_term_acknowledge_nothing() -> None:
    """The entry was compared with the log of a leader of an older term; whoever leads now, even the
    same replica again, may have another log."""
    cluster = Cluster(9)
    cluster.pack_fetch_fails = 1.0
    leader = cluster.wait_for_leader()
    slow, other = followers_of(cluster, leader)
    leader.disk.packs.add(b"p")
    cluster.propose(leader, Command("with pack", (b"p",)), timeout_s=0.1)
    cluster.run(0.1)
    assert slow.group()._held_back is not None
    term = slow.group().current_term
    ask = peer_pb2.GroupMessage(group=1, term=term + 5)
    ask.request_vote.last_log_index = 1000
    ask.request_vote.last_log_term = term
    slow.disk.packs.add(b"p")
    assert slow.host is not None
    slow.host.deliver(other.replica_id, [ask])
    slow.host.packs_arrived(1)
    sent: list[peer_pb2.GroupMessage] = []
    slow.send = lambda to_replica, messages: sent.extend(messages)  # type: ignore[method-assign]
    slow.host.step()
    assert slow.group().current_term == term + 5
    assert not [message for message in sent if message.WhichOneof("kind") == "append_reply"]


def test_replica_that_misses_many_packs_fetches_them_side_by_side() -> None:
    cluster = Cluster(10)
    cluster.pack_fetch_fails = 1.0
    leader = cluster.wait_for_leader()
    slow, other = followers_of(cluster, leader)
    for i in range(30):
        pack = b"p%d" % i
        leader.disk.packs.add(pack)
        other.disk.packs.add(pack)
        cluster.apply(leader, Command(f"c{i}", (pack,)))
    cluster.pack_fetch_fails = 0.0
    cluster.crash(slow)
    cluster.restart(slow)
    cluster.run(2.5)  # one fetch takes up to 0.3 s
    assert slow.group().log.last_index == leader.group().log.last_index
    cluster.check_packs(slow)
