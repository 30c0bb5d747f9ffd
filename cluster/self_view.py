"""What a node says of itself: its phase, its replicas' state, its metrics.

Owns the words. Must not know who asks, nor change anything.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from prometheus_client import CollectorRegistry, generate_latest

from quorepo.cluster.formation import Formation
from quorepo.cluster.levels import Levels
from quorepo.cluster.membership import Membership
from quorepo.cluster.metrics import ClusterMetrics
from quorepo.cluster.raft.host import RaftHost
from quorepo.cluster.replica_upkeep import ReplicaUpkeep
from quorepo.cluster.wrong_disk import WrongDisk
from quorepo.internal.v1 import core_pb2

__all__ = ["SelfView"]


@dataclasses.dataclass(slots=True, kw_only=True)
class SelfView:
    """One node's picture of itself; the parts that come with the groups are None before."""

    groups: Sequence[int]
    version: str
    registry: CollectorRegistry
    metrics: ClusterMetrics
    levels: Levels
    formation: Formation
    wrong_disk: WrongDisk | None = None
    host: RaftHost | None = None
    membership: Membership | None = None
    upkeep: ReplicaUpkeep | None = None
    registered: bool = False

    def describe(self) -> core_pb2.CoreStatus:
        """Everything but the groups."""
        identity = self.formation.identity
        wrong = self.wrong_disk
        return core_pb2.CoreStatus(
            node=identity.node,
            replica_id=identity.replica_id,
            cluster_id=identity.cluster_id,
            phase=self._phase(),
            draining=self._is_draining(),
            version=self.version,
            level=self.levels.own,
            cluster_level=self.levels.cluster,
            problem="" if wrong is None else wrong.text(identity.node),
        )

    def _phase(self) -> str:
        if self.wrong_disk is not None:
            return "wrong disk"
        if self.host is None:
            return self.formation.phase
        if self._is_removed():
            return "removed"
        if self._is_draining():
            leads = any(self.host.status(group).role == "leader" for group in self.groups)
            return "draining" if leads else "drained"
        if self.upkeep is not None and self.upkeep.installs_snapshot():
            return "installing a snapshot"
        return "serving" if self.registered and self._votes_everywhere() else "catching-up"

    def describe_replica(self, group: core_pb2.CoreGroupStatus) -> None:
        """Adds what this node alone knows of its replica."""
        if self.membership is not None:
            group.waits_for = self.membership.waits_for(group.group)
        if self.upkeep is not None:
            self.upkeep.describe(group)

    def metrics_text(self) -> bytes:
        """Prometheus text of this process."""
        if self.host is not None:
            for group in self.groups:
                self.metrics.observe_group(self.host.status(group))
        return generate_latest(self.registry)

    def _is_draining(self) -> bool:
        if self.membership is None:
            return False
        return self.formation.identity.node in self.membership.intentions.draining

    def _is_removed(self) -> bool:
        assert self.host is not None
        me = self.formation.identity.replica_id
        return any(
            me in self.host.status(group).configuration.removed_replica_ids for group in self.groups
        )

    def _votes_everywhere(self) -> bool:
        assert self.host is not None
        me = self.formation.identity.replica_id
        return all(
            any(
                r.replica_id == me and r.votes
                for r in self.host.status(group).configuration.replicas
            )
            for group in self.groups
        )
