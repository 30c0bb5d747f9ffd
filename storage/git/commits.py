"""Commits and tags as the walks need them, and what a tag stands for.

Owns the scanning of tag and tree objects, and a cache of commits; they come from the commit graph
(`commit_graph.py`). Objects were checked strictly when they were stored, so this scans for what it
needs and believes it.
"""

from __future__ import annotations

import re
from binascii import Error as HexError
from binascii import unhexlify
from collections.abc import Container, Iterable
from dataclasses import dataclass, field

from quorepo.storage.errors import CorruptPack
from quorepo.storage.git.commit_graph import Commit, CommitGraph, commit_graphs
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


class CommitCache(dict[bytes, Commit]):
    """Commits by id, and of what walks started at: of which type it is, and where tags lead to."""

    def __init__(self) -> None:
        super().__init__()
        self.kinds: dict[bytes, int] = {}
        self.tags: dict[bytes, bytes] = {}

    def clear(self) -> None:
        """Forgets all of it."""
        super().clear()
        self.kinds.clear()
        self.tags.clear()


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
        self._cache = CommitCache() if cache is None else cache
        self._graphs: list[CommitGraph] | None = None  # read when a commit is asked for
        self._hex_bytes = 2 * objects.object_format.hash_bytes

    def get(self, oid: bytes) -> Commit:
        """Raises NotFound when the object is missing, CorruptPack when it is no commit."""
        commit = self._cache.get(oid)
        if commit is None:
            commit = self._find(oid)
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
        kinds = self._cache.kinds
        seen: set[bytes] = set()
        pending = list(oids)
        pending.reverse()
        while pending:
            oid = pending.pop()
            if oid in seen:
                continue
            seen.add(oid)
            kind = kinds.get(oid)
            if kind is None:
                kind = COMMIT if oid in self._cache else self.objects.object_type(oid)
                if len(kinds) >= COMMITS_CACHED_MAX:
                    self._cache.clear()
                kinds[oid] = kind
            lists[kind].append(oid)
            if kind == TAG:
                pending.append(self.tag_target(oid))
        return found

    def tag_target(self, oid: bytes) -> bytes:
        """The object that a tag object names; it may be a tag again."""
        target = self._cache.tags.get(oid)
        if target is None:
            target = self._read_tag(oid)
            if len(self._cache.tags) >= COMMITS_CACHED_MAX:
                self._cache.clear()
            self._cache.tags[oid] = target
        return target

    def _read_tag(self, oid: bytes) -> bytes:
        kind, content = self.objects.get(oid)
        if kind != TAG or not content.startswith(b"object "):
            raise CorruptPack(f"object {oid.hex()} is not a tag")
        return self._unhex(content[7 : 7 + self._hex_bytes], oid)

    def _find(self, oid: bytes) -> Commit:
        if self._graphs is None:
            self._graphs = commit_graphs(self.objects)
        for graph in self._graphs:
            commit = graph.get(oid)
            if commit is not None:
                return commit
        self.objects.object_type(oid)  # NotFound when there is nothing
        raise CorruptPack(f"object {oid.hex()} is not a commit")

    def _unhex(self, text: bytes, oid: bytes) -> bytes:
        try:
            return unhexlify(text)
        except HexError:
            raise CorruptPack(f"object {oid.hex()} refers to a malformed object id") from None


def existing(objects: PackSet, oids: Iterable[bytes]) -> list[bytes]:
    """Those of `oids` that the repository holds, in their order, each once."""
    return [oid for oid in dict.fromkeys(oids) if oid in objects]
