"""The machine's commands on a whole repository, create and delete, and how its row is kept.

A deletion leaves a tombstone. Refs, packs and history stay behind it, unread, until a later
command of its own purges them after the retention time: so deleting costs the same whatever the
size, and can be taken back (machine_copies.py) as long as the command that deleted allows it. The
id is never used for another repository.

Pure, see machine.py.
"""

from __future__ import annotations

import dataclasses
import sqlite3
from collections.abc import Iterable

from quorepo.cluster.state.commands import rejection
from quorepo.cluster.state.effects import Applied, Context, next_checksum, object_format_of
from quorepo.internal.v1 import log_pb2
from quorepo.storage.git.refnames import check_ref_name

__all__ = [
    "DEFAULT_HEAD",
    "FIRST_INCARNATION",
    "Repository",
    "advance",
    "create",
    "delete",
    "deleted",
    "insert",
    "load",
    "new_repository",
    "not_found",
    "read_only",
    "record_transaction",
    "repository_result",
    "revision_of",
]

DEFAULT_HEAD = b"refs/heads/main"
FIRST_INCARNATION = 1
_RETENTION_MS_MAX = 100 * 366 * 86_400_000


@dataclasses.dataclass(frozen=True, slots=True)
class Repository:
    """A row of `repositories`."""

    repository_id: str
    incarnation: int
    counter: int
    object_format: int  # quorepo.internal.v1.ObjectFormat
    head: bytes
    head_open: bool  # the first branches that are created decide `head`
    prune_epoch: int
    checksum: bytes
    created_ms: int
    deleted_ms: int | None
    detached_head: bytes | None = None
    description: str = ""
    read_only: bool = False
    purge_ms: int | None = None
    deleted_path: str | None = None
    forked_from: str | None = None

    def moved_to(self, counter: int, checksum: bytes) -> Repository:
        """At another revision; spelled out, because `replace` takes longer than the rest."""
        return Repository(
            self.repository_id,
            self.incarnation,
            counter,
            self.object_format,
            self.head,
            self.head_open,
            self.prune_epoch,
            checksum,
            self.created_ms,
            self.deleted_ms,
            self.detached_head,
            self.description,
            self.read_only,
            self.purge_ms,
            self.deleted_path,
            self.forked_from,
        )


_COLUMNS = ", ".join(field.name for field in dataclasses.fields(Repository))


def load(connection: sqlite3.Connection, repository_id: str) -> Repository | None:
    """The repository's row, a tombstone too; None when the group has never seen the id."""
    row = connection.execute(
        f"SELECT {_COLUMNS} FROM repositories WHERE repository_id = ?",  # noqa: S608
        (repository_id,),
    ).fetchone()
    if row is None:
        return None
    found = Repository(*row)
    return dataclasses.replace(
        found, head_open=bool(found.head_open), read_only=bool(found.read_only)
    )


def insert(connection: sqlite3.Connection, repository: Repository) -> None:
    values = dataclasses.astuple(repository)
    marks = ", ".join("?" for _ in values)
    connection.execute(
        f"INSERT INTO repositories ({_COLUMNS}) VALUES ({marks})",  # noqa: S608
        [int(value) if isinstance(value, bool) else value for value in values],
    )


def advance(
    context: Context, repository: Repository, kind: str, effect: Iterable[bytes]
) -> Repository:
    """Moves an existing repository to its next revision; `effect` is what its checksum covers.

    HEAD, the settings and the tombstone are written as `repository` has them. Returns the new row.
    """
    counter = repository.counter + 1
    checksum = next_checksum(
        repository.checksum,
        [
            kind.encode("ascii"),
            b"%d" % repository.incarnation,
            b"%d" % counter,
            b"%d" % context.time_ms,
            repository.head
            if repository.detached_head is None
            else b"\0" + repository.detached_head,  # no ref name
            *effect,
        ],
    )
    repository = repository.moved_to(counter, checksum)
    context.batch.update(
        repository,
        (
            repository.counter,
            repository.checksum,
            repository.head,
            int(repository.head_open),
            repository.deleted_ms,
            repository.detached_head,
            repository.description,
            int(repository.read_only),
            repository.purge_ms,
            repository.deleted_path,
            repository.repository_id,
        ),
    )
    record_transaction(context, repository, kind)
    return repository


