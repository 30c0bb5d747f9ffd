"""Making the table of what every commit of a pack changed (`pack_changes.py`).

Owns the comparison of each commit's trees with those of all its parents, wherever they lie. It
reads every tree of the pack once, about 50 µs each, so it belongs into a background job. Must not
know when that is run.
"""

from __future__ import annotations

from array import array
from collections.abc import Callable, Sequence

from quorepo.storage.git.commit_graph import commit_graph_of
from quorepo.storage.git.commits import Commit, CommitReader
from quorepo.storage.git.derived import write_derived
from quorepo.storage.git.pack_changes import (
    CHANGES_KIND,
    NOTHING,
    ChangeTables,
    encode_changes,
)
from quorepo.storage.git.tree_entries import GITLINK_MODE, TREE_MODES, TreeEntries, compared
from quorepo.storage.packs import OFS_DELTA, REF_DELTA, PackFile, PackSet

__all__ = ["write_pack_changes"]

_TREES_CACHED_MAX = 2048
_PROGRESS_EVERY = 1000


def write_pack_changes(
    objects: PackSet, pack: PackFile, progress: Callable[[str], None] = lambda text: None
) -> None:
    """Makes the file of one pack of `objects`."""
    tables = _Builder(objects, pack).build(progress)
    write_derived(pack, CHANGES_KIND, encode_changes(pack, tables))


class _Builder:
    def __init__(self, objects: PackSet, pack: PackFile) -> None:
        self._objects = objects
        self._pack = pack
        self._reader = CommitReader(objects)
        self._trees = TreeEntries(objects, _TREES_CACHED_MAX)
        self._tables = ChangeTables()
        self._numbers: dict[bytes, int] = {}

    def build(self, progress: Callable[[str], None]) -> ChangeTables:
        """All tables."""
        tables = self._tables
        self._number_entries()
        oids = commit_graph_of(self._objects, self._pack).oids()
        commits = [self._reader.get(oid) for oid in oids]
        order = sorted(range(len(oids)), key=lambda place: (commits[place].generation, place))
        tables.ranks = array("I", bytes(4 * len(oids)))
        for rank, place in enumerate(order):
            tables.ranks[place] = rank
        ranks = dict(zip(oids, tables.ranks, strict=True))
        tables.first = array("I", [NOTHING]) * len(self._numbers)
        for rank, place in enumerate(order):
            self._add(rank, oids[place], commits[place], ranks)
            if rank % _PROGRESS_EVERY == 0:
                progress(f"Comparing commits: {rank}/{len(order)}")
        tables.starts.append(len(tables.entries))
        return tables

    def _number_entries(self) -> None:
        """Numbers and types of all entries. A delta is what its base is."""
        pack, types = self._pack, self._tables.types
        by_offset: dict[int, int] = {}
        for number, (offset, _end, oid) in enumerate(pack.iter_entries()):
            self._numbers[oid] = by_offset[offset] = number
            header = pack.header(offset)
            if header.type_num == OFS_DELTA and header.base_offset is not None:
                types.append(types[by_offset[header.base_offset]])
            elif header.type_num == REF_DELTA:
                types.append(self._objects.type_at(pack, offset))
            else:
                types.append(header.type_num)

    def _add(self, rank: int, oid: bytes, commit: Commit, ranks: dict[bytes, int]) -> None:
        tables = self._tables
        parents = [ranks[parent] for parent in commit.parents if parent in ranks]
        tables.parents.append(parents[0] if parents else NOTHING)
        for parent in parents[1:]:
            tables.extras.extend((rank, parent))
        tables.starts.append(len(tables.entries))
        bases = [self._reader.get(parent).tree for parent in commit.parents]
        changed = self._changed(commit.tree, bases)
        numbers = [self._numbers.get(changed_oid) for changed_oid in changed]
        is_complete = None not in numbers
        tables.complete.append(is_complete)
        if not is_complete:
            return
        tables.entries.append(self._numbers[oid])
        tables.earlier.append(NOTHING)
        for number, before in zip(numbers, changed.values(), strict=True):
            assert number is not None
            tables.entries.append(number)
            tables.earlier.append(NOTHING if before is None else self._numbers.get(before, NOTHING))
        for number in tables.entries[tables.starts[-1] :]:
            if tables.first[number] == NOTHING:
                tables.first[number] = rank

    def _changed(self, root: bytes, bases: Sequence[bytes]) -> dict[bytes, bytes | None]:
        """What no base has at the same path, each with what a base has there instead."""
        found: dict[bytes, bytes | None] = {}
        pending = [(root, bases)]
        while pending:
            tree, bases = pending.pop()
            if tree in found or tree in bases:
                continue
            found[tree] = bases[0] if bases else None
            changed, replaced = compared(self._trees.of(tree), map(self._trees.of, bases))
            for mode, name, oid in changed:
                if mode == GITLINK_MODE:
                    continue
                is_tree = mode in TREE_MODES
                same_path = [base for kind, base in replaced.get(name, ()) if kind == is_tree]
                if is_tree:
                    pending.append((oid, same_path))
                elif oid not in found:
                    found[oid] = same_path[0] if same_path else None
        return found
