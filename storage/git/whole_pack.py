"""Which stored pack answers a clone as it lies on disk.

A pack is *closed* when all that its objects refer to is in it; its *roots* are the objects that
nothing in it refers to. Everything in a closed pack is reached from its roots. So when the client
may see all roots it may see the whole pack, without a look at the objects. Roots never change; they
are kept in a derived file, `objects/info/quorepo-<digest of the pack>.roots` (`derived.py`), which
is made anew when it is not exactly as expected.

Must not know how a pack is written or sent.
"""

from __future__ import annotations

import hashlib
import heapq
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from weakref import WeakKeyDictionary

from quorepo.storage.git.commit_graph import commit_graph_of
from quorepo.storage.git.commits import CommitReader, Roots, tree_entry_pattern
from quorepo.storage.git.derived import read_derived, write_derived
from quorepo.storage.git.fetch_request import FetchRequest, Negotiation
from quorepo.storage.git.filters import ObjectFilter
from quorepo.storage.git.walk import commits_between
from quorepo.storage.packs import COMMIT, TAG, TREE, PackFile, PackSet

__all__ = ["PackRoots", "complete_pack", "pack_roots", "reaches_all", "whole_pack_for"]

_GITLINK_MODE = b"160000"
_KIND = "roots"
_MAGIC = b"QUOROO\0\1"
# Below that, looking at every object takes less time than the file is worth.
_OBJECTS_MIN = 500
# The pack holds at least this part of all entries of the repository's packs, and the wants reach at
# least that part of its commits: what is sent in excess costs the client time.
_SHARE_MIN = 0.5
_WANTED_MIN = 0.9
# A pack with more roots was not made by one push or one consolidation.
_ROOTS_MAX = 100_000


@dataclass(frozen=True)
class PackRoots:
    """Of one pack. `is_usable`: it is closed, and all its roots are commits and tags."""

    is_usable: bool
    commits: tuple[bytes, ...] = ()
    tags: tuple[bytes, ...] = ()


def whole_pack_for(
    reader: CommitReader, request: FetchRequest, negotiation: Negotiation, tips: Sequence[bytes]
) -> tuple[PackFile, PackRoots] | None:
    """The pack to send whole to a client that may see what `tips` reach, or None. To a client that
    wants no files (blob:none) all the rest of it.
    """
    if not request.ofs_delta or negotiation.common:
        return None
    if request.filter not in (None, ObjectFilter(blob_bytes_limit=0)):
        return None
    if request.client_shallow or negotiation.shallow or negotiation.unshallow:
        return None
    wants = reader.roots(request.wants)
    if wants.trees or wants.blobs:
        return None
    found = complete_pack(reader, tips)
    if found is None:
        return None
    pack, roots = found
    return found if _wanted_enough(reader, wants, roots, pack) else None


def complete_pack(reader: CommitReader, tips: Sequence[bytes]) -> tuple[PackFile, PackRoots] | None:
    """The pack that holds most of the repository, if it is closed and a client that may see what
    `tips` reach may see all of it; else None."""
    packs = reader.objects.packs
    pack = max(packs, key=lambda pack: pack.object_count, default=None)
    if pack is None or pack.object_count < _OBJECTS_MIN:
        return None
    if pack.object_count < _SHARE_MIN * sum(other.object_count for other in packs):
        return None
    roots = pack_roots(reader.objects, pack)
    if not roots.is_usable or not _may_see(reader, roots, reader.roots(tips)):
        return None
    return pack, roots


def _may_see(reader: CommitReader, roots: PackRoots, visible: Roots) -> bool:
    return set(visible.tags).issuperset(roots.tags) and reaches_all(
        reader, visible.commits, roots.commits
    )


class _TooManyError(Exception):
    """More commits of the pack are not wanted than may be sent in excess."""


def _wanted_enough(reader: CommitReader, wants: Roots, roots: PackRoots, pack: PackFile) -> bool:
    if reaches_all(reader, wants.commits, roots.commits):
        return True
    excess_max = (1 - _WANTED_MIN) * commit_graph_of(reader.objects, pack).count

    def tick(unwanted: int) -> None:
        if unwanted > excess_max:
            raise _TooManyError

    try:
        commits_between(reader, roots.commits, wants.commits, tick=tick)
    except _TooManyError:
        return False
    return True


