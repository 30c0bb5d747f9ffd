"""Frames between a process and its workers: four bytes of length, then JSON.

Owns the encoding, nothing of what is said. No pickle: a worker handles hostile packs, and what it
says must never be able to run code in its parent.
"""

from __future__ import annotations

import json
import struct
from typing import IO, Any, Final

__all__ = ["FRAME_BYTES_MAX", "FRAME_HEADER", "decode_frame", "encode_frame", "read_frame"]

FRAME_BYTES_MAX: Final = 256 * 1024 * 1024  # a request with a million ids of tips has 70 MB
FRAME_HEADER: Final = struct.Struct(">L")


def encode_frame(value: dict[str, Any]) -> bytes:
    """One frame. Raises ValueError when it is too long, TypeError when it is not JSON."""
    body = json.dumps(value, separators=(",", ":")).encode()
    if len(body) > FRAME_BYTES_MAX:
        raise ValueError(f"a frame of {len(body)} bytes exceeds {FRAME_BYTES_MAX}")
    return FRAME_HEADER.pack(len(body)) + body


def decode_frame(body: bytes) -> dict[str, Any]:
    """The value of a frame's body. Raises ValueError when it is not a JSON object."""
    value = json.loads(body)
    if not isinstance(value, dict):
        raise ValueError("a frame holds something else than an object")
    return value


def read_frame(file: IO[bytes]) -> dict[str, Any] | None:
    """The next frame; None at the end of the stream, also in the middle of a frame."""
    header = file.read(FRAME_HEADER.size)
    if len(header) < FRAME_HEADER.size:
        return None
    (size,) = FRAME_HEADER.unpack(header)
    if size > FRAME_BYTES_MAX:
        raise ValueError(f"a frame of {size} bytes exceeds {FRAME_BYTES_MAX}")
    body = file.read(size)
    return decode_frame(body) if len(body) == size else None
