"""The methods of CommitService about trees: entries, files, content, what exists."""

from __future__ import annotations

from typing import Any

from quorepo.rpc import objects
from quorepo.rpc.context import EdgeContext
from quorepo.rpc.grpc.conversions import PageKey, open_view, page_size, revision_message
from quorepo.rpc.grpc.errors import Context
from quorepo.rpc.grpc.interceptor import caller
from quorepo.rpc.grpc.read_messages import (
    ANSWER_BYTES_MAX,
    TYPES,
    commit_messages,
    decoded_page,
    encoded_page,
    fitting,
    normal_paths,
    read_timeout_s,
    tree_entry_message,
    unhexed,
)
from quorepo.rpc.history import HistoryReads, resolve
from quorepo.rpc.reads import RepositoryView
from quorepo.storage.errors import InvalidArgument, LimitExceeded, NotFound
from quorepo.storage.history.revisions import peel
from quorepo.storage.history.search import compile_pattern
from quorepo.storage.history.source import History
from quorepo.storage.packs import BLOB, COMMIT, TREE
from quorepo.v1 import commit_pb2

__all__ = ["TreeMethods", "tree_of", "tree_start"]

_PAGE_SIZE, _FILES_PAGE_SIZE = 100, 1000
_LAST_COMMITS_MAX = 100
_MATCHES = 100
_CHECKED_AT_ONCE_MAX = 50  # names; more are looked up in a thread


def tree_of(
    history: History, view: RepositoryView, revision: bytes, folder: bytes
) -> tuple[bytes | None, bytes]:
    """(the commit that a revision names, if it is one, the tree of a folder in it).

    Raises:
        InvalidArgument: no folder, or the revision names a blob.
        NotFound
    """
    oid, kind = peel(history, resolve(history, view, revision))
    if kind == BLOB:
        raise history.wrong_kind(oid, kind, TREE)
    commit, root = history.root_of(oid)
    entry = objects.entry_at(view, root, folder)
    if entry.type != TREE:
        raise InvalidArgument(f"path {entry.path!r} is no folder")
    return commit, entry.oid


