"""Packs between real nodes on loopback: staging, fetching, and everything that may go wrong."""

from __future__ import annotations

import asyncio
import errno
import random
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import pytest_asyncio
from support.peer_nodes import Lab, Node, Pack, make_pack, wait_until

from quorepo.cluster.peer.clients import PeerAddress
from quorepo.cluster.peer.packs import PackLimits
from quorepo.internal.v1 import peer_pb2
from quorepo.storage import failpoints
from quorepo.storage.errors import FatalError, InvalidArgument, NotFound, StorageFull, Unavailable
from quorepo.storage.layout import ensure_repository, promote_pack
from quorepo.storage.objectformat import ObjectFormat

SMALL = make_pack(b"PACK" + bytes(3000), b"index" * 100)
LARGE = make_pack(random.Random(7).randbytes(5_000_000), random.Random(8).randbytes(300_001))
SIZES = [SMALL, LARGE, make_pack(bytes(1024 * 1024), b"i"), make_pack(b"p", bytes(262_144))]


@pytest_asyncio.fixture
async def lab(tmp_path: Path) -> AsyncIterator[Lab]:
    lab = Lab(tmp_path)
    yield lab
    failpoints.disable_all()
    await lab.close()


def counted(node: Node, action: str, outcome: str = "ok") -> float:
    return float(node.metrics.packs.labels(action, outcome)._value.get())


def copied_bytes(node: Node, action: str) -> float:
    return float(node.metrics.pack_bytes.labels(action)._value.get())


def assert_holds(node: Node, pack: Pack) -> None:
    assert node.held.has(1, pack.header.digest)
    paths = node.layout.quarantine_paths(pack.header.digest)
    assert [path.read_bytes() for path in paths] == [pack.pack, pack.index]
    assert sorted(node.layout.quarantine.iterdir()) == sorted(paths)


async def assert_lacks(node: Node, pack: Pack) -> None:
    assert not node.held.has(1, pack.header.digest)
    # The discard of temporary files is not waited for by the call that failed.
    await wait_until(lambda: not list(node.layout.quarantine.iterdir()))


@pytest.mark.parametrize("pack", SIZES, ids=["small", "large", "batch", "index-heavy"])
async def test_staged_pack_is_held_there(lab: Lab, pack: Pack) -> None:
    one, two = await lab.node("n1"), await lab.node("n2")
    pack.put(one.layout)
    await one.packs.stage(two.peer, pack.header)
    assert_holds(two, pack)
    assert counted(one, "stage_out") == counted(two, "stage_in") == 1
    assert copied_bytes(two, "stage_in") == len(pack.pack) + len(pack.index)


@pytest.mark.parametrize("pack", SIZES, ids=["small", "large", "batch", "index-heavy"])
async def test_fetched_pack_is_held_here(lab: Lab, pack: Pack) -> None:
    one, two = await lab.node("n1"), await lab.node("n2")
    pack.put(one.layout)
    await two.packs.fetch([one.peer], pack.header)
    assert_holds(two, pack)
    await two.packs.fetch([], pack.header)  # held: nobody is asked


async def test_pack_that_is_held_is_not_sent_again(lab: Lab) -> None:
    one, two = await lab.node("n1"), await lab.node("n2")
    big = make_pack(bytes(30_000_000), b"index")
    big.put(one.layout)
    await one.packs.stage(two.peer, big.header)
    before = copied_bytes(one, "stage_out")
    await one.packs.stage(two.peer, big.header)
    assert counted(one, "stage_out", "already_held") == 1
    assert copied_bytes(one, "stage_out") - before < 10_000_000
    SMALL.put(one.layout)
    await one.packs.stage(two.peer, SMALL.header)  # the channel is still fine
    assert two.held.digests(1) == {big.header.digest, SMALL.header.digest}


@pytest.mark.parametrize("part", [0, 1])
@pytest.mark.parametrize("pack", [SMALL, LARGE], ids=["small", "large"])
async def test_other_bytes_are_refused_and_nothing_is_left(lab: Lab, pack: Pack, part: int) -> None:
    one, two = await lab.node("n1"), await lab.node("n2")
    pack.put(one.layout)
    damaged = one.layout.quarantine_paths(pack.header.digest)[part]
    content = bytearray(damaged.read_bytes())
    content[-1] ^= 1
    damaged.write_bytes(content)
    with pytest.raises(InvalidArgument, match="announced was"):
        await one.packs.stage(two.peer, pack.header)
    await assert_lacks(two, pack)
    with pytest.raises(Unavailable, match="announced was"):
        await two.packs.fetch([one.peer], pack.header)
    await assert_lacks(two, pack)
    pack.put(one.layout)
    await one.packs.stage(two.peer, pack.header)
    assert_holds(two, pack)


