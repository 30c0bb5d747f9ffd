"""The core process of a node: the Raft groups, their state, their packs, and the peer API.

`run` puts the parts together and takes them apart again; each part is a module of its own. No pack
bytes are computed here (processes.md): verification and building happen in the edge's workers.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import os
import random
import secrets
import signal
import time
from collections.abc import Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any

from prometheus_client import CollectorRegistry

from quorepo.cluster.addresses import announce_address, living_twin, move_replica
from quorepo.cluster.admission import Admission, AuthorityFiles
from quorepo.cluster.apply import ApplyThread
from quorepo.cluster.contact import Contact
from quorepo.cluster.core_service import CoreService, serve_edge
from quorepo.cluster.divergence import watch_divergence
from quorepo.cluster.formation import Formation, FormationPlan, voter
from quorepo.cluster.gate import StagedPackGate
from quorepo.cluster.identity import NodeIdentity
from quorepo.cluster.intentions import CommittedMembers
from quorepo.cluster.levels import Levels, refuse_older_program
from quorepo.cluster.lost_majority import refuse_unfinished
from quorepo.cluster.member_calls import MemberCalls
from quorepo.cluster.membership import Membership
from quorepo.cluster.metrics import ClusterMetrics
from quorepo.cluster.opening import NodeDisk, founding_configuration, open_disk
from quorepo.cluster.peer.certificates import Credentials
from quorepo.cluster.peer.clients import PeerAddress, PeerClients
from quorepo.cluster.peer.expiry import watch_certificate
from quorepo.cluster.peer.packs import PackExchange
from quorepo.cluster.peer.roster import Roster
from quorepo.cluster.peer.server import PeerServer
from quorepo.cluster.peer.transport import PeerTransport
from quorepo.cluster.proposals import ProposalDriver
from quorepo.cluster.raft.durable import DirectoryLock
from quorepo.cluster.raft.host import RaftHost
from quorepo.cluster.raft.interface import Outcome, RaftConfig
from quorepo.cluster.registration import form_before, registration
from quorepo.cluster.replacements import ReplacementChecks
from quorepo.cluster.replica_upkeep import ReplicaUpkeep
from quorepo.cluster.self_view import SelfView
from quorepo.cluster.sweep import Retention
from quorepo.cluster.wrong_disk import read_wrong_disk
from quorepo.internal.v1 import core_pb2, log_pb2, peer_pb2
from quorepo.storage.errors import FatalError, Unavailable
from quorepo.storage.limits import StorageLimits
from quorepo.storage.logs import fields

__all__ = ["GROUPS", "GROUP_DIRECTORY", "GROUP_STORAGE", "CoreSettings", "run"]

log = logging.getLogger(__name__)

GROUP_DIRECTORY = 0
GROUP_STORAGE = 1
GROUPS = (GROUP_DIRECTORY, GROUP_STORAGE)

_LOCK_WAIT_S = 5.0  # a node that starts waits this long for the one that is ending
_STOP_GRACE_S = 1.0
_REGISTER_TIMEOUT_S = 10.0


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class CoreSettings:
    """What the core needs of the node's configuration, in plain values."""

    node: str
    data_dir: Path
    socket_path: Path
    peers: Mapping[str, str]  # of the configuration; members are those of the groups
    formation: FormationPlan
    credentials: Credentials
    authority: AuthorityFiles
    peer_listen: str
    http_url: str
    grpc_address: str
    metrics_url: str
    version: str
    raft: RaftConfig
    reserve_bytes: int
    retention: Retention
    limits: StorageLimits


def run(settings: CoreSettings) -> int:
    """Runs a core until SIGTERM; returns the process's exit code. Raises FatalError."""
    settings.data_dir.mkdir(mode=0o700, parents=True, exist_ok=True)
    try:
        lock = DirectoryLock(settings.data_dir / "lock", _LOCK_WAIT_S)
    except Unavailable as error:
        raise FatalError(
            f"{error}; nothing was changed; stop the node that runs on this data directory first",
            exit_code=FatalError.EXIT_CONFIG,
        ) from error
    try:
        refuse_unfinished(settings.data_dir)
        asyncio.run(_Core(settings).run())
    finally:
        lock.release()
    return 0


