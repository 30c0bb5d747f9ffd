"""Slows a transfer down to so many bytes per second."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

__all__ = ["Pace"]

_BURST_S = 0.25  # what was not used for longer than this is lost


class Pace:
    """Shared by all transfers that together must not be faster; used on one event loop."""

    def __init__(self, bytes_per_s: int, monotonic: Callable[[], float] = time.monotonic) -> None:
        """0: no limit."""
        self._bytes_per_s = bytes_per_s
        self._monotonic = monotonic
        self._free_at = monotonic()

    async def __call__(self, size_bytes: int) -> None:
        """Waits until `size_bytes` more may be used."""
        if not self._bytes_per_s:
            return
        now = self._monotonic()
        starts_at = max(self._free_at, now - _BURST_S)
        self._free_at = starts_at + size_bytes / self._bytes_per_s
        if self._free_at > now:
            await asyncio.sleep(self._free_at - now)
