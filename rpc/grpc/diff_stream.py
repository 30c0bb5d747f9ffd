"""The stream of Diff: what `storage/history/streams.py` tells of a diff, as messages.

Owns their order and what is put together. Must not know where the parts come from.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from typing import Any

from quorepo.rpc.grpc.groups import INLINE_BYTES_MAX, Group
from quorepo.rpc.grpc.read_messages import change_message
from quorepo.v1 import diff_pb2

__all__ = ["diff_messages"]

_Response = diff_pb2.DiffResponse


async def diff_messages(
    parts: AsyncIterator[dict[str, Any] | bytes], header: _Response.Header, grouped: bool
) -> AsyncIterator[_Response]:
    """The header when the first part is there, the changes, the trailer."""
    stream = _Grouped(header) if grouped else _OneByOne(header)
    digest = hashlib.sha256()
    async for part in parts:
        if isinstance(part, bytes):
            digest.update(part)
            messages = stream.chunk(part)
        elif "status" in part:
            messages = stream.change(change_message(part))
        else:
            messages = stream.end(_Response.Trailer(**part, sha256=digest.digest()))
        for message in messages:
            yield message


class _OneByOne:
    def __init__(self, header: _Response.Header) -> None:
        self._header: _Response.Header | None = header

    def change(self, change: diff_pb2.FileChange) -> list[_Response]:
        return [*self._begin(), _Response(change=change)]

    def chunk(self, chunk: bytes) -> list[_Response]:
        return [_Response(chunk=chunk)]

    def end(self, trailer: _Response.Trailer) -> list[_Response]:
        return [*self._begin(), _Response(trailer=trailer)]

    def _begin(self) -> list[_Response]:
        header, self._header = self._header, None
        return [] if header is None else [_Response(header=header)]


class _Grouped:
    """A change waits for its patch: when that is small both go into the group, else by themselves,
    after the group. The header goes with the first group, the trailer with the last."""

    def __init__(self, header: _Response.Header) -> None:
        self._header: _Response.Header | None = header
        self._group: Group[diff_pb2.FileChange] = Group()
        self._waiting: diff_pb2.FileChange | None = None

    def change(self, change: diff_pb2.FileChange) -> list[_Response]:
        messages = self._settle()
        self._waiting = change
        return messages

    def chunk(self, chunk: bytes) -> list[_Response]:
        change = self._waiting
        if change is None:
            return [_Response(chunk=chunk)]
        if not change.patch and len(chunk) <= INLINE_BYTES_MAX:
            change.patch = chunk
            return []
        # A patch comes in several chunks only when each but the last is larger than that.
        self._waiting = None
        before = [self._take()] if self._group or self._header is not None else []
        return [*before, _Response(change=change), _Response(chunk=chunk)]

    def end(self, trailer: _Response.Trailer) -> list[_Response]:
        messages = self._settle()
        last = self._take()
        last.group.trailer.CopyFrom(trailer)
        return [*messages, last]

    def _settle(self) -> list[_Response]:
        change, self._waiting = self._waiting, None
        return [self._take()] if change is not None and self._group.add(change) else []

    def _take(self) -> _Response:
        header, self._header = self._header, None
        group = _Response.ChangeGroup(changes=self._group.take(), header=header)
        return _Response(group=group)
