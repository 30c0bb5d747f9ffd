"""The objects of one repository at one revision: a fixed set of packs.

Owns: looking an object up across packs, resolving deltas, keeping packs open within bounds. Must
not know how a revision came about; which packs exist is decided by the digests it is given, never
by what lies in a folder (invariant 5 of the architecture).
"""

from __future__ import annotations

import functools
import threading
import zlib
from collections import OrderedDict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any
from weakref import WeakValueDictionary

from dulwich.errors import ApplyDeltaError
from dulwich.pack import apply_delta

from quorepo.storage.errors import DamagedPack, InvalidArgument, NotFound
from quorepo.storage.layout import GroupLayout
from quorepo.storage.objectformat import ObjectFormat
from quorepo.storage.packfile import (
    BLOB,
    COMMIT,
    OFS_DELTA,
    REF_DELTA,
    TAG,
    TREE,
    TYPE_NAMES,
    EntryHeader,
    PackFile,
    RawEntry,
)
from quorepo.storage.patience import charge, is_limited

__all__ = [
    "BLOB",
    "COMMIT",
    "OFS_DELTA",
    "REF_DELTA",
    "TAG",
    "TREE",
    "TYPE_NAMES",
    "EntryHeader",
    "ObjectCache",
    "PackCache",
    "PackFile",
    "PackSet",
    "RawEntry",
    "apply_delta_bytes",
    "configure_process_cache",
    "delta_sizes",
    "describe",
    "process_cache",
]

OPEN_PACKS_MAX = 512
CACHE_BYTES_MAX = 96 * 1024 * 1024  # git's core.deltaBaseCacheLimit

# Longer chains are refused at ingest (65,535 is the ceiling of limits.delta_depth_max).
_CHAIN_MAX = 65_536
# Enough of a zlib stream to get the first bytes out of it: the code tables before them take up to
# about 320 bytes.
_DELTA_HEAD_BYTES = 1024
_OVERHEAD_BYTES = 150  # of one cached object besides its content


class ObjectCache:
    """Inflated objects by (pack number, offset), least recently used first out, bounded in bytes.

    The newest object is kept even when it alone exceeds the bound. Thread-safe.
    """

    __slots__ = ("_bytes", "_bytes_max", "_lock", "_objects")

    def __init__(self, bytes_max: int = CACHE_BYTES_MAX) -> None:
        self._bytes_max = bytes_max
        self._bytes = 0
        self._objects: OrderedDict[tuple[int, int], tuple[int, bytes]] = OrderedDict()
        self._lock = threading.Lock()

    def get(self, key: tuple[int, int]) -> tuple[int, bytes] | None:
        """(type number, content), or None."""
        with self._lock:
            found = self._objects.get(key)
            if found is not None:
                self._objects.move_to_end(key)
            return found

    def put(self, key: tuple[int, int], type_num: int, content: bytes) -> None:
        """Keeps an object, and drops old ones to make room."""
        with self._lock:
            if key in self._objects:
                return
            self._objects[key] = (type_num, content)
            self._bytes += len(content) + _OVERHEAD_BYTES
            while self._bytes > self._bytes_max and len(self._objects) > 1:
                _, (_, dropped) = self._objects.popitem(last=False)
                self._bytes -= len(dropped) + _OVERHEAD_BYTES

    @property
    def bytes_held(self) -> int:
        """Bytes held now, an estimate of overhead included."""
        return self._bytes


def delta_sizes(delta: bytes) -> tuple[int, int]:
    """The sizes of base and result that a delta declares. Raises IndexError if it is too short."""
    sizes = []
    position = 0
    for _ in range(2):
        size = shift = 0
        while True:
            byte = delta[position]
            position += 1
            size |= (byte & 0x7F) << shift
            shift += 7
            if not byte & 0x80:
                break
            if shift > 63:
                raise IndexError("delta size too large")
        sizes.append(size)
    return sizes[0], sizes[1]


def apply_delta_bytes(base: bytes, delta: bytes) -> bytes:
    """The object that `delta` makes of `base`. Raises ApplyDeltaError.

    Check `delta_sizes` first: the result is allocated as declared.
    """
    pieces = apply_delta(base, delta)
    return pieces[0] if len(pieces) == 1 else b"".join(pieces)


