"""Everything in the engine that waits, and when it stops waiting. Knows nothing of what is waited
for.

Owns: the attempts, reads and other waiters of one group by deadline. Defect of pysyncobj: 290 of
20,263 callbacks were never called under connection resets; here every wait ends by its deadline
at the latest.
"""

from __future__ import annotations

import heapq
import itertools
import math
from typing import Protocol

__all__ = ["Deadlines", "Waiter"]

_COMPACT_ABOVE = 1024  # entries in the heap below which dead ones may stay


class Waiter(Protocol):
    """Somebody who waits."""

    deadline: float  # on the engine's monotonic clock, seconds

    @property
    def done(self) -> bool:
        """Whether the answer was given."""

    def expire(self) -> None:
        """The deadline passed: gives the answer that is true then."""


class Deadlines:
    """The waiters of one group. Only the Raft thread uses it."""

    def __init__(self) -> None:
        self._heap: list[tuple[float, int, Waiter]] = []
        self._order = itertools.count()
        self._compact_at = _COMPACT_ABOVE

    def add(self, waiter: Waiter) -> None:
        heapq.heappush(self._heap, (waiter.deadline, next(self._order), waiter))
        if len(self._heap) > self._compact_at:
            # Most waits end long before their deadline; the heap must not grow with the rate.
            self._heap = [item for item in self._heap if not item[2].done]
            heapq.heapify(self._heap)
            self._compact_at = max(_COMPACT_ABOVE, 2 * len(self._heap))

    def next(self) -> float:
        """The earliest deadline of anybody who still waits; infinite when nobody does."""
        while self._heap and self._heap[0][2].done:
            heapq.heappop(self._heap)
        return self._heap[0][0] if self._heap else math.inf

    def expire(self, now: float) -> None:
        """Ends every wait whose deadline passed."""
        while self._heap and self._heap[0][0] <= now:
            waiter = heapq.heappop(self._heap)[2]
            if not waiter.done:
                waiter.expire()

    def end_all(self) -> list[Waiter]:
        """Forgets everybody; returns those who still wait."""
        waiters = [waiter for _, _, waiter in sorted(self._heap) if not waiter.done]
        self._heap.clear()
        return waiters
