"""The machine's commands on the directory: which repository a path names, which nodes there are.

Paths stand alone: `a` and `a/b` may both be repositories. Pure, see machine.py.
"""

from __future__ import annotations

from quorepo.cluster.state.commands import DIRECTORY_GROUP, rejection
from quorepo.cluster.state.effects import Applied, Context
from quorepo.internal.v1 import log_pb2

__all__ = ["register_node", "release_path", "rename_path", "reserve_path"]


def reserve_path(context: Context, command: log_pb2.ReservePath) -> Applied:
    """Gives the path to the repository, or tells whose it is already (`created` false)."""
    if not command.path or not command.repository_id or command.group == DIRECTORY_GROUP:
        return _invalid(
            f"path {command.path!a} for repository {command.repository_id!a}"
            f" in group {command.group}"
        )
    holder = _holder(context, command.path)
    if holder is not None:
        return _path_result(command.path, *holder, created=False)
    context.connection.execute(
        "INSERT INTO paths (path, repository_id, group_id, created_ms) VALUES (?, ?, ?, ?)",
        (command.path, command.repository_id, command.group, context.time_ms),
    )
    return _path_result(command.path, command.repository_id, command.group, created=True)


def release_path(context: Context, command: log_pb2.ReleasePath) -> Applied:
    """Frees the path while it still names the given repository."""
    holder = _holder(context, command.path)
    if holder is None or holder[0] != command.repository_id:
        return Applied(
            rejection(
                log_pb2.REJECTION_REASON_PATH_NOT_FOUND,
                f"path {command.path!a} does not name repository {command.repository_id!a}",
            )
        )
    context.connection.execute("DELETE FROM paths WHERE path = ?", (command.path,))
    return _path_result(command.path, *holder, created=False)


def rename_path(context: Context, command: log_pb2.RenamePath) -> Applied:
    """Gives the repository another path, in one step: no reader finds it at both or at neither."""
    if not command.new_path or command.new_path == command.path:
        return _invalid(f"path {command.path!a} renamed to {command.new_path!a}")
    holder = _holder(context, command.path)
    if holder is None or holder[0] != command.repository_id:
        return Applied(
            rejection(
                log_pb2.REJECTION_REASON_PATH_NOT_FOUND,
                f"path {command.path!a} does not name repository {command.repository_id!a}",
            )
        )
    if _holder(context, command.new_path) is not None:
        return Applied(
            rejection(
                log_pb2.REJECTION_REASON_PATH_EXISTS, f"path {command.new_path!a} is taken already"
            )
        )
    context.connection.execute(
        "UPDATE paths SET path = ? WHERE path = ?", (command.new_path, command.path)
    )
    return _path_result(command.new_path, *holder, created=False)


def register_node(context: Context, command: log_pb2.RegisterNode) -> Applied:
    """Writes the node's addresses; the name is the key, the newest registration stands."""
    if not command.name:
        return _invalid("a node has an empty name")
    context.connection.execute(
        "INSERT OR REPLACE INTO nodes (name, replica_id, peer_address, http_url, grpc_address,"
        " metrics_url, version, registered_ms) VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
        (
            command.name,
            command.replica_id,
            command.peer_address,
            command.http_url,
            command.grpc_address,
            command.metrics_url,
            command.version,
            context.time_ms,
        ),
    )
    return Applied(log_pb2.Result(node=log_pb2.NodeResult(name=command.name)))


def _holder(context: Context, path: str) -> tuple[str, int] | None:
    row: tuple[str, int] | None = context.connection.execute(
        "SELECT repository_id, group_id FROM paths WHERE path = ?", (path,)
    ).fetchone()
    return row


def _path_result(path: str, repository_id: str, group: int, *, created: bool) -> Applied:
    result = log_pb2.PathResult(
        path=path, repository_id=repository_id, group=group, created=created
    )
    return Applied(log_pb2.Result(path=result))


def _invalid(message: str) -> Applied:
    return Applied(rejection(log_pb2.REJECTION_REASON_INVALID, message))