async def test_pack_that_is_not_there_is_said_to_be_not_there(lab: Lab) -> None:
    one, two = await lab.node("n1"), await lab.node("n2")
    with pytest.raises(NotFound, match=SMALL.header.digest.hex()):
        await one.packs.stage(two.peer, SMALL.header)
    with pytest.raises(Unavailable, match="is not on this node"):
        await two.packs.fetch([one.peer], SMALL.header)
    SMALL.put(one.layout)
    one.layout.quarantine_paths(SMALL.header.digest)[0].write_bytes(b"short")
    with pytest.raises(NotFound, match="5 bytes here, 3004 were expected"):
        await one.packs.stage(two.peer, SMALL.header)


async def send_by_hand(node: Node, *requests: peer_pb2.StagePackRequest) -> Any:
    stub: Any = node.clients.stub(node.peer)
    return stub.StagePack(iter(requests))


def header_but(**changes: Any) -> peer_pb2.StagePackRequest:
    header = peer_pb2.PackHeader()
    header.CopyFrom(SMALL.header)
    for name, value in changes.items():
        setattr(header, name, value)
    return peer_pb2.StagePackRequest(header=header)


def chunk(data: bytes) -> peer_pb2.StagePackRequest:
    return peer_pb2.StagePackRequest(chunk=data)


@pytest.mark.parametrize(
    ("requests", "code", "text"),
    [
        ([], "INVALID_ARGUMENT", "header"),
        ([chunk(b"x")], "INVALID_ARGUMENT", "header"),
        ([header_but(digest=b"x")], "INVALID_ARGUMENT", "32 bytes"),
        ([header_but(index_digest=b"../../../../../../../../etc/pass")], "INVALID_ARGUMENT", ""),
        ([header_but(pack_bytes=0)], "INVALID_ARGUMENT", "0 bytes"),
        ([header_but(pack_bytes=2**60)], "INVALID_ARGUMENT", "are accepted"),
        ([header_but(group=77)], "NOT_FOUND", "group 77"),
        ([header_but()], "INVALID_ARGUMENT", "3004 bytes early"),
        ([header_but(), chunk(SMALL.pack)], "INVALID_ARGUMENT", "500 bytes early"),
        (
            [header_but(), chunk(SMALL.pack + SMALL.index + b"x")],
            "INVALID_ARGUMENT",
            "more bytes",
        ),
    ],
)
async def test_nonsense_is_refused(
    lab: Lab, requests: list[peer_pb2.StagePackRequest], code: str, text: str
) -> None:
    node = await lab.node("n1")
    call = await send_by_hand(node, *requests)
    assert (await call.code()).name == code
    assert text in await call.details()
    await assert_lacks(node, SMALL)


async def test_endless_transfer_is_cut_off_at_the_announced_size(lab: Lab) -> None:
    limits = PackLimits(batch_bytes=100_000, drain_bytes_max=1_000_000)
    node = await lab.node("n1", pack_limits=limits)
    stub: Any = node.clients.stub(node.peer)

    async def endless() -> AsyncIterator[peer_pb2.StagePackRequest]:
        yield header_but()
        while True:
            yield chunk(bytes(50_000))

    call = stub.StagePack(endless())
    # INTERNAL when grpc.aio was in the middle of a write: who does not stop may not learn why.
    assert (await call.code()).name in {"INVALID_ARGUMENT", "INTERNAL"}
    await assert_lacks(node, SMALL)


async def test_promoted_pack_is_fetched_from_its_repository(lab: Lab) -> None:
    one, two = await lab.node("n1"), await lab.node("n2")
    SMALL.put(one.layout)
    ensure_repository(one.layout, "a1b2", ObjectFormat.SHA1)
    header = peer_pb2.PackHeader()
    header.CopyFrom(SMALL.header)
    header.repository_id = "a1b2"
    pack, _index = one.layout.quarantine_paths(header.digest)
    pack.rename(one.layout.pack_paths("a1b2", header.digest)[0])  # half-way through a promotion
    await two.packs.fetch([one.peer], header)
    assert_holds(two, SMALL)
    promote_pack(one.layout, "a1b2", header.digest)
    third = await lab.node("n3")
    await third.packs.fetch([one.peer], header)
    assert_holds(third, SMALL)
    fourth = await lab.node("n4")
    await one.packs.stage(fourth.peer, SMALL.header)  # found without its repository's id too
    assert_holds(fourth, SMALL)


async def test_interrupted_fetch_goes_on_where_it_stopped(lab: Lab) -> None:
    one, two, three = await lab.node("n1"), await lab.node("n2"), await lab.node("n3")
    LARGE.put(one.layout)
    LARGE.put(two.layout)
    proxy = await lab.proxy(lambda: one.port)
    proxy.cut_after_bytes = 3_000_000
    await three.packs.fetch([one.through(proxy), two.peer], LARGE.header)
    assert_holds(three, LARGE)
    total = len(LARGE.pack) + len(LARGE.index)
    # How much the first one wrote says nothing: buffers on the way may have taken all of it.
    assert 0 < copied_bytes(two, "fetch_out") < total - 1_000_000


