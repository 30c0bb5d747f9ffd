"""ClusterService of quorepo.v1: the core's picture of the groups, and which nodes answer right now.

The core asks the other cores how far they are; whether a node serves clients is asked of the
others' edges here, through the same health check that a load balancer uses. All under one short
deadline: a node that does not answer is shown as not reachable.
"""

from __future__ import annotations

import asyncio

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from quorepo import __version__
from quorepo.cluster.state.reader import StateReader
from quorepo.cluster.state.rows import NodeRow
from quorepo.internal.v1 import core_pb2
from quorepo.rpc.config import NodeConfig
from quorepo.rpc.context import EdgeContext
from quorepo.rpc.grpc.conversions import time_left_s
from quorepo.rpc.grpc.errors import Context
from quorepo.rpc.grpc.interceptor import caller
from quorepo.rpc.reads import GROUP_DIRECTORY
from quorepo.rpc.tls import trusted_by
from quorepo.storage.errors import Unavailable
from quorepo.v1 import cluster_pb2, cluster_pb2_grpc

__all__ = ["ClusterService"]

_CORE_TIMEOUT_S = 4.0  # above what the core gives its peers
_PEER_TIMEOUT_S = 1.5
_JOIN_TOKEN_TIMEOUT_S = 15.0


class ClusterService(cluster_pb2_grpc.ClusterServiceServicer):
    """See protos/quorepo/v1/cluster.proto."""

    def __init__(self, edge: EdgeContext) -> None:
        self._edge = edge
        tls = edge.config.grpc.tls
        self._peers = _Peers(None if tls is None else _credentials(edge.config))
        self._directory = StateReader(edge.reads.layout(GROUP_DIRECTORY))

    async def close(self) -> None:
        """Closes the channels to the other nodes."""
        await self._peers.close()
        self._directory.close()

    async def GetStatus(
        self, request: cluster_pb2.GetStatusRequest, context: Context
    ) -> cluster_pb2.GetStatusResponse:
        """The cluster as this node sees it. Works without a leader, and without a core."""
        self._edge.authenticator.authorize(caller(), "read")
        own_name = self._edge.config.node.name
        rows = [] if request.this_node_only else await self._registered()
        others = [row for row in rows if row.name != own_name]
        timeout_s = time_left_s(context, _PEER_TIMEOUT_S)
        status, health = await asyncio.gather(
            self._core_status(context),
            asyncio.gather(*(self._peers.health(row.grpc_address, timeout_s) for row in others)),
        )
        nodes = [self._own_node(status)]
        nodes.extend(map(_node_message, others, health))
        return cluster_pb2.GetStatusResponse(
            cluster_id=status.cluster_id,
            answered_by=own_name,
            nodes=sorted(nodes, key=lambda node: node.name),
            groups=[_group_message(group) for group in status.groups],
        )

    async def CreateJoinToken(
        self, request: cluster_pb2.CreateJoinTokenRequest, context: Context
    ) -> cluster_pb2.CreateJoinTokenResponse:
        """The token is in the answer and nowhere else."""
        identity = caller()
        self._edge.authenticator.authorize(identity, "admin")
        made = await self._edge.core.create_join_token(
            request.node,
            float(request.lifetime_s),
            identity.user,
            time_left_s(context, _JOIN_TOKEN_TIMEOUT_S),
        )
        answer = cluster_pb2.CreateJoinTokenResponse(
            token=made.token,
            ca_fingerprint=made.ca_fingerprint,
            peer_addresses=made.peer_addresses,
        )
        answer.expire_time.FromMilliseconds(made.expires_ms)
        return answer

    async def _core_status(self, context: Context) -> core_pb2.CoreStatus:
        try:
            return await self._edge.core.status(time_left_s(context, _CORE_TIMEOUT_S))
        except Unavailable:  # the edge lives, its core does not: that is worth showing
            return core_pb2.CoreStatus(phase="core is not running")

    def _own_node(self, status: core_pb2.CoreStatus) -> cluster_pb2.NodeStatus:
        config = self._edge.config
        return cluster_pb2.NodeStatus(
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

    async def _registered(self) -> list[NodeRow]:
        try:
            return await self._edge.reads.in_thread(self._directory.nodes)
        except Unavailable:  # no state yet: the node is forming its cluster
            return []


def _node_message(row: NodeRow, ready: bool | None) -> cluster_pb2.NodeStatus:
    """Another node as it registered itself; `ready` is None when it does not answer."""
    phase = "" if ready is None else ("serving" if ready else "not serving")
    return cluster_pb2.NodeStatus(
        name=row.name,
        replica_id=row.replica_id,
        reachable=ready is not None,
        ready=bool(ready),
        phase=phase,
        http_url=row.http_url,
        grpc_address=row.grpc_address,
        metrics_url=row.metrics_url,
        peer_address=row.peer_address,
        version=row.version,
    )


def _group_message(status: core_pb2.CoreGroupStatus) -> cluster_pb2.GroupStatus:
    return cluster_pb2.GroupStatus(
        group=status.group,
        leader=status.leader,
        term=status.term,
        commit_index=status.commit_index,
        replicas=[
            cluster_pb2.ReplicaStatus(
                node=replica.node,
                replica_id=replica.replica_id,
                role=replica.role,
                applied_index=replica.applied_index,
                match_index=replica.match_index,
                votes=replica.role != "learner",
                connected=replica.connected,
            )
            for replica in sorted(status.replicas, key=lambda replica: replica.node)
        ],
    )


def _credentials(config: NodeConfig) -> grpc.ChannelCredentials:
    assert config.grpc.tls is not None
    tls = config.cluster.tls
    return grpc.ssl_channel_credentials(
        trusted_by(config.grpc.tls, tls),
        # Shown where a listener asks for one (client_ca_file).
        private_key=tls.key_file.read_bytes(),
        certificate_chain=tls.certificate_file.read_bytes(),
    )


class _Peers:
    """Channels to the other nodes' public API, kept open by address."""

    def __init__(self, credentials: grpc.ChannelCredentials | None) -> None:
        """With `credentials` over TLS: what one node of a cluster has, all have."""
        self._credentials = credentials
        self._channels: dict[str, grpc.aio.Channel] = {}

    async def health(self, address: str, timeout_s: float) -> bool | None:
        """Does the node serve? None when it does not answer in time."""
        if address not in self._channels:
            options = [
                ("grpc.enable_http_proxy", 0),
                ("grpc.initial_reconnect_backoff_ms", 50),
                ("grpc.min_reconnect_backoff_ms", 50),
                ("grpc.max_reconnect_backoff_ms", 500),
            ]
            self._channels[address] = (
                grpc.aio.insecure_channel(address, options=options)
                if self._credentials is None
                else grpc.aio.secure_channel(address, self._credentials, options=options)
            )
        stub = health_pb2_grpc.HealthStub(self._channels[address])
        try:
            answer = await stub.Check(
                health_pb2.HealthCheckRequest(service="readiness"), timeout=timeout_s
            )
        except grpc.aio.AioRpcError:
            return None
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

    async def close(self) -> None:
        for channel in self._channels.values():
            await channel.close()
