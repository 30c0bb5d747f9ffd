"""Which packs the live repositories of a state need, with what it takes to fetch one.

Reads only; used on copies of a state as well as on the state in force.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator
from typing import NamedTuple

from quorepo.storage.objectformat import ObjectFormat

__all__ = ["PackPlace", "live_packs"]


class PackPlace(NamedTuple):
    """One pack of one repository."""

    repository_id: str
    object_format: ObjectFormat
    digest: bytes  # SHA-256 of the pack file
    index_digest: bytes  # SHA-256 of the .idx file
    pack_bytes: int
    index_bytes: int


# Tombstones that can be taken back; before format 2 there were none (a copy may come from a node
# that was not upgraded yet).
_KEPT = {True: "r.purge_ms > (SELECT log_time_ms FROM position)", False: "FALSE"}


def _kept(connection: sqlite3.Connection) -> str:
    return _KEPT[connection.execute("PRAGMA user_version").fetchone()[0] >= 2]


def live_packs(
    connection: sqlite3.Connection, deleted_after_ms: int | None = None
) -> Iterator[PackPlace]:
    """The packs of all repositories that are not deleted or can be undeleted, by repository; with
    `deleted_after_ms` also of those that were deleted after that log time."""
    horizon = (1 << 62) if deleted_after_ms is None else deleted_after_ms
    rows = connection.execute(
        "SELECT p.repository_id, r.object_format, p.digest, p.index_digest, p.pack_bytes,"  # noqa: S608
        " p.index_bytes FROM packs AS p JOIN repositories AS r USING (repository_id)"
        f" WHERE r.deleted_ms IS NULL OR r.deleted_ms > ? OR {_kept(connection)}"
        " ORDER BY p.repository_id, p.added_counter, p.digest",
        (horizon,),
    )
    for repository_id, number, digest, index_digest, pack_bytes, index_bytes in rows:
        yield PackPlace(
            repository_id, ObjectFormat.from_number(number), digest, index_digest, pack_bytes,
            index_bytes,
        )  # fmt: skip


def disposable_repositories(
    connection: sqlite3.Connection, horizon_ms: int, first_index: int
) -> set[str]:
    """Repositories deleted at or before log time `horizon_ms` by an entry before `first_index`,
    for good."""
    rows = connection.execute(
        "SELECT r.repository_id FROM repositories AS r JOIN transactions AS t"  # noqa: S608
        " ON t.repository_id = r.repository_id AND t.kind = 'delete'"
        " WHERE r.deleted_ms IS NOT NULL AND r.deleted_ms <= ?"
        f" AND ({_kept(connection)}) IS NOT TRUE"
        " GROUP BY r.repository_id HAVING max(t.log_index) < ?",
        (horizon_ms, first_index),
    )
    return {row[0] for row in rows}


def kept_removed_packs(
    connection: sqlite3.Connection, horizon_ms: int, first_index: int
) -> set[bytes]:
    """Digests that some repository lost behind log time `horizon_ms`, or by an entry from
    `first_index` on: their files are still kept."""
    rows = connection.execute(
        "SELECT DISTINCT digest FROM removed_packs WHERE removed_ms > ? OR removed_index >= ?",
        (horizon_ms, first_index),
    )
    return {row[0] for row in rows}
