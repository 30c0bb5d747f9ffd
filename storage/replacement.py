"""Whether packs may take the place of others: the check that every replica makes for itself.

Owns the comparison: the new packs are what their digests say, each object in them hashes to its
id, their indexes are the ones that their bytes have, and they hold exactly the objects of the packs
that they replace (for a prune: exactly those of them that are retained). Runs in a worker. Must not
know who proposed the replacement; nothing that the proposer computed is believed.

Packs are looked for wherever a pack may be on this node: a replacement may wait for a place in the
log before the pushes that it consolidates are applied, or after another one removed them.
"""

from __future__ import annotations

import hashlib
import mmap
import os
import struct
from array import array
from collections.abc import Callable, Container, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final

from quorepo.storage.errors import CorruptPack, NotFound
from quorepo.storage.layout import GroupLayout
from quorepo.storage.limits import StorageLimits
from quorepo.storage.objectformat import ObjectFormat
from quorepo.storage.packindex import write_index
from quorepo.storage.packs import PackCache, PackSet
from quorepo.storage.resolve import PACK_HEADER_BYTES, PackResolver

__all__ = ["NewPack", "check_replacement"]

_READ_BYTES: Final = 1 << 20
_HEADER: Final = struct.Struct(">4sLL")
_UNLIMITED: Final = 1 << 62


@dataclass(frozen=True, slots=True)
class NewPack:
    """A pack by the names that a transaction gives to it and to its index."""

    digest: bytes
    index_digest: bytes


def check_replacement(
    layout: GroupLayout,
    repository_id: str,
    object_format: ObjectFormat,
    removed: Sequence[bytes],
    added: Sequence[NewPack],
    limits: StorageLimits,
    progress: Callable[[str], None],
    *,
    complete: bool = True,
    retained: Container[bytes] | None = None,
) -> int:
    """Checks the packs `added` against those `removed`; returns the number of their objects.

    Without `complete`, `removed` names only some of the replaced packs, and `added` may hold more
    than they do. With `retained`, objects that it does not contain must be missing.

    Raises CorruptPack: the replacement is wrong. NotFound: a pack is not on this node. DamagedPack:
    a stored pack cannot be read.
    """
    objects: dict[bytes, int] = {}
    for pack in added:
        for oid in _checked_objects(layout, repository_id, object_format, pack, limits, progress):
            objects.setdefault(oid, len(objects))
    seen = array("B", bytes(len(objects)))
    old = PackCache().open(layout, repository_id, removed, object_format)
    for pack_file in old.packs:
        for oid in pack_file.iter_oids():
            number = objects.get(oid)
            wanted = retained is None or oid in retained
            if number is None and wanted:
                raise CorruptPack(f"the replacement lacks object {oid.hex()}")
            if number is not None:
                if not wanted:
                    raise CorruptPack(f"the replacement keeps object {oid.hex()}")
                seen[number] = 1
    surplus = len(objects) - sum(seen)
    if surplus and complete:
        raise CorruptPack(f"the replacement holds {surplus} objects that it does not replace")
    return len(objects)


def _checked_objects(
    layout: GroupLayout,
    repository_id: str,
    object_format: ObjectFormat,
    pack: NewPack,
    limits: StorageLimits,
    progress: Callable[[str], None],
) -> Sequence[bytes]:
    """The ids of a pack that is what its digests say, every object hashed."""
    path, index_path = _locate(layout, repository_id, pack.digest)
    name = pack.digest.hex()
    if _sha256(path) != pack.digest:
        raise CorruptPack(f"pack {name} has another SHA-256")
    if _sha256(index_path) != pack.index_digest:
        raise CorruptPack(f"the index of pack {name} has another SHA-256")
    hash_bytes = object_format.hash_bytes
    with path.open("rb") as file:
        header = file.read(PACK_HEADER_BYTES)
        size = path.stat().st_size
        if len(header) < PACK_HEADER_BYTES or size < PACK_HEADER_BYTES + hash_bytes:
            raise CorruptPack(f"pack {name} is shorter than a header and a trailer")
        magic, version, count = _HEADER.unpack(header)
        if magic != b"PACK" or version != 2:
            raise CorruptPack(f"pack {name} is no pack of version 2")
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as contents:
            trailer = contents[-hash_bytes:]
            hasher = object_format.new_hash()
            for start in range(0, size - hash_bytes, _READ_BYTES):
                hasher.update(contents[start : min(start + _READ_BYTES, size - hash_bytes)])
            if hasher.digest() != trailer:
                raise CorruptPack(f"pack {name} has a wrong trailer")
            resolver = PackResolver(
                PackSet((), object_format),
                object_format,
                _without_push_limits(limits),
                _ignore,
                _ignore,
                progress,
            )
            resolver.run(contents, count)
    # The index has to be the one that these bytes have, crc by crc.
    with open(os.devnull, "wb") as nowhere:
        _, written = write_index(
            nowhere, resolver.objects, resolver.offsets, resolver.crc32s, trailer, object_format
        )
    if written != pack.index_digest:
        raise CorruptPack(f"the index of pack {name} is not that of its bytes")
    return list(resolver.objects)


def _locate(layout: GroupLayout, repository_id: str, digest: bytes) -> tuple[Path, Path]:
    places = [
        layout.quarantine_paths(digest),
        layout.pack_paths(repository_id, digest),
        layout.retired_pack_paths(digest),
    ]
    for paths in (*places, *places):
        if all(path.exists() for path in paths):
            return paths
    raise NotFound(f"pack {digest.hex()} is not on this node")


def _without_push_limits(limits: StorageLimits) -> StorageLimits:
    """A repository may be larger than any push to it; single objects stay bounded, as at ingest."""
    return limits.model_copy(
        update={
            "push_bytes_max": _UNLIMITED,
            "push_objects_max": _UNLIMITED,
            "push_inflated_bytes_max": _UNLIMITED,
            "delta_depth_max": 65_535,
        }
    )


def _ignore(_oid: bytes, _type_num: int, _content: bytes) -> None:
    """Only the ids are of interest."""


def _sha256(path: Path) -> bytes:
    digest = hashlib.sha256()
    try:
        with path.open("rb") as file:
            while chunk := file.read(_READ_BYTES):
                digest.update(chunk)
    except FileNotFoundError as error:
        raise NotFound(f"{path.name!r} is not on this node any more") from error
    return digest.digest()