class TreeMethods:
    """A part of CommitService."""

    _edge: EdgeContext
    _history: HistoryReads

    async def ListTree(
        self, request: commit_pb2.ListTreeRequest, context: Context
    ) -> commit_pb2.ListTreeResponse:
        """A page. The token names the tree, so a branch that moves changes nothing."""
        self._edge.authenticator.authorize(caller(), "read", request.repository)
        folder = objects.normal_path(request.path)
        flags = f"{request.recursive}{request.with_folders}{request.with_last_commit}"
        key = PageKey("tree", request.repository, request.commit, folder, flags)
        token = decoded_page(key, request.page_token, ("tree", "after", "commit"))
        at_most = self._edge.config.api.page_size_max
        if request.with_last_commit:
            at_most = min(at_most, _LAST_COMMITS_MAX)
        size = page_size(request.page_size, _PAGE_SIZE, at_most)
        view = await open_view(self._edge, context, request.repository, request.consistency)
        start: dict[str, Any] = {}

        def prepare(history: History) -> dict[str, Any]:
            start.update(tree_start(history, view, request.commit, folder, token))
            if request.with_last_commit and not start["commit"]:
                raise InvalidArgument("with_last_commit needs a commit, not the id of a tree")
            return {
                "tree": start["tree"],
                "folder": folder.hex(),
                "recursive": request.recursive,
                "with_folders": request.with_folders,
                "after": start["after"],
                "limit": size,
            }

        def finish(history: History, found: dict[str, Any]) -> commit_pb2.ListTreeResponse:
            entries = [
                tree_entry_message(bytes.fromhex(path), mode, oid)
                for path, mode, oid in found["entries"]
            ]
            count = fitting(entries)
            more = found["more"] or count < len(entries)
            following = {**start, "after": entries[count - 1].path.hex()} if more else {}
            return commit_pb2.ListTreeResponse(
                entries=entries[:count],
                next_page_token=encoded_page(key, following) if more else "",
                tree_oid=start["tree"],
                revision=revision_message(view),
            )

        timeout_s = read_timeout_s(self._edge, context)
        response = await self._history.ask(view, "tree", prepare, finish, timeout_s)
        if request.with_last_commit and response.entries:
            await self._add_last_commits(view, start["commit"], response, timeout_s)
        return response

    async def _add_last_commits(
        self,
        view: RepositoryView,
        commit: str,
        response: commit_pb2.ListTreeResponse,
        timeout_s: float,
    ) -> None:
        paths = [entry.path.hex() for entry in response.entries]

        def finish(history: History, found: dict[str, Any]) -> list[Any]:
            wanted = list(dict.fromkeys(oid for oid in found["oids"] if oid))
            by_oid = dict(zip(wanted, commit_messages(view, wanted), strict=True))
            return [by_oid.get(oid) for oid in found["oids"]]

        arguments = {"tip": commit, "paths": paths}
        commits = await self._history.ask(
            view, "last_commits", lambda history: arguments, finish, timeout_s
        )
        for entry, last in zip(response.entries, commits, strict=True):
            if last is not None:
                entry.last_commit.CopyFrom(last)

    async def GetTreeEntry(
        self, request: commit_pb2.GetTreeEntryRequest, context: Context
    ) -> commit_pb2.GetTreeEntryResponse:
        """What lies at one path."""
        self._edge.authenticator.authorize(caller(), "read", request.repository)
        if request.data_bytes_max > ANSWER_BYTES_MAX:
            raise InvalidArgument(
                f"data_bytes_max is {request.data_bytes_max}, at most {ANSWER_BYTES_MAX} is "
                "allowed",
                next_step="use BlobService.ReadBlob",
            )
        view = await open_view(self._edge, context, request.repository, request.consistency)

        def read(history: History) -> commit_pb2.GetTreeEntryResponse:
            root = tree_of(history, view, request.commit, b"")[1]
            entry = objects.entry_at(view, root, request.path)
            message = tree_entry_message(entry.path, entry.mode, entry.oid.hex())
            message.name = entry.name
            response = commit_pb2.GetTreeEntryResponse(
                entry=message, revision=revision_message(view)
            )
            if entry.type in (BLOB, TREE):
                response.size = view.packs.object_size(entry.oid)
            is_small = 0 < request.data_bytes_max >= response.size
            if entry.type == BLOB and is_small:
                response.data = objects.read_blob(view, entry.oid)
            return response

        return await self._history.read(view, read, small=True)

    async def ListFiles(
        self, request: commit_pb2.ListFilesRequest, context: Context
    ) -> commit_pb2.ListFilesResponse:
        """A page of paths."""
        self._edge.authenticator.authorize(caller(), "read", request.repository)
        folder = objects.normal_path(request.path)
        key = PageKey("files", request.repository, request.commit, folder)
        token = decoded_page(key, request.page_token, ("tree", "after", "commit"))
        at_most = self._edge.config.api.page_size_max
        size = page_size(request.page_size, min(_FILES_PAGE_SIZE, at_most), at_most)
        view = await open_view(self._edge, context, request.repository, request.consistency)
        start: dict[str, Any] = {}

        def prepare(history: History) -> dict[str, Any]:
            start.update(tree_start(history, view, request.commit, folder, token))
            return {
                "tree": start["tree"],
                "folder": folder.hex(),
                "recursive": True,
                "after": start["after"],
                "limit": size,
                "blobs_only": True,
            }

        def finish(history: History, found: dict[str, Any]) -> commit_pb2.ListFilesResponse:
            paths = [bytes.fromhex(entry[0]) for entry in found["entries"]]
            left, count = ANSWER_BYTES_MAX, 0
            while count < len(paths) and (left := left - len(paths[count]) - 8) > 0:
                count += 1
            more = found["more"] or count < len(paths)
            following = {**start, "after": paths[count - 1].hex()} if more else {}
            return commit_pb2.ListFilesResponse(
                paths=paths[:count],
                next_page_token=encoded_page(key, following) if more else "",
                tree_oid=start["tree"],
                revision=revision_message(view),
            )

        timeout_s = read_timeout_s(self._edge, context)
        return await self._history.ask(view, "tree", prepare, finish, timeout_s)

    async def SearchContent(
        self, request: commit_pb2.SearchContentRequest, context: Context
    ) -> commit_pb2.SearchContentResponse:
        """In a worker: a pattern may take for ever."""
        self._edge.authenticator.authorize(caller(), "read", request.repository)
        api = self._edge.config.api
        paths = normal_paths(api, request.paths)
        compile_pattern(
            request.pattern,
            regular_expression=request.regular_expression,
            ignore_case=request.ignore_case,
        )
        if request.matches_max < 0:
            raise InvalidArgument(f"matches_max must not be negative, got {request.matches_max}")
        if request.matches_max > api.search_matches_max:
            raise LimitExceeded(
                f"matches_max is {request.matches_max}, api.search_matches_max is "
                f"{api.search_matches_max}",
                limit="api.search_matches_max",
            )
        view = await open_view(self._edge, context, request.repository, request.consistency)
        commits: list[str] = []

        def prepare(history: History) -> dict[str, Any]:
            commit, tree = tree_of(history, view, request.commit, b"")
            commits.append(commit.hex() if commit else "")
            return {
                "tree": tree.hex(),
                "pattern": request.pattern.hex(),
                "regular_expression": request.regular_expression,
                "ignore_case": request.ignore_case,
                "paths": [path.hex() for path in paths],
                "matches_max": request.matches_max or min(_MATCHES, api.search_matches_max),
                "search_bytes_max": api.search_bytes_max,
            }

        def finish(history: History, found: dict[str, Any]) -> commit_pb2.SearchContentResponse:
            return commit_pb2.SearchContentResponse(
                matches=[
                    commit_pb2.SearchContentResponse.Match(
                        path=bytes.fromhex(match["path"]),
                        line_number=match["line_number"],
                        line=bytes.fromhex(match["line"]),
                        column=match["column"],
                        blob_oid=match["oid"],
                    )
                    for match in found["matches"]
                ],
                commit_oid=commits[0],
                truncated_by=found["truncated_by"],
                revision=revision_message(view),
            )

        timeout_s = read_timeout_s(self._edge, context)
        return await self._history.ask(view, "search", prepare, finish, timeout_s)

    async def CheckObjectsExist(
        self, request: commit_pb2.CheckObjectsExistRequest, context: Context
    ) -> commit_pb2.CheckObjectsExistResponse:
        """What each name names; nothing is no error."""
        self._edge.authenticator.authorize(caller(), "read", request.repository)
        at_most = self._edge.config.api.batch_objects_max
        if len(request.revisions) > at_most:
            raise LimitExceeded(
                f"{len(request.revisions)} revisions, api.batch_objects_max is {at_most}",
                limit="api.batch_objects_max",
                next_step="ask in several requests",
            )
        view = await open_view(self._edge, context, request.repository, request.consistency)

        def read(history: History) -> commit_pb2.CheckObjectsExistResponse:
            response = commit_pb2.CheckObjectsExistResponse(revision=revision_message(view))
            for name in request.revisions:
                found = response.objects.add(name=name)
                try:
                    oid = resolve(history, view, name)
                except NotFound:
                    continue
                found.oid, found.type = oid.hex(), TYPES[history.objects.object_type(oid)]
            return response

        small = len(request.revisions) <= _CHECKED_AT_ONCE_MAX
        return await self._history.read(view, read, small=small)


def tree_start(
    history: History,
    view: RepositoryView,
    revision: bytes,
    folder: bytes,
    token: dict[str, Any] | None,
) -> dict[str, str]:
    """The tree to list, the commit it is of ("" for none), and the path that was listed last."""
    if token is None:
        commit, tree = tree_of(history, view, revision, folder)
        return {"tree": tree.hex(), "commit": commit.hex() if commit else "", "after": ""}
    start = {name: str(token[name]) for name in ("tree", "commit", "after")}
    oids = unhexed(history, [start["tree"], *([start["commit"]] if start["commit"] else [])])
    for oid, kind in zip(oids, (TREE, COMMIT), strict=False):
        if history.objects.object_type(oid) != kind:
            raise InvalidArgument("page_token is not a token of this service")
    return start
