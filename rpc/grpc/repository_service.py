"""RepositoryService of quorepo.v1. Owns nothing: asks `quorepo.rpc.repositories` and translates."""

from __future__ import annotations

from quorepo.rpc.context import EdgeContext
from quorepo.rpc.grpc.conversions import (
    PageKey,
    confirm,
    object_format_message,
    object_format_of,
    open_view,
    page_size,
    request_uuid,
    revision_message,
    telling_request_id,
    time_left_s,
    timestamp,
)
from quorepo.rpc.grpc.errors import Context
from quorepo.rpc.grpc.interceptor import caller
from quorepo.rpc.reads import RepositoryView
from quorepo.rpc.repositories import PROPOSE_TIMEOUT_S
from quorepo.v1 import common_pb2, repository_pb2, repository_pb2_grpc

__all__ = ["RepositoryService"]

_PAGE_SIZE, _PAGE_SIZE_MAX = 100, 1000


class RepositoryService(repository_pb2_grpc.RepositoryServiceServicer):
    """See protos/quorepo/v1/repository.proto."""

    def __init__(self, edge: EdgeContext) -> None:
        self._edge = edge

    async def CreateRepository(
        self, request: repository_pb2.CreateRepositoryRequest, context: Context
    ) -> repository_pb2.CreateRepositoryResponse:
        """Idempotent by request id."""
        identity = caller()
        self._edge.authenticator.authorize(identity, "create", request.path)
        request_id = request_uuid(request.request_id)
        branch = request.default_branch
        if branch and not branch.startswith(b"refs/"):
            branch = b"refs/heads/" + branch
        with telling_request_id(request_id):
            view = await self._edge.repositories.create(
                request.path,
                origin=self._edge.origin(identity.user, request_id.bytes),
                default_branch=branch,
                object_format=object_format_of(request.object_format),
                timeout_s=time_left_s(context, PROPOSE_TIMEOUT_S),
            )
        return repository_pb2.CreateRepositoryResponse(
            repository=repository_message(view), revision=revision_message(view)
        )

    async def GetRepository(
        self, request: repository_pb2.GetRepositoryRequest, context: Context
    ) -> repository_pb2.GetRepositoryResponse:
        """One repository by path."""
        self._edge.authenticator.authorize(caller(), "read", request.path)
        view = await open_view(self._edge, context, request.path, request.consistency)
        return repository_pb2.GetRepositoryResponse(
            repository=repository_message(view), revision=revision_message(view)
        )

    async def ListRepositories(
        self, request: repository_pb2.ListRepositoriesRequest, context: Context
    ) -> repository_pb2.ListRepositoriesResponse:
        """A page of repositories in order of their paths."""
        self._edge.authenticator.authorize(caller(), "read", request.path_prefix)
        key = PageKey("repositories", request.path_prefix)
        after = key.key(request.page_token).decode("utf-8", "replace")
        size = page_size(request.page_size, _PAGE_SIZE, _PAGE_SIZE_MAX)
        await confirm(self._edge, context, request.consistency)
        views, following = await self._edge.repositories.list(
            after=after, limit=size, prefix=request.path_prefix, consistency="local"
        )
        return repository_pb2.ListRepositoriesResponse(
            repositories=[repository_message(view) for view in views],
            next_page_token=key.token(following.encode()) if following else "",
        )

    async def DeleteRepository(
        self, request: repository_pb2.DeleteRepositoryRequest, context: Context
    ) -> repository_pb2.DeleteRepositoryResponse:
        """Idempotent by request id as long as the path is not used again."""
        identity = caller()
        self._edge.authenticator.authorize(identity, "delete", request.path)
        request_id = request_uuid(request.request_id)
        with telling_request_id(request_id):
            view = await open_view(self._edge, context, request.path, _LINEARIZABLE)
            await self._edge.repositories.delete(
                request.path,
                origin=self._edge.origin(identity.user, request_id.bytes),
                timeout_s=time_left_s(context, PROPOSE_TIMEOUT_S),
            )
        return repository_pb2.DeleteRepositoryResponse(revision=revision_message(view))


_LINEARIZABLE = common_pb2.Consistency()


def repository_message(view: RepositoryView) -> repository_pb2.Repository:
    """A repository in the words of the API."""
    return repository_pb2.Repository(
        path=view.path,
        repository_id=view.repository_id,
        revision=revision_message(view),
        object_format=object_format_message(view.object_format),
        head=view.head or b"",
        create_time=timestamp(view.row.created_ms),
        ref_count=len(view.refs),
        pack_count=len(view.pack_digests),
        checksum=view.row.checksum.hex(),
    )
