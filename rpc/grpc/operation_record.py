"""What is counted and logged of each call of OperationService, however it ends.

Owns the outcomes by name. Must not know what an operation does.
"""

from __future__ import annotations

import asyncio
import dataclasses
import functools
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from typing import Any

from quorepo.rpc.context import EdgeContext
from quorepo.rpc.grpc.errors import Context, MergeConflicted
from quorepo.rpc.grpc.interceptor import caller
from quorepo.storage.errors import OutcomeUnknown, QuorepoError, Unavailable
from quorepo.storage.logs import fields
from quorepo.v1 import operation_pb2

__all__ = ["recorded"]

log = logging.getLogger(__name__)

_UP_TO_DATE = operation_pb2.MergeResponse.OUTCOME_UP_TO_DATE
Method = Callable[[Any, Any, Context], Awaitable[Any]]


@dataclasses.dataclass(slots=True)
class _Request:
    """What of a request stands in its log line."""

    path: str = ""
    request_id: str = ""

    def take(self, message: Any) -> None:
        self.path = message.repository
        self.request_id = getattr(message, "request_id", "")

    async def listening(self, messages: AsyncIterator[Any]) -> AsyncIterator[Any]:
        """The messages of a stream, as they pass."""
        async for message in messages:
            if message.HasField("header"):
                self.take(message.header)
            yield message


def recorded(method: Method) -> Method:
    """A method of a service with an `_edge`, with its calls counted, timed and logged."""
    operation = method.__name__

    @functools.wraps(method)
    async def call(service: Any, request: Any, context: Context) -> Any:
        seen, started = _Request(), time.monotonic()
        if hasattr(request, "repository"):
            seen.take(request)
        else:
            request = seen.listening(request)
        outcome = "failed"
        try:
            response = await method(service, request, context)
            outcome = _outcome_of(response)
            return response
        except QuorepoError as error:
            outcome = _refusal(error)
            raise
        except asyncio.CancelledError:
            outcome = "cancelled"
            raise
        finally:
            _tell(service._edge, operation, seen, outcome, time.monotonic() - started)

    return call


def _tell(edge: EdgeContext, operation: str, seen: _Request, outcome: str, seconds: float) -> None:
    edge.metrics.operations.labels(operation, outcome).inc()
    edge.metrics.operation_seconds.labels(operation).observe(seconds)
    log.info(
        "operation",
        extra=fields(
            operation=operation,
            path=seen.path,
            user=caller().user,
            request=seen.request_id,
            outcome=outcome,
            seconds=round(seconds, 4),
        ),
    )


def _outcome_of(response: Any) -> str:
    if isinstance(response, operation_pb2.MergeResponse) and response.outcome == _UP_TO_DATE:
        return "up_to_date"
    if isinstance(response, operation_pb2.MergeCheckResponse) and not response.clean:
        return "conflict"
    return "ok"


def _refusal(error: QuorepoError) -> str:
    if isinstance(error, MergeConflicted):
        return "conflict"
    if isinstance(error, OutcomeUnknown):
        return "unknown"
    return "unavailable" if isinstance(error, Unavailable) else "refused"
