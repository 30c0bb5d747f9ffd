"""What lies in a tree: one level or all of it, in git's order, and which blobs are LFS pointers.

Owns how a listing goes on after a path, so that a page reads only the folders it needs.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import NamedTuple

from quorepo.storage.history.source import ENTRIES_PER_STEP, History, is_folder, mode_number

__all__ = ["LfsPointer", "Listed", "lfs_pointer", "list_tree"]

_LFS_BYTES_MAX = 1024
_LFS_VERSION = (
    b"version https://git-lfs.github.com/spec/v1\n",
    b"version https://hawser.github.com/spec/v1\n",
)
_LFS_OID = re.compile(rb"^oid sha256:([0-9a-f]{64})$", re.MULTILINE)
_LFS_SIZE = re.compile(rb"^size ([0-9]{1,19})$", re.MULTILINE)


class Listed(NamedTuple):
    """One entry with its path from the root."""

    path: bytes
    mode: int
    oid: bytes

    @property
    def is_blob(self) -> bool:
        """A file or symbolic link."""
        return self.mode not in (0o040000, 0o160000)


class LfsPointer(NamedTuple):
    """What a pointer file of Git LFS says of the large file."""

    oid: str
    size: int


def list_tree(
    history: History,
    tree: bytes,
    folder: bytes = b"",
    *,
    recursive: bool = False,
    with_folders: bool = False,
    after: bytes = b"",
) -> Iterator[Listed]:
    """The entries of the tree that lies at `folder`, those that come after the path `after`.

    Not recursive: one level. Recursive: folders are listed only `with_folders`, before what is in
    them. Raises NotFound, InvalidArgument.
    """
    stack = [_level(history, tree, folder + b"/" if folder else b"")]
    while stack:
        found = next(stack[-1], None)
        if found is None:
            stack.pop()
            continue
        path, mode, oid = found
        folder_here = is_folder(mode)
        # In git's order a folder stands as if its name ended with a slash.
        key = path + b"/" if folder_here else path
        if recursive and folder_here and (key >= after or after.startswith(key)):
            stack.append(_level(history, oid, path + b"/"))
        if folder_here and recursive and not with_folders:
            continue
        if not after or (key > after and path != after):
            yield Listed(path, mode_number(mode), oid)


def lfs_pointer(history: History, oid: bytes, size: int) -> LfsPointer | None:
    """What a blob of `size` bytes says, if it is a pointer."""
    if size >= _LFS_BYTES_MAX:
        return None
    content = history.blob(oid)
    if not content.startswith(_LFS_VERSION):
        return None
    found, length = _LFS_OID.search(content), _LFS_SIZE.search(content)
    if found is None or length is None:
        return None
    return LfsPointer(found[1].decode("ascii"), int(length[1]))


def _level(history: History, tree: bytes, prefix: bytes) -> Iterator[tuple[bytes, bytes, bytes]]:
    entries = history.tree(tree)
    history.spend(len(entries) // ENTRIES_PER_STEP)
    for name, (mode, oid) in entries.items():
        yield prefix + name, mode, oid
