"""A finished answer on its way to a client: file parts in, frames out.

Owns the cutting into side-band frames at little CPU per byte: the headers of full frames stand in a
template, and the file is read between them (`os.preadv`), so no byte is copied in Python. Writes
are of 256 KiB (see processes.md).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from io import FileIO

from quorepo.rpc.fetch_cache import Answer
from quorepo.rpc.reply import Bytes, Reply
from quorepo.storage.errors import DamagedPack, Unavailable
from quorepo.storage.git.fetch_answer import BAND_PACK, fetch_epilogue, pack_frames
from quorepo.storage.git.fetch_request import FetchRequest
from quorepo.storage.git.pktline import PACKET_BYTES_MAX

__all__ = ["send_pack"]

_HEADER_BYTES = 5
_PAYLOAD_BYTES = PACKET_BYTES_MAX - _HEADER_BYTES
_FRAMES = 4
_BATCH_BYTES = _FRAMES * _PAYLOAD_BYTES
_TEMPLATE = (b"%04x%c" % (PACKET_BYTES_MAX, BAND_PACK) + bytes(_PAYLOAD_BYTES)) * _FRAMES


async def send_pack(reply: Reply, request: FetchRequest, answer: Answer, before: bytes) -> int:
    """Writes `before`, the answer's pack in frames as this client reads them, and what ends it.
    Returns the pack's bytes.

    Raises:
        DamagedPack: a file is not there any more, or of a small answer too short; nothing was
            written.
        Unavailable: a file turned out to be too short in the middle of the answer.
        ConnectionError: the client is gone.
    """
    with answer.open() as files:
        if answer.is_sealed and answer.pack_bytes <= _BATCH_BYTES:
            await reply.write_last(before + _small(request, files) + fetch_epilogue(request))
            return answer.pack_bytes
        answer.start_trailer()
        if before:
            await reply.write(before)
        for file, start, end in files:
            for size, offset in _batches(start, end):
                if request.side_band == PACKET_BYTES_MAX:
                    await reply.write(_read_framed(file.fileno(), size, offset))
                else:
                    data = _read(file.fileno(), size, offset)
                    await reply.write(pack_frames(request, data))
        trailer = await answer.trailer()
        last = pack_frames(request, trailer) if trailer else b""
        if last := last + fetch_epilogue(request):
            await reply.write_last(last)
    return answer.pack_bytes


def _small(request: FetchRequest, files: list[tuple[FileIO, int, int]]) -> bytes:
    """All of an answer's frames: one write saves more than the copies of its bytes cost."""
    try:
        parts = [_read(file.fileno(), end - start, start) for file, start, end in files]
    except Unavailable as error:
        raise DamagedPack(error.message, next_step="try again") from error
    return pack_frames(request, b"".join(parts))


def _read(descriptor: int, size: int, offset: int) -> bytes:
    data = os.pread(descriptor, size, offset)
    if len(data) < size:
        raise _too_short()
    return data


def _batches(start: int, end: int) -> Iterator[tuple[int, int]]:
    """(size, offset) of what is read and written at once."""
    for offset in range(start, end, _BATCH_BYTES):
        yield min(_BATCH_BYTES, end - offset), offset


def _read_framed(descriptor: int, size: int, offset: int) -> Bytes:
    """`size` bytes of the file, at most a batch, in frames.

    A new buffer every time: what the socket does not take at once refers to it.
    """
    buffer = bytearray(_TEMPLATE)
    view = memoryview(buffer)
    payloads = []
    left, start = size, 0
    while left:
        taken = min(left, _PAYLOAD_BYTES)
        if taken < _PAYLOAD_BYTES:
            view[start : start + 4] = b"%04x" % (taken + _HEADER_BYTES)
        payloads.append(view[start + _HEADER_BYTES : start + _HEADER_BYTES + taken])
        start += _HEADER_BYTES + taken
        left -= taken
    if os.preadv(descriptor, payloads, offset) < size:
        raise _too_short()
    return buffer if start == len(buffer) else view[:start]


def _too_short() -> Unavailable:
    return Unavailable("a file is shorter than it was", next_step="try again")
