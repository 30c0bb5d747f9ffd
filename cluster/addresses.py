"""A node that comes back at another address: the configurations of its groups follow.

Others reach it meanwhile by the address that its own streams tell (`peer/link.py`). Owns the change
of an address, on the node that moved and on the leader that it asks, and the look for a node that
is there already. Must not know why it moved.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Sequence
from typing import Protocol

import grpc

from quorepo.cluster.peer.clients import PeerAddress
from quorepo.cluster.raft.host import RaftHost
from quorepo.cluster.raft.interface import Outcome
from quorepo.internal.v1 import log_pb2, peer_pb2
from quorepo.storage.logs import fields

__all__ = ["announce_address", "living_twin", "move_replica"]

log = logging.getLogger(__name__)

_INTERVAL_S = 1.0
_CALL_TIMEOUT_S = 5.0
_CHANGE_TIMEOUT_S = 5.0


class _Calls(Protocol):
    def rejoin(
        self, peer: PeerAddress, request: peer_pb2.RejoinRequest, timeout_s: float
    ) -> Awaitable[peer_pb2.RejoinResponse]: ...


def living_twin(host: RaftHost, groups: Sequence[int], node: str, replica_id: str) -> str:
    """Why a node must not come back under a new replica id now: its former replica is alive.

    Two machines have its certificate then, and an emptied disk is no reason to remove a good one.
    Empty when it may.
    """
    for group in groups:
        for replica in host.status(group).replicas:
            if replica.node == node and replica.replica_id != replica_id and replica.connected:
                return (
                    f"node {node!r} runs already, as replica {replica.replica_id!r}; stop it, or "
                    "give this machine a node.name and a certificate of its own"
                )
    return ""


async def move_replica(host: RaftHost, groups: Sequence[int], replica_id: str, address: str) -> str:
    """Puts the address of a replica into the configurations of the groups that this node leads.

    Returns what is not done yet, for people; empty when every group has it, or not the replica.
    """
    problems = []
    for group in groups:
        status = host.status(group)
        configuration = log_pb2.Configuration()
        configuration.CopyFrom(status.configuration)
        stale = [
            replica
            for replica in configuration.replicas
            if replica.replica_id == replica_id and replica.peer_address != address
        ]
        if not stale:
            continue
        if status.role != "leader":
            problems.append(f"group {group} is led by {status.leader or 'nobody yet'}")
            continue
        former = stale[0].peer_address
        stale[0].peer_address = address
        proposal = await asyncio.wrap_future(
            host.change_configuration(group, configuration, _CHANGE_TIMEOUT_S)
        )
        if proposal.outcome is not Outcome.APPLIED:
            problems.append(f"group {group}: {proposal.reason}")
            continue
        log.info(
            "replica moved",
            extra=fields(group=group, replica=replica_id, address=address, former=former),
        )
    return "; ".join(problems)


async def announce_address(
    host: RaftHost,
    groups: Sequence[int],
    calls: _Calls,
    me: log_pb2.Replica,
    boot: peer_pb2.BootRecord | None = None,
    interval_s: float = _INTERVAL_S,
    sleep: Callable[[float], Awaitable[None]] = asyncio.sleep,
) -> None:
    """Returns once every group that has this replica knows it by `me.peer_address`."""
    request = peer_pb2.RejoinRequest(
        node=me.node, replica_id=me.replica_id, peer_address=me.peer_address, boot=boot
    )
    while True:
        configurations = [host.status(group).configuration for group in groups]
        replicas = [r for c in configurations for r in c.replicas]
        own = [r for r in replicas if r.replica_id == me.replica_id]
        if own and all(r.peer_address == me.peer_address for r in own):
            return
        if own:
            await move_replica(host, groups, me.replica_id, me.peer_address)
            others = {PeerAddress(r.node, r.peer_address) for r in replicas if r not in own}
            for peer in sorted(others):
                try:
                    await calls.rejoin(peer, request, _CALL_TIMEOUT_S)
                except grpc.RpcError as error:
                    log.debug("not announced", extra=fields(peer=str(peer), error=str(error)[:200]))
        await sleep(interval_s)
