"""`client.blobs`: content by object id, or by path."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator

from quorepo.rpc.client import codecs
from quorepo.rpc.client.asynchronous.commits import Commits
from quorepo.rpc.client.asynchronous.transport import Transport
from quorepo.rpc.client.errors import CutStream
from quorepo.rpc.client.session import Session
from quorepo.rpc.client.types import Blob
from quorepo.v1 import blob_pb2 as pb

__all__ = ["Blobs"]


class Blobs:
    """Calls of BlobService. All raise `quorepo.errors.ApiError`."""

    def __init__(self, transport: Transport, session: Session) -> None:
        self._transport = transport
        self._session = session

    async def get(self, repository: str, oid: str, *, consistency: str | None = None) -> Blob:
        """A blob of any size, in memory.

        Raises:
            NotFound
            CutStream: it came damaged or in part.
        """
        data = bytearray()
        async for chunk in self.read(repository, oid, consistency=consistency):
            data += chunk
        return Blob(oid, len(data), bytes(data))

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
