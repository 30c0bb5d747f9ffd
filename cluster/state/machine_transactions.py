"""The machine's command that a push becomes: refs moved, packs added, one revision further.

Refusals of the whole transaction, in this order: the repository is unknown (and not to be
created), it is deleted, it is there (and must be created), it is read-only, its objects were
verified under another prune epoch, an object format does not fit, the command contradicts itself.
After that each ref has its own verdict (machine_refs.py). When no ref succeeded, nothing happens at
all: no pack is added, the revision stays, no repository comes into being.

Apply never looks into a pack: that the new object ids exist and are connected was verified under
the prune epoch that the transaction names (architecture, invariant 6).

HEAD of a repository that was created without a default branch follows the first transaction that
creates branches: main, else master, else the first of them. HEAD's branch may be deleted; policy
is the edge's matter.

Pure, see machine.py.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from quorepo.cluster.state import machine_repositories as repositories
from quorepo.cluster.state.commands import rejection
from quorepo.cluster.state.effects import Applied, Context, object_format_of
from quorepo.cluster.state.machine_packs import add_packs, pack_problem
from quorepo.cluster.state.machine_refs import RefChange, evaluate
from quorepo.cluster.state.machine_repositories import Repository
from quorepo.internal.v1 import log_pb2
from quorepo.storage.objectformat import ObjectFormat

__all__ = ["transact"]

_ANSWER_BYTES_MAX = 64 * 1024
_PREFERRED_HEADS = (b"refs/heads/main", b"refs/heads/master")


def transact(context: Context, command: log_pb2.Transaction) -> Applied:
    """Applies one push. See the module's docstring for what is refused, and in which order."""
    repository_id = command.repository_id
    existing = context.batch.repository(repository_id)
    if existing is None:
        existing = repositories.load(context.connection, repository_id)
    if existing is None and not command.create_if_missing:
        return repositories.not_found(repository_id)
    if existing is not None and existing.deleted_ms is not None:
        return repositories.deleted(repository_id)
    if existing is not None and command.must_create:
        return repositories.exists(repository_id)
    repository = existing or repositories.new_repository(
        context, repository_id, command.object_format, command.head
    )
    if repository.read_only:
        return repositories.read_only(repository_id)
    if refused := _refuse(command, repository):
        return Applied(refused)
    results, changes = evaluate(
        context.connection, repository_id, command.ref_updates, atomic=command.atomic
    )
    if existing is None and not any(change.new_oid for change in changes):
        # Only deletes of refs that do not exist: nothing to create a repository for.
        return _result(log_pb2.Revision(), results, created=False)
    if not changes:
        return _result(repositories.revision_of(repository), results, created=False)
    if existing is None:
        repositories.insert(context.connection, repository)
    repository = _change(context, repository, changes, command.packs_added)
    applied = _result(repositories.revision_of(repository), results, created=existing is None)
    assert applied.result is not None
    applied.result.transaction.answer = command.answer
    object_format = object_format_of(repository.object_format)
    assert object_format is not None
    # Packs that the repository has already too: that costs nothing, and a replica whose quarantine
    # still holds a copy gets rid of it.
    inline = [p for p in command.packs_added if p.encoding == log_pb2.PACK_ENCODING_INLINE]
    files = [p for p in command.packs_added if p.encoding != log_pb2.PACK_ENCODING_INLINE]
    return Applied(
        applied.result,
        promote=tuple((repository_id, pack.digest, object_format) for pack in files),
        store=tuple((repository_id, pack, object_format) for pack in inline),
    )


def _result(
    revision: log_pb2.Revision, refs: Sequence[log_pb2.RefResult], *, created: bool
) -> Applied:
    result = log_pb2.TransactionResult(revision=revision, refs=refs, created=created)
    return Applied(log_pb2.Result(transaction=result))


# ---- refusals of the whole transaction


