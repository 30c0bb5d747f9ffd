"""Limits and times of [raft] that refuse nothing: from the configuration to what each changes."""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from support.edge import edge_config
from support.raft_cluster import Cluster, voter

from quorepo.cluster.compaction import Compactor
from quorepo.cluster.metrics import ClusterMetrics
from quorepo.cluster.peer.held import HeldPacks
from quorepo.cluster.raft.host import RaftHost
from quorepo.cluster.raft.interface import Entry, GroupStart, LogExtent, Outcome, RaftConfig
from quorepo.cluster.raft.journal import Journal
from quorepo.cluster.snapshot.receiver import SnapshotReceiver
from quorepo.cluster.state.pack_table import PackPlace
from quorepo.internal.v1 import core_pb2, log_pb2
from quorepo.storage.layout import GroupLayout
from quorepo.storage.objectformat import ObjectFormat

GROUP = 1
# Kept by other tests: where, and by what word.
ELSEWHERE = {
    "append_batch_bytes_max": "raft/test_group_replication.py",
    "append_inflight_max": "raft/test_group_replication.py",
    "apply_backlog_max": "raft/test_group_replication.py",
    "command_bytes_max": "raft/test_group_proposals.py",
    "proposal_queue_max": "raft/test_group_proposals.py",
    "proposal_queue_bytes_max": "raft/test_group_proposals.py",
    "snapshot_bytes_per_s": "../system/test_snapshot.py",
}


def configured(**raft: float) -> RaftConfig:
    """As the core gets it from a node's configuration."""
    return edge_config(Path("/nowhere/data"), raft=raft).raft


# ---- apply_backlog_bytes_max


def handed_over(config: RaftConfig) -> tuple[int, int]:
    """Entries, and their bytes, that a replica whose apply stands still was handed of 50."""
    cluster = Cluster(7, config=config)
    leader = cluster.wait_for_leader()
    slow = next(node for node in cluster.alive() if node is not leader)
    slow.apply_stalled = True
    for number in range(50):
        assert cluster.apply(leader, f"{number:0300}").outcome is Outcome.APPLIED
    cluster.run(1.0)
    held = [len(entry.data) for entry in slow.queues[GROUP]]
    slow.apply_stalled = False
    slow.apply(GROUP)
    cluster.run(1.0)
    cluster.check_at_rest()
    return len(held), sum(held)


def test_apply_backlog_bytes_max_holds_back_what_is_handed_to_apply() -> None:
    entries, size = handed_over(configured(apply_backlog_bytes_max=2000))
    assert 0 < entries < 10
    assert size < 2000 + 300, "what is one entry too many is the last"
    entries, _ = handed_over(configured())
    assert entries >= 50


# ---- election_timeout_s_max


def first_elections(config: RaftConfig) -> list[float]:
    """How long voters that are alone wait before they lead, in seconds."""
    waited = []
    for seed in range(20):
        cluster = Cluster(seed, voters=1, config=config)
        began = cluster.now
        cluster.wait_for_leader(seconds=60.0)
        waited.append(cluster.now - began)
    return waited


@pytest.mark.parametrize("longest_s", [1.0, 5.0, 20.0])
def test_election_timeout_s_max_bounds_the_wait_for_an_election(longest_s: float) -> None:
    waited = first_elections(
        configured(election_timeout_s_max=longest_s, leader_fallback_timeout_s=longest_s)
    )
    assert min(waited) >= 0.5
    assert 0.7 * longest_s < max(waited) < longest_s + 0.1  # of virtual time


@pytest.mark.parametrize("shortest_s", [0.5, 3.0, 8.0])
def test_election_timeout_s_min_is_waited_before_any_election(shortest_s: float) -> None:
    longest_s = shortest_s + 1.0
    waited = first_elections(
        configured(
            election_timeout_s_min=shortest_s,
            election_timeout_s_max=longest_s,
            leader_fallback_timeout_s=longest_s,
        )
    )
    assert shortest_s <= min(waited) < shortest_s + 0.5


# ---- heartbeat_interval_s, leader_fallback_timeout_s


@pytest.mark.parametrize("interval_s", [0.02, 0.1, 0.15])
def test_heartbeat_interval_s_is_the_time_between_a_leaders_heartbeats(interval_s: float) -> None:
    cluster = Cluster(3, config=configured(heartbeat_interval_s=interval_s))
    cluster.wait_for_leader()
    cluster.run(2.0)
    before = cluster.messages
    cluster.run(100 * interval_s)
    # To two followers, and their answers.
    assert 350 < cluster.messages - before < 500


@pytest.mark.parametrize("timeout_s", [1.0, 4.0])
def test_leader_fallback_timeout_s_is_how_long_a_leader_goes_on_alone(timeout_s: float) -> None:
    cluster = Cluster(3, config=configured(leader_fallback_timeout_s=timeout_s))
    leader = cluster.wait_for_leader()
    cluster.run(2.0)
    for node in cluster.alive():
        if node is not leader:
            cluster.crash(node)
    began = cluster.now
    cluster.run_until(lambda: not leader.group().is_leader, 60.0)
    assert timeout_s - 0.2 < cluster.now - began < timeout_s + 0.2  # of virtual time


# ---- compaction_bytes_min, compaction_entries_min, trailing_entries


