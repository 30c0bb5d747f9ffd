"""BlobService of quorepo.v1: content by object id or path, whole, streamed, many at once."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator
from typing import Any

from quorepo.rpc import objects
from quorepo.rpc.context import EdgeContext
from quorepo.rpc.grpc.commit_trees import tree_of, tree_start
from quorepo.rpc.grpc.conversions import PageKey, open_view, page_size, revision_message
from quorepo.rpc.grpc.errors import Context
from quorepo.rpc.grpc.groups import INLINE_BYTES_MAX, Group
from quorepo.rpc.grpc.interceptor import caller
from quorepo.rpc.grpc.read_messages import (
    decoded_page,
    encoded_page,
    fitting,
    read_timeout_s,
)
from quorepo.rpc.history import HistoryReads
from quorepo.rpc.reads import RepositoryView
from quorepo.storage.errors import InvalidArgument, LimitExceeded, NotFound
from quorepo.storage.history.source import History
from quorepo.storage.packs import BLOB
from quorepo.v1 import blob_pb2, blob_pb2_grpc

__all__ = ["BlobService"]

_CHUNK_BYTES = 256 * 1024  # processes.md: larger chunks delay every other call
_LARGE_STREAMS_MAX = 4  # a blob is inflated as a whole: this many at once may be above 4 MiB
_LARGE_BYTES = 4 * 1024 * 1024
_BATCH_BYTES = 512 * 1024  # content read at a time, a larger blob alone
_BATCH_ITEMS = 64
_PAGE_SIZE = 100

_Item = blob_pb2.BatchGetBlobsRequest.Item
_Response = blob_pb2.BatchGetBlobsResponse


class BlobService(blob_pb2_grpc.BlobServiceServicer):
    """See protos/quorepo/v1/blob.proto."""

    def __init__(self, edge: EdgeContext, history: HistoryReads) -> None:
        self._edge = edge
        self._history = history
        self._large = asyncio.Semaphore(_LARGE_STREAMS_MAX)

    async def GetBlob(
        self, request: blob_pb2.GetBlobRequest, context: Context
    ) -> blob_pb2.GetBlobResponse:
        """A small blob."""
        self._edge.authenticator.authorize(caller(), "read", request.repository)
        view = await open_view(self._edge, context, request.repository, request.consistency)
        oid = objects.parse_oid(view, request.oid, "oid")

        at_most = self._edge.config.api.unary_bytes_max

        def read() -> blob_pb2.GetBlobResponse:
            size = objects.blob_size(view, oid)
            if size > at_most:
                raise LimitExceeded(
                    f"blob {oid.hex()} has {size} bytes, api.unary_bytes_max is {at_most}",
                    limit="api.unary_bytes_max",
                    next_step="use ReadBlob",
                )
            return blob_pb2.GetBlobResponse(
                oid=oid.hex(),
                size=size,
                data=objects.read_blob(view, oid),
                revision=revision_message(view),
            )

        return await self._edge.reads.in_thread(read)

    async def ReadBlob(
        self, request: blob_pb2.ReadBlobRequest, context: Context
    ) -> AsyncIterator[blob_pb2.ReadBlobResponse]:
        """A blob in chunks; writing waits for the client, so a slow one costs one blob of
        memory."""
        self._edge.authenticator.authorize(caller(), "read", request.repository)
        view = await open_view(self._edge, context, request.repository, request.consistency)
        oid = objects.parse_oid(view, request.oid, "oid")
        size = await self._edge.reads.in_thread(lambda: objects.blob_size(view, oid))
        yield blob_pb2.ReadBlobResponse(
            header=blob_pb2.ReadBlobResponse.Header(
                oid=oid.hex(), size=size, revision=revision_message(view)
            )
        )
        digest = hashlib.sha256()
        async for chunk in self._chunks(view, oid, size):
            digest.update(chunk)
            yield blob_pb2.ReadBlobResponse(chunk=chunk)
        yield blob_pb2.ReadBlobResponse(
            trailer=blob_pb2.ReadBlobResponse.Trailer(sha256=digest.digest())
        )

    async def BatchGetBlobs(
        self, request: blob_pb2.BatchGetBlobsRequest, context: Context
    ) -> AsyncIterator[blob_pb2.BatchGetBlobsResponse]:
        """Small blobs are read in groups, a large one by itself; all within one bound."""
        self._edge.authenticator.authorize(caller(), "read", request.repository)
        api = self._edge.config.api
        if len(request.items) > api.batch_objects_max:
            raise LimitExceeded(
                f"{len(request.items)} items, api.batch_objects_max is {api.batch_objects_max}",
                limit="api.batch_objects_max",
                next_step="ask in several requests",
            )
        for item in request.items:
            if bool(item.oid) == bool(item.path):
                raise InvalidArgument("each item needs an oid or a path, and not both")
        view = await open_view(self._edge, context, request.repository, request.consistency)
        batch = await self._edge.reads.in_thread(
            lambda: _Batch(self._history.history(view), view, request)
        )
        yield _Response(
            header=_Response.Header(items=len(request.items), revision=revision_message(view))
        )
        digest = hashlib.sha256()
        left = api.batch_bytes_max
        group: Group[_Response.Blob] = Group()
        while batch.position < len(request.items):
            for blob in await self._edge.reads.in_thread(batch.next_blobs):
                sent = not (blob.missing or blob.content_left_out)
                left -= blob.size if sent else 0
                if left < 0:
                    raise LimitExceeded(
                        f"the blobs exceed api.batch_bytes_max ({api.batch_bytes_max}) together",
                        limit="api.batch_bytes_max",
                        next_step="ask in several requests, or set blob_bytes_max",
                    )
                digest.update(blob.data)
                has_chunks = sent and len(blob.data) < blob.size
                if request.grouped and not has_chunks:
                    if group.add(blob):
                        yield _group(group)
                    continue
                if group:
                    yield _group(group)
                yield _Response(blob=blob)
                if has_chunks:
                    async for chunk in self._chunks(view, bytes.fromhex(blob.oid), blob.size):
                        digest.update(chunk)
                        yield _Response(chunk=chunk)
        if group:
            yield _group(group)
        yield _Response(trailer=_Response.Trailer(sha256=digest.digest()))

    async def ListBlobs(
        self, request: blob_pb2.ListBlobsRequest, context: Context
    ) -> blob_pb2.ListBlobsResponse:
        """A page of files with their sizes."""
        self._edge.authenticator.authorize(caller(), "read", request.repository)
        folder = objects.normal_path(request.path)
        flags = str(request.lfs_pointers_only)
        key = PageKey("blobs", request.repository, request.commit, folder, flags)
        token = decoded_page(key, request.page_token, ("tree", "after", "commit"))
        size = page_size(request.page_size, _PAGE_SIZE, self._edge.config.api.page_size_max)
        view = await open_view(self._edge, context, request.repository, request.consistency)
        start: dict[str, Any] = {}

        def prepare(history: History) -> dict[str, Any]:
            start.update(tree_start(history, view, request.commit, folder, token))
            return {
                "tree": start["tree"],
                "folder": folder.hex(),
                "after": start["after"],
                "limit": size,
                "lfs_only": request.lfs_pointers_only,
            }

        def finish(history: History, found: dict[str, Any]) -> blob_pb2.ListBlobsResponse:
            blobs = [_blob_info(entry) for entry in found["entries"]]
            count = fitting(blobs)
            more = found["more"] or count < len(blobs)
            following = {**start, "after": blobs[count - 1].path.hex()} if more else {}
            return blob_pb2.ListBlobsResponse(
                blobs=blobs[:count],
                next_page_token=encoded_page(key, following) if more else "",
                tree_oid=start["tree"],
                revision=revision_message(view),
            )

        timeout_s = read_timeout_s(self._edge, context)
        return await self._history.ask(view, "blobs", prepare, finish, timeout_s)

    async def _chunks(self, view: RepositoryView, oid: bytes, size: int) -> AsyncIterator[bytes]:
        large = self._large if size > _LARGE_BYTES else asyncio.Semaphore(1)
        async with large:
            content = await self._edge.reads.in_thread(lambda: objects.read_blob(view, oid))
            for start in range(0, size, _CHUNK_BYTES):
                yield content[start : start + _CHUNK_BYTES]


class _Batch:
    """The blobs of a request, read group by group in a reader thread."""

    def __init__(
        self, history: History, view: RepositoryView, request: blob_pb2.BatchGetBlobsRequest
    ) -> None:
        self.position = 0
        self._view = view
        self._items = request.items
        self._bytes_max = request.blob_bytes_max if request.HasField("blob_bytes_max") else None
        self._root = b""
        if any(item.path for item in request.items):
            self._root = tree_of(history, view, request.commit, b"")[1]

    def next_blobs(self) -> list[_Response.Blob]:
        """The next few, small ones with their content."""
        found: list[_Response.Blob] = []
        left = _BATCH_BYTES
        while self.position < len(self._items) and len(found) < _BATCH_ITEMS and left > 0:
            blob = self._blob(self.position, self._items[self.position])
            left -= len(blob.data)
            found.append(blob)
            self.position += 1
        return found

    def _blob(self, index: int, item: _Item) -> _Response.Blob:
        blob = _Response.Blob(index=index, path=item.path)
        try:
            if item.path:
                oid = objects.entry_at(self._view, self._root, item.path).oid
            else:
                oid = objects.parse_oid(self._view, item.oid, f"items[{index}].oid")
        except NotFound:
            blob.missing = True
            return blob
        packs = self._view.packs
        located = packs.locate(oid)
        if located is None or packs.type_at(*located) != BLOB:
            blob.missing = True
            return blob
        blob.oid = oid.hex()
        blob.size = packs.object_size(oid)
        if self._bytes_max is not None and blob.size > self._bytes_max:
            blob.content_left_out = True
        elif blob.size <= INLINE_BYTES_MAX:
            blob.data = packs.get_at(*located)[1]
        return blob


def _group(group: Group[_Response.Blob]) -> _Response:
    return _Response(group=_Response.BlobGroup(blobs=group.take()))


def _blob_info(entry: list[Any]) -> blob_pb2.BlobInfo:
    path, mode, oid, size, pointer = entry
    info = blob_pb2.BlobInfo(path=bytes.fromhex(path), oid=oid, mode=mode, size=size)
    if pointer:
        info.lfs_pointer.oid_sha256, info.lfs_pointer.size = pointer
    return info