class PackSet:
    """All objects of one repository at one revision. Immutable for its users; thread-safe."""

    __slots__ = ("_cache", "_probes", "object_format", "packs")

    def __init__(
        self,
        packs: Sequence[PackFile],
        object_format: ObjectFormat,
        cache: ObjectCache | None = None,
    ) -> None:
        self.packs = tuple(packs)
        self.object_format = object_format
        self._cache = ObjectCache() if cache is None else cache
        # In the order of the last hits: neighbours in history lie in the same pack.
        self._probes = self.packs

    def __repr__(self) -> str:
        return f"PackSet({len(self.packs)} packs, {self.object_format.value})"

    @classmethod
    def from_description(
        cls, description: Mapping[str, Any], cache: PackCache | None = None
    ) -> PackSet:
        """The set that `describe` described, opened in `cache` or in this process's own.

        Raises InvalidArgument for a malformed description.
        """
        try:
            layout = GroupLayout(Path(description["data_dir"]), int(description["group"]))
            repository_id = str(description["repository_id"])
            digests = [bytes.fromhex(digest) for digest in description["packs"]]
            object_format = ObjectFormat.from_name(description["object_format"])
        except (KeyError, TypeError, ValueError) as error:
            raise InvalidArgument(f"malformed repository description: {error!r}") from error
        return (cache or process_cache()).open(layout, repository_id, digests, object_format)

    def __contains__(self, oid: bytes) -> bool:
        return self.locate(oid) is not None

    def locate(self, oid: bytes) -> tuple[PackFile, int] | None:
        """The pack that holds an object and the offset of its entry; None when absent."""
        probes = self._probes
        for pack in probes:
            offset = pack.find(oid)
            if offset is not None:
                if pack is not probes[0]:
                    # One assignment of a new tuple: other threads see the old order or the new.
                    self._probes = (pack, *(other for other in probes if other is not pack))
                return pack, offset
        return None

    def get(self, oid: bytes) -> tuple[int, bytes]:
        """(type number 1-4, content). Raises NotFound; DamagedPack when the pack is damaged."""
        pack, offset = self._located(oid)
        return self.get_at(pack, offset)

    def get_at(self, pack: PackFile, offset: int) -> tuple[int, bytes]:
        """Like `get`, for an entry that `locate` found."""
        cache = self._cache
        chain: list[tuple[int, EntryHeader]] = []
        found = cache.get((pack.number, offset))
        while found is None:
            header = pack.header(offset)
            charge(header.size)
            if header.type_num in TYPE_NAMES:
                content, _ = pack.inflate(offset, header)
                found = (header.type_num, content)
                cache.put((pack.number, offset), header.type_num, content)
                break
            # Only headers are kept on the way down: a chain of large deltas must not pile up.
            chain.append((offset, header))
            offset = self._base_of(pack, offset, header, len(chain))
            found = cache.get((pack.number, offset))
        type_num, content = found
        charge(len(content))
        for offset, header in reversed(chain):
            delta, _ = pack.inflate(offset, header)
            try:
                if is_limited():
                    charge(delta_sizes(delta)[1])
                content = apply_delta_bytes(content, delta)
            except (ApplyDeltaError, IndexError) as error:
                raise pack.damaged(offset, str(error)) from error
            cache.put((pack.number, offset), type_num, content)
        return type_num, content

    def object_type(self, oid: bytes) -> int:
        """The type number 1-4; nothing is inflated. Raises NotFound."""
        pack, offset = self._located(oid)
        return self.type_at(pack, offset)

    def type_at(self, pack: PackFile, offset: int) -> int:
        """Like `object_type`, for an entry that `locate` found."""
        depth = 0
        header = pack.header(offset)
        while header.type_num not in TYPE_NAMES:
            depth += 1
            offset = self._base_of(pack, offset, header, depth)
            header = pack.header(offset)
        return header.type_num

    def object_size(self, oid: bytes) -> int:
        """The size of the content in bytes; at most the head of a delta is inflated. Raises
        NotFound.
        """
        pack, offset = self._located(oid)
        header = pack.header(offset)
        if header.type_num in TYPE_NAMES:
            return header.size
        try:
            stream = pack.slice(header.body, header.body + _DELTA_HEAD_BYTES)
            head = zlib.decompressobj().decompress(stream, 32)
            return delta_sizes(head)[1]
        except (zlib.error, IndexError) as error:
            raise pack.damaged(offset, str(error)) from error

    def _located(self, oid: bytes) -> tuple[PackFile, int]:
        located = self.locate(oid)
        if located is None:
            raise NotFound(f"object {oid.hex()} does not exist")
        return located

    def _base_of(self, pack: PackFile, offset: int, header: EntryHeader, depth: int) -> int:
        """Where a delta's base is: in the same pack, because every stored pack stands alone."""
        if depth > _CHAIN_MAX:
            raise pack.damaged(offset, "delta cycle")
        if header.base_offset is not None:
            return header.base_offset
        base = pack.find(header.base_oid) if header.base_oid is not None else None
        if base is None:
            raise pack.damaged(offset, f"entry of type {header.type_num} without a base")
        return base


