"""The replicated state machine: what a log entry does to the state, on every replica, for ever.

`apply_entries` is a pure function of the state in the connection's database and the entries: no
clock, no randomness, no environment, no iteration over sets, no state of the process
(tests/unit/state/test_machine_is_pure.py reads these modules for it). It runs inside a transaction
that the caller opened, and touches no file: what has to happen on disk is returned, in order, as
`Applied`.

Only typed rejections are results. Any exception means that this replica can't go on: the caller
rolls back and ends the process, and the entry is applied again after the restart (architecture,
invariant 3).

Exactly-once. Every command carries a request id and the time a node first saw the request. The
answer is kept under (request id, repository) until log time has passed `REQUEST_WINDOW_MS` beyond
both the log time at which it was applied and its first-seen time; a repeat gets the kept answer. A
request that is not known and was first seen before the window may have been applied and forgotten:
it is answered REQUEST_EXPIRED, which means *unknown*, and so is one that claims to come from more
than `FIRST_SEEN_AHEAD_MS_MAX` in the future, because its answer would have to be kept that long.
The window is two hours, not one, so that a node whose clock is an hour off can still write. Two
answers are not kept: REQUEST_EXPIRED, and REVERIFY, so that a push whose objects were checked
again can be proposed again under its request id; a late duplicate of the first attempt only meets
REVERIFY again, because prune epochs never come back.

Log time is max(previous, the entry's): retention and expiry use nothing else.
"""

from __future__ import annotations

import dataclasses
import sqlite3
from collections.abc import Iterable

from google.protobuf.message import DecodeError

from quorepo.cluster.raft.interface import Entry
from quorepo.cluster.state import (
    machine_copies,
    machine_directory,
    machine_join,
    machine_level,
    machine_membership,
    machine_packs,
    machine_repositories,
    machine_settings,
    machine_transactions,
)
from quorepo.cluster.state.commands import (
    CommandKind,
    command_kind,
    command_scope,
    decode_command,
    malformed,
    rejection,
)
from quorepo.cluster.state.effects import Applied, Context
from quorepo.cluster.state.machine_batch import Batch
from quorepo.internal.v1 import log_pb2
from quorepo.storage.errors import FatalError

__all__ = [
    "FIRST_SEEN_AHEAD_MS_MAX",
    "REQUEST_WINDOW_MS",
    "Applied",
    "Position",
    "apply_entries",
    "apply_entry",
    "load_position",
]

REQUEST_WINDOW_MS = 2 * 60 * 60 * 1000
FIRST_SEEN_AHEAD_MS_MAX = 24 * 60 * 60 * 1000

# Old answers dropped per entry: bounded work, and more than one entry can add.
_FORGOTTEN_PER_ENTRY_MAX = 8

_NOTHING = Applied()
_NOT_KEPT = (
    log_pb2.REJECTION_REASON_REQUEST_EXPIRED,
    log_pb2.REJECTION_REASON_REVERIFY,
)


@dataclasses.dataclass(frozen=True, slots=True)
class Position:
    """How far into its log a state is."""

    group: int
    applied_index: int
    applied_term: int
    log_time_ms: int
    configuration: bytes | None  # newest Configuration at or below applied_index
    configuration_index: int


def load_position(connection: sqlite3.Connection) -> Position:
    """The position that the database holds."""
    row = connection.execute(
        "SELECT group_id, applied_index, applied_term, log_time_ms, configuration,"
        " configuration_index FROM position"
    ).fetchone()
    return Position(*row)


def _save_position(connection: sqlite3.Connection, position: Position) -> None:
    connection.execute(
        "UPDATE position SET applied_index = ?, applied_term = ?, log_time_ms = ?,"
        " configuration = ?, configuration_index = ?",
        (
            position.applied_index,
            position.applied_term,
            position.log_time_ms,
            position.configuration,
            position.configuration_index,
        ),
    )


def apply_entry(connection: sqlite3.Connection, entry: Entry) -> Applied:
    """`apply_entries` for one entry."""
    return apply_entries(connection, [entry])[0]


def apply_entries(connection: sqlite3.Connection, entries: Iterable[Entry]) -> list[Applied]:
    """Applies contiguous entries in the caller's transaction; the state moves to the last one.

    Entries at or below the applied index were applied before: they are skipped and give an empty
    `Applied`. Raises FatalError on a gap, a term that goes back, another group's entry, or a
    command that this program can't know.
    """
    position = load_position(connection)
    batch = Batch(connection)
    effects = []
    for entry in entries:
        if _is_applied(position, entry):
            effects.append(_NOTHING)
            continue
        position, applied = _advance(connection, batch, position, entry)
        effects.append(applied)
    batch.settle()
    _save_position(connection, position)
    return effects


def _is_applied(position: Position, entry: Entry) -> bool:
    """Whether the entry was applied before; refuses one that can't follow on `position`."""
    if (
        entry.index == position.applied_index + 1
        and entry.term >= position.applied_term
        and entry.group == position.group
    ):
        return False  # as almost always
    where = f"entry {entry.index} of term {entry.term} in group {entry.group}"
    at = f"applied index {position.applied_index} of term {position.applied_term}"
    if entry.group != position.group:
        raise FatalError(f"{where} was given to the state of group {position.group}")
    if entry.index == position.applied_index and entry.term != position.applied_term:
        raise FatalError(f"{where} differs from what was applied: {at}")
    if entry.index <= position.applied_index:
        return True
    if entry.index != position.applied_index + 1:
        raise FatalError(f"{where} leaves a gap after {at}")
    raise FatalError(f"{where} follows {at}: terms never go back")


