"""Worker processes: what happens to one job happens to that job only."""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import io
import os
import random
import signal
import sys
from collections.abc import AsyncIterator, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.packing import PackStore, PackWriter, object_id, tree

from quorepo.storage import jobs, worker
from quorepo.storage.errors import (
    CorruptPack,
    InvalidArgument,
    LimitExceeded,
    Unavailable,
)
from quorepo.storage.frames import encode_frame, read_frame
from quorepo.storage.limits import StorageLimits
from quorepo.storage.packfile import BLOB, TREE
from quorepo.storage.packs import describe
from quorepo.storage.worker_pool import WorkerPool

MIB = 1024 * 1024
LIMITS = StorageLimits(worker_memory_bytes_max=192 * MIB, worker_cache_bytes_max=MIB)


@pytest.fixture
def store(tmp_path: Path) -> PackStore:
    return PackStore(tmp_path)


@contextlib.asynccontextmanager
async def running(size: int = 1, queue_max: int = 4) -> AsyncIterator[WorkerPool]:
    pool = WorkerPool(size, LIMITS, queue_max)
    await pool.start()
    try:
        yield pool
    finally:
        await pool.close()


def small_pack(content: bytes = b"x") -> bytes:
    writer = PackWriter()
    writer.whole(BLOB, content)
    return writer.finish()


def description(store: PackStore) -> dict[str, Any]:
    return describe(store.layout, store.repository_id, store.digests, store.object_format)


async def ingest(
    pool: WorkerPool,
    store: PackStore,
    pack: bytes,
    timeout_s: float = 60.0,
    on_progress: Callable[[str], None] | None = None,
) -> Any:
    return await jobs.ingest(
        pool, store.upload(pack), description(store), [], timeout_s, on_progress
    )


def children() -> set[int]:
    """Process ids of the workers that this test started."""
    return all_children() - _OTHERS


def all_children() -> set[int]:
    """Process ids of the workers of this process."""
    return {pid for pid in map(int, filter(str.isdigit, os.listdir("/proc"))) if _is_worker(pid)}


_OTHERS: set[int] = set()  # workers of fixtures that outlive this test


@pytest.fixture(autouse=True)
def _other_workers() -> None:
    _OTHERS.clear()
    _OTHERS.update(all_children())


def _is_worker(pid: int) -> bool:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        arguments = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
        return b"quorepo.storage.worker" in arguments and str(os.getpid()).encode() in arguments
    return False


@contextlib.contextmanager
def stopped(*pids: int) -> Iterator[None]:
    """The processes do nothing for a while: a job that is given to them takes forever."""
    for pid in pids:
        os.kill(pid, signal.SIGSTOP)
    try:
        yield
    finally:
        for pid in pids:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGCONT)


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(20):
        while not condition():
            await asyncio.sleep(0.005)


async def test_an_ingest_in_a_worker_is_an_ingest(store: PackStore) -> None:
    async with running() as pool:
        result = await ingest(pool, store, small_pack())
        again = await ingest(pool, store, small_pack())
        assert result == again
        assert hashlib.sha256(result.pack).digest() == result.digest
        assert hashlib.sha256(result.index).digest() == result.index_digest
        assert store.quarantined() == set()  # a small one travels in its log entry
        large = await ingest(pool, store, small_pack(random.Random(1).randbytes(200_000)))
    assert not large.pack
    assert store.quarantined() == {f"{large.digest.hex()}.{kind}" for kind in ("pack", "idx")}


async def test_an_empty_pack_has_no_result(store: PackStore) -> None:
    async with running() as pool:
        assert await ingest(pool, store, PackWriter().finish()) is None


async def test_errors_come_back_as_they_were_raised(store: PackStore) -> None:
    writer = PackWriter()
    bad = tree(("40000", b"..", bytes(range(20))))
    writer.whole(TREE, bad)
    huge = PackWriter()
    huge.whole(BLOB, b"x", declared_size=1 << 40)
    async with running() as pool:
        (before,) = children()
        with pytest.raises(CorruptPack, match="hasDotdot") as caught:
            await ingest(pool, store, writer.finish())
        assert caught.value.metadata["object"] == object_id(TREE, bad).hex()
        with pytest.raises(LimitExceeded) as limited:
            await ingest(pool, store, huge.finish())
        assert limited.value.limit == "limits.object_bytes_max"
        assert limited.value.next_step
        with pytest.raises(InvalidArgument, match="unknown job"):
            await pool.run("no such job", {}, 10)
        with pytest.raises(Unavailable, match="internal error"):
            await pool.run("ingest", {}, 10)
        assert children() == {before}
    assert store.quarantined() == set()


