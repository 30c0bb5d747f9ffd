"""The methods of CommitService about history: logs, counts, ancestry, blame, statistics."""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Sequence
from typing import Any

from quorepo.rpc import objects
from quorepo.rpc.context import EdgeContext
from quorepo.rpc.grpc.blame_stream import blame_messages
from quorepo.rpc.grpc.conversions import PageKey, open_view, page_size, revision_message
from quorepo.rpc.grpc.diff_service import diff_arguments
from quorepo.rpc.grpc.errors import Context
from quorepo.rpc.grpc.interceptor import caller
from quorepo.rpc.grpc.read_messages import (
    check_count,
    commit_messages,
    decoded_page,
    encoded_page,
    fitting,
    normal_paths,
    read_timeout_s,
    unhexed,
)
from quorepo.rpc.history import HistoryReads, resolve
from quorepo.rpc.reads import RepositoryView
from quorepo.storage.errors import InvalidArgument
from quorepo.storage.history.revisions import peel
from quorepo.storage.history.source import History
from quorepo.storage.history.walk import LogQuery
from quorepo.storage.packs import BLOB, COMMIT
from quorepo.v1 import commit_pb2, diff_pb2

__all__ = ["WalkMethods", "commit_named"]

_PAGE_SIZE = 100


def commit_named(history: History, view: RepositoryView, revision: bytes) -> bytes:
    """The commit that a revision names, tags followed. Raises NotFound, InvalidArgument."""
    return peel(history, resolve(history, view, revision), COMMIT)[0]


