"""Finished answers: built once, kept within a limit, and for those who may see as much."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Mapping
from pathlib import Path
from typing import Any

import pytest
from support.edge import EdgeUnderTest, edge_config, running_edge
from support.git import WorkTree, clone, git
from support.raw_http import FETCH_TYPE, packet, request

from quorepo.rpc.fetch_cache import Answer, FetchCache
from quorepo.rpc.fetch_files import FetchFiles
from quorepo.rpc.fetch_keys import answer_key, negotiation_key
from quorepo.rpc.pack_stream import send_pack
from quorepo.rpc.shared_calls import SharedCalls, Tell
from quorepo.storage.errors import DamagedPack, StorageFull, Unavailable
from quorepo.storage.git.fetch_request import FetchRequest, Negotiation
from quorepo.storage.git.filters import ObjectFilter
from quorepo.storage.git.pktline import Marker, read_all
from quorepo.storage.objectformat import ObjectFormat

SHA1 = ObjectFormat.SHA1


def silence(_text: str) -> None:
    """Nobody listens."""


def run(coroutine: Coroutine[Any, Any, None]) -> None:
    asyncio.run(asyncio.wait_for(coroutine, 20))


def test_a_call_is_made_once_for_all_who_wait_for_it() -> None:
    calls: SharedCalls[int] = SharedCalls()
    go = asyncio.Event()
    made: list[int] = []
    heard: list[str] = []

    async def call(tell: Tell) -> int:
        made.append(1)
        await go.wait()
        tell("halfway")
        return 7

    async def scenario() -> None:
        waiting = [asyncio.create_task(calls.run("k", call, heard.append)) for _ in range(5)]
        await asyncio.sleep(0)
        waiting[0].cancel()
        await asyncio.wait({waiting[0]})
        go.set()
        assert await asyncio.gather(*waiting[1:]) == [7] * 4
        assert len(calls) == 0
        assert await calls.run("k", call, silence) == 7

    run(scenario())
    assert len(made) == 2
    assert heard == ["halfway"] * 4


def test_a_call_that_nobody_waits_for_is_cancelled_and_made_anew_later() -> None:
    calls: SharedCalls[int] = SharedCalls()
    ended: list[int] = []

    async def endless(_tell: Tell) -> int:
        try:
            await asyncio.Event().wait()
        finally:
            ended.append(1)
        return 0

    async def quick(_tell: Tell) -> int:
        return 8

    async def scenario() -> None:
        waiting = [asyncio.create_task(calls.run("k", endless, silence)) for _ in range(2)]
        await asyncio.sleep(0)
        waiting[0].cancel()
        await asyncio.wait({waiting[0]})
        assert not ended
        waiting[1].cancel()
        await asyncio.wait({waiting[1]})
        assert ended
        assert await calls.run("k", quick, silence) == 8

    run(scenario())


def test_a_failure_is_told_to_all_and_not_kept() -> None:
    calls: SharedCalls[int] = SharedCalls()

    async def broken(_tell: Tell) -> int:
        await asyncio.sleep(0)
        raise Unavailable("the worker process died")

    async def scenario() -> None:
        results = await asyncio.gather(
            *(calls.run("k", broken, silence) for _ in range(3)), return_exceptions=True
        )
        assert [type(result) for result in results] == [Unavailable] * 3
        assert len(calls) == 0

    run(scenario())


def files_in(folder: Path) -> FetchFiles:
    files = FetchFiles(folder)
    files.clear()
    return files


def builder(size: int, built: list[int]) -> Callable[[Path, Tell], Any]:
    async def build(out: Path, _tell: Tell) -> Mapping[str, Any]:
        built.append(size)
        out.write_bytes(bytes(size))
        return result_of(out, size)

    return build


def result_of(path: Path, size: int, sealed: bool = True) -> dict[str, Any]:
    parts = [[str(path), 0, size]]
    return {"pack_bytes": size, "objects": 1, "parts": parts, "is_sealed": sealed}


def test_the_least_recently_used_answer_makes_room(tmp_path: Path) -> None:
    cache = FetchCache(files_in(tmp_path), 250)
    built: list[int] = []

    async def scenario() -> None:
        for key in (b"a", b"b", b"a", b"c", b"a", b"b"):
            answer = await cache.build(key, SHA1, builder(100, built), silence)
            with cache.using(answer):
                assert answer.file.stat().st_size == 100

    run(scenario())
    assert len(built) == 4  # a, b, c, and b again
    assert cache.bytes_held == 200
    assert {path.stat().st_size for path in cache.paths()} == {100}
    assert cache.paths() == set((tmp_path / "tmp").iterdir())


@pytest.mark.parametrize("bytes_max", [0, 99])
def test_an_answer_larger_than_the_limit_lives_as_long_as_it_is_sent(
    tmp_path: Path, bytes_max: int
) -> None:
    cache = FetchCache(files_in(tmp_path), bytes_max)

    async def scenario() -> None:
        answer = await cache.build(b"a", SHA1, builder(100, []), silence)
        with cache.using(answer):
            with cache.using(answer):
                assert cache.get(b"a") is answer
            assert answer.file.exists()
        assert cache.get(b"a") is None

    run(scenario())
    assert list((tmp_path / "tmp").iterdir()) == []


def test_a_full_disk_is_emptied_of_kept_answers_first(tmp_path: Path) -> None:
    cache = FetchCache(files_in(tmp_path), 1000)
    attempts: list[int] = []

    async def full(out: Path, tell: Tell) -> Mapping[str, Any]:
        attempts.append(cache.bytes_held)
        if cache.bytes_held:
            raise StorageFull("no room for the answer")
        return dict(await builder(50, [])(out, tell))

    async def scenario() -> None:
        await cache.build(b"a", SHA1, builder(100, []), silence)
        await cache.build(b"b", SHA1, full, silence)

    run(scenario())
    assert attempts == [100, 0]
    assert cache.bytes_held == 50


def test_a_failed_build_leaves_no_file(tmp_path: Path) -> None:
    cache = FetchCache(files_in(tmp_path), 1000)

    async def broken(out: Path, _tell: Tell) -> Mapping[str, Any]:
        out.write_bytes(b"half")
        raise Unavailable("the worker process died")

    async def scenario() -> None:
        with pytest.raises(Unavailable):
            await cache.build(b"a", SHA1, broken, silence)

    run(scenario())
    assert list((tmp_path / "tmp").iterdir()) == []


class Sink:
    """A `Reply` that keeps what it is given."""

    def __init__(self) -> None:
        self.data = b""
        self.writes = 0
        self.ended = False

    async def write(self, data: bytes | bytearray | memoryview) -> None:
        assert not self.ended
        self.data += data
        self.writes += 1

    async def write_last(self, data: bytes | bytearray | memoryview) -> None:
        await self.write(data)
        self.ended = True

    def close_after(self) -> None:
        raise AssertionError

    def abort(self) -> None:
        raise AssertionError


@pytest.mark.parametrize("sealed", [True, False])
@pytest.mark.parametrize("side_band", [0, 1000, 65520])
@pytest.mark.parametrize("size", [1, 65515, 65516, 4 * 65515 - 9, 4 * 65515 + 1, 700_001])
def test_frames_carry_every_byte_in_order(
    tmp_path: Path, side_band: int, size: int, sealed: bool
) -> None:
    content = bytes(number * 7 % 251 for number in range(1000)) * (size // 1000 + 1)
    first, second = tmp_path / "first", tmp_path / "second"
    first.write_bytes(b"header" + content[:size] + b"rest")
    second.write_bytes(content[:9])
    parts = ((second, 0, 9), (first, 6, 6 + size))
    sent = content[:9] + content[:size]
    sink = Sink()

    async def scenario() -> None:
        size = len(sent) + (0 if sealed else 20)
        answer = Answer(size, 1, parts, second, 9, SHA1, sealed)
        request = FetchRequest(2, (b"x" * 20,), side_band=side_band)
        assert await send_pack(sink, request, answer, b"0008NAK\n") == size

    run(scenario())
    assert (sink.writes == 1) == (sealed and len(sent) <= 4 * 65515), "small answers in one piece"
    expected = sent if sealed else sent + SHA1.new_hash(sent).digest()
    if not side_band:
        assert sink.data == b"0008NAK\n" + expected
        return
    first_line, *rest, end = read_all(sink.data)
    assert (first_line, end) == (b"NAK\n", Marker.FLUSH)
    frames = [frame for frame in rest if not isinstance(frame, Marker)]
    assert {frame[0] for frame in frames} == {1}
    assert max(map(len, frames)) <= side_band - 4
    assert b"".join(frame[1:] for frame in frames) == expected


def test_a_stored_pack_that_is_gone_is_told(tmp_path: Path) -> None:
    async def scenario() -> None:
        gone, sink = tmp_path / "gone", Sink()
        request = FetchRequest(2, (b"x" * 20,), side_band=65520)
        answer = Answer(9, 1, ((gone, 0, 9),), gone, 0, SHA1, True)
        with pytest.raises(DamagedPack):
            await send_pack(sink, request, answer, b"before")
        gone.write_bytes(b"short")
        with pytest.raises(DamagedPack):
            await send_pack(sink, request, answer, b"before")
        assert not sink.writes, "the answer can be made anew"
        large = Answer(300_000, 1, ((gone, 0, 300_000),), gone, 0, SHA1, True)
        with pytest.raises(Unavailable):
            await send_pack(sink, request, large, b"before")

    run(scenario())


def test_keys_tell_apart_all_that_matters_and_nothing_else() -> None:
    a, b, seen = b"a" * 20, b"b" * 20, b"seen"
    plain = FetchRequest(2, (a, b), ofs_delta=True)
    same = FetchRequest(0, (b, a), (b"c" * 20,), ofs_delta=True, agent="git/9", side_band=1000)
    nothing = Negotiation()
    assert answer_key(seen, plain, nothing) == answer_key(seen, same, nothing)
    others = [
        answer_key(b"other", plain, nothing),
        answer_key(seen, FetchRequest(2, (a,), ofs_delta=True), nothing),
        answer_key(seen, FetchRequest(2, (a, b)), nothing),
        answer_key(seen, FetchRequest(2, (a, b), ofs_delta=True, thin_pack=True), nothing),
        answer_key(seen, FetchRequest(2, (a, b), ofs_delta=True, include_tag=True), nothing),
        answer_key(seen, FetchRequest(2, (a, b), ofs_delta=True, client_shallow=(a,)), nothing),
        answer_key(seen, FetchRequest(2, (a,), ofs_delta=True), Negotiation((b,))),
        answer_key(seen, plain, Negotiation((b,))),
        answer_key(seen, plain, Negotiation((), False, (b,))),
        answer_key(seen, plain, Negotiation((), False, (), (b,))),
    ]
    for limit in (0, 5):
        bound = FetchRequest(2, (a, b), ofs_delta=True, filter=ObjectFilter(limit))
        others.append(answer_key(seen, bound, nothing))
    assert len({answer_key(seen, plain, nothing), *others}) == 1 + len(others)
    deeper = FetchRequest(2, (a, b), ofs_delta=True, depth=3)
    keys = {negotiation_key(s, r) for s in (seen, b"o") for r in (plain, deeper)}
    assert len(keys) == 4


@pytest.fixture
def counted(server: EdgeUnderTest, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The worker jobs that fetches started."""
    jobs: list[str] = []
    inner = server.edge.workers.run

    async def counting(job: str, *arguments: Any) -> Any:
        jobs.append(job)
        return await inner(job, *arguments)

    monkeypatch.setattr(server.edge.workers, "run", counting)
    return jobs


