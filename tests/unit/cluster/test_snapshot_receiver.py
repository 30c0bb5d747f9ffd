"""What a replica does with a snapshot that it is offered and must not take."""

from __future__ import annotations

import asyncio
import logging
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry

from quorepo.cluster.metrics import ClusterMetrics
from quorepo.cluster.raft.interface import RaftConfig
from quorepo.cluster.snapshot import receiver as module
from quorepo.cluster.snapshot.receiver import SnapshotReceiver
from quorepo.cluster.snapshot.staging import FORMAT_VERSION
from quorepo.internal.v1 import log_pb2, peer_pb2
from quorepo.storage.layout import GroupLayout

GROUP = 1
LEADER = log_pb2.Replica(
    replica_id="n1@d1", node="n1", peer_address="127.0.0.1:1", votes=True, stores_packs=True
)


class Source:
    """The leader's peer port: one manifest, and nobody may read behind it."""

    def __init__(self, manifest: peer_pb2.SnapshotManifest) -> None:
        self._manifest = manifest
        self.opened = 0

    def stub(self, _peer: object) -> Source:
        return self

    async def OpenSnapshot(self, *_: object, **__: object) -> peer_pb2.SnapshotManifest:
        self.opened += 1
        return self._manifest


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"format_version": FORMAT_VERSION + 1}, "bring all nodes to one version of quorepo"),
        ({"group": 7}, "offers a snapshot that nobody asked for"),
        ({"index": 5}, "offers a snapshot that nobody asked for"),
        ({"database_bytes": 0}, "offers a snapshot that nobody asked for"),
    ],
)
async def test_snapshot_of_a_newer_format_or_another_group_is_not_received(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    changes: dict[str, Any],
    words: str,
) -> None:
    """The node goes on with what it has, says why, and looks again at the next offer."""
    monkeypatch.setattr(module, "_RETRY_INTERVAL_S", 0.0)
    offered: dict[str, Any] = {
        "format_version": FORMAT_VERSION, "group": GROUP, "index": 10, "term": 2,
        "database_bytes": 4096,
    }  # fmt: skip
    source = Source(peer_pb2.SnapshotManifest(**{**offered, **changes}))
    layout = GroupLayout(tmp_path, GROUP)
    layout.create()
    before = sorted(tmp_path.rglob("*"))
    fatal: list[BaseException] = []
    nothing: Any = None
    space: Any = SimpleNamespace(check_new=lambda size=0: None)
    clients: Any = source
    receiver = SnapshotReceiver(
        replica_id="n2@d2", layouts={GROUP: layout}, stores={}, locks={}, apply=nothing,
        packs=nothing, held=nothing, clients=clients, space=space, config=RaftConfig(),
        metrics=ClusterMetrics(CollectorRegistry()), on_fatal=fatal.append,
    )  # fmt: skip
    configuration = log_pb2.Configuration(replicas=[LEADER])
    with caplog.at_level(logging.WARNING):
        for number in (1, 2):
            receiver.offered(GROUP, 8, configuration, LEADER.replica_id)
            async with asyncio.timeout(10):
                while source.opened < number or receiver.active(GROUP):
                    await asyncio.sleep(0.005)
    told = [record for record in caplog.records if record.message == "no snapshot yet"]
    assert len(told) == 2
    assert all(words in str(vars(record)) for record in told)
    assert fatal == []
    assert sorted(tmp_path.rglob("*")) == before
    await receiver.close()
