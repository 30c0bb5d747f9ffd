"""The reserve of a node's disk: below it nothing new is begun, so that what was begun can end.

Owns the question how much is free and the words of the refusal. The reserve covers what follows
from writes that are accepted already: journal records, SQLite's files, packs that are promoted.
Between the reserve and half of it a replica still takes over what others accepted; below that,
nothing. Both ends recover by themselves when space returns, a little above where they began.

Must not know who asks. Thread-safe; a look at the disk costs some microseconds and is kept for a
moment.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable
from pathlib import Path

from quorepo.storage.errors import StorageFull

__all__ = ["RESERVE_KEY", "DiskReserve"]

RESERVE_KEY = "storage.reserve_bytes"
_LOOK_INTERVAL_S = 0.25
_RECOVERY_MARGIN = 1.05  # of the mark: what is freed and used again must not switch it to and fro


class DiskReserve:
    """Implements `cluster.raft.interface.DiskSpace` for the file system of one folder."""

    def __init__(
        self,
        path: Path,
        reserve_bytes: int,
        *,
        statvfs: Callable[[Path], os.statvfs_result] = os.statvfs,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """`reserve_bytes` 0 switches the reserve off."""
        self._path = path
        self._reserve_bytes = reserve_bytes
        self._statvfs = statvfs
        self._monotonic = monotonic
        self._lock = threading.Lock()
        self._looked_at = float("-inf")
        self._free_bytes = 0
        self._low = False
        self._full = False

    @property
    def reserve_bytes(self) -> int:
        return self._reserve_bytes

    def free_bytes(self) -> int:
        """Bytes that this user may still write."""
        self._look()
        return self._free_bytes

    def low(self) -> bool:
        """Whether nothing new may be begun."""
        self._look()
        return self._low

    def full(self) -> bool:
        """Whether nothing may be taken over from others either."""
        self._look()
        return self._full

    def check_new(self, size_bytes: int = 0) -> None:
        """Raises StorageFull when `size_bytes` of something new would not leave the reserve."""
        if self._reserve_bytes and (self.low() or self._lacks(size_bytes, self._reserve_bytes)):
            raise self._refusal(self._reserve_bytes)

    def check_taken_over(self, size_bytes: int) -> None:
        """Raises StorageFull when `size_bytes` that others accepted would not fit either."""
        mark = self._reserve_bytes // 2
        if self._reserve_bytes and (self.full() or self._lacks(size_bytes, mark)):
            raise self._refusal(mark)

    def _lacks(self, size_bytes: int, mark: int) -> bool:
        return self._free_bytes - size_bytes < mark

    def _refusal(self, mark: int) -> StorageFull:
        share = "" if mark == self._reserve_bytes else " / 2"
        return StorageFull(
            f"the disk of this node is full: {self._free_bytes} bytes are free, and "
            f"{RESERVE_KEY}{share} = {mark} are kept in reserve",
            next_step=f"free space below its data directory, or lower {RESERVE_KEY}",
        )

    def _look(self) -> None:
        now = self._monotonic()
        if now < self._looked_at + _LOOK_INTERVAL_S:
            return
        with self._lock:
            self._looked_at = now
            status = self._statvfs(self._path)
            self._free_bytes = status.f_bavail * status.f_frsize
            self._low = self._is_below(self._reserve_bytes, self._low)
            self._full = self._is_below(self._reserve_bytes // 2, self._full)

    def _is_below(self, mark: int, was_below: bool) -> bool:
        return self._free_bytes < (mark * _RECOVERY_MARGIN if was_below else mark)
