"""Whoever changes the members: learners come, are promoted, leave; a disk is lost and replaced.

Owns: which changes are asked for. A change that the engine refuses is nothing wrong; one that it
takes and should not is found by the rules.
"""

from __future__ import annotations

from collections.abc import Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING

from support.raft_cluster import voter

from quorepo.cluster.raft.interface import Proposal
from quorepo.internal.v1 import log_pb2
from simulation.node import Node

if TYPE_CHECKING:
    from simulation.cluster import Cluster

__all__ = ["Operator"]

_REPLICAS_MAX = 5


class Operator:
    """Changes the members of a cluster now and then."""

    def __init__(self, cluster: Cluster) -> None:
        self.cluster = cluster
        self.rng = cluster.rng
        self._numbers = 0
        self._open = 0  # changes that have no answer yet
        self._lost: str | None = None  # the one replica whose disk is gone

    def act(self) -> None:
        """Asks for one change, or two at once, usually on the leader."""
        cluster, rng = self.cluster, self.rng
        group = rng.choice(cluster.groups)
        node = cluster.leader(group) if rng.random() < 0.9 else cluster.some_node()
        if node is None or cluster.healed:
            return
        for _ in range(rng.choice((1, 1, 1, 2))):
            self._change(node, group)

    def _change(self, node: Node, group: int) -> None:
        rng = self.rng
        if not node.life:
            return
        current = node.raft(group).history.current
        replicas = list(current.replicas)
        learners = [replica for replica in replicas if not replica.votes]
        voters = [replica for replica in replicas if replica.votes]
        kind = rng.choice(
            ("add", "promote", "promote", "promote", "remove", "demote", "wipe", "again")
        )
        if kind == "add" and len(replicas) < _REPLICAS_MAX:
            self._propose(node, group, current, [*replicas, voter(self._new(), votes=False)])
        elif kind == "promote" and learners:
            self._vote(node, group, current, rng.choice(learners).replica_id, votes=True)
        elif kind == "demote" and len(voters) > 2 and self._lost is None:
            self._vote(node, group, current, rng.choice(voters).replica_id, votes=False)
        elif kind == "remove":
            self._remove(node, group, current)
        elif kind == "wipe":
            self._wipe(voters)
        elif kind == "again":  # an id a second time, or one that was removed: has to be denied
            again = rng.choice([r.replica_id for r in replicas] + [*current.removed_replica_ids])
            self._propose(node, group, current, [*replicas, voter(again, votes=rng.random() < 0.5)])

    def _new(self) -> str:
        """A node with an empty disk."""
        self._numbers += 1
        replica_id = f"m{self._numbers}@1"
        self.cluster.add_node(replica_id)
        return replica_id

    def _vote(
        self, node: Node, group: int, current: log_pb2.Configuration, chosen: str, *, votes: bool
    ) -> None:
        replicas = [
            voter(chosen, votes=votes) if replica.replica_id == chosen else replica
            for replica in current.replicas
        ]
        self._propose(node, group, current, replicas)

    def _remove(self, node: Node, group: int, current: log_pb2.Configuration) -> None:
        """Whose disk is lost first, and nobody else while it is counted."""
        replicas = list(current.replicas)
        gone = next((r for r in replicas if r.replica_id == self._lost), None)
        if gone is None and self._lost is not None:
            self._lost = None
        if gone is None:
            if len([replica for replica in replicas if replica.votes]) <= 2:
                return
            gone = self.rng.choice(replicas)
        left = [replica for replica in replicas if replica is not gone]
        self._propose(node, group, current, left, gone.replica_id)

    def _wipe(self, voters: Sequence[log_pb2.Replica]) -> None:
        """A disk is lost for ever. Only one at a time, and only if the others are a majority."""
        cluster = self.cluster
        if self._lost is not None or len(voters) < 3 or len(cluster.groups) > 1:
            return
        if any(cluster.nodes[replica.replica_id].wiped for replica in voters):
            return
        if self._open or not self._at_rest(cluster.groups[0]):
            return  # a change that comes into force later might count on this disk
        node = cluster.nodes[self.rng.choice(voters).replica_id]
        self._lost = node.replica_id
        if node.life:
            node.end(power=True)
        node.wiped = True
        # What it had acknowledged it did store: the rules go on counting it.
        cluster.count("fault disk lost for ever")

    def _at_rest(self, group: int) -> bool:
        """Every node runs and has the same configuration, which is committed."""
        cluster = self.cluster
        nodes = [node for node in cluster.nodes.values() if not node.wiped]
        if any(not node.life for node in nodes):
            return False
        indexes = {node.raft(group).history.current_index for node in nodes}
        return len(indexes) == 1 and all(
            node.raft(group).commit_index >= max(indexes) for node in nodes
        )

    def _propose(
        self,
        node: Node,
        group: int,
        current: log_pb2.Configuration,
        replicas: Sequence[log_pb2.Replica],
        *removed: str,
    ) -> None:
        if node.host is None:
            return
        configuration = log_pb2.Configuration(
            replicas=replicas, removed_replica_ids=[*current.removed_replica_ids, *removed]
        )
        future = node.host.change_configuration(group, configuration, 3.0)
        self._open += 1
        future.add_done_callback(self._answered)
        node.wake()

    def _answered(self, future: Future[Proposal]) -> None:
        self._open -= 1
        self.cluster.count(f"change {future.result().outcome.value}")
