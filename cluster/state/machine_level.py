"""The machine's command on the cluster's level. Pure, see machine.py."""

from __future__ import annotations

from quorepo.cluster.state.commands import rejection
from quorepo.cluster.state.effects import Applied, Context
from quorepo.internal.v1 import log_pb2

__all__ = ["level_reached", "raise_level"]


def level_reached(context: Context) -> int:
    """The cluster's level before this entry."""
    row = context.connection.execute("SELECT level FROM cluster_level").fetchone()
    return 1 if row is None else int(row[0])


def raise_level(context: Context, command: log_pb2.RaiseLevel) -> Applied:
    """All members know it, says whoever leads. It never falls again."""
    if command.level < 1:
        return Applied(
            rejection(log_pb2.REJECTION_REASON_INVALID, f"there is no level {command.level}")
        )
    reached = max(command.level, level_reached(context))
    if reached == command.level:
        context.connection.execute(
            "INSERT OR REPLACE INTO cluster_level (singleton, level, raised_index, raised_ms)"
            " VALUES (1, ?, ?, ?)",
            (reached, context.log_index, context.time_ms),
        )
    return Applied(log_pb2.Result(level=log_pb2.LevelResult(level=reached)))
