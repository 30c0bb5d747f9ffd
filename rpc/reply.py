"""The answer to one git request while it is being made: bytes out, and signs of life in between.

Owns the order of what is written by two tasks. Must not know HTTP, SSH or what the bytes mean.
"""

from __future__ import annotations

import asyncio
import logging
from typing import Protocol

__all__ = ["Bytes", "Liveness", "Reply"]

Bytes = bytes | bytearray | memoryview

log = logging.getLogger(__name__)

KEEPALIVE_INTERVAL_S = 5.0
_PROGRESS_DELAY_S = 1.0  # nobody wants to read about work that was over at once
_PENDING_MAX = 16  # progress texts waiting for a slow client; older ones are dropped


class Reply(Protocol):
    """Where the bytes of an answer go. The first `write` begins the answer."""

    async def write(self, data: Bytes) -> None:
        """Sends bytes; waits while the client is slow. Raises ConnectionError when it is gone."""

    async def write_last(self, data: Bytes) -> None:
        """The same with the last bytes of a complete answer, so that its end goes with them."""

    def close_after(self) -> None:
        """The request was not read to its end: do not reuse the connection."""

    def abort(self) -> None:
        """The answer can't be completed, and nothing in its format says so: cut it off."""


class Liveness:
    """Within its `async with` block, a silent answer sends progress or, every 5 s, a keepalive."""

    def __init__(
        self, reply: Reply, keepalive: bytes, interval_s: float = KEEPALIVE_INTERVAL_S
    ) -> None:
        """`keepalive` is b"" when the client has no band for it: then nothing is ever sent."""
        self._reply = reply
        self._keepalive = keepalive
        self._interval_s = interval_s
        self._pending: list[bytes] = []
        self._stop = asyncio.Event()
        self._task: asyncio.Task[None] | None = None

    def say(self, frames: bytes) -> None:
        """Queues progress; sent when the work has taken a second. Called on the event loop."""
        if frames:
            self._pending.append(frames)
            del self._pending[:-_PENDING_MAX]

    async def __aenter__(self) -> Liveness:
        if self._keepalive:
            self._task = asyncio.create_task(self._run())
        return self

    async def __aexit__(self, kind: type[BaseException] | None, *_exception: object) -> None:
        if self._task is None:
            return
        self._stop.set()
        if kind is not None and issubclass(kind, asyncio.CancelledError):
            self._task.cancel()
        await asyncio.wait({self._task})  # a frame is never cut by what is written next
        if not self._task.cancelled() and (error := self._task.exception()) is not None:
            log.debug("client is gone", exc_info=error)  # the next write says so too

    async def _run(self) -> None:
        loop = asyncio.get_running_loop()
        written_at = loop.time()
        while not await self._stopped_within(_PROGRESS_DELAY_S):
            frames, self._pending = b"".join(self._pending), []
            if not frames and loop.time() - written_at >= self._interval_s:
                frames = self._keepalive
            if frames:
                await self._reply.write(frames)
                written_at = loop.time()

    async def _stopped_within(self, seconds: float) -> bool:
        try:
            async with asyncio.timeout(min(seconds, self._interval_s)):
                await self._stop.wait()
        except TimeoutError:
            return False
        return True
