"""Waiting for a condition, never for a time."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import TypeVar

T = TypeVar("T")

_POLL_S = 0.02


def eventually(probe: Callable[[], T], *, timeout_s: float = 60.0, what: str = "") -> T:
    """The first truthy value of `probe`; fails after `timeout_s` with the last value or error."""
    deadline = time.monotonic() + timeout_s
    last: object = None
    while True:
        try:
            value = probe()
            if value:
                return value
            last = value
        except (AssertionError, OSError) as error:
            last = error
        if time.monotonic() >= deadline:
            raise AssertionError(f"{what or probe.__name__} not within {timeout_s} s: {last!r}")
        time.sleep(_POLL_S)
