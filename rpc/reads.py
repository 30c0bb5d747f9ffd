"""The read path: path -> repository -> one consistent picture of it, linearizable by default.

Owns the read index before a read, the cache of pictures by revision and the peeled values of tags.
Must not know HTTP, gRPC or how a picture is sent to a client.

A picture (`RepositoryView`) is read in one SQLite transaction that is closed before anything is
streamed; it names the packs that exist at its revision, so what lies in a folder decides nothing.
"""

from __future__ import annotations

import asyncio
import collections
import dataclasses
import threading
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, Literal, TypeVar

from quorepo.cluster.state.glance import Glance
from quorepo.cluster.state.reader import StateReader
from quorepo.cluster.state.rows import PackRow, PathRow, RepositoryRow, RepositorySnapshot
from quorepo.rpc.core_client import Core
from quorepo.rpc.git_settings import is_hidden
from quorepo.rpc.glances import Glances
from quorepo.rpc.ref_tables import PeeledCache, RefTables, StoredTable, table_of
from quorepo.rpc.rounds import Rounds
from quorepo.storage.errors import NotFound, Unavailable
from quorepo.storage.git.advertise import RefsView
from quorepo.storage.git.ref_table import RefMap, RefTable
from quorepo.storage.git.ref_table_file import RefsOrigin
from quorepo.storage.layout import GroupLayout
from quorepo.storage.objectformat import ObjectFormat
from quorepo.storage.packs import PackCache, PackSet, describe
from quorepo.storage.patience import give_up

__all__ = [
    "GROUP_DIRECTORY",
    "GROUP_STORAGE",
    "READ_INDEX_TIMEOUT_S",
    "Consistency",
    "Reads",
    "RepositoryView",
    "empty_refs_view",
]

GROUP_DIRECTORY = 0
GROUP_STORAGE = 1
READ_INDEX_TIMEOUT_S = 10.0  # how long a read waits for a leader before it gives up

Consistency = Literal["linearizable", "local"]

_PEELED_MAX = 262_144  # entries, about 100 bytes each
_VIEW_COST_MAX = 1_000_000  # refs and packs of all cached pictures together
_READER_THREADS = 4

_T = TypeVar("_T")


class RepositoryView:
    """One repository at one revision. Immutable; shared between requests."""

    def __init__(
        self,
        path: PathRow,
        snapshot: RepositorySnapshot | tuple[RepositoryRow, list[PackRow], StoredTable],
        layout: GroupLayout,
        pack_cache: PackCache,
        peeled: PeeledCache,
        tables: RefTables,
        hidden_prefixes: tuple[bytes, ...] = (),
    ) -> None:
        self.path = path.path
        self.group = path.group
        self.row: RepositoryRow
        self.stored: StoredTable | None = None
        # In the order of the names.
        self.refs: Mapping[bytes, bytes]
        if isinstance(snapshot, RepositorySnapshot):
            self.row, packs = snapshot.repository, snapshot.packs
            self.refs = dict(snapshot.refs)
            self._generation = snapshot.generation
        else:
            self.row, packs, self.stored = snapshot
            self.refs = RefMap(self.stored.table)
        self.pack_rows: tuple[PackRow, ...] = tuple(packs)
        self.layout = layout
        self._pack_cache = pack_cache
        self._peeled = peeled
        self._tables = tables
        self._hidden = hidden_prefixes
        self._lock = threading.Lock()
        self._packs: PackSet | None = None
        self._refs_view: RefsView | None = None
        self._git_view: RefsView | None = None
        self._encoded: dict[str, bytes] = {}

    @property
    def repository_id(self) -> str:
        """The id that never changes and is never reused."""
        return self.row.repository_id

    @property
    def object_format(self) -> ObjectFormat:
        """SHA-1 or SHA-256."""
        return self.row.object_format

    @property
    def head(self) -> bytes:
        """Full name of the branch that HEAD points to; it may not exist yet. Empty: detached."""
        return self.row.head if self.row.detached_head is None else b""

    @property
    def pack_digests(self) -> list[bytes]:
        """The names of the packs that make up this revision, the oldest first."""
        return [pack.digest for pack in self.pack_rows]

    @property
    def packs(self) -> PackSet:
        """All objects at this revision. Opens pack indexes: call it off the event loop."""
        if self._packs is not None:  # who has the lock may hold it for long
            return self._packs
        give_up()
        with self._lock:
            if self._packs is None:
                self._packs = self._pack_cache.open(
                    self.layout, self.repository_id, self.pack_digests, self.object_format
                )
            return self._packs

    def describe(self) -> dict[str, Any]:
        """How this picture is named to a worker process."""
        return describe(self.layout, self.repository_id, self.pack_digests, self.object_format)

    def refs_view(self) -> RefsView:
        """All refs, tags peeled. Reads packs: call it off the event loop."""
        if self._refs_view is None:
            table = self._table()
            self._refs_view = RefsView(
                head=self.head or None,
                detached_head=self.row.detached_head,
                refs=table,
                object_format=self.object_format,
            )
        return self._refs_view

    @property
    def knows_refs(self) -> bool:
        """Whether `refs_view` is there already: then it reads nothing."""
        return self._refs_view is not None

    @property
    def knows_git_view(self) -> bool:
        """The same of `git_view`."""
        return self._git_view is not None

    def git_view(self) -> RefsView:
        """The refs that git clients may see; fetches are answered from nothing else. Reads packs:
        call it off the event loop.
        """
        if self._git_view is None:
            view = self.refs_view()
            if self._hidden:
                head = None if is_hidden(self.head, self._hidden) else view.head
                refs = view.table.without(self._hidden)
                view = dataclasses.replace(view, head=head, refs=refs)
            self._git_view = view
        return self._git_view

    def _table(self) -> RefTable:
        packs = self.packs
        with self._lock:
            if self.stored is None:
                row = self.row
                table = table_of(self.refs.items(), packs, self._peeled, self.object_format)
                origin = RefsOrigin(
                    row.repository_id, row.incarnation, row.counter, self._generation
                )
                self.stored = self._tables.saved(StoredTable(origin, table, len(table)))
                self.refs = RefMap(table)
            return self.stored.table

    def encoded(self, key: str, encode: Callable[[RefsView], bytes]) -> bytes:
        """`encode(git_view)`, remembered under `key` for the life of this picture."""
        if key not in self._encoded:
            self._encoded[key] = encode(self.git_view())
        return self._encoded[key]

    def has_encoded(self, key: str) -> bool:
        """Whether `encoded` of this key is remembered: then nothing of this picture is slow."""
        return key in self._encoded

    def resolve(self, name: bytes) -> bytes | None:
        """The object id of a ref by its full name, or of HEAD; None where a git client sees
        none.
        """
        if name == b"HEAD" and self.row.detached_head is not None:
            return self.row.detached_head
        name = self.head if name == b"HEAD" else name
        return None if is_hidden(name, self._hidden) else self.refs.get(name)


