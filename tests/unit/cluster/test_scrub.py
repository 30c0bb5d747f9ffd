"""The pass over the stored packs, and the search for lost ones, over real files and a real state;
other nodes are played by a folder of good copies.
"""

from __future__ import annotations

import asyncio
import concurrent.futures
import hashlib
from collections.abc import Callable, Coroutine, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from support.edge import edge_config
from support.state_log import REPOSITORY, Log, RecordingFiles, transaction, update

from quorepo.cluster import core, scrub
from quorepo.cluster.metrics import ClusterMetrics
from quorepo.cluster.pack_repair import PackRepair
from quorepo.cluster.peer.held import HeldPacks
from quorepo.cluster.raft.interface import RaftConfig
from quorepo.cluster.replica_upkeep import ReplicaUpkeep
from quorepo.cluster.scrub import Scrubber
from quorepo.cluster.snapshot import pace
from quorepo.cluster.state.store import StateStore
from quorepo.internal.v1 import core_pb2, log_pb2, peer_pb2
from quorepo.rpc import config as node_config
from quorepo.rpc.node import core_main
from quorepo.storage import logs
from quorepo.storage.errors import Unavailable
from quorepo.storage.layout import GroupLayout, ensure_repository
from quorepo.storage.objectformat import ObjectFormat

GROUP = 1
CONTENTS = [b"the first pack" * 1000, b"the second pack" * 2000]


class Others:
    """PackExchange as far as it is used here: every other node has `copies`."""

    def __init__(self, layout: GroupLayout, held: HeldPacks) -> None:
        self._layout, self._held = layout, held
        self.copies: dict[bytes, tuple[bytes, bytes]] = {}
        self.fetched: list[bytes] = []

    async def fetch(self, sources: Sequence[object], header: peer_pb2.PackHeader, *,
                    pace: Callable[[int], Coroutine[Any, Any, None]]) -> None:  # fmt: skip
        if header.digest not in self.copies:
            raise Unavailable("no node has it")
        files = self._layout.quarantine_paths(header.digest)
        for path, content in zip(files, self.copies[header.digest], strict=True):
            await pace(len(content))
            path.write_bytes(content)
        self._held.add(GROUP, header.digest)
        self.fetched.append(header.digest)

    async def write_file(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return function(*arguments)


class Host:
    """Runs at once what is meant for the Raft thread."""

    def run_on(self, group: int, function: Callable[[Any], Any]) -> concurrent.futures.Future[Any]:
        done: concurrent.futures.Future[Any] = concurrent.futures.Future()
        done.set_result(function(None))
        return done


class Node:
    """A node with two packs, and what looks after them."""

    def __init__(self, folder: Path) -> None:
        self.layout = GroupLayout(folder, GROUP)
        self.layout.create()
        self.registry = CollectorRegistry()
        self.held = HeldPacks()
        self.others = Others(self.layout, self.held)
        self.digests = [self._store(content) for content in CONTENTS]
        log = Log()
        added = [self._addition(content) for content in CONTENTS]
        log.command(transaction(update("refs/heads/main", 1), packs=added), request=1)
        store = StateStore.open(self.layout)
        store.apply_batch(log.entries, RecordingFiles())
        store.close()
        metrics = ClusterMetrics(self.registry)
        self.repair = PackRepair(
            layouts={GROUP: self.layout}, held=self.held, packs=self.others,  # type: ignore[arg-type]
            sources=lambda group, replica: [], bytes_per_s=0, interval_s=60, metrics=metrics,
        )  # fmt: skip
        self.scrubber = self.another_start(metrics)

    def another_start(self, metrics: ClusterMetrics, bytes_per_s: int = 0) -> Scrubber:
        """What a start of the node makes of the same disk."""
        return Scrubber(
            node="n1", host=Host(), layouts={GROUP: self.layout},  # type: ignore[arg-type]
            held=self.held, packs=self.others, repair=self.repair,  # type: ignore[arg-type]
            sources=lambda group, replica: [], interval_s=0, bytes_per_s=bytes_per_s,
            metrics=metrics,
        )  # fmt: skip

    def _addition(self, content: bytes) -> log_pb2.PackAddition:
        index = content[::-1]
        return log_pb2.PackAddition(
            digest=hashlib.sha256(content).digest(), index_digest=hashlib.sha256(index).digest(),
            pack_bytes=len(content), index_bytes=len(index), object_count=1,
            encoding=log_pb2.PACK_ENCODING_FILE,
        )  # fmt: skip

    def _store(self, content: bytes) -> bytes:
        digest = hashlib.sha256(content).digest()
        ensure_repository(self.layout, REPOSITORY, ObjectFormat.SHA1)
        for path, data in zip(self.paths(digest), (content, content[::-1]), strict=True):
            path.write_bytes(data)
        self.held.add(GROUP, digest)
        return digest

    def paths(self, digest: bytes) -> Sequence[Path]:
        return self.layout.pack_paths(REPOSITORY, digest)

    def metric(self, name: str, **labels: str) -> float:
        return self.registry.get_sample_value(name, labels) or 0.0


async def one_pass(scrubber: Scrubber, *, asked: bool = True) -> core_pb2.CoreNodeVerification:
    """Until a pass ended; with `asked` an operator asked for it."""
    if asked:
        await scrubber.verify(core_pb2.CoreVerifyRequest(start=True))
    running = asyncio.create_task(scrubber.run())
    try:
        async with asyncio.timeout(60):
            while not (report := await scrubber.verify(core_pb2.CoreVerifyRequest())).passes:
                await asyncio.sleep(0.01)
    finally:
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)
    return report


