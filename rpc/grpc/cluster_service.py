"""ClusterService of quorepo.v1: what this node knows of the cluster, completed by what the others
say.

Each node knows its own core. The whole picture is asked of all registered nodes at once, each
with the credential of the caller, under one short deadline; one that does not answer is shown as
not reachable.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from collections.abc import Iterable, Mapping

import grpc
import grpc.aio

from quorepo import __version__
from quorepo.cluster.state.reader import StateReader
from quorepo.cluster.state.rows import NodeRow
from quorepo.internal.v1 import core_pb2
from quorepo.rpc.context import EdgeContext
from quorepo.rpc.grpc.conversions import time_left_s
from quorepo.rpc.grpc.errors import Context
from quorepo.rpc.grpc.interceptor import caller
from quorepo.rpc.reads import GROUP_DIRECTORY
from quorepo.storage.errors import Unavailable
from quorepo.v1 import cluster_pb2, cluster_pb2_grpc

__all__ = ["ClusterService", "merge"]

_ASK_TIMEOUT_S = 2.0


class ClusterService(cluster_pb2_grpc.ClusterServiceServicer):
    """See protos/quorepo/v1/cluster.proto."""

    def __init__(self, edge: EdgeContext) -> None:
        self._edge = edge
        self._peers = _Peers()
        self._directory = StateReader(edge.reads.layout(GROUP_DIRECTORY))

    async def close(self) -> None:
        """Closes the channels to the other nodes."""
        await self._peers.close()
        self._directory.close()

    async def GetStatus(
        self, request: cluster_pb2.GetStatusRequest, context: Context
    ) -> cluster_pb2.GetStatusResponse:
        """The cluster, or this node alone. Works without a leader."""
        self._edge.authenticator.authorize(caller(), "read")
        own, rows = await asyncio.gather(self._own_status(context), self._registered())
        if request.this_node_only:
            return own
        others = [row for row in rows if row.name != own.answered_by]
        timeout_s = time_left_s(context, _ASK_TIMEOUT_S)
        authorization = dict(context.invocation_metadata() or ()).get("authorization", "")
        answers = await asyncio.gather(
            *(self._peers.ask(row.grpc_address, str(authorization), timeout_s) for row in others)
        )
        views = {row.name: answer for row, answer in zip(others, answers, strict=True) if answer}
        return merge(own, rows, views)

    async def _own_status(self, context: Context) -> cluster_pb2.GetStatusResponse:
        config = self._edge.config
        try:
            status = await self._edge.core.status(time_left_s(context, _ASK_TIMEOUT_S))
        except Unavailable:  # the edge lives, its core does not: that is worth showing
            status = core_pb2.CoreStatus(node=config.node.name, phase="core is not running")
        node = cluster_pb2.NodeStatus(
            name=config.node.name,
            replica_id=status.replica_id,
            reachable=True,
            ready=status.ready,
            phase=status.phase,
            http_url=config.advertise.http_url,
            grpc_address=config.advertise.grpc_address,
            metrics_url=config.advertise.metrics_url,
            peer_address=config.advertise.peer_address,
            version=__version__,
        )
        return cluster_pb2.GetStatusResponse(
            cluster_id=status.cluster_id,
            answered_by=config.node.name,
            nodes=[node],
            groups=[_group_message(group, config.node.name) for group in status.groups],
        )

    async def _registered(self) -> list[NodeRow]:
        try:
            return await self._edge.reads.in_thread(self._directory.nodes)
        except Unavailable:  # no state yet: the node is forming its cluster
            return []


def merge(
    own: cluster_pb2.GetStatusResponse,
    rows: Iterable[NodeRow],
    views: Mapping[str, cluster_pb2.GetStatusResponse],
) -> cluster_pb2.GetStatusResponse:
    """One picture out of what every node says of itself.

    A group's leader is taken from the highest term that anybody reports, its replicas from the
    leader's own view if there is one, and what a replica has applied from that replica itself.

    Args:
        own: the view of the node that was asked.
        rows: the registered nodes.
        views: the views of the other nodes that answered, by name.
    """
    everyone = {own.answered_by: own, **views}
    nodes = {name: view.nodes[0] for name, view in everyone.items() if view.nodes}
    for row in rows:
        if row.name not in nodes:
            nodes[row.name] = cluster_pb2.NodeStatus(
                name=row.name,
                replica_id=row.replica_id,
                http_url=row.http_url,
                grpc_address=row.grpc_address,
                metrics_url=row.metrics_url,
                peer_address=row.peer_address,
                version=row.version,
            )
    ids = sorted({group.group for view in everyone.values() for group in view.groups})
    return cluster_pb2.GetStatusResponse(
        cluster_id=next((v.cluster_id for v in everyone.values() if v.cluster_id), ""),
        answered_by=own.answered_by,
        nodes=[nodes[name] for name in sorted(nodes)],
        groups=[_merge_group(group, everyone) for group in ids],
    )


def _merge_group(
    group: int, everyone: Mapping[str, cluster_pb2.GetStatusResponse]
) -> cluster_pb2.GroupStatus:
    views = {
        name: found
        for name, view in everyone.items()
        for found in view.groups
        if found.group == group
    }
    # A view without a leader tells less than one of the same term with a leader.
    best = max(views.values(), key=lambda view: (view.term, bool(view.leader), view.commit_index))
    best = views.get(best.leader, best)
    merged = cluster_pb2.GroupStatus()
    merged.CopyFrom(best)
    merged.commit_index = max(view.commit_index for view in views.values())
    for replica in merged.replicas:
        if replica.node in views:
            replica.applied_index = next(
                (r.applied_index for r in views[replica.node].replicas if r.node == replica.node),
                replica.applied_index,
            )
    return merged


def _group_message(status: core_pb2.CoreGroupStatus, own_node: str) -> cluster_pb2.GroupStatus:
    replicas = [
        cluster_pb2.ReplicaStatus(
            node=replica.node,
            replica_id=replica.replica_id,
            role=replica.role,
            # Only a leader hears of the others; of itself a node always knows.
            applied_index=(
                status.applied_index if replica.node == own_node else replica.applied_index
            ),
            match_index=replica.match_index,
            votes=replica.role != "learner",
            connected=replica.connected,
        )
        for replica in sorted(status.replicas, key=lambda replica: replica.node)
    ]
    return cluster_pb2.GroupStatus(
        group=status.group,
        leader=status.leader,
        term=status.term,
        commit_index=status.commit_index,
        replicas=replicas,
    )


@dataclasses.dataclass
class _Peers:
    """Channels to the public API of the other nodes, kept open by address."""

    channels: dict[str, grpc.aio.Channel] = dataclasses.field(default_factory=dict)

    async def ask(
        self, address: str, authorization: str, timeout_s: float
    ) -> cluster_pb2.GetStatusResponse | None:
        """What a node says of itself; None when it does not answer in time."""
        if address not in self.channels:
            options = [
                ("grpc.initial_reconnect_backoff_ms", 50),
                ("grpc.min_reconnect_backoff_ms", 50),
                ("grpc.max_reconnect_backoff_ms", 500),
            ]
            self.channels[address] = grpc.aio.insecure_channel(address, options=options)
        stub = cluster_pb2_grpc.ClusterServiceStub(self.channels[address])
        request = cluster_pb2.GetStatusRequest(this_node_only=True)
        with contextlib.suppress(grpc.aio.AioRpcError):
            return await stub.GetStatus(
                request, timeout=timeout_s, metadata=(("authorization", authorization),)
            )
        return None

    async def close(self) -> None:
        for channel in self.channels.values():
            await channel.close()
