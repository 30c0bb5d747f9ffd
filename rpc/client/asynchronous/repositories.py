"""`client.repositories`: made, found, listed, changed, copied and deleted by path."""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator, Sequence
from datetime import UTC

from quorepo.rpc.client import codecs
from quorepo.rpc.client.asynchronous.transport import Transport
from quorepo.rpc.client.errors import CutStream
from quorepo.rpc.client.session import Session
from quorepo.rpc.client.types import (
    DeletedRepository,
    Deletion,
    ForkedRepository,
    FsckReport,
    PackChange,
    RenamedRepository,
    Repository,
    RepositoryChecksum,
    RepositorySize,
    Revision,
)
from quorepo.v1 import common_pb2
from quorepo.v1 import repository_pb2 as pb

__all__ = ["Repositories"]

_FORMATS = {
    "sha1": common_pb2.OBJECT_FORMAT_SHA1,
    "sha256": common_pb2.OBJECT_FORMAT_SHA256,
}
_ANY_FORMAT = {"": common_pb2.OBJECT_FORMAT_UNSPECIFIED, **_FORMATS}
_ARCHIVES = {
    "tar": pb.ARCHIVE_FORMAT_TAR,
    "tar.gz": pb.ARCHIVE_FORMAT_TAR_GZ,
    "zip": pb.ARCHIVE_FORMAT_ZIP,
}
_UPKEEP_TIMEOUT_S = 600.0
_FSCK_TIMEOUT_S = 1800.0


