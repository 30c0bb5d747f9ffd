"""The part of an answer that one large pack holds, by the numbers of its entries.

Owns the choice by the table of changes (`pack_changes.py`), which reads no tree, and the copying of
those entries. What cannot be copied, since it is a delta of something that is neither sent nor at
the client, is handed back and goes the long way (`pack_writer.py`).

The client has what a commit brought that it has; a table names one such commit per entry, so of an
object that several commits brought this may know too little, and it is sent again; never too much.
"""

from __future__ import annotations

from bisect import bisect_left
from collections.abc import Callable, Collection, Container, Iterable
from dataclasses import dataclass, field
from heapq import nlargest

from quorepo.storage.git.commits import CommitReader
from quorepo.storage.git.pack_changes import NOTHING, PackChanges, pack_changes
from quorepo.storage.git.pack_entries import encode_distance, encode_header, split_ofs_delta
from quorepo.storage.git.walk import CommitRange
from quorepo.storage.packs import (
    BLOB,
    OFS_DELTA,
    REF_DELTA,
    TYPE_NAMES,
    PackFile,
    PackSet,
)

__all__ = ["PackPart", "all_but_blobs", "copy_part", "part_of_range"]

# With fewer commits looking at their trees takes no longer, and gives smaller answers.
_COMMITS_MIN = 16
# Entries stored whole that become new deltas, the largest ones, and from how many bytes on: about
# 0.3 ms each.
_NEW_DELTAS_MAX = 24
_NEW_DELTA_BYTES_MIN = 512

# Writes a new delta of (object id, offset, object id of the base, the base's position or -1 at the
# client) if that is smaller than so many bytes; says whether it did.
NewDelta = Callable[[bytes, int, bytes, int, int], bool]


@dataclass
class PackPart:
    """Entries of one pack: their numbers in ascending order."""

    pack: PackFile
    numbers: list[int]
    earlier: dict[int, int] = field(default_factory=dict)  # numbers; NOTHING: nothing was there
    had: bytearray = field(default_factory=bytearray)  # by rank: the client has this commit
    changes: PackChanges | None = None
    # Where entries lie in the answer, by their offsets, once they are written.
    moved: dict[int, int] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.numbers)

    def __contains__(self, oid: object) -> bool:
        offset = self.pack.find(oid) if isinstance(oid, bytes) else None
        if offset is None:
            return False
        number = self.pack.number_at(offset)
        place = bisect_left(self.numbers, number)
        return place < len(self.numbers) and self.numbers[place] == number

    def is_had(self, number: int) -> bool:
        """Whether the client is known to have an entry of the pack."""
        if self.changes is None or not self.had:
            return False
        first = self.changes.first(number)
        return first != NOTHING and bool(self.had[first])


def part_of_range(
    reader: CommitReader,
    commits: CommitRange,
    keeps_blobs: bool,
    elsewhere: Container[bytes] = frozenset(),
) -> tuple[PackPart, list[bytes]] | None:
    """What the largest pack holds of the new commits of a range, and the new commits that are left.

    None when that is not worth it, or the pack has no table yet. `elsewhere`: commits whose objects
    are chosen in another way.
    """
    if len(commits.new) < _COMMITS_MIN:
        return None
    objects = reader.objects
    pack = max(objects.packs, key=lambda pack: pack.object_count)
    changes = pack_changes(objects, pack)
    if changes is None:
        return None
    ranks: list[int] = []
    left: list[bytes] = []
    for oid in commits.new:
        rank = None if oid in elsewhere else changes.rank(oid)
        if rank is None or not changes.is_complete(rank):
            left.append(oid)
        else:
            ranks.append(rank)
    if len(ranks) < _COMMITS_MIN:
        return None
    had = [rank for oid in commits.had if (rank := changes.rank(oid)) is not None]
    part = PackPart(pack, [], changes.changed(ranks), changes.ancestors(had), changes)
    numbers: Iterable[int] = part.earlier
    if had:
        numbers = [number for number in numbers if not part.is_had(number)]
    if not keeps_blobs:
        numbers = [number for number in numbers if changes.types[number] != BLOB]
    part.numbers = sorted(numbers)
    return part, left


def all_but_blobs(objects: PackSet, pack: PackFile) -> PackPart | None:
    """All commits, trees and tags of a pack; None when it has no table yet."""
    changes = pack_changes(objects, pack)
    if changes is None:
        return None
    return PackPart(pack, [n for n, kind in enumerate(changes.types) if kind != BLOB])


