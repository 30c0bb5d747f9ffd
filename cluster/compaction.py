"""Cuts the logs of this node's groups, as far as the states hold them durably.

Each replica cuts its own log by its own size, leader and followers alike. Owns when; how much is
the engine's (raft/snapshots.py). The state is synced on a thread of the pool, the cut itself is a
short errand of the Raft thread.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping

from quorepo.cluster.metrics import ClusterMetrics
from quorepo.cluster.raft.host import RaftHost
from quorepo.cluster.raft.interface import LogExtent, RaftConfig
from quorepo.cluster.state.store import StateStore
from quorepo.storage.logs import fields

__all__ = ["Compactor"]

log = logging.getLogger(__name__)

_LOOK_INTERVAL_S = 1.0


class Compactor:
    """Runs in the core's event loop."""

    def __init__(
        self,
        *,
        host: RaftHost,
        stores: Mapping[int, StateStore],
        locks: Mapping[int, asyncio.Lock],
        pinned_index: Callable[[int], int | None],
        config: RaftConfig,
        metrics: ClusterMetrics,
        interval_s: float = _LOOK_INTERVAL_S,
    ) -> None:
        """`pinned_index(group)` is the oldest entry that somebody else still needs here."""
        self._host = host
        self._stores = stores
        self._locks = locks
        self._pinned_index = pinned_index
        self._config = config
        self._metrics = metrics
        self._interval_s = interval_s

    async def run(self) -> None:
        """Runs for ever."""
        while True:
            await asyncio.sleep(self._interval_s)
            loop = asyncio.get_running_loop()
            for group in sorted(self._stores):
                # Packs that entries brought, so that a sync of the state, which must have them,
                # does not wait for many.
                await loop.run_in_executor(None, self._stores[group].sync_files)
                await self.look(group)

    async def look(self, group: int) -> None:
        """Cuts the group's log if it has grown enough."""
        extent = await asyncio.wrap_future(self._host.extent(group))
        self._metrics.observe_log(group, extent)
        if not self._is_due(extent):
            return
        async with self._locks[group]:
            loop = asyncio.get_running_loop()
            durable = await loop.run_in_executor(None, self._stores[group].sync)
            pinned = self._pinned_index(group)
            first = await asyncio.wrap_future(
                self._host.run_on(group, lambda raft: raft.compact(durable, pinned))
            )
        if first > extent.first_index:
            self._metrics.compactions.labels(group).inc()
            log.info(
                "log cut",
                extra=fields(group=group, first_index=first, entries=first - extent.first_index),
            )

    def _is_due(self, extent: LogExtent) -> bool:
        entries = extent.last_index - extent.first_index + 1
        return (
            entries >= self._config.compaction_entries_min
            or extent.record_bytes >= self._config.compaction_bytes_min
        )
