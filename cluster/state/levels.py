"""Levels: which commands of the log the members know. Pure; see cluster/DESIGN.md, "Two versions".

A level is raised with every release that adds a kind of command, or a meaning to one; a kind is
proposed only once the cluster is at its level. A node tells its level with the version that it
registers: that string is stored by the oldest program too, alike on all replicas.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Mapping

from quorepo.internal.v1 import log_pb2

__all__ = ["LEVEL", "LEVEL_MIN", "SINCE", "cluster_level", "level_of", "registered_version", "told"]

LEVEL_MIN = 1
LEVEL = 3  # of this program

# The level at which each kind of command came. A member of a lower one ends on such an entry.
SINCE: Mapping[str, int] = {
    "create_repository": 1,
    "delete_repository": 1,
    "transaction": 1,
    "replace_packs": 1,
    "prune": 1,
    "reserve_path": 1,
    "release_path": 1,
    "register_node": 1,
    "set_head": 2,
    "update_repository": 2,
    "undelete_repository": 2,
    "fork_repository": 2,
    "rename_path": 2,
    "add_join_token": 2,
    "use_join_token": 2,
    "revoke_join_token": 2,
    "begin_membership_change": 2,
    "end_membership_change": 2,
    "set_node_draining": 2,
    "raise_level": 2,
}

_MARK = "+level."


def level_of(command: log_pb2.Command) -> int:
    """What every member has to know before this may be proposed."""
    kind = command.WhichOneof("kind") or ""
    if kind == "transaction" and any(
        pack.encoding == log_pb2.PACK_ENCODING_INLINE for pack in command.transaction.packs_added
    ):
        return 3  # an older program refuses the transaction that everybody else applies
    if kind == "delete_repository" and (
        command.delete_repository.retention_ms or command.delete_repository.path
    ):
        return 2  # fields that a program of level 1 would not read, and so delete at once
    if kind == "transaction" and (command.transaction.must_create or command.transaction.head):
        return 2  # likewise: it would write into a repository that is there
    return SINCE[kind]


def registered_version(version: str, level: int) -> str:
    """What a node registers as its version: `0.1.0+level.2`."""
    return f"{version}{_MARK}{level}"


def told(registered: str) -> tuple[str, int]:
    """The version and the level that a node registered. Who told none has the first."""
    version, mark, level = registered.partition(_MARK)
    if not mark or not (level.isascii() and level.isdigit()):
        return registered, LEVEL_MIN
    return version, int(level)


def cluster_level(connection: sqlite3.Connection) -> int:
    """The level that was reached, in the directory's state."""
    known = connection.execute("SELECT 1 FROM sqlite_master WHERE name = 'cluster_level'")
    if known.fetchone() is None:  # written by an older program
        return LEVEL_MIN
    row = connection.execute("SELECT level FROM cluster_level").fetchone()
    return LEVEL_MIN if row is None else int(row[0])
