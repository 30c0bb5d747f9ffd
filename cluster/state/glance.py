"""A look at a group's state that never waits: for the one thread that others wait for.

A reader (`reader.py`) takes a transaction per call, and may have to wait for SQLite or read much.
This reads single rows by their keys, and tells cheaply whether anything can have changed since it
was asked last. Whatever is in the way (no state yet, another generation's file, a busy or damaged
one) is answered with "cannot say": then a reader in a thread is asked, and says what is wrong.

Like a reader it looks at CURRENT and for a refused disk before every answer.
"""

from __future__ import annotations

import os
import sqlite3
from collections.abc import Callable
from typing import TypeVar

from quorepo.cluster.state.database import check_format, connect_reader
from quorepo.cluster.state.generations import current_generation, state_path
from quorepo.cluster.state.lookups import path_in, repository_in
from quorepo.cluster.state.rows import PathRow, RepositoryRow
from quorepo.cluster.wrong_disk import FILE_NAME
from quorepo.storage.errors import FatalError, QuorepoError
from quorepo.storage.layout import GroupLayout

__all__ = ["Glance", "Moment"]

_Row = TypeVar("_Row")

# While it is the same, so is all that can be read: (how often a file was opened, SQLite's count of
# the changes that this connection saw others make).
Moment = tuple[int, int]


class Glance:
    """The state of one group, for one thread."""

    def __init__(self, layout: GroupLayout) -> None:
        self._layout = layout
        self._wrong_disk = f"{layout.data_dir}/{FILE_NAME}"
        self._connection: sqlite3.Connection | None = None
        self._generation = self._opened = 0

    def close(self) -> None:
        """Closes the file; a later question opens it again."""
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def moment(self) -> Moment | None:
        """Of the state as it is now; None: cannot say. What is read while the moment is the same
        as an earlier one is what could be read then.
        """
        if os.path.exists(self._wrong_disk):
            return None
        try:
            generation = current_generation(self._layout)
            if generation is None:
                return None
            if self._connection is None or generation != self._generation:
                self._open(generation)
            assert self._connection is not None
            (version,) = self._connection.execute("PRAGMA data_version").fetchone()
        except (sqlite3.Error, OSError, QuorepoError, FatalError):
            self.close()
            return None
        return self._opened, version

    def path(self, path: str) -> PathRow | None:
        """Which repository a normalized path names, by the file of the last `moment`; None: none,
        or cannot say."""
        return self._read(lambda connection: path_in(connection, path))

    def repository(self, repository_id: str) -> RepositoryRow | None:
        """The row of a repository, a deleted one's too; None: none, or cannot say."""
        return self._read(lambda connection: repository_in(connection, repository_id))

    def _read(self, function: Callable[[sqlite3.Connection], _Row | None]) -> _Row | None:
        if self._connection is None:
            return None
        try:
            return function(self._connection)
        except sqlite3.Error:
            self.close()
            return None

    def _open(self, generation: int) -> None:
        self.close()
        path = state_path(self._layout, generation)
        connection = connect_reader(path, busy_timeout_s=0)
        try:
            check_format(connection, path, self._layout.group)
        except BaseException:
            connection.close()
            raise
        self._connection, self._generation = connection, generation
        self._opened += 1
