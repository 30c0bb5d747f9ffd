"""ClusterService of quorepo.v1: the core's picture of the groups, and which nodes answer right now.

The core asks the other cores how far they are; whether a node serves clients is asked of the
others' edges here, through the same health check that a load balancer uses. All under one short
deadline: a node that does not answer is shown as not reachable.
"""

from __future__ import annotations

import asyncio
import contextlib
import time

from quorepo import __version__
from quorepo.cluster.state.machine_membership import HISTORY_ROWS_MAX
from quorepo.cluster.state.members import ChangeRow
from quorepo.cluster.state.reader import StateReader
from quorepo.cluster.state.rows import NodeRow
from quorepo.internal.v1 import core_pb2
from quorepo.rpc.context import EdgeContext
from quorepo.rpc.grpc.conversions import time_left_s
from quorepo.rpc.grpc.errors import Context
from quorepo.rpc.grpc.interceptor import caller
from quorepo.rpc.grpc.member_views import (
    change_message,
    configuration_messages,
    fill_in,
    group_message,
    join_token_message,
    node_message,
    verification_message,
)
from quorepo.rpc.grpc.peer_channels import PeerChannels
from quorepo.rpc.members import Asked, Members
from quorepo.rpc.reads import GROUP_DIRECTORY
from quorepo.storage.errors import InvalidArgument, NotFound, Unavailable
from quorepo.v1 import cluster_pb2, cluster_pb2_grpc

__all__ = ["ClusterService"]

_CORE_TIMEOUT_S = 4.0  # above what the core gives its peers
_PEER_TIMEOUT_S = 1.5
_JOIN_TOKEN_TIMEOUT_S = 15.0
_HISTORY_DEFAULT = 100

_Change = (
    cluster_pb2.AddNodeRequest
    | cluster_pb2.PromoteNodeRequest
    | cluster_pb2.RemoveNodeRequest
    | cluster_pb2.ReplaceNodeRequest
)


