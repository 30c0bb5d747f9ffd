"""The production state machine on a simulated node: in memory for speed, or the whole StateStore.

Both hold the applied index in the database. A power cut takes either back to an earlier commit,
as SQLite with synchronous=NORMAL does: never behind the last `sync`.
"""

from __future__ import annotations

import hashlib
import os
import random
import shutil
import sqlite3
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Protocol

from quorepo.cluster.raft.interface import Entry
from quorepo.cluster.state.database import initialize
from quorepo.cluster.state.effects import Applied
from quorepo.cluster.state.export import export_lines
from quorepo.cluster.state.generations import current_generation, state_path
from quorepo.cluster.state.machine import Position, apply_entries, load_position
from quorepo.cluster.state.store import StateStore
from quorepo.internal.v1 import log_pb2
from quorepo.storage.layout import GroupLayout
from quorepo.storage.objectformat import ObjectFormat

__all__ = ["FileState", "MemoryState", "ReplicaState", "scratch_folder"]

_SYNC_EVERY_BATCHES = 6  # on average: when SQLite would have made its commits durable by itself


class ReplicaState(Protocol):
    """One group's state on one node."""

    @property
    def position(self) -> Position: ...

    def apply(self, entries: Sequence[Entry]) -> list[log_pb2.Result | None]: ...

    def sync(self) -> int:
        """Makes it durable; returns the applied index that is durable now."""

    def crash(self, *, power: bool) -> None:
        """The process ends; it can be used again afterwards, as reopened."""

    def digest(self) -> bytes: ...

    @property
    def applied_index(self) -> int: ...

    @property
    def has_layout(self) -> bool:
        """Whether something may be there."""

    def layout(self) -> GroupLayout:
        """Where a snapshot is staged and put into force."""

    def copy_to(self, path: Path) -> Position:
        """A complete state file, closed; returns what it holds."""

    def close_for_switch(self) -> None:
        """The next generation is about to come into force."""

    def open_switched(self) -> None:
        """It has."""

    def close(self) -> None: ...


def _digest(connection: sqlite3.Connection) -> bytes:
    digest = hashlib.sha256()
    for line in export_lines(connection):
        digest.update(line)
    return digest.digest()


_templates: dict[int, sqlite3.Connection] = {}


def _in_memory() -> sqlite3.Connection:
    return sqlite3.connect(":memory:", isolation_level=None)


def _copy(source: sqlite3.Connection) -> sqlite3.Connection:
    """Not by serialize and deserialize: with SQLite 3.40 that corrupted memory."""
    copy = _in_memory()
    source.backup(copy)
    return copy


def _new_database(group: int) -> sqlite3.Connection:
    if group not in _templates:
        _templates[group] = _in_memory()
        initialize(_templates[group], group)
    return _copy(_templates[group])


def _damage_part(folder: Path, rng: random.Random) -> None:
    """What a power cut leaves of a database that was being received: nothing of it was synced."""
    part = folder / "snapshot.tmp" / "database.part"
    if part.exists():
        data = part.read_bytes()
        kept = rng.randint(0, len(data))
        # The size may have reached the disk before the data did.
        part.write_bytes(data[:kept] + (bytes(len(data) - kept) if rng.random() < 0.4 else b""))


class MemoryState:
    """`machine.apply_entries` over a database in memory; a snapshot comes into it from a file."""

    def __init__(self, group: int, rng: random.Random, folder: Callable[[], Path]) -> None:
        self._group = group
        self._rng = rng
        self._folder = folder
        self._layout: GroupLayout | None = None
        self._generation = 0
        self._connection = _new_database(group)
        self._durable = _new_database(group)
        self._position = load_position(self._connection)

    @property
    def position(self) -> Position:
        return self._position

    def apply(self, entries: Sequence[Entry]) -> list[log_pb2.Result | None]:
        self._connection.execute("BEGIN")
        effects: list[Applied] = apply_entries(self._connection, entries)
        self._position = load_position(self._connection)
        self._connection.execute("COMMIT")
        if self._rng.random() * _SYNC_EVERY_BATCHES < 1:
            self.sync()
        return [effect.result for effect in effects]

    def sync(self) -> int:
        self._connection.backup(self._durable)
        return self._position.applied_index

    def crash(self, *, power: bool) -> None:
        if power and self._layout is not None:
            _damage_part(self._layout.state_dir, self._rng)
        if self._layout is not None and self._in_force() > self._generation:
            self.open_switched()
        elif power and self._rng.random() < 0.8:
            self._connection.close()
            self._connection = _copy(self._durable)
            self._position = load_position(self._connection)

    def digest(self) -> bytes:
        return _digest(self._connection)

    @property
    def applied_index(self) -> int:
        return self._position.applied_index

    @property
    def has_layout(self) -> bool:
        return self._layout is not None

    def layout(self) -> GroupLayout:
        if self._layout is None:
            self._layout = GroupLayout(self._folder(), self._group)
            self._layout.state_dir.mkdir(parents=True)
        return self._layout

    def _in_force(self) -> int:
        return current_generation(self.layout()) or 0

    def copy_to(self, path: Path) -> Position:
        self._connection.execute("VACUUM INTO ?", (str(path),))
        return self._position

    def close_for_switch(self) -> None:
        pass

    def open_switched(self) -> None:
        self._generation = self._in_force()
        installed = sqlite3.connect(state_path(self.layout(), self._generation))
        self._connection.close()
        self._durable.close()
        self._connection, self._durable = _copy(installed), _copy(installed)
        installed.close()
        self._position = load_position(self._connection)

    def close(self) -> None:
        self._connection.close()
        self._durable.close()