def record_transaction(context: Context, repository: Repository, kind: str) -> None:
    """Writes who moved the repository to its present revision, and when."""
    context.batch.insert(
        "transactions",
        (
            repository.repository_id,
            repository.counter,
            kind,
            context.log_index,
            context.time_ms,
            context.actor,
            context.request_id,
        ),
    )


def revision_of(repository: Repository) -> log_pb2.Revision:
    return log_pb2.Revision(incarnation=repository.incarnation, counter=repository.counter)


def new_repository(
    context: Context, repository_id: str, object_format: int, head: bytes
) -> Repository:
    """A repository at revision (1, 0); an empty `head` leaves HEAD to the first branches."""
    return Repository(
        repository_id=repository_id,
        incarnation=FIRST_INCARNATION,
        counter=0,
        object_format=object_format,
        head=head or DEFAULT_HEAD,
        head_open=not head,
        prune_epoch=0,
        checksum=next_checksum(
            b"", [b"create", repository_id.encode("utf-8"), b"%d" % object_format, head]
        ),
        created_ms=context.time_ms,
        deleted_ms=None,
    )


def not_found(repository_id: str) -> Applied:
    return Applied(
        rejection(
            log_pb2.REJECTION_REASON_REPOSITORY_NOT_FOUND, f"repository {repository_id!a} not found"
        )
    )


def deleted(repository_id: str) -> Applied:
    return Applied(
        rejection(
            log_pb2.REJECTION_REASON_REPOSITORY_DELETED, f"repository {repository_id!a} is deleted"
        )
    )


def read_only(repository_id: str) -> Applied:
    return Applied(
        rejection(log_pb2.REJECTION_REASON_READ_ONLY, f"repository {repository_id!a} is read-only")
    )


def exists(repository_id: str) -> Applied:
    return Applied(
        rejection(
            log_pb2.REJECTION_REASON_REPOSITORY_EXISTS, f"repository {repository_id!a} exists"
        )
    )


def head_problem(branch: bytes) -> str | None:
    """Why HEAD of a new repository can't point there; empty: it is left open, which is fine."""
    if branch and (check_ref_name(branch) is not None or not branch.startswith(b"refs/heads/")):
        return f"default branch {branch!r} is no branch name"
    return None


def create(context: Context, command: log_pb2.CreateRepository) -> Applied:
    """Creates an empty repository at revision (1, 0)."""
    repository_id = command.repository_id
    existing = load(context.connection, repository_id)
    if existing is not None and existing.deleted_ms is not None:
        return deleted(repository_id)
    if existing is not None:
        return exists(repository_id)
    if object_format_of(command.object_format) is None:
        return Applied(
            rejection(
                log_pb2.REJECTION_REASON_OBJECT_FORMAT,
                f"object format {command.object_format} is unknown",
            )
        )
    branch = command.default_branch
    if (problem := head_problem(branch)) is not None:
        return Applied(rejection(log_pb2.REJECTION_REASON_INVALID, problem))
    repository = new_repository(context, repository_id, command.object_format, branch)
    insert(context.connection, repository)
    record_transaction(context, repository, "create")
    return Applied(repository_result(repository))


def delete(context: Context, command: log_pb2.DeleteRepository) -> Applied:
    """Leaves a tombstone; the repository's files are retired once that is durable."""
    repository = load(context.connection, command.repository_id)
    if repository is None:
        return not_found(command.repository_id)
    if repository.deleted_ms is not None:
        return deleted(command.repository_id)
    if not 0 <= command.retention_ms <= _RETENTION_MS_MAX:
        return Applied(
            rejection(log_pb2.REJECTION_REASON_INVALID, f"a retention of {command.retention_ms} ms")
        )
    tombstone = dataclasses.replace(
        repository,
        deleted_ms=context.time_ms,
        purge_ms=context.time_ms + command.retention_ms if command.retention_ms else None,
        deleted_path=command.path or None,
    )
    tombstone = advance(context, tombstone, "delete", [])
    result = repository_result(tombstone)
    result.repository.purge_ms = tombstone.purge_ms or 0
    return Applied(result, retire=(repository.repository_id,))


def repository_result(repository: Repository) -> log_pb2.Result:
    """The answer to a command on a whole repository."""
    return log_pb2.Result(
        repository=log_pb2.RepositoryResult(
            repository_id=repository.repository_id, revision=revision_of(repository)
        )
    )
