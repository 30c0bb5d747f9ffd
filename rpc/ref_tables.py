"""How the table of a repository's refs comes about: from the one before, from a file, or from rows.

Owns that choice, the files of tables and the peeled values of tags. A table costs a look at every
ref once; after that each revision costs what it changed, on a node that has just started too.
Must not know who reads it or what they may see.
"""

from __future__ import annotations

import collections
import dataclasses
import logging
import threading
from collections.abc import Iterable
from pathlib import Path

from quorepo.cluster.state.reader import StateReader
from quorepo.cluster.state.rows import PackRow, RepositoryRow
from quorepo.storage.errors import DamagedPack, NotFound
from quorepo.storage.git.ref_table import RefTable
from quorepo.storage.git.ref_table_file import RefsOrigin, read_ref_table, write_ref_table
from quorepo.storage.layout import GroupLayout
from quorepo.storage.logs import fields
from quorepo.storage.objectformat import ObjectFormat
from quorepo.storage.packs import TAG, PackCache, PackSet

__all__ = ["PeeledCache", "RefTables", "StoredTable", "table_of"]

log = logging.getLogger(__name__)

_PEEL_DEPTH_MAX = 64
# With fewer refs reading all of them takes no longer than finding out what changed.
_PATCHED_REFS_MIN = 500
_CHANGES_MAX = 10_000
# Below that a file is not worth its place; it is written again after so many changes.
_STORED_REFS_MIN = 2_000
_STORED_CHANGES_MAX = 1_000


@dataclasses.dataclass(frozen=True, slots=True)
class StoredTable:
    """A table, where it comes from, and how many changes ago it was last written to its file."""

    origin: RefsOrigin
    table: RefTable
    unsaved: int


class RefTables:
    """Makes tables of one group's repositories. Thread-safe."""

    def __init__(
        self, reader: StateReader, layout: GroupLayout, pack_cache: PackCache, peeled: PeeledCache
    ) -> None:
        self._reader = reader
        self._layout = layout
        self._pack_cache = pack_cache
        self._peeled = peeled

    def brought_up_to_date(
        self, repository_id: str, known: StoredTable | None
    ) -> tuple[RepositoryRow, list[PackRow], StoredTable] | None:
        """The repository now, from a table of an older revision: `known`, or the one in its file.

        None when neither helps. Reads packs where a tag was pushed.
        """
        if known is None:
            known = self._read(repository_id)
        if known is None or len(known.table) < _PATCHED_REFS_MIN:
            return None
        origin = known.origin
        since = (origin.incarnation, origin.counter)
        found = self._reader.changes_since(repository_id, since, origin.generation, _CHANGES_MAX)
        if found is None:
            return None
        digests = [pack.digest for pack in found.packs]
        packs = self._pack_cache.open(
            self._layout, repository_id, digests, found.repository.object_format
        )
        try:
            values = {
                name: None if oid is None else (oid, self._peeled.peel(packs, oid))
                for name, oid in found.refs.items()
            }
        except (DamagedPack, NotFound) as error:
            # Whoever needs that value is told; others may go on.
            log.warning("tag can't be read", extra=fields(repository=repository_id, error=error))
            return None
        table = known.table.patched(values) if values else known.table
        origin = dataclasses.replace(origin, counter=found.repository.counter)
        news = StoredTable(origin, table, known.unsaved + len(values))
        return found.repository, found.packs, self.saved(news)

    def saved(self, stored: StoredTable) -> StoredTable:
        """Writes the table to its file when that is worth it."""
        if len(stored.table) < _STORED_REFS_MIN or stored.unsaved < _STORED_CHANGES_MAX:
            return stored
        write_ref_table(self._path(stored.origin.repository_id), stored.origin, stored.table)
        return dataclasses.replace(stored, unsaved=0)

    def _read(self, repository_id: str) -> StoredTable | None:
        found = read_ref_table(self._path(repository_id))
        if found is None or found[0].repository_id != repository_id:
            return None
        return StoredTable(*found, 0)

    def _path(self, repository_id: str) -> Path:
        return self._layout.repository(repository_id) / "refs-table"


def table_of(
    rows: Iterable[tuple[bytes, bytes]],
    packs: PackSet,
    peeled: PeeledCache,
    object_format: ObjectFormat,
) -> RefTable:
    """The table of all rows of a repository, in the order of their names. Reads packs."""
    values = {}
    refs = []
    for name, oid in rows:
        if oid not in values:
            values[oid] = peeled.peel(packs, oid)
        refs.append((name, oid, values[oid]))
    return RefTable.of(refs, object_format)


class PeeledCache:
    """What tags point to, by object id; the same in every repository that has the object."""

    def __init__(self, entries_max: int) -> None:
        self._entries_max = entries_max
        self._entries: collections.OrderedDict[bytes, bytes | None] = collections.OrderedDict()
        self._lock = threading.Lock()

    def peel(self, packs: PackSet, oid: bytes) -> bytes | None:
        """What an annotated tag leads to; None when `oid` is no tag. Raises NotFound."""
        with self._lock:
            if oid in self._entries:
                self._entries.move_to_end(oid)
                return self._entries[oid]
        value = _peel(packs, oid)
        with self._lock:
            self._entries[oid] = value
            while len(self._entries) > self._entries_max:
                self._entries.popitem(last=False)
        return value


def _peel(packs: PackSet, oid: bytes) -> bytes | None:
    """Source: git's peel_object(): tags of tags are followed to the end."""
    current = oid
    for _depth in range(_PEEL_DEPTH_MAX):
        if packs.object_type(current) != TAG:
            return None if current == oid else current
        _type, content = packs.get(current)
        first_line = content.split(b"\n", 1)[0]
        current = bytes.fromhex(first_line.removeprefix(b"object ").decode("ascii"))
    return None
