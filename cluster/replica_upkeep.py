"""What keeps this node's replicas within bounds: log compaction, snapshots both ways, the sweep of
files that nobody needs, the watch over the disk. Puts these parts together; each is its own module.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Coroutine, Sequence
from typing import Any

from quorepo.cluster.apply import ApplyThread
from quorepo.cluster.compaction import Compactor
from quorepo.cluster.disk_watch import DiskWatch
from quorepo.cluster.divergence import fingerprints
from quorepo.cluster.metrics import ClusterMetrics
from quorepo.cluster.opening import NodeDisk
from quorepo.cluster.pack_repair import PackRepair
from quorepo.cluster.peer.clients import PeerAddress, PeerClients
from quorepo.cluster.peer.packs import PackExchange
from quorepo.cluster.raft.host import RaftHost
from quorepo.cluster.raft.interface import RaftConfig
from quorepo.cluster.scrub import Scrubber
from quorepo.cluster.snapshot.receiver import SnapshotReceiver
from quorepo.cluster.snapshot.source import SnapshotSource
from quorepo.cluster.sweep import Retention, Sweeper
from quorepo.internal.v1 import core_pb2, log_pb2
from quorepo.storage.errors import Unavailable

__all__ = ["ReplicaUpkeep"]

_REPAIR_INTERVAL_S = 60.0  # between two looks for packs that the disk lost


class ReplicaUpkeep:
    """Made before the engine, which is told of `receiver`; works once the engine is there."""

    def __init__(
        self,
        *,
        replica_id: str,
        founding: log_pb2.Configuration,
        disk: NodeDisk,
        apply: ApplyThread,
        packs: PackExchange,
        clients: PeerClients,
        raft: RaftConfig,
        retention: Retention,
        metrics: ClusterMetrics,
        on_fatal: Callable[[BaseException], None],
        pack_sources: Callable[[int, str], Sequence[PeerAddress]],
    ) -> None:
        # Whoever uses a store for longer than a moment holds its group's lock: a snapshot closes
        # the store and puts another in its place.
        layouts, stores, space = disk.layouts, disk.stores, disk.space
        self._locks = {group: asyncio.Lock() for group in layouts}
        self._layouts, self._stores, self._space = layouts, stores, space
        self._held, self._raft = disk.held, raft
        self._retention, self._metrics = retention, metrics
        self._node, self._packs, self._sources = replica_id.partition("@")[0], packs, pack_sources
        self._scrub: Scrubber | None = None
        self.compare_now = asyncio.Event()  # a pass was asked for: the states are compared too
        self.source = SnapshotSource(
            stores=stores,
            layouts=layouts,
            locks=self._locks,
            founding=founding,
            space=space,
            metrics=metrics,
        )
        self.receiver = SnapshotReceiver(
            replica_id=replica_id,
            layouts=layouts,
            stores=stores,
            locks=self._locks,
            apply=apply,
            packs=packs,
            held=disk.held,
            clients=clients,
            space=space,
            config=raft,
            metrics=metrics,
            on_fatal=on_fatal,
        )

        self._repair = PackRepair(
            layouts=layouts,
            held=disk.held,
            packs=packs,
            sources=pack_sources,
            bytes_per_s=raft.snapshot_bytes_per_s,
            interval_s=_REPAIR_INTERVAL_S,
            metrics=metrics,
        )

    def describe(self, group: core_pb2.CoreGroupStatus) -> None:
        """Adds to a status what this node's replica lacks, and how it catches up."""
        self._repair.describe(group)
        progress = self.receiver.progress(group.group)
        if progress is not None:
            group.catch_up.CopyFrom(progress)
        if group.group in self._packs.lacks_room:
            group.catch_up.doing = "disk full"

    def work(self, host: RaftHost) -> dict[str, Coroutine[Any, Any, None]]:
        """What runs for as long as the node does, by name."""
        self.receiver.host = host
        compactor = Compactor(
            host=host,
            stores=self._stores,
            locks=self._locks,
            pinned_index=self.source.pinned_index,
            config=self._raft,
            metrics=self._metrics,
        )
        watch = DiskWatch(
            space=self._space, host=host, groups=sorted(self._layouts), metrics=self._metrics
        )
        sweeper = Sweeper(
            host=host,
            layouts=self._layouts,
            stores=self._stores,
            locks=self._locks,
            held=self._held,
            wanted=self.receiver.wanted,
            retention=self._retention,
            metrics=self._metrics,
        )
        self._scrub = Scrubber(
            node=self._node,
            host=host,
            layouts=self._layouts,
            held=self._held,
            packs=self._packs,
            repair=self._repair,
            sources=self._sources,
            interval_s=self._retention.scrub_interval_s,
            bytes_per_s=self._retention.scrub_bytes_per_s,
            metrics=self._metrics,
        )
        return {
            "scrub": self._scrub.run(),
            "compact": compactor.run(),
            "watch the disk": watch.run(),
            "sweep": sweeper.run(),
            "repair packs": self._repair.run(),
        }

    async def verify(self, request: core_pb2.CoreVerifyRequest) -> core_pb2.CoreNodeVerification:
        """Starts a pass over the packs, or tells of it. Raises Unavailable."""
        if self._scrub is None:
            raise Unavailable("this node is only starting")
        answer = await self._scrub.verify(request)
        if request.fingerprints:
            answer.fingerprints.extend(await asyncio.to_thread(fingerprints, self._layouts))
        if request.start:  # only now: what this node finds may end it, and it has to answer first
            self.compare_now.set()
        return answer

    def installs_snapshot(self) -> bool:
        """Whether a group of this node is being brought up by a snapshot."""
        return any(self.receiver.active(group) for group in self._layouts)

    async def close(self) -> None:
        """Ends what is on its way; before the engine stops."""
        await self.receiver.close()
