"""The peer port: one grpc.aio server, every method behind the cluster's secret.

Owns listening, authentication and the mapping of errors to status codes; what the calls do lives in
the transport, in packs, and in the handler that the core gives.
"""

from __future__ import annotations

import functools
import hmac
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, NoReturn, Protocol

import grpc
from grpc import aio

from quorepo.cluster.peer.clients import Keepalive, server_options
from quorepo.cluster.peer.packs import PackExchange
from quorepo.cluster.peer.transport import Context, PeerTransport
from quorepo.internal.v1 import core_pb2, peer_pb2, peer_pb2_grpc
from quorepo.storage.errors import FatalError, QuorepoError

__all__ = ["NodeHandler", "PeerServer"]

log = logging.getLogger(__name__)


class NodeHandler(Protocol):
    """Answers for the node as a whole; the core gives it."""

    async def identify(self, request: peer_pb2.IdentifyRequest) -> peer_pb2.IdentifyResponse: ...

    async def rejoin(self, request: peer_pb2.RejoinRequest) -> peer_pb2.RejoinResponse: ...

    async def get_status(self, request: core_pb2.CoreStatusRequest) -> core_pb2.CoreStatus: ...


class PeerServer:
    """Listens for the other nodes. Raft and packs are served once `serve` was called."""

    def __init__(
        self, *, secret: str, node: NodeHandler, keepalive: Keepalive | None = None
    ) -> None:
        self._service = _PeerService(node)
        self._server = aio.server(
            interceptors=[_SecretCheck(secret)],
            options=server_options(keepalive or Keepalive()),
        )
        peer_pb2_grpc.add_PeerServicer_to_server(self._service, self._server)

    async def start(self, address: str) -> int:
        """Listens at `address` ("host:port", port 0 picks one) and returns the port.

        Raises FatalError (EXIT_CONFIG) when the address can't be bound.
        """
        try:
            port = self._server.add_insecure_port(address)
        except RuntimeError as error:
            port, cause = 0, str(error)
        else:
            cause = "no port was bound"
        if port == 0:
            raise FatalError(
                f"cannot listen for peers at {address}: {cause}; "
                "stop what uses the port or change listen.peer",
                exit_code=FatalError.EXIT_CONFIG,
            )
        await self._server.start()
        return port

    def serve(self, transport: PeerTransport, packs: PackExchange) -> None:
        """From now on this node belongs to a cluster and answers for Raft and packs."""
        self._service.transport = transport
        self._service.packs = packs

    async def stop(self, grace_s: float | None = None) -> None:
        """Stops listening; calls under way get `grace_s` seconds."""
        await self._server.stop(grace_s)


class _SecretCheck(aio.ServerInterceptor):
    """Refuses every call without the cluster's secret, unknown methods too."""

    def __init__(self, secret: str) -> None:
        self._expected = f"Bearer {secret}".encode()
        self._refusal: Any = grpc.stream_stream_rpc_method_handler(self._refuse)

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        for key, value in handler_call_details.invocation_metadata or ():
            if key == "authorization":
                given = value if isinstance(value, bytes) else value.encode()
                if hmac.compare_digest(given, self._expected):
                    return await continuation(handler_call_details)
        return self._refusal

    # A stream handler refuses calls of every kind, and before it has read a message.
    async def _refuse(self, _requests: Any, context: Context) -> None:
        await context.abort(grpc.StatusCode.UNAUTHENTICATED, "the cluster's secret is wrong")


class _PeerService(peer_pb2_grpc.PeerServicer):
    def __init__(self, node: NodeHandler) -> None:
        self._node = node
        self.transport: PeerTransport | None = None
        self.packs: PackExchange | None = None

    # The stubs know streams of answers as iterators only; grpc.aio also takes context.write.
    async def Raft(  # type: ignore[override]
        self, _frames: AsyncIterator[peer_pb2.RaftFrame], context: Context
    ) -> None:
        if self.transport is None:
            await _not_formed(context)
        await self.transport.serve(context)

    async def StagePack(
        self, requests: AsyncIterator[peer_pb2.StagePackRequest], context: Context
    ) -> peer_pb2.StagePackResponse:
        if self.packs is None:
            await _not_formed(context)
        try:
            return await self.packs.receive(
                requests, functools.partial(context.send_initial_metadata, ())
            )
        except (QuorepoError, FatalError) as error:
            await _abort(context, error)

    async def FetchPack(  # type: ignore[override]
        self,
        request: peer_pb2.FetchPackRequest,
        context: Context,
    ) -> None:
        if self.packs is None:
            await _not_formed(context)
        try:
            await self.packs.serve_fetch(request, context.write)
        except (QuorepoError, FatalError) as error:
            await _abort(context, error)

    async def Identify(
        self, request: peer_pb2.IdentifyRequest, context: Context
    ) -> peer_pb2.IdentifyResponse:
        return await self._node.identify(request)

    async def Rejoin(
        self, request: peer_pb2.RejoinRequest, context: Context
    ) -> peer_pb2.RejoinResponse:
        try:
            return await self._node.rejoin(request)
        except QuorepoError as error:
            await _abort(context, error)

    async def GetStatus(
        self, request: core_pb2.CoreStatusRequest, context: Context
    ) -> core_pb2.CoreStatus:
        return await self._node.get_status(request)


async def _not_formed(context: Context) -> NoReturn:
    await context.abort(grpc.StatusCode.UNAVAILABLE, "this node belongs to no cluster yet")


async def _abort(context: Context, error: QuorepoError | FatalError) -> NoReturn:
    if isinstance(error, FatalError):
        await context.abort(grpc.StatusCode.INTERNAL, "this node is going down")
    await context.abort(grpc.StatusCode[error.grpc_code], str(error))
