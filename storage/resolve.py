"""Reading every entry of a pack that came in, and resolving its deltas.

Owns: the pack format as an enemy would write it, delta chains, the limits on sizes, and the memory
all of that takes. Objects are handed to a callback as soon as they are known; nothing but ids,
offsets and a cache of bounded size is kept. Must not know what an object may contain (fsck.py) or
refer to.

One pass reads the entries in the order of the file. A delta whose base was just seen, as git
orders them, is resolved at once; the others wait and are resolved in a second pass, base by base,
so that every object is inflated twice at most, unless a chain is larger than the cache. All walks
are iterative.
"""

from __future__ import annotations

import time
import zlib
from array import array
from bisect import bisect_left
from collections import defaultdict
from collections.abc import Callable
from typing import Final

from dulwich.errors import ApplyDeltaError

from quorepo.storage.errors import CorruptPack
from quorepo.storage.limits import StorageLimits, exceeded
from quorepo.storage.objectformat import ObjectFormat
from quorepo.storage.packfile import (
    OFS_DELTA,
    REF_DELTA,
    TYPE_NAMES,
    Contents,
    EntryHeader,
    inflate,
    parse_entry_header,
)
from quorepo.storage.packs import ObjectCache, PackSet, apply_delta_bytes, delta_sizes

__all__ = ["PackResolver"]

PACK_HEADER_BYTES: Final = 12
_PROGRESS_EVERY_S: Final = 0.5
_PROGRESS_EVERY_OBJECTS: Final = 512

# (raw id, type number 1-4, content)
ObjectSink = Callable[[bytes, int, bytes], None]


