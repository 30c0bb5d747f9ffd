"""Ordered, duplicate-free Raft message streams between the replicas of a cluster.

Each node opens one stream to every other node for what it has to say; the streams that come in are
read here and handed to the Raft engine. Owns who is connected; must not know what messages mean.

A replica is heard whether or not the configuration has it (Ongaro's dissertation, 4.1:
configuration decides who is counted), unless it was removed. For one that is not in it, a link back
is kept as long as its stream to us is alive.
"""

from __future__ import annotations

import asyncio
import logging
import random
import threading
from collections.abc import Callable, Sequence
from typing import Any, NoReturn, Protocol, TypeAlias

import grpc
from grpc import aio

from quorepo.cluster.metrics import ClusterMetrics, PeerCounters
from quorepo.cluster.peer.certificates import Credentials
from quorepo.cluster.peer.known import KnownDisks, Verdict
from quorepo.cluster.peer.link import WRONG_DISK_KEY, PeerLink, TransportLimits
from quorepo.cluster.peer.roster import Roster, node_of_replica
from quorepo.internal.v1 import log_pb2, peer_pb2
from quorepo.storage.errors import Unavailable
from quorepo.storage.logs import fields

__all__ = ["PeerTransport", "RaftInbox", "TransportLimits"]

log = logging.getLogger(__name__)

_REFUSALS_TOLD_MAX = 100  # the words are the peer's

Context: TypeAlias = aio.ServicerContext[Any, Any]


class RaftInbox(Protocol):
    """What the Raft engine takes from the network; `raft.host.RaftHost` is one. All thread-safe."""

    def deliver(self, from_replica: str, messages: Sequence[peer_pb2.GroupMessage]) -> None: ...

    def peer_connected(self, replica_id: str) -> None: ...

    def peer_disconnected(self, replica_id: str) -> None: ...


class _Incoming:
    """One stream from a peer; the newest of a replica is the only one that delivers."""

    def __init__(self, reader: asyncio.Task[str], boot_nonce: bytes) -> None:
        self.reader = reader
        self.boot_nonce = boot_nonce
        self.superseded = False


