"""The machine's commands on the pack set: packs added by a push, replaced by fewer, pruned.

A pushed pack joins the set with its transaction. ReplacePacks (consolidation) and Prune take packs
out and put others in their place; refs stay as they are. Refusals of both, in this order: the
repository is unknown or deleted, another object format, a command that contradicts itself, and
PACKS_CHANGED: the prune epoch is another one, a removed pack is not in the set, or, for Prune, any
transaction was applied since the revision that it was computed from.

Apply never looks into a pack: that the added ones hold what they have to was checked by every
replica before the entry got into its journal (cluster/replacements.py; architecture, invariant 7).

A pack that is both removed and added stays as it is: the merge of packs may be, byte for byte, one
of them. A removed pack leaves a row in `removed_packs`, which is what retention goes by. A pack
keeps the log time at which its objects came (`arrived_ms`) through consolidations, so that the
grace time of a prune counts from the push.

Pure, see machine.py.
"""

from __future__ import annotations

import dataclasses
import hashlib
import sqlite3
from collections.abc import Sequence

from quorepo.cluster.state import machine_repositories as repositories
from quorepo.cluster.state.commands import rejection
from quorepo.cluster.state.effects import Applied, Context, object_format_of
from quorepo.cluster.state.machine_repositories import Repository
from quorepo.internal.v1 import log_pb2

__all__ = ["add_packs", "pack_problem", "prune", "replace_packs"]

_DIGEST_BYTES = 32
_INTEGER_MAX = (1 << 63) - 1  # SQLite's

_Replacement = log_pb2.ReplacePacks | log_pb2.Prune


def pack_problem(packs: Sequence[log_pb2.PackAddition], *, inline: bool = False) -> str | None:
    """Why these packs could not be added in any state; None when they could. `inline`: their bytes
    may be in the command."""
    seen: dict[bytes, None] = {}
    for pack in packs:
        if len(pack.digest) != _DIGEST_BYTES or len(pack.index_digest) != _DIGEST_BYTES:
            return f"pack digest {pack.digest.hex()} or that of its index is no SHA-256"
        if pack.digest in seen:
            return f"pack {pack.digest.hex()} is added twice"
        seen[pack.digest] = None
        if inline and pack.encoding == log_pb2.PACK_ENCODING_INLINE:
            if problem := _bytes_problem(pack):
                return problem
        elif pack.encoding != log_pb2.PACK_ENCODING_FILE:
            return f"pack {pack.digest.hex()} has encoding {pack.encoding}"
        if max(_pack_numbers(pack)) > _INTEGER_MAX:
            return f"pack {pack.digest.hex()} has a size above {_INTEGER_MAX}"
    return None


def _bytes_problem(pack: log_pb2.PackAddition) -> str | None:
    for data, digest, size in (
        (pack.pack, pack.digest, pack.pack_bytes),
        (pack.index, pack.index_digest, pack.index_bytes),
    ):
        if len(data) != size or hashlib.sha256(data).digest() != digest:
            return f"pack {pack.digest.hex()} comes with other bytes than it names"
    return None


def add_packs(
    connection: sqlite3.Connection,
    repository_id: str,
    counter: int,
    arrived_ms: int,
    packs: Sequence[log_pb2.PackAddition],
) -> list[bytes]:
    """Adds the packs that are not there yet, at revision `counter`; returns their digests."""
    added = []
    for pack in packs:
        cursor = connection.execute(
            "INSERT INTO packs (repository_id, digest, index_digest, pack_bytes, index_bytes,"
            " object_count, thin_bytes, thin_object_count, added_counter, arrived_ms)"
            " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT (repository_id, digest) DO NOTHING",
            (
                repository_id,
                pack.digest,
                pack.index_digest,
                *_pack_numbers(pack),
                counter,
                arrived_ms,
            ),
        )
        if cursor.rowcount:
            added.append(pack.digest)
    return added


def _pack_numbers(pack: log_pb2.PackAddition) -> tuple[int, int, int, int, int]:
    return (
        pack.pack_bytes,
        pack.index_bytes,
        pack.object_count,
        pack.thin_bytes,
        pack.thin_object_count,
    )


def replace_packs(context: Context, command: log_pb2.ReplacePacks) -> Applied:
    """Consolidation: other packs, the same objects, one revision further."""
    repository = repositories.load(context.connection, command.repository_id)
    if repository is None:
        return repositories.not_found(command.repository_id)
    if refused := _refuse(context, command, repository):
        return Applied(refused)
    return _replace(context, repository, "replace", command)


def prune(context: Context, command: log_pb2.Prune) -> Applied:
    """Fewer objects, and the next prune epoch: what was verified before is verified again."""
    repository = repositories.load(context.connection, command.repository_id)
    if repository is None:
        return repositories.not_found(command.repository_id)
    if refused := _refuse(context, command, repository) or _refuse_prune(
        context, command, repository
    ):
        return Applied(refused)
    repository = dataclasses.replace(repository, prune_epoch=repository.prune_epoch + 1)
    context.connection.execute(
        "UPDATE repositories SET prune_epoch = ? WHERE repository_id = ?",
        (repository.prune_epoch, repository.repository_id),
    )
    return _replace(context, repository, "prune", command)


