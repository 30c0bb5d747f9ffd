"""One look at how far this node has applied its log, for all who wait for more of it.

Watchers do not ask SQLite one by one: while there are any, one task reads the applied index and
wakes those who wait. Must not know what a watcher reads then, nor gRPC.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator

__all__ = ["AppliedFeed"]

_INTERVAL_S = 0.05


class AppliedFeed:
    """Owned by one event loop."""

    def __init__(
        self, read_applied: Callable[[], Awaitable[int]], is_stopping: Callable[[], bool]
    ) -> None:
        self._read_applied = read_applied
        self._is_stopping = is_stopping
        self._applied = 0
        self._failure: Exception | None = None
        self._changed = asyncio.Event()
        self._sent: dict[object, int] = {}  # log index that each watcher has been told up to
        self._task: asyncio.Task[None] | None = None

    @property
    def watchers(self) -> int:
        """How many there are."""
        return len(self._sent)

    def lag_entries(self) -> int:
        """Log entries that the slowest watcher has not been told of; 0 without watchers."""
        return max((self._applied - sent for sent in self._sent.values()), default=0)

    @contextlib.contextmanager
    def watching(self) -> Iterator[object]:
        """One watcher, by its key for the other calls; the last one that leaves ends the task."""
        key = object()
        self._sent[key] = self._applied
        if self._task is None:
            self._task = asyncio.create_task(self._follow(), name="applied feed")
        try:
            yield key
        finally:
            del self._sent[key]
            if not self._sent:
                self._task.cancel()
                self._task = None

    def told(self, key: object, index: int) -> None:
        """The watcher has everything up to a log index."""
        self._sent[key] = index

    async def wait(self, applied: int, timeout_s: float) -> None:
        """Returns once more than `applied` is applied, this node is stopping, or the time is over.

        Raises:
            QuorepoError: the state can't be read.
        """
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(timeout_s):
                while self._applied <= applied and not self._is_stopping():
                    if self._failure is not None:
                        raise self._failure
                    await self._changed.wait()

    async def _follow(self) -> None:
        while True:
            try:
                applied, failure = await self._read_applied(), None
            except Exception as error:  # whoever waits is told what it is  # noqa: BLE001
                applied, failure = self._applied, error
            news = applied != self._applied or failure is not None or self._failure is not None
            if news or self._is_stopping():
                self._applied, self._failure = applied, failure
                # Who waits next, waits for the next change.
                changed, self._changed = self._changed, asyncio.Event()
                changed.set()
            await asyncio.sleep(_INTERVAL_S)
