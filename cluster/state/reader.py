"""Reading a group's state from any process or thread: what the last committed batch left.

A reader opens the state file read-only and takes a short transaction per call; nothing is held
while its caller streams an answer. It looks at CURRENT before each call and follows it to another
generation, so whoever was told "applied up to N of generation G" reads at least that. Whether a
read has to wait for an index is the caller's matter.

Lists are pages by key (`after`, `limit`): a write between two pages moves nothing that was or will
be listed. Refs and packs of a deleted repository are not shown, though the database keeps them.
"""

from __future__ import annotations

import contextlib
import sqlite3
import threading
from collections.abc import Callable, Iterator
from typing import TypeVar

from quorepo.cluster.state.database import check_format, connect_reader, reader_error
from quorepo.cluster.state.generations import current_generation, state_path
from quorepo.cluster.state.lookups import REPOSITORY_COLUMNS, path_in, repository_in
from quorepo.cluster.state.reader_history import HistoryReads
from quorepo.cluster.state.rows import (
    NodeRow,
    PackRow,
    PackUse,
    PathRow,
    PruneRoots,
    RefChangeRow,
    RefRow,
    RepositoryChanges,
    RepositoryRow,
    RepositorySnapshot,
    repository_row,
)
from quorepo.cluster.wrong_disk import refuse_wrong_disk
from quorepo.internal.v1 import log_pb2
from quorepo.storage.errors import NotFound, Unavailable
from quorepo.storage.layout import GroupLayout

__all__ = ["PruneRoots", "StateReader"]

T = TypeVar("T")

_IDLE_CONNECTIONS_MAX = 8
_PACK_COLUMNS = (
    "digest, index_digest, pack_bytes, index_bytes, object_count, thin_bytes, thin_object_count,"
    " added_counter, arrived_ms"
)
# Its parameter is the repository id once more; looked up once per query.
_LIVE = "EXISTS (SELECT 1 FROM repositories WHERE repository_id = ? AND deleted_ms IS NULL)"


