"""Creating, finding and deleting repositories: two groups have to agree on one name.

Owns the order of the steps. A path is a row of the directory (group 0), a repository is a row of
its storage group; it exists for readers only when both do. Every step is idempotent, so a crash
between two of them is repaired by the next request for the same path:

    create   reserve path, create repository   crash between: the reservation alone means nothing
    delete   delete repository, release path   crash between: the tombstone means "not found", and
                                               the next create releases and reserves again

Must not know HTTP or gRPC.
"""

from __future__ import annotations

import dataclasses
import hashlib
import logging
import time
from collections.abc import Callable

from quorepo.cluster.state.rows import PathRow
from quorepo.internal.v1 import log_pb2
from quorepo.rpc.core_client import Core, RepositoryDeleted, check_result
from quorepo.rpc.reads import (
    GROUP_DIRECTORY,
    GROUP_STORAGE,
    Consistency,
    Reads,
    RepositoryView,
)
from quorepo.rpc.request_ids import made_at_ms, new_request_uuid
from quorepo.storage.errors import (
    AlreadyExists,
    InvalidArgument,
    NotFound,
    OutcomeUnknown,
    QuorepoError,
    Unavailable,
)
from quorepo.storage.git.refnames import check_ref_name
from quorepo.storage.layout import new_repository_id
from quorepo.storage.logs import fields
from quorepo.storage.names import normalize_path
from quorepo.storage.objectformat import ObjectFormat

__all__ = [
    "PROPOSE_TIMEOUT_S",
    "Origin",
    "Repositories",
    "Reservation",
    "object_format_message",
]

log = logging.getLogger(__name__)

PROPOSE_TIMEOUT_S = 10.0
_REQUEST_ID_BYTES = 16
_TOMBSTONES_MAX = 3  # a path whose repository is deleted again and again while it is created


@dataclasses.dataclass(frozen=True, slots=True)
class Origin:
    """Where a command comes from: who asked, as which request, first seen when (Unix ms).

    A repeated request has the same `request_id`, and then the same effect as the first one.
    """

    actor: str
    request_id: bytes
    first_seen_ms: int

    @classmethod
    def new(
        cls,
        actor: str,
        request_id: bytes | None = None,
        clock_ms: Callable[[], int] = lambda: time.time_ns() // 1_000_000,
    ) -> Origin:
        """A request that this node has just received.

        A repeat is first seen when the request was made, which its id tells (see request_ids.py).

        Raises:
            InvalidArgument: a given request id is not 16 bytes long.
        """
        if request_id is not None and len(request_id) != _REQUEST_ID_BYTES:
            raise InvalidArgument(f"a request id has 16 bytes, got {len(request_id)}")
        now_ms = clock_ms()
        if request_id is None:
            return cls(actor, new_request_uuid(now_ms).bytes, now_ms)
        made_ms = made_at_ms(request_id)
        return cls(actor, request_id, now_ms if made_ms is None else made_ms)

    def step(self, name: str) -> Origin:
        """The origin of one command among several of this request; the same every time."""
        digest = hashlib.sha256(self.request_id + b"\0" + name.encode()).digest()
        return dataclasses.replace(self, request_id=digest[:_REQUEST_ID_BYTES])

    def command(self) -> log_pb2.Command:
        """A command of this request, its kind still to be filled in."""
        return log_pb2.Command(
            version=1,
            request_id=self.request_id,
            first_seen_ms=self.first_seen_ms,
            actor=self.actor,
        )


@dataclasses.dataclass(frozen=True, slots=True)
class Reservation:
    """A path that names a repository id, whether or not that repository exists yet."""

    path: str
    repository_id: str
    group: int


