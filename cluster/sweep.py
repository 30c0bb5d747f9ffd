"""Removes files that nobody needs any more, after their retention.

    upload-*.tmp, *.tmp    uploads and half-received packs whose process died
    quarantine/<digest>    packs whose transaction never came, was refused, or was applied twice;
                           halves of packs too
    retired/               deleted repositories and packs that consolidation or a prune removed

Never a pack that the pack table names, that an entry in this node's journal names (whoever replays
or sends that entry needs it: architecture, invariant 2), or that a snapshot on its way waits for.
What the journal names is read from the journal, in pieces, on the Raft thread; the last look at it
and the removal from `HeldPacks` are one errand there, so that no entry comes between. A file that
is staged again meanwhile is another file, and stays.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import functools
import logging
import os
import shutil
import sqlite3
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path

from quorepo.cluster.gate import pack_needs
from quorepo.cluster.metrics import ClusterMetrics
from quorepo.cluster.peer.held import HeldPacks
from quorepo.cluster.raft.entries import is_command, payload_of
from quorepo.cluster.raft.group import RaftGroup
from quorepo.cluster.raft.host import RaftHost
from quorepo.cluster.raft.replica_log import LogRecord
from quorepo.cluster.state.commands import decode_command
from quorepo.cluster.state.pack_table import (
    disposable_repositories,
    kept_removed_packs,
    live_packs,
)
from quorepo.cluster.state.store import StateStore
from quorepo.storage.layout import GroupLayout, fsync_dir, repository_packs, retired_packs
from quorepo.storage.logs import fields

__all__ = ["Retention", "Sweeper", "sweep_uploads"]

log = logging.getLogger(__name__)

_INTERVAL_S = 600.0
_UPLOAD_AGE_S_MIN = 3600.0
_READ_BYTES = 256 * 1024  # of the log, per errand on the Raft thread
_SWEPT = ".swept.tmp"


@dataclasses.dataclass(frozen=True, slots=True)
class Retention:
    """Whether files go that nothing refers to, and how long they are kept before, seconds."""

    sweep: bool
    retired_s: float
    quarantine_s: float
    interval_s: float = _INTERVAL_S
    scrub_interval_s: float = 0.0  # between two passes over all packs; 0: only when asked for
    scrub_bytes_per_s: int = 0  # 0: as fast as it goes


@dataclasses.dataclass(frozen=True, slots=True)
class _Found:
    """Files that go together, or not at all."""

    kind: str
    digests: frozenset[bytes]
    files: tuple[tuple[Path, int], ...] = ()  # with their inodes; the index first
    folder: Path | None = None


class Sweeper:
    """Sweeps all groups of a node; runs in the core's event loop, works on threads."""

    def __init__(
        self,
        *,
        host: RaftHost,
        layouts: Mapping[int, GroupLayout],
        stores: Mapping[int, StateStore],
        locks: Mapping[int, asyncio.Lock],
        held: HeldPacks,
        wanted: Callable[[int], frozenset[bytes]],
        retention: Retention,
        metrics: ClusterMetrics,
        clock: Callable[[], float] = time.time,
    ) -> None:
        """`wanted(group)`: packs that a snapshot on its way waits for."""
        self._host = host
        self._layouts = layouts
        self._stores = stores
        self._locks = locks
        self._held = held
        self._wanted = wanted
        self._retention = retention
        self._metrics = metrics
        self._clock = clock

    async def run(self) -> None:
        """Runs for ever."""
        while True:
            await asyncio.sleep(self._retention.interval_s)
            for group in sorted(self._layouts):
                await self.sweep(group)

    async def sweep(self, group: int) -> int:
        """Removes what may go in one group; returns how many files and folders."""
        loop = asyncio.get_running_loop()
        if not self._retention.sweep:
            layout = self._layouts[group]
            return await loop.run_in_executor(None, sweep_uploads, layout, group, _UPLOAD_AGE_S_MIN)
        async with self._locks[group]:
            extent = await asyncio.wrap_future(self._host.extent(group))
            found = await loop.run_in_executor(None, self._find, group, extent.first_index)
            if not found:
                return 0
            named, scanned = await self._named_by_log(group)
            kept = named | self._wanted(group)
            found = [item for item in found if not item.digests & kept]
            layout = self._layouts[group]
            elsewhere = await loop.run_in_executor(None, repository_packs, layout)
            in_repositories = {digest for _, digest in elsewhere}
            found = await asyncio.wrap_future(
                self._host.run_on(
                    group, lambda raft: self._let_go(raft, found, in_repositories, scanned)
                )
            )
            removed: int = await loop.run_in_executor(None, self._remove, layout, found)
        if removed:
            log.info(
                "files removed after their retention", extra=fields(group=group, files=removed)
            )
        return removed

    # ---- what there is; on a thread

    def _find(self, group: int, first_index: int) -> list[_Found]:
        layout, store = self._layouts[group], self._stores[group]
        sweep_uploads(layout, group, _UPLOAD_AGE_S_MIN)
        for half in list(layout.retired.rglob(f"*{_SWEPT}")):  # of a sweep that did not end
            shutil.rmtree(half) if half.is_dir() else half.unlink()
        staged = _staged(layout.quarantine, self._clock() - self._retention.quarantine_s)
        horizon_ms = store.log_time_ms - int(1000 * self._retention.retired_s)

        def look(connection: sqlite3.Connection) -> tuple[set[bytes], set[bytes], set[str]]:
            return (
                {pack.digest for pack in live_packs(connection, horizon_ms)},
                kept_removed_packs(connection, horizon_ms, first_index),
                disposable_repositories(connection, horizon_ms, first_index),
            )

        needed, kept, gone = store.read("looking for what may be swept in", look)
        in_repositories = {digest for _, digest in repository_packs(layout)} if staged else set()
        found = [
            _Found("quarantine", frozenset({digest}), tuple(files))
            for digest, files in sorted(staged.items())
            # One that is in force and in its place is here a second time.
            if digest not in needed or digest in in_repositories
        ]
        for digest in sorted(retired_packs(layout) - needed - kept):
            pack, index = layout.retired_pack_paths(digest)
            found.append(_Found("retired pack", frozenset({digest}), _with_inodes(index, pack)))
        for folder in sorted(layout.retired.glob("*.git")):
            if folder.name.removesuffix(".git") in gone:
                digests = frozenset(_digests_in(folder / "objects" / "pack"))
                found.append(_Found("retired repository", digests, folder=folder))
        return found

    # ---- what the journal names; on the Raft thread, in pieces

    async def _named_by_log(self, group: int) -> tuple[set[bytes], int]:
        """The digests that entries name, and up to which index they were read."""
        named: set[bytes] = set()
        scanned = 0
        loop = asyncio.get_running_loop()
        while True:
            read = functools.partial(_read_log, scanned=scanned, bytes_max=_READ_BYTES)
            records = await asyncio.wrap_future(self._host.run_on(group, read))
            if not records:
                return named, scanned
            named |= await loop.run_in_executor(None, _named_in, records)
            scanned = records[-1][1]

    def _let_go(
        self, raft: RaftGroup, found: list[_Found], elsewhere: set[bytes], scanned: int
    ) -> list[_Found]:
        """The last look at the log, and the end of the packs in `HeldPacks`: one errand, so that no
        entry that names one comes between."""
        records = _read_log(raft, scanned, _READ_BYTES)
        if records and records[-1][1] < raft.log.last_index:
            return []  # too much is new; the next sweep tries again
        named = _named_in(records) | self._wanted(raft.group)
        found = [item for item in found if not item.digests & named]
        for item in found:
            for digest in item.digests - elsewhere:
                self._held.discard(raft.group, digest)
        return found

    # ---- the end; on a thread

    def _remove(self, layout: GroupLayout, found: Iterable[_Found]) -> int:
        removed = 0
        for item in found:
            count = _remove_folder(item.folder) if item.folder else _remove_files(item.files)
            removed += count
            self._metrics.swept_files.labels(item.kind).inc(count)
        for folder in (layout.quarantine, layout.retired, layout.retired_pack_folder):
            if folder.is_dir():
                fsync_dir(folder)
        return removed


