"""DiffService of quorepo.v1: what changed between two commits."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import AsyncIterator
from typing import Any

from quorepo.rpc.api_config import ApiSection
from quorepo.rpc.context import EdgeContext
from quorepo.rpc.grpc.conversions import PageKey, open_view, page_size, revision_message
from quorepo.rpc.grpc.diff_stream import diff_messages
from quorepo.rpc.grpc.errors import Context
from quorepo.rpc.grpc.interceptor import caller
from quorepo.rpc.grpc.read_messages import (
    change_message,
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
from quorepo.storage.packs import BLOB, COMMIT, TREE
from quorepo.v1 import diff_pb2, diff_pb2_grpc

__all__ = ["DiffService", "Ends", "diff_arguments"]

_PAGE_SIZE = 100
_CONTEXT_LINES, _CONTEXT_LINES_MAX = 3, 100
_SIMILARITY = 50
_FORMATS = {
    diff_pb2.DIFF_FORMAT_UNSPECIFIED: "raw",
    diff_pb2.DIFF_FORMAT_RAW: "raw",
    diff_pb2.DIFF_FORMAT_NAME_STATUS: "raw",
    diff_pb2.DIFF_FORMAT_NUMSTAT: "numstat",
    diff_pb2.DIFF_FORMAT_PATCH: "patch",
}


@dataclasses.dataclass(frozen=True)
class Ends:
    """The two sides of a diff; empty where there is no such object."""

    base: bytes
    head: bytes
    base_tree: bytes
    head_tree: bytes


def diff_arguments(
    history: History,
    view: RepositoryView,
    api: ApiSection,
    diff_range: diff_pb2.DiffRange,
    options: diff_pb2.DiffOptions,
) -> tuple[Ends, dict[str, Any]]:
    """The sides of a diff, and the arguments of its question.

    Raises:
        InvalidArgument, NotFound, LimitExceeded
    """
    ends = _ends(history, view, diff_range)
    return ends, {
        "old": ends.base_tree.hex(),
        "new": ends.head_tree.hex(),
        **_options(api, options),
    }


class DiffService(diff_pb2_grpc.DiffServiceServicer):
    """See protos/quorepo/v1/diff.proto."""

    def __init__(self, edge: EdgeContext, history: HistoryReads) -> None:
        self._edge = edge
        self._history = history

    async def Diff(
        self, request: diff_pb2.DiffRequest, context: Context
    ) -> AsyncIterator[diff_pb2.DiffResponse]:
        """The changes one by one."""
        self._edge.authenticator.authorize(caller(), "read", request.repository)
        kind = _FORMATS.get(request.format)
        if kind is None:
            raise InvalidArgument(f"format {request.format} is unknown")
        api = self._edge.config.api
        view = await open_view(self._edge, context, request.repository, request.consistency)
        diff_range = await self._plain(context, view, request.range)
        header = diff_pb2.DiffResponse.Header(revision=revision_message(view))

        def prepare(history: History) -> dict[str, Any]:
            ends, arguments = diff_arguments(history, view, api, diff_range, request.options)
            header.base_oid, header.head_oid = ends.base.hex(), ends.head.hex()
            header.base_tree_oid, header.head_tree_oid = ends.base_tree.hex(), ends.head_tree.hex()
            return {
                **arguments,
                "format": kind,
                "context_lines": _context_lines(request.options),
                "diff_bytes_max": api.diff_bytes_max,
            }

        timeout_s = read_timeout_s(self._edge, context)
        async with contextlib.aclosing(
            self._history.stream(view, "diff", prepare, timeout_s)
        ) as parts:
            async for message in diff_messages(parts, header, request.grouped):
                yield message

    async def ListChangedPaths(
        self, request: diff_pb2.ListChangedPathsRequest, context: Context
    ) -> diff_pb2.ListChangedPathsResponse:
        """A page. The token holds the trees of the first one."""
        self._edge.authenticator.authorize(caller(), "read", request.repository)
        api = self._edge.config.api
        question = request.options.SerializeToString(deterministic=True)
        asked = request.range.SerializeToString(deterministic=True)
        key = PageKey("changes", request.repository, asked, question)
        token = decoded_page(key, request.page_token, ("old", "new"), ("offset",))
        size = page_size(request.page_size, _PAGE_SIZE, api.page_size_max)
        view = await open_view(self._edge, context, request.repository, request.consistency)
        diff_range = request.range
        if token is None:
            diff_range = await self._plain(context, view, request.range)
        start: dict[str, Any] = {"offset": 0}

        def prepare(history: History) -> dict[str, Any]:
            if token is None:
                _, arguments = diff_arguments(history, view, api, diff_range, request.options)
            else:
                start["offset"] = token["offset"]
                unhexed(history, [token[name] for name in ("old", "new") if token[name]])
                arguments = {"old": token["old"], "new": token["new"]}
                arguments |= _options(api, request.options)
            start.update(old=arguments["old"], new=arguments["new"])
            return {**arguments, "offset": start["offset"], "limit": size}

        def finish(history: History, found: dict[str, Any]) -> diff_pb2.ListChangedPathsResponse:
            changes = [change_message(change) for change in found["changes"]]
            count = fitting(changes)
            more = found["more"] or count < len(changes)
            following = {**start, "offset": start["offset"] + count}
            return diff_pb2.ListChangedPathsResponse(
                changes=changes[:count],
                next_page_token=encoded_page(key, following) if more else "",
                truncated_by=found["truncated_by"],
                revision=revision_message(view),
            )

        timeout_s = read_timeout_s(self._edge, context)
        return await self._history.ask(view, "changes", prepare, finish, timeout_s)

    async def GetDiffStats(
        self, request: diff_pb2.GetDiffStatsRequest, context: Context
    ) -> diff_pb2.GetDiffStatsResponse:
        """The numbers alone."""
        self._edge.authenticator.authorize(caller(), "read", request.repository)
        view, ends, arguments = await self._start(context, request, request.range, request.options)

        def finish(history: History, found: dict[str, Any]) -> diff_pb2.GetDiffStatsResponse:
            return diff_pb2.GetDiffStatsResponse(
                base_oid=ends.base.hex(),
                head_oid=ends.head.hex(),
                files=found["files"],
                additions=found["additions"],
                deletions=found["deletions"],
                truncated_by=found["truncated_by"],
                revision=revision_message(view),
            )

        timeout_s = read_timeout_s(self._edge, context)
        return await self._history.ask(view, "stats", lambda history: arguments, finish, timeout_s)

    async def _start(
        self,
        context: Context,
        request: diff_pb2.GetDiffStatsRequest,
        diff_range: diff_pb2.DiffRange,
        options: diff_pb2.DiffOptions,
    ) -> tuple[RepositoryView, Ends, dict[str, Any]]:
        view = await open_view(self._edge, context, request.repository, request.consistency)
        diff_range = await self._plain(context, view, diff_range)
        ends, arguments = await self._history.read(
            view,
            lambda history: diff_arguments(
                history, view, self._edge.config.api, diff_range, options
            ),
        )
        return view, ends, arguments

    async def _plain(
        self, context: Context, view: RepositoryView, diff_range: diff_pb2.DiffRange
    ) -> diff_pb2.DiffRange:
        """The range with the merge base as its base, where that was asked for."""
        if not diff_range.from_merge_base:
            return diff_range
        if not diff_range.base:
            raise InvalidArgument("from_merge_base needs a base")

        def prepare(history: History) -> dict[str, Any]:
            sides = [_side(history, view, text)[0] for text in (diff_range.base, diff_range.head)]
            if not all(sides):
                raise InvalidArgument("from_merge_base needs two commits, not trees")
            return {"commits": [side.hex() for side in sides]}

        def finish(history: History, found: dict[str, Any]) -> diff_pb2.DiffRange:
            if not found["oids"]:
                raise InvalidArgument("base and head have no common history")
            return diff_pb2.DiffRange(base=found["oids"][0].encode(), head=diff_range.head)

        timeout_s = read_timeout_s(self._edge, context)
        return await self._history.ask(view, "merge_bases", prepare, finish, timeout_s)


def _ends(history: History, view: RepositoryView, diff_range: diff_pb2.DiffRange) -> Ends:
    head, head_tree = _side(history, view, diff_range.head)
    if diff_range.base:
        base, base_tree = _side(history, view, diff_range.base)
        return Ends(base, head, base_tree, head_tree)
    if not head:
        raise InvalidArgument("a tree needs a base to be compared with")
    parents = history.parents_of(head)
    if not parents:
        return Ends(b"", head, b"", head_tree)
    return Ends(parents[0], head, history.root_of(parents[0])[1], head_tree)


def _side(history: History, view: RepositoryView, revision: bytes) -> tuple[bytes, bytes]:
    """(commit or empty, tree)."""
    oid, kind = peel(history, resolve(history, view, revision))
    if kind == BLOB:
        raise history.wrong_kind(oid, kind, COMMIT)
    return (b"", oid) if kind == TREE else (oid, history.root_of(oid)[1])


def _options(api: ApiSection, options: diff_pb2.DiffOptions) -> dict[str, Any]:
    if options.rename_similarity > 100:
        raise InvalidArgument(f"rename_similarity is {options.rename_similarity}, at most 100")
    _context_lines(options)
    return {
        "paths": [path.hex() for path in normal_paths(api, options.paths)],
        "renames": not options.no_renames,
        "similarity": options.rename_similarity or _SIMILARITY,
        "copies": options.find_copies,
        "diff_files_max": api.diff_files_max,
        "diff_file_bytes_max": api.diff_file_bytes_max,
    }


def _context_lines(options: diff_pb2.DiffOptions) -> int:
    if not options.HasField("context_lines"):
        return _CONTEXT_LINES
    if options.context_lines > _CONTEXT_LINES_MAX:
        raise InvalidArgument(
            f"context_lines is {options.context_lines}, at most {_CONTEXT_LINES_MAX}"
        )
    return options.context_lines
