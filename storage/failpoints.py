"""Failpoints: named places at durability edges where a test can kill this process or fail a call.

Product code calls `failpoint("area.operation.edge")` right before the step it names; without a
test that costs one truth test of an empty dict. They are enabled by the environment of a process
that a test starts,

    QUOREPO_FAILPOINTS="journal.sync.before_fsync=kill,votes.replace.before_rename=error@3"

or in the process by `enable` / `enabled`. Actions:

    kill     SIGKILL to the own process: no handler, no flush, as `kill -9` or the OOM killer would
    error    raises OSError(EIO), as a failing disk would
    stop     SIGSTOP to the own process, once: it stands still until the test continues it (SIGCONT)
    count    only counts

`@N` acts from the Nth time on (the first is 1). Knows nothing of who calls it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import os
import signal
from collections.abc import Iterator
from typing import Literal, get_args

from quorepo.storage.errors import FatalError

__all__ = [
    "ENVIRONMENT_VARIABLE",
    "Action",
    "disable_all",
    "enable",
    "enabled",
    "failpoint",
    "hit_count",
]

ENVIRONMENT_VARIABLE = "QUOREPO_FAILPOINTS"

Action = Literal["kill", "error", "stop", "count"]


@dataclasses.dataclass(slots=True)
class _Failpoint:
    action: Action
    first_hit: int  # acts from this hit on, counted from 1
    hits: int = 0


_enabled: dict[str, _Failpoint] = {}


def failpoint(name: str) -> None:
    """Does what a test asked for at the place `name`; nothing otherwise.

    Raises OSError(EIO) for the action `error`: call it where an OSError of the step itself would
    be raised.
    """
    if _enabled:
        _hit(name)


def enable(name: str, action: Action, *, first_hit: int = 1) -> None:
    """Enables one failpoint in this process; it acts from the `first_hit`-th time on."""
    if action not in get_args(Action):
        raise ValueError(f"failpoint {name!r} has no action {action!r}; one of {get_args(Action)}")
    if first_hit < 1:
        raise ValueError(f"failpoint {name!r} cannot act from hit {first_hit} on; the first is 1")
    _enabled[name] = _Failpoint(action, first_hit)


def disable_all() -> None:
    """Forgets every failpoint of this process, those of the environment too."""
    _enabled.clear()


@contextlib.contextmanager
def enabled(name: str, action: Action, *, first_hit: int = 1) -> Iterator[None]:
    """`enable` for the body of a `with` statement."""
    enable(name, action, first_hit=first_hit)
    try:
        yield
    finally:
        _enabled.pop(name, None)


def hit_count(name: str) -> int:
    """How often the place was passed since it was enabled; 0 when it is not enabled."""
    point = _enabled.get(name)
    return 0 if point is None else point.hits


def _hit(name: str) -> None:
    point = _enabled.get(name)
    if point is None:
        return
    point.hits += 1
    if point.hits < point.first_hit:
        return
    if point.action == "kill":
        os.kill(os.getpid(), signal.SIGKILL)
    elif point.action == "stop" and point.hits == point.first_hit:
        os.kill(os.getpid(), signal.SIGSTOP)
    elif point.action == "error":
        raise OSError(errno.EIO, f"failpoint {name}")


def _enable_from(specification: str) -> None:
    for part in filter(None, (part.strip() for part in specification.split(","))):
        name, equals, what = part.partition("=")
        action, at, first_hit = what.partition("@")
        try:
            if not (name and equals) or bool(at) != bool(first_hit):
                raise ValueError("the form is name=action or name=action@N")
            enable(name, action, first_hit=int(first_hit or "1"))  # type: ignore[arg-type]
        except ValueError as error:
            # A misspelt failpoint would make a fault test pass by testing nothing.
            raise FatalError(
                f"{ENVIRONMENT_VARIABLE} has {part!r}: {error}", exit_code=FatalError.EXIT_CONFIG
            ) from error


_enable_from(os.environ.get(ENVIRONMENT_VARIABLE, ""))
