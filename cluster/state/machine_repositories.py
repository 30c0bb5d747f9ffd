"""The machine's commands on a whole repository, create and delete, and how its row is kept.

A deletion leaves a tombstone. Refs, packs and history stay behind it, unread, until a later
command of its own purges them after the retention time: so deleting costs the same whatever the
size, and can be taken back. The id is never used again.

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
    "record_transaction",
    "revision_of",
]

DEFAULT_HEAD = b"refs/heads/main"
FIRST_INCARNATION = 1


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


def load(connection: sqlite3.Connection, repository_id: str) -> Repository | None:
    """The repository's row, a tombstone too; None when the group has never seen the id."""
    row = connection.execute(
        "SELECT repository_id, incarnation, counter, object_format, head, head_open, prune_epoch,"
        " checksum, created_ms, deleted_ms FROM repositories WHERE repository_id = ?",
        (repository_id,),
    ).fetchone()
    if row is None:
        return None
    return dataclasses.replace(Repository(*row), head_open=bool(row[5]))


def insert(connection: sqlite3.Connection, repository: Repository) -> None:
    connection.execute(
        "INSERT INTO repositories (repository_id, incarnation, counter, object_format, head,"
        " head_open, prune_epoch, checksum, created_ms, deleted_ms)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?)",
        (
            repository.repository_id,
            repository.incarnation,
            repository.counter,
            repository.object_format,
            repository.head,
            int(repository.head_open),
            repository.prune_epoch,
            repository.checksum,
            repository.created_ms,
            repository.deleted_ms,
        ),
    )


def advance(
    context: Context, repository: Repository, kind: str, effect: Iterable[bytes]
) -> Repository:
    """Moves an existing repository to its next revision; `effect` is what its checksum covers.

    HEAD and the tombstone are written as `repository` has them. Returns the new row.
    """
    counter = repository.counter + 1
    checksum = next_checksum(
        repository.checksum,
        [
            kind.encode("ascii"),
            b"%d" % repository.incarnation,
            b"%d" % counter,
            b"%d" % context.time_ms,
            repository.head,
            *effect,
        ],
    )
    repository = dataclasses.replace(repository, counter=counter, checksum=checksum)
    context.connection.execute(
        "UPDATE repositories SET counter = ?, checksum = ?, head = ?, head_open = ?, deleted_ms = ?"
        " WHERE repository_id = ?",
        (
            repository.counter,
            repository.checksum,
            repository.head,
            int(repository.head_open),
            repository.deleted_ms,
            repository.repository_id,
        ),
    )
    record_transaction(context, repository, kind)
    return repository


def record_transaction(context: Context, repository: Repository, kind: str) -> None:
    """Writes who moved the repository to its present revision, and when."""
    context.connection.execute(
        "INSERT INTO transactions (repository_id, counter, kind, log_index, time_ms, actor,"
        " request_id) VALUES (?, ?, ?, ?, ?, ?, ?)",
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


def create(context: Context, command: log_pb2.CreateRepository) -> Applied:
    """Creates an empty repository at revision (1, 0)."""
    repository_id = command.repository_id
    existing = load(context.connection, repository_id)
    if existing is not None and existing.deleted_ms is not None:
        return deleted(repository_id)
    if existing is not None:
        return Applied(
            rejection(
                log_pb2.REJECTION_REASON_REPOSITORY_EXISTS, f"repository {repository_id!a} exists"
            )
        )
    if object_format_of(command.object_format) is None:
        return Applied(
            rejection(
                log_pb2.REJECTION_REASON_OBJECT_FORMAT,
                f"object format {command.object_format} is unknown",
            )
        )
    branch = command.default_branch
    if branch and (check_ref_name(branch) is not None or not branch.startswith(b"refs/heads/")):
        return Applied(
            rejection(
                log_pb2.REJECTION_REASON_INVALID, f"default branch {branch!r} is no branch name"
            )
        )
    repository = new_repository(context, repository_id, command.object_format, branch)
    insert(context.connection, repository)
    record_transaction(context, repository, "create")
    return _repository_result(repository)


def delete(context: Context, command: log_pb2.DeleteRepository) -> Applied:
    """Leaves a tombstone; the repository's files are retired once that is durable."""
    repository = load(context.connection, command.repository_id)
    if repository is None:
        return not_found(command.repository_id)
    if repository.deleted_ms is not None:
        return deleted(command.repository_id)
    tombstone = dataclasses.replace(repository, deleted_ms=context.time_ms)
    tombstone = advance(context, tombstone, "delete", [])
    return dataclasses.replace(_repository_result(tombstone), retire=(repository.repository_id,))


def _repository_result(repository: Repository) -> Applied:
    result = log_pb2.Result(
        repository=log_pb2.RepositoryResult(
            repository_id=repository.repository_id, revision=revision_of(repository)
        )
    )
    return Applied(result)
