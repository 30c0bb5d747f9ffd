"""Writing the pack of a fetch: entries copied as they lie in the repository's packs.

Owns the order of entries and the choice of each one's form. Compressed bytes are never touched:
an entry is copied with its zlib stream, a delta stays a delta when its base is in the answer, or
at the client if that offered `thin-pack`. Only a delta whose base is in neither is resolved and
compressed again. What belongs into the pack is `selection.py`'s matter. Format:
gitformat-pack(5).
"""

from __future__ import annotations

import struct
import time
import zlib
from array import array
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import BinaryIO

from quorepo.storage.errors import DamagedPack
from quorepo.storage.git.commits import CommitReader
from quorepo.storage.git.fetch_request import FetchRequest, Negotiation
from quorepo.storage.git.selection import Selection, select_objects
from quorepo.storage.packs import OFS_DELTA, REF_DELTA, PackFile, PackSet, RawEntry

__all__ = ["PackResult", "Progress", "build_pack", "write_pack"]

Progress = Callable[[str], None]

_PROGRESS_INTERVAL_S = 0.5
_BUFFER_BYTES = 1 << 20
_COPY_BYTES = 1 << 20
_HEADER_BYTES = 12
# Of what has to be compressed anew. Level 6 costs three times the time for 5 % fewer bytes.
_COMPRESSION_LEVEL = 3


@dataclass(frozen=True)
class PackResult:
    """A written pack: size of the file in bytes, its objects, how many of them are deltas, and how
    many entries were copied rather than compressed again.
    """

    pack_bytes: int
    objects: int
    deltas: int
    reused: int


def build_pack(
    reader: CommitReader,
    request: FetchRequest,
    negotiation: Negotiation,
    tags: Iterable[tuple[bytes, bytes]],
    out: Path,
    progress: Progress | None = None,
    clock: Callable[[], float] = time.monotonic,
) -> PackResult:
    """Write the pack that answers a negotiated request to the new file `out`.

    `progress` gets lines as git's pack-objects writes them, at most one per half second. The file
    is removed when anything fails; it is not synced, since it is thrown away after it was sent.
    """
    meter = _Meter(progress, clock)
    selection = select_objects(reader, request, negotiation, list(tags), meter.enumerating)
    meter.enumerated(len(selection.chosen))
    try:
        with out.open("xb", buffering=0) as file:
            result = write_pack(
                file,
                reader.objects,
                selection,
                ofs_delta=request.ofs_delta,
                thin=request.thin_pack,
                written=meter.writing,
            )
    except BaseException:
        out.unlink(missing_ok=True)
        raise
    meter.total(result)
    return result


def write_pack(
    file: BinaryIO,
    objects: PackSet,
    selection: Selection,
    *,
    ofs_delta: bool,
    thin: bool,
    written: Callable[[int, int], None] = lambda done, total: None,
) -> PackResult:
    """Write `selection` as a pack. `written` hears of progress: (objects written, objects in
    all).
    """
    writer = _PackWriter(file, objects, selection, ofs_delta=ofs_delta, thin=thin)
    return writer.write(written)


