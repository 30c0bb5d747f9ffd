"""Many packs become one: entries copied verbatim, duplicates dropped, nothing compressed again.

Owns the choice among several copies of an object, the order of entries and the durable file in
quarantine. Runs in a worker. Must not know which packs are worth merging, nor what a transaction
makes of the result; every replica checks that against the old packs (replacement.py).

Why no delta can end up in a circle. Packs are taken one after the other, the one with most objects
first, and an object is taken from the first pack that has it. A stored pack stands alone, so the
base of an entry is in the same pack: it is written from there, or was from an earlier one, and
entries of an earlier pack never build on a later one. Two packs that hold A as a delta of B, and B
as a delta of A, therefore give one of the two forms. Every base is written before what builds on
it, so all deltas become OFS_DELTA: one form, smaller than REF_DELTA, and readable front to back.

Chains: a delta whose base is taken from an earlier pack continues the chain that the base has
there. Where that is `CHAIN_DEPTH_MAX` deltas long already, the object is written whole; so a file
that is changed by every push gets a full copy now and then, and no chain grows for ever.
"""

from __future__ import annotations

import errno
import hashlib
import os
import struct
import zlib
from array import array
from collections.abc import Callable, Container
from pathlib import Path
from typing import IO, Final

from quorepo.storage.errors import StorageFull
from quorepo.storage.failpoints import failpoint
from quorepo.storage.git.pack_entries import encode_distance, encode_header
from quorepo.storage.ingest import IngestResult, index_in_progress
from quorepo.storage.layout import GroupLayout, fsync_dir
from quorepo.storage.objectformat import ObjectFormat
from quorepo.storage.packfile import OFS_DELTA, TYPE_NAMES, EntryHeader, PackFile
from quorepo.storage.packindex import write_index
from quorepo.storage.packs import PackSet

__all__ = ["CHAIN_DEPTH_MAX", "merge_packs"]

CHAIN_DEPTH_MAX: Final = 50  # git's pack.depth

_BUFFER_BYTES: Final = 1 << 20
_PROGRESS_EVERY_OBJECTS: Final = 20_000
_PACK_HEADER: Final = struct.Struct(">4sLL")


def merge_packs(
    packs: PackSet,
    upload: Path,
    layout: GroupLayout,
    progress: Callable[[str], None],
    keep: Container[bytes] | None = None,
) -> IngestResult | None:
    """Merges all packs of `packs`, written to `upload` and moved into the group's quarantine.

    With `keep`, only those objects are taken. Returns None when no object is left; then, and on
    failure, nothing is left on disk. Raises StorageFull, and DamagedPack when a stored pack cannot
    be read.
    """
    index_path = index_in_progress(upload)
    merger = _Merger(packs.object_format, keep, progress)
    try:
        with upload.open("x+b", buffering=_BUFFER_BYTES) as file:
            merger.write(file, packs)
            if not merger.numbers:
                return None
            return _store(merger, file, upload, index_path, layout)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageFull(f"no room for the merged pack: {error.strerror}") from error
        raise
    finally:
        index_path.unlink(missing_ok=True)
        upload.unlink(missing_ok=True)


