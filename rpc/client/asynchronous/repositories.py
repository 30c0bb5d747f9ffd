"""`client.repositories`: made, found, listed, changed, copied and deleted by path."""

from __future__ import annotations

from collections.abc import AsyncIterator

from quorepo.rpc.client import codecs
from quorepo.rpc.client.asynchronous.transport import Transport
from quorepo.rpc.client.session import Session
from quorepo.rpc.client.types import PackChange, Repository, Revision
from quorepo.v1 import common_pb2
from quorepo.v1 import repository_pb2 as pb

__all__ = ["Repositories"]

_FORMATS = {
    "sha1": common_pb2.OBJECT_FORMAT_SHA1,
    "sha256": common_pb2.OBJECT_FORMAT_SHA256,
}
_UPKEEP_TIMEOUT_S = 600.0


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
            object_format=_FORMATS[object_format],
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
        self, path_prefix: str = "", *, page_size: int = 1000, consistency: str | None = None
    ) -> AsyncIterator[Repository]:
        """Repositories in order of their paths, page by page as they are looked at."""
        request = pb.ListRepositoriesRequest(
            path_prefix=path_prefix,
            page_size=page_size,
            consistency=self._session.wanted_of_all(consistency),
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

    async def rename(self, path: str, new_path: str, *, request_id: str | None = None) -> Revision:
        """Gives a repository another path; its id and its revision stay."""
        request = pb.RenameRepositoryRequest(
            request_id=codecs.request_uuid(request_id), path=path, new_path=new_path
        )
        answer = await self._transport.unary(
            pb.RenameRepositoryResponse, "RepositoryService/RenameRepository", request
        )
        self._session.moved(path, new_path)
        return codecs.revision(answer.revision)

    async def fork(self, path: str, new_path: str, *, request_id: str | None = None) -> Revision:
        """Copies a repository without copying its packs; the revision is the fork's."""
        request = pb.ForkRepositoryRequest(
            request_id=codecs.request_uuid(request_id), path=path, new_path=new_path
        )
        answer = await self._transport.unary(
            pb.ForkRepositoryResponse, "RepositoryService/ForkRepository", request
        )
        self._session.moved(new_path)
        return codecs.revision(answer.revision)

    async def delete(self, path: str, *, request_id: str | None = None) -> str:
        """Takes a repository from its path; the id is what `undelete` needs.

        Raises:
            NotFound
        """
        request = pb.DeleteRepositoryRequest(request_id=codecs.request_uuid(request_id), path=path)
        answer = await self._transport.unary(
            pb.DeleteRepositoryResponse, "RepositoryService/DeleteRepository", request
        )
        self._session.moved(path)
        return answer.repository_id

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
        change = answer.change
        return PackChange(
            revision=codecs.revision(answer.revision),
            packs_before=change.packs_before,
            packs_after=change.packs_after,
            packs_removed=change.packs_removed,
            bytes_removed=change.bytes_removed,
            bytes_added=change.bytes_added,
            objects=change.objects,
            objects_dropped=change.objects_dropped,
        )
