"""Writing a selection of objects as a pack: the order of entries and the form of each one.

Compressed bytes are copied wherever they can be: an entry keeps its zlib stream, a delta stays a
delta when its base is in the answer, or at the client if that offered `thin-pack`. What else it
would take whole is written as a new delta against its predecessor when that is smaller. What
belongs into the pack is `selection.py`'s matter. Format: gitformat-pack(5).
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Callable, Iterable, Mapping
from itertools import islice
from typing import BinaryIO

from quorepo.storage.errors import DamagedPack
from quorepo.storage.git.commits import tree_entry_pattern
from quorepo.storage.git.deltas import make_delta
from quorepo.storage.git.pack_entries import encode_distance, encode_header, split_ofs_delta
from quorepo.storage.git.pack_part import PackPart, copy_part
from quorepo.storage.git.pack_result import PackResult, Part
from quorepo.storage.git.tree_changes import Selection
from quorepo.storage.packs import (
    OFS_DELTA,
    REF_DELTA,
    TREE,
    TYPE_NAMES,
    PackFile,
    PackSet,
    RawEntry,
)

__all__ = ["PackResult", "Part", "write_pack"]

_Places = list[tuple[PackFile, list[tuple[int, bytes]]]]
_Chain = list[tuple[bytes, PackFile, int]]

_BUFFER_BYTES = 1 << 20
_COPY_BYTES = 1 << 20
_HEADER_BYTES = 12
# Smaller packs are copied: opening another file costs more.
_REFERENCE_BYTES_MIN = 1 << 18
# Of what has to be compressed anew. Level 6 costs three times the time for 5 % fewer bytes.
_COMPRESSION_LEVEL = 3
_DELTA_COMPRESSION_LEVEL = 6
# New deltas: entries of fewer compressed bytes are copied whole, larger objects too; and so much
# is read for all deltas of one answer, at about 10 ms per MiB.
_DELTA_ENTRY_BYTES_MIN = 512
_DELTA_OBJECT_BYTES_MAX = 8 << 20
_DELTA_BUDGET_BYTES = 128 << 20
# git's pack.depth: chains longer than that are slow to read at the client.
_DELTA_DEPTH_MAX = 50


def write_pack(
    file: BinaryIO,
    objects: PackSet,
    selection: Selection,
    *,
    ofs_delta: bool,
    thin: bool,
    by_reference: bool = False,
    written: Callable[[int, int], None] = lambda done, total: None,
) -> PackResult:
    """Write `selection` as a pack.

    `by_reference`: stored packs that are wholly sent are named in the result and not copied to
    `file`. `written` hears of progress: (objects written, objects in all).
    """
    writer = _PackWriter(file, objects, selection, ofs_delta=ofs_delta, thin=thin)
    return writer.write(by_reference, written)


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
        self._selection = selection
        self._chosen = selection.chosen
        self._earlier = selection.earlier
        self._commit_count = selection.commit_count
        self._thin = thin
        self._known = selection.known if thin else frozenset()
        self._ofs_delta = ofs_delta
        self._hash = objects.object_format.new_hash()
        self._position = 0
        self._buffer: list[bytes] = []
        self._buffered = 0
        self._written = 0
        self._reused = 0
        # What lies in the file is one part up to `_filed`, and another one from there on.
        self._parts: list[Part] = []
        self._file_position = 0
        self._filed = 0
        self._whole = selection.whole
        self._whole_moved = 0
        self._tree_entries = tree_entry_pattern(objects.object_format.hash_bytes)
        self._delta_budget = _DELTA_BUDGET_BYTES
        # Of new deltas and of those on top of them, by position; a thin base counts as 0.
        self._depths: dict[int, int] = {}

    def write(self, by_reference: bool, progress: Callable[[int, int], None]) -> PackResult:
        total = len(self._selection)
        whole = self._whole
        if whole is not None:
            total += whole.object_count
        self._emit(b"PACK" + struct.pack(">LL", 2, total))
        if whole is not None:
            self._whole_moved = self._copy_pack(whole, by_reference)
        if self._selection.part is not None:
            self._copy_part(self._selection.part)
        if whole is None and self._ofs_delta:
            # Copied distances hold only where the client reads OFS_DELTA.
            self._copy_whole_packs(total, by_reference)
        places: _Places = []
        if self._written < total:
            places = self._places()
        for pack, entries in places:
            # Where the entries of this pack have come to lie, by their offsets.
            moved: dict[int, int] = {}
            for offset, oid in entries:
                if not self._chosen[oid]:
                    if not self._copy_entry(oid, pack, offset, moved):
                        self._write_object(oid, pack, offset)
                    progress(self._written, total)
                moved[offset] = self._chosen[oid]
        progress(self._written, total)
        if self._written != total:
            raise AssertionError(f"wrote {self._written} objects of {total}")
        return self._finish(total)

    def _finish(self, total: int) -> PackResult:
        hash_bytes = self._objects.object_format.hash_bytes
        pack_bytes = self._position + hash_bytes
        if not self._parts:
            self._emit(self._hash_of_all())
        self._flush()
        self._end_part()
        parts, is_sealed = tuple(self._parts), self._parts[0].end == pack_bytes
        if len(parts) == 2 and parts[0].end == _HEADER_BYTES and parts[1].pack is not None:
            # A header and one whole pack: that pack, as it is stored.
            parts, is_sealed = (Part(parts[1].pack, 0, pack_bytes),), True
        return PackResult(pack_bytes, total, self._reused, parts, is_sealed)

    def _hash_of_all(self) -> bytes:
        self._flush()
        digest: bytes = self._hash.digest()
        return digest

    def _end_part(self) -> None:
        if self._file_position > self._filed:
            self._parts.append(Part(None, self._filed, self._file_position))
            self._filed = self._file_position

    def _copy_pack(self, pack: PackFile, by_reference: bool) -> int:
        """All entries of a pack in one piece: it stands alone, and the distances between its
        entries stay the same. Returns by how much they have moved.
        """
        moved = self._position - _HEADER_BYTES
        end = pack.pack_bytes - self._objects.object_format.hash_bytes
        if by_reference and pack.pack_bytes >= _REFERENCE_BYTES_MIN:
            self._flush()
            self._end_part()
            self._parts.append(Part(pack, _HEADER_BYTES, end))
            self._position += end - _HEADER_BYTES
        else:
            for start in range(_HEADER_BYTES, end, _COPY_BYTES):
                self._emit(pack.slice(start, min(end, start + _COPY_BYTES)))
        self._written += pack.object_count
        self._reused += pack.object_count
        return moved

    def _copy_part(self, part: PackPart) -> None:
        """Chosen entries of one pack. Those that cannot be copied are chosen one by one."""

        def new_delta(oid: bytes, offset: int, base: bytes, position: int, size: int) -> bool:
            return self._write_delta_of(oid, part.pack, offset, size, (base, position))

        before = self._written
        left = copy_part(
            part, self._position, self._emit, new_delta, lambda: self._position, thin=self._thin
        )
        made = self._written - before
        self._written = before + len(part) - len(left)
        self._reused += self._written - before - made
        for oid, earlier in left:
            self._chosen[oid] = 0
            if earlier is not None:
                self._earlier[oid] = earlier

    def _copy_whole_packs(self, total: int, by_reference: bool) -> None:
        """Copy every pack all of whose objects are sent. Largest first; a pack that shares an
        object with one before it goes the long way.
        """
        chosen = self._chosen
        packs = sorted(self._objects.packs, key=lambda pack: -pack.object_count)
        for pack in packs:
            if not 0 < pack.object_count <= total - self._written:
                continue
            # Written objects have a position, absent ones get one here: both are not 0.
            if any(chosen.get(oid, 1) for oid in pack.iter_oids()):
                continue
            moved = self._copy_pack(pack, by_reference)
            if self._written < total:
                for offset in pack.iter_offsets():
                    chosen[pack.oid_at(offset)] = offset + moved

    def _position_of(self, oid: bytes) -> int:
        """Where an object is in the answer, 0 when it is still to be written, -1 when it is not
        sent.
        """
        position = self._chosen.get(oid, -1)
        if position < 0 and self._whole is not None:
            offset = self._whole.find(oid)
            if offset is not None:
                return offset + self._whole_moved
        part = self._selection.part
        if position < 0 and part is not None:
            offset = part.pack.find(oid)
            if offset is not None:
                return part.moved.get(offset, -1)
        return position

    def _is_known(self, oid: bytes) -> bool:
        """Whether an object may be the base of a thin delta."""
        if oid in self._known:
            return True
        part = self._selection.part
        offset = None if part is None or not self._thin else part.pack.find(oid)
        return part is not None and offset is not None and part.is_had(part.pack.number_at(offset))

    def _places(self) -> _Places:
        """Where the objects lie that are still to be written, per pack in ascending order: an OFS
        base lies before its delta, so this order hardly ever has to look for a base first. Commits
        come before all others.
        """
        chosen = iter(self._chosen.items())
        commits = self._sorted_places(islice(chosen, self._commit_count))
        return commits + self._sorted_places(chosen)

    def _sorted_places(self, objects: Iterable[tuple[bytes, int]]) -> _Places:
        places: dict[int, tuple[PackFile, list[tuple[int, bytes]]]] = {}
        for oid, position in objects:
            if not position:
                pack, offset = self._locate(oid)
                places.setdefault(pack.number, (pack, []))[1].append((offset, oid))
        for _, entries in places.values():
            entries.sort()
        return list(places.values())

    def _locate(self, oid: bytes) -> tuple[PackFile, int]:
        """The oldest pack that holds it: younger ones hold it whole if they were completed with it,
        as a base of what came later.
        """
        for pack in self._objects.packs:
            offset = pack.find(oid)
            if offset is not None:
                return pack, offset
        raise DamagedPack(f"object {oid.hex()} is in no pack of its repository")

    def _copy_entry(
        self, oid: bytes, pack: PackFile, offset: int, moved: Mapping[int, int]
    ) -> bool:
        """The short way for nearly all entries: whole ones, and deltas whose base was written
        before from the same pack, `moved` there. False when the entry is neither.
        """
        data = pack.slice(offset, pack.end_of(offset))
        type_num = (data[0] >> 4) & 7
        if type_num in TYPE_NAMES:
            if oid in self._earlier and len(data) >= _DELTA_ENTRY_BYTES_MIN:
                return False
        elif type_num == OFS_DELTA and self._ofs_delta:
            header_bytes, distance, body = split_ofs_delta(data)
            base_position = moved.get(offset - distance)
            if base_position is None:
                return False
            depth = self._depths.get(base_position)
            if depth is not None:
                self._depths[self._position] = depth + 1
            distance = self._position - base_position
            data = data[:header_bytes] + encode_distance(distance) + data[body:]
        else:
            return False
        self._chosen[oid] = self._position
        self._emit(data)
        self._written += 1
        self._reused += 1
        return True

    def _write_object(self, oid: bytes, pack: PackFile, offset: int) -> None:
        """Write one object, and before it the chain of its bases that are sent but not written yet.

        Such chains lead over several packs, or to the bases at the end of a completed thin pack.
        Two packs may hold two objects as deltas of each other: whoever closes such a cycle is
        resolved.
        """
        chain: _Chain = [(oid, pack, offset)]
        on_chain = {oid}
        while chain:
            oid, pack, offset = chain[-1]
            entry = pack.read_entry(offset)
            base = entry.base_oid
            if entry.base_offset is not None:
                base = pack.oid_at(entry.base_offset)
            position = -1 if base is None else self._position_of(base)
            if base is None:
                if not self._write_new_delta(oid, pack, offset, len(entry.compressed)):
                    self._write_copied(oid, entry, entry.type_num, b"")
            elif position > 0:
                self._write_delta(oid, entry, base, position)
            elif position == 0 and base not in on_chain:
                chain.append((base, *self._locate(base)))
                on_chain.add(base)
                continue
            elif position < 0 and self._is_known(base):
                self._write_copied(oid, entry, REF_DELTA, base)
            elif not self._write_new_delta(oid, pack, offset, None):
                self._write_resolved(oid, pack, offset)
            chain.pop()

    def _write_delta(self, oid: bytes, entry: RawEntry, base: bytes, base_position: int) -> None:
        depth = self._depths.get(base_position)
        if depth is not None:
            self._depths[self._position] = depth + 1
        type_num, reference = self._reference(base, base_position)
        self._write_copied(oid, entry, type_num, reference)

    def _reference(self, base: bytes, base_position: int) -> tuple[int, bytes]:
        """How a delta names its base: by distance, or by id where it is at the client."""
        if self._ofs_delta and base_position > 0:
            return OFS_DELTA, encode_distance(self._position - base_position)
        return REF_DELTA, base

    def _write_copied(self, oid: bytes, entry: RawEntry, type_num: int, base: bytes) -> None:
        self._chosen[oid] = self._position
        self._emit(encode_header(type_num, entry.size) + base + entry.compressed)
        self._written += 1
        self._reused += 1

    def _write_new_delta(
        self, oid: bytes, pack: PackFile, offset: int, whole_bytes: int | None
    ) -> bool:
        """Write an object as a delta of what stood at its path before; False when that is not to be
        had or not smaller. `whole_bytes`: compressed size of the entry if it is stored whole.

        The base is written already or at the client, so no cycle can come of it.
        """
        if whole_bytes is not None and whole_bytes < _DELTA_ENTRY_BYTES_MIN:
            return False
        base = self._new_base(oid)
        return base is not None and self._write_delta_of(oid, pack, offset, whole_bytes, base)

    def _write_delta_of(
        self,
        oid: bytes,
        pack: PackFile,
        offset: int,
        whole_bytes: int | None,
        base: tuple[bytes, int],
    ) -> bool:
        """The same as a delta of `base`, (object id, position or -1)."""
        if self._delta_budget <= 0:
            return False
        base_oid, base_position = base
        sizes = (self._objects.object_size(base_oid), self._objects.object_size(oid))
        if max(sizes) > _DELTA_OBJECT_BYTES_MAX:
            return False
        self._delta_budget -= sum(sizes)
        type_num, content = self._objects.get_at(pack, offset)
        base_type, base_content = self._objects.get(base_oid)
        if base_type != type_num:
            return False
        entries = self._tree_entries if type_num == TREE else None
        delta = make_delta(base_content, content, entries)
        compressed = zlib.compress(delta, _DELTA_COMPRESSION_LEVEL)
        limit = len(content) // 2 if whole_bytes is None else whole_bytes
        if len(compressed) + len(base_oid) >= limit:
            return False
        self._depths[self._position] = self._depths.get(base_position, 0) + 1
        type_num, reference = self._reference(base_oid, base_position)
        if oid in self._chosen:
            self._chosen[oid] = self._position
        self._emit(encode_header(type_num, len(delta)) + reference + compressed)
        self._written += 1
        return True

    def _new_base(self, oid: bytes) -> tuple[bytes, int] | None:
        """(what stood there before and can be a base now, its position or -1 at the client)."""
        earlier = self._earlier.get(oid)
        for _ in range(_DELTA_DEPTH_MAX):
            if earlier is None:
                return None
            position = self._position_of(earlier)
            if position > 0 and self._depths.get(position, 0) < _DELTA_DEPTH_MAX:
                return earlier, position
            if position < 0:
                return (earlier, -1) if self._is_known(earlier) else None
            earlier = self._earlier.get(earlier)
        return None

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
        self._file_position += len(data)
        self._buffer.clear()
        self._buffered = 0
