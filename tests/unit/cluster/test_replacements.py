"""No replica believes a replacement pack: checked before it is acknowledged or logged."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from support.packing import PackStore, PackWriter, commit, object_id, tree
from support.peer_nodes import Node
from support.state_log import Log, transaction

from quorepo.cluster.apply import DiskActions
from quorepo.cluster.gate import StagedPackGate, pack_needs
from quorepo.cluster.peer.held import HeldPacks
from quorepo.cluster.replacements import ReplacementChecks
from quorepo.cluster.state.store import StateStore
from quorepo.internal.v1 import log_pb2, peer_pb2
from quorepo.storage.consolidate import merge_packs
from quorepo.storage.errors import CorruptPack, InvalidArgument, Unavailable
from quorepo.storage.ingest import IngestResult
from quorepo.storage.limits import StorageLimits
from quorepo.storage.packfile import BLOB, COMMIT, TREE
from quorepo.storage.packs import PackCache

GROUP = 1


class Observed:
    def __init__(self) -> None:
        self.outcomes: list[str] = []

    def replacement_checked(self, outcome: str, seconds: float) -> None:
        self.outcomes.append(outcome)


class NoFetcher:
    async def fetch(self, peers: Any, header: peer_pb2.PackHeader) -> None:
        raise Unavailable("nobody has it")


class Setup:
    """A node's disk with three pushed packs, and what checks replacements of them."""

    def __init__(self, data_dir: Path) -> None:
        self.packs = PackStore(data_dir)
        self.heads = []
        for number in range(3):
            writer = PackWriter()
            blob = b"content %d" % number
            writer.whole(BLOB, blob)
            root = tree(("100644", b"file", object_id(BLOB, blob)))
            writer.whole(TREE, root)
            head = commit(object_id(TREE, root))
            writer.whole(COMMIT, head)
            self.packs.add(writer.finish())
            self.heads.append(object_id(COMMIT, head))
        self.layout = self.packs.layout
        self.digests = list(self.packs.digests)
        self.held = HeldPacks.scan({GROUP: self.layout})
        self.observed = Observed()
        self.checks = ReplacementChecks(
            {GROUP: self.layout}, self.held, StorageLimits(), self.observed
        )

    def merged(self, digests: list[bytes] | None = None) -> IngestResult:
        chosen = PackCache().open(
            self.layout, self.packs.repository_id, digests or self.digests, self.packs.object_format
        )
        result = merge_packs(chosen, self.layout.new_upload(), self.layout, lambda _: None)
        assert result is not None
        self.held.add(GROUP, result.digest)
        return result

    def command(
        self, result: IngestResult, removed: list[bytes] | None = None, prune_at: int | None = None
    ) -> log_pb2.Command:
        command = log_pb2.Command(version=1, request_id=b"r" * 16, first_seen_ms=1, actor="a")
        body = command.replace_packs if prune_at is None else command.prune
        body.repository_id = self.packs.repository_id
        body.object_format = log_pb2.OBJECT_FORMAT_SHA1
        body.removed.extend(self.digests if removed is None else removed)
        body.added.append(addition(result))
        if prune_at is not None:
            command.prune.computed_from = prune_at
            command.prune.unreachable_before_ms = 1 << 60
        return command


def addition(result: IngestResult) -> log_pb2.PackAddition:
    return log_pb2.PackAddition(
        digest=result.digest,
        index_digest=result.index_digest,
        pack_bytes=result.pack_bytes,
        index_bytes=result.index_bytes,
        object_count=result.object_count,
        encoding=log_pb2.PACK_ENCODING_FILE,
    )


@pytest.fixture
def setup(tmp_path: Path) -> Setup:
    return Setup(tmp_path / "data")


def gate_of(setup: Setup, arrived: asyncio.Event) -> StagedPackGate:
    gate = StagedPackGate(
        setup.held, NoFetcher(), asyncio.get_running_loop(), lambda *_: [], setup.checks
    )
    gate.packs_arrived = lambda group: arrived.set()
    return gate


