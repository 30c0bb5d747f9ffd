"""The journal: one append-only, checksummed log on disk for all Raft groups of a node.

Owns: appending, syncing, truncating, dropping prefixes and reading back, and when a segment begins
or goes. Must not know of Raft's rules, of pysyncobj (group_log.py is its view of one group), or of
what entries hold. The format is segment.py's, opening is recovery.py's.

Rules that everything here follows:

- What was written is never written again: conflicts and compaction are records of their own. -
`sync` is one write and one fdatasync for all groups. Only `durable_index` may be acknowledged. -
After any I/O error the process has to end. The journal refuses every further call; it never tries
again. - One thread (the Raft thread) uses a journal. Others may read `first_index`, `last_index`,
`durable_index`.
"""

from __future__ import annotations

import contextlib
import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import TracebackType

from quorepo.cluster.raft.durable import DirectoryLock, fatal_on_os_error, sync_directory
from quorepo.cluster.raft.log_index import LogIndex, Place
from quorepo.cluster.raft.recovery import ROLL, Recovered, create_segment, recover
from quorepo.cluster.raft.segment import RECORD_BYTES_MAX, Kind
from quorepo.cluster.raft.segment_reader import SegmentReader
from quorepo.cluster.raft.segment_writer import SegmentWriter
from quorepo.storage.errors import FatalError
from quorepo.storage.failpoints import failpoint

__all__ = ["Journal", "LogEntry"]

# (data, index, term): the order that pysyncobj uses.
LogEntry = tuple[bytes, int, int]

_LOCK_NAME = "LOCK"
# A group that is quiet would keep old segments for ever: up to this much of it is copied instead.
_MOVED_BYTES_MAX = 1024 * 1024
_QUEUED_BYTES_MAX = 32 * 1024 * 1024
_EMPTY = LogIndex()  # what a group without entries looks like; never changed


