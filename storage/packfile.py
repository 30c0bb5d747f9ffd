"""One pack file and its index (v2), read in place.

Owns: finding an object, the bytes of an entry, where an entry ends. Must not know which repository
or revision the pack belongs to, and never decides whether an object exists (packs.py does).

The index is read here and not by dulwich's `PackIndex2`: that holds two descriptors per file for
as long as it lives (1,000 packs exhaust them), is not made for several threads, and needs three
times as long per lookup. Files of up to 16 KiB are read into memory, larger ones are mapped; a
mapping goes away with the last reference to its PackFile, so no reader is ever cut off. Formats:
gitformat-pack(5).
"""

from __future__ import annotations

import itertools
import mmap
import struct
import sys
import threading
import zlib
from array import array
from bisect import bisect_left, bisect_right
from collections.abc import Callable, Iterator, Sequence
from math import isqrt
from pathlib import Path
from typing import Final, NamedTuple

from quorepo.storage.errors import DamagedPack
from quorepo.storage.objectformat import ObjectFormat
from quorepo.storage.patience import give_up

__all__ = [
    "BLOB",
    "COMMIT",
    "OFS_DELTA",
    "REF_DELTA",
    "TAG",
    "TREE",
    "TYPE_NAMES",
    "EntryHeader",
    "PackFile",
    "RawEntry",
    "inflate",
    "parse_entry_header",
]

COMMIT: Final = 1
TREE: Final = 2
BLOB: Final = 3
TAG: Final = 4
OFS_DELTA: Final = 6
REF_DELTA: Final = 7
TYPE_NAMES: Final = {COMMIT: b"commit", TREE: b"tree", BLOB: b"blob", TAG: b"tag"}

_MAPPED_BYTES_MIN = 16 * 1024
_INFLATE_STEP = 64 * 1024
_INDEX_MAGIC = b"\xfftOc\x00\x00\x00\x02"
_FANOUT = struct.Struct(">256L")
_NAMES_START = 8 + _FANOUT.size
_LARGE_OFFSET = 1 << 31
# Ids with the same first byte of which all are searched.
_SEARCHED_MIN = 64

Contents = bytes | mmap.mmap

_pack_numbers = itertools.count()


class EntryHeader(NamedTuple):
    """What stands before the zlib stream of an entry."""

    type_num: int  # 1-4, OFS_DELTA or REF_DELTA; 0 and 5 are not checked here
    size: int  # inflated bytes; of the delta itself when it is one
    base_offset: int | None  # absolute, of an OFS_DELTA; may be nonsense in a hostile pack
    base_oid: bytes | None  # of a REF_DELTA
    body: int  # offset of the zlib stream


class RawEntry(NamedTuple):
    """An entry as it lies in the pack."""

    type_num: int
    size: int
    base_offset: int | None
    base_oid: bytes | None
    compressed: bytes  # the zlib stream, verbatim


def parse_entry_header(contents: Contents, offset: int, hash_bytes: int) -> EntryHeader:
    """The header of the entry at `offset`. Raises IndexError when `contents` ends inside it."""
    byte = contents[offset]
    position = offset + 1
    type_num = (byte >> 4) & 7
    size = byte & 15
    shift = 4
    while byte & 0x80:
        byte = contents[position]
        position += 1
        size |= (byte & 0x7F) << shift
        shift += 7
        if shift > 70:
            raise IndexError("entry header too long")
    if type_num == OFS_DELTA:
        byte = contents[position]
        position += 1
        distance = byte & 0x7F
        while byte & 0x80:
            byte = contents[position]
            position += 1
            distance = ((distance + 1) << 7) | (byte & 0x7F)
            if distance > 1 << 63:
                raise IndexError("delta base offset too large")
        return EntryHeader(type_num, size, offset - distance, None, position)
    if type_num == REF_DELTA:
        base = contents[position : position + hash_bytes]
        if len(base) < hash_bytes:
            raise IndexError("truncated delta base id")
        return EntryHeader(type_num, size, None, base, position + hash_bytes)
    return EntryHeader(type_num, size, None, None, position)


