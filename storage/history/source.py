"""What every question reads: commits, trees and blobs of one repository at one revision.

Owns the caches and the budget of a question. Object ids are content, so a cache may be shared by
all revisions of one repository; that an object exists is checked where a question begins.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping

from quorepo.storage.errors import InvalidArgument, NotFound
from quorepo.storage.git.commit_graph import is_at_hand, parse_commit
from quorepo.storage.git.commits import Commit, CommitCache, CommitReader
from quorepo.storage.packs import BLOB, COMMIT, TREE, TYPE_NAMES, PackSet
from quorepo.storage.patience import TooMuchWork

__all__ = [
    "ENTRIES_PER_STEP",
    "FOLDER_MODES",
    "GITLINK_MODE",
    "SYMLINK_MODE",
    "Caches",
    "History",
    "Hunk",
    "TooMuchWork",
    "Tree",
    "is_folder",
    "mode_number",
]

# (first line in the old file, lines of it, first line in the new file, lines of it), from 1; with
# no lines, the line before.
Hunk = tuple[int, int, int, int]

# Entries of one tree by name, in git's order: (mode as it is written, raw id).
Tree = Mapping[bytes, tuple[bytes, bytes]]

FOLDER_MODES = (b"40000", b"040000")
GITLINK_MODE = b"160000"
SYMLINK_MODE = b"120000"

_TREE_ENTRIES_CACHED_MAX = 200_000  # about 150 bytes each
_DIFFERENCES_CACHED_MAX = 5000  # about 1 KiB each
_UNCHANGED_COMMITS_CACHED_MAX = 50_000  # of all paths together; about 100 bytes each
ENTRIES_PER_STEP = 500  # of a tree that is looked through, whether or not it had to be read
_EMPTY: Tree = {}


class Caches:
    """Parsed commits and trees of one repository; shared by its revisions, and by threads."""

    def __init__(self) -> None:
        self.commits = CommitCache()
        self.trees: dict[bytes, Tree] = {}
        self.tree_entries = 0
        self.differences: dict[tuple[bytes, bytes], list[Hunk]] = {}
        self.unchanged_since: dict[bytes, dict[bytes, bytes]] = {}
        self.unchanged_commits = 0


class History:
    """One repository at one revision, for one question."""

    def __init__(
        self, objects: PackSet, caches: Caches | None = None, budget: int | None = None
    ) -> None:
        """`budget`: how many commits and trees may be looked at before `TooMuchWork`."""
        self.objects = objects
        self.hash_bytes = objects.object_format.hash_bytes
        self.reader = CommitReader(objects, (caches := caches or Caches()).commits)
        self._caches = caches
        self._left = budget
        self._findall = re.compile(
            rb"([0-7]+) ([^\0]+)\0(.{%d})" % self.hash_bytes, re.DOTALL
        ).findall

    def need_graph(self) -> None:
        """Raises TooMuchWork when the commit graph would have to be made first."""
        if self._left is not None and not is_at_hand(self.objects):
            raise TooMuchWork

    def spend(self, steps: int = 1) -> None:
        """Counts work. Raises TooMuchWork when the budget is used up."""
        if self._left is not None:
            self._left -= steps
            if self._left < 0:
                raise TooMuchWork

    def commit(self, oid: bytes) -> Commit:
        """Tree, parents and date of a commit. Raises NotFound, CorruptPack."""
        return self.reader.get(oid)

    def parents_of(self, oid: bytes) -> tuple[bytes, ...]:
        """The parents of one commit, without the commit graph. Raises NotFound, CorruptPack."""
        known = self._caches.commits.get(oid)
        if known is not None:
            return known.parents
        return parse_commit(self.objects.get(oid)[1], oid, self.hash_bytes).parents

    def tree(self, oid: bytes | None) -> Tree:
        """The entries of a tree; none for None. Raises NotFound, InvalidArgument."""
        if oid is None:
            return _EMPTY
        caches = self._caches
        tree = caches.trees.get(oid)
        if tree is None:
            self.spend()
            kind, content = self.objects.get(oid)
            if kind != TREE:
                raise self.wrong_kind(oid, kind, TREE)
            tree = {name: (mode, entry) for mode, name, entry in self._findall(content)}
            if caches.tree_entries > _TREE_ENTRIES_CACHED_MAX:
                caches.trees = {}
                caches.tree_entries = 0
            caches.trees[oid] = tree
            caches.tree_entries += len(tree) + 4
        return tree

    def entry(self, tree: bytes | None, components: list[bytes]) -> tuple[bytes, bytes] | None:
        """(mode, id) of what lies at a path below a tree; None when nothing does."""
        found = None if tree is None else (b"40000", tree)
        for component in components:
            if found is None or found[0] not in FOLDER_MODES:
                return None
            found = self.tree(found[1]).get(component)
        return found

    def same_at(
        self, one: tuple[bytes, bytes], other: tuple[bytes, bytes], components: list[bytes]
    ) -> bool:
        """Whether the same thing lies at a path below two entries, the first of which has it.
        Reads no further than to the first folder that both share. Raises NotFound.
        """
        for component in components:
            if one[0] not in FOLDER_MODES or other[0] not in FOLDER_MODES:
                return False
            mine = self.tree(one[1]).get(component)
            theirs = self.tree(other[1]).get(component)
            if mine is None or theirs is None:
                return False
            if mine == theirs:
                return True
            one, other = mine, theirs
        return False

    def blob(self, oid: bytes) -> bytes:
        """The content of a blob. Raises NotFound, InvalidArgument."""
        kind, content = self.objects.get(oid)
        if kind != BLOB:
            raise self.wrong_kind(oid, kind, BLOB)
        return content

    def differences(
        self, old: bytes, new: bytes, compare: Callable[[bytes, bytes], list[Hunk]]
    ) -> list[Hunk]:
        """What `compare` finds to differ between two blobs; kept, for the next blame of the file is
        of the same versions and one more.
        """
        kept = self._caches.differences
        found = kept.get((old, new))
        if found is None:
            found = compare(old, new)
            if len(kept) >= _DIFFERENCES_CACHED_MAX:
                kept.clear()
            kept[old, new] = found
        return found

    def unchanged_since(self, path: bytes) -> dict[bytes, bytes]:
        """By commit the one since which what lies at `path` is the same, as far as `remember` was
        told."""
        return self._caches.unchanged_since.setdefault(path, {})

    def remember(self, path: bytes, commits: list[bytes], since: bytes) -> None:
        """What lies at `path` in all these commits is there since the commit `since`."""
        caches = self._caches
        if caches.unchanged_commits > _UNCHANGED_COMMITS_CACHED_MAX:
            caches.unchanged_since = {}
            caches.unchanged_commits = 0
        caches.unchanged_since.setdefault(path, {}).update(dict.fromkeys(commits, since))
        caches.unchanged_commits += len(commits)

    def root_of(self, oid: bytes) -> tuple[bytes | None, bytes]:
        """(commit, its tree) or (None, the tree itself); tags are not followed.

        Raises:
            InvalidArgument: a blob or a tag.
            NotFound
        """
        kind = self.objects.object_type(oid)
        if kind == TREE:
            return None, oid
        if kind != COMMIT:
            raise self.wrong_kind(oid, kind, COMMIT)
        content = self.objects.get(oid)[1]
        return oid, bytes.fromhex(content[5 : 5 + 2 * self.hash_bytes].decode("ascii"))

    def wrong_kind(self, oid: bytes, kind: int, wanted: int) -> InvalidArgument:
        """The error for an object that is something else."""
        have, want = (TYPE_NAMES[number].decode() for number in (kind, wanted))
        return InvalidArgument(f"object {oid.hex()} is a {have}, not a {want}")

    def need(self, oid: bytes) -> None:
        """Raises NotFound when the revision does not have the object."""
        if oid not in self.objects:
            raise NotFound(f"object {oid.hex()} does not exist")


def is_folder(mode: bytes) -> bool:
    """Whether a tree's entry of this mode is a tree."""
    return mode in FOLDER_MODES


def mode_number(mode: bytes) -> int:
    """The mode as a number; old trees have 0100664, which git reads as 0100644."""
    number = int(mode, 8)
    if number & 0o170000 == 0o100000:
        return 0o100755 if number & 0o100 else 0o100644
    return number
