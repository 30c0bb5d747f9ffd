"""The machine's record of the members: changes that were asked for, drained nodes, configurations.

What stands here is the intention; the configuration entries of each group are the deed
(cluster/membership.py carries the one to the other). Pure, see machine.py.
"""

from __future__ import annotations

from quorepo.cluster.state.commands import rejection
from quorepo.cluster.state.effects import Applied, Context
from quorepo.cluster.state.machine_level import level_reached
from quorepo.internal.v1 import log_pb2

__all__ = [
    "CANCELLED",
    "CANCELLING",
    "DONE",
    "HISTORY_ROWS_MAX",
    "RUNNING",
    "begin_change",
    "end_change",
    "keep_configuration",
    "set_draining",
]

RUNNING, CANCELLING, DONE, CANCELLED = 1, 2, 3, 4

# Ended changes, and configurations, that are remembered. Replicated: not to be configured.
HISTORY_ROWS_MAX = 1000

_COMES = (log_pb2.MEMBERSHIP_KIND_ADD, log_pb2.MEMBERSHIP_KIND_REPLACE)
_KINDS = (*_COMES, log_pb2.MEMBERSHIP_KIND_PROMOTE, log_pb2.MEMBERSHIP_KIND_REMOVE)


def begin_change(context: Context, command: log_pb2.BeginMembershipChange) -> Applied:
    """Records a change of the members, unless another one is under way."""
    if command.kind not in _KINDS or not command.node or not command.replica_id:
        return _invalid("a change of the members needs a kind, a node and a replica id")
    if command.kind in _COMES and not command.peer_address:
        return _invalid(f"node {command.node!a} needs a peer address")
    reached = level_reached(context)
    if command.kind in _COMES and (command.level or 1) < reached:
        return Applied(
            rejection(
                log_pb2.REJECTION_REASON_LEVEL,
                f"node {command.node!a} knows level {command.level or 1}, and this cluster is at"
                f" level {reached}",
            )
        )
    running = context.connection.execute(
        "SELECT node, change_id FROM membership_changes WHERE state IN (?, ?)",
        (RUNNING, CANCELLING),
    ).fetchone()
    if running is not None:
        return Applied(
            rejection(
                log_pb2.REJECTION_REASON_MEMBERSHIP_BUSY,
                f"another change of the members is under way: node {running[0]!a}, change"
                f" {running[1].hex()}",
            )
        )
    context.connection.execute(
        "INSERT INTO membership_changes (change_id, kind, node, replica_id, former_replica_id,"
        " peer_address, keep_learner, forced, actor, state, begun_index, started_ms, ended_ms)"
        " VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, 0)",
        (
            context.request_id,
            command.kind,
            command.node,
            command.replica_id,
            command.former_replica_id,
            command.peer_address,
            int(command.keep_learner),
            int(command.forced),
            context.actor,
            RUNNING,
            context.log_index,
            context.time_ms,
        ),
    )
    if command.kind == log_pb2.MEMBERSHIP_KIND_PROMOTE:
        _keep_learner(context, command.node, "")
    elif command.keep_learner:
        _keep_learner(context, command.node, command.replica_id)
    _forget(context, "membership_changes", "begun_index")
    return _result(context.request_id)


def end_change(context: Context, command: log_pb2.EndMembershipChange) -> Applied:
    """Moves a running change on: to be taken back, done, or taken back."""
    row = context.connection.execute(
        "SELECT state, kind, node, replica_id FROM membership_changes WHERE change_id = ?",
        (command.change_id,),
    ).fetchone()
    if row is None:
        return _no_change(f"there is no change {command.change_id.hex()} of the members")
    state, kind, node, replica_id = row
    wanted = {
        log_pb2.MEMBERSHIP_END_CANCEL: CANCELLING,
        log_pb2.MEMBERSHIP_END_DONE: DONE,
        log_pb2.MEMBERSHIP_END_CANCELLED: CANCELLED,
    }.get(command.end)
    if wanted is None:
        return _invalid(f"a change of the members has no end {command.end}")
    if state == wanted:
        return _result(command.change_id)
    if wanted == CANCELLING and kind not in _COMES:
        return _invalid("only a node that comes can be taken back")
    if state != (CANCELLING if wanted == CANCELLED else RUNNING):
        return _no_change(f"change {command.change_id.hex()} of the members has ended")
    ended_ms = 0 if wanted == CANCELLING else context.time_ms
    context.connection.execute(
        "UPDATE membership_changes SET state = ?, ended_ms = ? WHERE change_id = ?",
        (wanted, ended_ms, command.change_id),
    )
    gone = wanted == CANCELLED or (wanted == DONE and kind == log_pb2.MEMBERSHIP_KIND_REMOVE)
    if gone:
        # Unless the node is there under another replica id.
        context.connection.execute(
            "DELETE FROM nodes WHERE name = ? AND replica_id = ?", (node, replica_id)
        )
        context.connection.execute("DELETE FROM node_marks WHERE name = ?", (node,))
    return _result(command.change_id)


def set_draining(context: Context, command: log_pb2.SetNodeDraining) -> Applied:
    """A registered node is to be drained, or no more."""
    known = context.connection.execute(
        "SELECT 1 FROM nodes WHERE name = ?", (command.node,)
    ).fetchone()
    if known is None:
        return Applied(
            rejection(log_pb2.REJECTION_REASON_NODE_NOT_FOUND, f"there is no node {command.node!a}")
        )
    context.connection.execute(
        "INSERT INTO node_marks (name, draining, keep_learner, actor, since_ms)"
        " VALUES (?, ?, '', ?, ?) ON CONFLICT (name) DO UPDATE SET draining = excluded.draining,"
        " actor = excluded.actor, since_ms = excluded.since_ms",
        (command.node, int(command.draining), context.actor, context.time_ms),
    )
    return Applied(log_pb2.Result(node=log_pb2.NodeResult(name=command.node)))


def keep_configuration(context: Context, configuration: bytes) -> None:
    """Remembers a configuration entry of this group."""
    context.connection.execute(
        "INSERT INTO configurations (log_index, time_ms, configuration) VALUES (?, ?, ?)",
        (context.log_index, context.time_ms, configuration),
    )
    _forget(context, "configurations", "log_index")


def _keep_learner(context: Context, node: str, replica_id: str) -> None:
    context.connection.execute(
        "INSERT INTO node_marks (name, draining, keep_learner, actor, since_ms)"
        " VALUES (?, 0, ?, ?, ?)"
        " ON CONFLICT (name) DO UPDATE SET keep_learner = excluded.keep_learner",
        (node, replica_id, context.actor, context.time_ms),
    )


def _forget(context: Context, table: str, column: str) -> None:
    context.connection.execute(
        f"DELETE FROM {table} WHERE {column} <= (SELECT {column} FROM {table}"  # noqa: S608
        f" ORDER BY {column} DESC LIMIT 1 OFFSET ?)",
        (HISTORY_ROWS_MAX,),
    )


def _result(change_id: bytes) -> Applied:
    return Applied(log_pb2.Result(membership=log_pb2.MembershipResult(change_id=change_id)))


def _no_change(message: str) -> Applied:
    return Applied(rejection(log_pb2.REJECTION_REASON_CHANGE_NOT_FOUND, message))


def _invalid(message: str) -> Applied:
    return Applied(rejection(log_pb2.REJECTION_REASON_INVALID, message))
