"""Calls over several endpoints: which one is asked, and what happens when it does not answer.

Owns channels, health and the loop of attempts. Must not know any method of the API.
"""

from __future__ import annotations

import asyncio
import dataclasses
import threading
import time
from collections.abc import AsyncGenerator, Callable, Iterable
from typing import Any, TypeVar

import grpc
import grpc.aio
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2, health_pb2_grpc

from quorepo.rpc.client.attempts import Attempts
from quorepo.rpc.client.errors import ApiError, RevisionNotReached, Unavailable, from_rpc_error
from quorepo.rpc.client.options import CHANNEL_OPTIONS, ClientOptions
from quorepo.rpc.client.session import Session

__all__ = ["Transport"]

_Answer = TypeVar("_Answer", bound=Message)

_HEALTH_TIMEOUT_S = 1.0
_HEALTH_INTERVAL_S = 5.0  # a node that serves is asked again after this
_DOWN_S = 1.0  # a node that does not serve is left alone for this long
_NOBODY_DELAY_S = 0.1
_STREAM_TIMEOUT_S = 3600.0
_NO_TIMEOUT_S = 10 * 365 * 86400.0


@dataclasses.dataclass
class _Endpoint:
    address: str
    channel: grpc.aio.Channel
    known_until: float = 0.0  # of the monotonic clock
    serves: bool = False
    answers: bool = False

    def learned(self, *, serves: bool, answers: bool) -> None:
        self.serves, self.answers = serves, answers
        self.known_until = time.monotonic() + (_HEALTH_INTERVAL_S if serves else _DOWN_S)