class PackCache:
    """The packs that one process has open, shared by all its PackSets. Thread-safe.

    At most `max_open_packs` are kept open for later; a pack that a living PackSet uses stays open
    beyond that, and closes when the last such set is gone.
    """

    def __init__(
        self, max_open_packs: int = OPEN_PACKS_MAX, cache_bytes_max: int = CACHE_BYTES_MAX
    ) -> None:
        self._max_open_packs = max_open_packs
        self._objects = ObjectCache(cache_bytes_max)
        self._recent: OrderedDict[Path, PackFile] = OrderedDict()
        self._living: WeakValueDictionary[Path, PackFile] = WeakValueDictionary()
        self._lock = threading.Lock()
        self._healed_ns: dict[Path, int] = {}

    def open(
        self,
        layout: GroupLayout,
        repository_id: str,
        digests: Sequence[bytes],
        object_format: ObjectFormat,
    ) -> PackSet:
        """The set of exactly these packs. Files are opened when first read, and a missing one is
        DamagedPack then. One that a transaction removed meanwhile is found where it was moved to.
        """
        packs = []
        with self._lock:
            self._forget_damaged(layout)
            for digest in digests:
                path, index_path = layout.pack_paths(repository_id, digest)
                pack = self._living.get(path)
                if pack is None:
                    elsewhere = functools.partial(layout.pack_paths_elsewhere, digest)
                    pack = PackFile(path, index_path, digest, object_format, elsewhere)
                    self._living[path] = pack
                elif pack.object_format is not object_format:
                    raise DamagedPack(f"pack {path.name!r} was opened as another object format")
                self._recent[path] = pack
                self._recent.move_to_end(path)
                packs.append(pack)
            while len(self._recent) > self._max_open_packs:
                self._recent.popitem(last=False)
        return PackSet(packs, object_format, self._objects)

    def _forget_damaged(self, layout: GroupLayout) -> None:
        """Under the paths that are open there may be other files since a scrub healed a pack."""
        try:
            changed_ns = layout.damaged.stat().st_mtime_ns
        except FileNotFoundError:
            return
        if self._healed_ns.get(layout.damaged) != changed_ns:
            self._healed_ns[layout.damaged] = changed_ns
            self._recent.clear()
            self._living.clear()

    @property
    def open_packs(self) -> int:
        """Packs that are open or would be reused: kept ones and those of living sets."""
        return len(self._living)


def describe(
    layout: GroupLayout,
    repository_id: str,
    digests: Sequence[bytes],
    object_format: ObjectFormat,
) -> dict[str, Any]:
    """A PackSet as JSON, for a worker process; `PackSet.from_description` opens it."""
    return {
        "data_dir": str(layout.data_dir),
        "group": layout.group,
        "repository_id": repository_id,
        "packs": [digest.hex() for digest in digests],
        "object_format": object_format.value,
    }


_process_cache: PackCache | None = None


def process_cache() -> PackCache:
    """The one cache of this process, for work that was given none."""
    global _process_cache
    if _process_cache is None:
        _process_cache = PackCache()
    return _process_cache


def configure_process_cache(max_open_packs: int, cache_bytes_max: int) -> None:
    """Replaces this process's cache by one with these bounds; called once when a process starts."""
    global _process_cache
    _process_cache = PackCache(max_open_packs, cache_bytes_max)
