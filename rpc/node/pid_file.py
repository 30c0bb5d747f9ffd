"""The file that names a running node's supervisor, and finding that process safely again.

Owns the file's format and its lock: a supervisor holds the lock as long as it lives, so one
configuration runs once. Must not know why somebody looks for the process.
"""

from __future__ import annotations

import contextlib
import dataclasses
import fcntl
import json
import os
import signal
import threading
import time
from collections.abc import Iterator
from pathlib import Path

from quorepo.storage.errors import Rejected

__all__ = ["AlreadyRunning", "RunningNode", "find_running", "pid_file"]

_POLL_INTERVAL_S = 0.05


class AlreadyRunning(Rejected):
    """A supervisor with the same configuration is running."""

    reason = "ALREADY_RUNNING"


@dataclasses.dataclass(frozen=True, slots=True)
class RunningNode:
    """A live supervisor.

    `config` is the path as it stands in the process's arguments, `started` its start time in clock
    ticks since boot (/proc/PID/stat).
    """

    pid: int
    config: str
    started: int

    def is_alive(self) -> bool:
        """Is it still this very process, not another one under a reused id?"""
        named = any(
            argument in (self.config, f"--config={self.config}")
            for argument in _arguments(self.pid)
        )
        return named and _start_time(self.pid) == self.started

    def send(self, signal_number: signal.Signals) -> bool:
        """Signals exactly this process; False when it is gone."""
        try:
            descriptor = os.pidfd_open(self.pid)
        except ProcessLookupError:
            return False
        try:
            if (
                not self.is_alive()
            ):  # checked after opening: the descriptor can't change its process
                return False
            signal.pidfd_send_signal(descriptor, signal_number)
        except ProcessLookupError:
            return False
        finally:
            os.close(descriptor)
        return True


@contextlib.contextmanager
def pid_file(path: Path, config: str, wait_s: float = 5.0) -> Iterator[None]:
    """Names this process in `path` as the supervisor of the node configured by `config`.

    Args:
        path: Where to write; its folder is made when missing.
        config: The configuration file's path as it stands in this process's arguments.
        wait_s: How long to wait for an ending predecessor.

    Raises:
        AlreadyRunning: another process kept the lock for `wait_s`.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        _lock(descriptor, path, wait_s)
        pid = os.getpid()
        content = {"pid": pid, "config": config, "started": _start_time(pid)}
        os.ftruncate(descriptor, 0)
        os.pwrite(descriptor, json.dumps(content).encode() + b"\n", 0)
        yield
        os.ftruncate(descriptor, 0)  # never unlinked: a waiter may hold the lock of this very file
    finally:
        os.close(descriptor)


def find_running(path: Path) -> RunningNode | None:
    """The live supervisor that `path` names, verified through /proc; None when there is none."""
    try:
        content = json.loads(path.read_bytes())
        node = RunningNode(int(content["pid"]), str(content["config"]), int(content["started"]))
    except (FileNotFoundError, ValueError, KeyError, TypeError):
        return None
    return node if node.is_alive() else None


def _lock(descriptor: int, path: Path, wait_s: float) -> None:
    deadline = time.monotonic() + wait_s
    pause = threading.Event()
    while True:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            if time.monotonic() >= deadline:
                running = find_running(path)
                who = f"process {running.pid}" if running else "another process"
                raise AlreadyRunning(
                    f"this node is running already as {who} ({path})",
                    next_step=f"kill {running.pid}" if running else "",
                ) from None
            pause.wait(_POLL_INTERVAL_S)  # flock has no timed wait
        else:
            return


def _start_time(pid: int) -> int | None:
    try:
        status = Path(f"/proc/{pid}/stat").read_text(encoding="ascii", errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    fields = status.rpartition(")")[2].split()  # the name before it may hold spaces and brackets
    if fields[0] == "Z":
        return None
    return int(fields[19])


def _arguments(pid: int) -> list[str]:
    try:
        raw = Path(f"/proc/{pid}/cmdline").read_bytes()
    except (FileNotFoundError, ProcessLookupError, PermissionError):
        return []
    return [os.fsdecode(argument) for argument in raw.split(b"\0")]
