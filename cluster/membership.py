"""Membership work of a leader: carries what the directory wants to the groups that this node leads.

The intention (a change of the members, a drained node) is a replicated record; every node looks at
it, and whoever leads a group does that group's next step (membership_steps.py). So nothing depends
on the node that was asked, and a leader that dies in the middle of a step is replaced by one that
finds the old configuration or the new one and goes on from there.
"""

from __future__ import annotations

import asyncio
import hashlib
import logging
import secrets
import time
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from quorepo.cluster.formation import remove_node
from quorepo.cluster.levels import Levels
from quorepo.cluster.membership_steps import Step, is_done, next_step, replica_of
from quorepo.cluster.metrics import ClusterMetrics
from quorepo.cluster.proposals import ProposalDriver
from quorepo.cluster.raft.host import RaftHost
from quorepo.cluster.raft.interface import Outcome
from quorepo.cluster.rounds import Rounds
from quorepo.cluster.state.commands import COMMAND_VERSION, DIRECTORY_GROUP
from quorepo.cluster.state.levels import LEVEL_MIN
from quorepo.cluster.state.members import ChangeRow, Intentions
from quorepo.internal.v1 import log_pb2, peer_pb2
from quorepo.storage.errors import Unavailable
from quorepo.storage.failpoints import failpoint
from quorepo.storage.logs import fields

__all__ = ["Members", "Membership"]

log = logging.getLogger(__name__)

_LOOK_INTERVAL_S = 0.2
_CHANGE_TIMEOUT_S = 5.0
_READ_TIMEOUT_S = 2.0
_PROPOSE_TIMEOUT_S = 10.0
_TRANSFER_INTERVAL_S = 2.0  # between two attempts at one group: writes wait during each

_NOTHING = Intentions(None, frozenset(), frozenset())


class Members(Protocol):
    """What cluster/intentions.py reads."""

    async def intentions(self) -> Intentions: ...

    async def configurations(self) -> Mapping[int, log_pb2.Configuration]: ...


