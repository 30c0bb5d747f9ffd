"""What new commits changed: their trees and blobs, found by comparing trees with the parents' ones.

Owns the comparison, and what each changed object replaced. Must not know filters or packs.

Only directories that differ are read. By induction over history everything a new commit's tree
holds is then either chosen or at the client, in whatever order the commits are looked at. A file
that merely moved is chosen again, unless so much is chosen without anything at its path before
that reading all trees of the boundary is worth it.
"""

from __future__ import annotations

from collections.abc import Callable, Container, Iterable
from dataclasses import dataclass, field

from quorepo.storage.git.commits import CommitReader
from quorepo.storage.git.pack_part import PackPart
from quorepo.storage.git.tree_entries import (
    GITLINK_MODE,
    TREE_MODES,
    Entry,
    Replaced,
    TreeEntries,
    compared,
)
from quorepo.storage.git.walk import CommitRange
from quorepo.storage.packs import PackFile

__all__ = ["Selection", "TreeChanges"]

_TREES_CACHED_MAX = 4096
# Compressed bytes without a predecessor above which moved files are looked for.
_UNEXPLAINED_BYTES_MAX = 32 * 1024


@dataclass
class Selection:
    """The objects to send, and those that the client is known to have, the bases of thin deltas.

    `chosen` maps each object to its offset in the answer, 0 until it is written there; commits come
    first, newest first, and `commit_count` says how many. `known` is not complete: it holds what
    the enumeration came across. `earlier` maps a chosen object to what stood at the same path in a
    parent: a good base for a new delta. `whole` is a stored pack that is sent with all that it
    holds; nothing in it is chosen. `part` are entries of a stored pack; nothing of them is chosen
    either.
    """

    chosen: dict[bytes, int] = field(default_factory=dict)
    known: set[bytes] = field(default_factory=set)
    earlier: dict[bytes, bytes] = field(default_factory=dict)
    commit_count: int = 0
    whole: PackFile | None = None
    part: PackPart | None = None

    def __contains__(self, oid: object) -> bool:
        """Whether an object is sent, apart from `whole`."""
        return oid in self.chosen or (self.part is not None and oid in self.part)

    def __len__(self) -> int:
        """The same."""
        return len(self.chosen) + (0 if self.part is None else len(self.part))

    def take(self, part: PackPart) -> None:
        """`part` is sent, and what is chosen of it is not sent twice."""
        self.part = part
        commit_count = self.commit_count
        for place, oid in enumerate(list(self.chosen)):
            if oid in part:
                del self.chosen[oid]
                self.commit_count -= place < commit_count


class TreeChanges:
    """Adds to a selection what the new commits of a range changed against their parents."""

    def __init__(
        self,
        reader: CommitReader,
        selection: Selection,
        commits: CommitRange,
        grafts: Container[bytes],
        keeps_blobs: bool = True,
    ) -> None:
        """`keeps_blobs` False: they are left out, and the client is not taken to have any."""
        self._reader = reader
        self._selection = selection
        self._commits = commits
        self._grafts = grafts
        self._keeps_blobs = keeps_blobs
        # Commits, and what the client named: it may lack that although it has a commit with it.
        self._kept = frozenset(selection.chosen)
        self._trees = TreeEntries(reader.objects, _TREES_CACHED_MAX)

    def take_all(self, count: Callable[[int], None]) -> None:
        """Oldest commit first, so that the predecessor of an object is usually chosen before it.

        `count` hears how many objects are chosen.
        """
        reader, selection = self._reader, self._selection
        chosen = selection.chosen
        selection.known.update(reader.get(oid).tree for oid in self._commits.boundary)
        for oid in reversed(self._commits.new):
            parents = reader.parents(oid, self._grafts)
            self._take(reader.get(oid).tree, [reader.get(parent).tree for parent in parents])
            count(len(chosen))
        if self._unexplained_bytes() > _UNEXPLAINED_BYTES_MAX:
            self._drop_moved()

    def _take(self, root: bytes, bases: list[bytes]) -> None:
        chosen, known = self._selection.chosen, self._selection.known
        earlier = self._selection.earlier
        pending = [(root, bases)]
        while pending:
            tree, bases = pending.pop()
            if tree in chosen or tree in known or tree in bases:
                continue
            chosen[tree] = 0
            if bases:
                earlier[tree] = bases[0]
            changed, replaced = self._compare(tree, bases)
            for mode, name, oid in changed:
                if mode == GITLINK_MODE:
                    continue
                is_tree = mode in TREE_MODES
                same_path = [base for kind, base in replaced.get(name, ()) if kind == is_tree]
                if is_tree:
                    pending.append((oid, same_path))
                elif self._keeps_blobs and oid not in chosen and oid not in known:
                    chosen[oid] = 0
                    if same_path:
                        earlier[oid] = same_path[0]

    def _compare(self, tree: bytes, bases: Iterable[bytes]) -> tuple[frozenset[Entry], Replaced]:
        """As `compared`; who has a base has what is in it."""
        known = self._selection.known
        own = self._trees.of(tree)
        before = []
        for base in bases:
            entries = self._trees.of(base)
            if base in known:
                known.update([oid for mode, _, oid in entries if self._may_have(mode)])
            before.append(entries)
        return compared(own, before)

    def _may_have(self, mode: bytes) -> bool:
        """Whether who has a tree has an entry of this mode, too."""
        return mode in TREE_MODES or (self._keeps_blobs and mode != GITLINK_MODE)

    def _unexplained_bytes(self) -> int:
        """Compressed bytes of what had nothing at its path before."""
        selection = self._selection
        total = 0
        for oid in selection.chosen:
            if oid in self._kept or oid in selection.earlier:
                continue
            located = self._reader.objects.locate(oid)
            if located is not None:
                pack, offset = located
                total += pack.end_of(offset) - offset
                if total > _UNEXPLAINED_BYTES_MAX:
                    break
        return total

    def _drop_moved(self) -> None:
        """Drop what the boundary holds at any path. What a client named stays: it may lack it."""
        selection = self._selection
        seen: set[bytes] = set()
        pending = [self._reader.get(oid).tree for oid in self._commits.boundary]
        while pending:
            tree = pending.pop()
            if tree in seen:
                continue
            seen.add(tree)
            for mode, _, oid in self._trees.read(tree):
                if mode in TREE_MODES:
                    pending.append(oid)
                elif self._may_have(mode):
                    seen.add(oid)
        selection.known |= seen
        for oid in [oid for oid in selection.chosen if oid in seen and oid not in self._kept]:
            del selection.chosen[oid]