def _refuse(command: log_pb2.Transaction, repository: Repository) -> log_pb2.Result | None:
    names_object = any(update.new_oid for update in command.ref_updates)
    if names_object and command.prune_epoch != repository.prune_epoch:
        return rejection(
            log_pb2.REJECTION_REASON_REVERIFY,
            f"objects were verified under prune epoch {command.prune_epoch},"
            f" the repository is at {repository.prune_epoch}",
        )
    object_format = object_format_of(repository.object_format)
    if object_format is None:
        return rejection(
            log_pb2.REJECTION_REASON_OBJECT_FORMAT,
            f"object format {repository.object_format} is unknown",
        )
    if problem := _format_problem(command, repository, object_format):
        return rejection(log_pb2.REJECTION_REASON_OBJECT_FORMAT, problem)
    problem = _ref_problem(command.ref_updates) or pack_problem(command.packs_added, inline=True)
    if problem is None:
        problem = repositories.head_problem(command.head)
    if problem is None and len(command.answer) > _ANSWER_BYTES_MAX:
        problem = f"answer has {len(command.answer)} bytes, over {_ANSWER_BYTES_MAX}"
    if problem is not None:
        return rejection(log_pb2.REJECTION_REASON_INVALID, problem)
    return None


def _format_problem(
    command: log_pb2.Transaction, repository: Repository, object_format: ObjectFormat
) -> str | None:
    named = command.object_format
    if named not in (log_pb2.OBJECT_FORMAT_UNSPECIFIED, repository.object_format):
        return f"object format {named} named, the repository has {repository.object_format}"
    for update in command.ref_updates:
        for oid in (update.new_oid, update.expected_old_oid):
            if oid and len(oid) != object_format.hash_bytes:
                return (
                    f"object id {oid.hex()} of {update.name!r} has {len(oid)} bytes,"
                    f" not {object_format.hash_bytes}"
                )
    return None


def _ref_problem(updates: Sequence[log_pb2.RefUpdate]) -> str | None:
    if not updates:
        return "transaction updates no ref"
    seen: dict[bytes, None] = {}
    for update in updates:
        if update.name in seen:
            return f"ref {update.name!r} is updated twice"
        seen[update.name] = None
        if update.new_oid and not any(update.new_oid):
            return f"ref {update.name!r} is set to the zero object id"
    return None


# ---- the change itself


def _change(
    context: Context,
    repository: Repository,
    changes: Sequence[RefChange],
    packs: Sequence[log_pb2.PackAddition],
) -> Repository:
    """Writes the changes; returns the repository at its new revision."""
    counter = repository.counter + 1
    added = add_packs(context.connection, repository.repository_id, counter, context.time_ms, packs)
    _write_refs(context, repository.repository_id, counter, changes)
    effect = [b"%d" % len(changes)]
    for change in changes:
        effect += [change.name, change.old_oid or b"", change.new_oid or b""]
    return repositories.advance(
        context, _with_head(repository, changes), "update", [*effect, *added]
    )


def _write_refs(
    context: Context, repository_id: str, counter: int, changes: Sequence[RefChange]
) -> None:
    connection = context.connection
    gone = [(repository_id, change.name) for change in changes if change.new_oid is None]
    if gone:
        connection.executemany("DELETE FROM refs WHERE repository_id = ? AND name = ?", gone)
    connection.executemany(
        "INSERT OR REPLACE INTO refs (repository_id, name, oid) VALUES (?, ?, ?)",
        [(repository_id, change.name, change.new_oid) for change in changes if change.new_oid],
    )
    for position, change in enumerate(changes):
        if change.old_oid or change.new_oid:
            row = (repository_id, counter, position, change.name, change.old_oid, change.new_oid)
            context.batch.insert("ref_changes", row)


def _with_head(repository: Repository, changes: Sequence[RefChange]) -> Repository:
    """Decides HEAD if that is still open and the transaction creates branches."""
    if not repository.head_open:
        return repository
    branches = [
        change.name
        for change in changes
        if change.new_oid and change.old_oid is None and change.name.startswith(b"refs/heads/")
    ]
    if not branches:
        return repository
    preferred = [name for name in _PREFERRED_HEADS if name in branches]
    return dataclasses.replace(repository, head=(preferred or branches)[0], head_open=False)
