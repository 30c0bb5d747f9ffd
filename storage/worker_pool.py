"""A fixed number of worker processes and the queue before them.

Owns the lives of the workers: started warm and never forked, one job at a time each, killed when
their job is cancelled or takes too long, replaced when they die. Must not know what a job does.
One event loop owns a pool; start it from a thread that lives as long as the process (see
worker.py).
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import os
import shutil
import sys
from collections import deque
from collections.abc import Callable, Coroutine, Mapping
from typing import Any, Final

from quorepo.storage import errors
from quorepo.storage.errors import LimitExceeded, QuorepoError, Unavailable
from quorepo.storage.frames import FRAME_BYTES_MAX, FRAME_HEADER, decode_frame, encode_frame
from quorepo.storage.jobs import abandoned_files
from quorepo.storage.limits import StorageLimits
from quorepo.storage.logs import fields
from quorepo.storage.worker import EXIT_OUT_OF_MEMORY, out_of_memory

__all__ = ["WorkerPool"]

logger = logging.getLogger(__name__)

_START_TIMEOUT_S: Final = 60.0
_RESTART_DELAY_S_MAX: Final = 5.0
_STDERR_LINES_KEPT: Final = 20
_STDERR_LINE_BYTES_MAX: Final = 2000

# What a worker may see of this process's environment: nothing secret, nothing that steers it.
_ENVIRONMENT: Final = (
    "HOME",
    "LANG",
    "LC_ALL",
    "LD_LIBRARY_PATH",
    "PATH",
    "PYTHONPATH",
    "QUOREPO_FAILPOINTS",
    "TMPDIR",
    "TZ",
    "VIRTUAL_ENV",
)


class _WorkerDied(Exception):
    """The process ended in the middle of a job."""


class _Worker:
    """One process and its pipes."""

    def __init__(self, process: asyncio.subprocess.Process) -> None:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        self.process = process
        self.affinity = ""  # the repository of the last job, whose packs it has open
        self.is_usable = True
        self.last_lines: deque[str] = deque(maxlen=_STDERR_LINES_KEPT)
        self._stdin = process.stdin
        self._stdout = process.stdout
        self._stderr = process.stderr
        self._stderr_task = asyncio.create_task(self._keep_stderr())

    @classmethod
    async def start(cls, limits: StorageLimits) -> _Worker:
        """A process that is ready. Raises _WorkerDied, TimeoutError or OSError when it is not."""
        process = await asyncio.create_subprocess_exec(
            sys.executable,
            "-P",  # the working directory never shadows a module
            "-m",
            "quorepo.storage.worker",
            str(os.getpid()),
            stdin=asyncio.subprocess.PIPE,
            stdout=asyncio.subprocess.PIPE,
            stderr=asyncio.subprocess.PIPE,
            cwd="/",
            env={name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
        )
        worker = cls(process)
        try:
            async with asyncio.timeout(_START_TIMEOUT_S):
                await worker.send({"limits": limits.model_dump(mode="json")})
                await worker.receive()
        except BaseException:
            await worker.end()
            raise
        return worker

    async def send(self, frame: dict[str, Any]) -> None:
        try:
            self._stdin.write(encode_frame(frame))
            await self._stdin.drain()
        except OSError as error:
            raise _WorkerDied from error

    async def receive(self) -> dict[str, Any]:
        try:
            (size,) = FRAME_HEADER.unpack(await self._stdout.readexactly(FRAME_HEADER.size))
            if size > FRAME_BYTES_MAX:
                raise _WorkerDied(f"frame of {size} bytes")
            return decode_frame(await self._stdout.readexactly(size))
        except (asyncio.IncompleteReadError, OSError, ValueError) as error:
            raise _WorkerDied from error

    def kill(self) -> None:
        """Ends the process at once; a `receive` in progress raises _WorkerDied."""
        self.is_usable = False
        if self.process.returncode is None:
            with contextlib.suppress(ProcessLookupError):
                self.process.kill()

    async def end(self) -> None:
        """Kills the process and waits until it and its pipes are gone; nobody may be receiving."""
        self.kill()
        self._stdin.close()
        with contextlib.suppress(OSError):
            await self._stdin.wait_closed()
        await self._stdout.read()
        await self._stderr_task
        await self.process.wait()

    def died_of_memory(self) -> bool:
        """Whether its memory limit ended the process: Python said so, or native code did.

        Not SIGKILL: the kernel's OOM killer speaks of the memory of the machine, not of this job.
        """
        if self.process.returncode == EXIT_OUT_OF_MEMORY:
            return True
        return any("memory allocation of" in line for line in self.last_lines)

    async def _keep_stderr(self) -> None:
        """Passes on what the worker says on standard error, and remembers the last of it."""
        while chunk := await self._stderr.read(65536):
            for line in chunk.decode("utf-8", "backslashreplace").splitlines():
                line = line[:_STDERR_LINE_BYTES_MAX]
                self.last_lines.append(line)
                logger.warning("worker", extra=fields(pid=self.process.pid, line=line))


class WorkerPool:
    """Runs jobs in worker processes."""

    def __init__(
        self,
        size: int,
        limits: StorageLimits,
        queue_max: int,
        on_wait: Callable[[float], None] = lambda seconds: None,
    ) -> None:
        """`size` processes; at most `queue_max` jobs wait for one of them. `on_wait` hears how many
        seconds each job waited.
        """
        if size < 1 or queue_max < 0:
            raise ValueError(f"a pool of {size} workers with a queue of {queue_max}")
        self._size = size
        self._limits = limits
        self._queue_max = queue_max
        self._on_wait = on_wait
        self._idle: list[_Worker] = []
        self._busy: set[_Worker] = set()
        self._waiting: deque[asyncio.Future[_Worker]] = deque()
        self._tasks: set[asyncio.Task[None]] = set()
        self._no_job_runs = asyncio.Event()
        self._no_job_runs.set()
        self._closing = asyncio.Event()
        self._closing.set()

    @property
    def running(self) -> int:
        """Jobs that a worker is doing now."""
        return len(self._busy)

    @property
    def queued(self) -> int:
        """Jobs that wait for a worker."""
        return len(self._waiting)

    async def start(self) -> None:
        """Starts all workers and waits until they are ready. Raises Unavailable when one is not."""
        self._closing.clear()
        results = await asyncio.gather(
            *(_Worker.start(self._limits) for _ in range(self._size)), return_exceptions=True
        )
        self._idle = [result for result in results if isinstance(result, _Worker)]
        failures = [result for result in results if isinstance(result, BaseException)]
        if failures:
            await self.close()
            raise Unavailable(f"a worker process did not start: {failures[0]!r}") from failures[0]

    async def close(self) -> None:
        """Kills all workers; what waits or runs ends with Unavailable."""
        self._closing.set()
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                waiter.set_exception(_closed())
        for worker in self._busy:
            worker.kill()
        await self._no_job_runs.wait()
        while self._tasks:
            await asyncio.wait(self._tasks)
        await asyncio.gather(*(worker.end() for worker in self._idle))
        self._idle.clear()

    async def run(
        self,
        job: str,
        arguments: Mapping[str, Any],
        timeout_s: float,
        on_progress: Callable[[str], None] | None = None,
    ) -> dict[str, Any]:
        """Runs a job and returns its result.

        Raises the error that the job raised in the worker; Unavailable when too many jobs wait
        already or the worker died; LimitExceeded when the job took longer than `timeout_s`,
        waiting included; CorruptPack when an ingest needed more memory than a worker may have.
        Cancelling kills the worker, and whatever happens only this job ends.
        """
        started_s = asyncio.get_running_loop().time()
        deadline_s = started_s + timeout_s
        affinity = str(arguments.get("repository", {}).get("repository_id", ""))
        try:
            async with asyncio.timeout_at(deadline_s):
                worker = await self._acquire(affinity)
        except TimeoutError:
            raise Unavailable(f"busy: no worker became free within {timeout_s} s") from None
        self._on_wait(asyncio.get_running_loop().time() - started_s)
        try:
            async with asyncio.timeout_at(deadline_s):
                return await self._run_on(worker, job, arguments, on_progress)
        except QuorepoError:
            raise
        except BaseException as error:
            # The pipes are in an unknown state. Shielded: a second cancel must not stop it.
            await asyncio.shield(self._spawn(self._discard(worker, job, arguments)))
            if isinstance(error, TimeoutError):
                raise LimitExceeded(
                    f"job {job!r} took longer than {timeout_s} s", limit="limits.worker_timeout_s"
                ) from None
            if isinstance(error, _WorkerDied):
                raise self._death(worker, job) from None
            raise
        finally:
            worker.affinity = affinity
            self._release(worker)

    async def _run_on(
        self,
        worker: _Worker,
        job: str,
        arguments: Mapping[str, Any],
        on_progress: Callable[[str], None] | None,
    ) -> dict[str, Any]:
        await worker.send({"job": job, "arguments": dict(arguments)})
        while True:
            frame = await worker.receive()
            kind = frame["kind"]
            if kind == "progress":
                if on_progress is not None:
                    on_progress(frame["message"])
            elif kind == "result":
                worker.is_usable = not frame["retire"]
                result: dict[str, Any] = frame["result"]
                return result
            else:
                worker.is_usable = not frame["retire"]
                raise _error_from(frame)

    def _death(self, worker: _Worker, job: str) -> QuorepoError:
        """The error for a job whose worker died."""
        logger.error(
            "worker died",
            extra=fields(job=job, code=worker.process.returncode, pid=worker.process.pid),
        )
        if self._closing.is_set():
            return _closed()
        if worker.died_of_memory():
            return out_of_memory(job)
        return Unavailable(f"the worker process of job {job!r} died ({worker.process.returncode})")

    async def _acquire(self, affinity: str) -> _Worker:
        """An idle worker, if possible the one that did the last job for the same repository."""
        if self._closing.is_set():
            raise _closed()
        for worker in [worker for worker in self._idle if worker.process.returncode is not None]:
            self._idle.remove(worker)
            self._spawn(self._replace(worker))
        if self._idle:
            best = next((w for w in self._idle if w.affinity == affinity), self._idle[0])
            self._idle.remove(best)
            self._lend(best)
            return best
        if len(self._waiting) >= self._queue_max:
            raise Unavailable(
                f"busy: {len(self._waiting)} jobs wait for {self._size} workers already",
                next_step="try again in a few seconds",
            )
        waiter: asyncio.Future[_Worker] = asyncio.get_running_loop().create_future()
        self._waiting.append(waiter)
        try:
            return await waiter
        except asyncio.CancelledError:
            if waiter.done() and not waiter.cancelled() and waiter.exception() is None:
                self._release(waiter.result())
            raise
        finally:
            with contextlib.suppress(ValueError):
                self._waiting.remove(waiter)

    def _lend(self, worker: _Worker) -> None:
        self._busy.add(worker)
        self._no_job_runs.clear()

    def _release(self, worker: _Worker) -> None:
        """Gives a worker to the next job in line, or replaces it."""
        self._busy.discard(worker)
        if worker.is_usable and worker.process.returncode is None:
            self._give_away(worker)
        else:
            self._spawn(self._replace(worker))
        if not self._busy:
            self._no_job_runs.set()

    def _give_away(self, worker: _Worker) -> None:
        while self._waiting:
            waiter = self._waiting.popleft()
            if not waiter.done():
                # Lent here and not when the waiter wakes up: `close` must not overlook it.
                self._lend(worker)
                waiter.set_result(worker)
                return
        self._idle.append(worker)

    async def _discard(self, worker: _Worker, job: str, arguments: Mapping[str, Any]) -> None:
        """Ends a worker in the middle of a job and removes what the job leaves behind."""
        await worker.end()
        for path in abandoned_files(job, arguments):
            if path.is_dir():
                shutil.rmtree(path, ignore_errors=True)
            else:
                path.unlink(missing_ok=True)

    async def _replace(self, worker: _Worker) -> None:
        """Ends a worker and starts another in its place, however often that takes."""
        await worker.end()
        delay_s = 0.0
        while not self._closing.is_set():
            try:
                self._release(await _Worker.start(self._limits))
                return
            except (OSError, TimeoutError, _WorkerDied) as error:
                delay_s = min(2 * delay_s or 0.1, _RESTART_DELAY_S_MAX)
                logger.error("worker does not start", extra=fields(error=error, retry_in_s=delay_s))
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(delay_s):
                    await self._closing.wait()

    def _spawn(self, work: Coroutine[Any, Any, None]) -> asyncio.Task[None]:
        task: asyncio.Task[None] = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
        return task


def _closed() -> Unavailable:
    return Unavailable("the node is shutting down")


def _error_from(frame: dict[str, Any]) -> QuorepoError:
    """The error that a worker reported."""
    kind = getattr(errors, str(frame["class"]), None)
    message = str(frame["message"])
    metadata = {str(key): str(value) for key, value in frame["metadata"].items()}
    if kind is LimitExceeded:
        return LimitExceeded(message, limit=metadata["limit"], next_step=frame["next_step"])
    if isinstance(kind, type) and issubclass(kind, QuorepoError):
        return kind(message, next_step=frame["next_step"], **metadata)
    return Unavailable(f"internal error in a worker: {message}")
