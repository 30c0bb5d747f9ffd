"""The private folder of a running node: short enough for unix sockets, swept when its owner died.

Owns the name and the life of the folder. Must not know what is put into it.

A folder belongs to the process that holds the lock on its `owner` file. The file gets its name
only after it is locked, so a sweep that can take the lock knows that the owner is gone.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import shutil
import stat
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

__all__ = ["runtime_directory", "sweep_stale"]

_ROOT = Path("/tmp")  # noqa: S108 - unix socket paths have at most 107 bytes, $TMPDIR may be long
_PREFIX = "quorepo-run-"
_OWNER = "owner"
# A folder without an owner file is either being made right now or left by a crash in between.
_HALF_MADE_AGE_S_MAX = 60.0


@contextlib.contextmanager
def runtime_directory(root: Path = _ROOT) -> Iterator[Path]:
    """Makes a folder of mode 0700 for this process, sweeps stale ones, and removes it at the
    end."""
    sweep_stale(root)
    path = Path(tempfile.mkdtemp(prefix=_PREFIX, dir=root))
    unnamed = path / f"{_OWNER}.new"
    descriptor = os.open(unnamed, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        unnamed.rename(path / _OWNER)
        yield path
    finally:
        shutil.rmtree(path, ignore_errors=True)
        os.close(descriptor)


def sweep_stale(root: Path = _ROOT) -> list[Path]:
    """Removes the folders of this user whose owner is gone; returns what it removed."""
    removed = []
    for path in root.glob(f"{_PREFIX}*"):
        if _is_private_folder(path) and _owner_is_gone(path):
            shutil.rmtree(path, ignore_errors=True)
            removed.append(path)
    return removed


def _is_private_folder(path: Path) -> bool:
    try:
        status = path.lstat()
    except FileNotFoundError:
        return False
    return (
        stat.S_ISDIR(status.st_mode)  # not a symlink
        and status.st_uid == os.getuid()
        and stat.S_IMODE(status.st_mode) == 0o700
    )


def _owner_is_gone(path: Path) -> bool:
    try:
        descriptor = os.open(path / _OWNER, os.O_RDWR | os.O_NOFOLLOW | os.O_CLOEXEC)
    except FileNotFoundError:
        return _is_half_made(path)
    except OSError:
        return False  # not a folder of ours
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    finally:
        os.close(descriptor)
    return True


def _is_half_made(path: Path) -> bool:
    """Made by a process that ended before it could name the owner file, and nothing else in it."""
    try:
        names = os.listdir(path)
        age_s = time.time() - path.stat().st_mtime
    except FileNotFoundError:
        return False
    return names in ([], [f"{_OWNER}.new"]) and age_s > _HALF_MADE_AGE_S_MAX