class Membership:
    """Acts on the groups that this node leads; runs in the core's event loop."""

    def __init__(
        self,
        host: RaftHost,
        groups: Sequence[int],
        replica_id: str,
        *,
        members: Members,
        driver: ProposalDriver,
        metrics: ClusterMetrics,
        levels: Levels,
    ) -> None:
        """`members` reads this node's own states: what it gives is committed, and may be old."""
        self._host = host
        self._groups = tuple(groups)
        self._replica_id = replica_id
        self._members = members
        self._committed: Mapping[int, log_pb2.Configuration] = {}
        self._driver = driver
        self._metrics = metrics
        self._levels = levels
        self._rounds = Rounds(time.monotonic)
        self._changing = asyncio.Lock()
        self._transferred_at = dict.fromkeys(self._groups, float("-inf"))
        self._waits: dict[int, str] = {}
        self.intentions = _NOTHING  # as this node's directory had them last

    def waits_for(self, group: int) -> str:
        """Why the step of a group that this node leads does not go on; empty: it does."""
        return self._waits.get(group, "")

    # ---- the loop

    async def run(self) -> None:
        """Runs for ever."""
        while True:
            await self.look()
            await asyncio.sleep(_LOOK_INTERVAL_S)

    async def look(self) -> None:
        """At most one step in each group that this node leads."""
        await self._read()
        running = self.intentions.running
        self._metrics.membership_change_running.set(running is not None)
        self._metrics.node_draining.set(self._own_node() in self.intentions.draining)
        for group in self._groups:
            async with self._changing:
                await self._advance(group)
        if running is not None and self._leads(DIRECTORY_GROUP):
            await self._end(running)
        async with self._changing:  # nobody is taken in meanwhile
            await self._raise_level()

    async def _read(self) -> None:
        try:
            self.intentions = await self._members.intentions()
            if self.intentions.running is not None:
                self._committed = await self._members.configurations()
        except Unavailable as error:  # what was read last stands
            log.info("the members could not be read", extra=fields(error=str(error)))
            return
        self._see_levels()

    def _see_levels(self) -> None:
        configurations = [self._host.status(group).configuration for group in self._groups]
        self._levels.update(self.intentions, configurations)
        self._metrics.level_known.set(self._levels.own)
        self._metrics.level_cluster.set(self._levels.cluster)

    async def _raise_level(self) -> None:
        """The directory's leader records that every member knows more by now."""
        level = self._levels.may_rise_to()
        if not level or not self._leads(DIRECTORY_GROUP):
            return
        await self._read()
        if self._levels.may_rise_to() != level:
            return
        command = self._command(
            secrets.token_bytes(16),
            f"node:{self._own_node()}",
            raise_level=log_pb2.RaiseLevel(level=level),
        )
        failpoint("membership.before_raise")
        answer = await self._driver.propose(DIRECTORY_GROUP, command, _PROPOSE_TIMEOUT_S)
        failpoint("membership.after_raise")
        log.info(
            "the cluster's level rises",
            extra=fields(level=level, before=self._levels.cluster, outcome=answer.outcome.value),
        )

    def _own_node(self) -> str:
        return self._replica_id.partition("@")[0]

    def _leads(self, group: int) -> bool:
        return self._host.status(group).role == "leader"

    async def _advance(self, group: int) -> None:
        if not self._leads(group):
            self._waits.pop(group, None)
            return
        if self._step(group) is None:
            self._waits.pop(group, None)
            return
        # Before anything is done the intentions have to be those of now: this node's directory may
        # be behind.
        try:
            await asyncio.wrap_future(self._host.read_index(DIRECTORY_GROUP, _READ_TIMEOUT_S))
        except Unavailable as error:
            self._wait(group, f"the directory does not answer: {error}")
            return
        await self._read()
        step = self._step(group) if self._leads(group) else None
        if step is None:
            self._waits.pop(group, None)
        elif step.kind == "wait":
            self._wait(group, step.reason)
        elif step.kind == "transfer":
            await self._transfer(group, step)
        else:
            await self._take(group, step)

    def _step(self, group: int) -> Step | None:
        running = self.intentions.running
        others_done = True
        if running is not None and group == DIRECTORY_GROUP:
            others = (g for g in self._groups if g != DIRECTORY_GROUP)
            others_done = all(self._is_done(running, g) for g in others)
        status = self._host.status(group)
        return next_step(
            status,
            self.intentions,
            self._replica_id,
            others_done=others_done,
            caught_up=self._rounds.caught_up(status),
        )

    def _is_done(self, change: ChangeRow, group: int) -> bool:
        configuration = self._committed.get(group)
        return configuration is not None and is_done(change, configuration)

    def _wait(self, group: int, reason: str) -> None:
        if self._waits.get(group) != reason:
            log.info("membership step waits", extra=fields(group=group, reason=reason))
        self._waits[group] = reason

    async def _transfer(self, group: int, step: Step) -> None:
        now = time.monotonic()
        if now < self._transferred_at[group] + _TRANSFER_INTERVAL_S:
            return
        self._transferred_at[group] = now
        failpoint("membership.before_transfer")
        done = await asyncio.wrap_future(self._host.transfer_leadership(group, step.target))
        failpoint("membership.after_transfer")
        log.info("leadership handed over", extra=fields(group=group, to=step.target, done=done))
        if not done:
            self._wait(group, f"replica {step.target!r} did not take the leadership over")

    async def _take(self, group: int, step: Step) -> None:
        """One configuration entry. What becomes of it when this node dies is Raft's matter: it is
        in force or it is not, and the next leader sees which."""
        assert step.configuration is not None
        step.configuration.change_id = step.change_id
        step.configuration.actor = step.actor or f"node:{self._own_node()}"
        problem = await self._change(group, step.configuration, step.kind)
        if problem:
            self._wait(group, problem)
        else:
            self._waits.pop(group, None)

    async def _change(self, group: int, configuration: log_pb2.Configuration, action: str) -> str:
        """Returns why it did not work, or an empty string."""
        failpoint(f"membership.before_{action}")
        proposal = await asyncio.wrap_future(
            self._host.change_configuration(group, configuration, _CHANGE_TIMEOUT_S)
        )
        failpoint(f"membership.after_{action}")
        self._metrics.membership_steps.labels(group, action, proposal.outcome.value).inc()
        if proposal.outcome is not Outcome.APPLIED:
            return f"group {group}: {proposal.reason}"
        members = ",".join(
            f"{r.replica_id}{'' if r.votes else ' (learner)'}" for r in configuration.replicas
        )
        log.info(
            "configuration changed",
            extra=fields(
                group=group, members=members, step=action, change=configuration.change_id.hex(),
                actor=configuration.actor,
            ),
        )  # fmt: skip
        return ""

    async def _end(self, change: ChangeRow) -> None:
        """The directory's leader records the end, once every group is through, durably."""
        if not all(self._is_done(change, group) for group in self._groups):
            return
        end = log_pb2.MEMBERSHIP_END_CANCELLED if change.cancelling else log_pb2.MEMBERSHIP_END_DONE
        # Two leaders, one after the other, may both come here: it is one request.
        request_id = hashlib.sha256(change.change_id + bytes([end])).digest()[:16]
        command = self._command(
            request_id,
            change.actor,
            end_membership_change=log_pb2.EndMembershipChange(change_id=change.change_id, end=end),
        )
        failpoint("membership.before_end")
        answer = await self._driver.propose(DIRECTORY_GROUP, command, _PROPOSE_TIMEOUT_S)
        failpoint("membership.after_end")
        log.info(
            "membership change ended",
            extra=fields(
                change=change.change_id.hex(), node=change.node, outcome=answer.outcome.value,
                end=log_pb2.MembershipEnd.Name(end),
            ),
        )  # fmt: skip

    def _command(self, request_id: bytes, actor: str, **kind: Any) -> log_pb2.Command:
        return log_pb2.Command(
            version=COMMAND_VERSION,
            request_id=request_id,
            first_seen_ms=time.time_ns() // 1_000_000,
            actor=actor,
            **kind,
        )

    # ---- a node that lost its disk, and one that is new

    async def rejoin(
        self, request: peer_pb2.RejoinRequest, *, by_itself: bool = True
    ) -> peer_pb2.RejoinResponse:
        """Whether the replica that asks stands in the configuration of every group.

        With `by_itself` a replica that does not is taken in, in place of the node's old one, in
        every group that this node leads; the caller asks the other members too, since the groups
        may have different leaders. Otherwise somebody has to ask for it: `quorepo node add`.
        """
        missing = [
            group
            for group in self._groups
            if replica_of(self._host.status(group).configuration, request.replica_id) is None
        ]
        if not missing:
            return peer_pb2.RejoinResponse(accepted=True)
        known, reached = request.level or LEVEL_MIN, self._levels.cluster
        if known < reached:
            return peer_pb2.RejoinResponse(
                reason=f"this cluster is at level {reached}, and the program of node "
                f"{request.node!r} knows level {known}: install a newer quorepo there"
            )
        running = self.intentions.running
        if running is not None and running.comes and running.replica_id == request.replica_id:
            return peer_pb2.RejoinResponse(reason="it is being added")
        if not by_itself:
            return peer_pb2.RejoinResponse(
                reason=f"node {request.node!r} is no member; add it with: quorepo node add "
                f"{request.node} --peer-address {request.peer_address}"
            )
        newcomer = log_pb2.Replica(
            replica_id=request.replica_id,
            node=request.node,
            peer_address=request.peer_address,
            votes=False,
            stores_packs=True,
            may_lead=False,
        )
        reasons = [reason for group in missing if (reason := await self._take_in(group, newcomer))]
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
                action = "remove"
                if changed is None:
                    changed = log_pb2.Configuration()
                    changed.CopyFrom(configuration)
                    changed.replicas.append(newcomer)
                    action = "add"
                changed.change_id = b""
                changed.actor = f"node:{newcomer.node}"
                if problem := await self._change(group, changed, action):
                    return problem
