"""Membership work of a leader: taking in a node that lost its disk, promoting learners.

Every step is one configuration entry that changes one replica: first the lost replica goes (its id
is never used again), then the new one comes as a learner, then, once it holds the log and the
packs, it votes.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Sequence

from quorepo.cluster.formation import remove_node, replica_of
from quorepo.cluster.raft.host import RaftHost
from quorepo.cluster.raft.interface import Outcome
from quorepo.internal.v1 import log_pb2, peer_pb2
from quorepo.storage.logs import fields

__all__ = ["Membership"]

log = logging.getLogger(__name__)

_PROMOTION_INTERVAL_S = 0.2
_CHANGE_TIMEOUT_S = 5.0
# A learner this many entries behind the leader's log is close enough to be counted.
_PROMOTION_LAG_ENTRIES = 64


class Membership:
    """Acts on the groups that this node leads; runs in the core's event loop."""

    def __init__(self, host: RaftHost, groups: Sequence[int], replica_id: str) -> None:
        self._host = host
        self._groups = tuple(groups)
        self._replica_id = replica_id
        self._changing = asyncio.Lock()

    async def rejoin(self, request: peer_pb2.RejoinRequest) -> peer_pb2.RejoinResponse:
        """Takes the new replica into every group that this node leads, in place of the old one.

        Accepted once the committed configuration of every group has the new replica; until then the
        caller asks the other members too, since the groups may have different leaders.
        """
        newcomer = log_pb2.Replica(
            replica_id=request.replica_id,
            node=request.node,
            peer_address=request.peer_address,
            votes=False,
            stores_packs=True,
            may_lead=False,
        )
        reasons = []
        for group in self._groups:
            if replica_of(self._host.status(group).configuration, request.replica_id):
                continue
            reasons.append(await self._take_in(group, newcomer))
        reasons = [reason for reason in reasons if reason]
        return peer_pb2.RejoinResponse(accepted=not reasons, reason="; ".join(reasons))

    async def _take_in(self, group: int, newcomer: log_pb2.Replica) -> str:
        """Returns why it did not work, or an empty string."""
        async with self._changing:
            while True:
                status = self._host.status(group)
                if status.role != "leader":
                    return f"group {group} is led by {status.leader or 'nobody yet'}"
                configuration = status.configuration
                if replica_of(configuration, newcomer.replica_id):
                    return ""
                if newcomer.replica_id in configuration.removed_replica_ids:
                    return f"group {group}: replica {newcomer.replica_id!r} was removed for good"
                changed = remove_node(configuration, newcomer.node, newcomer.replica_id)
                if changed is None:
                    changed = log_pb2.Configuration()
                    changed.CopyFrom(configuration)
                    changed.replicas.append(newcomer)
                if problem := await self._change(group, changed):
                    return problem

    async def _change(self, group: int, configuration: log_pb2.Configuration) -> str:
        proposal = await asyncio.wrap_future(
            self._host.change_configuration(group, configuration, _CHANGE_TIMEOUT_S)
        )
        if proposal.outcome is not Outcome.APPLIED:
            return f"group {group}: {proposal.reason}"
        members = ",".join(
            f"{r.replica_id}{'' if r.votes else ' (learner)'}" for r in configuration.replicas
        )
        log.info("configuration changed", extra=fields(group=group, members=members))
        return ""

    async def promote_learners(self) -> None:
        """Runs for ever: gives the vote to learners that caught up."""
        while True:
            await asyncio.sleep(_PROMOTION_INTERVAL_S)
            for group in self._groups:
                async with self._changing:
                    await self._promote_one(group)

    async def _promote_one(self, group: int) -> None:
        status = self._host.status(group)
        if status.role != "leader":
            return
        for replica in status.replicas:
            behind = status.last_index - replica.match_index
            ready = replica.connected and replica.match_index and behind <= _PROMOTION_LAG_ENTRIES
            if replica.votes or replica.replica_id == self._replica_id or not ready:
                continue
            changed = log_pb2.Configuration()
            changed.CopyFrom(status.configuration)
            for member in changed.replicas:
                if member.replica_id == replica.replica_id:
                    member.votes = True
                    member.may_lead = True
            if problem := await self._change(group, changed):
                log.info("promotion not done yet", extra=fields(group=group, reason=problem))
            return
