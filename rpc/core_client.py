"""The edge's view of its core: propose, read index, replicate a pack, status, metrics.

Owns the retries over the private socket and what a caller may conclude from a failure. Must not
know HTTP, git or what a command means; of Raft only that a command is ordered once per request id.

A verdict "not applied" speaks for one attempt only (invariant 8 of architecture.md): when an
earlier attempt of the same call broke midway, the call ends with a result or with
`OutcomeUnknown`, never with "not applied".
"""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import grpc
import grpc.aio

from quorepo.internal.v1 import core_pb2, core_pb2_grpc, log_pb2
from quorepo.rpc.core_batches import ProposalBatches
from quorepo.rpc.core_member_calls import MemberCallsClient
from quorepo.rpc.proposals_config import ProposalsSection
from quorepo.rpc.rejections import (
    PacksChanged,
    RepositoryDeleted,
    Reverify,
    check_result,
)
from quorepo.storage.errors import (
    InvalidArgument,
    LimitExceeded,
    NotFound,
    OutcomeUnknown,
    PermissionDenied,
    QuorepoError,
    Rejected,
    Unavailable,
)
from quorepo.storage.failpoints import failpoint

__all__ = [
    "Core",
    "CoreClient",
    "PacksChanged",
    "Position",
    "RepositoryDeleted",
    "Reverify",
    "check_result",
]

_MESSAGE_BYTES_MAX = 16 * 1024 * 1024
_RETRY_PAUSE_S = 0.05
_REPLACEMENT_PAUSE_S = 2.0
_ANSWER_MARGIN_S = 0.5  # the core is given its deadline, and this much more to say how it ended

_Response = TypeVar("_Response")


@dataclasses.dataclass(frozen=True, slots=True)
class Position:
    """How far this node's state of one group had been applied when a read index was confirmed."""

    group: int
    generation: int
    index: int


class Core(Protocol):
    """What the edge needs from a core; `CoreClient` over a socket, or a fake in tests."""

    async def propose(
        self, group: int, command: log_pb2.Command, timeout_s: float
    ) -> log_pb2.Result:
        """Orders one command and gives apply's result; see `CoreClient.propose`."""

    async def read_index(self, groups: Sequence[int], timeout_s: float) -> Mapping[int, Position]:
        """Waits until this node's state is linearizable; see `CoreClient.read_index`."""

    async def replicate_pack(
        self,
        group: int,
        repository_id: str,
        pack: log_pb2.PackAddition,
        timeout_s: float,
        replacement: log_pb2.Command | None = None,
    ) -> Sequence[str]:
        """Copies a pack to a majority; see `CoreClient.replicate_pack`."""

    async def status(
        self, timeout_s: float = 5.0, *, this_node_only: bool = False
    ) -> core_pb2.CoreStatus:
        """What the core says of itself and of every group, see `CoreClient.status`."""

    async def create_join_token(
        self, node: str, lifetime_s: float, actor: str, timeout_s: float
    ) -> core_pb2.CoreJoinTokenResponse:
        """A token with which one node may join; see `CoreClient.create_join_token`."""

    async def identify_node(
        self, node: str, peer_address: str, timeout_s: float
    ) -> core_pb2.IdentifyNodeResponse:
        """Who waits at an address of the peer network; see `CoreClient.identify_node`."""

    async def verify(self, start: bool, timeout_s: float) -> core_pb2.CoreVerifyResponse:
        """Every node's pass over its packs; see `CoreClient.verify`."""

    async def transfer_leader(
        self, group: int, to_node: str, timeout_s: float
    ) -> core_pb2.CoreTransferResponse:
        """Hands a leadership over; see `CoreClient.transfer_leader`."""

    async def metrics(self, timeout_s: float = 2.0) -> bytes:
        """Prometheus text of the core process."""