class Repositories:
    """Calls of RepositoryService. All raise `quorepo.errors.ApiError`."""

    def __init__(self, transport: Transport, session: Session) -> None:
        self._transport = transport
        self._session = session

    async def create(
        self,
        path: str,
        *,
        default_branch: str | bytes = "",
        object_format: str = "sha1",
        request_id: str | None = None,
    ) -> Repository:
        """Makes an empty repository; `object_format` is "sha1" or "sha256".

        Raises:
            AlreadyExists
        """
        request = pb.CreateRepositoryRequest(
            request_id=codecs.request_uuid(request_id),
            path=path,
            default_branch=codecs.to_bytes(default_branch),
            object_format=codecs.choice("object_format", _FORMATS, object_format),
        )
        answer = await self._transport.unary(
            pb.CreateRepositoryResponse, "RepositoryService/CreateRepository", request
        )
        self._session.moved(path, answer.repository.path)
        return codecs.repository(answer.repository)

    async def get(self, path: str, *, consistency: str | None = None) -> Repository:
        """One repository.

        Raises:
            NotFound
        """
        request = pb.GetRepositoryRequest(
            path=path, consistency=self._session.wanted(path, consistency)
        )
        answer = await self._transport.unary(
            pb.GetRepositoryResponse, "RepositoryService/GetRepository", request
        )
        self._session.saw(path, answer.revision)
        return codecs.repository(answer.repository)

    async def exists(self, path: str, *, consistency: str | None = None) -> bool:
        """Whether a path has a repository."""
        request = pb.CheckRepositoryExistsRequest(
            path=path, consistency=self._session.wanted_of_all(consistency)
        )
        answer = await self._transport.unary(
            pb.CheckRepositoryExistsResponse, "RepositoryService/CheckRepositoryExists", request
        )
        return answer.exists

    async def list(
        self,
        path_prefix: str = "",
        *,
        path_contains: str = "",
        object_format: str = "",
        read_only: bool | None = None,
        is_fork: bool | None = None,
        forked_from_id: str = "",
        page_size: int = 1000,
        consistency: str | None = None,
    ) -> AsyncIterator[Repository]:
        """Repositories in order of their paths, page by page as they are looked at.

        Args:
            read_only: and the others: None or empty: any.
        """
        request = pb.ListRepositoriesRequest(
            path_prefix=path_prefix,
            page_size=page_size,
            consistency=self._session.wanted_of_all(consistency),
            filter=pb.RepositoryFilter(
                path_contains=path_contains,
                object_format=codecs.choice("object_format", _ANY_FORMAT, object_format),
                read_only=read_only,
                is_fork=is_fork,
                forked_from_id=forked_from_id,
            ),
        )
        while True:
            answer = await self._transport.unary(
                pb.ListRepositoriesResponse, "RepositoryService/ListRepositories", request
            )
            for message in answer.repositories:
                yield codecs.repository(message)
            if not answer.next_page_token:
                return
            request.page_token = answer.next_page_token

    async def update(
        self,
        path: str,
        *,
        description: str | None = None,
        read_only: bool | None = None,
        request_id: str | None = None,
    ) -> Revision:
        """Changes what is not None."""
        request = pb.UpdateRepositoryRequest(
            request_id=codecs.request_uuid(request_id),
            path=path,
            description=description,
            read_only=read_only,
        )
        answer = await self._transport.unary(
            pb.UpdateRepositoryResponse, "RepositoryService/UpdateRepository", request
        )
        self._session.saw(path, answer.revision)
        return codecs.revision(answer.revision)

    async def rename(
        self, path: str, new_path: str, *, request_id: str | None = None
    ) -> RenamedRepository:
        """Gives a repository another path; its id and its revision stay."""
        request = pb.RenameRepositoryRequest(
            request_id=codecs.request_uuid(request_id), path=path, new_path=new_path
        )
        answer = await self._transport.unary(
            pb.RenameRepositoryResponse, "RepositoryService/RenameRepository", request
        )
        self._session.moved(path, new_path)
        return RenamedRepository(
            answer.repository_id, answer.path, codecs.revision(answer.revision)
        )

    async def fork(
        self, path: str, new_path: str, *, request_id: str | None = None
    ) -> ForkedRepository:
        """Copies a repository without copying its packs."""
        request = pb.ForkRepositoryRequest(
            request_id=codecs.request_uuid(request_id), path=path, new_path=new_path
        )
        answer = await self._transport.unary(
            pb.ForkRepositoryResponse, "RepositoryService/ForkRepository", request
        )
        self._session.moved(new_path)
        return ForkedRepository(
            repository_id=answer.repository_id,
            path=answer.path,
            revision=codecs.revision(answer.revision),
            source_revision=codecs.revision(answer.source_revision),
        )

    async def delete(self, path: str, *, request_id: str | None = None) -> Deletion:
        """Takes a repository from its path; for a while `undelete` brings it back.

        Raises:
            NotFound
        """
        request = pb.DeleteRepositoryRequest(request_id=codecs.request_uuid(request_id), path=path)
        answer = await self._transport.unary(
            pb.DeleteRepositoryResponse, "RepositoryService/DeleteRepository", request
        )
        self._session.moved(path)
        return Deletion(
            repository_id=answer.repository_id,
            purge_time=answer.purge_time.ToDatetime(UTC),
            revision=codecs.revision(answer.revision),
        )

    async def undelete(
        self, repository_id: str, path: str = "", *, request_id: str | None = None
    ) -> str:
        """Brings a deleted repository back, at its old path or another; returns the path."""
        request = pb.UndeleteRepositoryRequest(
            request_id=codecs.request_uuid(request_id), repository_id=repository_id, path=path
        )
        answer = await self._transport.unary(
            pb.UndeleteRepositoryResponse, "RepositoryService/UndeleteRepository", request
        )
        self._session.moved(answer.path)
        return answer.path

    async def optimize(
        self,
        path: str,
        *,
        incremental: bool = False,
        timeout_s: float = _UPKEEP_TIMEOUT_S,
        request_id: str | None = None,
    ) -> PackChange:
        """Merges the packs; answers when that is done on all replicas, maybe after minutes."""
        request = pb.OptimizeRepositoryRequest(
            request_id=codecs.request_uuid(request_id), path=path, incremental=incremental
        )
        answer = await self._transport.unary(
            pb.OptimizeRepositoryResponse,
            "RepositoryService/OptimizeRepository",
            request,
            timeout_s=timeout_s,
            patient=True,
        )
        self._session.saw(path, answer.revision)
        return codecs.pack_change(answer.revision, answer.change)

    async def prune(
        self,
        path: str,
        *,
        grace_s: float | None = None,
        timeout_s: float = _UPKEEP_TIMEOUT_S,
        request_id: str | None = None,
    ) -> PackChange:
        """Removes objects that nothing has led to for the grace time; answers when that is done.

        Args:
            grace_s: in seconds; None: the node's storage.prune_grace_s.
        """
        request = pb.PruneRepositoryRequest(
            request_id=codecs.request_uuid(request_id), path=path, grace_s=grace_s
        )
        answer = await self._transport.unary(
            pb.PruneRepositoryResponse,
            "RepositoryService/PruneRepository",
            request,
            timeout_s=timeout_s,
            patient=True,
        )
        self._session.saw(path, answer.revision)
        return codecs.pack_change(answer.revision, answer.change)

    async def list_deleted(
        self, *, page_size: int = 1000, consistency: str | None = None
    ) -> AsyncIterator[DeletedRepository]:
        """Deleted repositories that can still be had back, in order of their ids."""
        request = pb.ListDeletedRepositoriesRequest(
            page_size=page_size, consistency=self._session.wanted_of_all(consistency)
        )
        while True:
            answer = await self._transport.unary(
                pb.ListDeletedRepositoriesResponse,
                "RepositoryService/ListDeletedRepositories",
                request,
            )
            for message in answer.repositories:
                yield codecs.deleted_repository(message)
            if not answer.next_page_token:
                return
            request.page_token = answer.next_page_token

    async def size(self, path: str, *, consistency: str | None = None) -> RepositorySize:
        """What a repository takes, as the node that is asked stores it.

        Raises:
            NotFound
        """
        request = pb.GetRepositorySizeRequest(
            path=path, consistency=self._session.wanted(path, consistency)
        )
        answer = await self._transport.unary(
            pb.GetRepositorySizeResponse, "RepositoryService/GetRepositorySize", request
        )
        self._session.saw(path, answer.revision)
        return codecs.repository_size(answer)

    async def checksum(self, path: str, *, consistency: str | None = None) -> RepositoryChecksum:
        """The digest of all refs.

        Raises:
            NotFound
        """
        request = pb.GetRepositoryChecksumRequest(
            path=path, consistency=self._session.wanted(path, consistency)
        )
        answer = await self._transport.unary(
            pb.GetRepositoryChecksumResponse, "RepositoryService/GetRepositoryChecksum", request
        )
        self._session.saw(path, answer.revision)
        return RepositoryChecksum(answer.checksum, codecs.revision(answer.revision))

    async def fsck(
        self, path: str, *, timeout_s: float = _FSCK_TIMEOUT_S, consistency: str | None = None
    ) -> FsckReport:
        """Reads and checks every object on the node that is asked; takes minutes for large ones.

        Raises:
            NotFound
        """
        request = pb.FsckRepositoryRequest(
            path=path, consistency=self._session.wanted(path, consistency)
        )
        answer = await self._transport.unary(
            pb.FsckRepositoryResponse,
            "RepositoryService/FsckRepository",
            request,
            timeout_s=timeout_s,
            patient=True,
        )
        self._session.saw(path, answer.revision)
        return codecs.fsck_report(answer)

    async def archive(
        self,
        path: str,
        commit: str | bytes = b"HEAD",
        *,
        kind: str = "tar",
        folder: str | bytes = b"",
        prefix: str | bytes = b"",
        consistency: str | None = None,
    ) -> AsyncIterator[bytes]:
        """The files of a commit in chunks; only a loop that ends without an error saw all of it.

        Args:
            kind: "tar", "tar.gz" or "zip".
            folder: only what is below it.
            prefix: before every path in the archive, such as "project-1.0/".

        Raises:
            NotFound
            CutStream: it came damaged or in part.
        """
        request = pb.GetArchiveRequest(
            path=path,
            commit=codecs.to_bytes(commit),
            format=codecs.choice("kind", _ARCHIVES, kind),
            folder=codecs.to_bytes(folder),
            prefix=codecs.to_bytes(prefix),
            consistency=self._session.wanted(path, consistency),
        )
        digest = hashlib.sha256()
        told: bytes | None = None
        async for message in self._transport.stream(
            pb.GetArchiveResponse, "RepositoryService/GetArchive", request
        ):
            part = message.WhichOneof("part")
            if part == "header":
                self._session.saw(path, message.header.revision)
            elif part == "chunk":
                digest.update(message.chunk)
                yield message.chunk
            else:
                told = message.trailer.sha256
        if told != digest.digest():
            raise CutStream("the archive came damaged or in part", reason="CUT_STREAM")

    async def bundle(
        self,
        path: str,
        refs: Sequence[str | bytes] = (),
        *,
        exclusions: Sequence[str | bytes] = (),
        consistency: str | None = None,
    ) -> AsyncIterator[bytes]:
        """Refs with their history as a git bundle, in chunks; only a loop that ends without an
        error saw all of it.

        Args:
            refs: full names; none: all, and HEAD.
            exclusions: revisions that the receiver has.

        Raises:
            NotFound
            CutStream: it came damaged or in part.
        """
        request = pb.CreateBundleRequest(
            path=path,
            refs=[codecs.to_bytes(name) for name in refs],
            exclusions=[codecs.to_bytes(name) for name in exclusions],
            consistency=self._session.wanted(path, consistency),
        )
        digest = hashlib.sha256()
        told: bytes | None = None
        async for message in self._transport.stream(
            pb.CreateBundleResponse, "RepositoryService/CreateBundle", request
        ):
            part = message.WhichOneof("part")
            if part == "header":
                self._session.saw(path, message.header.revision)
            elif part == "chunk":
                digest.update(message.chunk)
                yield message.chunk
            else:
                told = message.trailer.sha256
        if told != digest.digest():
            raise CutStream("the bundle came damaged or in part", reason="CUT_STREAM")
