"""Which replicas and nodes may no longer speak, as the configurations of this node's groups say.

Everyone with a certificate of the cluster is heard, whether or not a configuration has it yet
(Ongaro's dissertation, 4.1: configuration decides who is counted). The exception is a replica that
was removed: its disk may hold votes and acknowledgements that no longer count. Owns that rule; must
not know certificates or connections.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

from quorepo.internal.v1 import log_pb2

__all__ = ["Roster", "node_of_replica"]


def node_of_replica(replica_id: str) -> str:
    """The node's name in `<node>@<disk id>`; empty when it is no replica id."""
    node, at, disk = replica_id.partition("@")
    return node if at and disk else ""


class Roster:
    """Answers from the newest configurations; a group that lags behind can only be too lenient."""

    def __init__(self, configurations: Callable[[], Iterable[log_pb2.Configuration]]) -> None:
        """`configurations()` gives one per group of this node."""
        self._configurations = configurations

    def replica_problem(self, replica_id: str) -> str:
        """Why a replica must not take part in Raft; empty when it may."""
        configurations = list(self._configurations())
        if replica_id in _members(configurations) or replica_id not in _removed(configurations):
            return ""
        return (
            f"replica {replica_id!r} was removed from this cluster and never comes back; empty its "
            "data directory to bring the node back as a new replica"
        )

    def node_problem(self, node: str) -> str:
        """Why a node must not be given anything that is stored here; empty when it may."""
        configurations = list(self._configurations())
        known = {node_of_replica(replica_id) for replica_id in _members(configurations)}
        removed = {node_of_replica(replica_id) for replica_id in _removed(configurations)}
        if node in known or node not in removed:
            return ""
        return f"node {node!r} was removed from this cluster"


def _members(configurations: Iterable[log_pb2.Configuration]) -> set[str]:
    return {r.replica_id for c in configurations for r in c.replicas}


def _removed(configurations: Iterable[log_pb2.Configuration]) -> set[str]:
    return {replica_id for c in configurations for replica_id in c.removed_replica_ids}
