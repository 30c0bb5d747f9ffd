"""`client.blobs`: content by object id, or by path."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Sequence

from quorepo.rpc.client import codecs
from quorepo.rpc.client.asynchronous.commits import Commits
from quorepo.rpc.client.asynchronous.transport import Transport
from quorepo.rpc.client.errors import CutStream, LimitExceeded
from quorepo.rpc.client.session import Session
from quorepo.rpc.client.types import BatchBlob, Blob, BlobInfo
from quorepo.v1 import blob_pb2 as pb

__all__ = ["Blobs"]


class Blobs:
    """Calls of BlobService. All raise `quorepo.errors.ApiError`."""

    def __init__(self, transport: Transport, session: Session) -> None:
        self._transport = transport
        self._session = session

    async def get(self, repository: str, oid: str, *, consistency: str | None = None) -> Blob:
        """A blob of any size, in memory: in one message if it fits into one, else streamed.

        Raises:
            NotFound
            CutStream: it came damaged or in part.
        """
        request = pb.GetBlobRequest(
            repository=repository,
            oid=oid,
            consistency=self._session.wanted(repository, consistency),
        )
        try:
            answer = await self._transport.unary(pb.GetBlobResponse, "BlobService/GetBlob", request)
        except LimitExceeded:
            data = bytearray()
            async for chunk in self.read(repository, oid, consistency=consistency):
                data += chunk
            return Blob(oid, len(data), bytes(data))
        self._session.saw(repository, answer.revision)
        return Blob(answer.oid, answer.size, answer.data)

    async def read(
        self, repository: str, oid: str, *, consistency: str | None = None
    ) -> AsyncIterator[bytes]:
        """The content in chunks. Only a loop that ends without an error has seen all of it.

        Raises:
            NotFound
            CutStream: it came damaged or in part.
        """
        request = pb.ReadBlobRequest(
            repository=repository,
            oid=oid,
            consistency=self._session.wanted(repository, consistency),
        )
        digest = hashlib.sha256()
        told: bytes | None = None
        async for message in self._transport.stream(
            pb.ReadBlobResponse, "BlobService/ReadBlob", request
        ):
            part = message.WhichOneof("part")
            if part == "header":
                self._session.saw(repository, message.header.revision)
            elif part == "chunk":
                digest.update(message.chunk)
                yield message.chunk
            else:
                told = message.trailer.sha256
        if told != digest.digest():
            raise CutStream(f"blob {oid} came damaged or in part", reason="CUT_STREAM")

    async def batch(
        self,
        repository: str,
        wanted: Sequence[str | bytes],
        commit: str | bytes = b"HEAD",
        *,
        blob_bytes_max: int | None = None,
        consistency: str | None = None,
    ) -> AsyncIterator[BatchBlob]:
        """Many blobs in one stream, each as soon as it is there.

        Args:
            wanted: object ids as text, paths in `commit` as bytes.
            blob_bytes_max: what is larger comes without its content.

        Raises:
            LimitExceeded: too many, or together too large.
            CutStream: it came damaged or in part; what came before was right.
        """
        request = pb.BatchGetBlobsRequest(
            repository=repository,
            items=[codecs.batch_item(one) for one in wanted],
            commit=codecs.to_bytes(commit),
            blob_bytes_max=blob_bytes_max,
            grouped=True,
            consistency=self._session.wanted(repository, consistency),
        )
        digest = hashlib.sha256()
        told: bytes | None = None
        blob: pb.BatchGetBlobsResponse.Blob | None = None  # whose chunks are on the way
        data = bytearray()
        async for message in self._transport.stream(
            pb.BatchGetBlobsResponse, "BlobService/BatchGetBlobs", request
        ):
            part = message.WhichOneof("part")
            if part == "header":
                self._session.saw(repository, message.header.revision)
            elif part == "trailer":
                told = message.trailer.sha256
            elif part == "chunk" and blob is not None:
                data += message.chunk
                digest.update(message.chunk)
                if len(data) == blob.size:
                    yield codecs.batch_blob(wanted, blob, bytes(data))
            for one in [message.blob] if part == "blob" else message.group.blobs:
                digest.update(one.data)
                if one.missing or one.content_left_out:
                    yield codecs.batch_blob(wanted, one, None)
                elif len(one.data) == one.size:
                    yield codecs.batch_blob(wanted, one, one.data)
                else:
                    blob, data = one, bytearray()
        if told != digest.digest():
            raise CutStream("the blobs came damaged or in part", reason="CUT_STREAM")

    async def list(
        self,
        repository: str,
        commit: str | bytes = b"HEAD",
        path: str | bytes = b"",
        *,
        lfs_pointers_only: bool = False,
        page_size: int = 1000,
        consistency: str | None = None,
    ) -> AsyncIterator[BlobInfo]:
        """The files of a commit with their sizes, and which are Git LFS pointers; page by page.

        Args:
            path: only below this folder.
        """
        request = pb.ListBlobsRequest(
            repository=repository,
            commit=codecs.to_bytes(commit),
            path=codecs.to_bytes(path),
            lfs_pointers_only=lfs_pointers_only,
            page_size=page_size,
            consistency=self._session.wanted(repository, consistency),
        )
        while True:
            answer = await self._transport.unary(
                pb.ListBlobsResponse, "BlobService/ListBlobs", request
            )
            self._session.saw(repository, answer.revision)
            for message in answer.blobs:
                yield codecs.blob_info(message)
            if not answer.next_page_token:
                return
            request.page_token = answer.next_page_token

    async def file(
        self,
        repository: str,
        path: str | bytes,
        commit: str | bytes = b"HEAD",
        *,
        consistency: str | None = None,
    ) -> Blob:
        """The file at a path of a commit.

        Raises:
            NotFound
        """
        commits = Commits(self._transport, self._session)
        entry = await commits.entry(repository, path, commit, consistency=consistency)
        return await self.get(repository, codecs.blob_oid(entry), consistency=consistency)
