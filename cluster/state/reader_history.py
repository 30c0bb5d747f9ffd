"""The part of `reader.StateReader` that reads the history of all repositories in log order."""

from __future__ import annotations

import contextlib
import sqlite3
from collections.abc import Iterator

from quorepo.cluster.state.rows import TransactionRow

__all__ = ["HistoryReads"]


class HistoryReads:
    """Reads of one committed snapshot each; see `StateReader` for what they raise."""

    @contextlib.contextmanager
    def _reading(self) -> Iterator[tuple[int, sqlite3.Connection]]:
        raise NotImplementedError  # StateReader's
        yield

    def transactions(self, after_index: int, limit: int) -> tuple[list[TransactionRow], int, int]:
        """All repositories' transactions behind a log index, in log order.

        Returns: at most `limit` of them, and the log index and log time (Unix ms) up to which
        there are no others: those of the last one, or of the state when it was the last.
        """
        with self._reading() as (_, connection):
            rows = connection.execute(
                "SELECT t.log_index, t.repository_id, r.incarnation, t.counter, t.kind, t.time_ms,"
                " t.actor, t.request_id FROM transactions AS t JOIN repositories AS r"
                " USING (repository_id) WHERE t.log_index > ? ORDER BY t.log_index LIMIT ?",
                (after_index, limit),
            ).fetchall()
            found = [TransactionRow._make(row) for row in rows]
            if len(found) == limit:
                return found, found[-1].log_index, found[-1].time_ms
            index, time_ms = connection.execute(
                "SELECT applied_index, log_time_ms FROM position"
            ).fetchone()
        return found, index, time_ms

    def changes_of(
        self, repository_id: str, counter: int, after_position: int, limit: int
    ) -> list[tuple[int, bytes, bytes | None, bytes | None]]:
        """(position, name, old, new) of one transaction's ref changes behind a position."""
        with self._reading() as (_, connection):
            return connection.execute(
                "SELECT position, name, old_oid, new_oid FROM ref_changes WHERE repository_id = ?"
                " AND counter = ? AND position > ? ORDER BY position LIMIT ?",
                (repository_id, counter, after_position, limit),
            ).fetchall()