def reaches_all(reader: CommitReader, tips: Iterable[bytes], targets: Iterable[bytes]) -> bool:
    """Whether every one of the commits `targets` is one of `tips` or an ancestor of one."""
    missing = set(targets)
    seen = set(tips)
    missing -= seen
    if not missing:
        return True
    lowest = min(reader.get(oid).generation for oid in missing)
    queue = [(-reader.get(oid).generation, oid) for oid in seen]
    heapq.heapify(queue)
    while queue:
        generation, oid = heapq.heappop(queue)
        if -generation < lowest:
            return False
        for parent in reader.get(oid).parents:
            if parent not in seen:
                seen.add(parent)
                missing.discard(parent)
                if not missing:
                    return True
                heapq.heappush(queue, (-reader.get(parent).generation, parent))
    return False


_roots: WeakKeyDictionary[PackFile, PackRoots] = WeakKeyDictionary()


def pack_roots(objects: PackSet, pack: PackFile) -> PackRoots:
    """Of a pack of `objects`; read from its file, or made by a look at all its trees."""
    roots = _roots.get(pack)
    if roots is None:
        content = read_derived(pack, _KIND)
        roots = None if content is None else _decode(content[:], pack)
        if roots is None:
            roots = _find(objects, pack)
            write_derived(pack, _KIND, _encode(pack, roots))
        _roots[pack] = roots
    return roots


def _find(objects: PackSet, pack: PackFile) -> PackRoots:
    referred: set[bytes] = set()
    entries = tree_entry_pattern(objects.object_format.hash_bytes).findall
    reader = CommitReader(objects)
    kinds: dict[bytes, int] = {}
    types: dict[int, int] = {}
    for offset in pack.iter_offsets():
        header = pack.header(offset)
        kind = header.type_num
        if header.base_offset is not None:
            kind = types[header.base_offset]
        elif header.base_oid is not None:
            kind = objects.type_at(pack, offset)
        types[offset] = kind
        if kind == TREE:
            content = objects.get_at(pack, offset)[1]
            referred.update(oid for mode, oid in entries(content) if mode != _GITLINK_MODE)
        elif kind in (COMMIT, TAG):
            kinds[pack.oid_at(offset)] = kind
    for oid, kind in kinds.items():
        if kind == TAG:
            referred.add(reader.tag_target(oid))
        else:
            commit = reader.get(oid)
            referred.add(commit.tree)
            referred.update(commit.parents)
    held = set(pack.iter_oids())
    if not referred <= held:
        return PackRoots(False)
    roots = held - referred
    if len(roots) > _ROOTS_MAX or not roots <= kinds.keys():
        return PackRoots(False)
    return PackRoots(
        True,
        tuple(sorted(oid for oid in roots if kinds[oid] == COMMIT)),
        tuple(sorted(oid for oid in roots if kinds[oid] == TAG)),
    )


def _encode(pack: PackFile, roots: PackRoots) -> bytes:
    """Magic, pack digest, usable (one byte), number of commits (4), ids, SHA-256 of all that."""
    counts = bytes([roots.is_usable]) + len(roots.commits).to_bytes(4, "big")
    body = b"".join([_MAGIC, pack.digest, counts, *roots.commits, *roots.tags])
    return body + hashlib.sha256(body).digest()


def _decode(content: bytes, pack: PackFile) -> PackRoots | None:
    """None when it is damaged or not about this pack."""
    body, checksum = content[:-32], content[-32:]
    start = len(_MAGIC) + len(pack.digest)
    if hashlib.sha256(body).digest() != checksum or body[:start] != _MAGIC + pack.digest:
        return None
    width = pack.object_format.hash_bytes
    first = start + 5
    oids = tuple(body[at : at + width] for at in range(first, len(body), width))
    count = int.from_bytes(body[start + 1 : first], "big")
    return PackRoots(bool(body[start]), oids[:count], oids[count:])
