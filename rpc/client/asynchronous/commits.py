"""`client.commits`: commits and the trees under them. Revisions are named as git names them."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence
from datetime import datetime

from quorepo.rpc.client import codecs
from quorepo.rpc.client.asynchronous.contents import Contents
from quorepo.rpc.client.types import (
    Commit,
    CommitStats,
    DivergingCounts,
    FoundObject,
    TreeEntry,
)
from quorepo.v1 import commit_pb2 as pb

__all__ = ["Commits"]

_ORDERS = {"date": pb.COMMIT_ORDER_DATE, "topological": pb.COMMIT_ORDER_TOPOLOGICAL}


class Commits(Contents):
    """Calls of CommitService. All raise `quorepo.errors.ApiError`."""

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
        message: str | bytes = b"",
        ignore_case: bool = False,
        since: datetime | None = None,
        until: datetime | None = None,
        first_parent: bool = False,
        order: str = "date",
        parents_max: int = 0,
        page_size: int = 100,
        consistency: str | None = None,
    ) -> AsyncIterator[Commit]:
        """The commits that `git log` lists, page by page as they are looked at.

        Args:
            revisions: where the walk begins; none: HEAD.
            exclusions: what these reach is left out.
            paths: only commits that changed one of these.
            author: only commits whose author, "Name <email>", has this text; `message` likewise.
            since: and `until`: of the committer, both included.
            order: "date", or "topological": no parent before its children.
            parents_max: 1: no merges; 0: any number.
        """
        request = pb.ListCommitsRequest(
            repository=repository,
            revisions=[codecs.to_bytes(revision) for revision in revisions],
            exclusions=[codecs.to_bytes(exclusion) for exclusion in exclusions],
            paths=[codecs.to_bytes(path) for path in paths],
            author=codecs.to_bytes(author),
            message_contains=codecs.to_bytes(message),
            ignore_case=ignore_case,
            since=codecs.timestamp(since),
            until=codecs.timestamp(until),
            first_parent=first_parent,
            order=codecs.choice("order", _ORDERS, order),
            parents_max=parents_max,
            page_size=page_size,
            consistency=self._session.wanted(repository, consistency),
        )
        while True:
            answer = await self._transport.unary(
                pb.ListCommitsResponse, "CommitService/ListCommits", request
            )
            self._session.saw(repository, answer.revision)
            for found in answer.commits:
                yield codecs.commit(found)
            if not answer.next_page_token:
                return
            request.page_token = answer.next_page_token

    async def count(
        self,
        repository: str,
        *revisions: str | bytes,
        exclusions: Sequence[str | bytes] = (),
        paths: Sequence[str | bytes] = (),
        since: datetime | None = None,
        until: datetime | None = None,
        first_parent: bool = False,
        count_max: int = 0,
        consistency: str | None = None,
    ) -> int:
        """How many commits `list` has; counting stops at `count_max`, if that is not 0."""
        request = pb.CountCommitsRequest(
            repository=repository,
            revisions=[codecs.to_bytes(revision) for revision in revisions],
            exclusions=[codecs.to_bytes(exclusion) for exclusion in exclusions],
            paths=[codecs.to_bytes(path) for path in paths],
            since=codecs.timestamp(since),
            until=codecs.timestamp(until),
            first_parent=first_parent,
            count_max=count_max,
            consistency=self._session.wanted(repository, consistency),
        )
        answer = await self._transport.unary(
            pb.CountCommitsResponse, "CommitService/CountCommits", request
        )
        self._session.saw(repository, answer.revision)
        return answer.count

    async def count_diverging(
        self,
        repository: str,
        left: str | bytes,
        right: str | bytes,
        *,
        count_max: int = 0,
        consistency: str | None = None,
    ) -> DivergingCounts:
        """How many commits each of two histories has that the other has not.

        Args:
            count_max: of both together; counting stops there; 0: no bound.
        """
        request = pb.CountDivergingCommitsRequest(
            repository=repository,
            left=codecs.to_bytes(left),
            right=codecs.to_bytes(right),
            count_max=count_max,
            consistency=self._session.wanted(repository, consistency),
        )
        answer = await self._transport.unary(
            pb.CountDivergingCommitsResponse, "CommitService/CountDivergingCommits", request
        )
        self._session.saw(repository, answer.revision)
        return DivergingCounts(answer.left_count, answer.right_count)

    async def last_for_path(
        self,
        repository: str,
        path: str | bytes,
        commit: str | bytes = b"HEAD",
        *,
        consistency: str | None = None,
    ) -> Commit | None:
        """The last commit that changed a file or folder; None: no commit ever had it."""
        request = pb.GetLastCommitForPathRequest(
            repository=repository,
            commit=codecs.to_bytes(commit),
            path=codecs.to_bytes(path),
            consistency=self._session.wanted(repository, consistency),
        )
        answer = await self._transport.unary(
            pb.GetLastCommitForPathResponse, "CommitService/GetLastCommitForPath", request
        )
        self._session.saw(repository, answer.revision)
        return codecs.commit(answer.commit) if answer.HasField("commit") else None

    async def stats(
        self, repository: str, commit: str | bytes = b"HEAD", *, consistency: str | None = None
    ) -> CommitStats:
        """How many files and lines a commit changed against its first parent."""
        request = pb.GetCommitStatsRequest(
            repository=repository,
            commit=codecs.to_bytes(commit),
            consistency=self._session.wanted(repository, consistency),
        )
        answer = await self._transport.unary(
            pb.GetCommitStatsResponse, "CommitService/GetCommitStats", request
        )
        self._session.saw(repository, answer.revision)
        return codecs.commit_stats(answer)

    async def check_objects(
        self, repository: str, revisions: Sequence[str | bytes], *, consistency: str | None = None
    ) -> tuple[FoundObject, ...]:
        """What each of the revisions names, in their order; no error for what names nothing."""
        request = pb.CheckObjectsExistRequest(
            repository=repository,
            revisions=[codecs.to_bytes(revision) for revision in revisions],
            consistency=self._session.wanted(repository, consistency),
        )
        answer = await self._transport.unary(
            pb.CheckObjectsExistResponse, "CommitService/CheckObjectsExist", request
        )
        self._session.saw(repository, answer.revision)
        return tuple(codecs.found_object(found) for found in answer.objects)

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
        with_folders: bool = False,
        with_last_commit: bool = False,
        page_size: int = 100,
        consistency: str | None = None,
    ) -> AsyncIterator[TreeEntry]:
        """What is in a folder, or everything below it; page by page.

        Args:
            with_folders: with `recursive`: folders too, each before what is in it.
            with_last_commit: each entry with the last commit that changed it.
        """
        request = pb.ListTreeRequest(
            repository=repository,
            commit=codecs.to_bytes(commit),
            path=codecs.to_bytes(path),
            recursive=recursive,
            with_folders=with_folders,
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
