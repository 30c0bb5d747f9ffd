"""A tree, edited path by path: what CommitFiles does to the files of a commit.

Folders are read when a path leads into them and written when something in them changed; one that
became empty goes, as in git. Refusals name the path and change nothing.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from quorepo.storage.errors import AlreadyExists, InvalidArgument, NotFound, Rejected
from quorepo.storage.operations.objects import NewObjects, encode_tree
from quorepo.storage.packs import BLOB, TREE

__all__ = ["Action", "edit"]

_FOLDER, _FILE, _GITLINK = 0o040000, 0o100644, 0o160000


@dataclasses.dataclass(frozen=True, slots=True)
class Action:
    """One change; `content` None leaves it, `mode` 0 too, `expected` empty takes any."""

    kind: str  # create, update, write, delete, move, chmod
    path: bytes
    previous_path: bytes = b""
    mode: int = 0
    content: bytes | None = None
    expected: bytes = b""  # raw id of the blob


class _Folder:
    def __init__(self, objects: NewObjects, tree: bytes | None) -> None:
        self._objects = objects
        self._tree = tree
        self.entries: dict[bytes, tuple[int, bytes]] = {} if tree is None else objects.entries(tree)
        self.folders: dict[bytes, _Folder] = {}

    def folder(self, name: bytes, path: bytes, *, create: bool) -> _Folder | None:
        if name not in self.folders:
            mode, oid = self.entries.get(name, (0, b""))
            if mode not in (0, _FOLDER):
                if create:
                    raise Rejected(f"path {_shown(path)}: a part of it is a file")
                return None
            if not mode and not create:
                return None
            self.folders[name] = _Folder(self._objects, oid or None)
        return self.folders[name]

    def write(self) -> bytes | None:
        """The id of the tree; None when it is empty."""
        for name, folder in self.folders.items():
            oid = folder.write()
            self.entries.pop(name, None)
            if oid is not None:
                self.entries[name] = (_FOLDER, oid)
        if not self.entries:
            return None
        return self._objects.add(TREE, encode_tree(self.entries))


def edit(objects: NewObjects, tree: bytes | None, actions: Iterable[Action]) -> bytes:
    """The id of the tree after all actions, in their order.

    Raises:
        AlreadyExists, NotFound: a path is there, or is not.
        Rejected: a blob is not the expected one, or a part of a path is a file.
    """
    root = _Folder(objects, tree)
    for action in actions:
        _apply(objects, root, action)
    return root.write() or objects.add(TREE, b"")


def _apply(objects: NewObjects, root: _Folder, action: Action) -> None:
    source = action.previous_path if action.kind == "move" else action.path
    found = _find(root, source)
    _expect(action, source, found)
    if action.kind == "delete":
        _remove(root, source)
        return
    if action.kind == "move":
        assert found is not None
        if action.path == source or action.path.startswith(source + b"/"):
            raise InvalidArgument(f"path {_shown(source)} can't be moved into itself")
        if _find(root, action.path) is not None:
            raise AlreadyExists(f"path {_shown(action.path)} exists already")
        _remove(root, source)
    mode, oid = found or (_FILE, b"")
    if mode == _FOLDER and (action.content is not None or action.mode):
        raise Rejected(f"path {_shown(source)} is a folder")
    if mode == _GITLINK and (action.content is not None or action.mode):
        raise Rejected(f"path {_shown(source)} is a submodule")
    if action.content is not None:
        oid = objects.add(BLOB, action.content)
    folder, name = _parent(root, action.path)
    folder.folders.pop(name, None)
    folder.entries[name] = (action.mode or mode, oid)


def _expect(action: Action, source: bytes, found: tuple[int, bytes] | None) -> None:
    if found is None and action.kind in ("update", "delete", "move", "chmod"):
        raise NotFound(f"path {_shown(source)} does not exist")
    if found is not None and action.kind == "create":
        raise AlreadyExists(f"path {_shown(source)} exists already")
    if action.expected and (found is None or found[1] != action.expected):
        actual = "not there" if found is None else found[1].hex()
        raise Rejected(f"path {_shown(source)} is {actual}, expected {action.expected.hex()}")


def _find(root: _Folder, path: bytes) -> tuple[int, bytes] | None:
    folder: _Folder | None = root
    *parents, name = path.split(b"/")
    for parent in parents:
        assert folder is not None
        folder = folder.folder(parent, path, create=False)
        if folder is None:
            return None
    assert folder is not None
    if name in folder.folders:
        oid = folder.folders[name].write()
        return None if oid is None else (_FOLDER, oid)
    return folder.entries.get(name)


def _parent(root: _Folder, path: bytes) -> tuple[_Folder, bytes]:
    folder = root
    *parents, name = path.split(b"/")
    for parent in parents:
        below = folder.folder(parent, path, create=True)
        assert below is not None
        folder = below
    return folder, name


def _remove(root: _Folder, path: bytes) -> None:
    folder, name = _parent(root, path)
    folder.folders.pop(name, None)
    folder.entries.pop(name, None)


def _shown(path: bytes) -> str:
    return repr(path[:200].decode("utf-8", "backslashreplace"))