class Journal:
    """The journal of a node. Make one with `Journal.open`.

    Group ids are in 0..2^32-1, indexes start at 1, terms never fall within a group's log.
    """

    def __init__(
        self,
        directory: Path,
        lock: DirectoryLock,
        recovered: Recovered,
        *,
        segment_bytes_max: int,
        cache_bytes_max: int,
        on_sync: Callable[[float], None] | None,
        clock_s: Callable[[], float],
    ) -> None:
        """Internal: use `open`."""
        self._directory = directory
        self._lock = lock
        self._segment_bytes_max = segment_bytes_max
        self._cache_bytes_max = cache_bytes_max
        self._logs = recovered.logs
        self._segments = recovered.segments
        self._unsynced: dict[int, LogIndex] = {}  # groups that something is queued for
        self._end: tuple[str, int] | None = None  # why nothing is done any more, and the exit code
        self._reader = SegmentReader(self._segments)
        self._writer = SegmentWriter(on_sync, clock_s)
        last = self._segments[max(self._segments)]
        self._writer.open(last, recovered.last_bytes, recovered.last_batch)

    @classmethod
    def open(
        cls,
        directory: Path,
        *,
        segment_bytes_max: int = 64 * 1024 * 1024,
        cache_bytes_max: int = 8 * 1024 * 1024,
        lock_wait_s: float = 0.0,
        on_sync: Callable[[float], None] | None = None,
        clock_s: Callable[[], float] = time.perf_counter,
    ) -> Journal:
        """Opens the journal in `directory`, creating both when they are not there.

        Everything found is durable on return: the last segment is rewritten and synced
        (recovery.py).

        Args:
            segment_bytes_max: a segment that has reached this size is closed by the next sync.
            cache_bytes_max: newest data of each group kept in memory.
            lock_wait_s: how long to wait for another process that uses the directory.
            on_sync: called with the seconds that each fdatasync took.
            clock_s: seconds, for `on_sync` only.

        Raises:
            Unavailable: another process (or another Journal of this one) has it open.
            FatalError: damaged, unreadable (EXIT_IO_ERROR) or of a newer format (EXIT_CONFIG).
        """
        with fatal_on_os_error("create", directory):
            if not directory.is_dir():
                directory.mkdir(mode=0o700, parents=True, exist_ok=True)
                sync_directory(directory.parent)
        lock = DirectoryLock(directory / _LOCK_NAME, lock_wait_s)
        with contextlib.ExitStack() as undo:
            undo.callback(lock.release)
            journal = cls(
                directory,
                lock,
                recover(directory),
                segment_bytes_max=segment_bytes_max,
                cache_bytes_max=cache_bytes_max,
                on_sync=on_sync,
                clock_s=clock_s,
            )
            undo.callback(journal._release)
            journal._free_segments()  # a crash may have kept some that nothing needs
            undo.pop_all()
        return journal

    def close(self) -> None:
        """Syncs and closes. May be called again; after an I/O error it only releases things."""
        try:
            if self._end is None:
                self.sync()
                # An empty batch, so that damage to the batch before it cannot be taken for a tear.
                with self._ends_journal():
                    self._writer.write_batch()
        finally:
            self._release()

    def __enter__(self) -> Journal:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        self.close()

    # What there is: these may be called from any thread.

    @property
    def is_open(self) -> bool:
        """Whether it can be used: not closed, and no error ended it."""
        return self._end is None

    def groups(self) -> list[int]:
        """The groups that have entries, ascending."""
        return sorted(group for group, log in list(self._logs.items()) if log.last_index)

    def first_index(self, group: int) -> int:
        """The first entry's index; 0 when the group has no entries."""
        return self._logs.get(group, _EMPTY).first_index

    def last_index(self, group: int) -> int:
        """The last entry's index, synced or not; 0 when the group has no entries."""
        return self._logs.get(group, _EMPTY).last_index

    def durable_index(self, group: int) -> int:
        """The last entry that is synced: all that a replica may acknowledge or count for itself."""
        return self._logs.get(group, _EMPTY).durable_index

    # The rest is for the Raft thread.

    def term_at(self, group: int, index: int) -> int | None:
        """The term of an entry; None when it is not in the log (dropped, or not there yet)."""
        log = self._logs.get(group, _EMPTY)
        return log.term_at(index) if index in log else None

    def read(self, group: int, start: int, stop: int, bytes_max: int) -> list[LogEntry]:
        """Entries from index `start` up to, not including, `stop`, in order.

        Args:
            bytes_max: of data in all; the first entry comes however large it is.

        Returns:
            (data, index, term) of each; empty when `start` is behind the last entry or `stop`.

        Raises:
            LookupError: `start` was dropped (it is below `first_index`).
            FatalError: an I/O error, or a record that is damaged now.
        """
        self._check_usable()
        log = self._logs.get(group, _EMPTY)
        stop = min(stop, log.last_index + 1)
        if start >= stop:
            return []
        if start not in log:
            raise LookupError(f"entry {start} of group {group} is gone; first {log.first_index}")
        found: list[bytes] = []
        uncached: list[tuple[int, Place]] = []  # position in `found`
        total_bytes = 0
        for index in range(start, stop):
            data = log.cached(index)
            if data is None:
                place = log.place_of(index)
                total_bytes += place.data_bytes
                uncached.append((index - start, place))
            else:
                total_bytes += len(data)
            if total_bytes > bytes_max and index > start:
                break
            found.append(data or b"")
        if uncached and uncached[-1][0] == len(found):
            uncached.pop()  # the one that would have been too much
        if uncached:
            with self._ends_journal():
                read = self._reader.read([place for _, place in uncached])
            for (position, _), data in zip(uncached, read, strict=True):
                found[position] = data
        return [(data, index, log.term_at(index)) for index, data in enumerate(found, start)]

    def append(self, group: int, index: int, term: int, data: bytes) -> None:
        """Adds an entry, durable after `sync` (which 32 MiB of unsynced data cause by themselves).

        In a group without entries any index >= 1 may be the first.

        Raises:
            FatalError: EXIT_BUG for an index that does not follow, a falling term, or too much
            data.
        """
        self._check_usable()
        log = self._log(group)
        if not log.accepts(index) or term < log.last_term or len(data) > RECORD_BYTES_MAX:
            raise FatalError(
                f"entry {index} of term {term} with {len(data)} bytes cannot follow entry "
                f"{log.last_index} of term {log.last_term} in group {group}"
            )
        log.append(index, term, self._add(Kind.ENTRY, group, index, term, data, log))
        log.remember(index, data)
        if self._writer.queued_bytes >= _QUEUED_BYTES_MAX:
            self.sync()

    def truncate_from(self, group: int, index: int) -> None:
        """Removes the entries from `index` on; all of them when it is at or below the first.

        Recorded before anything that is appended later, so that no crash keeps the later one only;
        durable with the next `sync`, before which nothing that depends on it may be acknowledged.
        """
        self._check_usable()
        log = self._log(group)
        if index > log.last_index:
            return
        index = max(index, log.first_index)
        term_before = log.term_at(index - 1) if index > log.first_index else 0
        self._add(Kind.TRUNCATE, group, index, term_before, b"", log)
        log.truncate_from(index, term_before)

    def drop_prefix(self, group: int, index: int) -> None:
        """Removes the entries before `index`, which must be in the log; durable on return.

        Syncs everything pending too. Segments are removed once no group has an entry in them; a
        quiet group with little in them is copied forward rather than keeping them.
        """
        self._check_usable()
        log = self._log(group)
        if index <= log.first_index:
            return
        if index > log.last_index:
            raise FatalError(
                f"cannot drop what is before {index} in group {group}: its last is {log.last_index}"
            )
        self._add(Kind.DROP, group, index, 0, b"", log)
        log.drop_prefix(index)
        self.sync()
        self._free_segments()

    def restart_at(self, group: int, index: int, term: int, data: bytes) -> None:
        """Removes all entries of `group` and begins anew with one; durable on return.

        A crash leaves the old log, an empty one, or the new one: whoever calls this has a record of
        its own by which it calls it again.
        """
        self._check_usable()
        log = self._log(group)
        if log.last_index:
            self.truncate_from(group, log.first_index)
        self.append(group, index, term, data)
        with self._ends_journal(), fatal_on_os_error("restart", self._directory):
            failpoint("journal.restart.before_sync")
        self.sync()
        with self._ends_journal(), fatal_on_os_error("restart", self._directory):
            failpoint("journal.restart.before_free")
        self._free_segments()

    def record_bytes(self, group: int) -> int:
        """What the entries of `group` take in the segments."""
        return self._logs.get(group, _EMPTY).record_bytes

    def first_within(self, group: int, bytes_max: int) -> int:
        """The first entry of the longest end of the log that takes at most `bytes_max`."""
        return self._logs.get(group, _EMPTY).first_within(bytes_max)

    def extent(self) -> tuple[int, int]:
        """Bytes and number of the segments, as of the last sync."""
        current = self._writer.segment.header.number
        older = [segment.path for number, segment in self._segments.items() if number != current]
        with self._ends_journal():
            size = self._writer.written_bytes
            for path in older:
                with fatal_on_os_error("look at", path):
                    size += path.stat().st_size
        return size, len(self._segments)

    def sync(self) -> None:
        """Makes everything before it durable: one write and one fdatasync, or nothing to do.

        Raises:
            FatalError: EXIT_IO_ERROR; nothing since the last sync may be acknowledged, ever.
        """
        self._check_usable()
        if not self._writer.queued_bytes:
            return
        with self._ends_journal():
            self._writer.write_batch()
        for log in self._unsynced.values():
            log.durable_index = log.last_index
            log.forget_beyond(self._cache_bytes_max)
        self._unsynced.clear()
        if self._writer.written_bytes >= self._segment_bytes_max:
            self._begin_segment()

    # Writing.

    def _log(self, group: int) -> LogIndex:
        log = self._logs.get(group)
        if log is None:
            log = self._logs[group] = LogIndex()
        return log

    def _add(
        self, kind: Kind, group: int, index: int, term: int, data: bytes, log: LogIndex
    ) -> Place:
        """Queues a record for the next sync; returns where it will stand."""
        place = self._writer.queue(kind, group, index, term, data)
        self._unsynced[group] = log
        return place

    def _begin_segment(self) -> None:
        """Leaves the current segment, all of which is synced, and begins the next."""
        number = self._writer.segment.header.number + 1
        with self._ends_journal():
            segment, size = create_segment(
                self._directory, number, self._writer.written_bytes, self._logs, ROLL
            )
            self._segments[number] = segment
            self._writer.open(segment, size, 0)

    # Removing segments.

    def _free_segments(self) -> None:
        """Removes the oldest segments that no group needs, once quiet groups are copied out."""
        oldest = min(self._segments)
        current = self._writer.segment.header.number
        if oldest == current:
            return
        quiet, needed = self._quiet_groups(current)
        if needed == oldest:
            return
        for group, log in quiet.items():
            if log.oldest_segment < needed:
                self._move(group, log)
        self.sync()
        for number in range(oldest, needed):
            self._remove_segment(number)

    def _quiet_groups(self, current: int) -> tuple[dict[int, LogIndex], int]:
        """Groups with little, all in older segments; and the oldest segment that others need."""
        quiet = {}
        needed = current
        for group, log in self._logs.items():
            if not log.last_index:
                continue
            if log.segment_of(log.last_index) < current and log.record_bytes <= _MOVED_BYTES_MAX:
                quiet[group] = log
            else:
                needed = min(needed, log.oldest_segment)
        return quiet, needed

    def _move(self, group: int, log: LogIndex) -> None:
        """Queues copies of all entries of a group."""
        first, last = log.first_index, log.last_index
        for data, index, term in self.read(group, first, last + 1, _MOVED_BYTES_MAX):
            log.move(index, term, self._add(Kind.MOVED, group, index, term, data, log))

    def _remove_segment(self, number: int) -> None:
        """Removes one segment, durably: after a crash there must be no gap in the numbers."""
        path = self._segments[number].path
        with self._ends_journal(), fatal_on_os_error("remove", path):
            self._reader.forget(number)
            failpoint("journal.free.before_unlink")
            os.unlink(path)
            failpoint("journal.free.before_dir_fsync")
            sync_directory(self._directory)
            failpoint("journal.free.done")
        del self._segments[number]

    # Ending.

    def _check_usable(self) -> None:
        if self._end is not None:
            reason, exit_code = self._end
            raise FatalError(reason, exit_code=exit_code)

    @contextlib.contextmanager
    def _ends_journal(self) -> Iterator[None]:
        """Whatever interrupts the body leaves memory and disk apart: nothing is done after it."""
        try:
            yield
        except BaseException as error:
            exit_code = error.exit_code if isinstance(error, FatalError) else FatalError.EXIT_BUG
            self._end = (f"the journal ended at an earlier error: {error}", exit_code)
            raise

    def _release(self) -> None:
        """Closes files and lock without writing anything."""
        if self._end is None:
            self._end = ("the journal is closed", FatalError.EXIT_BUG)
        self._reader.close()
        self._writer.close()
        self._lock.release()
