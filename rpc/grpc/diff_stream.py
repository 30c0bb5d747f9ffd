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
    stream = _Grouped() if grouped else _OneByOne()
    digest = hashlib.sha256()
    trailer: _Response.Trailer | None = None
    is_begun = False
    async for part in parts:
        if not is_begun:
            is_begun = True
            yield _Response(header=header)
        if isinstance(part, bytes):
            digest.update(part)
            messages = stream.chunk(part)
        elif "status" in part:
            messages = stream.change(change_message(part))
        else:
            trailer = _Response.Trailer(**part)
            messages = stream.rest()
        for message in messages:
            yield message
    assert trailer is not None
    trailer.sha256 = digest.digest()
    yield _Response(trailer=trailer)


class _OneByOne:
    def change(self, change: diff_pb2.FileChange) -> list[_Response]:
        return [_Response(change=change)]

    def chunk(self, chunk: bytes) -> list[_Response]:
        return [_Response(chunk=chunk)]

    def rest(self) -> list[_Response]:
        return []


class _Grouped:
    """A change waits for its patch: when that is small both go into the group, else by themselves,
    after the group."""

    def __init__(self) -> None:
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
        return [*self._take(), _Response(change=change), _Response(chunk=chunk)]

    def rest(self) -> list[_Response]:
        return [*self._settle(), *self._take()]

    def _settle(self) -> list[_Response]:
        change, self._waiting = self._waiting, None
        if change is not None and self._group.add(change):
            return self._take()
        return []

    def _take(self) -> list[_Response]:
        if not self._group:
            return []
        return [_Response(group=_Response.ChangeGroup(changes=self._group.take()))]