class WalkMethods:
    """A part of CommitService."""

    _edge: EdgeContext
    _history: HistoryReads

    async def ListCommits(
        self, request: commit_pb2.ListCommitsRequest, context: Context
    ) -> commit_pb2.ListCommitsResponse:
        """A page. The token holds the commits that the first page began with."""
        self._edge.authenticator.authorize(caller(), "read", request.repository)
        api = self._edge.config.api
        paths = self._checked(request)
        if request.order not in commit_pb2.CommitOrder.values():
            raise InvalidArgument(f"order {request.order} is unknown")
        question = commit_pb2.ListCommitsRequest()
        question.CopyFrom(request)
        for field in ("page_token", "page_size", "consistency"):
            question.ClearField(field)
        key = PageKey("log", question.SerializeToString(deterministic=True))
        token = decoded_page(key, request.page_token, ("tips", "exclusions"), ("offset",))
        size = page_size(request.page_size, _PAGE_SIZE, api.page_size_max)
        view = await open_view(self._edge, context, request.repository, request.consistency)
        start: dict[str, Any] = {"offset": 0}

        def prepare(history: History) -> dict[str, Any]:
            if token is None:
                tips, exclusions = _ends(history, view, request)
            else:
                start.update(token)
                tips, exclusions = (
                    unhexed(history, token[name]) for name in ("tips", "exclusions")
                )
            start["tips"] = [oid.hex() for oid in tips]
            start["exclusions"] = [oid.hex() for oid in exclusions]
            query = LogQuery(
                tuple(tips),
                tuple(exclusions),
                tuple(paths),
                author=request.author,
                message=request.message_contains,
                ignore_case=request.ignore_case,
                since=request.since.seconds if request.HasField("since") else None,
                until=request.until.seconds if request.HasField("until") else None,
                first_parent=request.first_parent,
                topological=request.order == commit_pb2.COMMIT_ORDER_TOPOLOGICAL,
                parents_max=request.parents_max,
            )
            return {"query": query.to_json(), "offset": start["offset"], "limit": size}

        def finish(history: History, found: dict[str, Any]) -> commit_pb2.ListCommitsResponse:
            commits = commit_messages(view, found["oids"])
            count = fitting(commits)
            more = found["more"] or count < len(commits)
            following = {**start, "offset": start["offset"] + count}
            return commit_pb2.ListCommitsResponse(
                commits=commits[:count],
                next_page_token=encoded_page(key, following) if more else "",
                revision=revision_message(view),
            )

        timeout_s = read_timeout_s(self._edge, context)
        return await self._history.ask(view, "log", prepare, finish, timeout_s)

    async def CountCommits(
        self, request: commit_pb2.CountCommitsRequest, context: Context
    ) -> commit_pb2.CountCommitsResponse:
        """How many commits a log has."""
        self._edge.authenticator.authorize(caller(), "read", request.repository)
        paths = self._checked(request)
        _check_count_max(request.count_max)
        view = await open_view(self._edge, context, request.repository, request.consistency)

        def prepare(history: History) -> dict[str, Any]:
            tips, exclusions = _ends(history, view, request)
            query = LogQuery(
                tuple(tips),
                tuple(exclusions),
                tuple(paths),
                since=request.since.seconds if request.HasField("since") else None,
                until=request.until.seconds if request.HasField("until") else None,
                first_parent=request.first_parent,
            )
            return {"query": query.to_json(), "at_most": request.count_max}

        def finish(history: History, found: dict[str, Any]) -> commit_pb2.CountCommitsResponse:
            return commit_pb2.CountCommitsResponse(
                count=found["count"], revision=revision_message(view)
            )

        timeout_s = read_timeout_s(self._edge, context)
        return await self._history.ask(view, "count", prepare, finish, timeout_s)

    async def CountDivergingCommits(
        self, request: commit_pb2.CountDivergingCommitsRequest, context: Context
    ) -> commit_pb2.CountDivergingCommitsResponse:
        """How far two histories are apart."""
        self._edge.authenticator.authorize(caller(), "read", request.repository)
        _check_count_max(request.count_max)
        view = await open_view(self._edge, context, request.repository, request.consistency)

        def prepare(history: History) -> dict[str, Any]:
            return {
                "left": commit_named(history, view, request.left).hex(),
                "right": commit_named(history, view, request.right).hex(),
                "at_most": request.count_max,
            }

        def finish(
            history: History, found: dict[str, Any]
        ) -> commit_pb2.CountDivergingCommitsResponse:
            return commit_pb2.CountDivergingCommitsResponse(
                left_count=found["left"],
                right_count=found["right"],
                revision=revision_message(view),
            )

        timeout_s = read_timeout_s(self._edge, context)
        return await self._history.ask(view, "diverging", prepare, finish, timeout_s)

    async def IsAncestor(
        self, request: commit_pb2.IsAncestorRequest, context: Context
    ) -> commit_pb2.IsAncestorResponse:
        """Whether one commit leads to another."""
        self._edge.authenticator.authorize(caller(), "read", request.repository)
        view = await open_view(self._edge, context, request.repository, request.consistency)

        def prepare(history: History) -> dict[str, Any]:
            return {
                "ancestor": commit_named(history, view, request.ancestor).hex(),
                "descendant": commit_named(history, view, request.descendant).hex(),
            }

        def finish(history: History, found: dict[str, Any]) -> commit_pb2.IsAncestorResponse:
            return commit_pb2.IsAncestorResponse(
                is_ancestor=found["is_ancestor"], revision=revision_message(view)
            )

        timeout_s = read_timeout_s(self._edge, context)
        return await self._history.ask(view, "is_ancestor", prepare, finish, timeout_s)

    async def GetLastCommitForPath(
        self, request: commit_pb2.GetLastCommitForPathRequest, context: Context
    ) -> commit_pb2.GetLastCommitForPathResponse:
        """The newest commit that changed a path."""
        self._edge.authenticator.authorize(caller(), "read", request.repository)
        path = objects.normal_path(request.path)
        view = await open_view(self._edge, context, request.repository, request.consistency)

        def prepare(history: History) -> dict[str, Any]:
            tip = commit_named(history, view, request.commit)
            if path:
                return {"tip": tip.hex(), "paths": [path.hex()]}
            return {"tip": tip.hex(), "paths": []}

        def finish(
            history: History, found: dict[str, Any]
        ) -> commit_pb2.GetLastCommitForPathResponse:
            oids = [oid for oid in found["oids"] if oid]
            if not path:
                oids = [commit_named(history, view, request.commit).hex()]
            commits = commit_messages(view, oids)
            return commit_pb2.GetLastCommitForPathResponse(
                commit=commits[0] if commits else None, revision=revision_message(view)
            )

        timeout_s = read_timeout_s(self._edge, context)
        return await self._history.ask(view, "last_commits", prepare, finish, timeout_s)

    async def GetCommitStats(
        self, request: commit_pb2.GetCommitStatsRequest, context: Context
    ) -> commit_pb2.GetCommitStatsResponse:
        """A commit against its first parent."""
        self._edge.authenticator.authorize(caller(), "read", request.repository)
        view = await open_view(self._edge, context, request.repository, request.consistency)
        heads: list[str] = []

        def prepare(history: History) -> dict[str, Any]:
            diff_range = diff_pb2.DiffRange(head=request.commit)
            ends, arguments = diff_arguments(
                history, view, self._edge.config.api, diff_range, diff_pb2.DiffOptions()
            )
            heads.append(ends.head.hex())
            return arguments

        def finish(history: History, found: dict[str, Any]) -> commit_pb2.GetCommitStatsResponse:
            return commit_pb2.GetCommitStatsResponse(
                oid=heads[0],
                files=found["files"],
                additions=found["additions"],
                deletions=found["deletions"],
                truncated=bool(found["truncated_by"]),
                revision=revision_message(view),
            )

        timeout_s = read_timeout_s(self._edge, context)
        return await self._history.ask(view, "stats", prepare, finish, timeout_s)

    async def Blame(
        self, request: commit_pb2.BlameRequest, context: Context
    ) -> AsyncIterator[commit_pb2.BlameResponse]:
        """Hunks; a commit comes with the first hunk that it explains."""
        self._edge.authenticator.authorize(caller(), "read", request.repository)
        api = self._edge.config.api
        path = objects.normal_path(request.path)
        if request.last_line and request.last_line < request.first_line:
            raise InvalidArgument(
                f"last_line {request.last_line} is before first_line {request.first_line}"
            )
        view = await open_view(self._edge, context, request.repository, request.consistency)

        def prepare(history: History) -> dict[str, Any]:
            commit = commit_named(history, view, request.commit)
            entry = objects.entry_at(view, history.root_of(commit)[1], path)
            if entry.type != BLOB:
                raise InvalidArgument(f"path {entry.path!r} is no file")
            return {
                "commit": commit.hex(),
                "blob": entry.oid.hex(),
                "path": path.hex(),
                "first_line": request.first_line,
                "last_line": request.last_line,
                "blame_lines_max": api.blame_lines_max,
                "blame_file_bytes_max": api.blame_file_bytes_max,
            }

        timeout_s = read_timeout_s(self._edge, context)

        async def read_commits(oids: Sequence[str]) -> Sequence[commit_pb2.Commit]:
            return await self._history.read(
                view, lambda history: commit_messages(view, oids), small=True
            )

        async with contextlib.aclosing(
            self._history.stream(view, "blame", prepare, timeout_s)
        ) as parts:
            revision = revision_message(view)
            async for message in blame_messages(parts, revision, read_commits, request.grouped):
                yield message

    def _checked(
        self, request: commit_pb2.ListCommitsRequest | commit_pb2.CountCommitsRequest
    ) -> list[bytes]:
        """The paths of a log, after its other fields were checked."""
        api = self._edge.config.api
        check_count(api, len(request.revisions), "revisions")
        check_count(api, len(request.exclusions), "exclusions")
        return normal_paths(api, request.paths)


def _ends(
    history: History,
    view: RepositoryView,
    request: commit_pb2.ListCommitsRequest | commit_pb2.CountCommitsRequest,
) -> tuple[list[bytes], list[bytes]]:
    names = list(request.revisions) or [b"HEAD"]
    tips = [commit_named(history, view, name) for name in names]
    return tips, [commit_named(history, view, name) for name in request.exclusions]


def _check_count_max(count_max: int) -> None:
    if count_max < 0:
        raise InvalidArgument(f"count_max must not be negative, got {count_max}")
