"""The calls of RepositoryService that change, move, copy and bring back whole repositories.

Owns their translation; a part of `repository_service.RepositoryService`. The order of the steps
between the two groups is that of `quorepo.rpc.repositories`: a path is reserved before its
repository comes into being, and released after it went.
"""

from __future__ import annotations

from quorepo.cluster.state.reader import StateReader
from quorepo.internal.v1 import log_pb2
from quorepo.rpc.context import EdgeContext
from quorepo.rpc.core_client import check_result
from quorepo.rpc.grpc.conversions import (
    PageKey,
    confirm,
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
from quorepo.rpc.grpc.ref_writes import revision_of
from quorepo.rpc.reads import GROUP_DIRECTORY, GROUP_STORAGE, READ_INDEX_TIMEOUT_S
from quorepo.rpc.rejections import NotDeleted, RetentionOver
from quorepo.rpc.repositories import PROPOSE_TIMEOUT_S, Origin, Reservation
from quorepo.storage.errors import AlreadyExists, InvalidArgument, NotFound
from quorepo.storage.names import normalize_path
from quorepo.v1 import common_pb2, repository_pb2

__all__ = ["RepositoryWrites"]

_DESCRIPTION_BYTES_MAX = 4096
_PAGE_SIZE, _PAGE_SIZE_MAX = 100, 1000


class RepositoryWrites:
    """See protos/quorepo/v1/repository.proto."""

    _edge: EdgeContext
    _storage: StateReader

    async def UpdateRepository(
        self, request: repository_pb2.UpdateRepositoryRequest, context: Context
    ) -> repository_pb2.UpdateRepositoryResponse:
        """Only the fields that are set."""
        identity = caller()
        self._edge.authenticator.authorize(identity, "admin", request.path)
        request_id = request_uuid(request.request_id)
        with telling_request_id(request_id):
            if not (request.HasField("description") or request.HasField("read_only")):
                raise InvalidArgument("nothing to change: set description or read_only")
            size = len(request.description.encode())
            if size > _DESCRIPTION_BYTES_MAX:
                raise InvalidArgument(
                    f"description has {size} bytes, at most {_DESCRIPTION_BYTES_MAX} are kept"
                )
            view = await open_view(self._edge, context, request.path, common_pb2.Consistency())
            command = self._edge.origin(identity.user, request_id.bytes).command()
            change = command.update_repository
            change.repository_id = view.repository_id
            if request.HasField("description"):
                change.description = request.description
            if request.HasField("read_only"):
                change.read_only = request.read_only
            timeout_s = time_left_s(context, PROPOSE_TIMEOUT_S)
            result = check_result(await self._edge.core.propose(view.group, command, timeout_s))
        return repository_pb2.UpdateRepositoryResponse(
            revision=revision_of(result.repository.revision)
        )

    async def RenameRepository(
        self, request: repository_pb2.RenameRepositoryRequest, context: Context
    ) -> repository_pb2.RenameRepositoryResponse:
        """One entry of the directory. A repeated request finds its own answer first."""
        identity = caller()
        self._edge.authenticator.authorize(identity, "admin", request.path)
        self._edge.authenticator.authorize(identity, "create", request.new_path)
        request_id = request_uuid(request.request_id)
        origin = self._edge.origin(identity.user, request_id.bytes)
        with telling_request_id(request_id):
            path, new_path = normalize_path(request.path), normalize_path(request.new_path)
            if path == new_path:
                raise InvalidArgument(f"path and new_path are both {path!r}")
            await self._edge.reads.confirm(time_left_s(context, READ_INDEX_TIMEOUT_S))
            view = await self._edge.reads.find(path, consistency="local")
            if view is None:
                # Renamed by this same request already, or never there: apply keeps the answer.
                view = await self._edge.reads.find(new_path, consistency="local")
            if view is None:
                raise NotFound(f"repository {path!r} does not exist")
            await self._free(new_path, view.repository_id, origin)
            command = origin.command()
            command.rename_path.path = path
            command.rename_path.new_path = new_path
            command.rename_path.repository_id = view.repository_id
            timeout_s = time_left_s(context, PROPOSE_TIMEOUT_S)
            try:
                check_result(await self._edge.core.propose(GROUP_DIRECTORY, command, timeout_s))
            except NotFound:
                raise NotFound(f"repository {path!r} does not exist") from None
        return repository_pb2.RenameRepositoryResponse(
            repository_id=view.repository_id,
            path=new_path,
            revision=revision_message(view),
        )

    async def _free(self, path: str, repository_id: str, origin: Origin) -> None:
        """Releases a path whose repository was deleted before its path was released."""
        row = await self._edge.reads.path_row(path)
        if row is None or row.repository_id == repository_id:
            return
        held = await self._edge.reads.in_thread(lambda: self._storage.repository(row.repository_id))
        if held is not None and held.deleted:
            reservation = Reservation(path, row.repository_id, row.group)
            await self._edge.repositories.release(reservation, origin.step("free"))

    async def ForkRepository(
        self, request: repository_pb2.ForkRepositoryRequest, context: Context
    ) -> repository_pb2.ForkRepositoryResponse:
        """Reserves the path, then copies in one entry; packs are linked."""
        identity = caller()
        self._edge.authenticator.authorize(identity, "read", request.path)
        self._edge.authenticator.authorize(identity, "create", request.new_path)
        request_id = request_uuid(request.request_id)
        origin = self._edge.origin(identity.user, request_id.bytes)
        with telling_request_id(request_id):
            new_path = normalize_path(request.new_path)
            view = await open_view(self._edge, context, request.path, common_pb2.Consistency())
            await self._free(new_path, "", origin)
            timeout_s = time_left_s(context, PROPOSE_TIMEOUT_S)
            place = await self._edge.repositories.reserve(
                new_path, origin.step("reserve"), timeout_s
            )
            command = origin.command()
            command.fork_repository.repository_id = place.repository_id
            command.fork_repository.source_id = view.repository_id
            try:
                result = check_result(
                    await self._edge.core.propose(place.group, command, timeout_s)
                )
            except AlreadyExists:
                raise AlreadyExists(f"repository {new_path!r} exists already") from None
        made = result.repository
        return repository_pb2.ForkRepositoryResponse(
            repository_id=made.repository_id,
            path=new_path,
            revision=revision_of(made.revision),
            source_revision=revision_of(made.source_revision),
        )

    async def UndeleteRepository(
        self, request: repository_pb2.UndeleteRepositoryRequest, context: Context
    ) -> repository_pb2.UndeleteRepositoryResponse:
        """Reserves the path for the tombstone's id, then takes the tombstone back."""
        identity = caller()
        self._edge.authenticator.authorize(identity, "delete", request.path)
        request_id = request_uuid(request.request_id)
        origin = self._edge.origin(identity.user, request_id.bytes)
        with telling_request_id(request_id):
            await self._edge.reads.confirm(time_left_s(context, READ_INDEX_TIMEOUT_S))
            wanted = request.repository_id
            row = await self._edge.reads.in_thread(lambda: self._storage.repository(wanted))
            if row is None:
                raise NotFound(f"there was never a repository {wanted[:80]!r}")
            known = await self._edge.reads.in_thread(
                lambda: self._storage.result_of(origin.request_id, wanted)
            )
            if known is not None and known.WhichOneof("kind") == "repository":
                return _undeleted(request.path or known.repository.path, known)
            if not row.deleted:
                raise NotDeleted(f"repository {wanted!r} is not deleted")
            path = normalize_path(request.path or row.deleted_path or "")
            await self._free(path, wanted, origin)
            timeout_s = time_left_s(context, PROPOSE_TIMEOUT_S)
            reserve = origin.step("reserve").command()
            reserve.reserve_path.path = path
            reserve.reserve_path.repository_id = wanted
            reserve.reserve_path.group = GROUP_STORAGE
            held = check_result(await self._edge.core.propose(GROUP_DIRECTORY, reserve, timeout_s))
            if held.path.repository_id != wanted:
                raise AlreadyExists(
                    f"path {path!r} names another repository by now",
                    next_step="give another path",
                )
            command = origin.command()
            command.undelete_repository.repository_id = wanted
            try:
                result = check_result(
                    await self._edge.core.propose(GROUP_STORAGE, command, timeout_s)
                )
            except (NotDeleted, RetentionOver):
                if held.path.created:  # or the path would name it a second time
                    place = Reservation(path, wanted, GROUP_STORAGE)
                    await self._edge.repositories.release(place, origin.step("release"))
                raise
        return _undeleted(path, result)

    async def ListDeletedRepositories(
        self, request: repository_pb2.ListDeletedRepositoriesRequest, context: Context
    ) -> repository_pb2.ListDeletedRepositoriesResponse:
        """A page in order of the ids."""
        self._edge.authenticator.authorize(caller(), "delete")
        key = PageKey("deleted")
        after = key.key(request.page_token).decode("utf-8", "replace")
        size = page_size(request.page_size, _PAGE_SIZE, _PAGE_SIZE_MAX)
        await confirm(self._edge, context, request.consistency)
        rows = await self._edge.reads.in_thread(lambda: self._storage.undeletable(after, size + 1))
        more, rows = len(rows) > size, rows[:size]
        return repository_pb2.ListDeletedRepositoriesResponse(
            repositories=[
                repository_pb2.DeletedRepository(
                    repository_id=row.repository_id,
                    path=row.deleted_path or "",
                    delete_time=timestamp(row.deleted_ms or 0),
                    purge_time=timestamp(row.purge_ms or 0),
                    revision=common_pb2.Revision(incarnation=row.incarnation, counter=row.counter),
                )
                for row in rows
            ],
            next_page_token=key.token(rows[-1].repository_id.encode()) if more else "",
        )


def _undeleted(path: str, result: log_pb2.Result) -> repository_pb2.UndeleteRepositoryResponse:
    return repository_pb2.UndeleteRepositoryResponse(
        path=path, revision=revision_of(result.repository.revision)
    )