def _end_process(error: BaseException) -> None:
    """Ends the process at once, from any thread: nothing more may be acknowledged or written."""
    log.critical("this process ends", exc_info=error, extra=fields(error=str(error)))
    logging.shutdown()
    os._exit(error.exit_code if isinstance(error, FatalError) else FatalError.EXIT_BUG)


class _Core:
    """All parts of one core, from formation to shutdown; lives in one event loop."""

    def __init__(self, settings: CoreSettings) -> None:
        self._settings = settings
        self._registry = CollectorRegistry()
        self._metrics = ClusterMetrics(self._registry)
        self._levels = Levels(settings.formation.level)
        self._clients = PeerClients(settings.credentials)
        self._formation = Formation(
            NodeIdentity.open(settings.data_dir, settings.node),
            settings.data_dir,
            settings.formation,
            self._clients,
        )
        self._members = MemberCalls(settings.node, settings.peers, self._clients)
        self._view = SelfView(
            groups=GROUPS,
            version=settings.version,
            registry=self._registry,
            metrics=self._metrics,
            levels=self._levels,
            formation=self._formation,
            wrong_disk=read_wrong_disk(settings.data_dir),
        )
        self._service = CoreService(self._view.describe, self._view.metrics_text, self._members)
        self._membership: Membership | None = None
        self._contact: Contact | None = None
        self._admission: Admission | None = None
        self._host: RaftHost | None = None
        self._tasks: list[asyncio.Task[None]] = []

    # ---- life

    async def run(self) -> None:
        stopping = asyncio.Event()
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            loop.add_signal_handler(number, stopping.set)
        settings = self._settings
        async with contextlib.AsyncExitStack() as stack:
            stack.push_async_callback(self._clients.close)
            expiry = self._metrics.peer_certificate_expiry
            watch = watch_certificate(self._settings.credentials, expiry)
            self._spawn(watch, "watch certificate")
            stack.push_async_callback(self._cancel_tasks)
            settings.socket_path.unlink(missing_ok=True)
            await serve_edge(self._service, settings.socket_path, stack)
            peers = PeerServer(credentials=settings.credentials, node=self)
            await peers.start(settings.peer_listen)
            stack.push_async_callback(peers.stop, _STOP_GRACE_S)
            if (wrong := self._view.wrong_disk) is not None:
                self._metrics.wrong_disk.set(1)
                log.critical("wrong disk", extra=fields(why=wrong.text(settings.node)))
                await stopping.wait()
            elif await form_before(self._formation.run(), stopping):
                await self._start_groups(stack, peers)
                stack.push_async_callback(self._cancel_tasks)
                await stopping.wait()
                # Whoever follows leads before this node is gone: no write has to wait for it.
                await self._members.hand_over_all(2 * settings.raft.election_timeout_s_max)
            log.info("stopping")

    async def _start_groups(self, stack: contextlib.AsyncExitStack, peers: PeerServer) -> None:
        settings, identity = self._settings, self._formation.identity
        founding = founding_configuration(identity)
        disk = await open_disk(
            settings.data_dir, GROUPS, settings.reserve_bytes, self._metrics, stack
        )
        refuse_older_program(disk.stores, self._levels.own)
        roster = Roster(self._configurations)
        contact = Contact(settings.data_dir, identity, GROUPS, self._clients, _end_process)
        self._contact = contact
        transport = self._make_transport(contact, roster)
        checks = ReplacementChecks(disk.layouts, disk.held, settings.limits, self._metrics)
        stack.push_async_callback(checks.close)
        packs = PackExchange(
            clients=self._clients,
            layouts=disk.layouts,
            held=disk.held,
            metrics=self._metrics,
            on_fatal=_end_process,
            check_replacement=checks.check_staged,
            check_space=disk.space.check_taken_over,
        )
        apply = ApplyThread(disk.stores, disk.layouts, _end_process, self._metrics, disk.held)
        upkeep = ReplicaUpkeep(
            replica_id=identity.replica_id,
            founding=founding,
            disk=disk,
            apply=apply,
            packs=packs,
            clients=self._clients,
            raft=settings.raft,
            retention=settings.retention,
            metrics=self._metrics,
            on_fatal=_end_process,
            pack_sources=self._pack_sources,
        )
        loop, level = asyncio.get_running_loop(), settings.formation.level
        gate = StagedPackGate(disk.held, packs, loop, self._pack_sources, checks, level)
        host = self._make_host(disk, apply, gate, transport, upkeep)
        gate.packs_arrived = host.packs_arrived
        driver = ProposalDriver(
            host,
            packs,
            identity.replica_id,
            self._metrics,
            self._levels,
            settings.raft.command_bytes_max,
        )

        self._host = self._view.host = host
        self._view.upkeep = upkeep
        self._members.verify_here = upkeep.verify
        self._open_admission(stack, disk, driver)
        self._open_membership(stack, host, disk, driver)
        boot = contact.begin(host)
        transport.start(host, boot)
        apply.start(host.applied)
        host.start()
        peers.serve(transport, packs, roster, upkeep.source, upkeep.verify)
        self._service.serve(host, driver, packs, disk.stores, checks, self._view.describe_replica)
        # Taken apart in the reverse order: first what asks, then what answers.
        stack.callback(apply.stop)
        stack.callback(host.stop)
        stack.push_async_callback(packs.close)
        stack.push_async_callback(transport.close)
        stack.push_async_callback(gate.close)
        stack.push_async_callback(driver.close)
        stack.push_async_callback(upkeep.close)

        self._spawn(self._register(driver), "register")
        self._begin_work(contact, upkeep, host, boot)

    def _begin_work(
        self, contact: Contact, upkeep: ReplicaUpkeep, host: RaftHost, boot: peer_pb2.BootRecord
    ) -> None:
        """What runs for as long as the node does."""
        settings, identity = self._settings, self._formation.identity
        me = voter(identity.node, identity.replica_id, settings.formation.peer_address)
        self._spawn(announce_address(host, GROUPS, self._clients, me, boot), "announce address")
        self._spawn(contact.disks.keep(), "known disks")
        self._spawn(
            watch_divergence(
                self._members.own_divergence,
                upkeep.compare_now,
                settings.retention.scrub_interval_s,
                contact.diverged,
            ),
            "compare states",
        )
        for name, work in upkeep.work(host).items():
            self._spawn(work, name)

    def _open_membership(
        self,
        stack: contextlib.AsyncExitStack,
        host: RaftHost,
        disk: NodeDisk,
        driver: ProposalDriver,
    ) -> None:
        identity = self._formation.identity
        committed = CommittedMembers(disk.layouts, founding_configuration(identity))
        stack.callback(committed.close)
        self._membership = self._view.membership = Membership(
            host,
            GROUPS,
            identity.replica_id,
            members=committed,
            driver=driver,
            metrics=self._metrics,
            levels=self._levels,
        )
        self._members.serve(host, GROUPS)
        self._spawn(self._membership.run(), "membership")

    def _open_admission(
        self, stack: contextlib.AsyncExitStack, disk: NodeDisk, driver: ProposalDriver
    ) -> None:
        settings, identity = self._settings, self._formation.identity
        self._admission = Admission(
            settings.authority,
            driver,
            self._configurations,
            disk.layouts[GROUP_DIRECTORY],
            self._metrics,
            node=identity.node,
            cluster_id=identity.cluster_id,
        )
        stack.callback(self._admission.close)
        self._service.admission = self._admission

    def _make_transport(self, contact: Contact, roster: Roster) -> PeerTransport:
        settings, identity = self._settings, self._formation.identity
        return PeerTransport(
            replica_id=identity.replica_id,
            node=identity.node,
            cluster_id=identity.cluster_id,
            address=settings.formation.peer_address,
            credentials=settings.credentials,
            roster=roster,
            metrics=self._metrics,
            disks=contact.disks,
            on_wrong_disk=contact.refused,
        )

    def _make_host(
        self,
        disk: NodeDisk,
        apply: ApplyThread,
        gate: StagedPackGate,
        transport: PeerTransport,
        upkeep: ReplicaUpkeep,
    ) -> RaftHost:
        identity = self._formation.identity
        return RaftHost(
            replica_id=identity.replica_id,
            groups=disk.starts(founding_configuration(identity)),
            journal=disk.journal,
            votes_dir=disk.votes_dir,
            sink=apply,
            gate=gate,
            transport=transport,
            config=self._settings.raft,
            on_fatal=_end_process,
            clock_ms=lambda: time.time_ns() // 1_000_000,
            rng=random.Random(secrets.randbits(64)),  # noqa: S311 - jitter, not a secret
            space=disk.space,
            snapshots=upkeep.receiver,
        )

    def _spawn(self, work: Coroutine[Any, Any, None], name: str) -> None:
        """Runs `work` for as long as the core lives; its failure is a bug, and ends the process."""
        task = asyncio.create_task(work, name=name)
        self._tasks.append(task)
        task.add_done_callback(_end_on_failure)

    async def _cancel_tasks(self) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    # ---- work in the background

    async def _register(self, driver: ProposalDriver) -> None:
        """Tells the directory where this node can be reached."""
        settings, identity = self._settings, self._formation.identity
        while not self._view.registered:
            command = registration(identity, settings.formation.peer_address, settings)
            answer = await driver.propose(GROUP_DIRECTORY, command, _REGISTER_TIMEOUT_S)
            self._view.registered = answer.outcome is Outcome.APPLIED
        log.info("serving", extra=fields(replica=identity.replica_id))

    def _pack_sources(self, group: int, from_replica: str) -> Sequence[PeerAddress]:
        """Where a pack may be fetched: the replica that sent its entry, then the others."""
        assert self._host is not None
        replicas = self._host.status(group).configuration.replicas
        others = [r for r in replicas if r.replica_id != self._formation.identity.replica_id]
        others.sort(key=lambda r: r.replica_id != from_replica)
        return [PeerAddress(r.node, r.peer_address) for r in others if r.stores_packs]

    def _configurations(self) -> list[log_pb2.Configuration]:
        assert self._host is not None
        return [self._host.status(group).configuration for group in GROUPS]

    # ---- what others ask of this node

    async def identify(self, request: peer_pb2.IdentifyRequest) -> peer_pb2.IdentifyResponse:
        answer = self._formation.describe()
        if self._host is not None:
            answer.members.extend(self._host.status(GROUP_DIRECTORY).configuration.replicas)
        return answer

    async def rejoin(self, request: peer_pb2.RejoinRequest) -> peer_pb2.RejoinResponse:
        if self._membership is None:
            return peer_pb2.RejoinResponse(reason="this node does not belong to a cluster yet")
        assert self._host is not None
        assert self._contact is not None
        if not self._contact.disks.is_last_start(request.replica_id, request.boot):
            reason = "another start of this replica was heard; its streams are told why"
            return peer_pb2.RejoinResponse(reason=reason)
        self._members.called(request.node, request.peer_address)
        replica, address = request.replica_id, request.peer_address
        if problem := await move_replica(self._host, GROUPS, replica, address):
            return peer_pb2.RejoinResponse(reason=problem)
        if problem := living_twin(self._host, GROUPS, request.node, replica):
            return peer_pb2.RejoinResponse(reason=problem)
        known = {r.node for c in self._configurations() for r in c.replicas}
        assert self._admission is not None
        # Its disk was emptied, and the certificate tells who it is; or it came with a token.
        by_itself = request.node in known or await self._admission.admitted(request.replica_id)
        by_itself = by_itself or self._settings.peers.get(request.node) == request.peer_address
        return await self._membership.rejoin(request, by_itself=by_itself)

    async def transfer_leader(
        self, request: core_pb2.CoreTransferRequest
    ) -> core_pb2.CoreTransferResponse:
        return await self._members.transfer_here(request)

    async def join(
        self, request: peer_pb2.JoinRequest, token_digest: bytes
    ) -> peer_pb2.JoinResponse:
        if self._admission is None:
            raise Unavailable("this node does not belong to a cluster yet")
        return await self._admission.join(request, token_digest)

    async def get_status(self, request: core_pb2.CoreStatusRequest) -> core_pb2.CoreStatus:
        return self._service.own_status()


def _end_on_failure(task: asyncio.Task[None]) -> None:
    if not task.cancelled() and (error := task.exception()) is not None:
        _end_process(error)
