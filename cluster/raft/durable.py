"""Steps on files that must be durable before anything is acknowledged; what a failure means.

Owns: turning any OSError into a FatalError that names the file and what to do; replacing a file
durably; the lock of a folder. Must not know what is in the files.

After a failed fsync the kernel may mark the lost pages clean, so that the next fsync succeeds
without having written them (Rebello et al., "Can Applications Recover from fsync Failures?",
USENIX ATC 2020). So nothing here is ever tried again: the process ends, and recovery rewrites what
it can still verify into a new file.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from quorepo.storage.errors import FatalError, Unavailable
from quorepo.storage.failpoints import failpoint

__all__ = [
    "REPLACE_EDGES",
    "TEMPORARY_SUFFIX",
    "DirectoryLock",
    "fatal_on_os_error",
    "replace_durably",
    "sync_directory",
    "write_fully",
]

TEMPORARY_SUFFIX = ".tmp"
# The failpoints of `replace_durably`, below its caller's prefix.
REPLACE_EDGES = ("before_write", "before_fsync", "before_rename", "before_dir_fsync", "done")
_LOCK_POLL_S = 0.05
_NEXT_STEP = (
    "this node ends and is not restarted by itself; check the disk (dmesg, smartctl, df), start "
    "the node again once it is sound, or let it rejoin with an empty data directory"
)


@contextlib.contextmanager
def fatal_on_os_error(action: str, path: Path) -> Iterator[None]:
    """Turns an OSError in the body into the end of this process.

    Args:
        action: what failed, as in "cannot {action} {path}".

    Raises:
        FatalError: with EXIT_IO_ERROR, which the supervisor does not answer with a restart.
    """
    try:
        yield
    except OSError as error:
        code = errno.errorcode.get(error.errno or 0, "unknown error")
        raise FatalError(
            f"cannot {action} {str(path)!r}: {error.strerror or error} ({code}); {_NEXT_STEP}",
            exit_code=FatalError.EXIT_IO_ERROR,
        ) from error


def write_fully(descriptor: int, data: bytes) -> None:
    """Writes all of `data`; one system call unless the kernel takes less at once."""
    written = os.write(descriptor, data)
    while written < len(data):
        written += os.write(descriptor, memoryview(data)[written:])


def sync_directory(path: Path) -> None:
    """Makes creations, renames and removals in the folder durable. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def replace_durably(path: Path, chunks: Sequence[bytes], failpoint_prefix: str) -> None:
    """Gives `path` the content `chunks`, durable on return; a crash before leaves the old content.

    Write to a temporary name, fsync, rename, fsync of the folder. Failpoints: `failpoint_prefix`
    with each of `REPLACE_EDGES`. Raises FatalError on any I/O error; the temporary file may stay
    behind.
    """
    temporary = path.with_name(path.name + TEMPORARY_SUFFIX)
    with fatal_on_os_error("write", path):
        failpoint(f"{failpoint_prefix}.before_write")
        descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        try:
            for chunk in chunks:
                write_fully(descriptor, chunk)
            failpoint(f"{failpoint_prefix}.before_fsync")
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
        failpoint(f"{failpoint_prefix}.before_rename")
        os.rename(temporary, path)
        failpoint(f"{failpoint_prefix}.before_dir_fsync")
        sync_directory(path.parent)
        failpoint(f"{failpoint_prefix}.done")


class DirectoryLock:
    """An exclusive flock on a file in a folder; the kernel releases it however the process ends."""

    def __init__(self, path: Path, wait_s: float = 0.0) -> None:
        """Takes the lock, waiting up to `wait_s` seconds for another holder to go.

        Raises:
            Unavailable: somebody else holds it still; their process id is in the message.
            FatalError: the lock file cannot be opened.
        """
        self._path = path
        with fatal_on_os_error("open", path):
            self._descriptor: int | None = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
        try:
            self._acquire(self._descriptor, wait_s)
        except BaseException:
            self.release()
            raise

    def _acquire(self, descriptor: int, wait_s: float) -> None:
        deadline = time.monotonic() + wait_s
        while True:
            with fatal_on_os_error("lock", self._path):
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                except BlockingIOError:
                    pass  # held elsewhere: an answer, not an I/O error
                else:
                    os.truncate(descriptor, 0)
                    os.pwrite(descriptor, b"%d\n" % os.getpid(), 0)
                    return
            remaining_s = deadline - time.monotonic()
            if remaining_s <= 0:
                raise self._refusal(descriptor, wait_s)
            # flock knows no timeout, and an alarm would need the main thread: so this is a poll.
            time.sleep(min(_LOCK_POLL_S, remaining_s))

    def _refusal(self, descriptor: int, wait_s: float) -> Unavailable:
        holder = os.pread(descriptor, 32, 0).decode("ascii", "replace").strip() or "unknown"
        return Unavailable(
            f"{str(self._path.parent)!r} is in use by process {holder} (waited {wait_s:g} s)",
            next_step="stop the other node process, or give this node a data directory of its own",
        )

    def release(self) -> None:
        """Lets others in. May be called again."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None
