"""Commits of a pack in a form that walks can read quickly: tree, parents, date, generation.

Owns the content of the derived file `objects/info/quorepo-<digest of the pack>.commits`
(`derived.py`). It is never asked whether an object exists: it belongs to one pack, by digest, and
carries a checksum; what is not exactly as expected is made anew from the pack. Packs of few objects
get no file, they are scanned when first needed.

The generation is git's "corrected commit date" (gitformat-commit-graph(5)): the committer date, or
one more than the largest generation of a parent. So it grows from parent to child however
committers' clocks were set, and it does not depend on which packs hold the commits.

    magic 8, hash bytes u16, pack digest 32, commits u32, parents in all u32, SHA-256 of the rest 32
    256 × u32: how many ids begin with this byte or a smaller one
    ids, sorted; per commit: tree, date u64, generation u64, first and end of its parents u32, u32
    parents, as ids
"""

from __future__ import annotations

import hashlib
import logging
import mmap
import struct
from array import array
from binascii import Error as HexError
from binascii import unhexlify
from bisect import bisect_left
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import NamedTuple
from weakref import WeakKeyDictionary

from quorepo.storage.errors import CorruptPack
from quorepo.storage.git.derived import has_derived, read_derived, write_derived
from quorepo.storage.logs import fields
from quorepo.storage.packs import COMMIT, OFS_DELTA, REF_DELTA, PackFile, PackSet
from quorepo.storage.patience import give_up

__all__ = [
    "Commit",
    "CommitGraph",
    "commit_graph_of",
    "commit_graphs",
    "is_at_hand",
    "parse_commit",
]

log = logging.getLogger(__name__)

_KIND = "commits"
_MAGIC = b"QUOCOM\0\1"
_HEADER = struct.Struct(">8sH32sLL32s")
_FANOUT = struct.Struct(">256L")
# Packs of fewer objects are scanned by every process that reads them.
_STORED_OBJECTS_MIN = 2000
_GENERATION_MAX = (1 << 64) - 1


class Commit(NamedTuple):
    """What a commit refers to, its committer date in seconds since 1970, and its generation."""

    tree: bytes
    parents: tuple[bytes, ...]
    date: int
    generation: int = 0


class CommitGraph:
    """The commits of one pack. Immutable; `get` is all that walks need."""

    def __init__(self, commits: Mapping[bytes, Commit]) -> None:
        self.get: Callable[[bytes], Commit | None] = commits.get
        self.count = len(commits)
        self._commits: Mapping[bytes, Commit] | _MappedCommits = commits
        self._sorted: list[bytes] | None = None

    @classmethod
    def from_file(cls, contents: bytes | mmap.mmap, pack: PackFile) -> CommitGraph | None:
        """None when the file is damaged or not about this pack."""
        width = pack.object_format.hash_bytes
        if len(contents) < _HEADER.size + _FANOUT.size:
            return None
        magic, hash_bytes, digest, count, parents, checksum = _HEADER.unpack_from(contents)
        record = _record(width)
        size = _HEADER.size + _FANOUT.size + count * (width + record.size) + parents * width
        if (magic, hash_bytes, digest, size) != (_MAGIC, width, pack.digest, len(contents)):
            return None
        with memoryview(contents) as view:
            if hashlib.sha256(view[_HEADER.size :]).digest() != checksum:
                return None
        graph = cls({})
        graph.count = count
        graph._commits = mapped = _MappedCommits(contents, width, count)
        graph.get = mapped.get
        return graph

    def oids(self) -> list[bytes]:
        """All of them, sorted."""
        commits = self._commits
        return commits.oids() if isinstance(commits, _MappedCommits) else sorted(commits)

    def position(self, oid: bytes) -> int | None:
        """The place of a commit among `oids`; None when it is not here."""
        commits = self._commits
        if isinstance(commits, _MappedCommits):
            return commits.find(oid)
        if oid not in commits:
            return None
        if self._sorted is None:
            self._sorted = self.oids()
        return bisect_left(self._sorted, oid)


