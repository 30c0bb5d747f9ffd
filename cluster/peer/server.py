"""The peer port: one grpc.aio server behind mutual TLS, every caller a node of this cluster.

Owns listening, who calls, what a caller may ask, and the mapping of errors to status codes; what
the calls do lives in the transport, in packs, and in the handler that the core gives.

TLS refuses whoever has no valid certificate of the cluster's CA, before a method is reached.
"""

from __future__ import annotations

import functools
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any, NoReturn, Protocol

import grpc
from google.protobuf.message import DecodeError
from grpc import aio

from quorepo.cluster.peer.certificates import Credentials, node_of_names
from quorepo.cluster.peer.clients import Keepalive, server_options
from quorepo.cluster.peer.join_token import is_joiner, token_digest
from quorepo.cluster.peer.packs import PackExchange
from quorepo.cluster.peer.roster import Roster, node_of_replica
from quorepo.cluster.peer.transport import Context, PeerTransport
from quorepo.internal.v1 import core_pb2, peer_pb2, peer_pb2_grpc
from quorepo.storage.errors import FatalError, QuorepoError
from quorepo.storage.logs import fields

__all__ = ["NodeHandler", "PeerServer", "SnapshotHandler"]

log = logging.getLogger(__name__)


class NodeHandler(Protocol):
    """Answers for the node as a whole; the core gives it."""

    async def identify(self, request: peer_pb2.IdentifyRequest) -> peer_pb2.IdentifyResponse: ...

    async def rejoin(self, request: peer_pb2.RejoinRequest) -> peer_pb2.RejoinResponse: ...

    async def join(
        self, request: peer_pb2.JoinRequest, token_digest: bytes
    ) -> peer_pb2.JoinResponse: ...

    async def get_status(self, request: core_pb2.CoreStatusRequest) -> core_pb2.CoreStatus: ...

    async def transfer_leader(
        self, request: core_pb2.CoreTransferRequest
    ) -> core_pb2.CoreTransferResponse: ...


VerifyHandler = Callable[[core_pb2.CoreVerifyRequest], Awaitable[core_pb2.CoreNodeVerification]]


class SnapshotHandler(Protocol):
    """Serves copies of this node's states; cluster/snapshot/source.py does."""

    async def open(self, request: peer_pb2.OpenSnapshotRequest) -> peer_pb2.SnapshotManifest: ...

    async def read(
        self,
        request: peer_pb2.ReadSnapshotRequest,
        write: Callable[[peer_pb2.ReadSnapshotResponse], Awaitable[None]],
    ) -> None: ...


class PeerServer:
    """Listens for the other nodes. Raft and packs are served once `serve` was called."""

    def __init__(
        self,
        *,
        credentials: Credentials,
        node: NodeHandler,
        keepalive: Keepalive | None = None,
    ) -> None:
        self._tls = grpc.ssl_server_credentials(
            [(credentials.key_pem, credentials.certificate_pem)],
            root_certificates=credentials.ca_pem,
            require_client_auth=True,
        )
        self._service = _PeerService(node)
        self._server = aio.server(
            interceptors=[_CallerCheck(self._service.caller_problem)],
            options=server_options(keepalive or Keepalive()),
        )
        peer_pb2_grpc.add_PeerServicer_to_server(self._service, self._server)

    async def start(self, address: str) -> int:
        """Listens at `address` ("host:port", port 0 picks one) and returns the port.

        Raises FatalError (EXIT_CONFIG) when the address can't be bound.
        """
        try:
            port = self._server.add_secure_port(address, self._tls)
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

    def serve(
        self,
        transport: PeerTransport,
        packs: PackExchange,
        roster: Roster,
        snapshots: SnapshotHandler | None = None,
        verify: VerifyHandler | None = None,
    ) -> None:
        """From now on this node belongs to a cluster and answers for Raft, packs and snapshots."""
        self._service.roster = roster
        self._service.transport = transport
        self._service.packs = packs
        self._service.snapshots = snapshots
        self._service.verify = verify

    async def stop(self, grace_s: float | None = None) -> None:
        """Stops listening; calls under way get `grace_s` seconds."""
        await self._server.stop(grace_s)


class _CallerCheck(aio.ServerInterceptor):
    """Lets a call through when its certificate names a node that may make it.

    It also turns requests that are no messages into INVALID_ARGUMENT, where gRPC would say UNKNOWN
    and log a traceback for each.
    """

    def __init__(self, problem: Callable[[str, str], str]) -> None:
        """`problem(node, method)` says why the node must not call the method; empty: it may."""
        self._problem = problem

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[Any]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> Any:
        handler = await continuation(handler_call_details)
        if handler is None:
            return None  # no such method
        method = handler_call_details.method.rpartition("/")[2]
        for kind in ("unary_unary", "unary_stream", "stream_unary", "stream_stream"):
            behavior = getattr(handler, kind)
            if behavior is not None:
                parse = None if handler.request_streaming else handler.request_deserializer
                checked = functools.partial(self._checked, method, behavior, parse)
                replaced = handler._replace(**{kind: _as_coroutine_function(checked)})
                # A single request is parsed in `_checked`; a stream's are, as they are read.
                return replaced._replace(request_deserializer=None) if parse else replaced
        return None

    async def _checked(
        self, method: str, behavior: Any, parse: Any, request: Any, context: Context
    ) -> Any:
        node = caller_of(context)
        problem = "the certificate names no node of a cluster"
        if node is not None:
            problem = self._problem(node, method)
        elif method == "Join" and is_joiner(_names_of(context)):
            problem = ""
        if problem:
            log.warning(
                "peer refused", extra=fields(peer=node or context.peer(), call=method, why=problem)
            )
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, problem)
        try:
            return await behavior(parse(request) if parse else request, context)
        except DecodeError:
            log.warning("garbage from a peer", extra=fields(peer=node, call=method))
            await context.abort(
                grpc.StatusCode.INVALID_ARGUMENT, f"what was sent is no message of {method}"
            )


