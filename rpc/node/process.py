"""What every process of a node does first and last: die with its parent, end with a clear line.

Owns the exit codes. Must not import anything heavy: it runs before everything else.
"""

from __future__ import annotations

import ctypes
import errno
import os
import signal
import sys
from collections.abc import Callable

from quorepo.storage.errors import ConfigError, FatalError

__all__ = [
    "EXIT_ALREADY_RUNNING",
    "EXIT_OK",
    "PARENT_VARIABLE",
    "die_with_parent",
    "run_child",
    "run_process",
]

EXIT_OK = 0
EXIT_ALREADY_RUNNING = 75  # sysexits.h EX_TEMPFAIL: the same node runs already

PARENT_VARIABLE = "QUOREPO_PARENT_PID"
_PR_SET_PDEATHSIG = 1
_CANNOT_LISTEN = frozenset({errno.EADDRINUSE, errno.EADDRNOTAVAIL})


def die_with_parent() -> None:
    """Makes the kernel kill this process, with SIGKILL, the moment its parent is gone.

    Called first thing in a child, on its main thread. The parent passes its process id in
    `PARENT_VARIABLE`, so that a parent that died before the call is noticed too. SIGINT is ignored
    from here on: a Ctrl-C reaches the whole process group, and the supervisor alone decides in
    which order its children stop. Without prctl (not Linux) only the check is done.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    expected = int(os.environ.pop(PARENT_VARIABLE, "0")) or os.getppid()
    prctl = getattr(ctypes.CDLL(None, use_errno=True), "prctl", None)
    if prctl is not None and prctl(_PR_SET_PDEATHSIG, int(signal.SIGKILL), 0, 0, 0) != 0:
        raise OSError(ctypes.get_errno(), "prctl(PR_SET_PDEATHSIG) failed")
    if os.getppid() != expected:
        os._exit(EXIT_OK)


def run_process(name: str, main: Callable[[], int | None]) -> int:
    """Runs `main` and turns what ends it into an exit code and a last line on standard error.

    Returns:
        What `main` returned (None is 0), 78 for a wrong configuration or an address that cannot be
        listened on (a restart would meet it again), the code of a `FatalError`.
        Anything else propagates: Python prints the traceback and exits with 1.
    """
    try:
        return main() or EXIT_OK
    except ConfigError as error:
        _say(f"{name}: {error}")
        return FatalError.EXIT_CONFIG
    except OSError as error:
        if error.errno not in _CANNOT_LISTEN:
            raise
        _say(f"{name}: {error}; stop what listens there or choose another address")
        return FatalError.EXIT_CONFIG
    except FatalError as error:
        _say(f"{name}: {error}")
        return error.exit_code


def run_child(name: str, main: Callable[[], int | None]) -> int:
    """`run_process` for a process that the supervisor starts."""
    die_with_parent()
    return run_process(name, main)


def _say(text: str) -> None:
    print(text, file=sys.stderr, flush=True)  # noqa: T201