async def test_a_pack_that_needs_too_much_memory_is_refused(store: PackStore) -> None:
    async with running() as pool:
        with pytest.raises(CorruptPack, match="needs more memory") as caught:
            await ingest(pool, store, small_pack(bytes(200 * MIB)))
        assert "limits.worker_memory_bytes_max" in caught.value.message
        assert store.quarantined() == set()
        assert await ingest(pool, store, small_pack()) is not None


async def test_a_worker_that_is_killed_fails_its_own_job_only(store: PackStore) -> None:
    async with running(size=2) as pool:
        first, second = children()
        with stopped(first, second):
            tasks = [
                asyncio.create_task(ingest(pool, store, small_pack(b"%d" % n))) for n in (1, 2)
            ]
            await until(lambda: pool.running == 2)
            os.kill(first, signal.SIGKILL)
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            assert isinstance(next(iter(done)).exception(), Unavailable)
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert sum(isinstance(result, Unavailable) for result in results) == 1
        await until(lambda: len(children()) == 2)
        assert first not in children()
        assert await ingest(pool, store, small_pack(b"3")) is not None
    assert not [name for name in store.quarantined() if name.startswith("upload")]


async def test_an_idle_worker_that_died_is_replaced_before_it_gets_a_job(
    store: PackStore,
) -> None:
    async with running() as pool:
        (pid,) = children()
        os.kill(pid, signal.SIGKILL)
        await until(lambda: pid not in children())
        # Between the death and the loop's notice of it a job may still get the dead worker.
        with contextlib.suppress(Unavailable):
            await ingest(pool, store, small_pack())
        assert await ingest(pool, store, small_pack()) is not None


async def test_a_job_that_takes_too_long_is_stopped(store: PackStore) -> None:
    async with running() as pool:
        (pid,) = children()
        with stopped(pid), pytest.raises(LimitExceeded) as caught:
            await ingest(pool, store, small_pack(), timeout_s=0.3)
        assert caught.value.limit == "limits.worker_timeout_s"
        assert store.quarantined() == set()
        assert await ingest(pool, store, small_pack()) is not None
        assert pid not in children()


async def test_a_cancelled_job_is_stopped_and_leaves_nothing(store: PackStore) -> None:
    async with running() as pool:
        (pid,) = children()
        with stopped(pid):
            task = asyncio.create_task(ingest(pool, store, small_pack()))
            await until(lambda: pool.running == 1)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
        assert pid not in children()
        assert store.quarantined() == set()
        assert await ingest(pool, store, small_pack()) is not None


async def test_the_queue_is_bounded_and_a_waiting_job_can_be_cancelled(store: PackStore) -> None:
    async with running(queue_max=2) as pool:
        (pid,) = children()
        with stopped(pid):
            tasks = [
                asyncio.create_task(ingest(pool, store, small_pack(b"%d" % number)))
                for number in range(3)
            ]
            await until(lambda: pool.queued == 2)
            with pytest.raises(Unavailable, match="busy: 2 jobs wait"):
                await ingest(pool, store, small_pack(b"too many"))
            tasks[1].cancel()
            await until(lambda: pool.queued == 1)
        results = await asyncio.gather(*tasks, return_exceptions=True)
        assert [isinstance(result, asyncio.CancelledError) for result in results] == [0, 1, 0]
        assert not any(isinstance(result, Exception) for result in results)
        assert pool.running == pool.queued == 0


async def test_waiting_counts_against_the_time_of_a_job(store: PackStore) -> None:
    async with running() as pool:
        with stopped(*children()):
            task = asyncio.create_task(ingest(pool, store, small_pack(b"1")))
            await until(lambda: pool.running == 1)
            with pytest.raises(Unavailable, match="no worker became free"):
                await ingest(pool, store, small_pack(b"2"), timeout_s=0.05)
        assert await task is not None


async def test_closing_ends_everything(store: PackStore) -> None:
    pool = WorkerPool(2, LIMITS, 4)
    await pool.start()
    with stopped(*children()):
        tasks = [asyncio.create_task(ingest(pool, store, small_pack(b"%d" % n))) for n in range(4)]
        await until(lambda: pool.queued == 2)
        await pool.close()
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(result, Unavailable) for result in results)
    assert children() == set()
    with pytest.raises(Unavailable, match="shutting down"):
        await ingest(pool, store, small_pack())


