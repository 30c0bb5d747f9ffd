"""From one request to one answer: replicate its packs, propose it, ask again until certain.

An attempt ends as applied, certainly not applied, or unknown. A request was not applied only if
every attempt was not; after one unknown attempt only "applied" can still be certain. All attempts
carry the same request id, so however many of them reach the log, one is applied and the others are
given its result.
"""

from __future__ import annotations

import asyncio
import dataclasses
import logging
import sys
import time
from collections.abc import Sequence
from typing import Protocol

from quorepo.cluster.apply import result_or_none
from quorepo.cluster.gate import pack_header, pack_needs, packs_inside
from quorepo.cluster.inline_packs import without_bytes
from quorepo.cluster.levels import Levels
from quorepo.cluster.peer.clients import PeerAddress
from quorepo.cluster.raft.host import RaftHost
from quorepo.cluster.raft.interface import GroupStatus, Outcome, PackNeed
from quorepo.cluster.state.levels import level_of
from quorepo.internal.v1 import log_pb2, peer_pb2
from quorepo.storage.errors import InvalidArgument, QuorepoError, Rejected, Unavailable
from quorepo.storage.logs import fields

__all__ = ["Answer", "PackStager", "ProposalDriver", "ProposalObserver"]

log = logging.getLogger(__name__)

_RETRY_INTERVAL_S = 0.02
_REPLACEMENT_ATTEMPTS = 4
_REPLACEMENT_RETRY_S = 0.5
# One attempt never waits longer than this for a verdict: a lost leader shows much earlier.
_ATTEMPT_TIMEOUT_S = 5.0
# A leader whose disk is full hands over to another, if there is one with room.
_DISK_FULL_RETRIED_S = 2.0
_NOT_RETRIED = frozenset({"too-large", "denied", "stopped"})


@dataclasses.dataclass(frozen=True, slots=True)
class Answer:
    """The end of a request; `result` is set exactly when the outcome is APPLIED."""

    outcome: Outcome
    result: log_pb2.Result | None = None
    index: int = 0
    reason: str = ""


class PackStager(Protocol):
    """Copies a held pack to another node; cluster/peer/packs.py does."""

    async def keep(self, header: peer_pb2.PackHeader, data: bytes) -> None: ...

    async def stage(self, peer: PeerAddress, header: peer_pb2.PackHeader) -> None: ...


class ProposalObserver(Protocol):
    """Where the driver reports outcomes and latencies."""

    def proposed(self, group: int, outcome: str, seconds: float) -> None: ...