def copy_part(
    part: PackPart,
    position: int,
    emit: Callable[[bytes], None],
    new_delta: NewDelta,
    where: Callable[[], int],
    *,
    thin: bool,
) -> list[tuple[bytes, bytes | None]]:
    """Writes the entries at `position`; OFS_DELTA has to be allowed.

    Returns what could not be copied: object ids, each with that of what stood there before.
    """
    copier = _Copier(part, emit, new_delta, where, thin)
    start = copier.leading_run()
    if start:
        position = copier.copy_leading(start, position)
    copier.copy(start)
    return copier.left


class _Copier:
    def __init__(
        self,
        part: PackPart,
        emit: Callable[[bytes], None],
        new_delta: NewDelta,
        where: Callable[[], int],
        thin: bool,
    ) -> None:
        self._part = part
        self._pack = part.pack
        self._offsets, self._ends = part.pack.extents()
        self._emit = emit
        self._new_delta = new_delta
        self._where = where
        self._thin = thin
        self.left: list[tuple[bytes, bytes | None]] = []
        self._anew = self._to_be_made_anew()

    def leading_run(self) -> int:
        """How many entries at the start of the pack are all sent: their bases are among them, and
        the distances between them stay.
        """
        numbers = self._part.numbers
        low, high = 0, len(numbers)
        while low < high:
            middle = (low + high + 1) // 2
            low, high = (middle, high) if numbers[middle - 1] == middle - 1 else (low, middle - 1)
        return 0 if self._anew else low

    def copy_leading(self, count: int, position: int) -> int:
        """The first `count` entries of the pack in one piece."""
        step = 1 << 20
        start, end = self._offsets[0], self._ends[count - 1]
        for place in range(start, end, step):
            self._emit(self._pack.slice(place, min(end, place + step)))
        shift = position - start
        self._part.moved.update((offset, offset + shift) for offset in self._offsets[:count])
        return position + end - start

    def copy(self, start: int) -> None:
        """The entries from the `start`th one on, each by itself."""
        pack, moved, emit = self._pack, self._part.moved, self._emit
        offsets, ends, anew = self._offsets, self._ends, self._anew
        position = self._where()
        for number in self._part.numbers[start:]:
            offset = offsets[number]
            data = pack.slice(offset, ends[number])
            type_num = data[0] >> 4 & 7
            if type_num in TYPE_NAMES:
                if number in anew and self._make_delta(number, len(data), position):
                    moved[offset] = position
                    position = self._where()
                    continue
            elif type_num == OFS_DELTA:
                header_bytes, distance, body = split_ofs_delta(data)
                base = moved.get(offset - distance)
                if base is not None:
                    moved_by = encode_distance(position - base)
                    data = data[:header_bytes] + moved_by + data[body:]
                elif self._thin and self._part.is_had(pack.number_at(offset - distance)):
                    size = pack.header(offset).size
                    head = encode_header(REF_DELTA, size) + pack.oid_at(offset - distance)
                    data = head + data[body:]
                else:
                    self._leave(number)
                    continue
            else:
                self._leave(number)
                continue
            moved[offset] = position
            position += len(data)
            emit(data)

    def _leave(self, number: int) -> None:
        pack, offsets = self._pack, self._offsets
        before = self._part.earlier.get(number, NOTHING)
        earlier = None if before == NOTHING else pack.oid_at(offsets[before])
        self.left.append((pack.oid_at(offsets[number]), earlier))

    def _to_be_made_anew(self) -> Collection[int]:
        """Large entries that are stored whole although something stood at their path before."""
        part = self._part
        if not self._thin or not part.had:
            return ()
        sizes = []
        for number in part.numbers:
            size = self._ends[number] - self._offsets[number]
            if size >= _NEW_DELTA_BYTES_MIN and part.earlier.get(number, NOTHING) != NOTHING:
                header = self._pack.slice(self._offsets[number], self._offsets[number] + 1)
                if header[0] >> 4 & 7 in TYPE_NAMES:
                    sizes.append((size, number))
        return {number for _, number in nlargest(_NEW_DELTAS_MAX, sizes)}

    def _make_delta(self, number: int, size: int, position: int) -> bool:
        """As a delta of what the client has at its path."""
        part, offsets = self._part, self._offsets
        before = part.earlier.get(number, NOTHING)
        seen = {number}
        while before != NOTHING and before not in seen:
            if part.is_had(before):
                oid, base = (self._pack.oid_at(offsets[n]) for n in (number, before))
                return self._new_delta(oid, offsets[number], base, -1, size)
            seen.add(before)
            before = part.earlier.get(before, NOTHING)
        return False
