"""A pack on its way in: chunks are collected into batches, which threads write.

Owns the order of the writes and that one runs while the next chunks come in. Must not know where
the chunks come from.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable

from quorepo.cluster.peer.pack_files import PackWriter
from quorepo.storage.errors import QuorepoError

__all__ = ["Arrival"]


class Arrival:
    """Collects chunks into batches; one batch is written while the next one comes in."""

    def __init__(
        self,
        writer: PackWriter,
        run: Callable[..., Awaitable[None]],
        batch_bytes: int,
    ) -> None:
        self._writer = writer
        self._run = run
        self._batch_bytes = batch_bytes
        self._batch: list[bytes] = []
        self._batch_size = 0
        self._writing: asyncio.Future[None] | None = None
        self.received_bytes = 0

    async def feed(self, chunk: bytes) -> None:
        self._batch.append(chunk)
        self._batch_size += len(chunk)
        self.received_bytes += len(chunk)
        if self._batch_size >= self._batch_bytes:
            await self._settle()
            self._writing = asyncio.ensure_future(self._run(self._writer.write, self._batch))
            self._batch, self._batch_size = [], 0

    async def finish(self) -> None:
        """A small pack comes here in one batch: one hop writes, checks and syncs it."""
        await self._settle()
        await self._run(self._writer.finish, self._batch)

    async def restart(self) -> None:
        with contextlib.suppress(QuorepoError):
            await self._settle()
        self._batch, self._batch_size, self.received_bytes = [], 0, 0
        await self._run(self._writer.restart)

    def abandon(self) -> None:
        """The transfer ended; whatever a write under way still says is of no interest."""
        if self._writing is not None:
            self._writing.add_done_callback(lambda task: task.cancelled() or task.exception())

    async def _settle(self) -> None:
        writing, self._writing = self._writing, None
        if writing is not None:
            await writing
