"""Real grpc.aio nodes on loopback for the tests of cluster/peer, and a proxy that can go silent."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import hashlib
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from grpc import aio
from grpc._cython import cygrpc  # type: ignore[attr-defined]
from prometheus_client import CollectorRegistry

from quorepo.cluster.metrics import ClusterMetrics
from quorepo.cluster.peer.certificates import Credentials
from quorepo.cluster.peer.clients import Keepalive, PeerAddress, PeerClients
from quorepo.cluster.peer.held import HeldPacks
from quorepo.cluster.peer.packs import PackExchange, PackLimits
from quorepo.cluster.peer.roster import Roster
from quorepo.cluster.peer.server import PeerServer
from quorepo.cluster.peer.transport import PeerTransport, TransportLimits
from quorepo.internal.v1 import core_pb2, log_pb2, peer_pb2
from quorepo.storage.errors import FatalError
from quorepo.storage.layout import GroupLayout
from support.peer_certificates import credentials_of

CLUSTER = "cluster-1"
GROUP = 1
SERVICE = peer_pb2.DESCRIPTOR.services_by_name["Peer"]
METHODS = [method.name for method in SERVICE.methods]
KEEPALIVE = Keepalive(interval_s=0.4, timeout_s=0.4)


async def ended_with(method: Any, *sent: bytes) -> tuple[str, str]:
    """The status code and words of a stream that the other end may end before it was written to.

    grpc.aio loses that answer when it is in the middle of the write, and says INTERNAL in its
    place: then once more.
    """
    while True:
        call = method(timeout=60)
        ended = (aio.AioRpcError, asyncio.InvalidStateError, cygrpc.ExecuteBatchError)
        with contextlib.suppress(*ended):
            for data in sent:
                await call.write(data)
            await call.done_writing()
            while await call.read() is not aio.EOF:
                pass  # the status comes behind what was said before
        code = (await call.code()).name
        if code != "INTERNAL":
            return code, await call.details()


async def wait_until(condition: Callable[[], object], timeout_s: float = 10.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.005)


class Inbox:
    """Stands in for the Raft host: writes down what it is told, in order."""

    def __init__(self) -> None:
        self.events: list[tuple[str, str]] = []
        self.received: list[tuple[str, int]] = []
        self.connected: set[str] = set()

    def deliver(self, from_replica: str, messages: Sequence[peer_pb2.GroupMessage]) -> None:
        self.received.extend((from_replica, message.term) for message in messages)

    def peer_connected(self, replica_id: str) -> None:
        assert replica_id not in self.connected
        self.connected.add(replica_id)
        self.events.append(("connected", replica_id))

    def peer_disconnected(self, replica_id: str) -> None:
        assert replica_id in self.connected
        self.connected.remove(replica_id)
        self.events.append(("disconnected", replica_id))

    def terms_from(self, replica_id: str) -> list[int]:
        return [term for sender, term in self.received if sender == replica_id]


class Handler:
    """Answers Identify, Rejoin and GetStatus."""

    async def identify(self, request: peer_pb2.IdentifyRequest) -> peer_pb2.IdentifyResponse:
        return peer_pb2.IdentifyResponse(node="answering", replica_id=request.replica_id)

    async def rejoin(self, request: peer_pb2.RejoinRequest) -> peer_pb2.RejoinResponse:
        return peer_pb2.RejoinResponse(accepted=True)

    async def join(
        self, request: peer_pb2.JoinRequest, token_digest: bytes
    ) -> peer_pb2.JoinResponse:
        return peer_pb2.JoinResponse(cluster_id=token_digest.hex())

    async def get_status(self, request: core_pb2.CoreStatusRequest) -> core_pb2.CoreStatus:
        return core_pb2.CoreStatus(node="answering")

    async def transfer_leader(
        self, request: core_pb2.CoreTransferRequest
    ) -> core_pb2.CoreTransferResponse:
        return core_pb2.CoreTransferResponse(from_node="answering")


class Node:
    """One node's peer side: server, transport, packs."""

    def __init__(
        self,
        data_dir: Path,
        name: str,
        *,
        disk: str = "d1",
        credentials: Credentials | None = None,
        cluster_id: str = CLUSTER,
        served_as: str = "",
        limits: TransportLimits | None = None,
        pack_limits: PackLimits | None = None,
    ) -> None:
        self.name = name
        self.replica_id = f"{name}@{disk}"
        self.credentials = credentials or credentials_of(name)
        self.configuration = log_pb2.Configuration()  # what its roster knows
        self.cluster_id = cluster_id
        self.served_as = served_as or name
        self.limits = limits or TransportLimits(keepalive=KEEPALIVE, backoff_s_max=0.2)
        self.inbox = Inbox()
        self.metrics = ClusterMetrics(CollectorRegistry())
        self.layout = GroupLayout(data_dir / name / disk, GROUP)
        self.layout.create()
        self.held = HeldPacks.scan({GROUP: self.layout})
        self.fatal: list[FatalError] = []
        self.clients = PeerClients(self.credentials, KEEPALIVE)
        self.packs = PackExchange(
            clients=self.clients,
            layouts={GROUP: self.layout},
            held=self.held,
            metrics=self.metrics,
            on_fatal=self.fatal.append,
            limits=pack_limits or PackLimits(retry_interval_s=0.01),
        )
        self.port = 0

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def peer(self) -> PeerAddress:
        return PeerAddress(self.name, self.address)

    def through(self, proxy: Proxy) -> PeerAddress:
        """This node, reached by another way."""
        return PeerAddress(self.name, f"127.0.0.1:{proxy.port}")

    def replica(self, address: str = "") -> log_pb2.Replica:
        return log_pb2.Replica(
            replica_id=self.replica_id, node=self.name, peer_address=address or self.address
        )

    async def start(self) -> None:
        roster = Roster(lambda: [self.configuration])
        self.server = PeerServer(credentials=self.credentials, node=Handler(), keepalive=KEEPALIVE)
        self.port = await self.server.start(f"127.0.0.1:{self.port}")
        self.transport = PeerTransport(
            replica_id=self.replica_id,
            node=self.served_as,
            cluster_id=self.cluster_id,
            address=self.address,
            credentials=self.credentials,
            roster=roster,
            metrics=self.metrics,
            limits=self.limits,
        )
        self.transport.start(self.inbox)
        self.server.serve(self.transport, self.packs, roster)

    async def stop(self) -> None:
        """As a process that ends; `start` brings a new one up on the same port."""
        await self.transport.close()
        await self.server.stop()

    async def close(self) -> None:
        await self.stop()
        await self.clients.close()
        await self.packs.close()