class _Merger:
    """The entries of the new pack, in the order in which they are written."""

    def __init__(
        self,
        object_format: ObjectFormat,
        keep: Container[bytes] | None,
        progress: Callable[[str], None],
    ) -> None:
        self.object_format = object_format
        self.numbers: dict[bytes, int] = {}  # raw id -> number of its entry
        self.offsets = array("Q")
        self.crc32s = array("I")
        self._depths = array("L")
        self._keep = keep
        self._progress = progress
        self._position = 0
        self._earlier = 0  # entries from the packs before the present one

    def write(self, file: IO[bytes], packs: PackSet) -> None:
        """Writes all but the trailer; the count in the header is right."""
        self._file = file
        self._packs = packs
        self._position = file.write(_PACK_HEADER.pack(b"PACK", 2, 0))
        for pack in sorted(packs.packs, key=lambda pack: -pack.object_count):
            self._earlier = len(self.offsets)
            for offset, end, oid in pack.iter_entries():
                if oid not in self.numbers and (self._keep is None or oid in self._keep):
                    self._take(pack, oid, offset, end)
        file.seek(0)
        file.write(_PACK_HEADER.pack(b"PACK", 2, len(self.offsets)))
        file.seek(0, os.SEEK_END)

    def _take(self, pack: PackFile, oid: bytes, offset: int, end: int) -> None:
        """Writes one object, and before it those of its bases that are not written yet."""
        chain = [(oid, offset, end)]
        waiting = {oid}
        while chain:
            oid, offset, end = chain[-1]
            base = self._write(pack, oid, offset, end)
            if base is None:
                chain.pop()
                continue
            base_offset = pack.find(base)
            if base_offset is None or base in waiting:
                raise pack.damaged(offset, "delta without a base of its own")
            waiting.add(base)
            chain.append((base, base_offset, pack.end_of(base_offset)))

    def _write(self, pack: PackFile, oid: bytes, offset: int, end: int) -> bytes | None:
        """Writes one entry; or returns the id of its base, which has to be written before."""
        header = pack.header(offset)
        if header.type_num in TYPE_NAMES:
            self._put(oid, pack.slice(offset, end), 0)
            return None
        base = header.base_oid
        if header.base_offset is not None:
            base = _oid_at(pack, header.base_offset)
        assert base is not None
        number = self.numbers.get(base)
        if number is None:
            if self._keep is None or base in self._keep:
                return base
            self._put_whole(pack, oid, offset)
        elif number < self._earlier and self._depths[number] >= CHAIN_DEPTH_MAX:
            self._put_whole(pack, oid, offset)
        else:
            distance = self._position - self.offsets[number]
            if header.base_offset is not None and offset - header.base_offset == distance:
                entry = pack.slice(offset, end)
            else:
                entry = _delta_header(header, distance) + pack.slice(header.body, end)
            self._put(oid, entry, self._depths[number] + 1)
        return None

    def _put_whole(self, pack: PackFile, oid: bytes, offset: int) -> None:
        type_num, content = self._packs.get_at(pack, offset)
        self._put(oid, encode_header(type_num, len(content)) + zlib.compress(content), 0)

    def _put(self, oid: bytes, entry: bytes, depth: int) -> None:
        self.numbers[oid] = len(self.offsets)
        self.offsets.append(self._position)
        self.crc32s.append(zlib.crc32(entry))
        self._depths.append(depth)
        self._file.write(entry)
        self._position += len(entry)
        if len(self.offsets) % _PROGRESS_EVERY_OBJECTS == 0:
            self._progress(f"Copying objects: {len(self.offsets)}")


def _store(
    merger: _Merger, file: IO[bytes], upload: Path, index_path: Path, layout: GroupLayout
) -> IngestResult:
    """Seals the pack, indexes it and makes both durable under their final names."""
    object_format = merger.object_format
    digest, trailer = _seal(file, object_format)
    pack_bytes = file.tell()
    with index_path.open("xb") as index_file:
        index_bytes, index_digest = write_index(
            index_file, merger.numbers, merger.offsets, merger.crc32s, trailer, object_format
        )
        index_file.flush()
        failpoint("consolidate.index.before_fsync")
        os.fsync(index_file.fileno())
    file.flush()
    failpoint("consolidate.pack.before_fsync")
    os.fsync(file.fileno())
    pack_target, index_target = layout.quarantine_paths(digest)
    failpoint("consolidate.before_rename")
    upload.rename(pack_target)
    index_path.rename(index_target)
    failpoint("consolidate.before_dir_fsync")
    fsync_dir(layout.quarantine)
    return IngestResult(
        digest=digest,
        index_digest=index_digest,
        pack_bytes=pack_bytes,
        index_bytes=index_bytes,
        object_count=len(merger.offsets),
        thin_bytes=pack_bytes - object_format.hash_bytes,
        thin_object_count=len(merger.offsets),
    )


def _seal(file: IO[bytes], object_format: ObjectFormat) -> tuple[bytes, bytes]:
    """Appends the trailer; returns the SHA-256 of the whole file, and the trailer."""
    digest = hashlib.sha256()
    hasher = object_format.new_hash()
    file.seek(0)
    while chunk := file.read(_BUFFER_BYTES):
        digest.update(chunk)
        hasher.update(chunk)
    trailer = hasher.digest()
    digest.update(trailer)
    file.seek(0, os.SEEK_END)
    file.write(trailer)
    return digest.digest(), trailer


def _oid_at(pack: PackFile, offset: int) -> bytes:
    try:
        return pack.oid_at(offset)
    except KeyError as error:
        raise pack.damaged(offset, "no object starts here") from error


def _delta_header(header: EntryHeader, distance: int) -> bytes:
    """The same delta as an OFS_DELTA with its base `distance` bytes before it."""
    return encode_header(OFS_DELTA, header.size) + encode_distance(distance)