class ClusterService(cluster_pb2_grpc.ClusterServiceServicer):
    """See protos/quorepo/v1/cluster.proto."""

    def __init__(self, edge: EdgeContext) -> None:
        self._edge = edge
        self._peers = PeerChannels(edge.config)
        self._members = Members(edge)
        self._directory = StateReader(edge.reads.layout(GROUP_DIRECTORY))

    async def close(self) -> None:
        """Closes the channels to the other nodes."""
        await self._peers.close()
        self._directory.close()
        self._members.close()

    async def GetStatus(
        self, request: cluster_pb2.GetStatusRequest, context: Context
    ) -> cluster_pb2.GetStatusResponse:
        """The cluster as this node sees it. Works without a leader, and without a core."""
        self._edge.authenticator.authorize(caller(), "read")
        return await self._status(context, this_node_only=request.this_node_only)

    async def _status(
        self, context: Context, *, this_node_only: bool
    ) -> cluster_pb2.GetStatusResponse:
        own_name = self._edge.config.node.name
        rows = [] if this_node_only else await self._registered()
        others = [row for row in rows if row.name != own_name]
        timeout_s = time_left_s(context, _PEER_TIMEOUT_S)
        status, health = await asyncio.gather(
            self._core_status(context),
            asyncio.gather(*(self._peers.health(row.grpc_address, timeout_s) for row in others)),
        )
        nodes = [self._own_node(status)]
        nodes.extend(map(node_message, others, health))
        if not this_node_only:
            fill_in(nodes, status, await self._draining())
        return cluster_pb2.GetStatusResponse(
            cluster_id=status.cluster_id,
            answered_by=own_name,
            nodes=sorted(nodes, key=lambda node: node.name),
            groups=[group_message(group) for group in status.groups],
            level=status.cluster_level,
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

    async def ListJoinTokens(
        self, request: cluster_pb2.ListJoinTokensRequest, context: Context
    ) -> cluster_pb2.ListJoinTokensResponse:
        self._edge.authenticator.authorize(caller(), "admin")
        rows = await self._members.join_tokens()
        now_ms = time.time_ns() // 1_000_000
        return cluster_pb2.ListJoinTokensResponse(
            tokens=[join_token_message(row, now_ms) for row in rows]
        )

    async def RevokeJoinToken(
        self, request: cluster_pb2.RevokeJoinTokenRequest, context: Context
    ) -> cluster_pb2.RevokeJoinTokenResponse:
        self._edge.authenticator.authorize(caller(), "admin")
        row = await self._members.revoke(request.id, Asked(caller().user, request.request_id))
        message = join_token_message(row, time.time_ns() // 1_000_000)
        return cluster_pb2.RevokeJoinTokenResponse(token=message)

    # ---- members

    async def ListNodes(
        self, request: cluster_pb2.ListNodesRequest, context: Context
    ) -> cluster_pb2.ListNodesResponse:
        self._edge.authenticator.authorize(caller(), "read")
        status = await self._status(context, this_node_only=False)
        response = cluster_pb2.ListNodesResponse(nodes=status.nodes, level=status.level)
        with contextlib.suppress(Unavailable):  # no state yet
            running = (await self._members.intentions()).running
            if running is not None:
                picture = await self._core_status(context)
                response.running.CopyFrom(change_message(running, picture))
        return response

    async def GetNode(
        self, request: cluster_pb2.GetNodeRequest, context: Context
    ) -> cluster_pb2.GetNodeResponse:
        self._edge.authenticator.authorize(caller(), "read")
        status = await self._status(context, this_node_only=False)
        node = next((node for node in status.nodes if node.name == request.node), None)
        if node is None:
            raise NotFound(f"there is no node {request.node!r}", next_step="quorepo node list")
        return cluster_pb2.GetNodeResponse(
            node=node,
            replicas=[
                cluster_pb2.ReplicaOfNode(group=group.group, replica=replica)
                for group in status.groups
                for replica in group.replicas
                if replica.node == request.node
            ],
        )

    async def AddNode(
        self, request: cluster_pb2.AddNodeRequest, context: Context
    ) -> cluster_pb2.MembershipResponse:
        asked = self._asked(request)
        return await self._answer(
            await self._members.add(request.node, request.peer_address, request.keep_learner, asked)
        )

    async def PromoteNode(
        self, request: cluster_pb2.PromoteNodeRequest, context: Context
    ) -> cluster_pb2.MembershipResponse:
        asked = self._asked(request)
        return await self._answer(await self._members.promote(request.node, asked))

    async def RemoveNode(
        self, request: cluster_pb2.RemoveNodeRequest, context: Context
    ) -> cluster_pb2.MembershipResponse:
        asked = self._asked(request)
        return await self._answer(await self._members.remove(request.node, asked))

    async def ReplaceNode(
        self, request: cluster_pb2.ReplaceNodeRequest, context: Context
    ) -> cluster_pb2.MembershipResponse:
        asked = self._asked(request)
        return await self._answer(
            await self._members.replace(request.node, request.peer_address, asked)
        )

    async def GetMembershipChange(
        self, request: cluster_pb2.GetMembershipChangeRequest, context: Context
    ) -> cluster_pb2.MembershipChange:
        self._edge.authenticator.authorize(caller(), "read")
        row = await self._members.change(_change_id(request.change_id))
        return change_message(row, None if row.ended else await self._core_status(context))

    async def ListMembershipChanges(
        self, request: cluster_pb2.ListMembershipChangesRequest, context: Context
    ) -> cluster_pb2.ListMembershipChangesResponse:
        self._edge.authenticator.authorize(caller(), "read")
        limit = min(request.limit or _HISTORY_DEFAULT, HISTORY_ROWS_MAX)
        rows, found = await self._members.history(limit)
        return cluster_pb2.ListMembershipChangesResponse(
            changes=[change_message(row) for row in rows],
            configurations=configuration_messages(found)[:limit],
        )

    async def CancelMembershipChange(
        self, request: cluster_pb2.CancelMembershipChangeRequest, context: Context
    ) -> cluster_pb2.MembershipChange:
        self._edge.authenticator.authorize(caller(), "admin")
        asked = Asked(caller().user, request.request_id)
        row = await self._members.cancel(_change_id(request.change_id), asked)
        return change_message(row, await self._core_status(context))

    async def DrainNode(
        self, request: cluster_pb2.DrainNodeRequest, context: Context
    ) -> cluster_pb2.DrainNodeResponse:
        return await self._drain(request, context, draining=True)

    async def UndrainNode(
        self, request: cluster_pb2.UndrainNodeRequest, context: Context
    ) -> cluster_pb2.DrainNodeResponse:
        return await self._drain(request, context, draining=False)

    async def _drain(
        self,
        request: cluster_pb2.DrainNodeRequest | cluster_pb2.UndrainNodeRequest,
        context: Context,
        *,
        draining: bool,
    ) -> cluster_pb2.DrainNodeResponse:
        self._edge.authenticator.authorize(caller(), "admin")
        asked = Asked(caller().user, request.request_id, request.dry_run)
        plan = await self._members.drain(request.node, draining, asked)
        status = await self._status(context, this_node_only=False)
        node = next((node for node in status.nodes if node.name == request.node), None)
        return cluster_pb2.DrainNodeResponse(plan=plan, node=node)

    async def TransferLeader(
        self, request: cluster_pb2.TransferLeaderRequest, context: Context
    ) -> cluster_pb2.TransferLeaderResponse:
        self._edge.authenticator.authorize(caller(), "admin")
        groups = [request.group] if request.HasField("group") else []
        asked = Asked(caller().user, dry_run=request.dry_run)
        plan, transfers = await self._members.transfer(groups, request.to_node, asked)
        return cluster_pb2.TransferLeaderResponse(plan=plan, transfers=transfers)

    async def Verify(
        self, request: cluster_pb2.VerifyRequest, context: Context
    ) -> cluster_pb2.VerifyResponse:
        self._edge.authenticator.authorize(caller(), "admin")
        timeout_s = time_left_s(context, _CORE_TIMEOUT_S)
        return verification_message(await self._edge.core.verify(request.start, timeout_s))

    def _asked(self, request: _Change) -> Asked:
        self._edge.authenticator.authorize(caller(), "admin")
        return Asked(
            caller().user,
            request.request_id,
            request.dry_run,
            request.force,
            request.confirm_cluster,
        )

    async def _answer(
        self, answer: tuple[cluster_pb2.MembershipPlan, ChangeRow | None]
    ) -> cluster_pb2.MembershipResponse:
        plan, row = answer
        change = None if row is None else change_message(row)
        return cluster_pb2.MembershipResponse(plan=plan, change=change)

    async def _draining(self) -> frozenset[str]:
        try:
            return (await self._members.intentions()).draining
        except Unavailable:  # no state yet
            return frozenset()

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
            problem=status.problem,
            http_url=config.advertise.http_url,
            grpc_address=config.advertise.grpc_address,
            metrics_url=config.advertise.metrics_url,
            peer_address=config.advertise.peer_address,
            version=__version__,
            level=status.level,
            serving=self._serving(),
        )

    def _serving(self) -> cluster_pb2.ServingStatus:
        edge = self._edge
        return cluster_pb2.ServingStatus(
            answers_kept=edge.fetch_cache.answers_held,
            answers_bytes=edge.fetch_cache.bytes_held,
            answers_bytes_max=edge.config.limits.fetch_cache_bytes_max,
            workers=edge.config.workers.count,
            jobs_running=edge.workers.running,
            jobs_waiting=edge.workers.queued,
            jobs_waiting_max=edge.config.workers.queue_max,
            packs_to_derive=edge.packs_to_derive,
            imports_running=edge.imports_running,
            imports_running_max=edge.config.imports.concurrent_max,
        )

    async def _registered(self) -> list[NodeRow]:
        try:
            return await self._edge.reads.in_thread(self._directory.nodes)
        except Unavailable:  # no state yet: the node is forming its cluster
            return []


def _change_id(text: str) -> bytes:
    try:
        return bytes.fromhex(text)
    except ValueError:
        raise InvalidArgument(
            f"{text[:80]!r} is no id of a change", next_step="quorepo cluster history"
        ) from None
