"""The apply thread: committed entries go into SQLite, packs out of quarantine, results back to the
engine.

One thread per node applies all groups, so that neither SQLite nor the fsync of a promoted pack ever
holds up heartbeats. It only runs `state.machine` through `StateStore`; what an entry means is
decided there. Any exception here ends the process without advancing (architecture, invariant 3).
"""

from __future__ import annotations

import collections
import contextlib
import functools
import logging
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

from quorepo.cluster.peer.held import HeldPacks
from quorepo.cluster.raft.interface import Entry
from quorepo.cluster.state.store import StateStore
from quorepo.internal.v1 import log_pb2
from quorepo.storage.layout import (
    GroupLayout,
    ensure_repository,
    promote_pack,
    repository_packs,
    retire_pack,
    retire_repository,
    store_pack,
    sync_packs,
)
from quorepo.storage.logs import fields
from quorepo.storage.objectformat import ObjectFormat

__all__ = ["AppliedCallback", "ApplyThread", "DiskActions"]

log = logging.getLogger(__name__)

# Entries per SQLite transaction: enough to share its cost, few enough to answer early.
_BATCH_ENTRIES_MAX = 256

AppliedCallback = Callable[[int, int, Mapping[int, Any]], None]


class ApplyObserver(Protocol):
    """Where apply reports what it took."""

    def applied(self, group: int, entries: int, seconds: float) -> None: ...

    def pack_stored(self, size_bytes: int) -> None: ...


class DiskActions:
    """What apply does to files: promotes or stores packs before the commit, retires repositories
    after."""

    def __init__(
        self,
        layout: GroupLayout,
        on_stored: Callable[[log_pb2.PackAddition], None] = lambda pack: None,
    ) -> None:
        """`on_stored(pack)` hears of each pack that came in its entry, once it can be read."""
        self._layout = layout
        self._on_stored = on_stored
        self._ensured: set[str] = set()  # repositories whose folder is there, durably
        self._lock = threading.Lock()
        self._unsynced: dict[tuple[str, bytes], None] = {}
        self._syncing = threading.Lock()

    def promote(self, repository_id: str, digest: bytes, object_format: ObjectFormat) -> None:
        self._ensure(repository_id, object_format)
        promote_pack(self._layout, repository_id, digest)

    def store(
        self, repository_id: str, pack: log_pb2.PackAddition, object_format: ObjectFormat
    ) -> None:
        self._ensure(repository_id, object_format)
        store_pack(self._layout, repository_id, pack.digest, pack.pack, pack.index)
        with self._lock:
            self._unsynced[repository_id, pack.digest] = None
        self._on_stored(pack)

    def sync(self) -> None:
        """Makes durable what was stored until now. Any thread; blocks.

        Raises OSError; the process must end then: the pages may be lost.
        """
        with self._syncing:
            with self._lock:
                packs, self._unsynced = list(self._unsynced), {}
            if packs:
                sync_packs(self._layout, packs)

    def forget(self) -> None:
        """Somebody else moves folders of repositories: nothing is known of them any more."""
        self._ensured.clear()

    def _ensure(self, repository_id: str, object_format: ObjectFormat) -> None:
        if repository_id not in self._ensured:
            ensure_repository(self._layout, repository_id, object_format)
            self._ensured.add(repository_id)

    def retire(self, repository_id: str) -> None:
        self._ensured.discard(repository_id)
        retire_repository(self._layout, repository_id)

    def retire_pack(self, repository_id: str, digest: bytes) -> None:
        retire_pack(self._layout, repository_id, digest)

    def retire_removed(self, removed: Mapping[bytes, Sequence[str]]) -> None:
        """Retires the packs that a repository has no more and still lie in its folder."""
        if not removed:
            return
        for repository_id, digest in repository_packs(self._layout):
            if repository_id in removed.get(digest, ()):
                self.retire_pack(repository_id, digest)


