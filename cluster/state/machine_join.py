"""The machine's commands on join tokens: each lets one replica in, once. Pure, see machine.py."""

from __future__ import annotations

from quorepo.cluster.state.commands import rejection
from quorepo.cluster.state.effects import Applied, Context
from quorepo.internal.v1 import log_pb2

__all__ = ["add_join_token", "revoke_join_token", "use_join_token"]

_DIGEST_BYTES = 32
# How long a token that is over is remembered, so that its use is answered with the reason.
_REMEMBERED_MS = 30 * 86_400_000


def add_join_token(context: Context, command: log_pb2.AddJoinToken) -> Applied:
    """Makes a token known; forgets those that nobody used and that are long over."""
    if len(command.token_digest) != _DIGEST_BYTES:
        return _refused(log_pb2.REJECTION_REASON_INVALID, "a token digest has 32 bytes")
    context.connection.execute(
        "DELETE FROM join_tokens WHERE used_by = '' AND expires_ms < ?",
        (context.time_ms - _REMEMBERED_MS,),
    )
    context.connection.execute(
        "INSERT OR IGNORE INTO join_tokens (token_digest, node, expires_ms, actor, created_ms,"
        " used_by, used_key, used_ms) VALUES (?, ?, ?, ?, ?, '', x'', 0)",
        (
            command.token_digest,
            command.node,
            command.expires_ms,
            context.actor,
            context.time_ms,
        ),
    )
    return Applied(log_pb2.Result(node=log_pb2.NodeResult(name=command.node)))


def use_join_token(context: Context, command: log_pb2.UseJoinToken) -> Applied:
    """Lets the replica in, or says why not. Asked again by the same replica: the same answer."""
    row = context.connection.execute(
        "SELECT node, expires_ms, used_by, used_key FROM join_tokens WHERE token_digest = ?",
        (command.token_digest,),
    ).fetchone()
    if row is None:
        return _refused(
            log_pb2.REJECTION_REASON_JOIN_TOKEN_UNKNOWN, "the cluster knows no such join token"
        )
    node, expires_ms, used_by, used_key = row
    if used_by:
        if (used_by, used_key) == (command.replica_id, command.key_digest):
            return Applied(log_pb2.Result(node=log_pb2.NodeResult(name=command.node)))
        return _refused(
            log_pb2.REJECTION_REASON_JOIN_TOKEN_USED,
            f"the join token was used already, by replica {used_by!a}",
        )
    if context.time_ms >= expires_ms:
        return _refused(
            log_pb2.REJECTION_REASON_JOIN_TOKEN_EXPIRED,
            f"the join token expired at {expires_ms} ms, it is {context.time_ms} ms",
        )
    if node not in ("", command.node):
        return _refused(
            log_pb2.REJECTION_REASON_JOIN_TOKEN_NODE,
            f"the join token is for node {node!a}, not for {command.node!a}",
        )
    if command.name_is_taken and not node:
        return _refused(
            log_pb2.REJECTION_REASON_JOIN_TOKEN_NAME_TAKEN,
            f"a member has the node name {command.node!a} already",
        )
    context.connection.execute(
        "UPDATE join_tokens SET used_by = ?, used_key = ?, used_ms = ? WHERE token_digest = ?",
        (command.replica_id, command.key_digest, context.time_ms, command.token_digest),
    )
    return Applied(log_pb2.Result(node=log_pb2.NodeResult(name=command.node)))


def revoke_join_token(context: Context, command: log_pb2.RevokeJoinToken) -> Applied:
    """Forgets a token. One that was used stays: it says who came with it."""
    row = context.connection.execute(
        "SELECT used_by FROM join_tokens WHERE token_digest = ?", (command.token_digest,)
    ).fetchone()
    if row is None:
        return _refused(
            log_pb2.REJECTION_REASON_JOIN_TOKEN_UNKNOWN, "the cluster knows no such join token"
        )
    if row[0]:
        return _refused(
            log_pb2.REJECTION_REASON_JOIN_TOKEN_USED,
            f"the join token was used already, by replica {row[0]!a}",
        )
    context.connection.execute(
        "DELETE FROM join_tokens WHERE token_digest = ?", (command.token_digest,)
    )
    return Applied(log_pb2.Result(node=log_pb2.NodeResult(name="")))


def _refused(reason: log_pb2.RejectionReason.ValueType, message: str) -> Applied:
    return Applied(rejection(reason, message))
