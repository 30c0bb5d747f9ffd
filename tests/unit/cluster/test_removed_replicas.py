"""A replica that was removed is on record for ever: it is not heard, and never taken in again."""

from __future__ import annotations

from concurrent.futures import Future
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from quorepo.cluster.formation import remove_node, voter
from quorepo.cluster.levels import Levels
from quorepo.cluster.membership import Membership
from quorepo.cluster.metrics import ClusterMetrics
from quorepo.cluster.peer.roster import Roster, node_of_replica
from quorepo.cluster.raft.configuration import describe_change
from quorepo.cluster.raft.interface import GroupStatus, Outcome, Proposal
from quorepo.internal.v1 import log_pb2, peer_pb2

LEADER = "n1@a"


def configuration(*replica_ids: str, removed: tuple[str, ...] = ()) -> log_pb2.Configuration:
    replicas = [voter(node_of_replica(r), r, f"{r}:1") for r in replica_ids]
    return log_pb2.Configuration(replicas=replicas, removed_replica_ids=removed)


def test_removal_is_recorded_in_the_configuration_itself() -> None:
    before = configuration(LEADER, "n2@b", removed=("n3@c",))
    after = remove_node(before, "n2", keep="n2@new")
    assert after == configuration(LEADER, removed=("n3@c", "n2@b"))
    assert remove_node(after, "n2", keep="n2@new") is None


@pytest.mark.parametrize(
    ("proposed", "words"),
    [
        (configuration(LEADER, "n2@b", removed=("n2@b",)), "its id is never used again"),
        (configuration(LEADER, "n3@c", removed=()), "must not shrink"),
        (configuration(LEADER, "n3@c", removed=("n4@d",)), "must not shrink"),
    ],
)
def test_leader_denies_to_forget_a_removal(proposed: log_pb2.Configuration, words: str) -> None:
    for replica in proposed.replicas[1:]:
        replica.votes = False
    assert words in describe_change(configuration(LEADER, removed=("n2@b",)), proposed, LEADER)


class LeadingHost:
    """Leads group 1 and takes every configuration."""

    def __init__(self, current: log_pb2.Configuration) -> None:
        self.history = [current]

    def status(self, group: int) -> GroupStatus:
        return GroupStatus(group, "leader", LEADER, 1, 1, 1, 1, self.history[-1], ())

    def change_configuration(
        self, group: int, proposed: log_pb2.Configuration, timeout_s: float
    ) -> Future[Proposal]:
        assert describe_change(self.history[-1], proposed, LEADER) == ""
        self.history.append(proposed)
        future: Future[Proposal] = Future()
        future.set_result(Proposal(Outcome.APPLIED))
        return future


def membership(host: LeadingHost) -> Membership:
    any_host: Any = host
    unused: Any = None
    metrics = ClusterMetrics(CollectorRegistry())
    return Membership(
        any_host, [1], LEADER, members=unused, driver=unused, metrics=metrics, levels=Levels()
    )


def rejoin_as(replica_id: str) -> peer_pb2.RejoinRequest:
    return peer_pb2.RejoinRequest(node="n2", replica_id=replica_id, peer_address="n2:1")


async def test_emptied_disk_comes_back_and_leaves_a_record() -> None:
    host = LeadingHost(configuration(LEADER, "n2@b", "n3@c"))
    assert (await membership(host).rejoin(rejoin_as("n2@new"))).accepted
    last = host.history[-1]
    assert [r.replica_id for r in last.replicas] == [LEADER, "n3@c", "n2@new"]
    assert list(last.removed_replica_ids) == ["n2@b"]
    assert len(host.history) == 3


async def test_old_request_to_rejoin_does_not_push_out_the_new_replica() -> None:
    """It may arrive late, or come from an old disk that turned up again."""
    host = LeadingHost(configuration(LEADER, "n3@c", "n2@new", removed=("n2@b",)))
    answer = await membership(host).rejoin(rejoin_as("n2@b"))
    assert not answer.accepted
    assert "was removed for good" in answer.reason
    assert len(host.history) == 1


def roster(*configurations: log_pb2.Configuration) -> Roster:
    return Roster(lambda: configurations)


def test_everyone_is_heard_but_who_was_removed() -> None:
    known = roster(configuration(LEADER, "n2@new", removed=("n2@b", "n3@c")))
    for heard in (LEADER, "n2@new", "n2@newer", "n3@d", "n9@x"):
        assert known.replica_problem(heard) == ""
    for refused in ("n2@b", "n3@c"):
        assert f"replica {refused!r} was removed" in known.replica_problem(refused)


def test_a_node_is_removed_when_no_replica_of_it_is_left() -> None:
    known = roster(configuration(LEADER, "n2@new", removed=("n2@b", "n3@c")))
    assert known.node_problem("n2") == ""
    assert known.node_problem("n9") == ""  # a newcomer that this node has not heard of
    assert "node 'n3' was removed" in known.node_problem("n3")


def test_a_replica_is_heard_as_long_as_one_group_has_it() -> None:
    known = roster(configuration(LEADER, removed=("n2@b",)), configuration(LEADER, "n2@b"))
    assert known.replica_problem("n2@b") == ""
    assert known.node_problem("n2") == ""
