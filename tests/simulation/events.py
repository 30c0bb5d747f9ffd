"""The virtual clock: what happens when, in one order for every seed.

Owns time. Must not know what happens.
"""

from __future__ import annotations

import heapq
import itertools
import random
import zlib
from collections.abc import Callable

__all__ = ["Events", "SimulatedCrash", "Violation"]


class Violation(AssertionError):
    """A promise of the product was broken."""


class SimulatedCrash(BaseException):
    """The node ended in the middle of an operation on its disk."""

    def __init__(self, *, power: bool) -> None:
        super().__init__("power loss" if power else "kill")
        self.power = power


class Events:
    """A queue of events by virtual time, and the trace of what happened."""

    def __init__(self, seed: int, *, keep_trace: bool = False) -> None:
        self.rng = random.Random(seed)
        self.now = 1000.0
        self.trace_hash = 0
        self.trace: list[str] | None = [] if keep_trace else None
        self._heap: list[tuple[float, int, Callable[[], None]]] = []
        self._order = itertools.count()

    def after(self, delay_s: float, action: Callable[[], None]) -> None:
        heapq.heappush(self._heap, (self.now + delay_s, next(self._order), action))

    def run(self, seconds: float) -> None:
        """Lets virtual time pass."""
        end = self.now + seconds
        heap = self._heap
        while heap and heap[0][0] <= end:
            at, _, action = heapq.heappop(heap)
            if at > self.now:
                self.now = at
            action()
        self.now = end

    def run_until(self, condition: Callable[[], bool], seconds: float, promise: str) -> None:
        """Lets virtual time pass until `condition` holds; `promise` is broken after `seconds`."""
        end = self.now + seconds
        while not condition():
            if self.now >= end:
                raise Violation(f"liveness: {promise} within {seconds:g} s")
            self.run(0.05)

    def note(self, what: str) -> None:
        """Something that makes one run differ from another: part of the trace."""
        line = f"{self.now:.6f} {what}"
        self.trace_hash = zlib.crc32(line.encode(), self.trace_hash)
        if self.trace is not None:
            self.trace.append(line)
