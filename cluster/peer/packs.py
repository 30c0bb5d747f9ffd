"""Packs between nodes: staging them ahead of a transaction, fetching the ones that are missing.

A pack is held once both files are durable in quarantine under their digest. All file work runs on
threads of its own, so that no fsync holds up the event loop. Must not know of Raft or of what is in
a pack.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from typing import Any, TypeVar

from grpc import aio

from quorepo.cluster.metrics import ClusterMetrics
from quorepo.cluster.peer.arrival import Arrival
from quorepo.cluster.peer.clients import PeerAddress, PeerClients, from_rpc_error
from quorepo.cluster.peer.file_work import FileWork
from quorepo.cluster.peer.held import HeldPacks
from quorepo.cluster.peer.pack_files import PackReader, PackWriter, check_header, sweep_temporary
from quorepo.internal.v1 import peer_pb2
from quorepo.storage.errors import (
    CorruptPack,
    FatalError,
    InvalidArgument,
    NotFound,
    QuorepoError,
    Unavailable,
)
from quorepo.storage.layout import GroupLayout
from quorepo.storage.logs import fields

__all__ = ["PackExchange", "PackLimits", "sweep_temporary"]

log = logging.getLogger(__name__)

T = TypeVar("T")
Pace = Callable[[int], Awaitable[None]]

# A transfer that is slowed down on purpose; a peer that is gone shows by its connection.
_PACED_TIMEOUT_S = 6 * 3600.0


@dataclasses.dataclass(frozen=True, slots=True)
class PackLimits:
    """Bounds of the pack exchange."""

    chunk_bytes: int = 256 * 1024  # measured: 1 MiB messages delay small calls, 64 KiB cost CPU
    batch_bytes: int = 1024 * 1024  # per hop to a thread; a transfer has two batches in memory
    pack_bytes_max: int = 64 * 1024**3
    transfer_timeout_s: float = 30.0  # for a transfer of no size ...
    transfer_bytes_per_s_min: int = 1024 * 1024  # ... and this much slower with size
    fetch_rounds_max: int = 3
    retry_interval_s: float = 0.2
    drain_bytes_max: int = 64 * 1024 * 1024  # read and thrown away of a pack that is not wanted
    threads: int = 8  # mostly waiting in fsync


class PackExchange:
    """Sends and receives packs for one node; lives in the core's event loop."""

    def __init__(
        self,
        *,
        clients: PeerClients,
        layouts: Mapping[int, GroupLayout],
        held: HeldPacks,
        metrics: ClusterMetrics,
        on_fatal: Callable[[FatalError], None],
        limits: PackLimits | None = None,
        pace: Pace | None = None,
        rng: random.Random | None = None,
        check_replacement: Callable[[peer_pb2.PackHeader], Awaitable[None]] | None = None,
        check_space: Callable[[int], None] = lambda size_bytes: None,
    ) -> None:
        """`pace(bytes)` is awaited before bytes are sent, to slow background copies down.

        `check_replacement(header)` returns once a staged pack that is to replace others was found
        right, and raises a QuorepoError otherwise; without it such packs are refused.

        `on_fatal` is told of disk errors after which this process must not go on.
        """
        self._clients = clients
        self._layouts = dict(layouts)
        self._held = held
        self._metrics = metrics
        self._files = FileWork((limits or PackLimits()).threads, on_fatal)
        self._limits = limits or PackLimits()
        self._pace = pace
        self._rng = rng or random.Random()  # noqa: S311 - jitter, not a secret
        self._check_replacement = check_replacement
        self._check_space = check_space  # raises StorageFull when so many bytes may not come in
        self.lacks_room: set[int] = set()  # groups whose last pack had no room on this disk
        self._arrivals: dict[tuple[int, bytes], asyncio.Future[None]] = {}

    async def close(self) -> None:
        """Waits for file work under way; cancel the callers first."""
        await self._files.close()

    async def write_file(self, function: Callable[..., T], *arguments: Any) -> T:
        """File work of others under the same rules: only a full disk is survived (StorageFull)."""
        return await self._files.write(function, *arguments)

    # ---- this node's own packs

    async def adopt(self, header: peer_pb2.PackHeader) -> None:
        """Takes notice of a pack that a worker of this node put into quarantine, durably.

        Raises NotFound when it is not there with the announced sizes.
        """
        check_header(header, self._limits.pack_bytes_max)
        if self._held.has(header.group, header.digest):
            return
        async with self._reading(header):
            self._held.add(header.group, header.digest)

    async def keep(self, header: peer_pb2.PackHeader, data: bytes) -> None:
        """Puts a pack of this node, its index behind it, into quarantine, durably.

        Raises InvalidArgument, CorruptPack, StorageFull, FatalError.
        """
        check_header(header, self._limits.pack_bytes_max)
        layout = self._layout(header.group)
        async with self._arriving(header):
            if not self._held.has(header.group, header.digest):
                async with self._arrival(layout, header, "keep") as arrival:
                    await arrival.feed(data)
                    await arrival.finish()

    # ---- sending

    async def stage(self, peer: PeerAddress, header: peer_pb2.PackHeader) -> None:
        """Copies a pack of this node into the quarantine of `peer`; durable there on return.

        Raises NotFound (not here), StorageFull or CorruptPack (there), Unavailable (try again).
        """
        check_header(header, self._limits.pack_bytes_max)
        with self._observe("stage_out") as outcome:
            async with self._reading(header) as reader:
                call: Any = self._clients.stub(peer).StagePack(timeout=self._timeout_s(header))
                try:
                    response = await self._send(call, header, reader)
                except aio.AioRpcError as error:
                    raise from_rpc_error(peer, error) from error
                finally:
                    call.cancel()
            if response.already_held:
                outcome.word = "already_held"

    async def _send(
        self, call: Any, header: peer_pb2.PackHeader, reader: PackReader
    ) -> peer_pb2.StagePackResponse:
        response: peer_pb2.StagePackResponse
        enough = asyncio.ensure_future(call.initial_metadata())  # see `_drain`
        try:
            await call.write(peer_pb2.StagePackRequest(header=header))
            async for chunk in self._chunks(reader):
                if enough.done():
                    break
                await call.write(peer_pb2.StagePackRequest(chunk=chunk))
                self._metrics.pack_bytes.labels("stage_out").inc(len(chunk))
            await call.done_writing()
        except asyncio.InvalidStateError:
            pass  # the call ended between two writes; its answer tells why
        finally:
            enough.cancel()
        response = await call
        return response

    async def serve_fetch(
        self,
        request: peer_pb2.FetchPackRequest,
        write: Callable[[peer_pb2.FetchPackResponse], Awaitable[Any]],
    ) -> None:
        """Answers a FetchPack call. Raises InvalidArgument, NotFound, Unavailable."""
        header = request.pack
        check_header(header, self._limits.pack_bytes_max)
        if request.offset > header.pack_bytes + header.index_bytes:
            raise InvalidArgument(f"offset {request.offset} is behind the end")
        with self._observe("fetch_out"):
            async with self._reading(header, request.offset) as reader:
                async for chunk in self._chunks(reader):
                    await write(peer_pb2.FetchPackResponse(chunk=chunk))
                    self._metrics.pack_bytes.labels("fetch_out").inc(len(chunk))

    @contextlib.asynccontextmanager
    async def _reading(
        self, header: peer_pb2.PackHeader, offset: int = 0
    ) -> AsyncIterator[PackReader]:
        """An open reader. Raises NotFound."""
        reader = PackReader(self._layout(header.group), header, offset)
        try:
            await self._files.read(reader.open)
            yield reader
        finally:
            self._files.soon(reader.close)

    async def _chunks(self, reader: PackReader) -> AsyncIterator[bytes]:
        """The rest of a pack and its index; a thread reads a batch at a time."""
        size = self._limits.chunk_bytes
        while batch := await self._files.read(reader.read, self._limits.batch_bytes):
            if self._pace is not None:
                await self._pace(len(batch))
            for start in range(0, len(batch), size):
                yield batch[start : start + size]

    # ---- receiving

    async def receive(
        self,
        requests: AsyncIterator[peer_pb2.StagePackRequest],
        enough: Callable[[], Awaitable[Any]],
    ) -> peer_pb2.StagePackResponse:
        """Answers a StagePack call once the pack is durable here.

        `enough()` tells the sender that the rest is not wanted. Raises InvalidArgument,
        CorruptPack, StorageFull, FatalError; nothing of the pack is left then.
        """
        try:
            with self._observe("stage_in") as outcome:
                response = await self._receive(requests)
                if response.already_held:
                    outcome.word = "already_held"
        except QuorepoError:
            await self._drain(requests, enough)
            raise
        if response.already_held:
            await self._drain(requests, enough)
        return response

    async def _receive(
        self, requests: AsyncIterator[peer_pb2.StagePackRequest]
    ) -> peer_pb2.StagePackResponse:
        first = await anext(requests, None)
        if first is None or first.WhichOneof("kind") != "header":
            raise InvalidArgument("the first message has to be the header")
        header = first.header
        check_header(header, self._limits.pack_bytes_max)
        already_held = await self._take_in(header, requests)
        if header.replacement:
            # It is stored but not yet acknowledged (architecture, invariant 7).
            if self._check_replacement is None:
                raise InvalidArgument("this node takes no packs that replace others")
            await self._check_replacement(header)
        return peer_pb2.StagePackResponse(already_held=already_held)

    async def _take_in(
        self, header: peer_pb2.PackHeader, requests: AsyncIterator[peer_pb2.StagePackRequest]
    ) -> bool:
        """Stores a staged pack durably; true when it was here before."""
        layout = self._layout(header.group)
        async with self._arriving(header):
            if self._held.has(header.group, header.digest):
                return True
            async with self._arrival(layout, header, "stage_in") as arrival:
                async for request in requests:
                    await arrival.feed(request.chunk)
                await arrival.finish()
        return False

    async def _drain(
        self,
        requests: AsyncIterator[peer_pb2.StagePackRequest],
        enough: Callable[[], Awaitable[Any]],
    ) -> None:
        """Lets the sender stop by itself before it is answered.

        An answer in the middle of its writing is lost: grpc.aio replaces the status by INTERNAL
        when a write fails. So the headers say first that it is enough, and what is on its way is
        read.
        """
        await enough()
        drained_bytes = 0
        async for request in requests:
            drained_bytes += len(request.chunk)
            if drained_bytes > self._limits.drain_bytes_max:
                return

    async def fetch(
        self,
        peers: Sequence[PeerAddress],
        header: peer_pb2.PackHeader,
        *,
        pace: Pace | None = None,
    ) -> None:
        """Brings a pack into this node's quarantine from the first of `peers` that gives it.

        Concurrent fetches of one pack share one transfer, and an interrupted one goes on where it
        stopped, at the next peer too. `pace` slows the arrival down. Raises Unavailable,
        StorageFull, FatalError.
        """
        check_header(header, self._limits.pack_bytes_max)
        layout = self._layout(header.group)
        async with self._arriving(header):
            if self._held.has(header.group, header.digest):
                return
            with self._observe("fetch_in"):
                async with self._arrival(layout, header, "fetch_in") as arrival:
                    await self._fetch_from_any(peers, header, arrival, pace)

    async def _fetch_from_any(
        self,
        peers: Sequence[PeerAddress],
        header: peer_pb2.PackHeader,
        arrival: Arrival,
        pace: Pace | None,
    ) -> None:
        problem = "no peer is known to have it"
        for round_number in range(self._limits.fetch_rounds_max):
            if round_number:
                delay_s = self._limits.retry_interval_s * 2**round_number
                await asyncio.sleep(delay_s * self._rng.uniform(0.5, 1.0))
            for peer in peers:
                try:
                    await self._fetch_from(peer, header, arrival, pace)
                    return
                except aio.AioRpcError as error:
                    problem = str(from_rpc_error(peer, error))
                except (CorruptPack, InvalidArgument) as error:
                    # Which peer gave the wrong bytes is unknown after a resume: start over.
                    problem = f"peer {peer}: {error}"
                    log.warning(
                        "fetched pack is damaged", extra=fields(peer=peer.node, error=problem)
                    )
                    await arrival.restart()
        raise Unavailable(f"pack {header.digest.hex()} could not be fetched: {problem}")

    async def _fetch_from(
        self,
        peer: PeerAddress,
        header: peer_pb2.PackHeader,
        arrival: Arrival,
        pace: Pace | None,
    ) -> None:
        call: Any = self._clients.stub(peer).FetchPack(
            peer_pb2.FetchPackRequest(pack=header, offset=arrival.received_bytes),
            timeout=self._timeout_s(header) if pace is None else _PACED_TIMEOUT_S,
        )
        try:
            async for response in call:
                if pace is not None:
                    await pace(len(response.chunk))
                await arrival.feed(response.chunk)
        finally:
            call.cancel()
        await arrival.finish()

    @contextlib.asynccontextmanager
    async def _arriving(self, header: peer_pb2.PackHeader) -> AsyncIterator[None]:
        """One arrival per pack at a time; the later ones wait, and mostly find it held then."""
        key = (header.group, header.digest)
        while (other := self._arrivals.get(key)) is not None:
            await asyncio.wait([other])
        done = asyncio.get_running_loop().create_future()
        self._arrivals[key] = done
        try:
            yield
        finally:
            del self._arrivals[key]
            done.set_result(None)

    @contextlib.asynccontextmanager
    async def _arrival(
        self, layout: GroupLayout, header: peer_pb2.PackHeader, action: str
    ) -> AsyncIterator[Arrival]:
        self.lacks_room.add(header.group)
        self._check_space(header.pack_bytes + header.index_bytes)
        self.lacks_room.discard(header.group)
        writer = PackWriter(layout, header)
        arrival = Arrival(writer, self._files.write, self._limits.batch_bytes)
        try:
            yield arrival
            self._held.add(header.group, header.digest)
            self._metrics.pack_bytes.labels(action).inc(header.pack_bytes + header.index_bytes)
        finally:
            arrival.abandon()
            self._files.soon(writer.discard)  # harmless after `finish`

    # ---- helpers

    def _layout(self, group: int) -> GroupLayout:
        layout = self._layouts.get(group)
        if layout is None:
            raise NotFound(f"group {group} is not on this node")
        return layout

    def _timeout_s(self, header: peer_pb2.PackHeader) -> float:
        size = header.pack_bytes + header.index_bytes
        return self._limits.transfer_timeout_s + size / self._limits.transfer_bytes_per_s_min

    @contextlib.contextmanager
    def _observe(self, action: str) -> Any:
        outcome = _Outcome()
        started = time.perf_counter()
        try:
            yield outcome
        except QuorepoError as error:
            outcome.word = error.reason.lower()
            raise
        except BaseException:
            outcome.word = "interrupted"
            raise
        finally:
            self._metrics.packs.labels(action, outcome.word).inc()
            self._metrics.pack_seconds.labels(action).observe(time.perf_counter() - started)


@dataclasses.dataclass(slots=True)
class _Outcome:
    word: str = "ok"