class StateReader(HistoryReads):
    """Read access to the state of one group. Thread-safe; every call reads one committed snapshot.

    Every method raises Unavailable when this node has no state of the group (yet) or SQLite is
    busy for longer than the timeout, and FatalError when the file is damaged.
    """

    def __init__(self, layout: GroupLayout, *, busy_timeout_s: float = 5.0) -> None:
        self._layout = layout
        self._busy_timeout_s = busy_timeout_s
        self._lock = threading.Lock()
        self._idle: list[tuple[int, sqlite3.Connection]] = []
        self._closed = False

    def close(self) -> None:
        """Closes idle connections; one that is in use is closed by its user."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for _, connection in idle:
            connection.close()

    # ---- storage groups

    def repository(self, repository_id: str) -> RepositoryRow | None:
        """The repository's row, also of a deleted one; None for an unknown id."""
        with self._reading() as (_, connection):
            return repository_in(connection, repository_id)

    def repositories(self, after: str = "", limit: int = 1000) -> list[RepositoryRow]:
        """Repositories by id, deleted ones too, from behind `after`."""
        with self._reading() as (_, connection):
            rows = connection.execute(
                f"SELECT {REPOSITORY_COLUMNS} FROM repositories WHERE repository_id > ?"  # noqa: S608
                " ORDER BY repository_id LIMIT ?",
                (after, limit),
            ).fetchall()
        return [repository_row(row) for row in rows]

    def refs(
        self,
        repository_id: str,
        prefix: bytes = b"",
        after: bytes = b"",
        limit: int | None = None,
    ) -> list[RefRow]:
        """Refs sorted by name: those that start with `prefix`, from behind the name `after`."""
        with self._reading() as (_, connection):
            return _refs(connection, repository_id, prefix, after, limit)

    def ref(self, repository_id: str, name: bytes) -> RefRow | None:
        """One ref by its full name."""
        with self._reading() as (_, connection):
            row = connection.execute(
                f"SELECT name, oid FROM refs WHERE repository_id = ? AND name = ? AND {_LIVE}",  # noqa: S608
                (repository_id, name, repository_id),
            ).fetchone()
        return None if row is None else RefRow._make(row)

    def packs(self, repository_id: str) -> list[PackRow]:
        """The packs whose objects the repository has, the oldest first."""
        with self._reading() as (_, connection):
            return _packs(connection, repository_id)

    def snapshot(self, repository_id: str) -> RepositorySnapshot:
        """Row, refs and packs of one moment. Raises NotFound: unknown or deleted repository."""
        with self._reading() as (generation, connection):
            row = repository_in(connection, repository_id)
            if row is not None and not row.deleted:
                return RepositorySnapshot(
                    repository=row,
                    refs=_refs(connection, repository_id, b"", b"", None),
                    packs=_packs(connection, repository_id),
                    generation=generation,
                    applied_index=_applied_index(connection),
                )
        raise NotFound(f"repository {repository_id!r} not found")

    def changes_since(
        self, repository_id: str, revision: tuple[int, int], generation: int, changes_max: int
    ) -> RepositoryChanges | None:
        """What `snapshot` would read, for who has the refs of `revision` from state `generation`.

        None when they are no help: of another state file or another incarnation, newer than what
        this node has, more than `changes_max` changes old, or the repository is gone.
        """
        incarnation, counter = revision
        with self._reading() as (found, connection):
            row = repository_in(connection, repository_id)
            if row is None or row.deleted or found != generation:
                return None
            if row.incarnation != incarnation or row.counter < counter:
                return None
            changes = connection.execute(
                "SELECT name, new_oid FROM ref_changes WHERE repository_id = ? AND counter > ?"
                " ORDER BY counter, position LIMIT ?",
                (repository_id, counter, changes_max + 1),
            ).fetchall()
            if len(changes) > changes_max:
                return None
            return RepositoryChanges(row, dict(changes), _packs(connection, repository_id))

    def pack_use(self, after: str = "", limit: int = 1000, packs_min: int = 2) -> list[PackUse]:
        """By repository id, from behind `after`: living repositories of at least so many packs."""
        with self._reading() as (_, connection):
            rows = connection.execute(
                "SELECT repository_id, count(*), sum(pack_bytes),"
                " sum(max(0, pack_bytes - thin_bytes - 32)) FROM packs"
                " JOIN repositories USING (repository_id)"
                " WHERE repository_id > ? AND deleted_ms IS NULL"
                " GROUP BY repository_id HAVING count(*) >= ? ORDER BY repository_id LIMIT ?",
                (after, packs_min, limit),
            ).fetchall()
        return [PackUse._make(row) for row in rows]

    def prune_roots(self, repository_id: str, since_ms: int) -> PruneRoots | None:
        """What refs point to, and pointed to at log time `since_ms` or later. None: unknown id."""
        with self._reading() as (_, connection):
            row = repository_in(connection, repository_id)
            if row is None:
                return None
            recent = connection.execute(
                "SELECT DISTINCT c.old_oid FROM transactions AS t"
                " JOIN ref_changes AS c USING (repository_id, counter)"
                " WHERE t.repository_id = ? AND t.time_ms >= ? AND c.old_oid IS NOT NULL"
                " ORDER BY c.old_oid",
                (repository_id, since_ms),
            ).fetchall()
            tips = {ref.oid for ref in _refs(connection, repository_id, b"", b"", None)}
            if row.detached_head is not None:
                tips.add(row.detached_head)
            return PruneRoots(
                counter=row.counter,
                deleted=row.deleted,
                tips=tuple(sorted(tips)),
                recent=tuple(oid for (oid,) in recent),
                packs=tuple(pack.digest for pack in _packs(connection, repository_id)),
            )

    def ref_changes(
        self, repository_id: str, after_counter: int = 0, limit: int = 1000
    ) -> list[RefChangeRow]:
        """What happened to refs behind the revision counter `after_counter`, in order.

        Also of deleted repositories. A page may end inside a transaction: go on from the last
        complete counter.
        """
        with self._reading() as (_, connection):
            rows = connection.execute(
                "SELECT c.counter, t.log_index, t.time_ms, t.actor, c.name, c.old_oid, c.new_oid"
                " FROM ref_changes AS c JOIN transactions AS t USING (repository_id, counter)"
                " WHERE c.repository_id = ? AND c.counter > ?"
                " ORDER BY c.counter, c.position LIMIT ?",
                (repository_id, after_counter, limit),
            ).fetchall()
        return [RefChangeRow._make(row) for row in rows]

    def undeletable(self, after: str, limit: int) -> list[RepositoryRow]:
        """Tombstones that can be taken back, by repository id, from behind `after`."""
        with self._reading() as (_, connection):
            rows = connection.execute(
                f"SELECT {REPOSITORY_COLUMNS} FROM repositories WHERE deleted_ms IS NOT NULL"  # noqa: S608
                " AND purge_ms > (SELECT log_time_ms FROM position) AND repository_id > ?"
                " ORDER BY repository_id LIMIT ?",
                (after, limit),
            ).fetchall()
        return [repository_row(row) for row in rows]

    # ---- the directory

    def path(self, path: str) -> PathRow | None:
        """Which repository a normalized path names."""
        with self._reading() as (_, connection):
            return path_in(connection, path)

    def paths(self, after: str = "", limit: int = 1000, prefix: str = "") -> list[PathRow]:
        """Paths sorted by UTF-8 bytes: those that start with `prefix`, from behind `after`."""
        behind = after >= prefix
        # 0xff sorts behind every character of UTF-8.
        end = prefix.encode("utf-8") + b"\xff"
        with self._reading() as (_, connection):
            rows = connection.execute(
                "SELECT path, repository_id, group_id, created_ms FROM paths"  # noqa: S608
                f" WHERE path {'>' if behind else '>='} ? AND path < CAST(? AS TEXT)"
                " ORDER BY path LIMIT ?",
                (after if behind else prefix, end, limit),
            ).fetchall()
        return [PathRow._make(row) for row in rows]

    def paths_of(self, repository_id: str) -> list[PathRow]:
        """The paths that name a repository (at most one, today)."""
        with self._reading() as (_, connection):
            rows = connection.execute(
                "SELECT path, repository_id, group_id, created_ms FROM paths"
                " WHERE repository_id = ? ORDER BY path",
                (repository_id,),
            ).fetchall()
        return [PathRow._make(row) for row in rows]

    def nodes(self) -> list[NodeRow]:
        """The registered nodes by name."""
        with self._reading() as (_, connection):
            rows = connection.execute(
                "SELECT name, replica_id, peer_address, http_url, grpc_address, metrics_url,"
                " version, registered_ms FROM nodes ORDER BY name"
            ).fetchall()
        return [NodeRow._make(row) for row in rows]

    def was_admitted(self, replica_id: str) -> bool:
        """Did the replica come with a join token?"""
        with self._reading() as (_, connection):
            found = connection.execute(
                "SELECT 1 FROM join_tokens WHERE used_by = ? LIMIT 1", (replica_id,)
            ).fetchone()
        return found is not None

    # ---- any group

    def read(self, function: Callable[[sqlite3.Connection], T]) -> T:
        """What `function` reads in one transaction."""
        with self._reading() as (_, connection):
            return function(connection)

    def result_of(
        self, request_id: bytes, repository_id: str | None = None
    ) -> log_pb2.Result | None:
        """The kept answer to a request; `repository_id` narrows it down ("": the directory's)."""
        with self._reading() as (_, connection):
            row = connection.execute(
                "SELECT result FROM requests WHERE request_id = ? AND scope = coalesce(?, scope)"
                " ORDER BY scope LIMIT 1",
                (request_id, repository_id),
            ).fetchone()
        return None if row is None else log_pb2.Result.FromString(row[0])

    def log_time_ms(self) -> int:
        """Log time of the last entry in the state, Unix ms."""
        with self._reading() as (_, connection):
            time_ms: int = connection.execute("SELECT log_time_ms FROM position").fetchone()[0]
            return time_ms

    def applied_index(self) -> int:
        """Index of the last entry in the state."""
        return self.applied()[1]

    def applied(self) -> tuple[int, int]:
        """(generation of the state file, index of the last entry in it)."""
        with self._reading() as (generation, connection):
            return generation, _applied_index(connection)

    def configuration(self) -> log_pb2.Configuration | None:
        """The group's newest applied configuration; None while the founding one is in force."""
        with self._reading() as (_, connection):
            row = connection.execute("SELECT configuration FROM position").fetchone()
        return None if row[0] is None else log_pb2.Configuration.FromString(row[0])

    # ---- connections

    @contextlib.contextmanager
    def _reading(self) -> Iterator[tuple[int, sqlite3.Connection]]:
        """A connection to the current generation, inside a transaction."""
        connection: sqlite3.Connection | None = None
        try:
            refuse_wrong_disk(self._layout.data_dir)
            generation, connection = self._take()
            connection.execute("BEGIN")
            yield generation, connection
            connection.execute("COMMIT")
        except BaseException as error:
            if connection is not None:
                connection.close()
            if isinstance(error, sqlite3.Error):
                raise reader_error(error, f"reading group {self._layout.group}") from error
            raise
        self._give_back(generation, connection)

    def _take(self) -> tuple[int, sqlite3.Connection]:
        generation = self._current()
        stale = []
        try:
            with self._lock:
                while self._idle:
                    found, connection = self._idle.pop()
                    if found == generation:
                        return generation, connection
                    stale.append(connection)
        finally:
            for connection in stale:
                connection.close()
        return self._connect(generation)

    def _connect(self, generation: int) -> tuple[int, sqlite3.Connection]:
        while True:
            path = state_path(self._layout, generation)
            try:
                connection = connect_reader(path, self._busy_timeout_s)
                break
            except sqlite3.OperationalError:
                # The file went away: CURRENT moved on in between, or else something is wrong.
                found = self._current()
                if found == generation:
                    raise
                generation = found
        try:
            check_format(connection, path, self._layout.group)
        except BaseException:
            connection.close()
            raise
        return generation, connection

    def _current(self) -> int:
        generation = current_generation(self._layout)
        if generation is None:
            raise Unavailable(
                f"this node has no state of group {self._layout.group} yet", next_step="try again"
            )
        return generation

    def _give_back(self, generation: int, connection: sqlite3.Connection) -> None:
        with self._lock:
            if not self._closed and len(self._idle) < _IDLE_CONNECTIONS_MAX:
                self._idle.append((generation, connection))
                return
        connection.close()