@pytest.fixture
def configured(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Scrubber]:
    """The scrubber of a node whose section [storage] says this: the core process's own entry
    reads it, and its upkeep makes the scrubber."""

    def made(node: Node, **storage: float) -> Scrubber:
        started: list[core.CoreSettings] = []
        config = edge_config(tmp_path / "data", storage=storage)
        monkeypatch.setattr(node_config, "load_config", lambda path: config)
        monkeypatch.setattr(node_config, "load_peer_credentials", lambda config: None)
        monkeypatch.setattr(logs, "configure_logging", lambda *_: None)
        monkeypatch.setattr(core, "run", started.append)
        monkeypatch.setattr("sys.argv", ["core", "--config", "n1.toml", "--runtime-dir", "run"])
        core_main._run()
        nothing: Any = None
        disk: Any = SimpleNamespace(
            layouts={GROUP: node.layout}, stores={}, held=node.held, space=nothing
        )
        host: Any = Host()
        packs: Any = node.others
        upkeep = ReplicaUpkeep(
            replica_id="n1@d1", founding=log_pb2.Configuration(), disk=disk,
            apply=nothing, packs=packs, clients=nothing,
            raft=RaftConfig(), retention=started[0].retention,
            metrics=ClusterMetrics(CollectorRegistry()), on_fatal=nothing,
            pack_sources=lambda group, replica: [],
        )  # fmt: skip
        for work in upkeep.work(host).values():
            work.close()
        assert upkeep._scrub is not None
        return upkeep._scrub

    return made


@pytest.fixture
def node(tmp_path: Path) -> Node:
    return Node(tmp_path)


def flip(path: Path) -> bytes:
    """One bit, as a disk does it."""
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    return bytes(data)


def test_an_answer_is_the_callers_own(node: Node) -> None:
    """What one caller added to it came back to the next one, as if the node had said it twice."""

    async def ask_twice() -> core_pb2.CoreNodeVerification:
        first = await node.scrubber.verify(core_pb2.CoreVerifyRequest(fingerprints=True))
        first.fingerprints.add(group=GROUP)
        return await node.scrubber.verify(core_pb2.CoreVerifyRequest(fingerprints=True))

    assert not asyncio.run(ask_twice()).fingerprints


def test_packs_that_are_right_are_read_to_the_end_and_left_alone(node: Node) -> None:
    report = asyncio.run(one_pass(node.scrubber))
    everything = 2 * sum(map(len, CONTENTS))
    assert (report.packs_checked, report.bytes_checked) == (2, everything)
    assert list(report.faults) == []
    assert node.metric("quorepo_scrub_bytes_total") == everything
    assert node.others.fetched == []


def test_every_byte_that_is_read_passes_the_throttle(
    node: Node, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[int] = []
    used: list[int] = []

    class Counting:
        def __init__(self, bytes_per_s: int) -> None:
            made.append(bytes_per_s)

        async def __call__(self, size_bytes: int) -> None:
            used.append(size_bytes)

    monkeypatch.setattr(scrub, "Pace", Counting)
    asyncio.run(one_pass(node.another_start(ClusterMetrics(CollectorRegistry()), 12345)))
    assert made == [12345]
    assert sum(used) == 2 * sum(map(len, CONTENTS))


async def passes_of(scrubber: Scrubber) -> int:
    return (await scrubber.verify(core_pb2.CoreVerifyRequest())).passes


async def test_scrub_interval_s_is_the_time_between_two_passes(
    node: Node, configured: Callable[..., Scrubber]
) -> None:
    """Three come by themselves, while a node with 0, and one with the default of a week, wait."""
    often = configured(node, scrub_interval_s=0.01)
    others = [configured(node, scrub_interval_s=0), configured(node)]
    running = [asyncio.create_task(scrubber.run()) for scrubber in (often, *others)]
    try:
        async with asyncio.timeout(60):
            while await passes_of(often) < 3:
                await asyncio.sleep(0.01)
        assert [await passes_of(scrubber) for scrubber in others] == [0, 0]
    finally:
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)


