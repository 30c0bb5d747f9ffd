"""The reading methods of RefService: lists, single refs, ancestry of refs."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterable
from typing import Any

from quorepo.rpc.context import EdgeContext
from quorepo.rpc.grpc.commit_walks import commit_named
from quorepo.rpc.grpc.conversions import PageKey, open_view, page_size, revision_message
from quorepo.rpc.grpc.errors import Context
from quorepo.rpc.grpc.interceptor import caller
from quorepo.rpc.grpc.read_messages import check_count, read_timeout_s
from quorepo.rpc.history import HistoryReads, head_of, resolve
from quorepo.rpc.reads import RepositoryView
from quorepo.storage.errors import InvalidArgument, NotFound
from quorepo.storage.git.commit_graph import parse_commit
from quorepo.storage.history.revisions import shown
from quorepo.storage.history.source import History
from quorepo.storage.packs import COMMIT
from quorepo.v1 import ref_pb2

__all__ = ["RefReadMethods"]

_PAGE_SIZE, _PAGE_SIZE_MAX = 100, 10_000
_DATE = struct.Struct(">q")

# (name, id, what a tag leads to)
_Row = tuple[bytes, bytes, bytes | None]


class RefReadMethods:
    """A part of RefService."""

    _edge: EdgeContext
    _history: HistoryReads

    async def ListRefs(
        self, request: ref_pb2.ListRefsRequest, context: Context
    ) -> ref_pb2.ListRefsResponse:
        """A page of refs; the next page continues after the last ref in the order that was asked
        for, whatever was written."""
        self._edge.authenticator.authorize(caller(), "read", request.repository)
        key = PageKey(
            *("refs", request.repository, request.prefix, request.pointing_at),
            *(request.containing, f"{request.order}{request.descending}"),
        )
        after = key.key(request.page_token)
        size = page_size(request.page_size, _PAGE_SIZE, _PAGE_SIZE_MAX)
        if request.order not in ref_pb2.RefOrder.values():
            raise InvalidArgument(f"order {request.order} is unknown")
        view = await open_view(self._edge, context, request.repository, request.consistency)
        containing = None
        if request.containing:
            containing = await self._containing(context, view, request.containing, request.prefix)

        by_name = request.order != ref_pb2.REF_ORDER_COMMITTER_DATE and not request.descending

        def read(history: History) -> ref_pb2.ListRefsResponse:
            rows: Iterable[_Row]
            if by_name and containing is None and not request.pointing_at:
                rows = view.refs_view().table.page(request.prefix, after, size + 1)
            else:
                rows = _rows(view, request.prefix)
            if containing is not None:
                rows = [row for row in rows if (row[2] or row[1]) in containing]
            if request.pointing_at:
                target = resolve(history, view, request.pointing_at)
                rows = [row for row in rows if target in row[1:]]
            keyed = _ordered(rows, _sort_key(history, request.order), request.descending)
            if after:
                keyed = [
                    pair
                    for pair in keyed
                    if (pair[0] < after if request.descending else pair[0] > after)
                ]
            page = keyed[:size]
            return ref_pb2.ListRefsResponse(
                refs=[_ref_message(*row) for _, row in page],
                next_page_token=key.token(page[-1][0]) if len(keyed) > size else "",
                head=view.head or b"",
                revision=revision_message(view),
            )

        return await self._history.read(view, read)

    async def GetRef(
        self, request: ref_pb2.GetRefRequest, context: Context
    ) -> ref_pb2.GetRefResponse:
        """One ref by its full name, or `HEAD`."""
        self._edge.authenticator.authorize(caller(), "read", request.repository)
        view = await open_view(self._edge, context, request.repository, request.consistency)
        is_head = request.name == b"HEAD"
        if is_head and view.row.detached_head is not None:
            detached = ref_pb2.Ref(name=b"HEAD", oid=view.row.detached_head.hex())
            return ref_pb2.GetRefResponse(ref=detached, revision=revision_message(view))
        name = (view.head or b"") if is_head else request.name
        if view.knows_refs:
            row = view.refs_view().table.find(name)
        else:
            row = await self._edge.reads.in_thread(lambda: view.refs_view().table.find(name))
        if row is None:
            raise NotFound(f"ref {shown(request.name)} of {view.path!r} does not exist")
        ref = _ref_message(*row)
        if is_head:
            ref.name, ref.symbolic_target = b"HEAD", name
        return ref_pb2.GetRefResponse(ref=ref, revision=revision_message(view))

    async def CheckRefExists(
        self, request: ref_pb2.CheckRefExistsRequest, context: Context
    ) -> ref_pb2.CheckRefExistsResponse:
        """Whether there is such a ref; HEAD exists when its branch does."""
        self._edge.authenticator.authorize(caller(), "read", request.repository)
        if not request.name:
            raise InvalidArgument("name must not be empty")
        view = await open_view(self._edge, context, request.repository, request.consistency)
        exists = request.name in view.refs
        if request.name == b"HEAD":
            exists = head_of(view) is not None
        return ref_pb2.CheckRefExistsResponse(exists=exists, revision=revision_message(view))

    async def GetDefaultBranch(
        self, request: ref_pb2.GetDefaultBranchRequest, context: Context
    ) -> ref_pb2.GetDefaultBranchResponse:
        """What HEAD points to."""
        self._edge.authenticator.authorize(caller(), "read", request.repository)
        view = await open_view(self._edge, context, request.repository, request.consistency)
        oid = head_of(view)
        return ref_pb2.GetDefaultBranchResponse(
            name=view.head or b"",
            oid=oid.hex() if oid else "",
            revision=revision_message(view),
        )

    async def FindMergeBase(
        self, request: ref_pb2.FindMergeBaseRequest, context: Context
    ) -> ref_pb2.FindMergeBaseResponse:
        """All best common ancestors."""
        self._edge.authenticator.authorize(caller(), "read", request.repository)
        if len(request.commits) < 2:
            raise InvalidArgument(f"a merge base needs two commits, got {len(request.commits)}")
        check_count(self._edge.config.api, len(request.commits), "commits")
        view = await open_view(self._edge, context, request.repository, request.consistency)

        def prepare(history: History) -> dict[str, Any]:
            commits = [commit_named(history, view, name) for name in request.commits]
            return {"commits": [oid.hex() for oid in commits]}

        def finish(history: History, found: dict[str, Any]) -> ref_pb2.FindMergeBaseResponse:
            return ref_pb2.FindMergeBaseResponse(
                oids=found["oids"], revision=revision_message(view)
            )

        timeout_s = read_timeout_s(self._edge, context)
        return await self._history.ask(view, "merge_bases", prepare, finish, timeout_s)

    async def ListRefsContaining(
        self, request: ref_pb2.ListRefsContainingRequest, context: Context
    ) -> ref_pb2.ListRefsContainingResponse:
        """A page of the refs that reach a commit."""
        self._edge.authenticator.authorize(caller(), "read", request.repository)
        key = PageKey("containing", request.repository, request.commit, request.prefix)
        token = key.key(request.page_token)
        size = page_size(request.page_size, _PAGE_SIZE, self._edge.config.api.page_size_max)
        if not request.commit:
            raise InvalidArgument("commit must not be empty")
        view = await open_view(self._edge, context, request.repository, request.consistency)
        # The token holds the commit, and the last name: a branch that moves changes nothing.
        width = view.object_format.hash_bytes
        if token and len(token) <= width:
            raise InvalidArgument("page_token is not a token of this service")
        after = token[width:]
        if token:
            target = token[:width]
        else:
            target = await self._history.read(
                view, lambda history: commit_named(history, view, request.commit)
            )
        name = target.hex().encode()
        containing = await self._containing(context, view, name, request.prefix)

        def read(history: History) -> ref_pb2.ListRefsContainingResponse:
            rows = [
                row
                for row in _rows(view, request.prefix)
                if row[0] > after and (row[2] or row[1]) in containing
            ]
            page = rows[:size]
            return ref_pb2.ListRefsContainingResponse(
                refs=[_ref_message(*row) for row in page],
                next_page_token=key.token(target + page[-1][0]) if len(rows) > size else "",
                revision=revision_message(view),
            )

        return await self._history.read(view, read)

    async def _containing(
        self, context: Context, view: RepositoryView, revision: bytes, prefix: bytes
    ) -> set[bytes]:
        """The commits under refs with a prefix that reach what a revision names."""

        def prepare(history: History) -> dict[str, Any]:
            target = commit_named(history, view, revision)
            ends = {row[2] or row[1] for row in _rows(view, prefix)}
            tips = [oid for oid in ends if history.objects.object_type(oid) == COMMIT]
            return {"target": target.hex(), "tips": [oid.hex() for oid in tips]}

        def finish(history: History, found: dict[str, Any]) -> set[bytes]:
            return {bytes.fromhex(oid) for oid in found["tips"]}

        timeout_s = read_timeout_s(self._edge, context)
        return await self._history.ask(view, "containing", prepare, finish, timeout_s)


def _rows(view: RepositoryView, prefix: bytes) -> list[_Row]:
    return [row for row in view.refs_view().refs if row[0].startswith(prefix)]


def _ordered(
    rows: Iterable[_Row], key: Callable[[_Row], bytes], descending: bool
) -> list[tuple[bytes, _Row]]:
    return sorted(((key(row), row) for row in rows), key=lambda p: p[0], reverse=descending)


def _sort_key(history: History, order: int) -> Callable[[_Row], bytes]:
    if order != ref_pb2.REF_ORDER_COMMITTER_DATE:
        return lambda row: row[0]

    def key(row: _Row) -> bytes:
        oid = row[2] or row[1]
        kind, content = history.objects.get(oid)
        date = -1
        if kind == COMMIT:
            date = min(parse_commit(content, oid, history.hash_bytes).date, 2**62)
        return _DATE.pack(date + 1) + row[0]

    return key


def _ref_message(name: bytes, oid: bytes, peeled: bytes | None) -> ref_pb2.Ref:
    return ref_pb2.Ref(name=name, oid=oid.hex(), peeled_oid=peeled.hex() if peeled else "")
