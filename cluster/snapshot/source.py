"""Copies of this node's states for replicas that need a snapshot.

Owns: making a copy (SQLite's own, so that its bytes may be hashed and sent), keeping it while
somebody pulls it, and for how long. As long as a copy is kept, this node's log is not cut behind it
(`pinned_index`), so whoever installs it finds the rest of the log here. A copy is kept in
groups/<group>/snapshot.out and does not survive the process.
"""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import logging
import shutil
import time
import uuid
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path

from quorepo.cluster.metrics import ClusterMetrics
from quorepo.cluster.snapshot.staging import FORMAT_VERSION
from quorepo.cluster.state.database import connect_reader
from quorepo.cluster.state.machine import Position
from quorepo.cluster.state.pack_table import live_packs
from quorepo.cluster.state.store import StateStore
from quorepo.internal.v1 import log_pb2, peer_pb2
from quorepo.storage.disk_space import DiskReserve
from quorepo.storage.errors import FatalError, NotFound, Unavailable
from quorepo.storage.layout import GroupLayout
from quorepo.storage.logs import fields

__all__ = ["SnapshotSource", "remove_copies"]

log = logging.getLogger(__name__)

KEPT_S = 60.0  # after the last use; a puller says every quarter of this that it is still there
_KEPT_S_MAX = 6 * 3600.0  # a log is not kept longer than this for pullers that never finish
_COPIES_MAX = 2  # per group
_CHUNK_BYTES = 256 * 1024
_HASH_BYTES = 1024 * 1024
_BUSY_TIMEOUT_S = 5.0


@dataclasses.dataclass(slots=True)
class _Copy:
    path: Path
    manifest: peer_pb2.SnapshotManifest
    made_at: float
    used_at: float
    readers: int = 0


class SnapshotSource:
    """Serves snapshots of all groups; lives in the core's event loop."""

    def __init__(
        self,
        *,
        stores: Mapping[int, StateStore],
        layouts: Mapping[int, GroupLayout],
        locks: Mapping[int, asyncio.Lock],
        founding: log_pb2.Configuration,
        space: DiskReserve,
        metrics: ClusterMetrics,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """`locks` keep a group's store in place; `founding` stands for no configuration yet."""
        self._stores = stores
        self._layouts = layouts
        self._locks = locks
        self._founding = founding
        self._space = space
        self._metrics = metrics
        self._monotonic = monotonic
        self._copies: dict[int, list[_Copy]] = {group: [] for group in layouts}

    def pinned_index(self, group: int) -> int | None:
        """The oldest entry behind which this node's log is still needed by a puller."""
        self._expire(group)
        return min((copy.manifest.index for copy in self._copies[group]), default=None)

    async def open(self, request: peer_pb2.OpenSnapshotRequest) -> peer_pb2.SnapshotManifest:
        """A snapshot at or behind `index_min`. Raises NotFound, StorageFull, Unavailable."""
        group = request.group
        if group not in self._stores:
            raise NotFound(f"group {group} is not on this node")
        async with self._locks[group]:
            self._expire(group)
            for copy in self._copies[group]:
                if copy.manifest.index >= request.index_min:
                    copy.used_at = self._monotonic()
                    return copy.manifest
            store = self._stores[group]
            if store.applied_index < request.index_min:
                raise Unavailable(
                    f"the state of group {group} is at {store.applied_index} here, "
                    f"{request.index_min} is asked for"
                )
            if len(self._copies[group]) >= _COPIES_MAX:
                raise Unavailable(f"{_COPIES_MAX} snapshots of group {group} are being read")
            copy = await self._make(group, store)
        self._copies[group].append(copy)
        return copy.manifest

    async def _make(self, group: int, store: StateStore) -> _Copy:
        started = time.perf_counter()
        loop = asyncio.get_running_loop()
        path, manifest = await loop.run_in_executor(None, self._make_files, group, store)
        self._metrics.snapshot_made(group, manifest.database_bytes, time.perf_counter() - started)
        log.info(
            "snapshot made",
            extra=fields(group=group, index=manifest.index, bytes=manifest.database_bytes),
        )
        now = self._monotonic()
        return _Copy(path, manifest, now, now)

    def _make_files(self, group: int, store: StateStore) -> tuple[Path, peer_pb2.SnapshotManifest]:
        folder = _folder(self._layouts[group])
        folder.mkdir(mode=0o700, exist_ok=True)
        self._space.check_new(store.path.stat().st_size)
        path = folder / f"{uuid.uuid4().hex}.sqlite3"
        try:
            position = store.copy_to(path)
            return path, self._describe(path, position)
        except FatalError as error:
            # It only read the state; whatever is wrong with this disk, nothing was lost by it.
            path.unlink(missing_ok=True)
            raise Unavailable(f"the snapshot could not be made: {error}") from error

    def _describe(self, path: Path, position: Position) -> peer_pb2.SnapshotManifest:
        digest = hashlib.sha256()
        with open(path, "rb") as file:
            while block := file.read(_HASH_BYTES):
                digest.update(block)
        connection = connect_reader(path, _BUSY_TIMEOUT_S)
        try:
            sizes = {p.digest: p.pack_bytes + p.index_bytes for p in live_packs(connection)}
        finally:
            connection.close()
        if position.configuration is None:
            configuration = self._founding
        else:
            configuration = log_pb2.Configuration.FromString(position.configuration)
        return peer_pb2.SnapshotManifest(
            format_version=FORMAT_VERSION,
            group=position.group,
            index=position.applied_index,
            term=position.applied_term,
            log_time_ms=position.log_time_ms,
            configuration=configuration,
            database_digest=digest.digest(),
            database_bytes=path.stat().st_size,
            pack_count=len(sizes),
            pack_bytes=sum(sizes.values()),
        )

    async def read(
        self,
        request: peer_pb2.ReadSnapshotRequest,
        write: Callable[[peer_pb2.ReadSnapshotResponse], Awaitable[None]],
    ) -> None:
        """Sends a copy's database from an offset on; nothing behind its end, which tells that the
        puller is still there. Raises NotFound."""
        copy = next(
            (
                copy
                for copy in self._copies.get(request.group, ())
                if copy.manifest.database_digest == request.database_digest
            ),
            None,
        )
        if copy is None:
            raise NotFound("this snapshot is not kept here any more")
        loop = asyncio.get_running_loop()
        copy.readers += 1
        try:
            offset = request.offset
            while offset < copy.manifest.database_bytes:
                chunk = await loop.run_in_executor(None, _read_at, copy.path, offset)
                await write(peer_pb2.ReadSnapshotResponse(chunk=chunk))
                offset += len(chunk)
                self._metrics.snapshot_bytes.labels(request.group, "sent").inc(len(chunk))
        finally:
            copy.readers -= 1
            copy.used_at = self._monotonic()

    def _expire(self, group: int) -> None:
        """Removes copies that nobody has used for a while."""
        now = self._monotonic()
        for copy in list(self._copies[group]):
            idle = not copy.readers and now >= copy.used_at + KEPT_S
            if idle or now >= copy.made_at + _KEPT_S_MAX:
                self._copies[group].remove(copy)
                copy.path.unlink(missing_ok=True)


def remove_copies(layout: GroupLayout) -> None:
    """Removes what an earlier process kept; for the start of a node."""
    shutil.rmtree(_folder(layout), ignore_errors=True)


def _folder(layout: GroupLayout) -> Path:
    return layout.state_dir / "snapshot.out"


def _read_at(path: Path, offset: int) -> bytes:
    with open(path, "rb") as file:
        file.seek(offset)
        return file.read(_CHUNK_BYTES)
