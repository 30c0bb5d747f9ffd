"""The writer's side of a group's state: opening it, applying batches, syncing it, copying it.

Owns the one writing connection and the order of the edges between SQLite and the files:

    BEGIN IMMEDIATE, apply all entries of the batch
    promote packs          before the commit: no committed ref may point into quarantine
    store packs            those whose bytes are in the entry: written, and durable before a sync
    COMMIT                 entries, applied index, term, log time, configuration: all or nothing
    make the commit durable, then
    retire repositories    and removed packs; after: a power loss may take SQLite back to an
                           earlier entry, and what is replayed from there must still find the
                           packs in place

A crash anywhere leaves the state after some earlier batch, and files that the replay of the
journal finds done already. A crash between a deletion's commit and its retirement is repaired by
whoever opens the store, with `tombstones()`. Any failure ends the process as a FatalError; the
store refuses to go on after one.

What an entry means is decided in machine.py, which files are moved how in storage/layout.py.
"""

from __future__ import annotations

import contextlib
import hashlib
import sqlite3
import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol, TypeVar

from quorepo.cluster.raft.interface import Entry
from quorepo.cluster.state.database import (
    add_tables,
    check_format,
    connect_reader,
    connect_writer,
    fatal_from_os,
    fatal_from_sqlite,
    upgrade,
)
from quorepo.cluster.state.effects import Applied
from quorepo.cluster.state.export import export_lines
from quorepo.cluster.state.generations import (
    create_first,
    current_generation,
    remove_stale,
    state_path,
)
from quorepo.cluster.state.machine import Position, apply_entries, load_position
from quorepo.internal.v1 import log_pb2
from quorepo.storage.errors import FatalError
from quorepo.storage.failpoints import failpoint
from quorepo.storage.layout import GroupLayout, fsync_dir, fsync_file
from quorepo.storage.objectformat import ObjectFormat

__all__ = ["FileActions", "StateStore"]

_BUSY_TIMEOUT_S = 5.0

T = TypeVar("T")


class FileActions(Protocol):
    """What apply does to files; both are idempotent, and repeated after a crash."""

    def promote(self, repository_id: str, digest: bytes, object_format: ObjectFormat) -> None:
        """Moves a pack from quarantine into the repository, durably, before the commit."""

    def store(
        self, repository_id: str, pack: log_pb2.PackAddition, object_format: ObjectFormat
    ) -> None:
        """Writes a pack that the entry holds into the repository, before the commit; durable with
        the next `sync`, up to which the journal keeps the entry."""

    def retire(self, repository_id: str) -> None:
        """Moves a deleted repository's files away, after the commit is durable."""

    def retire_pack(self, repository_id: str, digest: bytes) -> None:
        """Moves a removed pack out of its repository, after the commit is durable."""