class ApplyThread:
    """Implements `raft.interface.ApplySink`.

    A group can be paused while its state is exchanged for a snapshot; the others go on.
    """

    def __init__(
        self,
        stores: Mapping[int, StateStore],
        layouts: Mapping[int, GroupLayout],
        on_fatal: Callable[[BaseException], None],
        observer: ApplyObserver,
        held: HeldPacks,
    ) -> None:
        self._stores = stores  # whoever exchanges one pauses the group meanwhile
        self._held = held
        self._actions = {
            group: DiskActions(layout, functools.partial(self._stored, group))
            for group, layout in layouts.items()
        }
        self._on_fatal = on_fatal
        self._observer = observer
        self._on_applied: AppliedCallback | None = None
        self._queues: dict[int, collections.deque[Entry]] = {
            group: collections.deque() for group in self._stores
        }
        self._wake = threading.Condition()
        self._paused: set[int] = set()
        self._in_hand: int | None = None  # the group whose batch is being applied
        self._stopping = False
        self._thread = threading.Thread(target=self._run, name="apply", daemon=True)

    def start(self, on_applied: AppliedCallback) -> None:
        """Starts the thread; `on_applied(group, up_to_index, results)` is called on it."""
        self._on_applied = on_applied
        for group in self._stores:
            self._tidy(group)
        self._thread.start()

    def _tidy(self, group: int) -> None:
        """Moves away what the state has no more: a crash between a commit and the move of files
        ends here, and so does a snapshot that skipped the deletion."""
        store = self._stores[group]
        store.sync_files = self._actions[group].sync
        self._actions[group].forget()
        for repository_id in store.tombstones():
            self._actions[group].retire(repository_id)
        self._actions[group].retire_removed(store.removed_packs())

    def stop(self) -> None:
        """Finishes the batch in hand; what is queued is applied after a restart."""
        with self._wake:
            self._stopping = True
            self._wake.notify()
        if self._thread.is_alive() and threading.current_thread() is not self._thread:
            self._thread.join()

    def pause(self, group: int) -> None:
        """Forgets what is queued of the group; returns once nothing of it is being applied."""
        with self._wake:
            self._paused.add(group)
            self._queues[group].clear()
            while self._in_hand == group:
                self._wake.wait()
        # The log, which holds these packs too, goes with the old state.
        self._actions[group].sync()

    def _stored(self, group: int, pack: log_pb2.PackAddition) -> None:
        self._held.add(group, pack.digest)
        self._observer.pack_stored(pack.pack_bytes + pack.index_bytes)

    def resume(self, group: int) -> None:
        """Goes on with the store that the group has now."""
        self._tidy(group)
        with self._wake:
            self._paused.discard(group)
            self._wake.notify_all()

    def submit(self, group: int, entries: Sequence[Entry]) -> None:
        with self._wake:
            self._queues[group].extend(entries)
            self._wake.notify_all()

    def backlog(self, group: int) -> int:
        return len(self._queues[group])

    def _run(self) -> None:
        try:
            while True:
                with self._wake:
                    while not self._stopping and not self._has_work():
                        self._wake.wait()
                    if self._stopping:
                        return
                for group in self._queues:
                    self._apply_some(group)
        except BaseException as error:
            log.critical("apply failed", exc_info=True, extra=fields(error=str(error)))
            self._on_fatal(error)

    def _has_work(self) -> bool:
        return any(q and group not in self._paused for group, q in self._queues.items())

    def _apply_some(self, group: int) -> None:
        queue = self._queues[group]
        with self._wake:
            if not queue or group in self._paused:
                return
            batch = [queue.popleft() for _ in range(min(len(queue), _BATCH_ENTRIES_MAX))]
            self._in_hand = group
        try:
            self._apply(group, batch)
        finally:
            with self._wake:
                self._in_hand = None
                self._wake.notify_all()

    def _apply(self, group: int, batch: Sequence[Entry]) -> None:
        started = time.perf_counter()
        results = self._stores[group].apply_batch(batch, self._actions[group])
        self._observer.applied(group, len(batch), time.perf_counter() - started)
        assert self._on_applied is not None
        by_index = {entry.index: result for entry, result in zip(batch, results, strict=True)}
        with contextlib.suppress(RuntimeError):  # the engine was stopped meanwhile
            self._on_applied(group, batch[-1].index, by_index)


def result_or_none(value: Any) -> log_pb2.Result | None:
    """The sink's result as the typed message it is."""
    return value if isinstance(value, log_pb2.Result) else None
