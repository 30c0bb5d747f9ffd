"""RepositoryService of quorepo.v1. Owns nothing: asks `quorepo.rpc.repositories` and translates."""

from __future__ import annotations

import asyncio

from quorepo.cluster.state.reader import StateReader
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
from quorepo.rpc.grpc.ref_writes import branch_name, revision_of
from quorepo.rpc.grpc.repository_reads import RepositoryReadMethods
from quorepo.rpc.grpc.repository_writes import RepositoryWrites
from quorepo.rpc.history import HistoryReads
from quorepo.rpc.reads import GROUP_STORAGE, READ_INDEX_TIMEOUT_S, RepositoryView
from quorepo.rpc.repositories import PROPOSE_TIMEOUT_S, Origin
from quorepo.rpc.upkeep import Outcome, Upkeep
from quorepo.rpc.visible_refs import shown_to
from quorepo.storage.errors import InvalidArgument
from quorepo.storage.names import normalize_path
from quorepo.v1 import common_pb2, repository_pb2, repository_pb2_grpc

__all__ = ["RepositoryService"]

_PAGE_SIZE, _PAGE_SIZE_MAX = 100, 1000
_GRACE_S_MAX = 10 * 366 * 86_400.0


class RepositoryService(
    RepositoryReadMethods, RepositoryWrites, repository_pb2_grpc.RepositoryServiceServicer
):
    """See protos/quorepo/v1/repository.proto."""

    def __init__(self, edge: EdgeContext, history: HistoryReads) -> None:
        self._edge = edge
        self._history = history
        self._storage = StateReader(edge.reads.layout(GROUP_STORAGE))
        self._upkeep = Upkeep(edge)

    def close(self) -> None:
        """Closes the connections to the state."""
        self._storage.close()
        self._upkeep.close()

    async def CreateRepository(
        self, request: repository_pb2.CreateRepositoryRequest, context: Context
    ) -> repository_pb2.CreateRepositoryResponse:
        """Idempotent by request id."""
        identity = caller()
        self._edge.authenticator.authorize(identity, "create", request.path)
        request_id = request_uuid(request.request_id)
        branch = request.default_branch
        with telling_request_id(request_id):
            if branch:
                branch = branch_name(branch, self._edge.config.limits.ref_name_bytes_max)
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
        chosen = [request.filter.SerializeToString(deterministic=True)]
        key = PageKey("repositories", request.path_prefix, *filter(None, chosen))
        after = key.key(request.page_token).decode("utf-8", "replace")
        size = page_size(request.page_size, _PAGE_SIZE, _PAGE_SIZE_MAX)
        await confirm(self._edge, context, request.consistency)
        views, following = await self._edge.repositories.list(
            after=after, limit=size, prefix=request.path_prefix, consistency="local"
        )
        found = [repository_message(shown_to(self._edge, caller(), view)) for view in views]
        return repository_pb2.ListRepositoriesResponse(
            repositories=[one for one in found if _is_chosen(one, request.filter)],
            next_page_token=key.token(following.encode()) if following else "",
        )

    async def DeleteRepository(
        self, request: repository_pb2.DeleteRepositoryRequest, context: Context
    ) -> repository_pb2.DeleteRepositoryResponse:
        """Idempotent by request id: a repeated request never deletes a successor at the path."""
        identity = caller()
        self._edge.authenticator.authorize(identity, "delete", request.path)
        request_id = request_uuid(request.request_id)
        origin = self._edge.origin(identity.user, request_id.bytes)
        with telling_request_id(request_id):
            await self._edge.reads.confirm(time_left_s(context, READ_INDEX_TIMEOUT_S))
            done = await self._edge.reads.in_thread(lambda: self._deleted_by(origin))
            if done is None:
                path = normalize_path(request.path)
                view = await self._edge.reads.open(path, consistency="local")
                await self._edge.repositories.delete(
                    path, origin=origin, timeout_s=time_left_s(context, PROPOSE_TIMEOUT_S)
                )
                await self._edge.reads.confirm(time_left_s(context, READ_INDEX_TIMEOUT_S))
                done = await self._edge.reads.in_thread(lambda: self._deleted_by(origin))
                done = done or repository_pb2.DeleteRepositoryResponse(
                    revision=revision_message(view), repository_id=view.repository_id
                )
        return done

    async def OptimizeRepository(
        self, request: repository_pb2.OptimizeRepositoryRequest, context: Context
    ) -> repository_pb2.OptimizeRepositoryResponse:
        """Merges packs; goes on when the client goes away, since the work is half done then."""
        identity = caller()
        self._edge.authenticator.authorize(identity, "admin", request.path)
        request_id = request_uuid(request.request_id)
        with telling_request_id(request_id):
            outcome = await asyncio.shield(
                self._edge.spawn(
                    self._upkeep.optimize(
                        normalize_path(request.path),
                        self._edge.origin(identity.user, request_id.bytes),
                        incremental=request.incremental,
                    ),
                    "optimize",
                )
            )
        return repository_pb2.OptimizeRepositoryResponse(
            revision=_revision(outcome), change=_pack_change(outcome)
        )

    async def PruneRepository(
        self, request: repository_pb2.PruneRepositoryRequest, context: Context
    ) -> repository_pb2.PruneRepositoryResponse:
        """Removes unreachable objects; goes on when the client goes away."""
        identity = caller()
        self._edge.authenticator.authorize(identity, "admin", request.path)
        request_id = request_uuid(request.request_id)
        grace_s = self._edge.config.storage.prune_grace_s
        if request.HasField("grace_s"):
            grace_s = request.grace_s
        if not 0 <= grace_s <= _GRACE_S_MAX:
            raise InvalidArgument(f"grace_s must be 0 to {_GRACE_S_MAX:g}, got {grace_s:g}")
        with telling_request_id(request_id):
            outcome = await asyncio.shield(
                self._edge.spawn(
                    self._upkeep.prune(
                        normalize_path(request.path),
                        self._edge.origin(identity.user, request_id.bytes),
                        grace_s=grace_s,
                    ),
                    "prune",
                )
            )
        return repository_pb2.PruneRepositoryResponse(
            revision=_revision(outcome), change=_pack_change(outcome)
        )

    def _deleted_by(self, origin: Origin) -> repository_pb2.DeleteRepositoryResponse | None:
        """What this same request's deletion answered; None when it deleted nothing."""
        result = self._storage.result_of(origin.step("delete").request_id)
        if result is None or result.WhichOneof("kind") != "repository":
            return None
        deletion = result.repository
        answer = repository_pb2.DeleteRepositoryResponse(
            revision=revision_of(deletion.revision), repository_id=deletion.repository_id
        )
        if deletion.purge_ms:
            answer.purge_time.CopyFrom(timestamp(deletion.purge_ms))
        return answer


