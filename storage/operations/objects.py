"""Objects in the making: over the packs of a repository, until they are written as one pack."""

from __future__ import annotations

import zlib
from collections.abc import Mapping
from pathlib import Path

from quorepo.storage.errors import NotFound
from quorepo.storage.git.pack_entries import encode_header
from quorepo.storage.objectformat import ObjectFormat
from quorepo.storage.packs import COMMIT, TAG, TREE, TYPE_NAMES, PackSet

__all__ = ["NewObjects", "encode_tree"]

_FOLDER = 0o040000


def encode_tree(entries: Mapping[bytes, tuple[int, bytes]]) -> bytes:
    """The content of a tree; name to (mode, raw id)."""
    ordered = sorted(
        entries.items(), key=lambda entry: entry[0] + b"/" if entry[1][0] == _FOLDER else entry[0]
    )
    return b"".join(b"%o %b\0%b" % (mode, name, oid) for name, (mode, oid) in ordered)


class NewObjects:
    """Reads stored and new objects; keeps the new ones in the order in which they were made."""

    def __init__(self, packs: PackSet) -> None:
        self._packs = packs
        self._new: dict[bytes, tuple[int, bytes]] = {}

    @property
    def object_format(self) -> ObjectFormat:
        return self._packs.object_format

    def drop(self) -> None:
        """Forgets what was made."""
        self._new.clear()

    def add(self, type_num: int, content: bytes) -> bytes:
        """The id of an object, which is kept if the repository does not have it."""
        hasher = self._packs.object_format.new_hash()
        hasher.update(b"%b %d\0" % (TYPE_NAMES[type_num], len(content)))
        hasher.update(content)
        oid = hasher.digest()
        if oid not in self._packs:
            self._new.setdefault(oid, (type_num, content))
        return oid

    def get(self, oid: bytes) -> tuple[int, bytes]:
        """Type and content. Raises NotFound."""
        if oid in self._new:
            return self._new[oid]
        if oid not in self._packs:
            raise NotFound(f"object {oid.hex()} is not in the repository")
        return self._packs.get(oid)

    def tree_of(self, commit: bytes) -> bytes:
        """The raw id of a commit's tree."""
        type_num, content = self.get(commit)
        if type_num != COMMIT:
            raise NotFound(f"object {commit.hex()} is no commit")
        return bytes.fromhex(content[5 : content.index(b"\n")].decode("ascii"))

    def parents_of(self, commit: bytes) -> list[bytes]:
        """The raw ids of a commit's parents."""
        type_num, content = self.get(commit)
        if type_num != COMMIT:
            raise NotFound(f"object {commit.hex()} is no commit")
        lines = content.partition(b"\n\n")[0].split(b"\n")
        return [bytes.fromhex(line[7:].decode()) for line in lines if line.startswith(b"parent ")]

    def entries(self, tree: bytes) -> dict[bytes, tuple[int, bytes]]:
        """Name to (mode, raw id)."""
        type_num, content = self.get(tree)
        if type_num != TREE:
            raise NotFound(f"object {tree.hex()} is no tree")
        found, position, size = {}, 0, self._packs.object_format.hash_bytes
        while position < len(content):
            space = content.index(b" ", position)
            end = content.index(b"\0", space)
            found[content[space + 1 : end]] = (
                int(content[position:space], 8),
                content[end + 1 : end + 1 + size],
            )
            position = end + 1 + size
        return found

    def add_commit(
        self, tree: bytes, parents: list[bytes], author: bytes, committer: bytes, message: bytes
    ) -> bytes:
        """A commit; people as `Name <mail> seconds +hhmm`."""
        lines = [b"tree " + tree.hex().encode()]
        lines += [b"parent " + parent.hex().encode() for parent in parents]
        lines += [b"author " + author, b"committer " + committer]
        return self.add(COMMIT, b"\n".join(lines) + b"\n\n" + message)

    def add_tag(self, target: bytes, name: bytes, tagger: bytes, message: bytes) -> bytes:
        """An annotated tag of any object."""
        kind = TYPE_NAMES[self.get(target)[0]]
        head = b"object %b\ntype %b\ntag %b\ntagger %b\n\n" % (
            target.hex().encode(), kind, name, tagger,
        )  # fmt: skip
        return self.add(TAG, head + message)

    def write_pack(self, path: Path) -> int:
        """Writes the new objects, whole, to the new file `path`. Returns how many."""
        hasher = self._packs.object_format.new_hash()
        with path.open("xb") as file:
            header = b"PACK" + (2).to_bytes(4, "big") + len(self._new).to_bytes(4, "big")
            file.write(header)
            hasher.update(header)
            for type_num, content in self._new.values():
                entry = encode_header(type_num, len(content)) + zlib.compress(content)
                file.write(entry)
                hasher.update(entry)
            file.write(hasher.digest())
        return len(self._new)
