"""Reading what the directory says of the members, and the configurations a group had.

Functions over a connection, for the core (StateStore.read) and the edge (StateReader.read) alike.
A state that an older program wrote may lack the tables: it says nothing then.
"""

from __future__ import annotations

import sqlite3
from typing import NamedTuple

from quorepo.cluster.state.levels import LEVEL_MIN, cluster_level
from quorepo.cluster.state.machine_membership import CANCELLING, RUNNING
from quorepo.internal.v1 import log_pb2

__all__ = [
    "ChangeRow",
    "ConfigurationRow",
    "Intentions",
    "JoinTokenRow",
    "change_by_id",
    "changes",
    "configurations",
    "intentions",
    "join_tokens",
    "running_change",
]

_COLUMNS = (
    "change_id, kind, node, replica_id, former_replica_id, peer_address, keep_learner, forced,"
    " actor, state, begun_index, started_ms, ended_ms"
)


class ChangeRow(NamedTuple):
    """A change of the members; see additions.sql."""

    change_id: bytes
    kind: int
    node: str
    replica_id: str
    former_replica_id: str
    peer_address: str
    keep_learner: int
    forced: int
    actor: str
    state: int
    begun_index: int
    started_ms: int
    ended_ms: int

    @property
    def comes(self) -> bool:
        """Whether a replica comes with it."""
        return self.kind in (log_pb2.MEMBERSHIP_KIND_ADD, log_pb2.MEMBERSHIP_KIND_REPLACE)

    @property
    def cancelling(self) -> bool:
        return self.state == CANCELLING

    @property
    def ended(self) -> bool:
        return self.state not in (RUNNING, CANCELLING)


class ConfigurationRow(NamedTuple):
    """A configuration that came into force."""

    log_index: int
    time_ms: int
    configuration: log_pb2.Configuration


class JoinTokenRow(NamedTuple):
    """A join token as the directory knows it; see additions.sql."""

    token_digest: bytes
    node: str
    expires_ms: int
    actor: str
    created_ms: int
    used_by: str
    used_ms: int


class Intentions(NamedTuple):
    """What whoever leads a group has to see to."""

    running: ChangeRow | None
    draining: frozenset[str]  # names of nodes
    kept_learners: frozenset[str]  # replica ids
    level: int = LEVEL_MIN  # of the cluster
    registered: tuple[tuple[str, str, str], ...] = ()  # name, replica id, version of every node


def intentions(connection: sqlite3.Connection) -> Intentions:
    """The running change and the marks of all nodes."""
    nodes = connection.execute("SELECT name, replica_id, version FROM nodes").fetchall()
    registered, level = tuple(nodes), cluster_level(connection)
    if not _known(connection):
        return Intentions(None, frozenset(), frozenset(), level, registered)
    marks = connection.execute("SELECT name, draining, keep_learner FROM node_marks").fetchall()
    return Intentions(
        running_change(connection),
        frozenset(name for name, draining, _ in marks if draining),
        frozenset(keep for _, _, keep in marks if keep),
        level,
        registered,
    )


def running_change(connection: sqlite3.Connection) -> ChangeRow | None:
    """The change that is under way."""
    if not _known(connection):
        return None
    row = connection.execute(
        f"SELECT {_COLUMNS} FROM membership_changes WHERE state IN (?, ?)",  # noqa: S608
        (RUNNING, CANCELLING),
    ).fetchone()
    return None if row is None else ChangeRow._make(row)


def change_by_id(connection: sqlite3.Connection, change_id: bytes) -> ChangeRow | None:
    """A change that is remembered."""
    if not _known(connection):
        return None
    row = connection.execute(
        f"SELECT {_COLUMNS} FROM membership_changes WHERE change_id = ?",  # noqa: S608
        (change_id,),
    ).fetchone()
    return None if row is None else ChangeRow._make(row)


def changes(connection: sqlite3.Connection, limit: int) -> list[ChangeRow]:
    """The newest changes, the newest first."""
    if not _known(connection):
        return []
    rows = connection.execute(
        f"SELECT {_COLUMNS} FROM membership_changes"  # noqa: S608
        " ORDER BY begun_index DESC LIMIT ?",
        (limit,),
    ).fetchall()
    return [ChangeRow._make(row) for row in rows]


def configurations(connection: sqlite3.Connection, limit: int) -> list[ConfigurationRow]:
    """The newest configurations of the group, the newest first."""
    if not _known(connection):
        return []
    rows = connection.execute(
        "SELECT log_index, time_ms, configuration FROM configurations"
        " ORDER BY log_index DESC LIMIT ?",
        (limit,),
    ).fetchall()
    return [
        ConfigurationRow(index, time_ms, log_pb2.Configuration.FromString(data))
        for index, time_ms, data in rows
    ]


def join_tokens(connection: sqlite3.Connection) -> list[JoinTokenRow]:
    """The tokens that are remembered, the newest first."""
    if not _known(connection):
        return []
    rows = connection.execute(
        "SELECT token_digest, node, expires_ms, actor, created_ms, used_by, used_ms"
        " FROM join_tokens ORDER BY created_ms DESC, token_digest"
    ).fetchall()
    return [JoinTokenRow._make(row) for row in rows]


def _known(connection: sqlite3.Connection) -> bool:
    return (
        connection.execute(
            "SELECT 1 FROM sqlite_master WHERE name = 'membership_changes'"
        ).fetchone()
        is not None
    )
