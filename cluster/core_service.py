"""The Core service: what the edge of this node asks, on a private unix socket."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import grpc

from quorepo.cluster.admission import Admission
from quorepo.cluster.gate import pack_header
from quorepo.cluster.group_views import group_status_message, merge_peers, node_view
from quorepo.cluster.member_calls import MemberCalls
from quorepo.cluster.peer.packs import PackExchange
from quorepo.cluster.proposals import ProposalDriver
from quorepo.cluster.raft.host import RaftHost
from quorepo.cluster.raft.interface import Outcome, PackNeed
from quorepo.cluster.replacements import ReplacementChecks, replacement_of
from quorepo.cluster.state.commands import check_command
from quorepo.cluster.state.store import StateStore
from quorepo.internal.v1 import core_pb2, core_pb2_grpc
from quorepo.storage.errors import InvalidArgument, QuorepoError, Rejected, Unavailable

__all__ = ["CoreService", "serve_edge"]

log = logging.getLogger(__name__)

_RETRY_INTERVAL_S = 0.05
_STOP_GRACE_S = 1.0
_MESSAGE_BYTES_MAX = 16 * 1024 * 1024
_REPLACEMENT_DEADLINE_S_MAX = 7200.0  # every replica reads the whole pack
_OUTCOMES = {
    Outcome.APPLIED: core_pb2.OUTCOME_APPLIED,
    Outcome.NOT_APPLIED: core_pb2.OUTCOME_NOT_APPLIED,
    Outcome.UNKNOWN: core_pb2.OUTCOME_UNKNOWN,
}

Context = grpc.aio.ServicerContext[Any, Any]


async def serve_edge(
    service: CoreService, socket_path: Path, stack: contextlib.AsyncExitStack
) -> None:
    """Serves the edge on a private socket until `stack` ends."""
    server = grpc.aio.server(
        options=[
            ("grpc.max_send_message_length", _MESSAGE_BYTES_MAX),
            ("grpc.max_receive_message_length", _MESSAGE_BYTES_MAX),
        ]
    )
    core_pb2_grpc.add_CoreServicer_to_server(service, server)
    server.add_insecure_port(f"unix:{socket_path}")
    await server.start()
    stack.push_async_callback(server.stop, _STOP_GRACE_S)


class CoreService(core_pb2_grpc.CoreServicer):
    """Answers the edge; before the node belongs to a cluster, all but status is UNAVAILABLE."""

    def __init__(
        self,
        describe: Callable[[], core_pb2.CoreStatus],
        metrics_text: Callable[[], bytes],
        members: MemberCalls,
        deadline_s_max: float = 60.0,
    ) -> None:
        """`describe()` fills in everything but the groups, which come from the host.

        `members` gives the other nodes' own views, as far as they answer.
        """
        self._describe = describe
        self._describe_replica: Callable[[core_pb2.CoreGroupStatus], None] = lambda group: None
        self._metrics_text = metrics_text
        self._members = members
        self._deadline_s_max = deadline_s_max
        self._host: RaftHost | None = None
        self._driver: ProposalDriver | None = None
        self._packs: PackExchange | None = None
        self._checks: ReplacementChecks | None = None
        self._stores: Mapping[int, StateStore] = {}
        self.admission: Admission | None = None

    def serve(
        self,
        host: RaftHost,
        driver: ProposalDriver,
        packs: PackExchange,
        stores: Mapping[int, StateStore],
        checks: ReplacementChecks,
        describe_replica: Callable[[core_pb2.CoreGroupStatus], None] = lambda group: None,
    ) -> None:
        """From now on this node belongs to a cluster.

        `describe_replica(group)` adds what this node knows of its own replica's packs.
        """
        self._describe_replica = describe_replica
        self._host, self._driver, self._packs, self._stores = host, driver, packs, stores
        self._checks = checks

    async def Propose(
        self, request: core_pb2.ProposeRequest, context: Context
    ) -> core_pb2.ProposeResponse:
        try:
            return await self._propose(request)
        except InvalidArgument as error:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))

    async def ProposeMany(
        self, request: core_pb2.ProposeManyRequest, context: Context
    ) -> core_pb2.ProposeManyResponse:
        answers = await asyncio.gather(*(self._propose_one(one) for one in request.requests))
        return core_pb2.ProposeManyResponse(answers=answers)

    async def _propose_one(self, request: core_pb2.ProposeRequest) -> core_pb2.ProposeManyAnswer:
        try:
            return core_pb2.ProposeManyAnswer(response=await self._propose(request))
        except InvalidArgument as error:
            return core_pb2.ProposeManyAnswer(invalid=str(error))

    async def _propose(self, request: core_pb2.ProposeRequest) -> core_pb2.ProposeResponse:
        if self._driver is None or request.group not in self._stores:
            # Nothing was proposed: the edge may tell its client "certainly not applied".
            return core_pb2.ProposeResponse(
                outcome=core_pb2.OUTCOME_NOT_APPLIED, reason=self._not_serving(request.group)
            )
        # What is wrong in any state must never get into a log: every replica would end on it.
        check_command(request.command.SerializeToString(deterministic=True), request.group)
        timeout_s = min(request.timeout_ms / 1000, self._deadline_s_max)
        answer = await self._driver.propose(request.group, request.command, timeout_s)
        return core_pb2.ProposeResponse(
            outcome=_OUTCOMES[answer.outcome],
            result=answer.result,
            index=answer.index,
            reason=answer.reason,
        )

    async def ReadIndex(
        self, request: core_pb2.CoreReadIndexRequest, context: Context
    ) -> core_pb2.CoreReadIndexResponse:
        timeout_s = min(request.timeout_ms / 1000, self._deadline_s_max)
        deadline = time.monotonic() + timeout_s
        try:
            asked = self._ask_together(request.groups, timeout_s)
            positions = await asyncio.gather(
                *(self._read_index(group, deadline, asked.get(group)) for group in request.groups)
            )
        except Unavailable as error:
            await context.abort(grpc.StatusCode.UNAVAILABLE, str(error))
        return core_pb2.CoreReadIndexResponse(positions=positions)

    def _ask_together(self, groups: Sequence[int], timeout_s: float) -> dict[int, Future[int]]:
        """The first attempt of all groups, in one step of the Raft thread."""
        wanted = [group for group in dict.fromkeys(groups) if group in self._stores]
        if self._host is None or not wanted:
            return {}
        return dict(zip(wanted, self._host.read_indexes(wanted, timeout_s), strict=True))

    async def _read_index(
        self, group: int, deadline: float, asked: Future[int] | None
    ) -> core_pb2.GroupPosition:
        problem = "no leader answered"
        while (left := deadline - time.monotonic()) > 0:
            if self._host is None or group not in self._stores:
                problem = self._not_serving(group)
            else:
                try:
                    attempt = asked or self._host.read_index(group, left)
                    asked = None
                    index = await asyncio.wrap_future(attempt)
                    generation = self._stores[group].generation
                    return core_pb2.GroupPosition(group=group, generation=generation, index=index)
                except (Unavailable, TimeoutError) as error:
                    problem = str(error) or problem
            await asyncio.sleep(min(_RETRY_INTERVAL_S, max(left, 0)))
        raise Unavailable(f"group {group} has no leader that a majority confirms ({problem})")

    async def ReplicatePack(
        self, request: core_pb2.ReplicatePackRequest, context: Context
    ) -> core_pb2.ReplicatePackResponse:
        if self._driver is None or self._packs is None:
            await context.abort(grpc.StatusCode.UNAVAILABLE, self._not_serving(request.group))
        pack = request.pack
        need = PackNeed(
            repository_id=request.repository_id,
            digest=pack.digest,
            index_digest=pack.index_digest,
            pack_bytes=pack.pack_bytes,
            index_bytes=pack.index_bytes,
        )
        timeout_s = min(request.timeout_ms / 1000, self._deadline_s_max * 10)
        try:
            await self._packs.adopt(pack_header(request.group, need))
            if request.HasField("replacement"):
                replicas = await self._replicate_replacement(request, need)
            else:
                replicas = await self._driver.replicate_pack(request.group, need, timeout_s)
        except Rejected as error:
            await context.abort(grpc.StatusCode.FAILED_PRECONDITION, str(error))
        except QuorepoError as error:
            await context.abort(grpc.StatusCode.UNAVAILABLE, str(error))
        return core_pb2.ReplicatePackResponse(replicas=replicas)

    async def _replicate_replacement(
        self, request: core_pb2.ReplicatePackRequest, need: PackNeed
    ) -> Sequence[str]:
        """This node's own verdict first, then the others'. Raises Rejected, Unavailable."""
        assert self._driver is not None
        assert self._checks is not None
        command = request.replacement
        check_command(command.SerializeToString(deterministic=True), request.group)
        body = replacement_of(command)
        if body is None:
            raise InvalidArgument("the command does not replace packs")
        started = time.monotonic()
        timeout_s = min(request.timeout_ms / 1000, _REPLACEMENT_DEADLINE_S_MAX)
        await self._checks.check(request.group, body)
        left_s = max(1.0, timeout_s - (time.monotonic() - started))
        return await self._driver.replicate_replacement(request.group, need, command, left_s)

    async def GetStatus(
        self, request: core_pb2.CoreStatusRequest, context: Context
    ) -> core_pb2.CoreStatus:
        status = self.own_status()
        if status.groups and not request.this_node_only:
            peers = await self._members.ask_peers()
            status.views.extend(node_view(view) for view in (status, *peers))
            merge_peers(status, peers)
        return status

    async def IdentifyNode(
        self, request: core_pb2.IdentifyNodeRequest, context: Context
    ) -> core_pb2.IdentifyNodeResponse:
        return await self._members.identify(request)

    async def TransferLeader(
        self, request: core_pb2.CoreTransferRequest, context: Context
    ) -> core_pb2.CoreTransferResponse:
        return await self._members.transfer(request)

    async def Verify(
        self, request: core_pb2.CoreVerifyRequest, context: Context
    ) -> core_pb2.CoreVerifyResponse:
        try:
            return await self._members.verify(request)
        except QuorepoError as error:
            await context.abort(grpc.StatusCode[error.grpc_code], str(error))

    def own_status(self) -> core_pb2.CoreStatus:
        """This node's own view, without asking anybody."""
        status = self._describe()
        if self._host is not None:
            groups = [self._host.status(group) for group in sorted(self._stores)]
            status.groups.extend(group_status_message(g, status.replica_id) for g in groups)
            for group in status.groups:
                self._describe_replica(group)
        status.ready = status.phase == "serving" and all(g.leader for g in status.groups)
        return status

    async def CreateJoinToken(
        self, request: core_pb2.CoreJoinTokenRequest, context: Context
    ) -> core_pb2.CoreJoinTokenResponse:
        try:
            if self.admission is None:
                raise Unavailable(self._not_serving(0))
            return await self.admission.create_token(request)
        except QuorepoError as error:
            await context.abort(grpc.StatusCode[error.grpc_code], str(error))

    async def GetMetrics(
        self, request: core_pb2.CoreMetricsRequest, context: Context
    ) -> core_pb2.CoreMetrics:
        return core_pb2.CoreMetrics(text=self._metrics_text())

    def _not_serving(self, group: int) -> str:
        if self._host is None:
            return f"this node does not belong to a cluster yet ({self._describe().phase})"
        return f"this node has no replica of group {group}"
