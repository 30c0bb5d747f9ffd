"""The stream of Blame: what `storage/history/streams.py` tells of a blame, as messages.

Owns their order and what is put together. Must not know where the parts come from.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

from quorepo.rpc.grpc.groups import Group
from quorepo.v1 import commit_pb2, common_pb2

__all__ = ["blame_messages"]

_COMMITS_PER_LOOK = 100  # read at a time

_Response = commit_pb2.BlameResponse
ReadCommits = Callable[[Sequence[str]], Awaitable[Sequence[commit_pb2.Commit]]]


async def blame_messages(
    parts: AsyncGenerator[dict[str, Any] | bytes, None],
    revision: common_pb2.Revision,
    read_commits: ReadCommits,
    grouped: bool,
) -> AsyncIterator[_Response]:
    """The header, hunks, the trailer; a commit comes with the first hunk that it explains."""
    told: Any = await anext(parts)
    header = _Response.Header(
        commit_oid=told["commit"],
        blob_oid=told["blob"],
        line_count=told["line_count"],
        revision=revision,
    )
    stream = _Grouped(header) if grouped else _OneByOne(header)
    for message in stream.begin():
        yield message
    hunks = _Hunks(read_commits)
    batch: list[Any] = []
    async for part in parts:
        batch.append(part)
        if len(batch) == _COMMITS_PER_LOOK:
            for hunk in await hunks.made_of(batch):
                for message in stream.hunk(hunk):
                    yield message
            batch = []
    for hunk in await hunks.made_of(batch):
        for message in stream.hunk(hunk):
            yield message
    yield stream.end(_Response.Trailer(sha256=hunks.digest.digest()))


class _Hunks:
    """Makes the messages of hunks, and remembers whose commit was sent."""

    def __init__(self, read_commits: ReadCommits) -> None:
        self.digest = hashlib.sha256()
        self._read_commits = read_commits
        self._sent: set[str] = set()

    async def made_of(self, batch: Sequence[dict[str, Any]]) -> list[_Response.Hunk]:
        oids = dict.fromkeys(part["commit"] for part in batch)
        new = [oid for oid in oids if oid not in self._sent]
        commits = dict(zip(new, await self._read_commits(new), strict=True)) if new else {}
        self._sent.update(new)
        hunks = []
        lines = []
        for part in batch:
            commit, first, count = part["commit"], part["first_line"], part["line_count"]
            original = part["original_first_line"]
            lines.append(f"{commit} {first} {count} {original}\n")
            hunk = _Response.Hunk(
                commit_oid=commit,
                first_line=first,
                line_count=count,
                original_first_line=original,
                original_path=bytes.fromhex(part["original_path"]),
                commit=commits.pop(commit, None),
                boundary=part["boundary"],
            )
            hunks.append(hunk)
        self.digest.update("".join(lines).encode())
        return hunks


class _OneByOne:
    def __init__(self, header: _Response.Header) -> None:
        self._header = header

    def begin(self) -> list[_Response]:
        return [_Response(header=self._header)]

    def hunk(self, hunk: _Response.Hunk) -> list[_Response]:
        return [_Response(hunk=hunk)]

    def end(self, trailer: _Response.Trailer) -> _Response:
        return _Response(trailer=trailer)


class _Grouped:
    """The header goes with the first group, the trailer with the last."""

    def __init__(self, header: _Response.Header) -> None:
        self._header: _Response.Header | None = header
        self._group: Group[_Response.Hunk] = Group()

    def begin(self) -> list[_Response]:
        return []

    def hunk(self, hunk: _Response.Hunk) -> list[_Response]:
        return [self._take()] if self._group.add(hunk) else []

    def end(self, trailer: _Response.Trailer) -> _Response:
        last = self._take()
        last.group.trailer.CopyFrom(trailer)
        return last

    def _take(self) -> _Response:
        header, self._header = self._header, None
        return _Response(group=_Response.HunkGroup(hunks=self._group.take(), header=header))