class Proxy:
    """A TCP hop that can be cut (RST or FIN) or go silent without closing anything."""

    def __init__(self, target: Callable[[], int]) -> None:
        self._target = target
        self._writers: set[asyncio.StreamWriter] = set()
        self._pumps: set[asyncio.Task[None]] = set()
        self.silent = asyncio.Event()
        self.forwarded_bytes = 0
        self.cut_after_bytes = 0

    async def start(self) -> None:
        self._server = await asyncio.start_server(self._accept, "127.0.0.1", 0)
        self.port: int = self._server.sockets[0].getsockname()[1]

    async def _accept(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            inner_reader, inner_writer = await asyncio.open_connection("127.0.0.1", self._target())
        except OSError:
            writer.close()
            return
        self._writers |= {writer, inner_writer}
        for source, sink in ((reader, inner_writer), (inner_reader, writer)):
            pump = asyncio.get_running_loop().create_task(self._pump(source, sink))
            self._pumps.add(pump)

    async def _pump(self, source: asyncio.StreamReader, sink: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await source.read(65536):
                if self.silent.is_set():
                    continue
                self.forwarded_bytes += len(data)
                if 0 < self.cut_after_bytes < self.forwarded_bytes:
                    self.cut_after_bytes = 0
                    self.cut()
                    return
                sink.write(data)
                await sink.drain()
        sink.close()

    def cut(self) -> None:
        """Resets every connection."""
        for writer in self._writers:
            writer.transport.abort()
        self._writers.clear()

    async def close(self) -> None:
        self._server.close()
        for pump in self._pumps:
            pump.cancel()
        await asyncio.gather(*self._pumps, return_exceptions=True)
        self.cut()


@dataclasses.dataclass
class Pack:
    pack: bytes
    index: bytes
    header: peer_pb2.PackHeader

    def put(self, layout: GroupLayout) -> None:
        for path, data in zip(
            layout.quarantine_paths(self.header.digest), (self.pack, self.index), strict=True
        ):
            path.write_bytes(data)


def make_pack(pack: bytes, index: bytes, repository_id: str = "") -> Pack:
    header = peer_pb2.PackHeader(
        group=GROUP,
        digest=hashlib.sha256(pack).digest(),
        index_digest=hashlib.sha256(index).digest(),
        pack_bytes=len(pack),
        index_bytes=len(index),
        repository_id=repository_id,
    )
    return Pack(pack, index, header)


class Lab:
    """Starts nodes and proxies; `close` ends them and checks what they left behind."""

    def __init__(self, data_dir: Path) -> None:
        self._data_dir = data_dir
        self._nodes: list[Node] = []
        self._proxies: list[Proxy] = []

    async def node(
        self,
        name: str,
        *,
        disk: str = "d1",
        credentials: Credentials | None = None,
        cluster_id: str = CLUSTER,
        served_as: str = "",
        limits: TransportLimits | None = None,
        pack_limits: PackLimits | None = None,
    ) -> Node:
        """A running node; `served_as` is the name it thinks it has."""
        node = Node(
            self._data_dir,
            name,
            disk=disk,
            credentials=credentials,
            cluster_id=cluster_id,
            served_as=served_as,
            limits=limits,
            pack_limits=pack_limits,
        )
        self._nodes.append(node)
        await node.start()
        return node

    async def pair(self, first: str = "n1", second: str = "n2") -> tuple[Node, Node]:
        """Two connected nodes."""
        one, two = await self.node(first), await self.node(second)
        connect(one, two)
        connect(two, one)
        await wait_until(lambda: one.inbox.connected and two.inbox.connected)
        return one, two

    async def proxy(self, target: Callable[[], int]) -> Proxy:
        """A proxy to a port of loopback."""
        proxy = Proxy(target)
        self._proxies.append(proxy)
        await proxy.start()
        return proxy

    async def close(self) -> None:
        for node in self._nodes:
            await node.close()
            assert not list(node.layout.quarantine.glob("*.tmp"))
        for proxy in self._proxies:
            await proxy.close()


def connect(node: Node, *others: Node, through: Proxy | None = None) -> None:
    """Tells `node` its configuration; `through` is the way to all of them."""
    address = f"127.0.0.1:{through.port}" if through else ""
    replicas = [node.replica(), *(other.replica(address) for other in others)]
    node.transport.set_replicas(replicas)


def message(number: int, size: int = 0) -> peer_pb2.GroupMessage:
    """A Raft message that can be told apart by its term; `size` bytes and some."""
    wanted = peer_pb2.GroupMessage(group=GROUP, term=number)
    if size:
        wanted.forward.data = bytes(size)
    return wanted
