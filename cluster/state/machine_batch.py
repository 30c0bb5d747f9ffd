"""What the entries of one batch share: rows in hand, and rows that are written together at its end.

A transaction of refs costs a statement less for every row that the one before it left here. The
state after a batch is the same as if every entry had been a batch of its own; only the number of
statements differs. All other commands read and write the database as it is: `settle` comes before
them, and nothing is put off until they are done.

Pure, see machine.py.
"""

from __future__ import annotations

import sqlite3
from typing import TYPE_CHECKING, Any

from quorepo.cluster.state.effects import UPDATE_REPOSITORY

if TYPE_CHECKING:
    from quorepo.cluster.state.machine_repositories import Repository

__all__ = ["Batch"]

_Row = tuple[Any, ...]

_INSERTS = {
    "transactions": "INSERT INTO transactions (repository_id, counter, kind, log_index, time_ms,"
    " actor, request_id) VALUES (?, ?, ?, ?, ?, ?, ?)",
    "ref_changes": "INSERT INTO ref_changes (repository_id, counter, position, name, old_oid,"
    " new_oid) VALUES (?, ?, ?, ?, ?, ?)",
    "requests": "INSERT INTO requests (request_id, scope, log_index, age_ms, result)"
    " VALUES (?, ?, ?, ?, ?)",
}


class Batch:
    """Lives as long as one call of `apply_entries`."""

    def __init__(self, connection: sqlite3.Connection) -> None:
        self._connection = connection
        self._deferring = True
        self._rows: dict[str, list[_Row]] = {table: [] for table in _INSERTS}
        self._results: dict[tuple[bytes, str], bytes] = {}  # of the requests in `_rows`
        self._repositories: dict[str, Repository] = {}
        self._changed: dict[str, _Row] = {}  # values for UPDATE_REPOSITORY
        row = connection.execute("SELECT min(age_ms) FROM requests").fetchone()
        self._oldest_ms: int | None = row[0]

    def defer(self, *, on: bool) -> None:
        """Whether rows may be put off from now on; what was put off is written before."""
        self.settle()
        self._repositories.clear()
        self._deferring = on

    def settle(self) -> None:
        """Writes everything that was put off."""
        for table, rows in self._rows.items():
            if rows:
                self._connection.executemany(_INSERTS[table], rows)
                rows.clear()
        self._results.clear()
        if self._changed:
            self._connection.executemany(UPDATE_REPOSITORY, list(self._changed.values()))
            self._changed.clear()

    def insert(self, table: str, row: _Row) -> None:
        """A row of `transactions` or `ref_changes`; no transaction of refs reads these."""
        if self._deferring:
            self._rows[table].append(row)
        else:
            self._connection.execute(_INSERTS[table], row)

    # ---- repositories

    def repository(self, repository_id: str) -> Repository | None:
        """The row as an entry of this batch left it; None when it has to be read."""
        return self._repositories.get(repository_id)

    def update(self, repository: Repository, values: _Row) -> None:
        """The new row; `values` are those of UPDATE_REPOSITORY."""
        if self._deferring:
            self._repositories[repository.repository_id] = repository
            self._changed[repository.repository_id] = values
        else:
            self._connection.execute(UPDATE_REPOSITORY, values)

    # ---- kept answers

    def result(self, request_id: bytes, scope: str) -> bytes | None:
        """The answer that was given to a request, serialized."""
        kept = self._results.get((request_id, scope))
        if kept is not None:
            return kept
        row = self._connection.execute(
            "SELECT result FROM requests WHERE request_id = ? AND scope = ?", (request_id, scope)
        ).fetchone()
        return None if row is None else row[0]

    def keep(
        self, request_id: bytes, scope: str, log_index: int, age_ms: int, result: bytes
    ) -> None:
        """Keeps an answer."""
        self.insert("requests", (request_id, scope, log_index, age_ms, result))
        if self._deferring:
            self._results[request_id, scope] = result
        if self._oldest_ms is None or age_ms < self._oldest_ms:
            self._oldest_ms = age_ms

    def forget(self, before_ms: int, count_max: int) -> None:
        """Drops the oldest answers of an age below `before_ms`, at most `count_max`."""
        if self._oldest_ms is None or self._oldest_ms >= before_ms:
            return
        self.settle()
        old = self._connection.execute(
            "SELECT request_id, scope FROM requests WHERE age_ms < ?"
            " ORDER BY age_ms, request_id, scope LIMIT ?",
            (before_ms, count_max),
        ).fetchall()
        self._connection.executemany("DELETE FROM requests WHERE request_id = ? AND scope = ?", old)
        row = self._connection.execute("SELECT min(age_ms) FROM requests").fetchone()
        self._oldest_ms = row[0]
