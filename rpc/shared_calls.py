"""One call for all who ask for the same thing at the same time.

Owns who waits for a running call and when it is cancelled. Must not know what is called.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Hashable
from typing import Generic, TypeVar

__all__ = ["SharedCalls", "Tell"]

_T = TypeVar("_T")

Tell = Callable[[str], None]


class _Running(Generic[_T]):
    def __init__(self) -> None:
        self.task: asyncio.Task[_T] | None = None
        self.listeners: list[Tell] = []

    def tell(self, text: str) -> None:
        for listener in self.listeners:
            listener(text)


class SharedCalls(Generic[_T]):
    """Calls under way, by key. Used on one event loop."""

    def __init__(self) -> None:
        self._running: dict[Hashable, _Running[_T]] = {}

    def __len__(self) -> int:
        return len(self._running)

    def __contains__(self, key: Hashable) -> bool:
        return key in self._running

    async def run(self, key: Hashable, call: Callable[[Tell], Awaitable[_T]], listener: Tell) -> _T:
        """The result of the running call for `key`, or of `call`, which then is that.

        `call` is given a function that tells progress to the listeners of all who wait. When one
        of them is cancelled the call goes on for the others; when the last one is, it is cancelled
        too. Raises what the call raises.
        """
        running = self._running.get(key)
        if running is None:
            running = self._running[key] = _Running()
            running.task = asyncio.create_task(self._call(key, call, running))
        assert running.task is not None
        running.listeners.append(listener)
        try:
            return await asyncio.shield(running.task)
        finally:
            running.listeners.remove(listener)
            if not running.listeners and not running.task.done():
                # Whoever comes now starts anew, and does not share the cancellation.
                self._forget(key, running)
                running.task.cancel()
                # Its end belongs to this one: the files of a call are gone when this returns.
                await asyncio.wait({running.task})

    async def _call(
        self, key: Hashable, call: Callable[[Tell], Awaitable[_T]], running: _Running[_T]
    ) -> _T:
        try:
            return await call(running.tell)
        finally:
            self._forget(key, running)

    def _forget(self, key: Hashable, running: _Running[_T]) -> None:
        if self._running.get(key) is running:
            del self._running[key]
