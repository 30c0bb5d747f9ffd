"""EventService of quorepo.v1: every committed change in log order, read from this node's own state.

A watcher holds no queue: it reads a page of the history, writes it to its client, and reads on
from there. So a slow client costs a page of memory, and one that reads nothing loses its stream
(`interceptor._write`). Where a client is stands in its cursor and nowhere else, so it resumes on
any node. Owns the cursor's form. The history is never cut today.
"""

from __future__ import annotations

import asyncio
import logging
import struct
import uuid
from collections.abc import AsyncIterator

from quorepo.cluster.state.reader import StateReader
from quorepo.cluster.state.rows import TransactionRow
from quorepo.rpc.applied_feed import AppliedFeed
from quorepo.rpc.context import EdgeContext
from quorepo.rpc.git_settings import is_hidden
from quorepo.rpc.grpc.conversions import timestamp
from quorepo.rpc.grpc.errors import Context
from quorepo.rpc.grpc.interceptor import caller
from quorepo.rpc.reads import GROUP_DIRECTORY, GROUP_STORAGE
from quorepo.rpc.visible_refs import hidden_from
from quorepo.storage.errors import InvalidArgument, LimitExceeded, Rejected, Unavailable
from quorepo.storage.logs import fields
from quorepo.storage.names import normalize_path
from quorepo.v1 import common_pb2, event_pb2, event_pb2_grpc

__all__ = ["CursorOutOfRange", "EventService"]

log = logging.getLogger(__name__)

_CURSOR = struct.Struct(">BIQI")  # version, group, log index, ref changes of it that were handled
_VERSION = 1
_WHOLE = 0xFFFF_FFFF  # all of the entry's changes
_PAGE = 100
_CHANGES_PER_MESSAGE = 1000
_KINDS = {
    "create": event_pb2.Event.KIND_REPOSITORY_CREATED,
    "update": event_pb2.Event.KIND_REFS_CHANGED,
    "delete": event_pb2.Event.KIND_REPOSITORY_DELETED,
    "undelete": event_pb2.Event.KIND_REPOSITORY_UNDELETED,
    "fork": event_pb2.Event.KIND_REPOSITORY_FORKED,
    "head": event_pb2.Event.KIND_HEAD_CHANGED,
    "settings": event_pb2.Event.KIND_REPOSITORY_UPDATED,
    "replace": event_pb2.Event.KIND_PACKS_CHANGED,
    "prune": event_pb2.Event.KIND_PACKS_CHANGED,
}


class CursorOutOfRange(Rejected):
    """The cursor is of another cluster, or of a log that is not this one's."""

    grpc_code = "OUT_OF_RANGE"
    reason = "CURSOR_OUT_OF_RANGE"


