"""What happens around every public call: who is calling, what an error becomes, what is counted.

Owns authentication and error mapping, so that a service only raises errors of the tree. Must not
know what any service does. Health needs no credential: a load balancer has
none, and it tells no more than whether this node serves. Nor does reflection, which is there on
loopback only (`server.py`).
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import logging
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import TYPE_CHECKING, Any, NoReturn

import grpc
import grpc.aio
from google.protobuf.message import DecodeError

from quorepo.rpc.auth import Identity
from quorepo.rpc.context import EdgeContext
from quorepo.rpc.grpc.errors import Context, abort
from quorepo.storage.errors import FatalError, InvalidArgument, QuorepoError, Unavailable
from quorepo.v1 import import_pb2, operation_pb2, ref_pb2, repository_pb2

__all__ = ["WRITING_METHODS", "EdgeInterceptor", "caller"]

log = logging.getLogger(__name__)

_OPEN_SERVICES = frozenset(
    {
        "grpc.health.v1.Health",
        "grpc.reflection.v1.ServerReflection",
        "grpc.reflection.v1alpha.ServerReflection",
    }
)


def _writing_methods() -> frozenset[str]:
    """Full names of the methods that change repositories: those whose request, or its header, has
    a request id. Changes of the cluster itself are not among them: they take a node's drain back.
    """
    found = set()
    for file in (import_pb2, operation_pb2, ref_pb2, repository_pb2):
        for service in file.DESCRIPTOR.services_by_name.values():
            for method in service.methods:
                request = method.input_type.fields_by_name
                header = (
                    request["header"].message_type.fields_by_name if "header" in request else {}
                )
                if "request_id" in request or "request_id" in header:
                    found.add(f"/{service.full_name}/{method.name}")
    return frozenset(found)


WRITING_METHODS = _writing_methods()
_WRITE_TIMEOUT_S = 60.0  # a client that reads nothing for so long loses its stream

_caller: contextvars.ContextVar[Identity] = contextvars.ContextVar("caller")

if TYPE_CHECKING:  # grpc's generic types cannot be subscripted at run time
    Continuation = Callable[
        [grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler[Any, Any] | None]
    ]


def caller() -> Identity:
    """Who makes the call that is being served; only inside a service method."""
    return _caller.get()


class EdgeInterceptor(grpc.aio.ServerInterceptor):
    """Wraps the methods of all services but health and reflection."""

    def __init__(self, edge: EdgeContext) -> None:
        self._edge = edge

    async def intercept_service(
        self, continuation: Continuation, details: grpc.HandlerCallDetails
    ) -> Any:
        handler: Any = await continuation(details)
        service = details.method.rpartition("/")[0].lstrip("/")
        if handler is None or service in _OPEN_SERVICES:
            return handler
        writes = details.method in WRITING_METHODS
        name = details.method.rpartition("/")[2]
        # A method that takes a stream is given an iterator where the others are given a message.
        decode = _never_raising(handler.request_deserializer, details.method)
        serializers = (decode, handler.response_serializer)
        if handler.unary_unary is not None:
            return grpc.unary_unary_rpc_method_handler(
                self._unary(handler.unary_unary, writes, name), *serializers
            )
        if handler.unary_stream is not None:
            return grpc.unary_stream_rpc_method_handler(
                self._stream(handler.unary_stream, writes, name), *serializers
            )
        if handler.stream_unary is not None:
            return grpc.stream_unary_rpc_method_handler(
                self._unary(handler.stream_unary, writes, name), *serializers
            )
        return grpc.stream_stream_rpc_method_handler(
            self._stream(handler.stream_stream, writes, name), *serializers
        )

    def _unary(self, behaviour: Any, writes: bool, name: str) -> Any:
        async def call(request: Any, context: Context) -> Any:
            try:
                self._admit(context, writes)
                return await behaviour(_decoded(request), context)
            except grpc.aio.AbortError:
                raise
            except asyncio.CancelledError:
                self._edge.metrics.cancelled_calls.labels(name).inc()
                raise
            except (Exception, FatalError) as error:  # noqa: BLE001 - the last place before the wire
                await self._fail(context, error)

        return call

    def _stream(self, behaviour: Any, writes: bool, name: str) -> Any:
        async def call(request: Any, context: Context) -> None:
            try:
                self._admit(context, writes)
                async with contextlib.aclosing(behaviour(_decoded(request), context)) as responses:
                    async for response in responses:
                        await _write(context, response)
            except grpc.aio.AbortError:
                raise
            except asyncio.CancelledError:
                self._edge.metrics.cancelled_calls.labels(name).inc()
                raise
            except (Exception, FatalError) as error:  # noqa: BLE001 - the last place before the wire
                await self._fail(context, error)

        return call

    def _admit(self, context: Context, writes: bool) -> None:
        if self._edge.stopping:
            raise Unavailable("this node is stopping", next_step="use another node")
        metadata = dict(context.invocation_metadata() or ())
        authorization = metadata.get("authorization")
        text = authorization if isinstance(authorization, str) else None
        _caller.set(self._edge.authenticator.authenticate_header(text))
        if writes:
            self._edge.push_slots.check_open()

    async def _fail(self, context: Context, error: Exception | FatalError) -> NoReturn:
        if isinstance(error, FatalError):
            self._edge.on_fatal(error)
            error = QuorepoError(f"this node has to stop: {error}")
        if not isinstance(error, QuorepoError):
            log.exception("call failed", exc_info=error)
            error = QuorepoError("internal error; the node's log has the details")
        self._edge.metrics.errors.labels(error.reason).inc()
        await abort(context, error)


class _Undecodable:
    """What arrived in place of a message."""

    def __init__(self, method: str) -> None:
        self.method = method


def _never_raising(decode: Any, method: str) -> Any:
    """gRPC would answer a decoder's error itself: as UNKNOWN, which says "it may have happened"."""

    def decoded(data: bytes) -> Any:
        try:
            return decode(data)
        except DecodeError:
            return _Undecodable(method)

    return decoded


def _decoded(request: Any) -> Any:
    """The message, or the iterator of messages. Raises InvalidArgument, also while iterating."""
    if isinstance(request, _Undecodable):
        kind = request.method.rpartition("/")[2]
        raise InvalidArgument(f"what was sent is no {kind} request: it can't be decoded")
    return _all_decoded(request) if hasattr(request, "__aiter__") else request


async def _all_decoded(requests: AsyncIterator[Any]) -> AsyncIterator[Any]:
    async for request in requests:
        yield _decoded(request)


async def _write(context: Context, response: Any) -> None:
    try:
        async with asyncio.timeout(_WRITE_TIMEOUT_S):
            await context.write(response)
    except TimeoutError:
        raise Unavailable(f"nothing was read for {_WRITE_TIMEOUT_S:g} s, stream closed") from None