def test_concurrent_identical_clones_are_built_once(
    server: EdgeUnderTest, work: WorkTree, path: str, counted: list[str], tmp_path: Path
) -> None:
    for number in range(20):
        work.commit(f"change {number}", {f"{number}.txt": f"{number}\n" * 3000})
    work.git("push", server.url(path), "main")
    counted.clear()
    targets = [tmp_path / f"clone-{number}" for number in range(12)]
    threads = [threading.Thread(target=clone, args=(server.url(path), t)) for t in targets]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert counted == ["build_pack"]
    for target in targets:
        assert git("rev-parse", "HEAD", cwd=target).stdout.strip() == work.head()
        git("fsck", "--full", "--strict", cwd=target)


def test_a_push_makes_old_answers_useless(
    server: EdgeUnderTest, work: WorkTree, path: str, counted: list[str], tmp_path: Path
) -> None:
    work.commit("first", {"a.txt": "a\n"})
    work.git("push", server.url(path), "main")
    clone(server.url(path), tmp_path / "one")
    clone(server.url(path), tmp_path / "two")
    assert counted.count("build_pack") == 1
    oid = work.commit("second", {"a.txt": "b\n"})
    work.git("push", server.url(path), "main")
    target = clone(server.url(path), tmp_path / "three")
    assert git("rev-parse", "HEAD", cwd=target).stdout.strip() == oid
    assert counted.count("build_pack") == 2


