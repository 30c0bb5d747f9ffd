"""What every commit of a pack changed, by the numbers of the pack's entries.

Owns the derived file `objects/info/quorepo-<digest of the pack>.changes` (`derived.py`): for each
commit its own entry and those of the trees and files that none of its parents has at the same path,
each with what stood there before. With it a fetch of a thousand commits is a union of a thousand
short lists, and no tree is read. `pack_changes_build.py` makes it; without it fetches are answered
from the trees (`tree_changes.py`).

The *number* of an entry is its place in the order of the file. The *rank* of a commit is its place
in the order of generation, so parents come first. A commit is *complete* when all that it changed
is in the pack; nothing is known here of one that is not. Must not know requests.
"""

from __future__ import annotations

import hashlib
import logging
import mmap
import struct
from array import array
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

from quorepo.storage.git.commit_graph import CommitGraph, commit_graph_of
from quorepo.storage.git.derived import read_derived
from quorepo.storage.logs import fields
from quorepo.storage.packs import PackFile, PackSet

__all__ = [
    "CHANGES_KIND",
    "CHANGES_OBJECTS_MIN",
    "NOTHING",
    "ChangeTables",
    "PackChanges",
    "encode_changes",
    "pack_changes",
]

log = logging.getLogger(__name__)

CHANGES_KIND = "changes"
# In smaller packs few commits lie, and looking at their trees takes no longer.
CHANGES_OBJECTS_MIN = 2000
NOTHING = 0xFFFFFFFF

_MAGIC = b"QUOCHG\0\1"
# Magic, digest of the pack, checksum, byte order, then the counts: commits, entries, items, extras.
_HEADER = struct.Struct("=8s32s32sLLLLL")
_BYTE_ORDER = 0x01020304
_NUMBER_BYTES = 4


@dataclass
class ChangeTables:
    """The tables of a file; `array("I")` where not said otherwise."""

    ranks: array[int] = field(default_factory=lambda: array("I"))  # by position in the graph
    starts: array[int] = field(default_factory=lambda: array("I"))  # by rank, and one more
    parents: array[int] = field(default_factory=lambda: array("I"))  # first parent's rank, by rank
    extras: array[int] = field(default_factory=lambda: array("I"))  # rank, rank of another parent
    entries: array[int] = field(default_factory=lambda: array("I"))  # numbers, by item
    earlier: array[int] = field(default_factory=lambda: array("I"))  # numbers or NOTHING, by item
    first: array[int] = field(default_factory=lambda: array("I"))  # rank or NOTHING, by number
    complete: bytearray = field(default_factory=bytearray)  # 0 or 1 by rank
    types: bytearray = field(default_factory=bytearray)  # by number


class PackChanges:
    """The changes of one pack. Immutable."""

    def __init__(self, contents: mmap.mmap, graph: CommitGraph) -> None:
        """`contents` is a whole file; see `_checked`."""
        *_, commits, entries, items, extras = _HEADER.unpack_from(contents)
        self._graph = graph
        self._contents = contents
        self._position = _HEADER.size
        self._ranks = self._table(commits)
        self._starts = self._table(commits + 1)
        self._parents = self._table(commits)
        pairs = self._table(2 * extras).tolist()
        self._entries = self._table(items)
        self._earlier = self._table(items)
        self._first = self._table(entries)
        view = memoryview(contents)
        self._complete = view[self._position : self._position + commits]
        self.types = view[self._position + commits : self._position + commits + entries]
        self._extras: dict[int, list[int]] = {}
        for rank, parent in zip(pairs[::2], pairs[1::2], strict=True):
            self._extras.setdefault(rank, []).append(parent)
        self.commit_count: int = commits

    def rank(self, oid: bytes) -> int | None:
        """Of a commit of the pack."""
        position = self._graph.position(oid)
        return None if position is None else self._ranks[position]

    def is_complete(self, rank: int) -> bool:
        """Whether all that the commit changed is in the pack."""
        return bool(self._complete[rank])

    def changed(self, ranks: Iterable[int]) -> dict[int, int]:
        """What these commits changed, themselves included: the numbers of entries, each with that
        of what stood there before, or NOTHING.
        """
        found: dict[int, int] = {}
        starts, entries, earlier = self._starts, self._entries, self._earlier
        for rank in ranks:
            low, high = starts[rank], starts[rank + 1]
            found.update(zip(entries[low:high], earlier[low:high], strict=True))
        return found

    def ancestors(self, ranks: Sequence[int]) -> bytearray:
        """By rank: 1 for these commits and those of the pack that they reach inside of it."""
        marks = bytearray(self.commit_count)
        if not ranks:
            return marks
        for rank in ranks:
            marks[rank] = 1
        highest = max(ranks)
        parents = self._parents[: highest + 1].tolist()
        extras = self._extras
        for rank in range(highest, -1, -1):
            if marks[rank]:
                parent = parents[rank]
                if parent != NOTHING:
                    marks[parent] = 1
                if rank in extras:
                    for parent in extras[rank]:
                        marks[parent] = 1
        return marks

    def first(self, number: int) -> int:
        """The rank of a commit that brought this entry, or NOTHING."""
        return self._first[number]

    def _table(self, count: int) -> memoryview:
        start = self._position
        self._position += count * _NUMBER_BYTES
        return memoryview(self._contents)[start : self._position].cast("I")


_changes: WeakKeyDictionary[PackFile, PackChanges] = WeakKeyDictionary()


def pack_changes(objects: PackSet, pack: PackFile) -> PackChanges | None:
    """Those of a pack of `objects`; None as long as nobody has made its file."""
    changes = _changes.get(pack)
    if changes is None and pack.object_count >= CHANGES_OBJECTS_MIN:
        contents = read_derived(pack, CHANGES_KIND)
        if contents is None:
            return None
        graph = commit_graph_of(objects, pack)
        if not _checked(contents, pack, graph):
            log.warning("table of changes is damaged", extra=fields(pack=pack.path.name))
            return None
        changes = _changes[pack] = PackChanges(contents, graph)
    return changes


def _checked(contents: mmap.mmap, pack: PackFile, graph: CommitGraph) -> bool:
    """Whether it is whole, about this pack, and made on this kind of machine."""
    if len(contents) < _HEADER.size:
        return False
    magic, digest, checksum, order, commits, entries, items, extras = _HEADER.unpack_from(contents)
    numbers = 3 * commits + 1 + 2 * extras + 2 * items + entries
    size = _HEADER.size + numbers * _NUMBER_BYTES + commits + entries
    if (magic, digest, order, size) != (_MAGIC, pack.digest, _BYTE_ORDER, len(contents)):
        return False
    if (commits, entries) != (graph.count, pack.object_count):
        return False
    with memoryview(contents) as view:
        return bool(hashlib.sha256(view[_HEADER.size :]).digest() == checksum)


def encode_changes(pack: PackFile, tables: ChangeTables) -> bytes:
    """The file of a pack."""
    body = b"".join(
        bytes(table)
        for table in (
            *(tables.ranks, tables.starts, tables.parents, tables.extras, tables.entries),
            *(tables.earlier, tables.first, tables.complete, tables.types),
        )
    )
    counts = (len(tables.ranks), len(tables.first), len(tables.entries), len(tables.extras) // 2)
    checksum = hashlib.sha256(body).digest()
    return _HEADER.pack(_MAGIC, pack.digest, checksum, _BYTE_ORDER, *counts) + body
