"""The core's metrics, as Prometheus reads them."""

from __future__ import annotations

import dataclasses

from prometheus_client import CollectorRegistry, generate_latest

from quorepo.cluster.metrics import ClusterMetrics
from quorepo.cluster.raft.interface import GroupStatus, ReplicaStatus
from quorepo.internal.v1 import log_pb2

STATUS = GroupStatus(
    group=1,
    role="leader",
    leader="n1@d",
    term=3,
    commit_index=90,
    last_index=100,
    applied_index=80,
    configuration=log_pb2.Configuration(),
    replicas=(
        ReplicaStatus("n1@d", "n1", True, 100, 80, True),
        ReplicaStatus("n2@d", "n2", True, 75, 70, True),
    ),
)


def text_of(metrics: ClusterMetrics) -> str:
    return generate_latest(metrics.registry).decode()


def test_group_status_is_published() -> None:
    metrics = ClusterMetrics(CollectorRegistry())
    metrics.observe_group(STATUS)
    text = text_of(metrics)
    for line in (
        'quorepo_raft_role{group="1",role="leader"} 1.0',
        'quorepo_raft_role{group="1",role="follower"} 0.0',
        'quorepo_raft_has_leader{group="1"} 1.0',
        'quorepo_raft_term{group="1"} 3.0',
        'quorepo_raft_commit_index{group="1"} 90.0',
        'quorepo_raft_applied_index{group="1"} 80.0',
        'quorepo_raft_last_index{group="1"} 100.0',
        'quorepo_raft_replica_lag_entries{group="1",replica_node="n2"} 25.0',
    ):
        assert line in text.splitlines()


def test_old_leader_forgets_the_lag_of_others() -> None:
    metrics = ClusterMetrics(CollectorRegistry())
    metrics.observe_group(STATUS)
    metrics.observe_group(dataclasses.replace(STATUS, group=0))
    metrics.observe_group(dataclasses.replace(STATUS, replicas=STATUS.replicas[:1]))
    assert 'group="1",replica_node="n2"' not in text_of(metrics)
    metrics.observe_group(dataclasses.replace(STATUS, role="follower", leader=None))
    text = text_of(metrics)
    assert 'lag_entries{group="1"' not in text
    assert 'lag_entries{group="0",replica_node="n2"} 25.0' in text
    assert 'quorepo_raft_has_leader{group="1"} 0.0' in text


def test_everything_that_is_fed_shows_up() -> None:
    metrics = ClusterMetrics(CollectorRegistry())
    metrics.proposed(1, "applied", 0.003)
    metrics.applied(1, 5, 0.001)
    metrics.journal_synced(0.002)
    metrics.failed("UNAVAILABLE")
    metrics.peer("n2").bytes_sent.inc(10)
    text = text_of(metrics)
    for line in (
        'quorepo_proposals_total{group="1",outcome="applied"} 1.0',
        'quorepo_proposal_seconds_count{group="1"} 1.0',
        'quorepo_applied_entries_total{group="1"} 5.0',
        "quorepo_journal_fsync_seconds_count 1.0",
        'quorepo_request_errors_total{kind="UNAVAILABLE"} 1.0',
        'quorepo_peer_bytes_total{direction="sent",peer="n2"} 10.0',
    ):
        assert line in text.splitlines()