class _NoFiles:
    """FileActions: packs are not files here."""

    def promote(self, repository_id: str, digest: bytes, object_format: ObjectFormat) -> None:
        pass

    def store(
        self, repository_id: str, pack: log_pb2.PackAddition, object_format: ObjectFormat
    ) -> None:
        pass

    def retire(self, repository_id: str) -> None:
        pass

    def retire_pack(self, repository_id: str, digest: bytes) -> None:
        pass


def scratch_folder() -> Path:
    """A folder in memory, if there is one: what is durable in it is decided here, not by it."""
    parent = "/dev/shm" if os.access("/dev/shm", os.W_OK) else None
    return Path(tempfile.mkdtemp(prefix="quorepo-simulation-", dir=parent))


class FileState:
    """`StateStore` over files: its write-ahead log is cut at any byte behind what was synced."""

    def __init__(self, group: int, rng: random.Random, folder: Path) -> None:
        self._group = group
        self._rng = rng
        self._folder = folder
        self._life = 0
        self._open()

    def _open(self) -> None:
        layout = GroupLayout(self._home, self._group)
        layout.create()
        self._store = StateStore.open(layout)
        # A checkpoint would make commits durable unseen.
        self._store._connection.execute("PRAGMA wal_autocheckpoint=0")
        self._durable_bytes = self._wal_bytes()

    @property
    def _home(self) -> Path:
        return self._folder / str(self._life)

    def _wal(self) -> Path:
        return self._store.path.with_name(self._store.path.name + "-wal")

    def _wal_bytes(self) -> int:
        return self._wal().stat().st_size if self._wal().exists() else 0

    @property
    def position(self) -> Position:
        return self._store.position

    def apply(self, entries: Sequence[Entry]) -> list[log_pb2.Result | None]:
        results = self._store.apply_batch(entries, _NoFiles())
        if self._rng.random() * _SYNC_EVERY_BATCHES < 1:
            self.sync()
        return results

    def sync(self) -> int:
        index = self._store.sync()
        if self._rng.random() < 0.3:
            self._store._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        self._durable_bytes = self._wal_bytes()
        return index

    def crash(self, *, power: bool) -> None:
        """The files as they are go to a new folder; closing the old connection changes only
        the old ones."""
        old, old_home = self._store, self._home
        wal, durable = self._wal(), self._durable_bytes
        self._life += 1
        # The index of the log (-shm) is rebuilt, as by whoever opens it first after a crash.
        shutil.copytree(old_home, self._home, ignore=shutil.ignore_patterns("*-shm"))
        if power:
            _damage_part(GroupLayout(self._home, self._group).state_dir, self._rng)
        if power and wal.exists():
            copy = self._home / wal.relative_to(old_home)
            size = copy.stat().st_size
            os.truncate(copy, self._rng.choice((durable, self._rng.randint(durable, size))))
        old.close()
        shutil.rmtree(old_home)
        self._open()

    def digest(self) -> bytes:
        return self._store.export_digest()

    @property
    def applied_index(self) -> int:
        return self._store.applied_index

    @property
    def has_layout(self) -> bool:
        return True

    def layout(self) -> GroupLayout:
        return GroupLayout(self._home, self._group)

    def copy_to(self, path: Path) -> Position:
        return self._store.copy_to(path)

    def close_for_switch(self) -> None:
        self._store.close()

    def open_switched(self) -> None:
        self._open()

    def close(self) -> None:
        self._store.close()
        shutil.rmtree(self._folder, ignore_errors=True)
