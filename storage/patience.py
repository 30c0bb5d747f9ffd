"""How much a thread that others wait for may read of packs before it has to leave it to another.

The event loop answers what is small at once: handing it to a thread costs more than the answer.
What small means is decided while it is read, for nobody knows before: `at_once` runs a function
that ends with `TooMuchWork` when it needs more. Must not know what is read.
"""

from __future__ import annotations

import contextvars
from collections.abc import Callable
from typing import TypeVar

__all__ = ["Patience", "TooMuchWork", "at_once", "charge", "give_up", "is_limited"]

_Result = TypeVar("_Result")


class TooMuchWork(Exception):
    """The question needs more than its budget: ask it in a thread, or in a worker process."""


class Patience:
    """What is left."""

    __slots__ = ("bytes_left", "objects_left")

    def __init__(self, objects: int, size: int) -> None:
        """So many objects, of so many bytes together."""
        self.objects_left, self.bytes_left = objects, size


_patience: contextvars.ContextVar[Patience | None] = contextvars.ContextVar(
    "patience", default=None
)


def at_once(function: Callable[[], _Result], patience: Patience) -> _Result:
    """`function()`. Raises TooMuchWork when it reads more than there is patience for."""
    token = _patience.set(patience)
    try:
        return function()
    finally:
        _patience.reset(token)


def is_limited() -> bool:
    """Whether this runs below `at_once`."""
    return _patience.get() is not None


def charge(size: int) -> None:
    """An object of `size` bytes is about to be read, or its content looked through."""
    patience = _patience.get()
    if patience is not None:
        patience.objects_left -= 1
        patience.bytes_left -= size
        if patience.bytes_left < 0 or patience.objects_left < 0:
            raise TooMuchWork


def give_up() -> None:
    """What follows takes long, whatever it is of: not while others wait."""
    if _patience.get() is not None:
        raise TooMuchWork
