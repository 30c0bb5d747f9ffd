"""Checks of the data directory and its disk. They leave nothing behind and lock nobody out."""

from __future__ import annotations

import contextlib
import fcntl
import json
import os
import resource
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

from quorepo.cluster.identity import FORMAT_VERSION
from quorepo.cluster.wrong_disk import next_step, read_wrong_disk
from quorepo.rpc.doctor.findings import Finding, Machine

__all__ = [
    "check_data_directory",
    "check_free_space",
    "check_open_files",
    "check_sync_latency",
    "core_process",
    "sync_latencies_s",
]

_SYNCS = 20
_SYNC_BYTES = 4096
_SYNC_TIME_MAX_S = 3.0
# Every acknowledged push waits for several syncs on a majority.
_SYNC_WARNING_S, _SYNC_ERROR_S = 0.02, 0.25
_FILES_GOOD = 16_384
_FILES_BESIDE_PACKS = 512  # connections, databases, journal


def core_process(data_dir: Path) -> int | None:
    """The process that uses a data directory now; None when nobody does."""
    try:
        descriptor = os.open(data_dir / "lock", os.O_RDONLY | os.O_CLOEXEC)
    except OSError:
        return None
    try:
        # Shared, and let go at once: a node that starts this very moment waits longer than that.
        fcntl.flock(descriptor, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip()
        return int(holder) if holder.isdecimal() else 0
    else:
        return None
    finally:
        os.close(descriptor)


def check_data_directory(machine: Machine) -> Iterator[Finding]:
    """Is it there, ours alone, of this node and of a format that this program knows?"""
    path, name = machine.config.node.data_dir, machine.config.node.name
    if not path.is_dir():
        parent = _existing(path)
        if os.access(parent, os.W_OK | os.X_OK):
            yield Finding(2, "info", f"{path} is not there yet; the first start makes it")
        else:
            yield Finding(
                2,
                "error",
                f"{path} is not there and {parent} may not be written",
                f"mkdir -m 700 {path} and give it to the user that runs the node",
            )
        return
    status = path.stat()
    if not os.access(path, os.R_OK | os.W_OK | os.X_OK):
        yield Finding(
            2,
            "error",
            f"this user may not write {path} (owner {status.st_uid})",
            "run doctor as the user that runs the node, or chown the directory to it",
        )
    if status.st_mode & 0o077:
        mode = stat.S_IMODE(status.st_mode)
        yield Finding(
            2, "warning", f"{path} is open to other users (mode {mode:04o})", f"chmod 700 {path}"
        )
    problem = _identity_problem(path, name)
    if problem is not None:
        yield problem
        return
    state = f"in use by process {machine.core_pid}" if machine.running else "the node is stopped"
    yield Finding(2, "ok", f"{path}: of {name}, {state}")


def _identity_problem(path: Path, name: str) -> Finding | None:
    wrong = read_wrong_disk(path)
    if wrong is not None:
        what = f"this disk was refused by {wrong.told_by}: {wrong.detail}"
        return Finding(2, "error", what, next_step(name))
    try:
        content = json.loads((path / "node.json").read_bytes())
        version, owner = int(content["format_version"]), str(content["node"])
    except FileNotFoundError:
        filled = [d for d in ("journal", "groups") if any((path / d).glob("*"))]
        if not filled:
            return None
        return Finding(
            2,
            "error",
            f"{path} holds {' and '.join(filled)}, but node.json is missing",
            "restore node.json, or empty the directory to rejoin as a new replica",
        )
    except (OSError, ValueError, KeyError, TypeError) as error:
        return Finding(
            2,
            "error",
            f"{path / 'node.json'} cannot be used: {error}",
            "restore it from a backup, or empty the directory to rejoin as a new replica",
        )
    if version > FORMAT_VERSION:
        return Finding(
            2,
            "error",
            f"{path} has format {version}, this program knows up to {FORMAT_VERSION}",
            "run the newer quorepo",
        )
    if owner != name:
        return Finding(
            2,
            "error",
            f"{path} belongs to node {owner!r}, the configuration says {name!r}",
            "correct node.name or node.data_dir",
        )
    return None


def check_sync_latency(machine: Machine) -> Iterator[Finding]:
    """How long the disk takes until a small write is safe: every push waits for that."""
    folder = _existing(machine.config.node.data_dir)
    try:
        taken = sorted(sync_latencies_s(folder))
    except OSError as error:
        yield Finding(
            3,
            "error",
            f"cannot write and sync in {folder}: {error.strerror}",
            "is the disk mounted, writable and not full?",
        )
        return
    middle, worst = taken[len(taken) // 2], taken[-1]
    numbers = f"p50 {middle * 1000:.1f} ms, worst {worst * 1000:.1f} ms of {len(taken)} syncs"
    if middle > _SYNC_ERROR_S:
        yield Finding(
            3,
            "error",
            f"{numbers}: elections and pushes will time out",
            "look for a failing or overloaded disk: iostat -x 1, dmesg",
        )
    elif middle > _SYNC_WARNING_S or worst > _SYNC_ERROR_S:
        yield Finding(
            3,
            "warning",
            f"{numbers}: every push waits for it",
            "use an SSD with power-loss protection, or move what else uses this disk",
        )
    else:
        yield Finding(3, "ok", numbers)


def sync_latencies_s(folder: Path) -> list[float]:
    """Seconds of each of some small synced appends to a nameless file in a folder."""
    taken: list[float] = []
    with _nameless(folder) as descriptor:
        started = time.monotonic()
        while len(taken) < _SYNCS and time.monotonic() - started < _SYNC_TIME_MAX_S:
            before = time.monotonic()
            os.write(descriptor, b"\0" * _SYNC_BYTES)
            os.fdatasync(descriptor)
            taken.append(time.monotonic() - before)
    return taken


@contextlib.contextmanager
def _nameless(folder: Path) -> Iterator[int]:
    try:
        descriptor = os.open(folder, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
    except OSError:  # not every file system can; then a name for a moment
        descriptor, name = tempfile.mkstemp(prefix=".doctor-", dir=folder)
        os.unlink(name)
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def check_free_space(machine: Machine) -> Iterator[Finding]:
    """Is there room, and is it above the reserve?"""
    folder = _existing(machine.config.node.data_dir)
    reserve = machine.config.storage.reserve_bytes
    status = os.statvfs(folder)
    free, whole = status.f_bavail * status.f_frsize, status.f_blocks * status.f_frsize
    numbers = f"{_gib(free)} of {_gib(whole)} free, reserve {_gib(reserve)}"
    step = f"free space or enlarge the disk of {folder}; then writes begin again by themselves"
    if free < reserve:
        yield Finding(4, "error", f"{numbers}: this node takes no pushes and leads nothing", step)
    elif free < 2 * reserve or free * 10 < whole:
        yield Finding(4, "warning", numbers, step)
    else:
        yield Finding(4, "ok", numbers)
    if status.f_files and status.f_favail * 20 < status.f_files:
        yield Finding(
            4,
            "warning",
            f"{status.f_favail} of {status.f_files} inodes free",
            "each pack needs two files: quorepo repo optimize merges packs",
        )


def check_open_files(machine: Machine) -> Iterator[Finding]:
    """The limit of the running node, or of this shell when it is stopped."""
    needed = 2 * machine.config.limits.open_packs_max + _FILES_BESIDE_PACKS
    soft = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    whose = "of this shell (the node is stopped)"
    if machine.core_pid:
        found = _limit_of(machine.core_pid)
        if found is None:
            yield Finding(
                5,
                "skipped",
                f"may not look at process {machine.core_pid}",
                "run doctor as the user that runs the node",
            )
            return
        soft, whose = found, f"of process {machine.core_pid}"
    step = "set LimitNOFILE=65536 in the systemd unit, or ulimit -n 65536 before the start"
    if soft < needed:
        what = f"{soft} {whose}; limits.open_packs_max alone needs {needed}"
        yield Finding(5, "error" if machine.running else "warning", what, step)
    elif soft < _FILES_GOOD:
        yield Finding(5, "warning", f"{soft} {whose}: few for many clients", step)
    else:
        yield Finding(5, "ok", f"{soft} {whose}")


def _limit_of(process: int) -> int | None:
    try:
        text = Path(f"/proc/{process}/limits").read_text(encoding="ascii", errors="replace")
    except OSError:
        return None
    for line in text.splitlines():
        if line.startswith("Max open files"):
            value = line.split()[3]
            return resource.RLIM_INFINITY if value == "unlimited" else int(value)
    return None


def _existing(path: Path) -> Path:
    """The nearest folder above that exists."""
    while not path.is_dir() and path != path.parent:
        path = path.parent
    return path


def _gib(size: int) -> str:
    return f"{size / 1024**3:.2f} GiB"