class _MappedCommits:
    def __init__(self, contents: bytes | mmap.mmap, width: int, count: int) -> None:
        self._contents = contents
        self._width = width
        self._fanout = _FANOUT.unpack_from(contents, _HEADER.size)
        self._ids = _HEADER.size + _FANOUT.size
        self._record = _record(width)
        self._records = self._ids + count * width
        self._parents = self._records + count * self._record.size
        self._positions = range(count)

    def find(self, oid: bytes) -> int | None:
        first = oid[0]
        low = self._fanout[first - 1] if first else 0
        high = self._fanout[first]
        position = bisect_left(self._positions, oid, low, high, key=self._id_at)
        return position if position < high and self._id_at(position) == oid else None

    def oids(self) -> list[bytes]:
        return [self._id_at(position) for position in self._positions]

    def get(self, oid: bytes) -> Commit | None:
        position = self.find(oid)
        if position is None:
            return None
        tree, date, generation, first, end = self._record.unpack_from(
            self._contents, self._records + position * self._record.size
        )
        width, start = self._width, self._parents
        parents = [
            self._contents[start + number * width : start + (number + 1) * width]
            for number in range(first, end)
        ]
        return Commit(tree, tuple(parents), date, generation)

    def _id_at(self, position: int) -> bytes:
        start = self._ids + position * self._width
        return self._contents[start : start + self._width]


_graphs: WeakKeyDictionary[PackFile, CommitGraph] = WeakKeyDictionary()


def commit_graph_of(objects: PackSet, pack: PackFile) -> CommitGraph:
    """The one of a pack of `objects`."""
    if pack not in _graphs:
        commit_graphs(objects)
    return _graphs[pack]


def commit_graphs(objects: PackSet) -> list[CommitGraph]:
    """One per pack that holds commits. What is missing is read from its file, or made."""
    missing = [pack for pack in objects.packs if pack not in _graphs]
    if missing:
        _provide(objects, missing)
    graphs = [_graphs[pack] for pack in objects.packs]
    return [graph for graph in graphs if graph.count]


def is_at_hand(objects: PackSet) -> bool:
    """Whether `commit_graphs` has only small packs to scan: milliseconds, not seconds."""
    return all(
        pack in _graphs or pack.object_count < _STORED_OBJECTS_MIN or has_derived(pack, _KIND)
        for pack in objects.packs
    )


def _provide(objects: PackSet, missing: Sequence[PackFile]) -> None:
    give_up()
    known = [_graphs[pack].get for pack in objects.packs if pack in _graphs]
    unread = []
    for pack in missing:
        graph = None
        if pack.object_count >= _STORED_OBJECTS_MIN:
            graph = _read(pack)
        if graph is None:
            unread.append(pack)
        else:
            _graphs[pack] = graph
            known.append(graph.get)
    found = {pack: _scan(objects, pack) for pack in unread}
    _assign_generations(list(found.values()), known)
    for pack, commits in found.items():
        if pack.object_count >= _STORED_OBJECTS_MIN:
            write_derived(pack, _KIND, _encode(pack, commits))
        _graphs[pack] = CommitGraph(commits)


def _scan(objects: PackSet, pack: PackFile) -> dict[bytes, Commit]:
    """All commits of a pack, generations still 0. A delta is what its base is."""
    width = pack.object_format.hash_bytes
    offsets: set[int] = set()
    commits: dict[bytes, Commit] = {}
    for offset in pack.iter_offsets():
        header = pack.header(offset)
        if header.type_num == OFS_DELTA:
            is_commit = header.base_offset in offsets
        elif header.type_num == REF_DELTA:
            is_commit = objects.type_at(pack, offset) == COMMIT
        else:
            is_commit = header.type_num == COMMIT
        if is_commit:
            offsets.add(offset)
            oid = pack.oid_at(offset)
            commits[oid] = parse_commit(objects.get_at(pack, offset)[1], oid, width)
    return commits