class EventService(event_pb2_grpc.EventServiceServicer):
    """See protos/quorepo/v1/event.proto."""

    def __init__(self, edge: EdgeContext) -> None:
        self._edge = edge
        self._storage = StateReader(edge.reads.layout(GROUP_STORAGE))
        self._directory = StateReader(edge.reads.layout(GROUP_DIRECTORY))
        self._feed = AppliedFeed(
            lambda: edge.reads.in_thread(self._storage.applied_index), lambda: edge.stopping
        )
        edge.metrics.watchers.set_function(lambda: self._feed.watchers)
        edge.metrics.watch_lag_entries.set_function(self._feed.lag_entries)

    def close(self) -> None:
        """Closes the connections to the state."""
        self._storage.close()
        self._directory.close()

    async def Watch(
        self, request: event_pb2.WatchRequest, context: Context
    ) -> AsyncIterator[event_pb2.WatchResponse]:
        """Until the client leaves, or the node stops."""
        self._edge.authenticator.authorize(caller(), "read", request.repository)
        at_most = self._edge.config.api.watchers_max
        if self._feed.watchers >= at_most:
            raise LimitExceeded(
                f"this node serves {at_most} watchers already (api.watchers_max)",
                limit="api.watchers_max",
                next_step="watch on another node",
            )
        watch = fields(user=caller().user, path=request.repository, resumed=bool(request.cursor))
        log.info("watch begins", extra=watch)
        sent = 0
        with self._feed.watching() as key:
            try:
                async for response in self._watch(request, key):
                    if response.HasField("event"):
                        self._edge.metrics.watch_events.inc()
                        sent += 1
                    yield response
            finally:
                log.info("watch ends", extra={"fields": {**watch["fields"], "events": sent}})

    async def _watch(
        self, request: event_pb2.WatchRequest, key: object
    ) -> AsyncIterator[event_pb2.WatchResponse]:
        await self._edge.reads.confirm()
        hidden = hidden_from(self._edge, caller())
        only = ""
        if request.repository:
            path = normalize_path(request.repository)
            only = (await self._edge.reads.open(path, consistency="local")).repository_id
        index, position = await self._start(request)
        self._feed.told(key, index)
        time_ms = await self._edge.reads.in_thread(self._storage.log_time_ms)
        yield _progress(index, position, time_ms)
        loop = asyncio.get_running_loop()
        heartbeat_s = self._edge.config.api.watch_heartbeat_s
        said = loop.time()
        while not self._edge.stopping:
            # One that was handled in part is read once more.
            after = index if position == _WHOLE else index - 1
            rows, reached, time_ms = await self._edge.reads.in_thread(
                lambda after=after: self._storage.transactions(after, _PAGE)  # type: ignore[misc]
            )
            for row in rows:
                begin = position if row.log_index == index and position != _WHOLE else 0
                if only in ("", row.repository_id):
                    async for response in self._events(row, begin, request.ref_prefix, hidden):
                        yield response
                        said = loop.time()
            index, position = max(index, reached), _WHOLE
            self._feed.told(key, index)
            if len(rows) == _PAGE:
                continue
            if loop.time() - said >= heartbeat_s:
                yield _progress(index, position, time_ms)
                said = loop.time()
            await self._feed.wait(index, max(0.0, said + heartbeat_s - loop.time()))
        raise Unavailable("this node is stopping", next_step="resume on another node")

    async def _start(self, request: event_pb2.WatchRequest) -> tuple[int, int]:
        applied = await self._edge.reads.in_thread(self._storage.applied_index)
        if not request.cursor:
            return (0 if request.from_beginning else applied), _WHOLE
        if len(request.cursor) != _CURSOR.size:
            raise InvalidArgument("cursor is not one of this service")
        version, group, index, position = _CURSOR.unpack(request.cursor)
        if version != _VERSION or group != GROUP_STORAGE:
            raise InvalidArgument("cursor is not one of this service")
        if index > applied:
            raise CursorOutOfRange(
                f"the cursor is at log index {index}, the log ends at {applied}",
                next_step="it is another cluster's: begin without a cursor",
            )
        return index, position

    async def _events(
        self, row: TransactionRow, begin: int, prefix: bytes, hidden: tuple[bytes, ...]
    ) -> AsyncIterator[event_pb2.WatchResponse]:
        """The transaction's messages, behind its first `begin` ref changes."""
        paths = await self._edge.reads.in_thread(
            lambda: self._directory.paths_of(row.repository_id)
        )
        handled = begin
        while True:
            changes = await self._edge.reads.in_thread(
                lambda handled=handled: self._storage.changes_of(  # type: ignore[misc]
                    row.repository_id, row.counter, handled - 1, _CHANGES_PER_MESSAGE + 1
                )
            )
            more = len(changes) > _CHANGES_PER_MESSAGE
            changes = changes[:_CHANGES_PER_MESSAGE]
            handled = changes[-1][0] + 1 if changes else handled
            shown = [
                change
                for change in changes
                if change[1].startswith(prefix) and not is_hidden(change[1], hidden)
            ]
            if shown or not changes:
                event = _event(row, paths[0].path if paths else "")
                event.continued = more
                for _position, name, old, new in shown:
                    event.ref_changes.add(
                        name=name, old_oid=(old or b"").hex(), new_oid=(new or b"").hex()
                    )
                cursor = _CURSOR.pack(
                    _VERSION, GROUP_STORAGE, row.log_index, handled if more else _WHOLE
                )
                yield event_pb2.WatchResponse(cursor=cursor, event=event)
            if not more:
                return


def _event(row: TransactionRow, path: str) -> event_pb2.Event:
    return event_pb2.Event(
        kind=_KINDS[row.kind],
        group=GROUP_STORAGE,
        index=row.log_index,
        time=timestamp(row.time_ms),
        actor=row.actor,
        request_id=str(uuid.UUID(bytes=row.request_id)),
        repository_id=row.repository_id,
        path=path,
        revision=common_pb2.Revision(incarnation=row.incarnation, counter=row.counter),
    )


def _progress(index: int, position: int, time_ms: int) -> event_pb2.WatchResponse:
    return event_pb2.WatchResponse(
        cursor=_CURSOR.pack(_VERSION, GROUP_STORAGE, index, position),
        progress=event_pb2.WatchResponse.Progress(time=timestamp(time_ms)),
    )