def _read_log(raft: RaftGroup, scanned: int, bytes_max: int) -> list[LogRecord]:
    start = max(scanned + 1, raft.log.first_index)
    return raft.log.read(start, raft.log.last_index + 1, bytes_max)


def _named_in(records: Sequence[LogRecord]) -> set[bytes]:
    """The packs that entries add."""
    return {
        need.digest
        for data, index, _ in records
        if index > 1 and is_command(data)
        for need in pack_needs(decode_command(payload_of(data)))
    }


def _staged(folder: Path, horizon: float) -> dict[bytes, list[tuple[Path, int]]]:
    """Staged packs, and halves of packs, none of whose files changed since `horizon`."""
    found: dict[bytes, list[tuple[Path, int]]] = {}
    young: set[bytes] = set()
    for path in sorted(folder.iterdir()):  # .idx before .pack
        digest = _digest_of(path.stem)
        if digest is None or path.suffix not in (".pack", ".idx"):
            continue
        with contextlib.suppress(FileNotFoundError):  # promoted meanwhile
            status = path.stat()
            if max(status.st_mtime, status.st_ctime) > horizon:
                young.add(digest)
            found.setdefault(digest, []).append((path, status.st_ino))
    return {digest: files for digest, files in found.items() if digest not in young}


def _digests_in(folder: Path) -> set[bytes]:
    if not folder.is_dir():
        return set()
    found = {_digest_of(path.stem.removeprefix("pack-")) for path in folder.iterdir()}
    return {digest for digest in found if digest is not None}


def _digest_of(text: str) -> bytes | None:
    with contextlib.suppress(ValueError):
        digest = bytes.fromhex(text)
        return digest if len(digest) == 32 else None
    return None


def _with_inodes(*paths: Path) -> tuple[tuple[Path, int], ...]:
    found = []
    for path in paths:
        with contextlib.suppress(FileNotFoundError):
            found.append((path, path.stat().st_ino))
    return tuple(found)


def _remove_files(files: Iterable[tuple[Path, int]]) -> int:
    """Removes files that are still the ones that were found."""
    removed = 0
    for path, inode in files:
        aside = path.with_name(path.name + _SWEPT)
        with contextlib.suppress(FileNotFoundError):
            if path.stat().st_ino != inode:
                continue  # it was staged again since it was found
            os.rename(path, aside)
            if aside.stat().st_ino != inode:
                os.rename(aside, path)  # it was staged again in this moment
                continue
            aside.unlink()
            removed += 1
    return removed


def _remove_folder(folder: Path) -> int:
    aside = folder.with_name(folder.name + _SWEPT)
    with contextlib.suppress(FileNotFoundError):
        os.rename(folder, aside)
        shutil.rmtree(aside)
        return 1
    return 0


def sweep_uploads(layout: GroupLayout, group: int, age_s_min: float) -> int:
    """Removes temporary files of quarantine older than `age_s_min` seconds; returns how many."""
    removed = 0
    horizon = time.time() - age_s_min
    for path in sorted(layout.quarantine.glob("*.tmp")):
        try:
            if path.stat().st_mtime <= horizon:
                path.unlink()
                removed += 1
        except FileNotFoundError:
            continue  # its owner was quicker
    if removed:
        log.info("abandoned uploads removed", extra=fields(group=group, files=removed))
    return removed