class CoreClient(MemberCallsClient):
    """A `Core` reached over the node's private unix socket; survives restarts of the core."""

    def __init__(self, socket_path: Path | str, proposals: ProposalsSection | None = None) -> None:
        """Connects lazily. `socket_path` must fit in 107 bytes, see processes.md. `proposals`:
        what may share a call; the defaults where it is None."""
        self._socket_path = str(socket_path)
        self._channel = grpc.aio.insecure_channel(
            f"unix:{self._socket_path}",
            options=[
                ("grpc.initial_reconnect_backoff_ms", 50),
                ("grpc.min_reconnect_backoff_ms", 50),
                ("grpc.max_reconnect_backoff_ms", 250),
                ("grpc.max_send_message_length", _MESSAGE_BYTES_MAX),
                ("grpc.max_receive_message_length", _MESSAGE_BYTES_MAX),
                ("grpc.use_local_subchannel_pool", 1),
            ],
        )
        self._stub: Any = core_pb2_grpc.CoreStub(self._channel)
        self._batches = ProposalBatches(self._stub, proposals or ProposalsSection())

    async def close(self) -> None:
        """Closes the channel; calls under way are cancelled."""
        await self._channel.close()

    async def propose(
        self, group: int, command: log_pb2.Command, timeout_s: float
    ) -> log_pb2.Result:
        """Orders one command; every attempt carries the command's own request id.

        Returns:
            What apply said; never a rejection.

        Raises:
            Unavailable: certainly not applied: no leader, queue full, no core.
            OutcomeUnknown: it may have been applied, or may be later.
            QuorepoError: the command was rejected, see `check_result`.
        """
        deadline = _Deadline(timeout_s)
        doubt = ""  # why an earlier attempt may yet be applied
        while True:
            response: core_pb2.ProposeResponse | None = None
            reason = ""
            if not await self._connected(deadline):
                reason = "this node's core is not running"
            else:
                request = core_pb2.ProposeRequest(
                    group=group, command=command, timeout_ms=deadline.left_ms()
                )
                try:
                    failpoint("edge.propose.before_send")
                    response = await self._propose_once(
                        request, deadline.left_s() + _ANSWER_MARGIN_S
                    )
                    failpoint("edge.propose.after_answer")
                except InvalidArgument as error:
                    if not doubt:
                        raise
                    reason = error.message
                except grpc.aio.AioRpcError as error:
                    refused = _refusal(error)
                    if refused is not None and not doubt:
                        raise refused from error
                    reason = doubt = error.details() or error.code().name.lower()
            if response is not None:
                reason = response.reason
                if response.outcome == core_pb2.OUTCOME_APPLIED:
                    return check_result(response.result)
                if response.outcome != core_pb2.OUTCOME_NOT_APPLIED:
                    doubt = reason or "the core does not know"
                elif not doubt:
                    raise _not_applied(reason)
            if deadline.left_s() <= _RETRY_PAUSE_S:
                raise _unresolved(doubt, reason)
            await asyncio.sleep(_RETRY_PAUSE_S)

    async def _propose_once(
        self, request: core_pb2.ProposeRequest, timeout_s: float
    ) -> core_pb2.ProposeResponse:
        if self._batches.may_share(request):
            return await self._batches.propose(request, timeout_s)
        response: core_pb2.ProposeResponse = await self._stub.Propose(request, timeout=timeout_s)
        return response

    async def read_index(self, groups: Sequence[int], timeout_s: float) -> Mapping[int, Position]:
        """Confirms with the leaders how far this node has to be, and waits until it is.

        Returns:
            The position of each group; a reader that opens its snapshot now sees at least that.

        Raises:
            Unavailable: no leader, or this node did not catch up, within `timeout_s`.
        """

        async def call(deadline: _Deadline) -> core_pb2.CoreReadIndexResponse:
            answer: core_pb2.CoreReadIndexResponse = await self._stub.ReadIndex(
                core_pb2.CoreReadIndexRequest(groups=groups, timeout_ms=deadline.left_ms()),
                timeout=deadline.left_s() + _ANSWER_MARGIN_S,
            )
            return answer

        response = await self._until_answered(call, timeout_s)
        return {
            position.group: Position(position.group, position.generation, position.index)
            for position in response.positions
        }

    async def replicate_pack(
        self,
        group: int,
        repository_id: str,
        pack: log_pb2.PackAddition,
        timeout_s: float,
        replacement: log_pb2.Command | None = None,
    ) -> Sequence[str]:
        """Copies a pack from this node's quarantine to a majority, the leader included.

        With `replacement`, the command by which it will replace others: to all replicas that can
        be reached, and each of them checks it against those others first.

        Returns:
            The names of the nodes that hold it durably.

        Raises:
            Unavailable: no majority has it within `timeout_s`. Harmless: nothing refers to it yet.
            Rejected: a replica found the replacement wrong.
        """

        async def call(deadline: _Deadline) -> core_pb2.ReplicatePackResponse:
            answer: core_pb2.ReplicatePackResponse = await self._stub.ReplicatePack(
                core_pb2.ReplicatePackRequest(
                    group=group,
                    repository_id=repository_id,
                    pack=pack,
                    timeout_ms=deadline.left_ms(),
                    replacement=replacement,
                ),
                timeout=deadline.left_s() + _ANSWER_MARGIN_S,
            )
            return answer

        # Every replica reads the whole pack: that is not asked for again and again.
        pause_s = _RETRY_PAUSE_S if replacement is None else _REPLACEMENT_PAUSE_S
        response = await self._until_answered(call, timeout_s, pause_s)
        return tuple(response.replicas)

    async def status(
        self, timeout_s: float = 5.0, *, this_node_only: bool = False
    ) -> core_pb2.CoreStatus:
        """What the core says of itself and of every group.

        `this_node_only` spares the other nodes, whose own views are asked for otherwise.

        Raises:
            Unavailable: no core within `timeout_s`.
        """

        async def call(deadline: _Deadline) -> core_pb2.CoreStatus:
            answer: core_pb2.CoreStatus = await self._stub.GetStatus(
                core_pb2.CoreStatusRequest(this_node_only=this_node_only),
                timeout=deadline.left_s(),
            )
            return answer

        return await self._until_answered(call, timeout_s)

    async def create_join_token(
        self, node: str, lifetime_s: float, actor: str, timeout_s: float
    ) -> core_pb2.CoreJoinTokenResponse:
        """A token with which one node may join. One that is made and not told is never used.

        Raises:
            InvalidArgument, Rejected: not with this name or time, or not on this node.
            Unavailable: no core, or no leader, within `timeout_s`.
        """

        async def call(deadline: _Deadline) -> core_pb2.CoreJoinTokenResponse:
            request = core_pb2.CoreJoinTokenRequest(
                node=node, lifetime_ms=int(lifetime_s * 1000), actor=actor
            )
            answer: core_pb2.CoreJoinTokenResponse = await self._stub.CreateJoinToken(
                request, timeout=deadline.left_s()
            )
            return answer

        return await self._until_answered(call, timeout_s)

    async def metrics(self, timeout_s: float = 2.0) -> bytes:
        """Prometheus text of the core process.

        Raises:
            Unavailable: no core within `timeout_s`.
        """

        async def call(deadline: _Deadline) -> core_pb2.CoreMetrics:
            answer: core_pb2.CoreMetrics = await self._stub.GetMetrics(
                core_pb2.CoreMetricsRequest(), timeout=deadline.left_s()
            )
            return answer

        response = await self._until_answered(call, timeout_s)
        return response.text

    async def _connected(self, deadline: _Deadline) -> bool:
        """Waits for the socket. False at the deadline: then nothing was sent, which is certain."""
        if self._channel.get_state() is grpc.ChannelConnectivity.READY:
            return True
        try:
            await asyncio.wait_for(self._channel.channel_ready(), max(deadline.left_s(), 0.001))
        except TimeoutError:
            return False
        return True

    async def _until_answered(
        self,
        call: Callable[[_Deadline], Awaitable[_Response]],
        timeout_s: float,
        pause_s: float = _RETRY_PAUSE_S,
    ) -> _Response:
        """Repeats a harmless call until it is answered or the deadline is over."""
        deadline = _Deadline(timeout_s)
        while True:
            if not await self._connected(deadline):
                raise Unavailable("this node's core is not running", next_step="try again")
            try:
                return await call(deadline)
            except grpc.aio.AioRpcError as error:
                refused = _refusal(error)
                if refused is not None:
                    raise refused from error
                if deadline.left_s() <= pause_s:
                    message = error.details() or error.code().name.lower()
                    raise Unavailable(message, next_step="try again") from error
            await asyncio.sleep(pause_s)


