"""`client.events`: every committed change in log order, resumed by itself on another node."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator

from quorepo.rpc.client import codecs
from quorepo.rpc.client.asynchronous.transport import Transport
from quorepo.rpc.client.errors import ApiError, Unavailable
from quorepo.rpc.client.types import Event
from quorepo.v1 import event_pb2 as pb

__all__ = ["Events"]

_RESUME_DELAY_S = 0.2


class Events:
    """EventService."""

    def __init__(self, transport: Transport) -> None:
        self._transport = transport

    async def watch(
        self,
        repository: str = "",
        *,
        cursor: bytes = b"",
        from_beginning: bool = False,
        ref_prefix: str | bytes = b"",
        timeout_s: float | None = None,
    ) -> AsyncIterator[Event]:
        """Changes as they are committed, without an end; at least once each.

        Keep the cursor of the last event that was handled and begin with it the next time. A
        stream that breaks goes on from the last cursor, on whatever node serves.

        Args:
            repository: a path; empty: all.
            cursor: empty: from now on, or `from_beginning`.
            timeout_s: ends the iteration after so long; None: never.

        Raises:
            CursorOutOfRange
            Unavailable: no node serves, for as long as the client's timeout.
        """
        request = pb.WatchRequest(
            cursor=cursor,
            from_beginning=from_beginning,
            repository=repository,
            ref_prefix=codecs.to_bytes(ref_prefix),
        )
        deadline = None if timeout_s is None else time.monotonic() + timeout_s
        while True:
            left_s = None if deadline is None else deadline - time.monotonic()
            if left_s is not None and left_s <= 0:
                return
            stream = self._transport.stream(
                pb.WatchResponse,
                "EventService/Watch",
                request,
                timeout_s=left_s,
                endless=deadline is None,
            )
            try:
                async with contextlib.aclosing(stream) as messages:
                    async for message in messages:
                        request.cursor = message.cursor or request.cursor
                        if message.HasField("event"):
                            yield codecs.event(message.cursor, message.event)
            except ApiError as error:
                if deadline is not None and error.code == "DEADLINE_EXCEEDED":
                    return
                if not request.cursor or not _will_pass(error):
                    raise
            await asyncio.sleep(_RESUME_DELAY_S)


def _will_pass(error: ApiError) -> bool:
    """Of a stream that had begun; one that can't be begun again has used up its attempts."""
    if isinstance(error, Unavailable):
        return bool(error.metadata)  # what a node said: it stops, or nothing was read for long
    return error.reason == "TRANSPORT"
