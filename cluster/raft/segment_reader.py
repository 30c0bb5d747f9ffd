"""Reads entries back from segment files while the journal is open.

Owns: the descriptors of segments that were read lately, and reading neighbours in one go. Verifies
every record again. Must not know of groups' logs; a place comes from log_index.py.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from collections.abc import Sequence

from quorepo.cluster.raft.durable import fatal_on_os_error
from quorepo.cluster.raft.log_index import Place
from quorepo.cluster.raft.recovery import Segment, damaged
from quorepo.cluster.raft.segment import RECORD_HEADER_BYTES, decode_record

__all__ = ["SegmentReader"]

_OPEN_SEGMENTS_MAX = 8
_RUN_BYTES_MAX = 1024 * 1024  # read at once
_RUN_GAP_BYTES_MAX = 4096  # of other groups' records between two entries that are read at once


class SegmentReader:
    """Random access to the records of a journal's segments."""

    def __init__(self, segments: dict[int, Segment]) -> None:
        """`segments` is the journal's own table; this class sees its changes."""
        self._segments = segments
        self._open: OrderedDict[int, int] = OrderedDict()  # segment number -> descriptor

    def read(self, places: Sequence[Place]) -> list[bytes]:
        """The data of the records at `places`, in that order.

        Raises:
            FatalError: an I/O error, or a record that does not pass any more.
        """
        found: list[bytes] = []
        while len(found) < len(places):
            found.extend(self._read_run(_run(places, len(found))))
        return found

    def forget(self, number: int) -> None:
        """Closes a segment that is about to be removed."""
        descriptor = self._open.pop(number, None)
        if descriptor is not None:
            os.close(descriptor)

    def close(self) -> None:
        """Closes all descriptors."""
        for number in list(self._open):
            self.forget(number)

    def _read_run(self, run: Sequence[Place]) -> list[bytes]:
        segment = self._segments[run[0].segment]
        begin = run[0].offset
        length = _end(run[-1]) - begin
        with fatal_on_os_error("read", segment.path):
            data = os.pread(self._descriptor(segment), length, begin)
        found = []
        seed = segment.header.seed
        for place in run:
            record = decode_record(data, place.offset - begin, seed)
            if record is None or record.data_bytes != place.data_bytes:
                raise damaged(
                    segment.path, place.offset, "a record that passed before does not now"
                )
            found.append(data[record.data_offset : record.end])
        return found

    def _descriptor(self, segment: Segment) -> int:
        number = segment.header.number
        descriptor = self._open.get(number)
        if descriptor is None:
            descriptor = self._open[number] = os.open(segment.path, os.O_RDONLY)
            if len(self._open) > _OPEN_SEGMENTS_MAX:
                self.forget(next(iter(self._open)))
        self._open.move_to_end(number)
        return descriptor


def _end(place: Place) -> int:
    return place.offset + RECORD_HEADER_BYTES + place.data_bytes


def _run(places: Sequence[Place], start: int) -> Sequence[Place]:
    """The places from `start` on that are worth one read."""
    first = before = places[start]
    stop = start + 1
    while stop < len(places):
        place = places[stop]
        if (
            place.segment != first.segment
            or not 0 <= place.offset - _end(before) <= _RUN_GAP_BYTES_MAX
            or _end(place) - first.offset > _RUN_BYTES_MAX
        ):
            break
        before = place
        stop += 1
    return places[start:stop]