def _assign_generations(
    found: Sequence[dict[bytes, Commit]], known: Sequence[Callable[[bytes], Commit | None]]
) -> None:
    """Give every commit in `found` its generation; parents may lie in any of them or in `known`."""
    generations: dict[bytes, int] = {}
    unknown: dict[bytes, Commit] = {}
    for commits in found:
        unknown.update(commits)

    def generation_of(oid: bytes) -> int:
        for get in known:
            commit = get(oid)
            if commit is not None:
                return commit.generation
        return 0  # beyond the border of a shallow history

    for start in unknown:
        pending = [start]
        while pending:
            oid = pending[-1]
            if oid in generations:
                pending.pop()
                continue
            commit = unknown[oid]
            first = [p for p in commit.parents if p in unknown and p not in generations]
            if first:
                pending += first
                continue
            highest = max(
                (generations[p] if p in unknown else generation_of(p) for p in commit.parents),
                default=-1,
            )
            generations[oid] = min(max(commit.date, highest + 1), _GENERATION_MAX)
            pending.pop()
    for commits in found:
        for oid, commit in commits.items():
            commits[oid] = commit._replace(generation=generations[oid])


def parse_commit(content: bytes, oid: bytes, hash_bytes: int) -> Commit:
    """The commit `oid` with this content, generation 0. Raises CorruptPack when it is no commit."""
    width = 2 * hash_bytes
    if not content.startswith(b"tree "):
        raise CorruptPack(f"object {oid.hex()} is not a commit")
    try:
        tree = unhexlify(content[5 : 5 + width])
        position = 6 + width
        parents = []
        while content.startswith(b"parent ", position):
            parents.append(unhexlify(content[position + 7 : position + 7 + width]))
            position += 8 + width
    except HexError:
        raise CorruptPack(f"object {oid.hex()} refers to a malformed object id") from None
    return Commit(tree, tuple(parents), _committer_date(content, position))


def _committer_date(content: bytes, position: int) -> int:
    """0 for a commit that has no readable date; fsck can be told to let those in."""
    start = content.find(b"\ncommitter ", position - 1)
    if start < 0:
        return 0
    end = content.find(b"\n", start + 1)
    line = content[start : end if end >= 0 else len(content)]
    words = line[line.rfind(b">") + 1 :].split()
    if not words or not words[0].isdigit() or len(words[0]) > 18:
        return 0
    return int(words[0])


def _record(width: int) -> struct.Struct:
    return struct.Struct(f">{width}sQQLL")


def _read(pack: PackFile) -> CommitGraph | None:
    contents = read_derived(pack, _KIND)
    if contents is None:
        return None
    graph = CommitGraph.from_file(contents, pack)
    if graph is None:
        log.warning("commit graph is damaged and made anew", extra=fields(pack=pack.path.name))
    return graph


def _encode(pack: PackFile, commits: Mapping[bytes, Commit]) -> bytes:
    width = pack.object_format.hash_bytes
    record = _record(width)
    oids = sorted(commits)
    records: list[bytes] = []
    parents: list[bytes] = []
    for oid in oids:
        commit = commits[oid]
        first = len(parents)
        parents += commit.parents
        records.append(
            record.pack(commit.tree, commit.date, commit.generation, first, len(parents))
        )
    fanout = _FANOUT.pack(*_cumulated(oids))
    body = b"".join([fanout, *oids, *records, *parents])
    checksum = hashlib.sha256(body).digest()
    header = _HEADER.pack(_MAGIC, width, pack.digest, len(oids), len(parents), checksum)
    return header + body


def _cumulated(oids: Iterable[bytes]) -> Iterable[int]:
    counts = array("L", bytes(256 * array("L").itemsize))
    for oid in oids:
        counts[oid[0]] += 1
    total = 0
    for count in counts:
        total += count
        yield total
