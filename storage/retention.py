"""Which objects of a repository are needed: the closure of its refs, recent ones included.

Owns the walk. Iterative; about 100 bytes per object that is retained. Must not know what becomes
of the rest.
"""

from __future__ import annotations

from collections.abc import Iterable

from quorepo.storage.errors import DamagedPack
from quorepo.storage.git.commits import tree_entry_pattern
from quorepo.storage.packs import BLOB, COMMIT, TAG, TREE, PackSet

__all__ = ["retained_objects"]

_GITLINK_MODE = b"160000"
_TREE_MODES = (b"40000", b"040000")


def retained_objects(
    packs: PackSet, tips: Iterable[bytes], recent: Iterable[bytes], kept: PackSet
) -> set[bytes]:
    """What must stay stored: everything that `tips`, those of `recent` that exist, and the objects
    of the packs `kept` reach, themselves included.

    `recent` are earlier values of refs, which a shorter grace time may have pruned before. Raises
    DamagedPack when anything else that is reached is not stored.
    """
    retained: set[bytes] = set()
    pending: list[bytes] = list(tips)
    pending += [oid for oid in recent if oid in packs]
    for pack in kept.packs:
        pending += pack.iter_oids()
    walk = _Walk(packs, retained)
    while pending:
        oid = pending.pop()
        if oid not in retained:
            retained.add(oid)
            pending += walk.references(oid)
    return retained


class _Walk:
    def __init__(self, packs: PackSet, retained: set[bytes]) -> None:
        self._packs = packs
        self._retained = retained
        self._entries = tree_entry_pattern(packs.object_format.hash_bytes)

    def references(self, oid: bytes) -> list[bytes]:
        """What an object refers to and is yet to be walked; blobs are retained on the way."""
        located = self._packs.locate(oid)
        if located is None:
            raise DamagedPack(f"object {oid.hex()} is referred to and not stored")
        if self._packs.type_at(*located) == BLOB:
            return []
        type_num, content = self._packs.get_at(*located)
        if type_num == TREE:
            return self._tree(content)
        if type_num == COMMIT:
            return _header_ids(content, (b"tree ", b"parent "))
        assert type_num == TAG
        return _header_ids(content, (b"object ",))

    def _tree(self, content: bytes) -> list[bytes]:
        retained = self._retained
        trees = []
        for mode, oid in self._entries.findall(content):
            if mode == _GITLINK_MODE or oid in retained:
                continue
            if mode in _TREE_MODES:
                trees.append(oid)
            elif oid in self._packs:
                retained.add(oid)
            else:
                raise DamagedPack(f"object {oid.hex()} is referred to and not stored")
        return trees


def _header_ids(content: bytes, names: tuple[bytes, ...]) -> list[bytes]:
    """The ids in the headers of a commit or tag, which end at the first empty line."""
    found = []
    for line in content.split(b"\n\n", 1)[0].split(b"\n"):
        for name in names:
            if line.startswith(name):
                found.append(bytes.fromhex(line[len(name) :].decode("ascii")))
    return found