class PackResolver:
    """The objects of one uploaded pack. `run` once, then read the attributes.

    objects      raw id -> number of its entry, in the order of the file
    types        object type (1-4) of every entry
    offsets      offset of every entry
    crc32s       CRC-32 of every entry as it lies in the file
    depths       deltas between every entry and a whole object
    externals    ids of bases that were taken from `existing`
    """

    def __init__(
        self,
        existing: PackSet,
        object_format: ObjectFormat,
        limits: StorageLimits,
        on_object: ObjectSink,
        on_external_base: ObjectSink,
        progress: Callable[[str], None],
    ) -> None:
        self.objects: dict[bytes, int] = {}
        self.types = array("B")
        self.offsets = array("Q")
        self.crc32s = array("I")
        self.depths = array("H")
        self.externals: set[bytes] = set()
        self._contents: Contents = b""
        self._existing = existing
        self._format = object_format
        self._limits = limits
        self._on_object = on_object
        self._on_external_base = on_external_base
        self._progress = progress
        self._progress_next_s = time.monotonic() + _PROGRESS_EVERY_S
        self._end = 0  # where the trailer starts
        self._inflated_bytes = 0
        self._cache = ObjectCache(limits.worker_cache_bytes_max)
        # Entries that wait: for the entry with that number, or for an object with that id.
        self._waiting: defaultdict[int, list[int]] = defaultdict(list)
        self._waiting_for_oid: defaultdict[bytes, list[int]] = defaultdict(list)
        self._hash_prefixes = {number: name + b" %d\0" for number, name in TYPE_NAMES.items()}

    def run(self, contents: Contents, count: int) -> None:
        """Reads `count` entries and resolves them all. Raises CorruptPack and LimitExceeded.

        `contents`, the whole file, must stay readable as long as `content` is called.
        """
        self._contents = contents
        self._end = len(contents) - self._format.hash_bytes
        position = PACK_HEADER_BYTES
        for number in range(count):
            if number % _PROGRESS_EVERY_OBJECTS == 0:
                self._tell("Indexing objects", number, count)
            position = self._read_entry(number, position)
        if position != self._end:
            raise CorruptPack(f"pack has junk at the end: {self._end - position} bytes")
        self._resolve_waiting()

    def content(self, number: int) -> bytes:
        """The content of a resolved entry, from the cache or once more from the file."""
        chain: list[tuple[int, EntryHeader]] = []
        found = self._cache.get((0, number))
        while found is None:
            header = self._header(self.offsets[number])
            if header.type_num in TYPE_NAMES:
                content, _ = self._inflate(number, header)
                found = (header.type_num, content)
                self._cache.put((0, number), *found)
                break
            chain.append((number, header))
            base = header.base_oid
            if base is not None and base in self.externals:
                found = self._existing.get(base)
                break
            number = self._base_number(header)
            found = self._cache.get((0, number))
        type_num, content = found
        for number, header in reversed(chain):
            delta, _ = self._inflate(number, header)
            content = apply_delta_bytes(content, delta)
            self._cache.put((0, number), type_num, content)
        return content

    def stored_depths_max(self) -> int:
        """The longest chain as it will be read from the file, once missing bases were appended.

        Differs from `depths` only when an object that served as a base from `existing` is in the
        pack as well. Raises CorruptPack when such chains run in a circle.
        """
        unknown, open_ = -1, -2
        depths = array("l", [unknown]) * len(self.offsets)
        for start in range(len(self.offsets)):
            path = []
            number: int | None = start
            while number is not None and depths[number] == unknown:
                depths[number] = open_
                path.append(number)
                header = self._header(self.offsets[number])
                if header.type_num in TYPE_NAMES:
                    number = None
                elif header.base_oid is not None:
                    number = self.objects.get(header.base_oid)
                else:
                    number = self._base_number(header)
            if number is not None and depths[number] == open_:
                raise CorruptPack(f"delta cycle at offset {self.offsets[number]}")
            depth = -1 if number is None else depths[number]
            for number in reversed(path):
                header_type = (self._contents[self.offsets[number]] >> 4) & 7
                is_whole = header_type in TYPE_NAMES
                depth = 0 if is_whole else max(depth, 0) + 1
                depths[number] = depth
        return max(depths, default=0)

    def _read_entry(self, number: int, offset: int) -> int:
        """Reads the entry at `offset`; resolves it when its base is at hand. Returns its end."""
        header = self._header(offset)
        content, end = self._checked_inflate(offset, header)
        base = self._base_number(header) if header.type_num == OFS_DELTA else -1
        self.offsets.append(offset)
        self.crc32s.append(zlib.crc32(self._contents[offset:end]))
        self.types.append(0)
        self.depths.append(0)
        if base >= 0:
            found = self._cache.get((0, base)) if self.types[base] else None
            if found is None:
                self._waiting[base].append(number)
            else:
                self._apply(number, *found, content, self.depths[base])
        elif header.type_num == REF_DELTA:
            assert header.base_oid is not None
            self._read_ref_delta(number, header.base_oid, content)
        else:
            self._accept(number, header.type_num, content)
        return end

    def _read_ref_delta(self, number: int, base_oid: bytes, delta: bytes) -> None:
        base = self.objects.get(base_oid)
        if base is not None:
            found = self._cache.get((0, base))
            if found is None:
                self._waiting[base].append(number)
            else:
                self._apply(number, *found, delta, self.depths[base])
            return
        located = self._existing.locate(base_oid)
        if located is None:
            self._waiting_for_oid[base_oid].append(number)
            return
        type_num, content = self._existing.get_at(*located)
        if base_oid not in self.externals:
            self.externals.add(base_oid)
            self._on_external_base(base_oid, type_num, content)
        self._apply(number, type_num, content, delta, 0)

    def _resolve_waiting(self) -> None:
        """The second pass: everything whose base was not at hand in the first."""
        total = sum(map(len, self._waiting.values()))
        total += sum(map(len, self._waiting_for_oid.values()))
        if total == 0:
            return
        done = 0
        stack: list[
            tuple[int, int]
        ] = []  # (entry, its base); bases are resolved, contents not held
        roots = [base for base in self._waiting if self.types[base]]
        for oid in [oid for oid in self._waiting_for_oid if oid in self.objects]:
            base = self.objects[oid]
            self._waiting[base] += self._waiting_for_oid.pop(oid)
            roots.append(base)
        for root in sorted(set(roots)):
            stack += [(number, root) for number in self._waiting.pop(root, ())]
            while stack:
                number, base = stack.pop()
                delta, _ = self._inflate(number, self._header(self.offsets[number]))
                content = self.content(base)
                oid = self._apply(number, self.types[base], content, delta, self.depths[base])
                stack += [(child, number) for child in self._waiting.pop(number, ())]
                stack += [(child, number) for child in self._waiting_for_oid.pop(oid, ())]
                done += 1
                if done % _PROGRESS_EVERY_OBJECTS == 0:
                    self._tell("Resolving deltas", done, total)
        if done != total:
            raise CorruptPack(f"pack has {total - done} unresolved deltas")

    def _apply(
        self, number: int, type_num: int, base: bytes, delta: bytes, base_depth: int
    ) -> bytes:
        """Resolves one delta under the limits and accepts the object; returns its id."""
        limits = self._limits
        offset = self.offsets[number]
        try:
            base_size, size = delta_sizes(delta)
        except IndexError as error:
            raise CorruptPack(f"bad delta at offset {offset}: {error}") from error
        if base_size != len(base):
            raise CorruptPack(f"bad delta at offset {offset}: base has another size")
        # Before anything is allocated: a delta of a few bytes may declare any size.
        if size > limits.delta_result_bytes_max:
            raise exceeded(limits, "delta_result_bytes_max", f"delta makes {size} bytes")
        if size > limits.object_bytes_max:
            raise exceeded(limits, "object_bytes_max", f"object has {size} bytes")
        if base_depth >= limits.delta_depth_max:
            raise exceeded(limits, "delta_depth_max", f"delta chain at offset {offset} is too long")
        self._count_inflated(size)
        try:
            content = apply_delta_bytes(base, delta)
        except ApplyDeltaError as error:
            raise CorruptPack(f"bad delta at offset {offset}: {error}") from error
        self.depths[number] = base_depth + 1
        return self._accept(number, type_num, content)

    def _accept(self, number: int, type_num: int, content: bytes) -> bytes:
        hasher = self._format.new_hash(self._hash_prefixes[type_num] % len(content))
        hasher.update(content)
        oid = hasher.digest()
        if oid in self.objects:
            raise CorruptPack(f"the same object {oid.hex()} appears twice in the pack")
        self.objects[oid] = number
        self.types[number] = type_num
        self._on_object(oid, type_num, content)
        self._cache.put((0, number), type_num, content)
        return oid

    def _header(self, offset: int) -> EntryHeader:
        try:
            return parse_entry_header(self._contents, offset, self._format.hash_bytes)
        except IndexError as error:
            raise CorruptPack(f"bad entry header at offset {offset}: {error}") from error

    def _checked_inflate(self, offset: int, header: EntryHeader) -> tuple[bytes, int]:
        """Inflates an entry that is read for the first time, under the limits."""
        if header.type_num not in TYPE_NAMES and header.type_num not in (OFS_DELTA, REF_DELTA):
            raise CorruptPack(f"unknown object type {header.type_num} at offset {offset}")
        if header.size > self._limits.object_bytes_max:
            raise exceeded(
                self._limits, "object_bytes_max", f"object at {offset} has {header.size} bytes"
            )
        self._count_inflated(header.size)
        try:
            return inflate(self._contents, header.body, self._end, header.size)
        except zlib.error as error:
            raise CorruptPack(f"inflate of entry at offset {offset} failed: {error}") from error

    def _inflate(self, number: int, header: EntryHeader) -> tuple[bytes, int]:
        return inflate(self._contents, header.body, self._end, header.size)

    def _count_inflated(self, size: int) -> None:
        self._inflated_bytes += size
        if self._inflated_bytes > self._limits.push_inflated_bytes_max:
            raise exceeded(
                self._limits,
                "push_inflated_bytes_max",
                f"pack inflates to more than {self._inflated_bytes - size} bytes",
            )

    def _base_number(self, header: EntryHeader) -> int:
        """The number of the entry that an OFS_DELTA, or a REF_DELTA within the pack, builds on."""
        if header.base_oid is not None:
            return self.objects[header.base_oid]
        offset = header.base_offset
        assert offset is not None
        number = bisect_left(self.offsets, offset) if offset >= 0 else len(self.offsets)
        if number == len(self.offsets) or self.offsets[number] != offset:
            raise CorruptPack(f"delta base offset {offset} is not the start of an earlier object")
        return number

    def _tell(self, what: str, done: int, total: int) -> None:
        now_s = time.monotonic()
        if now_s >= self._progress_next_s:
            self._progress_next_s = now_s + _PROGRESS_EVERY_S
            self._progress(f"{what}: {100 * done // total:3d}% ({done}/{total})")