def inflate(contents: Contents, start: int, stop: int, size: int) -> tuple[bytes, int]:
    """Inflates the zlib stream at `start` to exactly `size` bytes; returns them and the stream's
    end.

    Never produces more than `size` + 1 bytes, whatever the stream says. Raises zlib.error when the
    stream is damaged, ends at `stop`, or holds more or less than `size`.
    """
    inflater = zlib.decompressobj()
    # The first step is as large as zlib makes a stream of that size at worst (deflateBound), so
    # that nearly every entry is inflated in one call and little is copied into `unused_data`.
    position = min(stop, start + min(size + (size >> 8) + 64, _INFLATE_STEP))
    content = inflater.decompress(contents[start:position], size + 1)
    if not inflater.eof:
        pieces = [content]
        produced = len(content)
        while not inflater.eof:
            if produced > size:
                raise zlib.error("inflated data is longer than declared")
            step = contents[position : min(stop, position + _INFLATE_STEP)]
            if not step:
                raise zlib.error("truncated stream")
            position += len(step)
            piece = inflater.decompress(step, size + 1 - produced)
            produced += len(piece)
            pieces.append(piece)
        content = b"".join(pieces)
    if len(content) != size:
        raise zlib.error(f"inflated data has {len(content)} bytes, not {size} as declared")
    return content, position - len(inflater.unused_data)


