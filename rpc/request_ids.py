"""Request ids that know when they were made: UUIDs of version 7 (RFC 9562, section 5.7).

A request is remembered for `REQUEST_WINDOW_MS` of log time. A repeat that arrives after it must
not be applied a second time, so apply refuses a command that was first seen before the window. Only
the client knows when it made the request first: the time stands in the id itself, and every repeat
carries it. An id of another version is taken too; its time is that of its arrival, so for it the
promise ends with the window.

Needs only the standard library: the client uses it as well.
"""

from __future__ import annotations

import os
import time
import uuid

__all__ = ["made_at_ms", "new_request_uuid"]

_RANDOM_A_MASK = 0x0FFF
_RANDOM_B_MASK = 0x3FFF_FFFF_FFFF_FFFF


def new_request_uuid(now_ms: int | None = None) -> uuid.UUID:
    """A new id, made at `now_ms` (Unix time in ms; by default the clock's)."""
    made_ms = time.time_ns() // 1_000_000 if now_ms is None else now_ms
    random = int.from_bytes(os.urandom(10), "big")
    value = (made_ms & 0xFFFF_FFFF_FFFF) << 80
    value |= 0x7000 << 64 | ((random >> 64) & _RANDOM_A_MASK) << 64
    value |= 0b10 << 62 | random & _RANDOM_B_MASK
    return uuid.UUID(int=value)


def made_at_ms(request_id: bytes) -> int | None:
    """When the id was made, Unix time in ms; None when it is no UUID of version 7.

    Args:
        request_id: 16 bytes.
    """
    if len(request_id) != 16 or request_id[6] >> 4 != 7 or request_id[8] >> 6 != 0b10:
        return None
    return int.from_bytes(request_id[:6], "big")
