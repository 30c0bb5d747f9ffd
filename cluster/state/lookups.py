"""Single rows of a group's state by their keys, on any connection to it."""

from __future__ import annotations

import sqlite3

from quorepo.cluster.state.rows import PathRow, RepositoryRow, repository_row

__all__ = ["REPOSITORY_COLUMNS", "path_in", "repository_in"]

REPOSITORY_COLUMNS = (
    "repository_id, incarnation, counter, object_format, head, prune_epoch, checksum, created_ms,"
    " deleted_ms, detached_head, description, read_only, purge_ms, deleted_path, forked_from"
)


def path_in(connection: sqlite3.Connection, path: str) -> PathRow | None:
    """Which repository a normalized path names, in the directory."""
    row = connection.execute(
        "SELECT path, repository_id, group_id, created_ms FROM paths WHERE path = ?", (path,)
    ).fetchone()
    return None if row is None else PathRow._make(row)


def repository_in(connection: sqlite3.Connection, repository_id: str) -> RepositoryRow | None:
    """A repository's row, also of a deleted one."""
    row = connection.execute(
        f"SELECT {REPOSITORY_COLUMNS} FROM repositories WHERE repository_id = ?",  # noqa: S608
        (repository_id,),
    ).fetchone()
    return None if row is None else repository_row(row)
