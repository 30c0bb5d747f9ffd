"""Streams of bytes inside gRPC messages: a header first, chunks, and a digest last.

Owns the order of the messages and their bounds, in both directions. Must not know any service, or
what the bytes mean.
"""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

from quorepo.rpc.reply import Bytes
from quorepo.storage.errors import InvalidArgument

__all__ = ["CHUNK_BYTES_MAX", "ByteRequest", "StreamReply"]

CHUNK_BYTES_MAX = 256 * 1024
_PIECES_AHEAD = 2  # of an answer, made and not yet taken by the client's flow control


class ByteRequest:
    """The messages of one call: each has a `oneof part` of header, chunk and sha256."""

    def __init__(self, messages: AsyncIterator[Any], method: str) -> None:
        """`method` is what errors call it."""
        self._messages = messages
        self._method = method

    async def header(self) -> Any:
        """The first message's header. Raises InvalidArgument: it is something else."""
        first = await anext(self._messages, None)
        if first is None or first.WhichOneof("part") != "header":
            raise InvalidArgument(f"the first message of {self._method} must be a header")
        return first.header

    async def chunks(self) -> AsyncIterator[bytes]:
        """The bytes, piece by piece; the last of them only after the digest was right, so that
        whoever acts on all of them acts on what was sent.

        Raises:
            InvalidArgument: the stream was cut or damaged, or a message is out of place.
        """
        digest, held = hashlib.sha256(), b""
        async for message in self._messages:
            part = message.WhichOneof("part")
            if part == "sha256":
                if message.sha256 != digest.digest():
                    raise InvalidArgument("sha256 is not that of the chunks that arrived")
                if held:
                    yield held
                return
            if part != "chunk":
                raise InvalidArgument(f"message {part or 'without a part'!r} is out of place")
            if len(message.chunk) > CHUNK_BYTES_MAX:
                raise InvalidArgument(
                    f"a chunk has {len(message.chunk)} bytes, at most {CHUNK_BYTES_MAX} are taken"
                )
            digest.update(message.chunk)
            if held and message.chunk:
                yield held
            held = message.chunk or held
        raise InvalidArgument("the stream was cut: its last message must be sha256")


class StreamReply:
    """A `Reply` whose bytes leave as chunks; whoever writes waits while the client is slow."""

    def __init__(self, on_bytes: Callable[[int], None]) -> None:
        """`on_bytes` is told how many bytes were handed on (for metrics)."""
        self._on_bytes = on_bytes
        self._pieces: asyncio.Queue[bytes | None] = asyncio.Queue()
        self._room = asyncio.Semaphore(_PIECES_AHEAD)
        self._digest = hashlib.sha256()
        self.size_bytes = 0
        self.aborted = False

    async def write(self, data: Bytes) -> None:
        """Queues bytes; waits while the client is slow. A client that is gone cancels the work."""
        for piece in _split(data):
            await self._room.acquire()
            self._pieces.put_nowait(piece)

    async def write_last(self, data: Bytes) -> None:
        """The same: the end of a call has a message of its own."""
        await self.write(data)

    def close_after(self) -> None:
        """A call has a connection to itself as far as it can tell: nothing to close."""

    def abort(self) -> None:
        """The answer can't be completed: no trailer follows."""
        self.aborted = True

    def end(self) -> None:
        """Nothing more is written; `pieces` ends when all has been taken."""
        self._pieces.put_nowait(None)

    @property
    def sha256(self) -> bytes:
        """Of all pieces that were taken."""
        return self._digest.digest()

    async def pieces(self) -> AsyncIterator[bytes]:
        """What was written, in pieces of at most `CHUNK_BYTES_MAX`."""
        while (piece := await self._pieces.get()) is not None:
            self._digest.update(piece)
            self.size_bytes += len(piece)
            self._on_bytes(len(piece))
            yield piece
            self._room.release()


def _split(data: Bytes) -> Iterator[bytes]:
    view = memoryview(data)
    for start in range(0, len(view), CHUNK_BYTES_MAX):
        yield bytes(view[start : start + CHUNK_BYTES_MAX])
