"""Packs that the state names and this disk lacks: looked for from time to time, fetched from any
node that has them.

By invariant 2 a replica never lacks a pack whose entry it applied; this is for a disk that lost
files. A lost pack is on record (status, metric) until it is back. Owns that record. Whether the
bytes of a present file are right is not looked at here.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from quorepo.cluster.gate import pack_header
from quorepo.cluster.metrics import ClusterMetrics
from quorepo.cluster.peer.clients import PeerAddress
from quorepo.cluster.peer.held import HeldPacks
from quorepo.cluster.peer.packs import PackExchange
from quorepo.cluster.snapshot.pace import Pace
from quorepo.cluster.state.pack_table import PackPlace, live_packs
from quorepo.cluster.state.reader import StateReader
from quorepo.internal.v1 import core_pb2
from quorepo.storage.errors import QuorepoError
from quorepo.storage.failpoints import failpoint
from quorepo.storage.layout import GroupLayout, ensure_repository, promote_pack, retire_pack
from quorepo.storage.logs import fields

__all__ = ["PackRepair"]

log = logging.getLogger(__name__)

_NAMED_MAX = 1000  # digests in a status


@dataclasses.dataclass(slots=True)
class _Known:
    total: int = 0
    missing: list[PackPlace] = dataclasses.field(default_factory=list)


class PackRepair:
    """Lives in the core's event loop."""

    def __init__(
        self,
        *,
        layouts: Mapping[int, GroupLayout],
        held: HeldPacks,
        packs: PackExchange,
        sources: Callable[[int, str], Sequence[PeerAddress]],
        bytes_per_s: int,
        interval_s: float,
        metrics: ClusterMetrics,
    ) -> None:
        """`sources(group, "")` gives the other replicas that store packs."""
        self._layouts = dict(layouts)
        self._readers = {group: StateReader(layout) for group, layout in layouts.items()}
        self._held = held
        self._packs = packs
        self._sources = sources
        self._pace = Pace(bytes_per_s)
        self._interval_s = interval_s
        self._metrics = metrics
        self._known: dict[int, _Known] = {}

    def describe(self, group: core_pb2.CoreGroupStatus) -> None:
        """Adds what is missing to a group's status."""
        known = self._known.get(group.group, _Known())
        group.packs_total = known.total
        group.packs_missing = len(known.missing)
        group.missing_bytes = sum(p.pack_bytes + p.index_bytes for p in known.missing)
        group.missing_digests.extend(p.digest for p in known.missing[:_NAMED_MAX])

    async def run(self) -> None:
        """Runs for ever."""
        try:
            while True:
                for group in self._layouts:
                    await self.look(group)
                await asyncio.sleep(self._interval_s)
        finally:
            for reader in self._readers.values():
                reader.close()

    async def look(self, group: int) -> None:
        """Finds what is missing in a group, and fetches it."""
        try:
            known = await self._in_thread(self._compare, group)
        except QuorepoError as error:
            log.info("packs not looked for", extra=fields(group=group, error=str(error)))
            return
        self._known[group] = known
        self._metrics.packs_missing.labels(group).set(len(known.missing))
        if not known.missing:
            return
        log.warning("packs are missing", extra=fields(group=group, packs=len(known.missing)))
        for place in list(known.missing):
            if await self._restore(group, place):
                known.missing.remove(place)
                self._metrics.packs_missing.labels(group).set(len(known.missing))

    def _compare(self, group: int) -> _Known:
        layout = self._layouts[group]
        places = self._readers[group].read(lambda connection: list(live_packs(connection)))
        missing = [place for place in places if not _there(layout, place)]
        if missing:
            # A pack that a transaction took out meanwhile is not missing.
            still = set(self._readers[group].read(lambda connection: list(live_packs(connection))))
            missing = [place for place in missing if place in still]
        return _Known(len(places), missing)

    async def _restore(self, group: int, place: PackPlace) -> bool:
        layout = self._layouts[group]
        header = pack_header(group, place)
        outcome = "failed"
        try:
            if not await self._packs.write_file(_put_in_place, layout, place):
                self._held.discard(group, place.digest)
                await self._packs.fetch(self._sources(group, ""), header, pace=self._pace)
                await self._packs.write_file(_put_in_place, layout, place)
            outcome = "restored"
            await self._in_thread(self._take_back_if_gone, group, place)
        except QuorepoError as error:
            log.warning(
                "a missing pack was not restored",
                extra=fields(group=group, pack=place.digest.hex(), error=str(error)),
            )
        finally:
            self._metrics.packs_repaired.labels(group, outcome).inc()
        if outcome == "restored":
            log.info("a missing pack is back", extra=fields(group=group, pack=place.digest.hex()))
        return outcome == "restored"

    def _take_back_if_gone(self, group: int, place: PackPlace) -> None:
        """A transaction may have removed the pack while it was on its way."""
        still = self._readers[group].read(
            lambda connection: connection.execute(
                "SELECT 1 FROM packs WHERE repository_id = ? AND digest = ?",
                (place.repository_id, place.digest),
            ).fetchone()
        )
        if still is None:
            retire_pack(self._layouts[group], place.repository_id, place.digest)

    async def _in_thread(self, function: Callable[..., Any], *arguments: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(None, function, *arguments)


def _there(layout: GroupLayout, place: PackPlace) -> bool:
    return all(path.exists() for path in layout.pack_paths(place.repository_id, place.digest))


def _put_in_place(layout: GroupLayout, place: PackPlace) -> bool:
    """From quarantine, or from another repository of the group; False when it is nowhere."""
    failpoint("repair.before_promote")
    ensure_repository(layout, place.repository_id, place.object_format)
    try:
        promote_pack(layout, place.repository_id, place.digest)
    except FileNotFoundError:
        return False
    return True