class _Deadline:
    """A moment on the loop's clock."""

    def __init__(self, timeout_s: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._at = self._loop.time() + timeout_s

    def left_s(self) -> float:
        return max(0.0, self._at - self._loop.time())

    def left_ms(self) -> int:
        return max(1, int(self.left_s() * 1000))


def _unresolved(doubt: str, reason: str) -> QuorepoError:
    if doubt:
        return OutcomeUnknown(
            f"the outcome is not known: {doubt}", next_step="look at the refs, or repeat it"
        )
    return _not_applied(reason)


def _not_applied(reason: str) -> QuorepoError:
    """Certain. The reasons are the engine's words, see cluster/raft/interface.py."""
    if reason == "too-large":
        return LimitExceeded(
            "the request is too large for one log entry", limit="raft.command_bytes_max"
        )
    if reason.startswith("level: "):
        return Rejected(
            f"{reason.removeprefix('level: ')}; nothing was changed",
            next_step="install the newer quorepo on the nodes that quorepo node list shows with an "
            "older level",
        )
    return Unavailable(_REASONS.get(reason, reason or "not applied"), next_step="try again")


_REASONS = {
    "no-leader": "no leader",
    "not-leader": "no leader",
    "leader-changed": "no leader: it changed meanwhile",
    "queue-full": "this cluster is busy: too many writes are waiting",
    "packs-missing": "the leader does not hold the pack",
    "disk-full": "the disk of the leader, or of most nodes, is below storage.reserve_bytes",
    "stopped": "this node is shutting down",
    "timeout": "no leader took it in time",
}


def _refusal(error: grpc.aio.AioRpcError) -> QuorepoError | None:
    """The error that the core answered with on purpose; None when the call itself broke."""
    details: Any = error.details() or ""
    code = error.code()
    if code == grpc.StatusCode.RESOURCE_EXHAUSTED:
        return LimitExceeded(details, limit="raft.command_bytes_max")
    kind = _REFUSALS.get(code)
    if kind is None:
        return None
    # What to do comes last in what the core says, after this.
    what, unchanged, next_step = details.partition(_UNCHANGED)
    return kind(what + unchanged.removesuffix("; "), next_step=next_step)


_UNCHANGED = "; nothing was changed; "


_REFUSALS: dict[grpc.StatusCode, type[QuorepoError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: InvalidArgument,
    grpc.StatusCode.NOT_FOUND: NotFound,
    grpc.StatusCode.PERMISSION_DENIED: PermissionDenied,
    grpc.StatusCode.FAILED_PRECONDITION: Rejected,
}
