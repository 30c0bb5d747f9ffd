"""Re-reads every pack that the state names against its SHA-256 digests, slowly and for ever, and
puts a good copy of another node in the place of a damaged one.

Owns the record of the running and of the last pass. A damaged file ends in groups/<group>/damaged/
for whoever wants to know what the disk did; it stays in its place until a good copy is here, since
most of it may be readable. Files that are gone are the matter of pack_repair.py, which is asked to
look at the end of a pass. Reads and hashes on threads; must not hold up the event loop.
"""

from __future__ import annotations

import asyncio
import contextlib
import hashlib
import logging
import os
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from quorepo.cluster.gate import pack_header
from quorepo.cluster.metrics import ClusterMetrics
from quorepo.cluster.pack_repair import PackRepair
from quorepo.cluster.peer.clients import PeerAddress
from quorepo.cluster.peer.held import HeldPacks
from quorepo.cluster.peer.packs import PackExchange
from quorepo.cluster.raft.host import RaftHost
from quorepo.cluster.snapshot.pace import Pace
from quorepo.cluster.state.pack_table import PackPlace, live_packs
from quorepo.cluster.state.reader import StateReader
from quorepo.internal.v1 import core_pb2
from quorepo.storage.errors import QuorepoError
from quorepo.storage.failpoints import failpoint
from quorepo.storage.layout import GroupLayout, fsync_dir, write_durably
from quorepo.storage.logs import fields

__all__ = ["Scrubber"]

log = logging.getLogger(__name__)

_READ_BYTES = 4 * 1024 * 1024
_FAULTS_MAX = 1000  # in a report
_HEALED = ".healed.tmp"
_HEALING = "healing"  # in damaged/: a pack is known to be damaged and was not healed yet