async def test_entry_passes_once_its_pack_was_checked(setup: Setup) -> None:
    arrived = asyncio.Event()
    gate = gate_of(setup, arrived)
    data = setup.command(setup.merged()).SerializeToString()
    needs = gate.missing(GROUP, data)
    assert len(needs) == 1
    gate.want(GROUP, needs, "n2@d")  # nothing is to be fetched
    gate.missing(GROUP, data)
    async with asyncio.timeout(30):
        await arrived.wait()
    assert gate.missing(GROUP, data) == ()
    assert setup.observed.outcomes == ["passed"]
    await gate.close()
    await setup.checks.close()


class SlowFetcher:
    """Brings a pack once it is let."""

    def __init__(self, setup: Setup) -> None:
        self._held = setup.held
        self.let = asyncio.Event()

    async def fetch(self, peers: Any, header: peer_pb2.PackHeader) -> None:
        await self.let.wait()
        self._held.add(header.group, header.digest)


async def test_replacement_behind_a_waiting_entry_is_checked_once(setup: Setup) -> None:
    """It was looked at early, judged by the packs that were there, and judged again at its turn."""
    fetcher, arrived = SlowFetcher(setup), asyncio.Event()
    gate = StagedPackGate(
        setup.held, fetcher, asyncio.get_running_loop(), lambda *_: [], setup.checks
    )
    gate.packs_arrived = lambda group: arrived.set()
    data = setup.command(setup.merged()).SerializeToString()
    setup.held.discard(GROUP, setup.digests[0])
    addition = log_pb2.PackAddition(digest=setup.digests[0], index_digest=bytes(32))
    waiting = log_pb2.Command(transaction=transaction(packs=[addition]))
    gate.want(GROUP, pack_needs(waiting), "n2@d")
    assert gate.missing(GROUP, data), "looked ahead"
    for _ in range(5):  # whatever it set off has begun
        await asyncio.sleep(0)
    fetcher.let.set()
    async with asyncio.timeout(30):
        await arrived.wait()
        arrived.clear()
        assert gate.missing(GROUP, data), "its turn"
        await arrived.wait()
    assert gate.missing(GROUP, data) == ()
    assert setup.observed.outcomes == ["passed"]
    await gate.close()
    await setup.checks.close()


async def test_wrong_replacement_never_passes_the_gate(setup: Setup) -> None:
    gate = gate_of(setup, asyncio.Event())
    command = setup.command(setup.merged(setup.digests[:2]))  # claims to replace all three
    data = command.SerializeToString()
    assert gate.missing(GROUP, data)
    with pytest.raises(CorruptPack, match="lacks object"):
        await setup.checks.check(GROUP, command.replace_packs)
    assert gate.missing(GROUP, data)
    assert "passed" not in setup.observed.outcomes
    await gate.close()
    await setup.checks.close()


async def test_pack_that_is_not_held_is_fetched_first(setup: Setup) -> None:
    gate = gate_of(setup, asyncio.Event())
    result = setup.merged()
    setup.held.discard(GROUP, result.digest)
    command = setup.command(result)
    assert list(gate.missing(GROUP, command.SerializeToString())) == pack_needs(command)
    assert setup.observed.outcomes == []
    await setup.checks.close()


async def test_those_who_ask_at_once_share_one_check(setup: Setup) -> None:
    body = setup.command(setup.merged()).replace_packs
    await asyncio.gather(*(setup.checks.check(GROUP, body) for _ in range(5)))
    await setup.checks.check(GROUP, body)
    assert setup.observed.outcomes == ["passed"]
    await setup.checks.close()


async def test_pack_that_went_long_ago_does_not_stop_the_log(setup: Setup) -> None:
    """What this node does not hold is not in the set, and apply will refuse the entry."""
    command = setup.command(setup.merged(), [*setup.digests, b"x" * 32])
    await setup.checks.check(GROUP, command.replace_packs)
    assert setup.checks.passed(GROUP, command.replace_packs)
    # Should it be held after all, that verdict is worth nothing.
    setup.held.add(GROUP, b"x" * 32)
    assert not setup.checks.passed(GROUP, command.replace_packs)
    await setup.checks.close()


