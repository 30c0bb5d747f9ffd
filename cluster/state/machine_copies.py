"""The machine's commands that make a repository out of another one, or out of its tombstone.

A fork begins with the refs, HEAD and packs that its source has at this index; the files are
linked, so it costs no disk until either of the two rewrites its packs. Its history begins with it:
what happened to the source before is not repeated. Both live in one group.

A replica that applies either command has the packs: whoever has the log up to here stored them, and
a tombstone's files are kept while it can be taken back (pack_table.py).

Pure, see machine.py.
"""

from __future__ import annotations

import dataclasses

from quorepo.cluster.state import machine_repositories as repositories
from quorepo.cluster.state.commands import rejection
from quorepo.cluster.state.effects import Applied, Context, next_checksum, object_format_of
from quorepo.cluster.state.machine_repositories import Repository
from quorepo.internal.v1 import log_pb2

__all__ = ["fork", "undelete"]


def undelete(context: Context, command: log_pb2.UndeleteRepository) -> Applied:
    """Takes a tombstone back: the repository is as it was, one revision further."""
    repository = repositories.load(context.connection, command.repository_id)
    if repository is None:
        return repositories.not_found(command.repository_id)
    if repository.deleted_ms is None:
        return Applied(
            rejection(
                log_pb2.REJECTION_REASON_NOT_DELETED,
                f"repository {command.repository_id!a} is not deleted",
            )
        )
    if repository.purge_ms is None or repository.purge_ms <= context.time_ms:
        return Applied(
            rejection(
                log_pb2.REJECTION_REASON_RETENTION_OVER,
                f"repository {command.repository_id!a} can't be taken back any more",
            )
        )
    living = dataclasses.replace(repository, deleted_ms=None, purge_ms=None, deleted_path=None)
    living = repositories.advance(context, living, "undelete", [])
    result = repositories.repository_result(living)
    result.repository.path = repository.deleted_path or ""
    return _with_packs(context, living, result)


def fork(context: Context, command: log_pb2.ForkRepository) -> Applied:
    """Makes the fork at revision (1, 0)."""
    fork_id, connection = command.repository_id, context.connection
    existing = repositories.load(connection, fork_id)
    if existing is not None and existing.deleted_ms is not None:
        return repositories.deleted(fork_id)
    if existing is not None:
        return Applied(
            rejection(log_pb2.REJECTION_REASON_REPOSITORY_EXISTS, f"repository {fork_id!a} exists")
        )
    source = repositories.load(connection, command.source_id)
    if source is None or source.deleted_ms is not None:
        # Not "deleted": that would speak of the fork's own id.
        return repositories.not_found(command.source_id)
    made = dataclasses.replace(
        repositories.new_repository(context, fork_id, source.object_format, b""),
        head=source.head,
        head_open=source.head_open,
        detached_head=source.detached_head,
        description=source.description,
        forked_from=source.repository_id,
    )
    made = dataclasses.replace(
        made, checksum=next_checksum(made.checksum, [b"fork", made.head, source.checksum])
    )
    repositories.insert(connection, made)
    connection.execute(
        "INSERT INTO refs (repository_id, name, oid)"
        " SELECT ?, name, oid FROM refs WHERE repository_id = ?",
        (fork_id, source.repository_id),
    )
    connection.execute(
        "INSERT INTO packs (repository_id, digest, index_digest, pack_bytes, index_bytes,"
        " object_count, thin_bytes, thin_object_count, added_counter, arrived_ms)"
        " SELECT ?, digest, index_digest, pack_bytes, index_bytes, object_count, thin_bytes,"
        " thin_object_count, 0, arrived_ms FROM packs WHERE repository_id = ?",
        (fork_id, source.repository_id),
    )
    repositories.record_transaction(context, made, "fork")
    result = repositories.repository_result(made)
    result.repository.source_revision.CopyFrom(repositories.revision_of(source))
    return _with_packs(context, made, result)


def _with_packs(context: Context, repository: Repository, result: log_pb2.Result) -> Applied:
    """The answer, with all packs of the repository to be brought to its place."""
    object_format = object_format_of(repository.object_format)
    assert object_format is not None
    rows = context.connection.execute(
        "SELECT digest FROM packs WHERE repository_id = ? ORDER BY digest",
        (repository.repository_id,),
    )
    promote = tuple((repository.repository_id, row[0], object_format) for row in rows)
    return Applied(result, promote=promote)
