"""TransferService of quorepo.v1: git's own protocol inside gRPC.

Owns the bridge between a stream of messages and `Incoming` and `Reply`. Must not know how a push or
a fetch is done: that is the same code as over HTTP, with its limits, slots and outcomes.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Coroutine
from typing import Any

from quorepo.rpc.advertisement import (
    RECEIVE_PACK,
    UPLOAD_PACK,
    advertise_fetches,
    advertise_pushes,
    protocol_version,
)
from quorepo.rpc.auth import Action
from quorepo.rpc.context import EdgeContext
from quorepo.rpc.fetch import upload_pack
from quorepo.rpc.grpc.byte_streams import ByteRequest, StreamReply
from quorepo.rpc.grpc.errors import Context
from quorepo.rpc.grpc.interceptor import caller
from quorepo.rpc.push import receive_pack
from quorepo.rpc.uploads import Incoming
from quorepo.storage.errors import Unavailable
from quorepo.storage.names import normalize_path
from quorepo.v1 import transfer_pb2, transfer_pb2_grpc

__all__ = ["TransferService"]

PB = transfer_pb2
_Serve = Callable[[str, Incoming, StreamReply], Coroutine[Any, Any, None]]


class TransferService(transfer_pb2_grpc.TransferServiceServicer):
    """See protos/quorepo/v1/transfer.proto."""

    def __init__(self, edge: EdgeContext) -> None:
        self._edge = edge
        self._running: set[asyncio.Task[None]] = set()

    async def finish(self, timeout_s: float) -> None:
        """Waits for the transfers that are being served, at most `timeout_s`."""
        if self._running:
            await asyncio.wait(set(self._running), timeout=timeout_s)

    async def UploadPack(
        self, requests: AsyncIterator[PB.UploadPackRequest], context: Context
    ) -> AsyncIterator[PB.UploadPackResponse]:
        """One request of a fetch."""
        request = ByteRequest(requests, "UploadPack")
        header = await request.header()
        path = self._admit(header, "read")
        version = protocol_version(header.git_protocol)

        async def serve(path: str, incoming: Incoming, reply: StreamReply) -> None:
            if header.advertise:
                await reply.write(await advertise_fetches(self._edge, path, version))
            else:
                await upload_pack(self._edge, path, version, incoming, reply)

        reply = self._reply(UPLOAD_PACK)
        async with contextlib.aclosing(self._run(UPLOAD_PACK, path, request, reply, serve)) as run:
            async for piece in run:
                yield PB.UploadPackResponse(chunk=piece)
        yield PB.UploadPackResponse(trailer=_trailer(reply))

    async def ReceivePack(
        self, requests: AsyncIterator[PB.ReceivePackRequest], context: Context
    ) -> AsyncIterator[PB.ReceivePackResponse]:
        """One push; goes on without its client once the transaction is proposed."""
        request = ByteRequest(requests, "ReceivePack")
        header = await request.header()
        path = self._admit(header, "write")
        identity = caller()

        async def serve(path: str, incoming: Incoming, reply: StreamReply) -> None:
            if header.advertise:
                await reply.write(await advertise_pushes(self._edge, path))
            else:
                await receive_pack(self._edge, identity, path, incoming, reply)

        reply = self._reply(RECEIVE_PACK)
        async with contextlib.aclosing(self._run(RECEIVE_PACK, path, request, reply, serve)) as run:
            async for piece in run:
                yield PB.ReceivePackResponse(chunk=piece)
        yield PB.ReceivePackResponse(trailer=_trailer(reply))

    # ---- what they share

    def _admit(self, header: PB.TransferHeader, action: Action) -> str:
        """The path, normalized. Never touches Raft."""
        path = normalize_path(header.repository)
        self._edge.authenticator.authorize(caller(), action, path)
        return path

    def _reply(self, service: str) -> StreamReply:
        return StreamReply(self._edge.metrics.bytes_sent.labels(service).inc)

    async def _run(
        self, service: str, path: str, request: ByteRequest, reply: StreamReply, serve: _Serve
    ) -> AsyncGenerator[bytes]:
        """The pieces of the answer, while a task of its own makes them; its end is the task's."""
        metrics = self._edge.metrics
        incoming = Incoming(request.chunks(), metrics.bytes_received.labels(service).inc)

        async def work() -> None:
            try:
                await serve(path, incoming, reply)
            finally:
                reply.end()

        with metrics.in_flight.labels(service).track_inprogress():
            task = asyncio.create_task(work(), name=f"{service} {path}")
            self._running.add(task)
            task.add_done_callback(self._running.discard)
            try:
                async for piece in reply.pieces():
                    yield piece
                await task
            finally:
                task.cancel()  # a client that went away ends the work for it
                await asyncio.wait({task})
        if reply.aborted:
            raise Unavailable("the answer could not be completed", next_step="fetch again")


def _trailer(reply: StreamReply) -> PB.TransferTrailer:
    return PB.TransferTrailer(sha256=reply.sha256, size=reply.size_bytes)