def test_what_a_deleted_branch_had_is_not_served_from_the_cache(
    server: EdgeUnderTest, work: WorkTree, path: str
) -> None:
    work.commit("first")
    work.git("push", server.url(path), "main")
    secret = work.commit("secret")
    work.git("push", server.url(path), "HEAD:secret")
    body = packet(f"want {secret}".encode()) + b"0000" + packet(b"done\n")
    ask = ("POST", f"/{path}/git-upload-pack", body, {"Content-Type": FETCH_TYPE})
    assert b"PACK" in request(server, *ask).body
    work.git("push", server.url(path), ":secret")
    assert b"not our ref" in request(server, *ask).body


def test_an_answer_whose_file_is_gone_is_made_anew(
    server: EdgeUnderTest, work: WorkTree, path: str, counted: list[str], tmp_path: Path
) -> None:
    work.commit("first")
    work.git("push", server.url(path), "main")
    clone(server.url(path), tmp_path / "one")
    for kept in server.edge.fetch_cache.paths():
        kept.unlink()
    clone(server.url(path), tmp_path / "two")
    assert counted.count("build_pack") == 2


@pytest.mark.parametrize("when", ["at once", "negotiate", "build_pack"])
def test_a_fetch_whose_packs_were_replaced_looks_again(
    server: EdgeUnderTest,
    work: WorkTree,
    path: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    when: str,
) -> None:
    work.commit("first")
    work.git("push", server.url(path), "main")
    inner = server.edge.workers.run
    failed: list[str] = []

    async def replaced(job: str, *arguments: Any) -> Any:
        if job == when and not failed:
            failed.append(job)
            raise DamagedPack("pack file 'pack-1.pack' is not on this node")
        return await inner(job, *arguments)

    def at_once(*arguments: Any) -> Negotiation | None:
        """None: a worker is asked."""
        if when == "at once" and not failed:
            failed.append(when)
            raise DamagedPack("pack file 'pack-1.pack' is not on this node")
        return None

    monkeypatch.setattr(server.edge.workers, "run", replaced)
    monkeypatch.setattr("quorepo.rpc.fetch.negotiate_at_once", at_once)
    target = clone(server.url(path), tmp_path / "clone")
    assert failed
    assert git("rev-parse", "HEAD", cwd=target).stdout.strip() == work.head()


def test_without_a_cache_nothing_is_kept(work: WorkTree, tmp_path: Path) -> None:
    limits = {"limits": {"fetch_cache_bytes_max": 0}}
    with running_edge(edge_config(tmp_path / "node" / "data", **limits)) as server:
        work.commit("first", {"a.txt": "a\n"})
        work.git("push", server.url("team/app"), "main")
        clone(server.url("team/app"), tmp_path / "clone")
        server.settle()
        assert list((tmp_path / "node" / "data" / "tmp").iterdir()) == []
        assert server.edge.fetch_cache.bytes_held == 0
