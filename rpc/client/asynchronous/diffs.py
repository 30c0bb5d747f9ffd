"""`client.diffs`: what changed between two commits."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Sequence

from quorepo.rpc.client import codecs
from quorepo.rpc.client.asynchronous.transport import Transport
from quorepo.rpc.client.errors import CutStream
from quorepo.rpc.client.session import Session
from quorepo.rpc.client.types import DiffOptions, DiffStats, FileChange, FilePatch
from quorepo.v1 import diff_pb2 as pb

__all__ = ["Diffs"]


class Diffs:
    """Calls of DiffService. All raise `quorepo.errors.ApiError`.

    `base` empty: the first parent of `head`, or nothing for a root commit. `from_merge_base`
    compares as `git diff BASE...HEAD`.
    """

    def __init__(self, transport: Transport, session: Session) -> None:
        self._transport = transport
        self._session = session

    async def patches(
        self,
        repository: str,
        base: str | bytes,
        head: str | bytes,
        *,
        paths: Sequence[str | bytes] = (),
        options: DiffOptions | None = None,
        from_merge_base: bool = False,
        consistency: str | None = None,
    ) -> AsyncIterator[FilePatch]:
        """Each changed file with its patch; together what `git diff` prints.

        Raises:
            CutStream: it came damaged or in part.
            LimitExceeded: the diff is larger than a limit; what came before is right.
        """
        request = pb.DiffRequest(
            repository=repository,
            range=codecs.diff_range(base, head, from_merge_base),
            options=codecs.diff_options(options, paths),
            format=pb.DIFF_FORMAT_PATCH,
            grouped=True,
            consistency=self._session.wanted(repository, consistency),
        )
        digest = hashlib.sha256()
        change: pb.FileChange | None = None  # whose chunks are on the way
        chunks: list[bytes] = []
        trailer: pb.DiffResponse.Trailer | None = None
        async for message in self._transport.stream(pb.DiffResponse, "DiffService/Diff", request):
            part = message.WhichOneof("part")
            if part == "header":
                self._session.saw(repository, message.header.revision)
            elif part == "chunk":
                digest.update(message.chunk)
                chunks.append(message.chunk)
                continue
            elif part == "trailer":
                trailer = message.trailer
            elif part == "group":
                trailer = self._ends_of(repository, message.group)
            if change is not None:
                yield codecs.file_patch(change, b"".join(chunks))
            change, chunks = message.change if part == "change" else None, []
            for whole in message.group.changes:
                digest.update(whole.patch)
                yield codecs.file_patch(whole, whole.patch)
        if trailer is None or trailer.sha256 != digest.digest():
            raise CutStream("the diff came damaged or in part", reason="CUT_STREAM")
        if trailer.truncated_by:
            raise codecs.limit_met("the diff", trailer.truncated_by)

    async def counted_changes(
        self,
        repository: str,
        base: str | bytes,
        head: str | bytes,
        *,
        paths: Sequence[str | bytes] = (),
        options: DiffOptions | None = None,
        from_merge_base: bool = False,
        consistency: str | None = None,
    ) -> AsyncIterator[FileChange]:
        """Each changed file with its added and deleted lines, as `git diff --numstat` counts them.

        Raises:
            CutStream: it came in part.
            LimitExceeded: the diff is larger than a limit; what came before is right.
        """
        request = pb.DiffRequest(
            repository=repository,
            range=codecs.diff_range(base, head, from_merge_base),
            options=codecs.diff_options(options, paths),
            format=pb.DIFF_FORMAT_NUMSTAT,
            grouped=True,
            consistency=self._session.wanted(repository, consistency),
        )
        trailer: pb.DiffResponse.Trailer | None = None
        async for message in self._transport.stream(pb.DiffResponse, "DiffService/Diff", request):
            part = message.WhichOneof("part")
            if part == "header":
                self._session.saw(repository, message.header.revision)
            elif part == "trailer":
                trailer = message.trailer
            elif part == "group":
                trailer = self._ends_of(repository, message.group)
            for change in [message.change] if part == "change" else message.group.changes:
                yield codecs.file_change(change)
        if trailer is None:
            raise CutStream("the diff came in part", reason="CUT_STREAM")
        if trailer.truncated_by:
            raise codecs.limit_met("the diff", trailer.truncated_by)

    def _ends_of(
        self, repository: str, group: pb.DiffResponse.ChangeGroup
    ) -> pb.DiffResponse.Trailer | None:
        """Notes the header of a group, and gives its trailer, as far as it has them."""
        if group.HasField("header"):
            self._session.saw(repository, group.header.revision)
        return group.trailer if group.HasField("trailer") else None

    async def changes(
        self,
        repository: str,
        base: str | bytes,
        head: str | bytes,
        *,
        paths: Sequence[str | bytes] = (),
        options: DiffOptions | None = None,
        from_merge_base: bool = False,
        page_size: int = 100,
        consistency: str | None = None,
    ) -> AsyncIterator[FileChange]:
        """The changed paths, page by page; lines are not counted."""
        request = pb.ListChangedPathsRequest(
            repository=repository,
            range=codecs.diff_range(base, head, from_merge_base),
            options=codecs.diff_options(options, paths),
            page_size=page_size,
            consistency=self._session.wanted(repository, consistency),
        )
        while True:
            answer = await self._transport.unary(
                pb.ListChangedPathsResponse, "DiffService/ListChangedPaths", request
            )
            self._session.saw(repository, answer.revision)
            for message in answer.changes:
                yield codecs.file_change(message)
            if not answer.next_page_token:
                break
            request.page_token = answer.next_page_token
        if answer.truncated_by:
            raise codecs.limit_met("the list of changed paths", answer.truncated_by)

    async def stats(
        self,
        repository: str,
        base: str | bytes,
        head: str | bytes,
        *,
        paths: Sequence[str | bytes] = (),
        options: DiffOptions | None = None,
        from_merge_base: bool = False,
        consistency: str | None = None,
    ) -> DiffStats:
        """How many files and lines changed."""
        request = pb.GetDiffStatsRequest(
            repository=repository,
            range=codecs.diff_range(base, head, from_merge_base),
            options=codecs.diff_options(options, paths),
            consistency=self._session.wanted(repository, consistency),
        )
        answer = await self._transport.unary(
            pb.GetDiffStatsResponse, "DiffService/GetDiffStats", request
        )
        self._session.saw(repository, answer.revision)
        return DiffStats(
            base_oid=answer.base_oid,
            head_oid=answer.head_oid,
            files=answer.files,
            additions=answer.additions,
            deletions=answer.deletions,
            truncated_by=answer.truncated_by,
        )