class ProposalDriver:
    """Drives requests on one node; runs in the core's event loop."""

    def __init__(
        self,
        host: RaftHost,
        stager: PackStager,
        replica_id: str,
        observer: ProposalObserver,
        levels: Levels | None = None,
        command_bytes_max: int = sys.maxsize,
    ) -> None:
        """Without `levels` every command may be proposed at once.

        Packs leave a command that would be larger than `command_bytes_max` with them.
        """
        self._host = host
        self._stager = stager
        self._replica_id = replica_id
        self._observer = observer
        self._levels = levels
        self._command_bytes_max = command_bytes_max
        self._background: set[asyncio.Task[object]] = set()

    async def propose(self, group: int, command: log_pb2.Command, timeout_s: float) -> Answer:
        """Orders `command`; retries until it is applied, refused for good, or the time is over."""
        started = time.monotonic()
        if packs_inside(command) and not self._may_be_inside(command):
            try:
                command = await self._take_packs_out(group, command, started + timeout_s)
            except QuorepoError as error:
                answer = Answer(Outcome.NOT_APPLIED, reason=str(error))
                self._observer.proposed(group, answer.outcome.value, time.monotonic() - started)
                return answer
        answer = await self._propose(group, command, started + timeout_s)
        self._observer.proposed(group, answer.outcome.value, time.monotonic() - started)
        return answer

    def _may_be_inside(self, command: log_pb2.Command) -> bool:
        """Whether every member knows that a pack's bytes may be in its entry."""
        known = self._levels is None or self._levels.cluster >= level_of(command)
        return known and command.ByteSize() <= self._command_bytes_max

    async def _take_packs_out(
        self, group: int, command: log_pb2.Command, deadline: float
    ) -> log_pb2.Command:
        """The same command with its packs beside it, on a majority. Raises QuorepoError."""
        plain, taken = without_bytes(command)
        for need in pack_needs(plain):
            if need.digest in taken:
                await self._stager.keep(pack_header(group, need), taken[need.digest])
                await self.replicate_pack(group, need, deadline - time.monotonic())
        return plain

    async def _propose(self, group: int, command: log_pb2.Command, deadline: float) -> Answer:
        payload = command.SerializeToString(deterministic=True)
        certain = True
        reason = "no leader"
        started = time.monotonic()
        while (left := deadline - time.monotonic()) > 0:
            if self._levels is not None and (held := self._levels.held_back(command)):
                reason = held.reason
                if not held.passes:
                    break
                await asyncio.sleep(_RETRY_INTERVAL_S)
                continue
            attempt = await asyncio.wrap_future(
                self._host.propose(group, payload, min(left, _ATTEMPT_TIMEOUT_S))
            )
            if attempt.outcome is Outcome.APPLIED:
                return Answer(Outcome.APPLIED, result_or_none(attempt.result), attempt.index)
            reason = attempt.reason
            if attempt.outcome is Outcome.UNKNOWN:
                certain = False
            elif reason in _NOT_RETRIED or (
                reason == "disk-full" and time.monotonic() > started + _DISK_FULL_RETRIED_S
            ):
                break
            elif reason == "packs-missing":
                await self._replicate_again(group, command, deadline)
            await asyncio.sleep(_RETRY_INTERVAL_S)
        outcome = Outcome.NOT_APPLIED if certain else Outcome.UNKNOWN
        return Answer(outcome, reason=reason)

    async def _replicate_again(self, group: int, command: log_pb2.Command, deadline: float) -> None:
        """A new leader may lack the packs: brings them there before the next attempt."""
        for need in pack_needs(command):
            try:
                await self.replicate_pack(group, need, deadline - time.monotonic())
            except Unavailable as error:
                log.warning("pack not replicated", extra=fields(group=group, error=str(error)))

    async def replicate_pack(self, group: int, need: PackNeed, timeout_s: float) -> Sequence[str]:
        """Copies a pack of this node to a majority of the group's voters, the leader among them.

        Returns the names of the nodes that hold it; copies to slower replicas go on in the
        background. Raises Unavailable when no majority took it in `timeout_s` seconds: nothing was
        changed.
        """
        deadline = time.monotonic() + timeout_s
        holders = {self._replica_id}
        tasks: dict[str, asyncio.Task[object]] = {}
        failures: dict[str, str] = {}
        while True:
            status = self._host.status(group)
            if _enough(status, holders):
                names = {r.replica_id: r.node for r in status.configuration.replicas}
                return sorted(names[h] for h in holders if h in names)
            if (left := deadline - time.monotonic()) <= 0:
                raise Unavailable(_why_not_enough(status, holders, failures))
            self._start_copies(status, need, group, holders, tasks)
            pending = list(tasks.values())
            if pending:
                await asyncio.wait(
                    pending, timeout=min(left, 0.1), return_when=asyncio.FIRST_COMPLETED
                )
            else:
                await asyncio.sleep(min(left, 0.05))
            for replica, task in list(tasks.items()):
                if task.done():
                    del tasks[replica]
                    if (error := task.exception()) is None:
                        holders.add(replica)
                    else:
                        failures[replica] = str(error)
                        await asyncio.sleep(_RETRY_INTERVAL_S)

    async def replicate_replacement(
        self, group: int, need: PackNeed, command: log_pb2.Command, timeout_s: float
    ) -> Sequence[str]:
        """Copies a pack that is to replace others to every replica that can be reached; each
        answers once it has checked it, so that `command` holds up nobody's log afterwards.

        Returns the names of the nodes that hold it. Raises Rejected when a replica finds it wrong,
        Unavailable when no majority with the leader has it in `timeout_s` seconds. Either way
        nothing was changed.
        """
        header = pack_header(group, need)
        header.replacement = command.SerializeToString(deterministic=True)
        replicas = {r.replica_id: r for r in self._host.status(group).configuration.replicas}
        tasks = {
            replica_id: asyncio.create_task(
                self._stage_patiently(PeerAddress(replica.node, replica.peer_address), header)
            )
            for replica_id, replica in replicas.items()
            if replica.stores_packs and replica_id != self._replica_id
        }
        try:
            if tasks:
                await asyncio.wait(tasks.values(), timeout=timeout_s)
        finally:
            for task in tasks.values():
                task.cancel()
            await asyncio.gather(*tasks.values(), return_exceptions=True)
        holders, failures = {self._replica_id}, {}
        for replica_id, task in tasks.items():
            error = None if task.cancelled() else task.exception()
            if isinstance(error, InvalidArgument):
                raise Rejected(f"replica {replica_id} refuses the new pack: {error}")
            if task.cancelled() or error is not None:
                failures[replica_id] = str(error or "no answer in time")
            else:
                holders.add(replica_id)
        status = self._host.status(group)
        if not _enough(status, holders):
            raise Unavailable(_why_not_enough(status, holders, failures))
        return sorted(replicas[holder].node for holder in holders if holder in replicas)

    def _start_copies(
        self,
        status: GroupStatus,
        need: PackNeed,
        group: int,
        holders: set[str],
        tasks: dict[str, asyncio.Task[object]],
    ) -> None:
        header = pack_header(group, need)
        for replica in status.configuration.replicas:
            wanted = replica.stores_packs and replica.replica_id not in holders
            if wanted and replica.replica_id not in tasks:
                task: asyncio.Task[object] = asyncio.create_task(
                    self._stage(PeerAddress(replica.node, replica.peer_address), header)
                )
                tasks[replica.replica_id] = task
                self._background.add(task)
                task.add_done_callback(self._finished)

    async def _stage_patiently(self, peer: PeerAddress, header: peer_pb2.PackHeader) -> None:
        """A replica that is a little behind can't judge a replacement yet."""
        for _ in range(_REPLACEMENT_ATTEMPTS - 1):
            try:
                await self._stage(peer, header)
                return
            except Unavailable:
                await asyncio.sleep(_REPLACEMENT_RETRY_S)
        await self._stage(peer, header)

    async def _stage(self, peer: PeerAddress, header: peer_pb2.PackHeader) -> None:
        await self._stager.stage(peer, header)

    def _finished(self, task: asyncio.Task[object]) -> None:
        self._background.discard(task)
        if not task.cancelled() and isinstance(task.exception(), QuorepoError | None):
            return
        if not task.cancelled():
            log.warning("copying a pack failed", exc_info=task.exception())

    async def close(self) -> None:
        """Cancels the copies that still run in the background."""
        tasks = list(self._background)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def _enough(status: GroupStatus, holders: set[str]) -> bool:
    voters = [r.replica_id for r in status.configuration.replicas if r.votes]
    held = sum(1 for voter in voters if voter in holders)
    return status.leader is not None and status.leader in holders and 2 * held > len(voters)


def _why_not_enough(status: GroupStatus, holders: set[str], failures: dict[str, str]) -> str:
    voters = [r for r in status.configuration.replicas if r.votes]
    held = sum(1 for voter in voters if voter.replica_id in holders)
    causes = "; ".join(f"{replica}: {text}" for replica, text in sorted(failures.items()))
    lead = "no leader is known" if status.leader is None else "the leader may lack it"
    return (
        f"the pack is on {held} of {len(voters)} replicas and {lead}"
        + (f" ({causes})" if causes else "")
        + "; nothing was changed"
    )