@pytest.mark.parametrize(("bytes_per_s", "takes_s"), [(1000, 88.0), (22_000, 4.0), (0, 0.0)])
async def test_scrub_bytes_per_s_is_how_fast_a_pass_reads(
    node: Node,
    configured: Callable[..., Scrubber],
    monkeypatch: pytest.MonkeyPatch,
    bytes_per_s: int,
    takes_s: float,
) -> None:
    """Two packs with their indexes, by a clock that nothing but the throttle moves."""
    assert 2 * sum(map(len, CONTENTS)) == 88_000
    clock = 1000.0

    async def sleep(delay_s: float) -> None:
        nonlocal clock
        clock += delay_s

    monkeypatch.setattr(pace, "asyncio", SimpleNamespace(sleep=sleep))
    monkeypatch.setattr(
        scrub, "Pace", lambda bytes_per_s: pace.Pace(bytes_per_s, monotonic=lambda: clock)
    )
    report = await one_pass(configured(node, scrub_bytes_per_s=bytes_per_s))
    assert report.packs_checked == 2
    assert clock - 1000.0 == pytest.approx(takes_s)


@pytest.mark.parametrize("part", [0, 1], ids=["pack", "index"])
def test_a_damaged_pack_is_put_aside_and_replaced_by_another_nodes_copy(
    node: Node, part: int
) -> None:
    digest = node.digests[1]
    node.others.copies[digest] = (CONTENTS[1], CONTENTS[1][::-1])
    damaged = flip(node.paths(digest)[part])
    report = asyncio.run(one_pass(node.scrubber))
    assert [(f.digest, f.kind, f.healed) for f in report.faults] == [(digest, "damaged", True)]
    assert [path.read_bytes() for path in node.paths(digest)] == [CONTENTS[1], CONTENTS[1][::-1]]
    assert damaged in [path.read_bytes() for path in node.layout.damaged.iterdir()]
    assert node.metric("quorepo_scrub_faults_total", group="1", kind="damaged") == 1
    assert node.metric("quorepo_scrub_faults_left") == 0
    assert node.held.has(GROUP, digest)


def test_damage_that_nobody_can_heal_stays_and_is_taken_up_after_a_restart(node: Node) -> None:
    """Most of it may be readable. The next start does not wait a week for the next pass."""
    digest = node.digests[0]
    damaged = flip(node.paths(digest)[0])
    report = asyncio.run(one_pass(node.scrubber))
    assert [(f.healed, f.problem) for f in report.faults] == [(False, "no node has it")]
    assert node.paths(digest)[0].read_bytes() == damaged
    assert node.metric("quorepo_scrub_faults_left") == 1
    assert not node.held.has(GROUP, digest), "this node does not vouch for it"
    node.others.copies[digest] = (CONTENTS[0], CONTENTS[0][::-1])
    started = node.another_start(ClusterMetrics(CollectorRegistry()))
    report = asyncio.run(one_pass(started, asked=False))
    assert [f.healed for f in report.faults] == [True]
    assert node.paths(digest)[0].read_bytes() == CONTENTS[0]


def test_a_start_after_a_good_pass_does_not_begin_another(node: Node) -> None:
    asyncio.run(one_pass(node.scrubber))

    async def started() -> bool:
        scrubber = node.another_start(ClusterMetrics(CollectorRegistry()))
        return await scrubber._in_thread(scrubber._was_interrupted)  # type: ignore[no-any-return]

    assert not asyncio.run(started())


def test_packs_that_are_missing_are_counted_until_they_are_back(node: Node) -> None:
    """quorepo_packs_missing is what the alert QuorepoPacksMissing looks at."""
    digest = node.digests[0]
    for path in node.paths(digest):
        path.unlink()
    asyncio.run(node.repair.look(GROUP))
    assert node.metric("quorepo_packs_missing", group="1") == 1
    status = core_pb2.CoreGroupStatus(group=GROUP)
    node.repair.describe(status)
    assert (status.packs_total, status.packs_missing) == (2, 1)
    assert status.missing_bytes == 2 * len(CONTENTS[0])
    assert list(status.missing_digests) == [digest]
    node.others.copies[digest] = (CONTENTS[0], CONTENTS[0][::-1])
    asyncio.run(node.repair.look(GROUP))
    assert node.metric("quorepo_packs_missing", group="1") == 0
    assert node.metric("quorepo_packs_repaired_total", group="1", outcome="restored") == 1
    assert node.paths(digest)[0].read_bytes() == CONTENTS[0]


def test_a_pass_finds_a_missing_pack_too(node: Node) -> None:
    digest = node.digests[0]
    node.paths(digest)[0].unlink()
    node.others.copies[digest] = (CONTENTS[0], CONTENTS[0][::-1])
    report = asyncio.run(one_pass(node.scrubber))
    assert [(f.kind, f.healed) for f in report.faults] == [("missing", True)]