def _as_coroutine_function(partial: Callable[..., Awaitable[Any]]) -> Any:
    async def call(request: Any, context: Context) -> Any:
        return await partial(request, context)

    return call


def caller_of(context: Context) -> str | None:
    """The node that the caller's certificate names; TLS has verified the certificate."""
    return node_of_names(_names_of(context))


def _names_of(context: Context) -> list[str]:
    names = context.auth_context().get("peer_dns", ())
    return [name.decode("ascii", "replace") for name in names]


class _PeerService(peer_pb2_grpc.PeerServicer):
    def __init__(self, node: NodeHandler) -> None:
        self._node = node
        self.roster: Roster | None = None
        self.transport: PeerTransport | None = None
        self.packs: PackExchange | None = None
        self.snapshots: SnapshotHandler | None = None
        self.verify: VerifyHandler | None = None

    def caller_problem(self, node: str, method: str) -> str:
        """Why `node` must not call `method`; a removed node may only ask to come back."""
        problem = ""
        if self.roster is not None and method not in ("Identify", "Rejoin"):
            problem = self.roster.node_problem(node)
        if method == "Join" and not problem:
            return "a node that has a certificate does not join with a token"
        return problem

    # The stubs know streams of answers as iterators only; grpc.aio also takes context.write.
    async def Raft(  # type: ignore[override]
        self, _frames: AsyncIterator[peer_pb2.RaftFrame], context: Context
    ) -> None:
        if self.transport is None:
            await _not_formed(context)
        await self.transport.serve(context, caller_of(context) or "")

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

    async def OpenSnapshot(
        self, request: peer_pb2.OpenSnapshotRequest, context: Context
    ) -> peer_pb2.SnapshotManifest:
        if self.snapshots is None:
            await _not_formed(context)
        try:
            return await self.snapshots.open(request)
        except (QuorepoError, FatalError) as error:
            await _abort(context, error)

    async def ReadSnapshot(  # type: ignore[override]
        self, request: peer_pb2.ReadSnapshotRequest, context: Context
    ) -> None:
        if self.snapshots is None:
            await _not_formed(context)
        try:
            await self.snapshots.read(request, context.write)
        except (QuorepoError, FatalError) as error:
            await _abort(context, error)

    async def Identify(
        self, request: peer_pb2.IdentifyRequest, context: Context
    ) -> peer_pb2.IdentifyResponse:
        return await self._node.identify(request)

    async def Rejoin(
        self, request: peer_pb2.RejoinRequest, context: Context
    ) -> peer_pb2.RejoinResponse:
        node = caller_of(context)
        if request.node != node or node_of_replica(request.replica_id) != node:
            await context.abort(
                grpc.StatusCode.PERMISSION_DENIED,
                f"the certificate is of node {node!r}: it cannot bring back node {request.node!r} "
                f"as replica {request.replica_id!r}",
            )
        if self.roster is not None and (problem := self.roster.replica_problem(request.replica_id)):
            await context.abort(grpc.StatusCode.PERMISSION_DENIED, problem)
        try:
            return await self._node.rejoin(request)
        except QuorepoError as error:
            await _abort(context, error)

    async def Join(self, request: peer_pb2.JoinRequest, context: Context) -> peer_pb2.JoinResponse:
        (certificate,) = context.auth_context()["x509_pem_cert"]
        try:
            return await self._node.join(request, token_digest(certificate))
        except QuorepoError as error:
            await _abort(context, error)

    async def GetStatus(
        self, request: core_pb2.CoreStatusRequest, context: Context
    ) -> core_pb2.CoreStatus:
        return await self._node.get_status(request)

    async def TransferLeader(
        self, request: core_pb2.CoreTransferRequest, context: Context
    ) -> core_pb2.CoreTransferResponse:
        return await self._node.transfer_leader(request)

    async def Verify(
        self, request: core_pb2.CoreVerifyRequest, context: Context
    ) -> core_pb2.CoreNodeVerification:
        if self.verify is None:
            await _not_formed(context)
        try:
            return await self.verify(request)
        except QuorepoError as error:
            await _abort(context, error)


async def _not_formed(context: Context) -> NoReturn:
    await context.abort(grpc.StatusCode.UNAVAILABLE, "this node belongs to no cluster yet")


async def _abort(context: Context, error: QuorepoError | FatalError) -> NoReturn:
    if isinstance(error, FatalError):
        await context.abort(grpc.StatusCode.INTERNAL, "this node is going down")
    await context.abort(grpc.StatusCode[error.grpc_code], str(error))