async def test_one_bad_source_does_not_spoil_a_fetch(lab: Lab) -> None:
    one, two, three = await lab.node("n1"), await lab.node("n2"), await lab.node("n3")
    SMALL.put(one.layout)
    one.layout.quarantine_paths(SMALL.header.digest)[0].write_bytes(bytes(len(SMALL.pack)))
    SMALL.put(two.layout)
    dead = PeerAddress("n9", "127.0.0.1:1")
    await three.packs.fetch([dead, one.peer, two.peer], SMALL.header)
    assert_holds(three, SMALL)


async def test_fetch_without_any_source_gives_up(lab: Lab) -> None:
    node = await lab.node("n1")
    with pytest.raises(Unavailable, match=r"n9 at 127\.0\.0\.1:1"):
        await node.packs.fetch([PeerAddress("n9", "127.0.0.1:1")], SMALL.header)
    with pytest.raises(Unavailable, match="no peer"):
        await node.packs.fetch([], SMALL.header)
    await assert_lacks(node, SMALL)


async def test_concurrent_arrivals_of_one_pack_share_a_transfer(lab: Lab) -> None:
    one, two = await lab.node("n1"), await lab.node("n2")
    LARGE.put(one.layout)
    fetches = [two.packs.fetch([one.peer], LARGE.header) for _ in range(5)]
    stages = [one.packs.stage(two.peer, LARGE.header) for _ in range(3)]
    await asyncio.gather(*fetches, *stages)
    assert_holds(two, LARGE)
    assert counted(one, "fetch_out") + counted(one, "stage_out") == 1
    assert counted(one, "stage_out", "already_held") >= 2


async def test_cancelled_transfers_leave_nothing(lab: Lab) -> None:
    one, two = await lab.node("n1"), await lab.node("n2")
    big = make_pack(bytes(60_000_000), b"index")
    big.put(one.layout)

    def arriving() -> bool:
        return bool(list(two.layout.quarantine.glob("stage-*-pack.tmp")))

    for transfer in (
        one.packs.stage(two.peer, big.header),
        two.packs.fetch([one.peer], big.header),
    ):
        task = asyncio.ensure_future(transfer)
        await wait_until(arriving)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await assert_lacks(two, big)
    await two.packs.fetch([one.peer], big.header)
    assert_holds(two, big)


async def test_full_disk_is_told_and_survived(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    one, two = await lab.node("n1"), await lab.node("n2")
    SMALL.put(one.layout)

    def full(_descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(StorageFull, match="no room"):
            await one.packs.stage(two.peer, SMALL.header)
        with pytest.raises(StorageFull, match="no room"):
            await two.packs.fetch([one.peer], SMALL.header)
    assert two.fatal == []
    await assert_lacks(two, SMALL)
    await one.packs.stage(two.peer, SMALL.header)
    assert_holds(two, SMALL)


@pytest.mark.parametrize("edge", ["before_fsync", "before_rename", "before_folder_fsync"])
async def test_disk_error_is_fatal_for_the_receiver(lab: Lab, edge: str) -> None:
    one, two = await lab.node("n1"), await lab.node("n2")
    SMALL.put(one.layout)
    with failpoints.enabled(f"peer.stage.{edge}", "error"):
        with pytest.raises(Unavailable, match="going down"):
            await one.packs.stage(two.peer, SMALL.header)
        assert [error.exit_code for error in two.fatal] == [FatalError.EXIT_IO_ERROR]
        with pytest.raises(FatalError, match="check the disk"):
            await two.packs.fetch([one.peer], SMALL.header)
    assert not two.held.has(1, SMALL.header.digest)
    await two.packs.fetch([one.peer], SMALL.header)  # as after a restart: it is written anew
    assert_holds(two, SMALL)


async def test_adopted_pack_is_held_only_when_it_is_there(lab: Lab) -> None:
    node = await lab.node("n1")
    with pytest.raises(NotFound):
        await node.packs.adopt(SMALL.header)
    SMALL.put(node.layout)
    await node.packs.adopt(SMALL.header)
    assert node.held.has(1, SMALL.header.digest)


async def test_sending_can_be_paced(lab: Lab) -> None:
    one, two = await lab.node("n1"), await lab.node("n2")
    LARGE.put(one.layout)
    paces: list[int] = []

    async def pace(size: int) -> None:
        paces.append(size)

    one.packs._pace = pace
    await two.packs.fetch([one.peer], LARGE.header)
    assert sum(paces) == len(LARGE.pack) + len(LARGE.index)
