"""The part of `client.commits` that looks into files: names, lines and where they come from."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Sequence

from quorepo.rpc.client import codecs
from quorepo.rpc.client.asynchronous.transport import Transport
from quorepo.rpc.client.errors import CutStream
from quorepo.rpc.client.session import Session
from quorepo.rpc.client.types import BlameHunk, Commit, SearchResult
from quorepo.v1 import commit_pb2 as pb

__all__ = ["Contents"]


class Contents:
    """Calls of CommitService about the files of a commit."""

    def __init__(self, transport: Transport, session: Session) -> None:
        self._transport = transport
        self._session = session

    async def files(
        self,
        repository: str,
        commit: str | bytes = b"HEAD",
        path: str | bytes = b"",
        *,
        page_size: int = 1000,
        consistency: str | None = None,
    ) -> AsyncIterator[bytes]:
        """The paths of all files below a folder, in order, without submodules; page by page."""
        request = pb.ListFilesRequest(
            repository=repository,
            commit=codecs.to_bytes(commit),
            path=codecs.to_bytes(path),
            page_size=page_size,
            consistency=self._session.wanted(repository, consistency),
        )
        while True:
            answer = await self._transport.unary(
                pb.ListFilesResponse, "CommitService/ListFiles", request
            )
            self._session.saw(repository, answer.revision)
            for found in answer.paths:
                yield found
            if not answer.next_page_token:
                return
            request.page_token = answer.next_page_token

    async def search(
        self,
        repository: str,
        pattern: str | bytes,
        commit: str | bytes = b"HEAD",
        *,
        regular_expression: bool = False,
        ignore_case: bool = False,
        paths: Sequence[str | bytes] = (),
        matches_max: int = 100,
        consistency: str | None = None,
    ) -> SearchResult:
        """Lines of files that have a text, or match a regular expression of Python over bytes.

        The search is bounded by matches, bytes and time: look at `truncated_by`.

        Args:
            paths: only files at or below these.
        """
        request = pb.SearchContentRequest(
            repository=repository,
            commit=codecs.to_bytes(commit),
            pattern=codecs.to_bytes(pattern),
            regular_expression=regular_expression,
            ignore_case=ignore_case,
            paths=[codecs.to_bytes(path) for path in paths],
            matches_max=matches_max,
            consistency=self._session.wanted(repository, consistency),
        )
        answer = await self._transport.unary(
            pb.SearchContentResponse, "CommitService/SearchContent", request, patient=True
        )
        self._session.saw(repository, answer.revision)
        return codecs.search_result(answer)

    async def blame(
        self,
        repository: str,
        path: str | bytes,
        commit: str | bytes = b"HEAD",
        *,
        first_line: int = 1,
        last_line: int = 0,
        consistency: str | None = None,
    ) -> AsyncIterator[BlameHunk]:
        """Which commit each line of a file comes from, in the order of the lines.

        Args:
            last_line: included; 0: to the end.

        Raises:
            NotFound
            CutStream: it came damaged or in part; what came before was right.
        """
        request = pb.BlameRequest(
            repository=repository,
            commit=codecs.to_bytes(commit),
            path=codecs.to_bytes(path),
            first_line=first_line,
            last_line=last_line,
            grouped=True,
            consistency=self._session.wanted(repository, consistency),
        )
        digest = hashlib.sha256()
        told: bytes | None = None
        commits: dict[str, Commit] = {}
        async for message in self._transport.stream(
            pb.BlameResponse, "CommitService/Blame", request
        ):
            part = message.WhichOneof("part")
            if part == "header":
                self._session.saw(repository, message.header.revision)
            elif part == "group" and message.group.HasField("header"):
                self._session.saw(repository, message.group.header.revision)
            for hunk in [message.hunk] if part == "hunk" else message.group.hunks:
                digest.update(
                    f"{hunk.commit_oid} {hunk.first_line} {hunk.line_count} "
                    f"{hunk.original_first_line}\n".encode()
                )
                if hunk.HasField("commit"):
                    commits[hunk.commit_oid] = codecs.commit(hunk.commit)
                yield codecs.blame_hunk(hunk, commits[hunk.commit_oid])
            if part == "trailer":
                told = message.trailer.sha256
            elif part == "group" and message.group.HasField("trailer"):
                told = message.group.trailer.sha256
        if told != digest.digest():
            raise CutStream("the blame came damaged or in part", reason="CUT_STREAM")
