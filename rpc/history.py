"""Questions about history, asked where they are answered best: here when small, else in a worker.

Owns that choice, the files through which large answers come from a worker, and what a revision of
a request names. Must not know gRPC. What a question means is `quorepo.storage.history`'s matter.

A question begins in a reader thread with a budget; most end there, in about a millisecond. One that
needs more is asked again in a worker process, so nothing holds up this process. A large answer is
written to a file, so a slow client holds a file and not a worker; the client's leaving ends both.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import threading
import uuid
from collections.abc import AsyncGenerator, Callable, Mapping
from pathlib import Path
from typing import IO, Any, TypeVar

from quorepo.rpc.context import EdgeContext, Slots
from quorepo.rpc.reads import RepositoryView
from quorepo.storage.errors import LimitExceeded, NotFound
from quorepo.storage.history import revisions
from quorepo.storage.history.questions import WORKER_ONLY, answer
from quorepo.storage.history.source import Caches, History
from quorepo.storage.history.streams import (
    PART_HEADER,
    STREAMS,
    STREAMS_FOR_WORKERS,
    PartList,
    parts_of,
)
from quorepo.storage.patience import Patience, TooMuchWork, at_once

__all__ = ["HistoryReads", "head_of", "resolve"]

# On the event loop, before a reader thread is asked; each of them is about a millisecond.
_OBJECTS_AT_ONCE, _BYTES_AT_ONCE, _BUDGET_AT_ONCE = 100, 256 * 1024, 150
# Questions that mostly are that small.
_AT_ONCE = frozenset(
    {"tree", "is_ancestor", "diverging", "merge_bases", "stats", "changes", "last_commits"}
)
_STREAMED_AT_ONCE = frozenset({"diff", "blame"})
_BUDGET = 1500  # commits and trees looked at in this process: 10 to 20 ms
_STREAMED_HERE_BYTES_MAX = 1024 * 1024
_REPOSITORIES_CACHED_MAX = 16
_CACHED_MAX = 30_000  # commits, and pairs of tree entries, of one repository: about 12 MB

_T = TypeVar("_T")
Prepare = Callable[[History], Mapping[str, Any]]


def head_of(view: RepositoryView) -> bytes | None:
    """The object that HEAD leads to; None when its branch does not exist yet."""
    return view.row.detached_head or view.refs.get(view.head)


def resolve(history: History, view: RepositoryView, text: bytes) -> bytes:
    """The raw id of what a revision of a request names.

    Raises:
        InvalidArgument, NotFound
    """

    def lookup(name: bytes) -> bytes | None:
        return head_of(view) if name == b"HEAD" else view.refs.get(name)

    try:
        return revisions.resolve(history, text, lookup)
    except NotFound as error:
        raise NotFound(f"{error.message}, in repository {view.path!r}") from None


class HistoryReads:
    """Asks on behalf of the services. One per edge."""

    def __init__(self, edge: EdgeContext) -> None:
        self._edge = edge
        self._caches: collections.OrderedDict[str, Caches] = collections.OrderedDict()
        self._lock = threading.Lock()
        # One worker, if there are several, is left to pushes and fetches whatever reads need.
        self._workers = asyncio.Semaphore(max(1, edge.config.workers.count - 1))
        self._slots = Slots("reads", edge.config.workers.queue_max)
        self._folder = edge.config.node.data_dir / "tmp"

    def history(self, view: RepositoryView, budget: int | None = None) -> History:
        """What a view shows, with the caches of its repository. Opens pack indexes: call it off the
        event loop.
        """
        with self._lock:
            caches = self._caches.setdefault(view.repository_id, Caches())
            if len(caches.commits) + caches.tree_entries // 2 > _CACHED_MAX:
                caches = self._caches[view.repository_id] = Caches()
            self._caches.move_to_end(view.repository_id)
            while len(self._caches) > _REPOSITORIES_CACHED_MAX:
                self._caches.popitem(last=False)
        return History(view.packs, caches, budget)

    async def read(
        self, view: RepositoryView, function: Callable[[History], _T], *, small: bool = False
    ) -> _T:
        """What is no question of its own. With `small` it is tried at once, and goes to a reader
        thread when it was not that small: then `function` has run a part of its way twice."""
        if small:
            with contextlib.suppress(TooMuchWork):
                return self._at_once(view, function)
        return await self._edge.reads.in_thread(lambda: function(self.history(view)))

    def _at_once(self, view: RepositoryView, function: Callable[[History], _T]) -> _T:
        """On the event loop, where a millisecond is little and a hand-over to a thread and back
        costs a fifth of that. Raises TooMuchWork."""

        def ask() -> _T:
            view.packs  # noqa: B018 - opened in a thread
            return function(self.history(view, _BUDGET_AT_ONCE))

        return at_once(ask, Patience(_OBJECTS_AT_ONCE, _BYTES_AT_ONCE))

    async def ask(
        self,
        view: RepositoryView,
        question: str,
        prepare: Prepare,
        finish: Callable[[History, dict[str, Any]], _T],
        timeout_s: float,
        timeout_limit: str = "api.read_timeout_s",
    ) -> _T:
        """The answer to a question of `storage/history/questions.py`.

        `prepare` makes its arguments, `finish` the result of its answer; both read objects. They
        run here when the answer is small, in a reader thread when it is not, or first here and then
        once more there: what they leave behind must be the same then.

        Raises:
            LimitExceeded: it took longer than `timeout_s`; names `timeout_limit`.
            Unavailable: too many wait already.
        """

        def small(history: History) -> _T:
            return finish(history, answer(history, question, prepare(history)))

        if question in _AT_ONCE:
            with contextlib.suppress(TooMuchWork):
                found_at_once = self._at_once(view, small)
                self._edge.metrics.questions.labels(question, "edge").inc()
                return found_at_once

        def quickly() -> tuple[Mapping[str, Any], _T | None]:
            arguments = prepare(self.history(view))
            if question in WORKER_ONLY:
                return arguments, None
            try:
                found = answer(self.history(view, _BUDGET), question, arguments)
            except TooMuchWork:
                return arguments, None
            return arguments, finish(self.history(view), found)

        arguments, result = await self._edge.reads.in_thread(quickly)
        where = "worker" if result is None else "edge"
        self._edge.metrics.questions.labels(question, where).inc()
        if result is None:
            details = {"question": question, "arguments": arguments}
            found = await self._run(
                "history_answer", view, details, timeout_s, timeout_limit, lambda text: None
            )
            result = await self.read(view, lambda history: finish(history, found))
        return result

    async def stream(
        self, view: RepositoryView, question: str, prepare: Prepare, timeout_s: float
    ) -> AsyncGenerator[dict[str, Any] | bytes, None]:
        """The parts of an answer of `storage/history/streams.py`; raises what `ask` raises. Close
        it: that ends the work. `prepare` has run when the first part comes.
        """

        def small(history: History) -> list[dict[str, Any] | bytes]:
            out = PartList(_STREAMED_HERE_BYTES_MAX)
            STREAMS[question](history, prepare(history), out)
            return out.parts

        if question in _STREAMED_AT_ONCE:
            with contextlib.suppress(TooMuchWork):
                found_at_once = self._at_once(view, small)
                self._edge.metrics.questions.labels(question, "edge").inc()
                for part in found_at_once:
                    yield part
                return

        def quickly() -> tuple[Mapping[str, Any], list[dict[str, Any] | bytes] | None]:
            arguments = prepare(self.history(view))
            if question in STREAMS_FOR_WORKERS:
                return arguments, None
            out = PartList(_STREAMED_HERE_BYTES_MAX)
            try:
                STREAMS[question](self.history(view, _BUDGET), arguments, out)
            except TooMuchWork:
                return arguments, None
            return arguments, out.parts

        arguments, found = await self._edge.reads.in_thread(quickly)
        where = "worker" if found is None else "edge"
        self._edge.metrics.questions.labels(question, where).inc()
        if found is not None:
            for part in found:
                yield part
            return
        async with contextlib.aclosing(
            self._from_worker(view, question, arguments, timeout_s)
        ) as parts:
            async for part in parts:
                yield part

    async def _from_worker(
        self, view: RepositoryView, question: str, arguments: Mapping[str, Any], timeout_s: float
    ) -> AsyncGenerator[dict[str, Any] | bytes, None]:
        out = self._folder / f"read-{uuid.uuid4().hex}.parts"
        if question == "bundle":
            arguments = {**arguments, "pack": str(out.with_suffix(".pack"))}
        details = {"question": question, "arguments": arguments, "out": str(out)}
        grown = _Grown()
        job = asyncio.create_task(
            self._run("history_stream", view, details, timeout_s, "api.read_timeout_s", grown.told),
            name=f"history {question}",
        )
        job.add_done_callback(lambda _: grown.event.set())
        try:
            async with contextlib.aclosing(_parts(out, job, grown)) as parts:
                async for part in parts:
                    yield part
        finally:
            job.cancel()
            await asyncio.gather(job, return_exceptions=True)
            out.unlink(missing_ok=True)

    async def _run(
        self,
        job: str,
        view: RepositoryView,
        details: Mapping[str, Any],
        timeout_s: float,
        timeout_limit: str,
        progress: Callable[[str], None],
    ) -> dict[str, Any]:
        with self._slots.take():
            async with self._workers:
                repository = await self._edge.reads.in_thread(view.describe)
                try:
                    return await self._edge.workers.run(
                        job, {"repository": repository, **details}, timeout_s, progress
                    )
                except LimitExceeded as error:
                    if error.limit != "limits.worker_timeout_s":
                        raise
                    raise LimitExceeded(
                        f"the question {details['question']!r} took longer than {timeout_s:g} s "
                        f"(the caller's deadline, at most {timeout_limit})",
                        limit=timeout_limit,
                        next_step="ask for less, or ask the operator to raise the limit",
                    ) from None


class _Grown:
    """How much of a file can be read."""

    def __init__(self) -> None:
        self.size = 0
        self.event = asyncio.Event()

    def told(self, text: str) -> None:
        self.size = int(text)
        self.event.set()


async def _parts(
    path: Path, job: asyncio.Task[dict[str, Any]], grown: _Grown
) -> AsyncGenerator[dict[str, Any] | bytes, None]:
    """The parts of a file as it grows. Raises what the job raises."""
    position = 0
    with contextlib.ExitStack() as stack:
        file: IO[bytes] | None = None
        while True:
            await grown.event.wait()
            grown.event.clear()
            is_finished = job.done()
            if is_finished:
                job.result()
            if file is None and grown.size:
                # From the page cache: a thread per chunk costs more than it saves (processes.md).
                file = stack.enter_context(path.open("rb"))
            while file is not None and position < grown.size:
                kind, size = PART_HEADER.unpack(file.read(PART_HEADER.size))
                body = file.read(size)
                position += PART_HEADER.size + size
                for part in parts_of(PART_HEADER.pack(kind, size) + body):
                    yield part
            if is_finished:
                return