class Reads:
    """Finds repositories on this node's disk, after the read index unless asked otherwise."""

    def __init__(
        self,
        core: Core,
        readers: Mapping[int, StateReader],
        layouts: Mapping[int, GroupLayout],
        pack_cache: PackCache,
        hidden_prefixes: tuple[bytes, ...] = (),
    ) -> None:
        """`readers` and `layouts` by group id; the directory's reader is `readers[0]`.
        `hidden_prefixes` are those of refs that git clients may not see.
        """
        self._core = core
        self._readers = readers
        self._rounds: Rounds[None, None] = Rounds(self._ask_core)
        self._layouts = layouts
        self._pack_cache = pack_cache
        self._hidden = hidden_prefixes
        self._peeled = PeeledCache(_PEELED_MAX)
        self._tables = {
            group: RefTables(reader, layouts[group], pack_cache, self._peeled)
            for group, reader in readers.items()
        }
        self._views = _ViewCache(_VIEW_COST_MAX)
        glances = {group: Glance(layouts[group]) for group in readers}
        self._glances = Glances(glances, GROUP_DIRECTORY)
        # Told of every new picture, in a reader thread.
        self.on_new_view: Callable[[RepositoryView], None] = lambda view: None
        self._threads = ThreadPoolExecutor(_READER_THREADS, thread_name_prefix="reads")

    def close(self) -> None:
        """Ends the reader threads."""
        self._threads.shutdown(wait=True, cancel_futures=True)
        self._glances.close()

    def layout(self, group: int) -> GroupLayout:
        """Where a group's files lie on this node."""
        return self._layouts[group]

    async def confirm(self, timeout_s: float = READ_INDEX_TIMEOUT_S) -> None:
        """Waits until this node's state is at least as new as every write acknowledged so far.

        Raises:
            Unavailable: no leader that a majority confirms within `timeout_s`, or no core.
        """
        try:
            await self._rounds.ask(None, timeout_s)
        except (Unavailable, TimeoutError) as error:
            why = error.message if isinstance(error, Unavailable) else "no answer"
            raise Unavailable(
                f"no leader could confirm this request within {timeout_s:g} s ({why})",
                next_step="try again, or try another node",
            ) from error

    async def _ask_core(self, waiting: Sequence[None], timeout_s: float) -> Sequence[None]:
        await self._core.read_index(sorted(self._readers), timeout_s)
        return waiting

    def look(self, path: str) -> RepositoryView | None:
        """What a change of refs has to know of the repository at a normalized path: its row and
        its objects. The refs, which may be many and change with every call, are not read: `refs`
        is empty. Blocks; this node's state, so `confirm` first.
        """
        path_row = self._directory.path(path)
        reader = None if path_row is None else self._readers.get(path_row.group)
        if path_row is None or reader is None:
            return None
        # In this order: packs that were removed since leave a prune epoch that apply refuses.
        row = reader.repository(path_row.repository_id)
        if row is None or row.deleted:
            return None
        packs = reader.packs(row.repository_id)
        return RepositoryView(
            path_row,
            RepositorySnapshot(row, [], packs, generation=0, applied_index=0),
            self._layouts[path_row.group],
            self._pack_cache,
            self._peeled,
            self._tables[path_row.group],
            self._hidden,
        )

    async def in_thread(self, function: Callable[[], _T]) -> _T:
        """Runs a blocking read of SQLite or of packs off the event loop."""
        return await asyncio.get_running_loop().run_in_executor(self._threads, function)

    async def open(self, path: str, *, consistency: Consistency = "linearizable") -> RepositoryView:
        """The repository at a normalized path.

        Raises:
            NotFound: there is none.
            Unavailable: not linearizable now; see `confirm`.
        """
        view = await self.find(path, consistency=consistency)
        if view is None:
            raise NotFound(f"repository {path!r} does not exist")
        return view

    async def find(
        self, path: str, *, consistency: Consistency = "linearizable"
    ) -> RepositoryView | None:
        """The same, None when there is none: no path row, no repository row, or a tombstone."""
        if consistency == "linearizable":
            await self.confirm()
        view = self._at_once(path)
        return view or await self.in_thread(lambda: self._find(path))

    def _at_once(self, path: str) -> RepositoryView | None:
        """The picture that is remembered, if it is what this node's state shows now."""
        found = self._glances.look(path)
        view = None if found is None else self._views.get(found.row.repository_id)
        if found is None or view is None:
            return None
        return view if view.path == path and view.row == found.row else None

    async def path_row(self, path: str) -> PathRow | None:
        """The reservation of a path on this node, whether or not its repository exists."""
        return await self.in_thread(lambda: self._directory.path(path))

    async def views(
        self, after: str, limit: int, prefix: str = ""
    ) -> tuple[list[RepositoryView], str]:
        """Existing repositories in order of their paths, from this node's state.

        Returns:
            At most `limit` of them with a path after `after`, and the `after` that continues the
            listing; "" at the end.
        """
        return await self.in_thread(lambda: self._list(after, limit, prefix))

    @property
    def _directory(self) -> StateReader:
        return self._readers[GROUP_DIRECTORY]

    def _find(self, path: str) -> RepositoryView | None:
        row = self._directory.path(path)
        return None if row is None else self._view(row)

    def _list(self, after: str, limit: int, prefix: str) -> tuple[list[RepositoryView], str]:
        found: list[RepositoryView] = []
        while len(found) < limit:
            rows = self._directory.paths(after, limit - len(found), prefix)
            if not rows:
                return found, ""
            found.extend(view for row in rows if (view := self._view(row)) is not None)
            after = rows[-1].path
        return found, after

    def _view(self, path_row: PathRow) -> RepositoryView | None:
        reader = self._readers.get(path_row.group)
        if reader is None:
            return None
        row = reader.repository(path_row.repository_id)
        if row is None or row.deleted:
            return None
        cached = self._views.get(row.repository_id)
        if cached is not None and cached.row == row and cached.path == path_row.path:
            return cached
        tables = self._tables[path_row.group]
        known = None if cached is None else cached.stored
        found: RepositorySnapshot | tuple[RepositoryRow, list[PackRow], StoredTable] | None
        found = tables.brought_up_to_date(row.repository_id, known)
        if found is None:
            try:
                found = reader.snapshot(row.repository_id)
            except NotFound:
                return None  # deleted since the row was read
        view = RepositoryView(
            path_row,
            found,
            self._layouts[path_row.group],
            self._pack_cache,
            self._peeled,
            tables,
            self._hidden,
        )
        self._views.put(view)
        self.on_new_view(view)
        return view


class _ViewCache:
    """The newest picture of each recently read repository, bounded by refs and packs in total."""

    def __init__(self, cost_max: int) -> None:
        self._cost_max = cost_max
        self._cost = 0
        self._views: collections.OrderedDict[str, RepositoryView] = collections.OrderedDict()
        self._lock = threading.Lock()

    def get(self, repository_id: str) -> RepositoryView | None:
        with self._lock:
            view = self._views.get(repository_id)
            if view is not None:
                self._views.move_to_end(repository_id)
            return view

    def put(self, view: RepositoryView) -> None:
        with self._lock:
            replaced = self._views.pop(view.repository_id, None)
            if replaced is not None:
                self._cost -= _cost(replaced)
            self._views[view.repository_id] = view
            self._cost += _cost(view)
            while self._cost > self._cost_max and len(self._views) > 1:
                _id, oldest = self._views.popitem(last=False)
                self._cost -= _cost(oldest)


def _cost(view: RepositoryView) -> int:
    return 100 + len(view.refs) + len(view.pack_rows)


def empty_refs_view(object_format: ObjectFormat) -> RefsView:
    """What a repository that does not exist yet advertises to its first push."""
    return RefsView(head=None, detached_head=None, refs=(), object_format=object_format)
