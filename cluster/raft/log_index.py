"""Where the entries of one group's log stand, and the newest of them in memory.

Owns: the positions, terms and sizes of the entries (20 bytes each, in arrays) and a cache of
recent data, bounded in bytes. Must not know of files; the journal decides what a place means.

Only the Raft thread changes it. `first_index`, `last_index` and `durable_index` are plain integers
that are replaced, so reading one of them from another thread is safe; two of them together may be
of different moments.
"""

from __future__ import annotations

from array import array
from dataclasses import dataclass

from quorepo.cluster.raft.segment import RECORD_HEADER_BYTES, LogBounds

__all__ = ["LogIndex", "Place"]

# What an entry in memory costs beyond its data: the bytes object, its slot in the dict, its key.
_CACHED_ENTRY_OVERHEAD_BYTES = 150


@dataclass(frozen=True, slots=True)
class Place:
    """Where an entry's record begins and how long its data is."""

    segment: int
    offset: int
    data_bytes: int


class LogIndex:
    """The entries of one group. Empty: first and last index are 0, and any index may come next."""

    __slots__ = (
        "_base",
        "_cache",
        "_cached_bytes",
        "_places",
        "_sizes",
        "_terms",
        "durable_index",
        "first_index",
        "last_index",
        "last_term",
    )

    def __init__(self) -> None:
        self.first_index = 0
        self.last_index = 0
        self.last_term = 0
        self.durable_index = 0  # the last entry that is known to be on the disk
        self._base = 1  # the index of the first entry in the arrays
        self._places = array("Q")  # segment number << 32 | offset
        self._terms = array("Q")
        self._sizes = array("I")  # of the data, bytes
        self._cache: dict[int, bytes] = {}  # in the order of the indexes, no gap, up to last_index
        self._cached_bytes = 0

    @classmethod
    def located_nowhere(cls, bounds: LogBounds) -> LogIndex:
        """A log whose entries lie in segments that are gone; what follows must make up for them."""
        log = cls()
        log.first_index = bounds.first_index
        log.last_index = bounds.last_index
        log.last_term = bounds.last_term
        log._base = bounds.last_index + 1
        return log

    @property
    def bounds(self) -> LogBounds | None:
        """First and last index and last term; None when empty."""
        if not self.last_index:
            return None
        return LogBounds(self.first_index, self.last_index, self.last_term)

    @property
    def is_complete(self) -> bool:
        """Whether every entry has a place. Always so, except while a journal is recovered."""
        if not self.last_index:
            return not self._places
        count = self.last_index - self.first_index + 1
        return self._base == self.first_index and len(self._places) == count

    @property
    def record_bytes(self) -> int:
        """What all entries take in segments, bytes. Takes time in the number of entries."""
        return sum(self._sizes) + RECORD_HEADER_BYTES * len(self._sizes)

    def first_within(self, bytes_max: int) -> int:
        """The first entry of the longest end of the log whose records take at most `bytes_max`;
        `last_index + 1` when the last one alone takes more. Takes time in the number of entries."""
        left, index = bytes_max, self.last_index + 1
        for size in reversed(self._sizes):
            left -= size + RECORD_HEADER_BYTES
            if left < 0:
                break
            index -= 1
        return index

    def __contains__(self, index: int) -> bool:
        return 0 < self.first_index <= index <= self.last_index

    def accepts(self, index: int) -> bool:
        """Whether an entry with this index may come next."""
        return index >= 1 and (not self.last_index or index == self.last_index + 1)

    def term_at(self, index: int) -> int:
        """The term of an entry of the log. Raises IndexError for others."""
        return self._terms[self._position(index)]

    def place_of(self, index: int) -> Place:
        """Where an entry of the log stands. Raises IndexError for others."""
        position = self._position(index)
        place = self._places[position]
        return Place(place >> 32, place & 0xFFFF_FFFF, self._sizes[position])

    def segment_of(self, index: int) -> int:
        """The number of the segment that holds an entry. Raises IndexError for others."""
        return self._places[self._position(index)] >> 32

    @property
    def oldest_segment(self) -> int:
        """The number of the oldest segment that holds an entry; the log must not be empty.

        Not always the first entry's: of a log that was being moved when a crash came, the first
        entries may stand in a newer segment than those behind them. Takes time in the number of
        entries.
        """
        return min(self._places) >> 32

    def cached(self, index: int) -> bytes | None:
        """The data of an entry, if it is in memory."""
        return self._cache.get(index)

    def append(self, index: int, term: int, place: Place) -> None:
        """Adds an entry; the caller has asked `accepts`."""
        if not self.last_index:
            self.first_index = self._base = index
        self._push(term, place)
        self.last_term = term
        self.last_index = index

    def remember(self, index: int, data: bytes) -> None:
        """Keeps the data of the entry just appended in memory."""
        self._cache[index] = data
        self._cached_bytes += len(data) + _CACHED_ENTRY_OVERHEAD_BYTES

    def forget_beyond(self, cached_bytes_max: int) -> None:
        """Drops the oldest data from memory down to the bound. All must be in a file."""
        while self._cached_bytes > cached_bytes_max and self._cache:
            self._forget(next(iter(self._cache)))

    def move(self, index: int, term: int, place: Place) -> bool:
        """Notes a copy of an entry at a new place; False when it is not a copy of what was there.

        A log that is moved is moved whole, from its first entry on. So where the originals are gone
        already, the copies take their places from the first one on.
        """
        if index not in self:
            return False
        if index == self.first_index and self._base > index:
            self._base = index
            for column in (self._places, self._terms, self._sizes):
                del column[:]
        position = index - self._base
        if position == len(self._places):
            self._push(term, place)
            return index < self.last_index or term == self.last_term
        if not 0 <= position < len(self._places):
            return False
        same = self._terms[position] == term and self._sizes[position] == place.data_bytes
        self._places[position] = place.segment << 32 | place.offset
        return same

    def truncate_from(self, index: int, term_before: int) -> None:
        """Removes the entries from `index` on; `term_before` is the term of the entry before it."""
        for gone in range(self.last_index, max(index, self.first_index) - 1, -1):
            if gone not in self._cache:
                break
            self._forget(gone)
        keep = max(0, index - self._base)
        for column in (self._places, self._terms, self._sizes):
            del column[keep:]
        if index <= self.first_index:
            self.first_index = self.last_index = self.last_term = self.durable_index = 0
            return
        self._base = min(self._base, index)
        self.last_index = index - 1
        self.last_term = term_before
        self.durable_index = min(self.durable_index, self.last_index)

    def drop_prefix(self, index: int) -> None:
        """Removes the entries before `index`, which must be in the log."""
        while self._cache and (oldest := next(iter(self._cache))) < index:
            self._forget(oldest)
        if index > self._base:
            for column in (self._places, self._terms, self._sizes):
                del column[: index - self._base]
            self._base = index
        self.first_index = index

    def _push(self, term: int, place: Place) -> None:
        self._places.append(place.segment << 32 | place.offset)
        self._terms.append(term)
        self._sizes.append(place.data_bytes)

    def _forget(self, index: int) -> None:
        self._cached_bytes -= len(self._cache.pop(index)) + _CACHED_ENTRY_OVERHEAD_BYTES

    def _position(self, index: int) -> int:
        if index not in self:
            raise IndexError(
                f"entry {index} is not in the log, which has {self.first_index}..{self.last_index}"
            )
        return index - self._base
