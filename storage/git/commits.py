"""Commits and tags as the walks need them: tree, parents, date; and what a tag stands for.

Owns the scanning of commit, tag and tree objects, and a cache of parsed commits. Objects were
checked strictly when they were stored, so this scans for what it needs and believes it.
"""

from __future__ import annotations

import re
from binascii import Error as HexError
from binascii import unhexlify
from collections.abc import Container, Iterable
from dataclasses import dataclass, field
from typing import NamedTuple

from quorepo.storage.errors import CorruptPack
from quorepo.storage.packs import BLOB, COMMIT, TAG, TREE, PackSet

__all__ = [
    "COMMITS_CACHED_MAX",
    "Commit",
    "CommitCache",
    "CommitReader",
    "Roots",
    "existing",
    "tree_entry_pattern",
]

# About 400 bytes each.
COMMITS_CACHED_MAX = 250_000


class Commit(NamedTuple):
    """What a commit refers to, and its committer date in seconds since 1970."""

    tree: bytes
    parents: tuple[bytes, ...]
    date: int


CommitCache = dict[bytes, Commit]


@dataclass
class Roots:
    """Objects by type, tags replaced by what they point to: where walks start.

    `tags` are the tag objects passed on the way. Each list is free of duplicates.
    """

    commits: list[bytes] = field(default_factory=list)
    trees: list[bytes] = field(default_factory=list)
    blobs: list[bytes] = field(default_factory=list)
    tags: list[bytes] = field(default_factory=list)


def tree_entry_pattern(hash_bytes: int) -> re.Pattern[bytes]:
    """Matches one tree entry: (mode, raw id). `findall` parses a whole tree at C speed."""
    return re.compile(rb"([0-7]+) [^\0]+\0(.{%d})" % hash_bytes, re.DOTALL)


class CommitReader:
    """Reads commits of one repository. `cache` may be shared by readers of the same repository: ids
    are content, and existence was checked where a walk starts.
    """

    def __init__(self, objects: PackSet, cache: CommitCache | None = None) -> None:
        self.objects = objects
        self._cache: CommitCache = {} if cache is None else cache
        self._hex_bytes = 2 * objects.object_format.hash_bytes

    def get(self, oid: bytes) -> Commit:
        """Raises NotFound when the object is missing, CorruptPack when it is no commit."""
        commit = self._cache.get(oid)
        if commit is None:
            commit = self._parse(oid)
            if len(self._cache) >= COMMITS_CACHED_MAX:
                self._cache.clear()
            self._cache[oid] = commit
        return commit

    def parents(self, oid: bytes, grafts: Container[bytes]) -> tuple[bytes, ...]:
        """The parents of a commit; none when it is in `grafts`, where a shallow history ends."""
        return () if oid in grafts else self.get(oid).parents

    def roots(self, oids: Iterable[bytes]) -> Roots:
        """Sort objects by type and follow tags. Raises NotFound when one does not exist."""
        found = Roots()
        lists = {COMMIT: found.commits, TREE: found.trees, BLOB: found.blobs, TAG: found.tags}
        seen: set[bytes] = set()
        pending = list(oids)
        pending.reverse()
        while pending:
            oid = pending.pop()
            if oid in seen:
                continue
            seen.add(oid)
            kind = COMMIT if oid in self._cache else self.objects.object_type(oid)
            lists[kind].append(oid)
            if kind == TAG:
                pending.append(self.tag_target(oid))
        return found

    def tag_target(self, oid: bytes) -> bytes:
        """The object that a tag object names; it may be a tag again."""
        kind, content = self.objects.get(oid)
        if kind != TAG or not content.startswith(b"object "):
            raise CorruptPack(f"object {oid.hex()} is not a tag")
        return self._unhex(content[7 : 7 + self._hex_bytes], oid)

    def _parse(self, oid: bytes) -> Commit:
        kind, content = self.objects.get(oid)
        if kind != COMMIT or not content.startswith(b"tree "):
            raise CorruptPack(f"object {oid.hex()} is not a commit")
        width = self._hex_bytes
        tree = self._unhex(content[5 : 5 + width], oid)
        position = 6 + width
        parents = []
        while content.startswith(b"parent ", position):
            parents.append(self._unhex(content[position + 7 : position + 7 + width], oid))
            position += 8 + width
        return Commit(tree, tuple(parents), _committer_date(content, position))

    def _unhex(self, text: bytes, oid: bytes) -> bytes:
        try:
            return unhexlify(text)
        except HexError:
            raise CorruptPack(f"object {oid.hex()} refers to a malformed object id") from None


def _committer_date(content: bytes, position: int) -> int:
    """0 for a commit that has no readable date; fsck can be told to let those in."""
    start = content.find(b"\ncommitter ", position - 1)
    if start < 0:
        return 0
    end = content.find(b"\n", start + 1)
    line = content[start : end if end >= 0 else len(content)]
    words = line[line.rfind(b">") + 1 :].split()
    if not words or not words[0].isdigit() or len(words[0]) > 18:
        return 0
    return int(words[0])


def existing(objects: PackSet, oids: Iterable[bytes]) -> list[bytes]:
    """Those of `oids` that the repository holds, in their order, each once."""
    return [oid for oid in dict.fromkeys(oids) if oid in objects]
