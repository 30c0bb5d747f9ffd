"""`client.commits`: commits and the trees under them. Revisions are named as git names them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from datetime import datetime

from quorepo.rpc.client import codecs
from quorepo.rpc.client.asynchronous.transport import Transport
from quorepo.rpc.client.session import Session
from quorepo.rpc.client.types import Commit, TreeEntry
from quorepo.v1 import commit_pb2 as pb

__all__ = ["Commits"]


class Commits:
    """Calls of CommitService. All raise `quorepo.errors.ApiError`."""

    def __init__(self, transport: Transport, session: Session) -> None:
        self._transport = transport
        self._session = session

    async def get(
        self, repository: str, commit: str | bytes = b"HEAD", *, consistency: str | None = None
    ) -> Commit:
        """One commit.

        Raises:
            NotFound
        """
        request = pb.GetCommitRequest(
            repository=repository,
            commit=codecs.to_bytes(commit),
            consistency=self._session.wanted(repository, consistency),
        )
        answer = await self._transport.unary(
            pb.GetCommitResponse, "CommitService/GetCommit", request
        )
        self._session.saw(repository, answer.revision)
        return codecs.commit(answer.commit)

    async def list(
        self,
        repository: str,
        *revisions: str | bytes,
        exclusions: Sequence[str | bytes] = (),
        paths: Sequence[str | bytes] = (),
        author: str | bytes = b"",
        since: datetime | None = None,
        until: datetime | None = None,
        first_parent: bool = False,
        page_size: int = 100,
        consistency: str | None = None,
    ) -> AsyncIterator[Commit]:
        """The commits that `git log` lists, page by page as they are looked at.

        Args:
            revisions: where the walk begins; none: HEAD.
            exclusions: what these reach is left out.
        """
        request = pb.ListCommitsRequest(
            repository=repository,
            revisions=[codecs.to_bytes(revision) for revision in revisions],
            exclusions=[codecs.to_bytes(exclusion) for exclusion in exclusions],
            paths=[codecs.to_bytes(path) for path in paths],
            author=codecs.to_bytes(author),
            since=codecs.timestamp(since),
            until=codecs.timestamp(until),
            first_parent=first_parent,
            page_size=page_size,
            consistency=self._session.wanted(repository, consistency),
        )
        while True:
            answer = await self._transport.unary(
                pb.ListCommitsResponse, "CommitService/ListCommits", request
            )
            self._session.saw(repository, answer.revision)
            for message in answer.commits:
                yield codecs.commit(message)
            if not answer.next_page_token:
                return
            request.page_token = answer.next_page_token

    async def is_ancestor(
        self,
        repository: str,
        ancestor: str | bytes,
        descendant: str | bytes,
        *,
        consistency: str | None = None,
    ) -> bool:
        """Whether a commit is in the history of another; it is in its own."""
        request = pb.IsAncestorRequest(
            repository=repository,
            ancestor=codecs.to_bytes(ancestor),
            descendant=codecs.to_bytes(descendant),
            consistency=self._session.wanted(repository, consistency),
        )
        answer = await self._transport.unary(
            pb.IsAncestorResponse, "CommitService/IsAncestor", request
        )
        self._session.saw(repository, answer.revision)
        return answer.is_ancestor

    async def tree(
        self,
        repository: str,
        commit: str | bytes = b"HEAD",
        path: str | bytes = b"",
        *,
        recursive: bool = False,
        with_last_commit: bool = False,
        page_size: int = 100,
        consistency: str | None = None,
    ) -> AsyncIterator[TreeEntry]:
        """What is in a folder, or everything below it; page by page."""
        request = pb.ListTreeRequest(
            repository=repository,
            commit=codecs.to_bytes(commit),
            path=codecs.to_bytes(path),
            recursive=recursive,
            with_last_commit=with_last_commit,
            page_size=page_size,
            consistency=self._session.wanted(repository, consistency),
        )
        while True:
            answer = await self._transport.unary(
                pb.ListTreeResponse, "CommitService/ListTree", request
            )
            self._session.saw(repository, answer.revision)
            for message in answer.entries:
                yield codecs.tree_entry(message)
            if not answer.next_page_token:
                return
            request.page_token = answer.next_page_token

    async def entry(
        self,
        repository: str,
        path: str | bytes,
        commit: str | bytes = b"HEAD",
        *,
        consistency: str | None = None,
    ) -> TreeEntry:
        """What lies at one path of a commit.

        Raises:
            NotFound
        """
        request = pb.GetTreeEntryRequest(
            repository=repository,
            commit=codecs.to_bytes(commit),
            path=codecs.to_bytes(path),
            consistency=self._session.wanted(repository, consistency),
        )
        answer = await self._transport.unary(
            pb.GetTreeEntryResponse, "CommitService/GetTreeEntry", request
        )
        self._session.saw(repository, answer.revision)
        return codecs.tree_entry(answer.entry)