class PeerTransport:
    """Implements `raft.interface.RaftTransport`; lives in the core's event loop."""

    def __init__(
        self,
        *,
        replica_id: str,
        node: str,
        cluster_id: str,
        address: str,
        credentials: Credentials,
        roster: Roster,
        metrics: ClusterMetrics,
        limits: TransportLimits | None = None,
        rng: random.Random | None = None,
        disks: KnownDisks | None = None,
        on_wrong_disk: Callable[[str, str, str], None] = lambda reason, detail, peer: None,
    ) -> None:
        """
        Args:
            address: where this node listens for peers, as others reach it.
            disks: judges who calls; None: everybody is the disk that he says.
            on_wrong_disk: told when a peer refuses this node's disk: (reason, why for people, the
                peer's replica id).
        """
        self._replica_id = replica_id
        self._node = node
        self._cluster_id = cluster_id
        self._address = address
        self._credentials = credentials
        self._roster = roster
        self._metrics = metrics
        self._limits = limits or TransportLimits()
        self._rng = rng or random.Random()  # noqa: S311 - jitter, not a secret
        self._disks = disks
        self._on_wrong_disk = on_wrong_disk
        self._boot = peer_pb2.BootRecord()

        self._inbox: RaftInbox | None = None
        self._loop: asyncio.AbstractEventLoop | None = None
        self._links: dict[str, PeerLink] = {}  # changed on the loop only
        self._members: dict[str, log_pb2.Replica] = {}
        self._incoming: dict[str, _Incoming] = {}
        self._stopping: set[asyncio.Task[None]] = set()
        self._refusals_told: set[tuple[str, str]] = set()
        self._closed = False

        self._lock = threading.Lock()
        self._dirty: list[PeerLink] = []

    def start(self, inbox: RaftInbox, boot: peer_pb2.BootRecord | None = None) -> None:
        """Binds the transport to the running event loop and to the engine it delivers to. `boot`
        tells peers which start of this disk this is."""
        self._inbox = inbox
        self._boot = boot or self._boot
        self._loop = asyncio.get_running_loop()

    async def close(self) -> None:
        """Closes all streams; later sends are dropped."""
        self._closed = True
        for incoming in list(self._incoming.values()):
            incoming.reader.cancel()
        links = list(self._links.values())
        self._links = {}
        for link in links:
            link.retire()
        await asyncio.gather(*(link.closed() for link in links), *self._stopping)

    # ---- RaftTransport, any thread

    def send(self, to_replica: str, messages: Sequence[peer_pb2.GroupMessage]) -> None:
        """Queues messages; drops them when the replica is not connected. Never blocks."""
        link = self._links.get(to_replica)
        if link is None or not link.push(messages):
            return
        with self._lock:
            first = not self._dirty
            self._dirty.append(link)
        if first:  # one wake-up of the loop per burst, whatever number of peers it goes to
            self._on_loop(self._wake_dirty)

    def set_replicas(self, replicas: Sequence[log_pb2.Replica]) -> None:
        """The replicas to keep connections to; the own one may be among them."""
        self._on_loop(self._set_members, list(replicas))

    def _on_loop(self, callback: Any, *arguments: Any) -> None:
        if self._loop is None:
            raise RuntimeError("the transport was not started")
        try:
            self._loop.call_soon_threadsafe(callback, *arguments)
        except RuntimeError:
            if not self._loop.is_closed():
                raise

    # ---- event loop

    def _wake_dirty(self) -> None:
        with self._lock:
            links, self._dirty = self._dirty, []
        for link in links:
            link.wake()

    def _set_members(self, replicas: Sequence[log_pb2.Replica]) -> None:
        self._members = {r.replica_id: r for r in replicas if r.replica_id != self._replica_id}
        for replica_id, link in list(self._links.items()):
            member = self._members.get(replica_id)
            moved = member is not None and member.peer_address != link.replica.peer_address
            if moved or (member is None and replica_id not in self._incoming):
                self._drop_link(replica_id)
        for replica in self._members.values():
            if replica.replica_id not in self._links and not self._closed:
                self._open_link(replica)

    def _open_link(self, replica: log_pb2.Replica) -> PeerLink:
        hello = peer_pb2.RaftFrame(
            from_replica=self._replica_id,
            cluster_id=self._cluster_id,
            to_node=replica.node,
            from_address=self._address,
            boot=self._boot,
        )
        link = PeerLink(
            replica,
            hello,
            self._credentials,
            self._limits,
            self,
            self._metrics.peer(replica.node),
            self._rng,
        )
        self._links = {**self._links, replica.replica_id: link}
        if replica.replica_id in self._incoming:
            link.incoming_opened()
        link.start()
        return link

    def _drop_link(self, replica_id: str) -> None:
        links = dict(self._links)
        link = links.pop(replica_id)
        self._links = links
        link.retire()  # at once: a new link to the replica may be opened in the next line
        task = asyncio.get_running_loop().create_task(link.closed())
        self._stopping.add(task)
        task.add_done_callback(self._stopping.discard)

    def connected(self, replica_id: str) -> None:
        """From a link: messages flow both ways."""
        log.info("peer connected", extra=fields(peer=replica_id))
        if self._inbox is not None:
            self._inbox.peer_connected(replica_id)

    def disconnected(self, replica_id: str, cause: str) -> None:
        """From a link: what was in flight, either way, may be lost."""
        log.info("peer disconnected", extra=fields(peer=replica_id, cause=cause))
        self._metrics.peer_disconnects.labels(node_of_replica(replica_id), cause).inc()
        if self._inbox is not None:
            self._inbox.peer_disconnected(replica_id)

    def refused_as_wrong_disk(self, replica_id: str, reason: str, detail: str) -> None:
        """From a link: the peer knows another disk of this replica."""
        self._on_wrong_disk(reason, detail, replica_id)

    # ---- streams from peers

    async def serve(self, context: Context, caller: str) -> None:
        """Serves one incoming Raft stream to its end; `caller` is the node of its certificate."""
        first = await self._first_frame(context, caller)
        replica_id = first.from_replica
        await self._check_disk(first, context)
        # Before the connection is reported here: the peer should know of it no later than we.
        await context.write(peer_pb2.RaftHello(replica_id=self._replica_id))
        if self._disks is not None and not self._disks.is_last_start(replica_id, first.boot):
            # A later start of the replica was let in while the hello was written.
            await context.abort(grpc.StatusCode.UNAVAILABLE, "a later start was heard; try again")
        reader = asyncio.get_running_loop().create_task(self._read(replica_id, first, context))
        mine = _Incoming(reader, first.boot.nonce)
        self._admit(first, mine)
        cause, problem = "lost", ""
        try:
            await asyncio.wait([reader])
            if not reader.cancelled():
                problem = reader.result()  # garbage is the server's to answer
            if mine.superseded:
                cause = "superseded"
            elif problem:
                cause = "refused"
        finally:
            reader.cancel()
            if self._incoming.get(replica_id) is mine:
                del self._incoming[replica_id]
                self._incoming_ended(replica_id, cause)
        if mine.superseded:
            await context.abort(grpc.StatusCode.ABORTED, "a newer stream of the replica took over")
        if problem:
            await self._refuse(context, replica_id, problem)

    async def _first_frame(self, context: Context, caller: str) -> peer_pb2.RaftFrame:
        """Reads who speaks; ends the stream when it must not speak here."""
        try:
            async with asyncio.timeout(self._limits.hello_timeout_s):
                frame: Any = await context.read()
        except TimeoutError:
            await context.abort(grpc.StatusCode.DEADLINE_EXCEEDED, "no first frame")
        if frame is aio.EOF:
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, "no first frame")
        problem, wrong = "", ""
        if self._closed or self._inbox is None:
            await context.abort(grpc.StatusCode.UNAVAILABLE, "this node is not serving")
        elif frame.cluster_id != self._cluster_id:
            wrong = "other-cluster"
            problem = f"this node belongs to cluster {self._cluster_id!r}, not {frame.cluster_id!r}"
        elif frame.to_node != self._node:
            problem = f"this node is {self._node!r}, not {frame.to_node!r}; correct cluster.peers"
        elif not node_of_replica(frame.from_replica):
            problem = f"{frame.from_replica!r} is no replica id (<node>@<disk>)"
        elif node_of_replica(frame.from_replica) != caller:
            problem = f"the certificate is of node {caller!r}, not of {frame.from_replica!r}"
        elif frame.from_replica == self._replica_id:
            problem = f"replica {frame.from_replica!r} runs here; its data directory was copied"
        else:
            problem = self._roster.replica_problem(frame.from_replica)
        if problem:
            await self._refuse(context, frame.from_replica or caller, problem, wrong)
        accepted: peer_pb2.RaftFrame = frame
        return accepted

    async def _check_disk(self, first: peer_pb2.RaftFrame, context: Context) -> None:
        """Ends the stream of a disk that is not the one that this replica was."""
        if self._disks is None:
            return
        replica_id = first.from_replica
        older = self._incoming.get(replica_id)
        here = older is not None and older.boot_nonce != first.boot.nonce
        try:
            verdict = await self._disks.judge(first, another_is_here=here)
        except Unavailable as error:
            verdict = Verdict("", str(error))
        if verdict.wrong:
            self._metrics.wrong_disks_refused.labels(node_of_replica(replica_id)).inc()
            await self._refuse(context, replica_id, verdict.problem, verdict.wrong)
        if verdict.problem:
            await context.abort(grpc.StatusCode.UNAVAILABLE, verdict.problem)

    async def _refuse(self, context: Context, peer: str, problem: str, wrong: str = "") -> NoReturn:
        """`wrong`: it is the caller's disk that is refused, and why in one word."""
        told = (peer, problem)
        if told not in self._refusals_told:  # a peer tries again for ever, every two seconds
            if len(self._refusals_told) >= _REFUSALS_TOLD_MAX:
                self._refusals_told.clear()
            self._refusals_told.add(told)
            log.warning("peer refused", extra=fields(peer=peer, reason=problem))
        trailing = ((WRONG_DISK_KEY, wrong),) if wrong else ()
        await context.abort(grpc.StatusCode.FAILED_PRECONDITION, problem, trailing)

    def _admit(self, first: peer_pb2.RaftFrame, incoming: _Incoming) -> None:
        """Makes `incoming` the one stream of its replica, and sees to a way back."""
        replica_id = first.from_replica
        older = self._incoming.get(replica_id)
        if older is not None:
            # The reader is cancelled before it can deliver again: deliveries happen on this thread.
            older.superseded = True
            older.reader.cancel()
            self._incoming_ended(replica_id, "superseded", keep=True)
        self._incoming[replica_id] = incoming
        self._refusals_told = {told for told in self._refusals_told if told[0] != replica_id}
        link = self._links.get(replica_id)
        if link is not None:
            link.incoming_opened(first.from_address)
        elif first.from_address:
            guest = log_pb2.Replica(
                replica_id=replica_id,
                node=node_of_replica(replica_id),
                peer_address=first.from_address,
            )
            self._open_link(guest)

    def _incoming_ended(self, replica_id: str, cause: str, *, keep: bool = False) -> None:
        link = self._links.get(replica_id)
        if link is None:
            return
        link.incoming_lost(cause)
        if replica_id not in self._members and not keep:
            self._drop_link(replica_id)

    async def _read(self, replica_id: str, first: peer_pb2.RaftFrame, context: Context) -> str:
        """Delivers frame by frame; returns why no more are taken, empty when the stream ended.

        Raises DecodeError for what is no frame.
        """
        inbox = self._inbox
        assert inbox is not None
        counters: PeerCounters = self._metrics.peer(node_of_replica(replica_id))
        frame: Any = first  # or EOF, which the stubs do not know
        while frame is not aio.EOF:
            # Removed while its stream was alive? Of members there are too many frames to ask.
            guest = replica_id not in self._members
            if guest and (problem := self._roster.replica_problem(replica_id)):
                return problem
            if frame is not first and frame.from_replica not in ("", replica_id):
                return f"a stream of {replica_id!r} goes on as {frame.from_replica!r}"
            if frame.messages:
                counters.messages_received.inc(len(frame.messages))
                counters.bytes_received.inc(frame.ByteSize())
                inbox.deliver(replica_id, list(frame.messages))
            try:
                frame = await context.read()
            except aio.BaseError:
                return ""  # the stream broke
        return ""
