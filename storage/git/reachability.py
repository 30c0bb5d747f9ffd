"""Whether a visible tip reaches an object: the guard in front of every fetch.

A want that is no tip of the client's view is looked for behind the tips. Nothing that only a
deleted or hidden ref reaches passes, and a refusal does not tell whether the object exists.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from quorepo.storage.errors import NotFound
from quorepo.storage.git.commits import CommitReader, tree_entry_pattern
from quorepo.storage.git.walk import ancestors
from quorepo.storage.packs import COMMIT

__all__ = ["VisibleObjects", "check_wants"]

_TREE_MODES = (b"40000", b"040000")
_GITLINK_MODE = b"160000"


class VisibleObjects:
    """The objects that `tips` reach, found as they are asked for, newest commits first.

    What a client of a partial clone asks for is usually in the newest trees; and it asks often,
    so an instance that is kept makes its next question cheap. About 100 bytes per object found.
    """

    def __init__(self, reader: CommitReader, tips: Sequence[bytes]) -> None:
        self._reader = reader
        self._entries = tree_entry_pattern(reader.objects.object_format.hash_bytes)
        self._roots = reader.roots(tips)
        roots = self._roots
        self._found = {*roots.tags, *roots.commits, *roots.trees, *roots.blobs}
        self._trees = self._root_trees()
        self._commits = ancestors(reader, roots.commits)

    def __len__(self) -> int:
        return len(self._found)

    def __contains__(self, oid: object) -> bool:
        """Whether a tip reaches the object `oid`, which must exist."""
        if oid in self._found:
            return True
        if not isinstance(oid, bytes):
            return False
        if self._reader.objects.object_type(oid) == COMMIT:
            # Walked on their own: no tree is read for them.
            return self._found_in(oid, ((commit,) for commit in self._commits))
        return self._found_in(oid, self._trees)

    def _found_in(self, oid: bytes, steps: Iterator[Sequence[bytes]]) -> bool:
        for step in steps:
            self._found.update(step)
            if oid in self._found:
                return True
        return False

    def _root_trees(self) -> Iterator[list[bytes]]:
        """Everything new in one root tree after the other."""
        entered: set[bytes] = set()
        for root in self._roots.trees:
            yield self._tree(root, entered)
        for commit in ancestors(self._reader, self._roots.commits):
            yield self._tree(self._reader.get(commit).tree, entered)

    def _tree(self, root: bytes, entered: set[bytes]) -> list[bytes]:
        found: list[bytes] = []
        pending = [root]
        while pending:
            tree = pending.pop()
            if tree in entered:
                continue
            entered.add(tree)
            found.append(tree)
            for mode, oid in self._entries.findall(self._reader.objects.get(tree)[1]):
                if mode in _TREE_MODES:
                    pending.append(oid)
                elif mode != _GITLINK_MODE and oid not in self._found:
                    found.append(oid)
        return found


def check_wants(
    reader: CommitReader,
    wants: Sequence[bytes],
    tips: Sequence[bytes],
    visible: VisibleObjects | None = None,
) -> None:
    """Raises NotFound, in git's words, for a want that no tip reaches or that is missing.

    `visible`, when given, is that of the same tips.
    """
    for want in wants:
        if want not in reader.objects:
            raise _not_ours(want)
    tip_set = set(tips)
    others = [want for want in wants if want not in tip_set]
    if not others:
        return
    if visible is None:
        visible = VisibleObjects(reader, tips)
    for want in others:
        if want not in visible:
            raise _not_ours(want)


def _not_ours(oid: bytes) -> NotFound:
    return NotFound(f"upload-pack: not our ref {oid.hex()}")