def _refs(
    connection: sqlite3.Connection,
    repository_id: str,
    prefix: bytes,
    after: bytes,
    limit: int | None,
) -> list[RefRow]:
    conditions = ["repository_id = ?", _LIVE]
    parameters: list[str | bytes | int] = [repository_id, repository_id]
    # One lower bound only: with two, SQLite may search by the one and filter by the other.
    behind = after >= prefix
    for condition, value in (
        ("name > ?" if behind else "name >= ?", after if behind else prefix),
        ("name < ?", _after_prefix(prefix)),
    ):
        if value:
            parameters.append(value)
            conditions.append(condition)
    parameters.append(-1 if limit is None else limit)
    rows = connection.execute(
        f"SELECT name, oid FROM refs WHERE {' AND '.join(conditions)}"  # noqa: S608
        " ORDER BY name LIMIT ?",
        parameters,
    )
    return [RefRow._make(row) for row in rows]


def _after_prefix(prefix: bytes) -> bytes:
    """The smallest bytes behind everything that starts with `prefix`; empty: there are none."""
    stem = prefix.rstrip(b"\xff")
    return stem[:-1] + bytes([stem[-1] + 1]) if stem else b""


def _packs(connection: sqlite3.Connection, repository_id: str) -> list[PackRow]:
    rows = connection.execute(
        f"SELECT {_PACK_COLUMNS} FROM packs"  # noqa: S608
        f" WHERE repository_id = ? AND {_LIVE} ORDER BY added_counter, digest",
        (repository_id, repository_id),
    ).fetchall()
    return [PackRow._make(row) for row in rows]


def _applied_index(connection: sqlite3.Connection) -> int:
    index: int = connection.execute("SELECT applied_index FROM position").fetchone()[0]
    return index