def _advance(
    connection: sqlite3.Connection, batch: Batch, position: Position, entry: Entry
) -> tuple[Position, Applied]:
    position = Position(
        position.group,
        entry.index,
        entry.term,
        max(position.log_time_ms, entry.time_ms),
        position.configuration,
        position.configuration_index,
    )
    applied = _NOTHING
    if entry.kind == "command":
        applied = _apply_command(connection, batch, position, entry.data)
    elif entry.kind == "configuration":
        _check_configuration(entry)
        batch.settle()
        machine_membership.keep_configuration(
            Context(
                connection=connection,
                batch=batch,
                log_index=entry.index,
                time_ms=position.log_time_ms,
                actor="",
                request_id=b"",
            ),
            entry.data,
        )
        position = dataclasses.replace(
            position, configuration=entry.data, configuration_index=entry.index
        )
    elif entry.kind != "noop":
        raise FatalError(f"entry {entry.index} in group {entry.group} is of kind {entry.kind!r}")
    batch.forget(position.log_time_ms - REQUEST_WINDOW_MS, _FORGOTTEN_PER_ENTRY_MAX)
    return position, applied


def _check_configuration(entry: Entry) -> None:
    try:
        log_pb2.Configuration.FromString(entry.data)
    except DecodeError as error:
        raise FatalError(
            f"entry {entry.index} in group {entry.group} holds no configuration: {error}"
        ) from error


def _apply_command(
    connection: sqlite3.Connection, batch: Batch, position: Position, data: bytes
) -> Applied:
    command = decode_command(data)
    problem = malformed(command, position.group)
    if problem is not None:
        return Applied(result=rejection(log_pb2.REJECTION_REASON_INVALID, problem))
    scope = command_scope(command)
    known = batch.result(command.request_id, scope)
    if known is not None:
        return Applied(result=log_pb2.Result.FromString(known))
    problem = _outside_window(command, position.log_time_ms)
    if problem is not None:
        return Applied(result=rejection(log_pb2.REJECTION_REASON_REQUEST_EXPIRED, problem))
    context = Context(
        connection=connection,
        batch=batch,
        log_index=position.applied_index,
        time_ms=position.log_time_ms,
        actor=command.actor,
        request_id=command.request_id,
    )
    kind = command_kind(command)
    if kind != "transaction":
        batch.defer(on=False)
    applied = _dispatch(context, kind, command)
    if kind != "transaction":
        batch.defer(on=True)
    assert applied.result is not None
    if applied.result.rejection.reason not in _NOT_KEPT:
        age_ms = max(position.log_time_ms, command.first_seen_ms)
        kept = applied.result.SerializeToString(deterministic=True)
        batch.keep(command.request_id, scope, position.applied_index, age_ms, kept)
    return applied


def _dispatch(context: Context, kind: CommandKind, command: log_pb2.Command) -> Applied:
    match kind:
        case "create_repository":
            return machine_repositories.create(context, command.create_repository)
        case "delete_repository":
            return machine_repositories.delete(context, command.delete_repository)
        case "transaction":
            return machine_transactions.transact(context, command.transaction)
        case "replace_packs":
            return machine_packs.replace_packs(context, command.replace_packs)
        case "prune":
            return machine_packs.prune(context, command.prune)
        case "set_head":
            return machine_settings.set_head(context, command.set_head)
        case "update_repository":
            return machine_settings.update(context, command.update_repository)
        case "undelete_repository":
            return machine_copies.undelete(context, command.undelete_repository)
        case "fork_repository":
            return machine_copies.fork(context, command.fork_repository)
        case "reserve_path":
            return machine_directory.reserve_path(context, command.reserve_path)
        case "release_path":
            return machine_directory.release_path(context, command.release_path)
        case "rename_path":
            return machine_directory.rename_path(context, command.rename_path)
        case "register_node":
            return machine_directory.register_node(context, command.register_node)
        case "add_join_token":
            return machine_join.add_join_token(context, command.add_join_token)
        case "use_join_token":
            return machine_join.use_join_token(context, command.use_join_token)
        case "revoke_join_token":
            return machine_join.revoke_join_token(context, command.revoke_join_token)
        case "begin_membership_change":
            return machine_membership.begin_change(context, command.begin_membership_change)
        case "end_membership_change":
            return machine_membership.end_change(context, command.end_membership_change)
        case "set_node_draining":
            return machine_membership.set_draining(context, command.set_node_draining)
        case "raise_level":
            return machine_level.raise_level(context, command.raise_level)


def _outside_window(command: log_pb2.Command, log_time_ms: int) -> str | None:
    if command.first_seen_ms < log_time_ms - REQUEST_WINDOW_MS:
        return (
            f"request first seen at {command.first_seen_ms} ms, before the window of"
            f" {REQUEST_WINDOW_MS} ms that ends at log time {log_time_ms} ms"
        )
    if command.first_seen_ms > log_time_ms + FIRST_SEEN_AHEAD_MS_MAX:
        return (
            f"request first seen at {command.first_seen_ms} ms, more than"
            f" {FIRST_SEEN_AHEAD_MS_MAX} ms after log time {log_time_ms} ms: check the clocks"
        )
    return None
