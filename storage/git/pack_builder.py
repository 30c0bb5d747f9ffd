"""Writing the pack of a fetch: entries copied as they lie in the repository's packs.

Owns the order of entries and the choice of each one's form. Compressed bytes are never touched:
an entry is copied with its zlib stream, a delta stays a delta when its base is in the answer, or
at the client if that offered `thin-pack`. Only a delta whose base is in neither is resolved and
compressed again. What belongs into the pack is `selection.py`'s matter. Format:
gitformat-pack(5).
"""

from __future__ import annotations

import errno
import struct
import time
import zlib
from array import array
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import BinaryIO

from quorepo.storage.errors import DamagedPack, StorageFull
from quorepo.storage.git.commits import CommitReader
from quorepo.storage.git.fetch_request import FetchRequest, Negotiation
from quorepo.storage.git.selection import Selection, select_objects
from quorepo.storage.packs import OFS_DELTA, REF_DELTA, PackFile, PackSet, RawEntry

__all__ = [
    "PackResult",
    "Progress",
    "build_pack",
    "encode_distance",
    "encode_header",
    "write_pack",
]

Progress = Callable[[str], None]

_Places = list[tuple[PackFile, "array[int]"]]

_PROGRESS_INTERVAL_S = 0.5
_BUFFER_BYTES = 1 << 20
_COPY_BYTES = 1 << 20
_HEADER_BYTES = 12
# Of what has to be compressed anew. Level 6 costs three times the time for 5 % fewer bytes.
_COMPRESSION_LEVEL = 3


@dataclass(frozen=True)
class PackResult:
    """A written pack: size of the file in bytes, its objects, and how many of their entries were
    copied rather than compressed again.
    """

    pack_bytes: int
    objects: int
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
        meter.total(result)
    except BaseException as error:
        out.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageFull(f"no room for the answer: {error.strerror}") from error
        raise
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
        self._written = 0
        self._reused = 0

    def write(self, progress: Callable[[int, int], None]) -> PackResult:
        total = len(self._chosen)
        self._emit(b"PACK" + struct.pack(">LL", 2, total))
        # Copied distances hold only where the client reads OFS_DELTA.
        if self._ofs_delta:
            self._copy_whole_packs(total)
        commits, others = self._places()
        for pack, offsets in (*commits, *others):
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
        return PackResult(self._position + len(trailer), total, self._reused)

    def _copy_whole_packs(self, total: int) -> None:
        """A pack all of whose objects are sent is copied in one piece: it stands alone, and the
        distances between its entries stay the same. Largest first; a pack that shares an object
        with one before it goes the long way.
        """
        chosen = self._chosen
        packs = sorted(self._objects.packs, key=lambda pack: -pack.object_count)
        for pack in packs:
            if not 0 < pack.object_count <= total - self._written:
                continue
            # Written objects have a position, absent ones get one here: both are not 0.
            if any(chosen.get(oid, 1) for oid in pack.iter_oids()):
                continue
            moved = self._position - _HEADER_BYTES
            end = pack.pack_bytes - self._objects.object_format.hash_bytes
            for start in range(_HEADER_BYTES, end, _COPY_BYTES):
                self._emit(pack.slice(start, min(end, start + _COPY_BYTES)))
            self._written += pack.object_count
            self._reused += pack.object_count
            if self._written < total:
                for offset in pack.iter_offsets():
                    chosen[pack.oid_at(offset)] = offset + moved

    def _places(self) -> tuple[_Places, _Places]:
        """Where the objects lie that are still to be written, per pack in ascending order: an OFS
        base lies before its delta, so this order hardly ever has to look for a base first. Commits
        come before all others.
        """
        if self._written == len(self._chosen):
            return [], []
        chosen = iter(self._chosen.items())
        commits = self._sorted_places(islice(chosen, self._commit_count))
        return commits, self._sorted_places(chosen)

    def _sorted_places(self, objects: Iterable[tuple[bytes, int]]) -> _Places:
        places: dict[int, tuple[PackFile, array[int]]] = {}
        for oid, position in objects:
            if not position:
                pack, offset = self._locate(oid)
                places.setdefault(pack.number, (pack, array("Q")))[1].append(offset)
        return [(pack, array("Q", sorted(offsets))) for pack, offsets in places.values()]

    def _locate(self, oid: bytes) -> tuple[PackFile, int]:
        located = self._objects.locate(oid)
        if located is None:
            raise DamagedPack(f"object {oid.hex()} is in no pack of its repository")
        return located

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
            position = -1 if base is None else self._chosen.get(base, -1)
            if base is None:
                self._write_copied(oid, entry, entry.type_num, b"")
            elif position > 0:
                self._write_delta(oid, entry, base, position)
            elif position == 0 and base not in on_chain:
                chain.append((base, *self._locate(base)))
                on_chain.add(base)
                continue
            elif position < 0 and base in self._known:
                self._write_copied(oid, entry, REF_DELTA, base)
            else:
                self._write_resolved(oid, pack, offset)
            chain.pop()

    def _write_delta(self, oid: bytes, entry: RawEntry, base: bytes, base_position: int) -> None:
        if self._ofs_delta:
            distance = encode_distance(self._position - base_position)
            self._write_copied(oid, entry, OFS_DELTA, distance)
        else:
            self._write_copied(oid, entry, REF_DELTA, base)

    def _write_copied(self, oid: bytes, entry: RawEntry, type_num: int, base: bytes) -> None:
        self._chosen[oid] = self._position
        self._emit(encode_header(type_num, entry.size) + base + entry.compressed)
        self._written += 1
        self._reused += 1

    def _write_resolved(self, oid: bytes, pack: PackFile, offset: int) -> None:
        type_num, content = self._objects.get_at(pack, offset)
        self._chosen[oid] = self._position
        compressed = zlib.compress(content, _COMPRESSION_LEVEL)
        self._emit(encode_header(type_num, len(content)) + compressed)
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


def encode_header(type_num: int, size: int) -> bytes:
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


def encode_distance(distance: int) -> bytes:
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
        self._tell(f"Total {result.objects}, reused {result.reused}\n")

    def _due(self) -> bool:
        now = self._clock()
        if self._progress is None or now < self._next_s:
            return False
        self._next_s = now + _PROGRESS_INTERVAL_S
        return True

    def _tell(self, line: str) -> None:
        if self._progress is not None:
            self._progress(line)