class Scrubber:
    """Lives in the core's event loop."""

    def __init__(
        self,
        *,
        node: str,
        host: RaftHost,
        layouts: Mapping[int, GroupLayout],
        held: HeldPacks,
        packs: PackExchange,
        repair: PackRepair,
        sources: Callable[[int, str], Sequence[PeerAddress]],
        interval_s: float,
        bytes_per_s: int,
        metrics: ClusterMetrics,
    ) -> None:
        """A pass begins `interval_s` after the last one, 0: only when asked for; `bytes_per_s` 0
        is as fast as it goes."""
        self._host = host
        self._layouts = dict(layouts)
        self._readers = {group: StateReader(layout) for group, layout in layouts.items()}
        self._held = held
        self._packs = packs
        self._repair = repair
        self._sources = sources
        self._interval_s = interval_s
        self._pace = Pace(bytes_per_s)
        self._metrics = metrics
        self._asked = asyncio.Event()
        self._report = core_pb2.CoreNodeVerification(node=node)

    async def verify(self, request: core_pb2.CoreVerifyRequest) -> core_pb2.CoreNodeVerification:
        """How far the pass is; with `start` one begins unless one is running. The caller's own
        copy: what it adds must not come back with the next question."""
        if request.start and not self._report.running:
            self._begin()
            self._asked.set()
        answer = core_pb2.CoreNodeVerification()
        answer.CopyFrom(self._report)
        return answer

    async def run(self) -> None:
        """Runs for ever."""
        if await self._in_thread(self._was_interrupted):
            self._asked.set()
        try:
            while True:
                with contextlib.suppress(TimeoutError):
                    await asyncio.wait_for(self._asked.wait(), self._interval_s or None)
                self._asked.clear()
                if not self._report.running:
                    self._begin()
                await self._pass()
        finally:
            for reader in self._readers.values():
                reader.close()

    def _was_interrupted(self) -> bool:
        """Whether a process died while it healed, or could not: the damage is still there."""
        return any((layout.damaged / _HEALING).exists() for layout in self._layouts.values())

    # ---- one pass

    def _begin(self) -> None:
        last = self._report
        self._report = core_pb2.CoreNodeVerification(
            node=last.node, running=True, passes=last.passes, finished_ms=last.finished_ms
        )

    async def _pass(self) -> None:
        report = self._report
        work: list[tuple[int, PackPlace]] = []
        for group in sorted(self._layouts):
            try:
                places = await self._in_thread(self._places, group)
            except QuorepoError as error:
                log.info("packs not verified", extra=fields(group=group, error=str(error)))
                continue
            work += [(group, place) for place in places]
        report.packs_total = len(work)
        report.bytes_total = sum(p.pack_bytes + p.index_bytes for _, p in work)
        for group, place in work:
            await self._check(group, place, report)
            report.packs_checked += 1
            report.bytes_checked += place.pack_bytes + place.index_bytes
        for group in self._layouts:
            await self._repair.look(group)
        for fault in report.faults:
            if fault.kind == "missing":
                layout = self._layouts[fault.group]
                paths = layout.pack_paths(fault.repository_id, fault.digest)
                fault.healed = all(path.exists() for path in paths)
        unhealed = {fault.group for fault in report.faults if not fault.healed}
        for group, layout in self._layouts.items():
            if group not in unhealed:
                await self._packs.write_file(_unmark, layout)
        left = sum(not fault.healed for fault in report.faults)
        self._metrics.scrub_faults_left.set(left)
        self._metrics.scrub_finished.set(time.time())
        report.passes += 1
        report.finished_ms = time.time_ns() // 1_000_000
        report.running = False
        level = logging.WARNING if report.faults else logging.INFO
        log.log(
            level,
            "packs verified",
            extra=fields(packs=len(work), faults=len(report.faults), left=left),
        )

    async def _check(
        self, group: int, place: PackPlace, report: core_pb2.CoreNodeVerification
    ) -> None:
        paths = self._layouts[group].pack_paths(place.repository_id, place.digest)
        kind = ""
        for path, digest in zip(paths, (place.digest, place.index_digest), strict=True):
            found = await self._digest(path)
            if found != digest:
                kind = "missing" if found is None else "damaged"
                break
        self._metrics.scrubbed_bytes.inc(place.pack_bytes + place.index_bytes)
        if not kind or place not in await self._in_thread(self._places, group):
            return  # it is right, or a transaction took it out meanwhile
        self._metrics.scrub_faults.labels(group, kind).inc()
        log.error(
            f"a stored pack is {kind}",
            extra=fields(group=group, repository=place.repository_id, pack=place.digest.hex()),
        )
        fault = core_pb2.CorePackFault(
            group=group, repository_id=place.repository_id, digest=place.digest, kind=kind
        )
        if kind == "damaged":
            try:
                await self._packs.write_file(_mark, self._layouts[group])
                await self._heal(group, place)
                fault.healed = True
            except (QuorepoError, OSError) as error:
                fault.problem = str(error)
                log.error(
                    "a damaged pack was not healed",
                    extra=fields(group=group, pack=place.digest.hex(), error=str(error)),
                )
        if len(report.faults) < _FAULTS_MAX:
            report.faults.append(fault)

    async def _digest(self, path: Path) -> bytes | None:
        """The SHA-256 of a file; None when it is not there, empty when it can't be read."""
        hasher = hashlib.sha256()
        try:
            descriptor = await self._in_thread(os.open, path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError:
            return None
        except OSError as error:
            log.error("a pack can't be read", extra=fields(path=str(path), error=str(error)))
            return b""
        try:
            # What is cached says nothing about the disk.
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
            while block := await self._in_thread(_hash_block, descriptor, hasher):
                await self._pace(block)
        except OSError as error:
            log.error("a pack can't be read", extra=fields(path=str(path), error=str(error)))
            return b""
        finally:
            os.close(descriptor)
        return hasher.digest()

    # ---- a good copy in the place of a damaged one

    async def _heal(self, group: int, place: PackPlace) -> None:
        """Raises Unavailable, StorageFull, FatalError; the damaged files stay in place then."""
        # This node no longer vouches for it: on the Raft thread, so that no entry that names the
        # pack is written to the journal in between.
        await asyncio.wrap_future(
            self._host.run_on(group, lambda _: self._held.discard(group, place.digest))
        )
        header = pack_header(group, place)
        await self._packs.fetch(self._sources(group, ""), header, pace=self._pace)
        await self._packs.write_file(_replace, self._layouts[group], place)
        log.warning(
            "a damaged pack was replaced by another node's copy",
            extra=fields(group=group, repository=place.repository_id, pack=place.digest.hex()),
        )

    def _places(self, group: int) -> list[PackPlace]:
        return self._readers[group].read(lambda connection: list(live_packs(connection)))

    async def _in_thread(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(None, function, *arguments)


def _hash_block(descriptor: int, hasher: Any) -> int:
    block = os.read(descriptor, _READ_BYTES)
    hasher.update(block)
    return len(block)


def _mark(layout: GroupLayout) -> None:
    layout.damaged.mkdir(mode=0o700, exist_ok=True)
    fsync_dir(layout.state_dir)
    write_durably(layout.damaged / _HEALING, b"")


def _unmark(layout: GroupLayout) -> None:
    (layout.damaged / _HEALING).unlink(missing_ok=True)


def _replace(layout: GroupLayout, place: PackPlace) -> None:
    """Puts the staged copy in place; what was there is kept in damaged/. Readers see either."""
    targets = layout.pack_paths(place.repository_id, place.digest)
    for source, target in zip(layout.quarantine_paths(place.digest), targets, strict=True):
        aside = layout.damaged / f"{place.repository_id}-{target.name}"
        aside.unlink(missing_ok=True)
        with contextlib.suppress(FileNotFoundError):  # removed by a transaction meanwhile
            os.link(target, aside)
            # A link and a rename: another repository of the group may need the staged copy too.
            healed = target.with_name(target.name + _HEALED)
            healed.unlink(missing_ok=True)
            os.link(source, healed)
            failpoint("scrub.heal.before_rename")
            os.rename(healed, target)
    # Whoever has the damaged files open looks at this time (storage/packs.py).
    os.utime(layout.damaged)
    fsync_dir(layout.damaged)
    failpoint("scrub.heal.before_dir_fsync")
    if targets[0].parent.is_dir():
        fsync_dir(targets[0].parent)