class StateStore:
    """The state of one group, opened by its only writer. Use `open`.

    Its methods may be called from any thread; batches exclude each other.
    """

    def __init__(
        self, layout: GroupLayout, group: int, generation: int, connection: sqlite3.Connection
    ) -> None:
        self._layout = layout
        self._group = group
        self._generation = generation
        self._connection = connection
        self._lock = threading.Lock()
        self._refusal = ""  # why nothing may be applied any more
        # Makes durable what `FileActions.store` wrote: before the state is, since the journal may
        # be cut up to where that is durable.
        self.sync_files: Callable[[], None] = lambda: None
        self._position = load_position(connection)

    @classmethod
    def open(cls, layout: GroupLayout) -> StateStore:
        """Opens the state that CURRENT names, or makes the empty state of a new group.

        Everything in it is durable when this returns. Raises FatalError: damage, an I/O error,
        another writer, a newer format, another group's state.
        """
        group = layout.group
        try:
            # CURRENT may have been renamed into place by a process that died before its sync.
            fsync_dir(layout.state_dir)
            generation = current_generation(layout) or create_first(layout, group)
            path = state_path(layout, generation)
            connection = connect_writer(path)
            try:
                upgrade(connection)
                check_format(connection, path, group)
                add_tables(connection)
                store = cls(layout, group, generation, connection)
                store.sync()
                remove_stale(layout, generation)
            except BaseException:
                connection.close()
                raise
        except sqlite3.Error as error:
            raise fatal_from_sqlite(error, f"opening the state of group {group}") from error
        except OSError as error:
            raise fatal_from_os(error, f"opening the state of group {group}") from error
        return store

    # ---- where it is

    @property
    def group(self) -> int:
        return self._group

    @property
    def generation(self) -> int:
        """The generation of the state file in use."""
        return self._generation

    @property
    def position(self) -> Position:
        """The position after the last committed batch."""
        return self._position

    @property
    def applied_index(self) -> int:
        return self._position.applied_index

    @property
    def applied_term(self) -> int:
        return self._position.applied_term

    @property
    def log_time_ms(self) -> int:
        """Log time, Unix ms; never goes back."""
        return self._position.log_time_ms

    @property
    def configuration(self) -> bytes | None:
        """The newest applied Configuration, serialized; None while the founding one is in force."""
        return self._position.configuration

    # ---- apply

    def apply_batch(
        self, entries: Sequence[Entry], files: FileActions
    ) -> list[log_pb2.Result | None]:
        """Applies contiguous entries in one transaction; one result, or None, per entry.

        Entries at or below the applied index are skipped and have no result. Raises FatalError for
        everything that is not a typed rejection; the state is then as before the batch.
        """
        with self._lock:
            with self._ending_on_failure("applying to"):
                effects = self._commit(entries, files)
                retired = self._still_deleted(r for effect in effects for r in effect.retire)
                packs = self._removed(pack for effect in effects for pack in effect.retire_packs)
                if retired or packs:
                    self._sync()
                    failpoint("state.apply.before_retire")
                    for repository_id, digest in packs:
                        files.retire_pack(repository_id, digest)
                    for repository_id in retired:
                        files.retire(repository_id)
            return [effect.result for effect in effects]

    def _commit(self, entries: Sequence[Entry], files: FileActions) -> list[Applied]:
        with self._transaction():
            effects = apply_entries(self._connection, entries)
            position = load_position(self._connection)
            for effect in effects:
                for repository_id, digest, object_format in effect.promote:
                    failpoint("state.apply.before_promote")
                    files.promote(repository_id, digest, object_format)
                for repository_id, pack, object_format in effect.store:
                    failpoint("state.apply.before_store")
                    files.store(repository_id, pack, object_format)
            failpoint("state.apply.before_commit")
        failpoint("state.apply.after_commit")
        self._position = position
        return effects

    def _removed(self, packs: Iterable[tuple[str, bytes]]) -> list[tuple[str, bytes]]:
        """Those of `packs` that no later entry of the same batch has added again."""
        return [
            (repository_id, digest)
            for repository_id, digest in packs
            if self._connection.execute(
                "SELECT 1 FROM packs WHERE repository_id = ? AND digest = ?",
                (repository_id, digest),
            ).fetchone()
            is None
        ]

    def _still_deleted(self, repository_ids: Iterable[str]) -> list[str]:
        """Those of `repository_ids` that no later entry of the same batch has taken back."""
        return [
            repository_id
            for repository_id in repository_ids
            if self._connection.execute(
                "SELECT 1 FROM repositories WHERE repository_id = ? AND deleted_ms IS NOT NULL",
                (repository_id,),
            ).fetchone()
        ]

    def sync(self) -> int:
        """Makes all committed batches durable; the journal may be cut up to the index returned."""
        with self._lock, self._ending_on_failure("syncing"):
            self._sync()
            return self._position.applied_index

    def _sync(self) -> None:
        self.sync_files()
        # A commit with synchronous=FULL fsyncs the write-ahead log, and with it every commit
        # before. It has to change a page: SQLite skips the write of a row that stays the same.
        self._connection.execute("PRAGMA synchronous=FULL")
        try:
            with self._transaction():
                self._connection.execute("UPDATE local SET syncs = syncs + 1")
                failpoint("state.sync.before_commit")
        finally:
            self._connection.execute("PRAGMA synchronous=NORMAL")

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        self._connection.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._connection.execute("COMMIT")
        except BaseException:
            # After a full disk SQLite has rolled back by itself already.
            if self._connection.in_transaction:
                self._connection.execute("ROLLBACK")
            raise

    @contextlib.contextmanager
    def _ending_on_failure(self, doing: str) -> Iterator[None]:
        """Turns every failure into a FatalError, after which the store does nothing more."""
        what = (
            f"{doing} the state of group {self._group} after index {self._position.applied_index}"
        )
        if self._refusal:
            raise FatalError(f"{what}: {self._refusal}")
        self._refusal = "refused, it failed before"
        try:
            yield
        except sqlite3.Error as error:
            raise fatal_from_sqlite(error, what) from error
        except OSError as error:
            raise fatal_from_os(error, what) from error
        except Exception as error:
            raise FatalError(f"{what}: {type(error).__name__}: {error}") from error
        self._refusal = ""

    # ---- reading and copying; on connections of their own, so that apply goes on

    @contextlib.contextmanager
    def _reading(self, doing: str) -> Iterator[sqlite3.Connection]:
        what = f"{doing} the state of group {self._group}"
        try:
            connection = connect_reader(self.path, _BUSY_TIMEOUT_S)
            try:
                connection.execute("BEGIN")
                yield connection
            finally:
                connection.close()
        except sqlite3.Error as error:
            raise fatal_from_sqlite(error, what) from error

    def read(self, doing: str, function: Callable[[sqlite3.Connection], T]) -> T:
        """What `function` reads in one transaction. Raises FatalError, in which `doing` stands."""
        with self._reading(doing) as connection:
            return function(connection)

    @property
    def path(self) -> Path:
        """The state file in use. Only SQLite may open it."""
        return state_path(self._layout, self._generation)

    def tombstones(self) -> list[str]:
        """Ids of the deleted repositories, sorted: run `retire` for each after opening."""
        with self._reading("reading tombstones of") as connection:
            rows = connection.execute(
                "SELECT repository_id FROM repositories WHERE deleted_ms IS NOT NULL"
                " ORDER BY repository_id"
            ).fetchall()
        return [row[0] for row in rows]

    def pack_digests(self) -> dict[bytes, list[str]]:
        """Every digest in the pack table, with the repositories, deleted ones too, that have it.

        A sweep must not touch these, nor those that entries still in the journal name.
        """
        holders: dict[bytes, list[str]] = {}
        with self._reading("reading packs of") as connection:
            rows = connection.execute(
                "SELECT digest, repository_id FROM packs ORDER BY digest, repository_id"
            )
            for digest, repository_id in rows:
                holders.setdefault(digest, []).append(repository_id)
        return holders

    def removed_packs(self) -> dict[bytes, list[str]]:
        """Every digest that a repository had once and has no more, with those repositories."""
        holders: dict[bytes, list[str]] = {}
        with self._reading("reading removed packs of") as connection:
            rows = connection.execute(
                "SELECT DISTINCT digest, repository_id FROM removed_packs AS r WHERE NOT EXISTS"
                " (SELECT 1 FROM packs AS p"
                " WHERE p.repository_id = r.repository_id AND p.digest = r.digest)"
                " ORDER BY digest, repository_id"
            )
            for digest, repository_id in rows:
                holders.setdefault(digest, []).append(repository_id)
        return holders

    def export(self) -> bytes:
        """The canonical dump, equal on all replicas at the same applied index. See export.py."""
        with self._reading("exporting") as connection:
            return b"".join(export_lines(connection))

    def export_digest(self) -> bytes:
        """SHA-256 of `export`, in bounded memory."""
        digest = hashlib.sha256()
        with self._reading("exporting") as connection:
            for line in export_lines(connection):
                digest.update(line)
        return digest.digest()

    def copy_to(self, path: Path) -> Position:
        """Writes a compact, durable copy of the state to `path`, which must not exist.

        The copy is a complete state file for `generations.install`; its bytes may be hashed and
        sent, unlike the live file's. Returns the position that it holds. Raises FatalError.
        """
        what = f"copying the state of group {self._group} to {path}"
        try:
            source = connect_reader(self.path, _BUSY_TIMEOUT_S)
            try:
                source.execute(
                    "PRAGMA query_only=OFF"
                )  # VACUUM INTO writes, though not to this file
                source.execute("VACUUM INTO ?", (str(path),))
            finally:
                source.close()
            copy = connect_reader(path, _BUSY_TIMEOUT_S)
            try:
                position = load_position(copy)
            finally:
                copy.close()
            fsync_file(path)
        except sqlite3.Error as error:
            raise fatal_from_sqlite(error, what) from error
        except OSError as error:
            raise fatal_from_os(error, what) from error
        return position

    def close(self) -> None:
        """Closes the writing connection, waiting for the batch in hand. Readers may go on."""
        with self._lock:
            self._refusal = "the store is closed"
            self._connection.close()
