"""Three-way merges of trees whose object format libgit2 does not know.

libgit2 knows SHA-1 only, but it merges by names, modes and equality of ids. So what differs between
the three trees is written as SHA-1 into the private folder, blobs for real, since their lines are
merged; what is the same in all three stands there as a submodule under its name, which no merge
touches, and is never read. The result is translated back. Owns both directions.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import pygit2
from pygit2.enums import ObjectType

from quorepo.storage import libgit2
from quorepo.storage.operations.objects import NewObjects, encode_tree
from quorepo.storage.packs import BLOB, TREE

__all__ = ["Conflict", "Translation"]

_FOLDER, _GITLINK = 0o040000, 0o160000
_SHA1_BYTES = 20
_Entry = tuple[int, bytes]
_Entries = dict[bytes, _Entry]


@dataclasses.dataclass(frozen=True, slots=True)
class Conflict:
    """A path with its blobs in the ancestor, here and there; None: none there."""

    path: bytes
    sides: tuple[bytes | None, ...]


class Translation:
    """Merges by a repository of libgit2's that holds nothing else."""

    def __init__(self, objects: NewObjects, git: pygit2.Repository) -> None:
        self._objects = objects
        self._git: Any = git
        self._ids: dict[bytes, bytes] = {}  # SHA-1 to the id here
        self._same: _Entries = {}  # by path: what all three sides have

    def merge(self, ancestor: bytes, ours: bytes, theirs: bytes) -> bytes | list[Conflict]:
        """The id of the merged tree, which is kept as a new object; or what conflicts."""
        self._same.clear()
        sides = self._translated(b"", [ancestor, ours, theirs])
        index = self._git.merge_trees(
            *(pygit2.Oid(raw=side) for side in sides), flags=libgit2.RENAMES
        )
        if index.conflicts is not None:
            return [self._conflict(found) for found in index.conflicts]
        root: dict[bytes, Any] = {}
        for entry in index:
            *folders, name = _bytes(entry.path).split(b"/")
            folder = root
            for part in folders:
                folder = folder.setdefault(part, {})
            folder[name] = self._back(_bytes(entry.path), int(entry.mode), entry.id.raw)
        return self._written(root)

    def _translated(self, prefix: bytes, trees: Sequence[bytes | None]) -> list[bytes]:
        """SHA-1 trees of one folder, for each side; an empty one where a side has none."""
        sides = [{} if tree is None else self._objects.entries(tree) for tree in trees]
        made: list[_Entries] = [{} for _ in sides]
        for name in {name for side in sides for name in side}:
            found = [side.get(name) for side in sides]
            path = prefix + name
            first = found[0]
            if first is not None and first == found[1] == found[2]:
                self._same[path] = first
                for entries in made:
                    entries[name] = (_GITLINK, first[1][:_SHA1_BYTES])
                continue
            below: list[bytes] = []
            if any(entry is not None and entry[0] == _FOLDER for entry in found):
                below = self._translated(
                    path + b"/",
                    [e[1] if e is not None and e[0] == _FOLDER else None for e in found],
                )
            for side, entry in enumerate(found):
                if entry is not None:
                    is_folder = entry[0] == _FOLDER
                    oid = below[side] if is_folder else self._file(*entry)
                    made[side][name] = (entry[0], oid)
        return [self._git.odb.write(ObjectType.TREE, encode_tree(e)).raw for e in made]

    def _file(self, mode: int, oid: bytes) -> bytes:
        if mode == _GITLINK:
            translated = oid[:_SHA1_BYTES]
        else:
            content = self._objects.get(oid)[1]
            translated = self._git.odb.write(ObjectType.BLOB, content).raw
        self._ids[translated] = oid
        return translated

    def _back(self, path: bytes, mode: int, oid: bytes) -> _Entry:
        if mode == _GITLINK and path in self._same:
            return self._same[path]
        if oid not in self._ids:
            self._ids[oid] = self._objects.add(BLOB, self._git.get(pygit2.Oid(raw=oid)).data)
        return mode, self._ids[oid]

    def _written(self, folder: dict[bytes, Any]) -> bytes:
        entries = {
            name: (_FOLDER, self._written(value)) if isinstance(value, dict) else value
            for name, value in folder.items()
        }
        return self._objects.add(TREE, encode_tree(entries))

    def _conflict(self, found: Sequence[Any]) -> Conflict:
        path = next(_bytes(side.path) for side in found if side is not None)
        return Conflict(path, tuple(self._ids_of(path, found)))

    def _ids_of(self, path: bytes, found: Sequence[Any]) -> Iterator[bytes | None]:
        for side in found:
            if side is None:
                yield None
            else:
                yield self._back(path, int(side.mode), side.id.raw)[1]


def _bytes(path: str) -> bytes:
    return path.encode("utf-8", "surrogateescape")