# ---- refusals


def _refuse(
    context: Context, command: _Replacement, repository: Repository
) -> log_pb2.Result | None:
    if repository.deleted_ms is not None:
        return repositories.deleted(repository.repository_id).result
    if command.object_format != repository.object_format:
        return rejection(
            log_pb2.REJECTION_REASON_OBJECT_FORMAT,
            f"object format {command.object_format} named,"
            f" the repository has {repository.object_format}",
        )
    if problem := _problem(command):
        return rejection(log_pb2.REJECTION_REASON_INVALID, problem)
    if command.prune_epoch != repository.prune_epoch:
        return _changed(
            f"packs were read under prune epoch {command.prune_epoch},"
            f" the repository is at {repository.prune_epoch}"
        )
    for digest in command.removed:
        if _arrived_ms(context, repository.repository_id, digest) is None:
            return _changed(f"pack {digest.hex()} is not in the repository")
    return None


def _refuse_prune(
    context: Context, command: log_pb2.Prune, repository: Repository
) -> log_pb2.Result | None:
    if command.computed_from != repository.counter:
        return _changed(
            f"computed from revision {command.computed_from},"
            f" the repository is at {repository.counter}"
        )
    horizon_ms = command.unreachable_before_ms
    if horizon_ms > context.time_ms:
        return rejection(
            log_pb2.REJECTION_REASON_INVALID,
            f"prunes what was unreachable before {horizon_ms} ms at log time {context.time_ms} ms",
        )
    for digest in command.removed:
        arrived_ms = _arrived_ms(context, repository.repository_id, digest)
        if arrived_ms is None or arrived_ms >= horizon_ms:
            return rejection(
                log_pb2.REJECTION_REASON_INVALID,
                f"pack {digest.hex()} arrived at {arrived_ms} ms, not before {horizon_ms} ms",
            )
    return None


def _problem(command: _Replacement) -> str | None:
    if not command.removed:
        return "no pack is removed"
    if isinstance(command, log_pb2.ReplacePacks) and not command.added:
        return "packs are replaced by none"
    if problem := pack_problem(command.added):
        return problem
    seen: dict[bytes, None] = {}
    for digest in command.removed:
        if len(digest) != _DIGEST_BYTES:
            return f"removed pack {digest.hex()} is named by no SHA-256"
        if digest in seen:
            return f"removed pack {digest.hex()} is named twice"
        seen[digest] = None
    return None if _going(command) else "every pack removed is added"


def _going(command: _Replacement) -> list[bytes]:
    """The packs that leave the set."""
    added = {pack.digest: None for pack in command.added}
    return [digest for digest in command.removed if digest not in added]


def _changed(message: str) -> log_pb2.Result:
    return rejection(log_pb2.REJECTION_REASON_PACKS_CHANGED, message)


def _arrived_ms(context: Context, repository_id: str, digest: bytes) -> int | None:
    """When the objects of a pack came; None when the repository has no such pack."""
    row = context.connection.execute(
        "SELECT arrived_ms FROM packs WHERE repository_id = ? AND digest = ?",
        (repository_id, digest),
    ).fetchone()
    return None if row is None else int(row[0])


# ---- the change itself


def _replace(context: Context, repository: Repository, kind: str, command: _Replacement) -> Applied:
    repository_id = repository.repository_id
    counter = repository.counter + 1
    # The youngest of them counts: an object must not look older than it is.
    arrived_ms = max(_arrived_ms(context, repository_id, d) or 0 for d in command.removed)
    going = _going(command)
    for digest in going:
        context.connection.execute(
            "INSERT INTO removed_packs (repository_id, digest, removed_counter, index_digest,"
            " pack_bytes, index_bytes, object_count, thin_bytes, thin_object_count, added_counter,"
            " arrived_ms, removed_index, removed_ms)"
            " SELECT repository_id, digest, ?, index_digest, pack_bytes, index_bytes, object_count,"
            " thin_bytes, thin_object_count, added_counter, arrived_ms, ?, ? FROM packs"
            " WHERE repository_id = ? AND digest = ?",
            (counter, context.log_index, context.time_ms, repository_id, digest),
        )
        context.connection.execute(
            "DELETE FROM packs WHERE repository_id = ? AND digest = ?", (repository_id, digest)
        )
    add_packs(context.connection, repository_id, counter, arrived_ms, command.added)
    effect = [b"%d" % repository.prune_epoch, b"%d" % len(command.removed), *command.removed]
    effect += [pack.digest for pack in command.added]
    repository = repositories.advance(context, repository, kind, effect)
    object_format = object_format_of(repository.object_format)
    assert object_format is not None
    result = log_pb2.RepositoryResult(
        repository_id=repository_id, revision=repositories.revision_of(repository)
    )
    return Applied(
        log_pb2.Result(repository=result),
        promote=tuple((repository_id, pack.digest, object_format) for pack in command.added),
        retire_packs=tuple((repository_id, digest) for digest in going),
    )