def _revision(outcome: Outcome) -> common_pb2.Revision:
    incarnation, counter = outcome.revision
    return common_pb2.Revision(incarnation=incarnation, counter=counter)


def _pack_change(outcome: Outcome) -> repository_pb2.PackChange:
    return repository_pb2.PackChange(
        packs_before=outcome.packs_before,
        packs_after=outcome.packs_after,
        packs_removed=outcome.packs_removed,
        bytes_removed=outcome.bytes_removed,
        bytes_added=outcome.bytes_added,
        objects=outcome.objects,
        objects_dropped=outcome.objects_dropped,
    )


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
        description=view.row.description,
        read_only=bool(view.row.read_only),
        detached_head_oid=(view.row.detached_head or b"").hex(),
        forked_from_id=view.row.forked_from or "",
    )


def _is_chosen(
    repository: repository_pb2.Repository, chosen: repository_pb2.RepositoryFilter
) -> bool:
    """Whether all fields of a filter that are set hold for a repository."""
    return (
        chosen.path_contains in repository.path
        and chosen.object_format in (0, repository.object_format)
        and (not chosen.HasField("read_only") or chosen.read_only == repository.read_only)
        and (not chosen.HasField("is_fork") or chosen.is_fork == bool(repository.forked_from_id))
        and chosen.forked_from_id in ("", repository.forked_from_id)
    )