async def test_a_repository_goes_to_the_worker_that_knows_it(
    store: PackStore, tmp_path: Path
) -> None:
    other = PackStore(tmp_path / "other")
    async with running(size=2) as pool:
        for _ in range(3):
            await ingest(pool, store, small_pack())
            await ingest(pool, other, small_pack())
        affinities = sorted(worker.affinity for worker in pool._idle)
    assert affinities == sorted([store.repository_id, other.repository_id])


async def test_progress_is_passed_on(store: PackStore, monkeypatch: pytest.MonkeyPatch) -> None:
    told: list[str] = []
    async with running() as pool:
        (only,) = pool._idle
        receive = only.receive

        async def receive_progress_first() -> dict[str, Any]:
            if told:
                return await receive()
            return {"kind": "progress", "message": "half way"}

        monkeypatch.setattr(only, "receive", receive_progress_first)
        assert await ingest(pool, store, small_pack(), on_progress=told.append) is not None
    assert told == ["half way"]


def test_a_worker_frames_what_a_job_tells(monkeypatch: pytest.MonkeyPatch) -> None:
    def tell(
        job: str, arguments: object, limits: StorageLimits, progress: Callable[[str], None]
    ) -> dict[str, Any]:
        progress(f"doing {job}")
        return {"done": True}

    monkeypatch.setattr(worker, "run_job", tell)
    answers = io.BytesIO()
    frame = worker._answer({"job": "ingest", "arguments": {}}, StorageLimits(), answers)
    assert frame == {"kind": "result", "result": {"done": True}, "retire": False}
    told = read_frame(io.BytesIO(answers.getvalue()))
    assert told == {"kind": "progress", "message": "doing ingest"}


async def test_the_environment_of_a_worker_is_trimmed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("QUOREPO_SECRET", "hunter2")
    async with running():
        (pid,) = children()
        environment = Path(f"/proc/{pid}/environ").read_bytes()
        limits = Path(f"/proc/{pid}/limits").read_text()
        nice = int(Path(f"/proc/{pid}/stat").read_text().split()[18])
    assert b"hunter2" not in environment
    assert f"Max data size{192 * MIB:>22}" in limits
    assert nice >= 10


PARENT = """
import asyncio, sys
from quorepo.storage.limits import StorageLimits
from quorepo.storage.worker_pool import WorkerPool

async def main():
    pool = WorkerPool(2, StorageLimits(), 1)
    await pool.start()
    print(*(worker.process.pid for worker in pool._idle), flush=True)
    await asyncio.Event().wait()

asyncio.run(main())
"""


async def test_workers_die_with_a_parent_that_is_killed() -> None:
    parent = await asyncio.create_subprocess_exec(
        sys.executable, "-c", PARENT, stdout=asyncio.subprocess.PIPE
    )
    assert parent.stdout is not None
    pids = [int(word) for word in (await parent.stdout.readline()).split()]
    assert len(pids) == 2
    parent.kill()
    await parent.communicate()

    def all_gone() -> bool:
        return all(_state(pid) in ("", "Z") for pid in pids)

    await until(all_gone)


def _state(pid: int) -> str:
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    return ""


def test_native_code_that_panics_is_a_corrupt_pack(monkeypatch: pytest.MonkeyPatch) -> None:
    class PanicException(BaseException):
        """As pyo3's: not an Exception."""

    def panic(*_: object) -> dict[str, Any]:
        raise PanicException("index out of bounds")

    monkeypatch.setattr(worker, "run_job", panic)
    request = {"job": "ingest", "arguments": {}}
    frame = worker._answer(request, LIMITS, io.BytesIO())
    assert (frame["kind"], frame["class"]) == ("error", "CorruptPack")


def test_frames_are_whole_or_none() -> None:
    frame = encode_frame({"job": "x", "arguments": {"a": [1, None, "ü"]}})
    assert read_frame(io.BytesIO(frame)) == {"job": "x", "arguments": {"a": [1, None, "ü"]}}
    for size in range(len(frame)):
        assert read_frame(io.BytesIO(frame[:size])) is None
    with pytest.raises(ValueError, match="exceeds"):
        read_frame(io.BytesIO(b"\xff\xff\xff\xff"))
    with pytest.raises(ValueError, match="object"):
        read_frame(io.BytesIO(b"\0\0\0\x02[]"))
