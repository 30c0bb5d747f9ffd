"""Trees read as sets of entries, and the comparison of one with those that came before it.

Owns the parsing and a bounded cache of it: whoever walks a history compares each tree with those of
the commit before. Must not know what is compared for what reason.
"""

from __future__ import annotations

import re
from collections.abc import Iterable

from quorepo.storage.packs import PackSet

__all__ = ["GITLINK_MODE", "TREE_MODES", "Entry", "Replaced", "TreeEntries", "compared"]

TREE_MODES = (b"40000", b"040000")
GITLINK_MODE = b"160000"

Entry = tuple[bytes, bytes, bytes]  # mode, name, object id
Replaced = dict[bytes, list[tuple[bool, bytes]]]  # by name: (is a tree, object id)


class TreeEntries:
    """The entries of trees by object id; about 10 KiB for each of the trees that are kept."""

    def __init__(self, objects: PackSet, cached_max: int) -> None:
        self._objects = objects
        self._cached_max = cached_max
        width = objects.object_format.hash_bytes
        pattern = re.compile(rb"([0-7]+) ([^\0]+)\0(.{%d})" % width, re.DOTALL)
        self._findall = pattern.findall
        self._trees: dict[bytes, frozenset[Entry]] = {}

    def read(self, tree: bytes) -> list[Entry]:
        """The same in their order, and not kept. Raises NotFound."""
        return self._findall(self._objects.get(tree)[1])

    def of(self, tree: bytes) -> frozenset[Entry]:
        """Raises NotFound."""
        entries = self._trees.get(tree)
        if entries is None:
            entries = frozenset(self.read(tree))
            if len(self._trees) >= self._cached_max:
                self._trees.clear()
            self._trees[tree] = entries
        return entries


def compared(
    own: frozenset[Entry], bases: Iterable[frozenset[Entry]]
) -> tuple[frozenset[Entry], Replaced]:
    """The entries of `own` that no base has, and what the bases have by name that `own` has not;
    gitlinks are not among the latter."""
    changed = own
    replaced: Replaced = {}
    for entries in bases:
        for mode, name, oid in entries - own:
            if mode != GITLINK_MODE:
                replaced.setdefault(name, []).append((mode in TREE_MODES, oid))
        changed = changed - entries
    return changed, replaced