class _Index:
    """The tables of one index file; immutable."""

    __slots__ = ("_contents", "_large", "_name_bytes", "_offsets", "count", "fanout", "positions")

    def __init__(self, contents: Contents, name_bytes: int, path: Path) -> None:
        if contents[:8] != _INDEX_MAGIC or len(contents) < _NAMES_START:
            raise DamagedPack(f"pack index {path.name!r} is not a version 2 index")
        self.fanout = _FANOUT.unpack_from(contents, 8)
        self.count: int = self.fanout[255]
        self._contents = contents
        self._name_bytes = name_bytes
        self._offsets = _NAMES_START + self.count * (name_bytes + 4)
        self._large = self._offsets + self.count * 4
        self.positions = range(self.count)
        if len(contents) < self._large + 2 * name_bytes:
            raise DamagedPack(f"pack index {path.name!r} is shorter than its {self.count} objects")

    def name_at(self, position: int) -> bytes:
        start = _NAMES_START + position * self._name_bytes
        return self._contents[start : start + self._name_bytes]

    def offset_at(self, position: int) -> int:
        start = self._offsets + position * 4
        offset = int.from_bytes(self._contents[start : start + 4], "big")
        if offset < _LARGE_OFFSET:
            return offset
        start = self._large + (offset - _LARGE_OFFSET) * 8
        return int.from_bytes(self._contents[start : start + 8], "big")

    def find(self, oid: bytes) -> int | None:
        """Ids are evenly spread, so an id lies near its share of those with its first byte: a
        search for its bytes there takes half the time of a binary search by calls from C.
        """
        first = oid[0]
        low = self.fanout[first - 1] if first else 0
        high = self.fanout[first]
        if low == high:
            return None
        start, stop, width = low, high, self._name_bytes
        if high - low > _SEARCHED_MIN:
            guess = low + ((high - low) * (oid[1] << 8 | oid[2]) >> 16)
            # Four standard deviations.
            margin = 2 * isqrt(high - low) + 1
            start, stop = max(low, guess - margin), min(high, guess + margin)
        names = self._contents[_NAMES_START + start * width : _NAMES_START + stop * width]
        place = names.find(oid)
        while place >= 0 and place % width:
            place = names.find(oid, place + 1)
        if place >= 0:
            return self.offset_at(start + place // width)
        if (start == low or names[:width] < oid) and (stop == high or names[-width:] > oid):
            return None
        position = bisect_left(self.positions, oid, low, high, key=self.name_at)
        if position < high and self.name_at(position) == oid:
            return self.offset_at(position)
        return None

    def reverse(self) -> tuple[array[int], array[int]]:
        """All offsets in ascending order, and the position in the index of each."""
        table = array("I", self._contents[self._offsets : self._large])
        if table.itemsize != 4:
            raise AssertionError("offsets of an index have 4 bytes")
        if sys.byteorder == "little":
            table.byteswap()
        unsorted = table.tolist()
        if max(unsorted, default=0) >= _LARGE_OFFSET:
            unsorted = [self.offset_at(position) for position in self.positions]
        order = array("L", sorted(self.positions, key=unsorted.__getitem__))
        return array("Q", (unsorted[position] for position in order)), order


class PackFile:
    """A pack and its index, opened when first read. Safe to use from several threads.

    `elsewhere` gives other places (.pack, .idx) to look when the files are not where they belong:
    a transaction may have moved them between the choice of a pack and its first read. Raises
    DamagedPack when the files are nowhere or not what they should be.
    """

    __slots__ = (
        "__weakref__",
        "_contents",
        "_elsewhere",
        "_index",
        "_index_path",
        "_lock",
        "_reverse",
        "digest",
        "number",
        "object_format",
        "path",
    )

    def __init__(
        self,
        path: Path,
        index_path: Path,
        digest: bytes,
        object_format: ObjectFormat,
        elsewhere: Callable[[], Sequence[tuple[Path, Path]]] = tuple,
    ) -> None:
        self._elsewhere = elsewhere
        self.path = path
        self.digest = digest
        self.object_format = object_format
        self.number = next(_pack_numbers)  # of this object in this process, for caches
        self._index_path = index_path
        self._lock = threading.Lock()
        self._contents: Contents | None = None
        self._index: _Index | None = None
        self._reverse: tuple[array[int], array[int]] | None = None

    def __repr__(self) -> str:
        return f"PackFile({str(self.path)!r})"

    @property
    def object_count(self) -> int:
        """Objects in the pack."""
        return self._loaded_index().count

    @property
    def pack_bytes(self) -> int:
        """Size of the pack file in bytes."""
        return len(self._loaded())

    def find(self, oid: bytes) -> int | None:
        """The offset of the entry of an object; None when the pack does not hold it."""
        return (self._index or self._loaded_index()).find(oid)

    def iter_oids(self) -> Iterator[bytes]:
        """All object ids in ascending order."""
        index = self._loaded_index()
        return map(index.name_at, index.positions)

    def oids_beginning_with(self, digits: str, at_most: int) -> list[bytes]:
        """Object ids whose hex form begins with these digits (two or more), the first ones."""
        index = self._loaded_index()
        start = bytes.fromhex(digits + "0" * (len(digits) % 2))
        position = bisect_left(index.positions, start, key=index.name_at)
        found: list[bytes] = []
        while position < index.count and len(found) < at_most:
            oid = index.name_at(position)
            if not oid.hex().startswith(digits):
                break
            found.append(oid)
            position += 1
        return found

    def oid_at(self, offset: int) -> bytes:
        """The id of the object whose entry starts at `offset`. Raises KeyError when none does."""
        number = self.number_at(offset)
        return self._loaded_index().name_at(self._loaded_reverse()[1][number])

    def number_at(self, offset: int) -> int:
        """The place of the entry at `offset` in the order of the file. Raises KeyError."""
        offsets, _ = self._loaded_reverse()
        number = bisect_left(offsets, offset)
        if number == len(offsets) or offsets[number] != offset:
            raise KeyError(offset)
        return number

    def extents(self) -> tuple[array[int], array[int]]:
        """Where the entries start and where they end, in the order of the file."""
        offsets, _ = self._loaded_reverse()
        ends = offsets[1:]
        ends.append(len(self._loaded()) - self.object_format.hash_bytes)
        return offsets, ends

    def iter_offsets(self) -> Iterator[int]:
        """The offsets of all entries in ascending order."""
        return iter(self._loaded_reverse()[0])

    def iter_entries(self) -> Iterator[tuple[int, int, bytes]]:
        """(offset, end, object id) of all entries in the order of the file."""
        index = self._loaded_index()
        offsets, order = self._loaded_reverse()
        end = len(self._loaded()) - self.object_format.hash_bytes
        ends = itertools.chain(itertools.islice(offsets, 1, None), (end,))
        return zip(offsets, ends, map(index.name_at, order), strict=True)

    def end_of(self, offset: int) -> int:
        """Where the entry that starts at `offset` ends: at the next one, or at the trailer."""
        offsets, _ = self._loaded_reverse()
        position = bisect_right(offsets, offset)
        if position < len(offsets):
            return offsets[position]
        return len(self._loaded()) - self.object_format.hash_bytes

    def header(self, offset: int) -> EntryHeader:
        """The header of the entry at `offset`, base offsets checked to lie before it."""
        contents = self._contents or self._loaded()
        try:
            header = parse_entry_header(contents, offset, self.object_format.hash_bytes)
        except IndexError as error:
            raise self.damaged(offset, str(error)) from error
        if header.base_offset is not None and not 12 <= header.base_offset < offset:
            raise self.damaged(offset, f"delta base at {header.base_offset}")
        return header

    def read_entry(self, offset: int) -> RawEntry:
        """The entry at `offset` with its zlib stream verbatim; nothing is inflated."""
        header = self.header(offset)
        compressed = self._loaded()[header.body : self.end_of(offset)]
        return RawEntry(*header[:4], compressed)

    def slice(self, start: int, stop: int) -> bytes:
        """Bytes of the pack file."""
        return self._loaded()[start:stop]

    def inflate(self, offset: int, header: EntryHeader) -> tuple[bytes, int]:
        """What the entry's zlib stream holds (object or delta), and where the entry ends."""
        contents = self._contents or self._loaded()
        try:
            return inflate(contents, header.body, len(contents), header.size)
        except zlib.error as error:
            raise self.damaged(offset, str(error)) from error

    def damaged(self, offset: int, reason: str) -> DamagedPack:
        """The error for an entry that is not what was once verified."""
        return DamagedPack(
            f"pack {self.path.name!r} is damaged at offset {offset}: {reason}",
            next_step="read from another node and restore this file from there",
            pack=self.digest.hex(),
        )

    def _loaded(self) -> Contents:
        contents = self._contents
        if contents is None:
            give_up()
            with self._lock:
                contents = self._contents
                if contents is None:
                    contents = self._contents = self._open(self.path, 0)
        return contents

    def _loaded_index(self) -> _Index:
        index = self._index
        if index is None:
            give_up()
            with self._lock:
                index = self._index
                if index is None:
                    contents = self._open(self._index_path, 1)
                    index = _Index(contents, self.object_format.hash_bytes, self._index_path)
                    self._index = index
        return index

    def _loaded_reverse(self) -> tuple[array[int], array[int]]:
        reverse = self._reverse
        if reverse is None:
            give_up()
            # Built outside the lock: several threads at once may do it for nothing, none waits.
            reverse = self._reverse = self._loaded_index().reverse()
        return reverse

    def _open(self, path: Path, part: int) -> Contents:
        """The contents of the pack (part 0) or of the index (1), wherever the file is by now."""
        candidates = [path, *(pair[part] for pair in self._elsewhere())]
        # Twice: a file moves from quarantine to its repository to the retired ones, and may pass
        # by while the places are looked at.
        for candidate in (*candidates, *candidates):
            try:
                return _contents_of(candidate)
            except FileNotFoundError:
                continue
        raise DamagedPack(
            f"pack file {path.name!r} is not on this node",
            next_step="the repository may have been deleted; otherwise restore the file",
            pack=self.digest.hex(),
        )


def _contents_of(path: Path) -> Contents:
    with path.open("rb") as file:
        head = file.read(_MAPPED_BYTES_MIN)
        if len(head) < _MAPPED_BYTES_MIN:
            return head
        return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
