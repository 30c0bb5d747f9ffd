"""A pack on its way in: from a request body, under limits, into a quarantine file.

Owns the bytes until a worker takes the file over. Must not know HTTP, git commands or what a pack
is.
"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import os
import threading
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from quorepo.storage.disk_space import DiskReserve
from quorepo.storage.errors import LimitExceeded, StorageFull, Unavailable
from quorepo.storage.layout import GroupLayout

__all__ = ["Incoming", "Upload", "remove_abandoned_uploads"]

_BATCH_BYTES = 1024 * 1024  # one hop to a thread per MiB
_IDLE_TIMEOUT_S = 120.0
_DRAIN_TIMEOUT_S = 60.0


class Incoming:
    """A request body that is read piece by piece, each piece within a bounded time."""

    def __init__(
        self,
        chunks: AsyncIterator[bytes],
        on_bytes: Callable[[int], None] = lambda count: None,
        idle_timeout_s: float = _IDLE_TIMEOUT_S,
    ) -> None:
        """`on_bytes` is told how many bytes arrived (for metrics)."""
        self._chunks = chunks
        self._on_bytes = on_bytes
        self._idle_timeout_s = idle_timeout_s
        self._pushed_back = b""
        self.received_bytes = 0

    async def read(self) -> bytes:
        """The next piece; b"" at the end.

        Raises:
            Unavailable: the client sent nothing for the idle timeout.
        """
        if self._pushed_back:
            piece, self._pushed_back = self._pushed_back, b""
            return piece
        try:
            async with asyncio.timeout(self._idle_timeout_s):
                piece = await anext(self._chunks, b"")
        except TimeoutError as error:
            raise Unavailable(f"nothing arrived for {self._idle_timeout_s:g} s") from error
        self.received_bytes += len(piece)
        self._on_bytes(len(piece))
        return piece

    def push_back(self, piece: bytes) -> None:
        """Gives back bytes that the next `read` returns first."""
        self._pushed_back = piece + self._pushed_back

    async def read_all(self, bytes_max: int, limit: str) -> bytes:
        """The whole body.

        Raises:
            LimitExceeded: more than `bytes_max` bytes; `limit` is the configuration key.
        """
        pieces: list[bytes] = []
        total = 0
        while piece := await self.read():
            total += len(piece)
            if total > bytes_max:
                raise LimitExceeded(f"the request exceeds {limit} ({bytes_max} bytes)", limit=limit)
            pieces.append(piece)
        return b"".join(pieces)

    async def drain(self, bytes_max: int, timeout_s: float = _DRAIN_TIMEOUT_S) -> bool:
        """Throws the rest away, so that the client gets to read the answer.

        Returns:
            False when the rest is longer, or takes longer, than that: close the connection.
        """
        dropped = 0
        try:
            async with asyncio.timeout(timeout_s):
                while piece := await self.read():
                    dropped += len(piece)
                    if dropped > bytes_max:
                        return False
        except (TimeoutError, Unavailable):
            return False
        return True


class Upload:
    """One `quarantine/upload-<uuid>.tmp`; gone when the `async with` block ends, in any way."""

    def __init__(self, layout: GroupLayout, disk: DiskReserve) -> None:
        """`disk` is asked before each write whether this node takes anything new."""
        self._disk = disk
        self.path: Path = layout.new_upload()
        self.size_bytes = 0
        self._descriptor = -1
        # A cancelled `receive` leaves its thread writing: closing has to wait for it, or the number
        # of the descriptor could belong to another file by then.
        self._lock = threading.Lock()

    async def __aenter__(self) -> Upload:
        self._disk.check_new()
        flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC
        self._descriptor = await asyncio.to_thread(os.open, self.path, flags, 0o600)
        return self

    async def __aexit__(self, *exception: object) -> None:
        self._close()
        with contextlib.suppress(FileNotFoundError):  # the worker took it
            self.path.unlink()

    async def receive(self, incoming: Incoming, bytes_max: int) -> None:
        """Writes the rest of `incoming` to the file, off the event loop.

        Raises:
            LimitExceeded: more than `bytes_max` bytes arrived; the file is empty then.
            StorageFull: this node's disk is below its reserve.
        """
        batch = bytearray()
        while piece := await incoming.read():
            batch += piece
            if self.size_bytes + len(batch) > bytes_max:
                await asyncio.to_thread(os.ftruncate, self._descriptor, 0)
                raise LimitExceeded(
                    f"pack exceeds limits.push_bytes_max ({bytes_max} bytes)",
                    limit="limits.push_bytes_max",
                )
            if len(batch) >= _BATCH_BYTES:
                await self._write(batch)
                batch = bytearray()
        if batch:
            await self._write(batch)
        self._close()

    async def _write(self, batch: bytearray) -> None:
        self._disk.check_new(len(batch))
        await asyncio.to_thread(self._write_all, batch)
        self.size_bytes += len(batch)

    def _write_all(self, batch: bytearray) -> None:
        with self._lock:
            if self._descriptor < 0:
                return  # cancelled before this thread began
            view = memoryview(batch)
            try:
                while view:
                    view = view[os.write(self._descriptor, view) :]
            except OSError as error:
                if error.errno in (errno.ENOSPC, errno.EDQUOT):
                    raise StorageFull("no room for the pack on this node's disk") from error
                raise

    def _close(self) -> None:
        with self._lock:
            if self._descriptor >= 0:
                os.close(self._descriptor)
                self._descriptor = -1


def remove_abandoned_uploads(layout: GroupLayout) -> int:
    """Removes what an edge that was killed left behind; only before this edge takes its first push.

    Returns:
        How many files.
    """
    count = 0
    for path in layout.quarantine.glob("upload-*.tmp"):
        path.unlink(missing_ok=True)
        count += 1
    return count
