"""The configuration in force: the newest in the log, gone again when the log is cut."""

from __future__ import annotations

import pytest
from support.raft_cluster import voter

from quorepo.cluster.raft.configuration import ConfigurationHistory, describe_change, voters_of
from quorepo.internal.v1 import log_pb2


def configuration(*voters: str, learners: tuple[str, ...] = ()) -> log_pb2.Configuration:
    replicas = [voter(name) for name in voters]
    return log_pb2.Configuration(replicas=[*replicas, *(voter(n, votes=False) for n in learners)])


def test_newest_entry_is_in_force_at_once() -> None:
    history = ConfigurationHistory(0, configuration("a", "b", "c"))
    history.append(5, configuration("a", "b"))
    assert voters_of(history.current) == {"a", "b"}
    assert history.current_index == 5


def test_cut_log_takes_its_configurations_back() -> None:
    history = ConfigurationHistory(3, configuration("a"))
    history.append(5, configuration("a", "b"))
    history.append(7, configuration("a", "b", "c"))
    assert not history.truncate_from(8)
    assert history.truncate_from(7)
    assert voters_of(history.current) == {"a", "b"}
    assert history.truncate_from(4)
    assert voters_of(history.current) == {"a"}
    assert not history.truncate_from(4)


def test_committed_configuration_is_never_taken_back() -> None:
    history = ConfigurationHistory(0, configuration("a"))
    history.append(5, configuration("a", "b"))
    history.commit(6)
    assert not history.truncate_from(1)
    assert voters_of(history.current) == {"a", "b"}


@pytest.mark.parametrize(
    ("proposed", "why"),
    [
        (configuration("a", "b", "c", learners=("d",)), ""),
        (configuration("a", "b"), ""),
        (configuration("a", "b", learners=("c",)), ""),
        (configuration("a", "b", "c"), "differs in 0"),
        (configuration("a"), "differs in 2"),
        (configuration("a", "b", "d"), "differs in 2"),
        (configuration("a", "b", "c", "d"), "learner"),
        (configuration("b", "c"), "transfer the leadership first"),
        (configuration("b", "c", learners=("a",)), "transfer the leadership first"),
        (configuration("a", "b", "c", "c"), "unique"),
        (configuration("a", "b", "c", learners=("",)), "not empty"),
    ],
)
def test_which_changes_a_leader_may_append(proposed: log_pb2.Configuration, why: str) -> None:
    found = describe_change(configuration("a", "b", "c"), proposed, "a")
    assert (why in found) if why else not found