class Repositories:
    """Creates, finds, lists and deletes repositories by path."""

    def __init__(self, core: Core, reads: Reads, retention_s: float = 0.0) -> None:
        """`retention_s`: how long deleted repositories can be taken back, seconds."""
        self._core = core
        self._reads = reads
        self._retention_ms = int(retention_s * 1000)

    async def create(
        self,
        path: str,
        *,
        origin: Origin,
        default_branch: bytes = b"",
        object_format: ObjectFormat = ObjectFormat.SHA1,
        timeout_s: float = PROPOSE_TIMEOUT_S,
    ) -> RepositoryView:
        """Creates an empty repository.

        Args:
            path: as a client writes it, with or without `.git`.
            default_branch: full ref name that HEAD points to; empty: follows the first push.

        Raises:
            AlreadyExists: the path names a repository, created by another request.
            InvalidArgument: bad path or branch name.
            Unavailable: certainly not created.
            OutcomeUnknown: repeat it with the same request id.
        """
        path = normalize_path(path)
        if default_branch:
            _check_default_branch(default_branch)
        for attempt in range(_TOMBSTONES_MAX):
            reservation = await self.reserve(path, origin.step(f"reserve {attempt}"), timeout_s)
            command = origin.step(f"create {attempt}").command()
            command.create_repository.repository_id = reservation.repository_id
            command.create_repository.object_format = object_format_message(object_format)
            command.create_repository.default_branch = default_branch
            try:
                check_result(await self._core.propose(reservation.group, command, timeout_s))
            except AlreadyExists:
                raise AlreadyExists(f"repository {path!r} exists already") from None
            except RepositoryDeleted:
                await self.release(reservation, origin.step(f"release {attempt}"), timeout_s)
                continue
            return await self._after_write(path)
        raise Unavailable(f"{path!r} is being deleted at the same time", next_step="try again")

    async def delete(
        self, path: str, *, origin: Origin, timeout_s: float = PROPOSE_TIMEOUT_S
    ) -> None:
        """Deletes a repository; it can be taken back for a while. Its id is never used again.

        Raises:
            NotFound: there is none.
            Unavailable: certainly not deleted.
            OutcomeUnknown: repeat it with the same request id.
        """
        path = normalize_path(path)
        await self._reads.confirm()
        row = await self._reads.path_row(path)
        if row is None:
            raise NotFound(f"repository {path!r} does not exist")
        reservation = Reservation(path, row.repository_id, row.group)
        command = origin.step("delete").command()
        command.delete_repository.repository_id = row.repository_id
        command.delete_repository.path = path
        command.delete_repository.retention_ms = self._retention_ms
        try:
            check_result(await self._core.propose(row.group, command, timeout_s))
        except RepositoryDeleted:
            await self._release_quietly(reservation, origin, timeout_s)
            raise NotFound(f"repository {path!r} does not exist") from None
        except NotFound:
            raise NotFound(f"repository {path!r} does not exist") from None
        await self._release_quietly(reservation, origin, timeout_s)

    async def get(self, path: str, *, consistency: Consistency = "linearizable") -> RepositoryView:
        """The repository at a path as a client writes it.

        Raises:
            InvalidArgument, NotFound, Unavailable
        """
        return await self._reads.open(normalize_path(path), consistency=consistency)

    async def resolve(self, path: str) -> PathRow | None:
        """The reservation of a path, after the read index; None when the path is free.

        A reservation alone is no repository: use `get` to know whether one exists.
        """
        await self._reads.confirm()
        return await self._reads.path_row(normalize_path(path))

    async def list(
        self,
        *,
        after: str = "",
        limit: int = 100,
        prefix: str = "",
        consistency: Consistency = "linearizable",
    ) -> tuple[list[RepositoryView], str]:
        """Repositories in order of their paths, and `after` of the next page ("" at the end)."""
        if consistency == "linearizable":
            await self._reads.confirm()
        return await self._reads.views(after, limit, prefix)

    async def reserve(
        self, path: str, origin: Origin, timeout_s: float = PROPOSE_TIMEOUT_S
    ) -> Reservation:
        """Makes a normalized path name a repository id; gives the id that it names already.

        Raises:
            Unavailable: not reserved, or not known to be: either way nothing exists because of it.
        """
        command = origin.command()
        command.reserve_path.path = path
        command.reserve_path.repository_id = new_repository_id()
        command.reserve_path.group = GROUP_STORAGE
        try:
            result = check_result(await self._core.propose(GROUP_DIRECTORY, command, timeout_s))
        except OutcomeUnknown as error:
            raise Unavailable(
                f"the path {path!r} could not be reserved ({error.message})", next_step="try again"
            ) from error
        return Reservation(path, result.path.repository_id, result.path.group)

    async def release(
        self, reservation: Reservation, origin: Origin, timeout_s: float = PROPOSE_TIMEOUT_S
    ) -> None:
        """Frees a path, if it still names that repository.

        Raises:
            Unavailable: not freed, or not known to be; asking again is harmless.
        """
        command = origin.command()
        command.release_path.path = reservation.path
        command.release_path.repository_id = reservation.repository_id
        try:
            check_result(await self._core.propose(GROUP_DIRECTORY, command, timeout_s))
        except NotFound:
            log.debug("path was free already", extra=fields(path=reservation.path))
        except OutcomeUnknown as error:
            raise Unavailable(
                f"the path {reservation.path!r} could not be released ({error.message})",
                next_step="try again",
            ) from error

    async def _release_quietly(
        self, reservation: Reservation, origin: Origin, timeout_s: float
    ) -> None:
        """The repository is gone for certain; a path that still names its tombstone is harmless."""
        try:
            await self.release(reservation, origin.step("release"), timeout_s)
        except QuorepoError as error:
            log.warning(
                "path not released, the next creation will",
                extra=fields(path=reservation.path, error=str(error)),
            )

    async def _after_write(self, path: str) -> RepositoryView:
        """The state after a write of this node. Apply may reach this node's disk a moment later."""
        try:
            return await self._reads.open(path)
        except Unavailable as error:
            raise OutcomeUnknown(
                f"created, but no leader confirms it any more ({error.message})",
                next_step="repeat it with the same request id",
            ) from error


def object_format_message(object_format: ObjectFormat) -> log_pb2.ObjectFormat.ValueType:
    """The object format in the words of the log."""
    if object_format is ObjectFormat.SHA256:
        return log_pb2.OBJECT_FORMAT_SHA256
    return log_pb2.OBJECT_FORMAT_SHA1


def _check_default_branch(name: bytes) -> None:
    problem = check_ref_name(name)
    if problem is None and not name.startswith(b"refs/heads/"):
        problem = "it is not under refs/heads/"
    if problem is not None:
        raise InvalidArgument(f"default branch {name.decode(errors='replace')!r}: {problem}")