def header_of(result: IngestResult, command: log_pb2.Command) -> peer_pb2.PackHeader:
    return peer_pb2.PackHeader(
        group=GROUP,
        digest=result.digest,
        index_digest=result.index_digest,
        pack_bytes=result.pack_bytes,
        index_bytes=result.index_bytes,
        replacement=command.SerializeToString(),
    )


async def test_staged_replacement_is_acknowledged_only_when_it_is_right(setup: Setup) -> None:
    result = setup.merged()
    await setup.checks.check_staged(header_of(result, setup.command(result)))
    wrong = setup.merged(setup.digests[:2])
    with pytest.raises(InvalidArgument, match="lacks object"):
        await setup.checks.check_staged(header_of(wrong, setup.command(wrong)))
    with pytest.raises(InvalidArgument, match="by this one"):
        await setup.checks.check_staged(header_of(result, setup.command(wrong)))
    early = setup.command(result, [*setup.digests, b"x" * 32])
    with pytest.raises(Unavailable, match="not come to this node"):
        await setup.checks.check_staged(header_of(result, early))
    garbage = header_of(result, setup.command(result))
    garbage.replacement = b"\xff\xff"
    with pytest.raises(InvalidArgument):
        await setup.checks.check_staged(garbage)
    await setup.checks.close()


async def test_prune_is_checked_against_the_refs_of_its_revision(setup: Setup) -> None:
    log = Log(GROUP)
    store = StateStore.open(setup.layout)
    try:
        updates = [
            log_pb2.RefUpdate(name=b"refs/heads/%d" % n, new_oid=setup.heads[n]) for n in range(2)
        ]
        packs = [
            log_pb2.PackAddition(
                digest=digest, index_digest=digest, encoding=log_pb2.PACK_ENCODING_FILE
            )
            for digest in setup.digests
        ]
        repository_id = setup.packs.repository_id
        log.command(transaction(*updates, packs=packs, repository_id=repository_id))
        store.apply_batch(log.entries, DiskActions(setup.layout))
        right = setup.merged(setup.digests[:2])
        too_much = setup.merged()
        early = setup.command(right, prune_at=2).prune
        with pytest.raises(Unavailable, match="revision 2"):
            await setup.checks.check(GROUP, early)
        assert not setup.checks.passed(GROUP, early)
        await setup.checks.check(GROUP, setup.command(right, prune_at=1).prune)
        with pytest.raises(CorruptPack, match="keeps object"):
            await setup.checks.check(GROUP, setup.command(too_much, prune_at=1).prune)
        # Beyond its revision apply refuses it, whatever it holds.
        await setup.checks.check(GROUP, setup.command(too_much, prune_at=0).prune)
        assert setup.observed.outcomes == ["too-early", "passed", "refused", "stale"]
    finally:
        store.close()
        await setup.checks.close()


async def test_peer_refuses_a_wrong_replacement_and_takes_a_right_one(
    tmp_path: Path, setup: Setup
) -> None:
    sender, receiver = Node(tmp_path, "n1"), Node(tmp_path, "n2")
    result = setup.merged()
    for path in setup.layout.quarantine_paths(result.digest):
        (sender.layout.quarantine / path.name).write_bytes(path.read_bytes())
    await sender.packs.adopt(header_of(result, setup.command(result)))
    await sender.start()
    await receiver.start()
    try:
        header = header_of(result, setup.command(result))
        with pytest.raises(InvalidArgument, match="takes no packs that replace"):
            await sender.packs.stage(receiver.peer, header)
        receiver.packs._check_replacement = setup.checks.check_staged
        await sender.packs.stage(receiver.peer, header)
        assert setup.observed.outcomes == ["passed"]
        header.replacement = setup.command(result, setup.digests[:2]).SerializeToString()
        with pytest.raises(InvalidArgument, match="does not replace"):
            await sender.packs.stage(receiver.peer, header)
    finally:
        await sender.stop()
        await receiver.stop()
        await setup.checks.close()
