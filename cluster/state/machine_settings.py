"""The machine's commands on what a repository has beside refs and packs: HEAD, settings.

HEAD points to a branch, born or not, or to an object id. That the object is a commit of the
repository was verified under the prune epoch that the command names, as for refs. As far as HEAD is
detached its moves stand among the ref changes, so that a prune keeps what it pointed to.

Pure, see machine.py.
"""

from __future__ import annotations

import dataclasses

from quorepo.cluster.state import machine_repositories as repositories
from quorepo.cluster.state.commands import rejection
from quorepo.cluster.state.effects import Applied, Context, object_format_of
from quorepo.cluster.state.machine_repositories import Repository
from quorepo.internal.v1 import log_pb2
from quorepo.storage.git.refnames import check_ref_name

__all__ = ["DESCRIPTION_BYTES_MAX", "set_head", "update"]

DESCRIPTION_BYTES_MAX = 4096
_HEAD = b"HEAD"


def set_head(context: Context, command: log_pb2.SetHead) -> Applied:
    """Points HEAD to a branch or to an object id, if it is what the command expects."""
    repository = repositories.load(context.connection, command.repository_id)
    if repository is None:
        return repositories.not_found(command.repository_id)
    if repository.deleted_ms is not None:
        return repositories.deleted(command.repository_id)
    if repository.read_only:
        return repositories.read_only(command.repository_id)
    if refused := _refuse_head(command, repository):
        return Applied(refused)
    old, new = repository.detached_head, command.detached_oid or None
    changed = dataclasses.replace(
        repository, head=command.branch or repository.head, head_open=False, detached_head=new
    )
    changed = repositories.advance(context, changed, "head", [])
    if old != new:
        context.connection.execute(
            "INSERT INTO ref_changes (repository_id, counter, position, name, old_oid, new_oid)"
            " VALUES (?, ?, 0, ?, ?, ?)",
            (changed.repository_id, changed.counter, _HEAD, old, new),
        )
    return Applied(repositories.repository_result(changed))


def _refuse_head(command: log_pb2.SetHead, repository: Repository) -> log_pb2.Result | None:
    object_format = object_format_of(repository.object_format)
    if command.detached_oid and command.prune_epoch != repository.prune_epoch:
        return rejection(
            log_pb2.REJECTION_REASON_REVERIFY,
            f"objects were verified under prune epoch {command.prune_epoch},"
            f" the repository is at {repository.prune_epoch}",
        )
    if bool(command.branch) == bool(command.detached_oid):
        problem = "HEAD points to one of a branch and an object"
    elif command.branch and not _is_branch(command.branch):
        problem = f"HEAD can't point to {command.branch!a}: it is no branch name"
    elif command.detached_oid and (
        object_format is None
        or len(command.detached_oid) != object_format.hash_bytes
        or not any(command.detached_oid)
    ):
        problem = f"HEAD can't point to {command.detached_oid.hex()}: it is no object id"
    elif not command.any_old and not _is_expected(command, repository):
        actual = repository.detached_head
        return rejection(
            log_pb2.REJECTION_REASON_HEAD_STALE,
            f"HEAD is {repository.head!a}" if actual is None else f"HEAD is {actual.hex()}",
        )
    else:
        return None
    return rejection(log_pb2.REJECTION_REASON_INVALID, problem)


def _is_branch(name: bytes) -> bool:
    return name.startswith(b"refs/heads/") and check_ref_name(name) is None


def _is_expected(command: log_pb2.SetHead, repository: Repository) -> bool:
    if command.expected_detached_oid:
        return command.expected_detached_oid == repository.detached_head
    return repository.detached_head is None and command.expected_branch == repository.head


def update(context: Context, command: log_pb2.UpdateRepository) -> Applied:
    """Changes the fields that are set; a repository that is as asked already stays as it is."""
    repository = repositories.load(context.connection, command.repository_id)
    if repository is None:
        return repositories.not_found(command.repository_id)
    if repository.deleted_ms is not None:
        return repositories.deleted(command.repository_id)
    size = len(command.description.encode("utf-8"))
    if size > DESCRIPTION_BYTES_MAX:
        return Applied(
            rejection(
                log_pb2.REJECTION_REASON_INVALID,
                f"description has {size} bytes, over {DESCRIPTION_BYTES_MAX}",
            )
        )
    changed = repository
    if command.HasField("description"):
        changed = dataclasses.replace(changed, description=command.description)
    if command.HasField("read_only"):
        changed = dataclasses.replace(changed, read_only=command.read_only)
    if changed != repository:
        effect = [changed.description.encode("utf-8"), b"%d" % changed.read_only]
        changed = repositories.advance(context, changed, "settings", effect)
    return Applied(repositories.repository_result(changed))
