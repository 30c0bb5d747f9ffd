"""BlobService of quorepo.v1: content by object id, whole or streamed."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import AsyncIterator

from quorepo.rpc import objects
from quorepo.rpc.context import EdgeContext
from quorepo.rpc.grpc.commit_service import DATA_BYTES_MAX
from quorepo.rpc.grpc.conversions import open_view, revision_message
from quorepo.rpc.grpc.errors import Context
from quorepo.rpc.grpc.interceptor import caller
from quorepo.storage.errors import LimitExceeded
from quorepo.v1 import blob_pb2, blob_pb2_grpc

__all__ = ["BlobService"]

_CHUNK_BYTES = 256 * 1024  # processes.md: larger chunks delay every other call
_LARGE_STREAMS_MAX = 4  # a blob is inflated as a whole: this many at once may be above 4 MiB
_LARGE_BYTES = 4 * 1024 * 1024


class BlobService(blob_pb2_grpc.BlobServiceServicer):
    """See protos/quorepo/v1/blob.proto."""

    def __init__(self, edge: EdgeContext) -> None:
        self._edge = edge
        self._large = asyncio.Semaphore(_LARGE_STREAMS_MAX)

    async def GetBlob(
        self, request: blob_pb2.GetBlobRequest, context: Context
    ) -> blob_pb2.GetBlobResponse:
        """A small blob."""
        self._edge.authenticator.authorize(caller(), "read", request.repository)
        view = await open_view(self._edge, context, request.repository, request.consistency)
        oid = objects.parse_oid(view, request.oid, "oid")

        def read() -> blob_pb2.GetBlobResponse:
            size = objects.blob_size(view, oid)
            if size > DATA_BYTES_MAX:
                raise LimitExceeded(
                    f"blob {oid.hex()} has {size} bytes, one message holds {DATA_BYTES_MAX}",
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
        large = self._large if size > _LARGE_BYTES else asyncio.Semaphore(1)
        async with large:
            content = await self._edge.reads.in_thread(lambda: objects.read_blob(view, oid))
            digest = hashlib.sha256()
            for start in range(0, size, _CHUNK_BYTES):
                chunk = content[start : start + _CHUNK_BYTES]
                digest.update(chunk)
                yield blob_pb2.ReadBlobResponse(chunk=chunk)
        yield blob_pb2.ReadBlobResponse(
            trailer=blob_pb2.ReadBlobResponse.Trailer(sha256=digest.digest())
        )