class _PackWriter:
    def __init__(
        self,
        file: BinaryIO,
        objects: PackSet,
        selection: Selection,
        *,
        ofs_delta: bool,
        thin: bool,
    ) -> None:
        self._file = file
        self._objects = objects
        self._chosen = selection.chosen
        self._commit_count = selection.commit_count
        self._known = selection.known if thin else frozenset()
        self._ofs_delta = ofs_delta
        self._hash = objects.object_format.new_hash()
        self._position = 0
        self._buffer: list[bytes] = []
        self._buffered = 0
        # Packs copied as a whole: where their first entry came to lie.
        self._copied: dict[int, int] = {}
        self._written = 0
        self._deltas = 0
        self._reused = 0

    def write(self, progress: Callable[[int, int], None]) -> PackResult:
        total = len(self._chosen)
        self._emit(b"PACK" + struct.pack(">LL", 2, total))
        commits, others = self._places()
        self._copy_whole_packs(commits, others)
        for pack, offsets in (*commits, *others):
            if pack.number in self._copied:
                continue
            for offset in offsets:
                oid = pack.oid_at(offset)
                if not self._chosen[oid]:
                    self._write_object(oid, pack, offset)
                    progress(self._written, total)
        progress(self._written, total)
        if self._written != total:
            raise AssertionError(f"wrote {self._written} objects of {total}")
        self._flush()
        trailer = self._hash.digest()
        self._file.write(trailer)
        return PackResult(self._position + len(trailer), total, self._deltas, self._reused)

    def _places(
        self,
    ) -> tuple[list[tuple[PackFile, array[int]]], list[tuple[PackFile, array[int]]]]:
        """Where the chosen objects lie, per pack in ascending order: an OFS base lies before its
        delta, so this order needs no search for bases. First the commits, then all others.
        """
        chosen = iter(self._chosen)
        commits = self._sorted_places(islice(chosen, self._commit_count))
        return commits, self._sorted_places(chosen)

    def _sorted_places(self, oids: Iterable[bytes]) -> list[tuple[PackFile, array[int]]]:
        places: dict[int, tuple[PackFile, array[int]]] = {}
        locate = self._objects.locate
        for oid in oids:
            located = locate(oid)
            if located is None:
                raise DamagedPack(f"object {oid.hex()} is in no pack of its repository")
            pack, offset = located
            if pack.number not in places:
                places[pack.number] = (pack, array("Q"))
            places[pack.number][1].append(offset)
        return [(pack, array("Q", sorted(offsets))) for pack, offsets in places.values()]

    def _copy_whole_packs(
        self,
        commits: list[tuple[PackFile, array[int]]],
        others: list[tuple[PackFile, array[int]]],
    ) -> None:
        """A pack all of whose objects are sent is copied in one piece: it stands alone, and
        distances between its entries stay the same.
        """
        if not self._ofs_delta:
            return
        counts: dict[int, int] = {}
        packs: dict[int, PackFile] = {}
        for pack, offsets in (*commits, *others):
            packs[pack.number] = pack
            counts[pack.number] = counts.get(pack.number, 0) + len(offsets)
        for number, pack in packs.items():
            if counts[number] != pack.object_count:
                continue
            self._copied[number] = self._position
            end = pack.pack_bytes - self._objects.object_format.hash_bytes
            for start in range(_HEADER_BYTES, end, _COPY_BYTES):
                self._emit(pack.slice(start, min(end, start + _COPY_BYTES)))
            self._written += counts[number]
            self._reused += counts[number]

    def _write_object(self, oid: bytes, pack: PackFile, offset: int) -> None:
        """Write one object, and before it the chain of its bases that are sent but not written yet.

        Such chains lead over several packs, or to the bases at the end of a completed thin pack.
        Two packs may hold two objects as deltas of each other: whoever closes such a cycle is
        resolved.
        """
        chain = [(oid, pack, offset)]
        on_chain = {oid}
        while chain:
            oid, pack, offset = chain[-1]
            entry = pack.read_entry(offset)
            base = entry.base_oid
            if entry.base_offset is not None:
                base = pack.oid_at(entry.base_offset)
            if base is None:
                self._write_copied(oid, entry, entry.type_num, b"")
            elif (base_position := self._position_of(base)) > 0:
                self._write_delta(oid, entry, base, base_position)
            elif base_position == 0 and base not in on_chain:
                located = self._objects.locate(base)
                if located is None:
                    raise DamagedPack(f"object {base.hex()} is in no pack of its repository")
                chain.append((base, *located))
                on_chain.add(base)
                continue
            elif base_position < 0 and base in self._known:
                self._write_copied(oid, entry, REF_DELTA, base)
            else:
                self._write_resolved(oid, pack, offset)
            chain.pop()

    def _position_of(self, oid: bytes) -> int:
        """Where the object lies in the answer; 0 when it is sent but not yet written, -1 when
        not.
        """
        position = self._chosen.get(oid, -1)
        if position == 0 and self._copied:
            located = self._objects.locate(oid)
            if located is not None and located[0].number in self._copied:
                return self._copied[located[0].number] + located[1] - _HEADER_BYTES
        return position

    def _write_delta(self, oid: bytes, entry: RawEntry, base: bytes, base_position: int) -> None:
        if self._ofs_delta:
            distance = _encode_distance(self._position - base_position)
            self._write_copied(oid, entry, OFS_DELTA, distance)
        else:
            self._write_copied(oid, entry, REF_DELTA, base)

    def _write_copied(self, oid: bytes, entry: RawEntry, type_num: int, base: bytes) -> None:
        self._chosen[oid] = self._position
        self._emit(_encode_header(type_num, entry.size) + base + entry.compressed)
        self._written += 1
        self._reused += 1
        if type_num in (OFS_DELTA, REF_DELTA):
            self._deltas += 1

    def _write_resolved(self, oid: bytes, pack: PackFile, offset: int) -> None:
        type_num, content = self._objects.get_at(pack, offset)
        self._chosen[oid] = self._position
        compressed = zlib.compress(content, _COMPRESSION_LEVEL)
        self._emit(_encode_header(type_num, len(content)) + compressed)
        self._written += 1

    def _emit(self, data: bytes) -> None:
        self._position += len(data)
        self._buffered += len(data)
        self._buffer.append(data)
        if self._buffered >= _BUFFER_BYTES:
            self._flush()

    def _flush(self) -> None:
        data = b"".join(self._buffer)
        self._hash.update(data)
        view = memoryview(data)
        while view:
            # An unbuffered file may write less than it was given.
            view = view[self._file.write(view) :]
        self._buffer.clear()
        self._buffered = 0