class Transport:
    """Makes calls; health-checked round robin over the endpoints."""

    def __init__(self, options: ClientOptions, session: Session) -> None:
        self._options = options
        self._session = session
        self._lock = threading.Lock()
        self._endpoints: list[_Endpoint] = []
        self._turn = 0

    @property
    def endpoint_count(self) -> int:
        """How many calls in a row it takes until each endpoint had its turn."""
        return len(self._options.endpoints)

    async def close(self) -> None:
        """Closes all connections."""
        with self._lock:
            endpoints, self._endpoints = self._endpoints, []
        for endpoint in endpoints:
            await endpoint.channel.close()

    async def unary(
        self,
        kind: type[_Answer],
        method: str,
        request: Message,
        *,
        timeout_s: float | None = None,
        patient: bool = False,
        request_id: str = "",
    ) -> _Answer:
        """One call with one answer, repeated as `Attempts` allows.

        Args:
            method: SERVICE/METHOD of quorepo.v1.
            request_id: of a request that has none of its own and still changes something.
            timeout_s: of all attempts together; default: the client's.
            patient: one attempt may take all the time there is.

        Raises:
            ApiError
        """

        def start(endpoint: _Endpoint, attempt_timeout_s: float) -> Any:
            return endpoint.channel.unary_unary(
                f"/quorepo.v1.{method}",
                request_serializer=type(request).SerializeToString,
                response_deserializer=kind.FromString,
            )(request, timeout=attempt_timeout_s, metadata=self._options.metadata())

        answer: _Answer = await self._attempt(start, request, timeout_s, patient, request_id)
        return answer

    async def upload(
        self,
        kind: type[_Answer],
        method: str,
        header: Message,
        messages: Callable[[], Iterable[Message]],
        *,
        timeout_s: float | None = None,
    ) -> _Answer:
        """A call that sends a stream; `messages` makes it anew for each attempt.

        Args:
            header: has the request id.

        Raises:
            ApiError
        """

        def start(endpoint: _Endpoint, attempt_timeout_s: float) -> Any:
            call: Any = endpoint.channel.stream_unary(
                f"/quorepo.v1.{method}",
                request_serializer=lambda message: message.SerializeToString(),
                response_deserializer=kind.FromString,
            )
            return call(
                iter(messages()), timeout=attempt_timeout_s, metadata=self._options.metadata()
            )

        answer: _Answer = await self._attempt(start, header, timeout_s, patient=True)
        return answer

    async def stream(
        self,
        kind: type[_Answer],
        method: str,
        request: Message,
        *,
        messages: Callable[[], Any] | None = None,
        may_repeat: Callable[[ApiError], bool] = lambda _error: True,
        timeout_s: float | None = None,
        endless: bool = False,
    ) -> AsyncGenerator[_Answer, None]:
        """A call that is answered by a stream; repeated only until its first message is there.

        Args:
            request: the only message, or the first one of `messages`.
            messages: what is sent, made anew for each attempt.
            may_repeat: asked before another attempt, where an error alone would allow it.

        Raises:
            ApiError
        """
        attempts = self._attempts("", timeout_s)
        length_s = _NO_TIMEOUT_S if endless else timeout_s or _STREAM_TIMEOUT_S
        while True:
            endpoint = await self._pick(attempts, _is_local(request))
            begun = False
            open_call: Any = endpoint.channel.unary_stream
            if messages is not None:
                open_call = endpoint.channel.stream_stream
            call: Any = open_call(
                f"/quorepo.v1.{method}",
                request_serializer=lambda message: message.SerializeToString(),
                response_deserializer=kind.FromString,
            )(
                request if messages is None else messages(),
                timeout=length_s,
                metadata=self._options.metadata(),
            )
            try:
                async for message in call:
                    begun = True
                    yield message
                return
            except grpc.RpcError as raised:
                error = from_rpc_error(raised, endpoint.address)
                self._suspect(endpoint, error)
                if begun or not may_repeat(error):
                    raise error from raised
                if isinstance(error, RevisionNotReached) and self._was_replaced(request):
                    continue
                delay_s = attempts.failed(error)
            finally:
                call.cancel()
            await asyncio.sleep(delay_s)

    async def _attempt(
        self,
        start: Callable[[_Endpoint, float], Any],
        request: Any,
        timeout_s: float | None,
        patient: bool,
        request_id: str = "",
    ) -> Any:
        request_id = request_id or getattr(request, "request_id", "")
        attempts = self._attempts(request_id, timeout_s)
        while True:
            endpoint = await self._pick(attempts, _is_local(request))
            limit_s = attempts.time_left_s() if patient else attempts.attempt_timeout_s()
            try:
                return await start(endpoint, limit_s)
            except grpc.RpcError as raised:
                error = from_rpc_error(raised, endpoint.address, request_id)
                self._suspect(endpoint, error)
                if isinstance(error, RevisionNotReached) and self._was_replaced(request):
                    continue
                delay_s = attempts.failed(error)
            await asyncio.sleep(delay_s)

    def _attempts(self, request_id: str, timeout_s: float | None) -> Attempts:
        options = self._options
        return Attempts(
            timeout_s or options.timeout_s,
            options.attempt_timeout_s,
            len(options.endpoints),
            request_id,
        )

    def _was_replaced(self, request: Any) -> bool:
        """What this client has seen at a path is gone: another repository is there now.

        The request is made linearizable, as all later ones of the path are; False: it was.
        """
        if request.consistency.WhichOneof("level") != "at_least":
            return False
        request.consistency.linearizable.SetInParent()
        self._session.moved(getattr(request, "repository", "") or request.path)
        return True

    def _suspect(self, endpoint: _Endpoint, error: ApiError) -> None:
        """After an error that may be the node's own its health is asked before it is used again."""
        if error.reason in ("TRANSPORT", "UNAVAILABLE", "STORAGE_FULL", "DAMAGED_PACK"):
            endpoint.known_until = 0.0

    async def _pick(self, attempts: Attempts, unready_will_do: bool) -> _Endpoint:
        """The next endpoint in turn that serves; waits for one for the client's own `timeout_s`,
        not past the call's: a call that may take hours is not begun by hours of looking.

        Args:
            unready_will_do: a local read is answered by a node without a leader too.
        """
        give_up_at = time.monotonic() + self._options.timeout_s
        while True:
            candidates = self._in_turn()
            for endpoint in candidates:
                if time.monotonic() >= endpoint.known_until:
                    await self._check(endpoint, attempts.time_left_s())
                if endpoint.serves:
                    return endpoint
            if unready_will_do:
                for endpoint in candidates:
                    if endpoint.answers:
                        return endpoint
            time_left_s = min(attempts.time_left_s(), give_up_at - time.monotonic())
            if time_left_s <= _NOBODY_DELAY_S:
                listed = ", ".join(self._options.endpoints)
                nobody = Unavailable(
                    f"no node serves at {listed}; nothing was changed",
                    reason="UNAVAILABLE",
                    code="UNAVAILABLE",
                )
                raise attempts.gave_up(nobody)
            await asyncio.sleep(_NOBODY_DELAY_S)

    def _in_turn(self) -> list[_Endpoint]:
        with self._lock:
            if not self._endpoints:
                self._endpoints = [
                    _Endpoint(address, self._open(address)) for address in self._options.endpoints
                ]
            turn = self._turn
            self._turn = (turn + 1) % len(self._endpoints)
            return self._endpoints[turn:] + self._endpoints[:turn]

    def _open(self, address: str) -> grpc.aio.Channel:
        credentials = self._options.credentials()
        if credentials is None:
            return grpc.aio.insecure_channel(address, options=CHANNEL_OPTIONS)
        return grpc.aio.secure_channel(address, credentials, options=CHANNEL_OPTIONS)

    async def _check(self, endpoint: _Endpoint, time_left_s: float) -> None:
        stub: Any = health_pb2_grpc.HealthStub(endpoint.channel)
        request = health_pb2.HealthCheckRequest(service="readiness")
        try:
            answer = await stub.Check(
                request, timeout=max(0.01, min(_HEALTH_TIMEOUT_S, time_left_s))
            )
        except grpc.RpcError:
            endpoint.learned(serves=False, answers=False)
            return
        serves = answer.status == health_pb2.HealthCheckResponse.SERVING
        endpoint.learned(serves=serves, answers=True)


def _is_local(request: Any) -> bool:
    consistency = getattr(request, "consistency", None)
    return consistency is not None and consistency.WhichOneof("level") == "local"