class OneReplica:
    """A group of one voter with a real journal; its state is a list."""

    def __init__(self, folder: Path, config: RaftConfig) -> None:
        self.applied = 0
        self._journal = Journal.open(folder / "journal")
        (folder / "votes").mkdir()
        self._pool = ThreadPoolExecutor(1)
        self.fatal: list[BaseException] = []
        self.host = RaftHost(
            replica_id="a@1",
            groups={GROUP: GroupStart(log_pb2.Configuration(replicas=[voter("a@1")]), 0, 0, None)},
            journal=self._journal,
            votes_dir=folder / "votes",
            sink=self,
            gate=SimpleNamespace(missing=lambda group, data: ()),
            transport=SimpleNamespace(
                send=lambda to_replica, messages: None, set_replicas=lambda replicas: None
            ),
            config=config,
            on_fatal=self.fatal.append,
            clock_ms=lambda: 1,
            rng=random.Random(1),
        )
        stores: Any = {GROUP: SimpleNamespace(sync=lambda: self.applied)}
        self.compactor = Compactor(
            host=self.host,
            stores=stores,
            locks={GROUP: asyncio.Lock()},
            pinned_index=lambda group: None,
            config=config,
            metrics=ClusterMetrics(CollectorRegistry()),
        )
        self.host.start()
        self.host.wait_for_leader(GROUP, 60.0).result()

    def submit(self, group: int, entries: Sequence[Entry]) -> None:
        self._pool.submit(self._apply, entries)

    def backlog(self, group: int) -> int:
        return 0

    def _apply(self, entries: Sequence[Entry]) -> None:
        self.applied = entries[-1].index
        self.host.applied(GROUP, self.applied, {entry.index: entry.data for entry in entries})

    def extent(self) -> LogExtent:
        return self.host.extent(GROUP).result()

    def grow(self, long_enough: Callable[[LogExtent], bool]) -> None:
        """Entry by entry, each applied."""
        while not long_enough(self.extent()):
            verdict = self.host.propose(GROUP, b"x" * 500, 60.0).result()
            assert verdict.outcome is Outcome.APPLIED

    def close(self) -> None:
        self.host.stop()
        self._pool.shutdown()
        self._journal.close()


@contextlib.contextmanager
def one_replica(folder: Path, config: RaftConfig) -> Iterator[OneReplica]:
    replica = OneReplica(folder, config)
    try:
        yield replica
    finally:
        replica.close()
    assert replica.fatal == []


def test_compaction_bytes_min_is_when_a_log_is_cut_to_half_of_it(tmp_path: Path) -> None:
    with one_replica(tmp_path, configured(compaction_bytes_min=20_000)) as replica:
        replica.grow(lambda extent: extent.record_bytes >= 18_000)
        before = replica.extent()
        asyncio.run(replica.compactor.look(GROUP))
        assert replica.extent().first_index == before.first_index
        replica.grow(lambda extent: extent.record_bytes >= 20_000)
        asyncio.run(replica.compactor.look(GROUP))
        after = replica.extent()
        assert after.first_index > before.first_index
        assert 9_000 < after.record_bytes <= 10_000
        assert after.last_index == replica.applied


def test_compaction_entries_min_is_when_a_log_is_cut_to_trailing_entries(tmp_path: Path) -> None:
    with one_replica(
        tmp_path, configured(compaction_entries_min=30, trailing_entries=7)
    ) as replica:
        replica.grow(lambda extent: extent.last_index == 29)
        asyncio.run(replica.compactor.look(GROUP))
        assert replica.extent().first_index == 1
        replica.grow(lambda extent: extent.last_index == 30)
        asyncio.run(replica.compactor.look(GROUP))
        assert (replica.extent().first_index, replica.extent().last_index) == (30 - 7, 30)


# ---- snapshot_fetches_max


@pytest.mark.parametrize("at_once", [1, 3])
async def test_snapshot_fetches_max_is_how_many_packs_are_pulled_at_once(
    tmp_path: Path, at_once: int
) -> None:
    running, most, fetched = 0, 0, []
    full, release = asyncio.Event(), asyncio.Event()

    async def fetch(sources: Any, header: Any, *, pace: Any) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        if running == at_once:
            full.set()
        await release.wait()
        await asyncio.sleep(0)  # whoever waits for a place has its turn
        fetched.append(header.digest)
        running -= 1

    nothing: Any = None
    packs: Any = SimpleNamespace(fetch=fetch)
    space: Any = SimpleNamespace(check_new=lambda size=0: None)
    receiver = SnapshotReceiver(
        replica_id="n2@d2", layouts={GROUP: GroupLayout(tmp_path, GROUP)}, stores={}, locks={},
        apply=nothing, packs=packs, held=HeldPacks(), clients=nothing, space=space,
        config=configured(snapshot_fetches_max=at_once),
        metrics=ClusterMetrics(CollectorRegistry()), on_fatal=lambda error: None,
    )  # fmt: skip
    progress = receiver._progress[GROUP] = core_pb2.CatchUpProgress()
    places = [
        PackPlace("r", ObjectFormat.SHA1, bytes([number]) * 32, b"i" * 32, 100, 10)
        for number in range(8)
    ]
    pull = asyncio.create_task(receiver._fetch_packs(GROUP, [], places, nothing))
    async with asyncio.timeout(60):
        await full.wait()
        release.set()
        await pull
    assert most == at_once
    assert sorted(fetched) == [place.digest for place in places]
    assert (progress.packs_done, progress.bytes_done) == (8, 8 * 110)


def test_every_key_of_raft_has_a_test() -> None:
    """Of this module's, each is named after its key."""
    here = {
        key
        for key in RaftConfig.model_fields
        for name in globals()
        if name.startswith(f"test_{key}_")
    } | {"trailing_entries"}
    assert here | ELSEWHERE.keys() == RaftConfig.model_fields.keys()
    for key, file in ELSEWHERE.items():
        assert key in (Path(__file__).parents[1] / file).read_text()