def _encode_header(type_num: int, size: int) -> bytes:
    """Type in bits 4-6 of the first byte, the size in 4 bits and then 7 bits per byte."""
    byte = type_num << 4 | size & 15
    size >>= 4
    encoded = bytearray()
    while size:
        encoded.append(byte | 0x80)
        byte = size & 0x7F
        size >>= 7
    encoded.append(byte)
    return bytes(encoded)


def _encode_distance(distance: int) -> bytes:
    """The offset encoding of OFS_DELTA: most significant group first, all but the last one less."""
    encoded = bytearray([distance & 0x7F])
    distance >>= 7
    while distance:
        distance -= 1
        encoded.append(distance & 0x7F | 0x80)
        distance >>= 7
    encoded.reverse()
    return bytes(encoded)


class _Meter:
    """Progress in the words of git's pack-objects, at most one line per interval."""

    def __init__(self, progress: Progress | None, clock: Callable[[], float]) -> None:
        self._progress = progress
        self._clock = clock
        self._next_s = clock() + _PROGRESS_INTERVAL_S

    def enumerating(self, count: int) -> None:
        if self._due():
            self._tell(f"Enumerating objects: {count}\r")

    def enumerated(self, count: int) -> None:
        self._tell(f"Enumerating objects: {count}, done.\n")

    def writing(self, done: int, total: int) -> None:
        if self._due():
            self._tell(f"Writing objects: {done * 100 // total}% ({done}/{total})\r")

    def total(self, result: PackResult) -> None:
        self._tell(f"Total {result.objects} (delta {result.deltas}), reused {result.reused}\n")

    def _due(self) -> bool:
        now = self._clock()
        if self._progress is None or now < self._next_s:
            return False
        self._next_s = now + _PROGRESS_INTERVAL_S
        return True

    def _tell(self, line: str) -> None:
        if self._progress is not None:
            self._progress(line)
