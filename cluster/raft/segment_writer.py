"""Writes a journal's current segment: one batch is one write and one fdatasync.

Owns: the descriptor, the queue, and where the next record will stand. Must not know of groups'
logs, nor when a segment is full.
"""

from __future__ import annotations

import os
from collections.abc import Callable

from quorepo.cluster.raft.durable import fatal_on_os_error, write_fully
from quorepo.cluster.raft.log_index import Place
from quorepo.cluster.raft.recovery import Segment
from quorepo.cluster.raft.segment import BATCH_BYTES, Kind, encode_batch, encode_record
from quorepo.storage.failpoints import failpoint

__all__ = ["SegmentWriter"]


class SegmentWriter:
    """Appends to one segment at a time."""

    def __init__(
        self, on_sync: Callable[[float], None] | None, clock_s: Callable[[], float]
    ) -> None:
        """`on_sync` gets the seconds of each fdatasync, measured with `clock_s`. Then `open`."""
        self._on_sync = on_sync
        self._clock_s = clock_s
        self._descriptor: int | None = None
        self._queue: list[bytes] = []
        self._queued_bytes = 0

    def open(self, segment: Segment, written_bytes: int, batch: int) -> None:
        """Goes on with `segment`, which has `written_bytes` and ends with batch number `batch`.

        Nothing may be queued. Raises FatalError when the file cannot be opened.
        """
        assert not self._queue, "a queued record has a place in the segment before"
        self.close()
        with fatal_on_os_error("open", segment.path):
            self._descriptor = os.open(segment.path, os.O_WRONLY | os.O_APPEND)
        self._segment = segment
        self._number = segment.header.number
        self._seed = segment.header.seed
        self._written_bytes = written_bytes
        self._batch = batch

    def close(self) -> None:
        """Closes the file without writing. May be called again."""
        if self._descriptor is not None:
            os.close(self._descriptor)
            self._descriptor = None

    @property
    def segment(self) -> Segment:
        return self._segment

    @property
    def written_bytes(self) -> int:
        """The length of the segment, without what is queued."""
        return self._written_bytes

    @property
    def queued_bytes(self) -> int:
        return self._queued_bytes

    def queue(self, kind: Kind, group: int, index: int, term: int, data: bytes) -> Place:
        """Queues a record; returns where it stands after the next `write_batch`."""
        offset = self._written_bytes + BATCH_BYTES + self._queued_bytes
        record = encode_record(self._seed, kind, group, index, term, data)
        self._queue.append(record)
        self._queued_bytes += len(record)
        return Place(self._number, offset, len(data))

    def write_batch(self) -> None:
        """Writes what is queued, maybe nothing, as one batch and waits until the disk has it.

        Raises FatalError (EXIT_IO_ERROR); the writer must not be used after that.
        """
        assert self._descriptor is not None, "open comes first"
        path = self._segment.path
        begin = encode_batch(
            self._segment.header, self._batch + 1, self._written_bytes, self._queued_bytes
        )
        data = b"".join((begin, *self._queue))
        with fatal_on_os_error("write", path):
            failpoint("journal.sync.before_write")
            write_fully(self._descriptor, data)
        with fatal_on_os_error("sync", path):
            failpoint("journal.sync.before_fsync")
            started_s = self._clock_s()
            os.fdatasync(self._descriptor)
            took_s = self._clock_s() - started_s
            failpoint("journal.sync.done")
        self._batch += 1
        self._written_bytes += len(data)
        self._queue.clear()
        self._queued_bytes = 0
        if self._on_sync is not None:
            self._on_sync(took_s)
