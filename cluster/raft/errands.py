"""Work that other threads have done on the Raft thread, and what a host says and has by default.

Owns nothing of a group; the host runs an errand between two turns.
"""

from __future__ import annotations

import math
from concurrent.futures import Future
from typing import Generic, Protocol, TypeVar

from quorepo.cluster.raft.deadlines import Waiter
from quorepo.cluster.raft.interface import Outcome, Proposal
from quorepo.storage.errors import Unavailable

__all__ = ["AmpleSpace", "Errand", "StoppableWaiter", "refused"]

T = TypeVar("T")


class StoppableWaiter(Waiter, Protocol):
    """A waiter that is told when the host ends."""

    def stop(self) -> None: ...


class Errand(Generic[T]):
    """One piece of work, for somebody who waits for its future."""

    def __init__(self) -> None:
        self.future: Future[T] = Future()
        self.future.set_running_or_notify_cancel()
        self.deadline = math.inf

    @property
    def done(self) -> bool:
        return self.future.done()

    def expire(self) -> None:
        self.stop()

    def stop(self) -> None:
        self.future.set_exception(Unavailable("the node is stopping"))


class AmpleSpace:
    """A disk that never fills: `interface.DiskSpace` for a host without one."""

    def low(self) -> bool:
        return False

    def full(self) -> bool:
        return False


def refused(reason: str) -> Future[Proposal]:
    """The verdict on a proposal that never got to the Raft thread."""
    future: Future[Proposal] = Future()
    future.set_result(Proposal(Outcome.NOT_APPLIED, reason=reason))
    return future
