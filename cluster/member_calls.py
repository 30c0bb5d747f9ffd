"""What the edge and other nodes ask about the members: everybody's own view, who waits at an
address, a leadership to hand over.

Owns the calls to other nodes that this takes. Must not know what a change of the members is.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

import grpc

from quorepo.cluster.divergence import diverged
from quorepo.cluster.peer.clients import PeerAddress, PeerClients
from quorepo.cluster.raft.host import RaftHost
from quorepo.cluster.raft.interface import GroupStatus
from quorepo.cluster.state.levels import LEVEL_MIN
from quorepo.internal.v1 import core_pb2, log_pb2, peer_pb2
from quorepo.storage.errors import Unavailable
from quorepo.storage.logs import fields

__all__ = ["MemberCalls"]

log = logging.getLogger(__name__)

VerifyHere = Callable[[core_pb2.CoreVerifyRequest], Awaitable[core_pb2.CoreNodeVerification]]

_STATUS_TIMEOUT_S = 1.0
_VERIFY_TIMEOUT_S = 2.0
_TIMEOUT_S_MAX = 30.0
_ATTEMPT_INTERVAL_S = 0.1
_CALLERS_MAX = 100  # newcomers that called and are remembered


class MemberCalls:
    """Lives in the core's event loop; `serve` gives it the engine once there is one."""

    def __init__(self, node: str, peers: Mapping[str, str], clients: PeerClients) -> None:
        """`peers` are the addresses of the configuration file, for nodes of no configuration."""
        self._node = node
        self._peers = dict(peers)
        self._clients = clients
        self._host: RaftHost | None = None
        self._groups: Sequence[int] = ()
        self._callers: dict[str, str] = {}
        self.verify_here: VerifyHere | None = None  # once there is something to verify
        self._diverged: dict[str, list[core_pb2.CorePackFault]] = {}  # by the last comparison

    def serve(self, host: RaftHost, groups: Sequence[int]) -> None:
        """From now on this node belongs to a cluster."""
        self._host, self._groups = host, tuple(groups)

    def called(self, node: str, peer_address: str) -> None:
        """A node asked to be taken in; where it waits is remembered."""
        self._callers.pop(node, None)
        self._callers[node] = peer_address
        while len(self._callers) > _CALLERS_MAX:
            del self._callers[next(iter(self._callers))]

    # ---- who there is

    def others(self) -> list[PeerAddress]:
        """The other members, learners too, as this node's configurations have them."""
        if self._host is None:
            return [PeerAddress(n, a) for n, a in self._peers.items() if n != self._node]
        configurations = [self._host.status(group).configuration for group in self._groups]
        found = {r.node: r.peer_address for c in configurations for r in c.replicas}
        return [PeerAddress(n, a) for n, a in sorted(found.items()) if n != self._node]

    async def ask_peers(self) -> list[core_pb2.CoreStatus]:
        """The other nodes' own views; a node that does not answer in a second is left out."""
        request = core_pb2.CoreStatusRequest()
        answers = await asyncio.gather(
            *(self._clients.status(o, request, _STATUS_TIMEOUT_S) for o in self.others()),
            return_exceptions=True,
        )
        unexpected = [
            a for a in answers if isinstance(a, BaseException) and not isinstance(a, grpc.RpcError)
        ]
        if unexpected:
            raise unexpected[0]
        return [answer for answer in answers if isinstance(answer, core_pb2.CoreStatus)]

    async def identify(
        self, request: core_pb2.IdentifyNodeRequest
    ) -> core_pb2.IdentifyNodeResponse:
        """Who waits at an address; its certificate proves the name."""
        address = request.peer_address or self._callers.get(request.node, "")
        answer = core_pb2.IdentifyNodeResponse(node=request.node, peer_address=address)
        if not address:
            answer.problem = f"node {request.node!r} has not called here"
            return answer
        timeout_s = min(request.timeout_ms / 1000 or _STATUS_TIMEOUT_S, _TIMEOUT_S_MAX)
        try:
            found = await self._clients.identify(
                PeerAddress(request.node, address), peer_pb2.IdentifyRequest(), timeout_s
            )
        except (grpc.RpcError, OSError, TimeoutError) as error:
            details = error.details() if isinstance(error, grpc.aio.AioRpcError) else str(error)
            answer.problem = f"node {request.node!r} does not answer at {address}: {details}"
            return answer
        answer.replica_id, answer.cluster_id = found.replica_id, found.cluster_id
        answer.level = found.level or LEVEL_MIN
        if found.node != request.node:
            answer.problem = f"{address} is node {found.node!r}, not {request.node!r}"
        return answer

    # ---- what they store

    async def verify(self, request: core_pb2.CoreVerifyRequest) -> core_pb2.CoreVerifyResponse:
        """Every node's pass over its packs. Raises Unavailable: this node has none."""
        if self.verify_here is None:
            raise Unavailable("this node does not belong to a cluster yet; nothing was started")
        others = self.others()
        asked = core_pb2.CoreVerifyRequest(start=request.start, fingerprints=request.start)
        answer = await self._verify_all(asked, others)
        if request.start and self._host is not None:
            self._diverged = diverged(answer.nodes, len(others) + 1)
        silent = self._diverged.keys() - {node.node for node in answer.nodes}
        answer.nodes.extend(core_pb2.CoreNodeVerification(node=name) for name in sorted(silent))
        for node in answer.nodes:
            node.faults.extend(self._diverged.get(node.node, ()))
            node.ClearField("fingerprints")
        return answer

    async def own_divergence(self) -> list[core_pb2.CorePackFault]:
        """What this node has otherwise than a majority. Raises Unavailable."""
        others = self.others()
        answer = await self._verify_all(core_pb2.CoreVerifyRequest(fingerprints=True), others)
        return diverged(answer.nodes, len(others) + 1).get(self._node, [])

    async def _verify_all(
        self, request: core_pb2.CoreVerifyRequest, others: Sequence[PeerAddress]
    ) -> core_pb2.CoreVerifyResponse:
        assert self.verify_here is not None
        answer = core_pb2.CoreVerifyResponse(nodes=[await self.verify_here(request)])
        found = await asyncio.gather(
            *(self._clients.verify(o, request, _VERIFY_TIMEOUT_S) for o in others),
            return_exceptions=True,
        )
        for other, its in zip(others, found, strict=True):
            if isinstance(its, core_pb2.CoreNodeVerification):
                answer.nodes.append(its)
            elif isinstance(its, grpc.RpcError):
                answer.unreachable.append(other.node)
            else:
                raise its
        return answer

    # ---- who leads

    async def transfer(
        self, request: core_pb2.CoreTransferRequest
    ) -> core_pb2.CoreTransferResponse:
        """Hands a group's leadership over, through the node that leads."""
        deadline = asyncio.get_running_loop().time() + _seconds(request)
        answer = core_pb2.CoreTransferResponse(problem="no leader is known")
        while asyncio.get_running_loop().time() < deadline:
            status = self._status(request.group)
            if status is not None and status.role == "leader":
                return await self.transfer_here(request)
            leader = None if status is None else _replica(status, status.leader)
            if leader is not None and leader.node != self._node:
                try:
                    answer = await self._clients.transfer(
                        PeerAddress(leader.node, leader.peer_address), request, _seconds(request)
                    )
                except grpc.aio.AioRpcError as error:
                    answer = core_pb2.CoreTransferResponse(
                        from_node=leader.node, problem=error.details() or error.code().name
                    )
                if not answer.problem:
                    return answer
                if answer.from_node:  # it led, and could not hand over
                    return answer
            await asyncio.sleep(_ATTEMPT_INTERVAL_S)
        return answer

    async def transfer_here(
        self, request: core_pb2.CoreTransferRequest
    ) -> core_pb2.CoreTransferResponse:
        """Hands over what this node leads; names nobody as the former leader when it does not."""
        status = self._status(request.group)
        if self._host is None or status is None or status.role != "leader":
            return core_pb2.CoreTransferResponse(problem=f"node {self._node!r} does not lead")
        answer = core_pb2.CoreTransferResponse(from_node=self._node, to_node=self._node)
        if request.to_node == self._node:
            return answer
        target, answer.problem = _target(status, request.to_node)
        if answer.problem:
            return answer
        done = await asyncio.wrap_future(self._host.transfer_leadership(request.group, target))
        if not done:
            answer.problem = "the other replica did not take over in time; nothing was changed"
            return answer
        leader_id = await asyncio.wrap_future(
            self._host.wait_for_leader(request.group, _STATUS_TIMEOUT_S)
        )
        answer.to_node = leader_id.partition("@")[0]
        return answer

    async def hand_over_all(self, timeout_s: float) -> None:
        """Before this node stops: somebody else leads, so that no write has to wait for an
        election."""
        if self._host is None:
            return
        try:
            async with asyncio.timeout(timeout_s):
                await asyncio.gather(*(self._hand_over(group) for group in self._groups))
        except TimeoutError:
            log.warning("leadership not handed over before the stop")

    async def _hand_over(self, group: int) -> None:
        assert self._host is not None
        while (status := self._host.status(group)).role == "leader":
            _, problem = _target(status, "")
            if problem:
                return
            done = await asyncio.wrap_future(self._host.transfer_leadership(group))
            log.info("leadership handed over before the stop", extra=fields(group=group, done=done))
            await asyncio.sleep(0 if done else _ATTEMPT_INTERVAL_S)

    def _status(self, group: int) -> GroupStatus | None:
        if self._host is None or group not in self._groups:
            return None
        return self._host.status(group)


def _seconds(request: core_pb2.CoreTransferRequest) -> float:
    return min(request.timeout_ms / 1000 or _STATUS_TIMEOUT_S, _TIMEOUT_S_MAX)


def _replica(status: GroupStatus, replica_id: str | None) -> log_pb2.Replica | None:
    replicas: Iterable[log_pb2.Replica] = status.configuration.replicas
    return next((r for r in replicas if r.replica_id == replica_id), None)


def _target(status: GroupStatus, to_node: str) -> tuple[str | None, str]:
    """(replica id or None for any, why there is none)."""
    connected = {r.replica_id for r in status.replicas if r.connected}
    able = [
        r
        for r in status.configuration.replicas
        if r.votes and r.may_lead and r.replica_id in connected and r.replica_id != status.leader
    ]
    if not to_node:
        return None, "" if able else "no other replica that may lead can be reached"
    for replica in able:
        if replica.node == to_node:
            return replica.replica_id, ""
    return None, f"node {to_node!r} is no voter that may lead and can be reached"
