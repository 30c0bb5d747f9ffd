"""Watches the room on this node's disk: tells of it, and hands over what it leads when it is low.

The refusals themselves are where something new begins: the engine (proposals, entries), the pack
exchange, snapshots, the edge's uploads; all of them ask the same `DiskReserve`.
"""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Sequence

from quorepo.cluster.metrics import ClusterMetrics
from quorepo.cluster.raft.host import RaftHost
from quorepo.storage.disk_space import RESERVE_KEY, DiskReserve
from quorepo.storage.logs import fields

__all__ = ["DiskWatch"]

log = logging.getLogger(__name__)

_LOOK_INTERVAL_S = 0.5
_HAND_OVER_INTERVAL_S = 5.0  # between attempts: where to is known from the followers' answers


class DiskWatch:
    """Runs in the core's event loop."""

    def __init__(
        self,
        *,
        space: DiskReserve,
        host: RaftHost,
        groups: Sequence[int],
        metrics: ClusterMetrics,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        self._space = space
        self._host = host
        self._groups = tuple(groups)
        self._metrics = metrics
        self._monotonic = monotonic
        self._told = (False, False)
        self._handed_over_at = dict.fromkeys(self._groups, float("-inf"))

    async def run(self) -> None:
        """Runs for ever."""
        while True:
            await self.look()
            await asyncio.sleep(_LOOK_INTERVAL_S)

    async def look(self) -> None:
        """One look at the disk."""
        low, full, free_bytes = self._space.low(), self._space.full(), self._space.free_bytes()
        self._metrics.disk_free_bytes.set(free_bytes)
        self._metrics.disk_low.set(low)
        self._metrics.disk_full.set(full)
        if (low, full) != self._told:
            self._told = (low, full)
            self._tell(low, full, free_bytes)
        if low:
            for group in self._groups:
                await self._hand_over(group)

    def _tell(self, low: bool, full: bool, free_bytes: int) -> None:
        details = fields(free_bytes=free_bytes, reserve_bytes=self._space.reserve_bytes)
        if full:
            log.error(
                f"the disk is full: nothing is written until there is more than half of "
                f"{RESERVE_KEY}; reads go on",
                extra=details,
            )
        elif low:
            log.warning(
                f"the disk is below {RESERVE_KEY}: no pushes are taken here; reads go on",
                extra=details,
            )
        else:
            log.info("the disk has room again: writes go on", extra=details)

    async def _hand_over(self, group: int) -> None:
        status = self._host.status(group)
        now = self._monotonic()
        if status.role != "leader" or now < self._handed_over_at[group] + _HAND_OVER_INTERVAL_S:
            return
        able = [
            replica
            for replica in status.replicas
            if replica.votes and replica.connected and not replica.disk_low
            and replica.replica_id != status.leader
        ]  # fmt: skip
        if not able:
            return
        self._handed_over_at[group] = now
        target = max(able, key=lambda replica: replica.match_index)
        done = await asyncio.wrap_future(self._host.transfer_leadership(group, target.replica_id))
        log.warning(
            "leadership handed over, the disk is low",
            extra=fields(group=group, to=target.node, done=done),
        )
