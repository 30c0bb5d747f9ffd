"""A snapshot on its way in, as files: staged, verified, put into force; and what a crash leaves.

    groups/<group>/snapshot.tmp/
      manifest            what is being received; durable before the first byte
      database.part       the state file as far as it came
      database.sqlite3    the state file, complete, hashed and synced
      SWITCH              the manifest once more: putting it into force has begun

Packs are staged in quarantine like any others, and are found there after a restart.

The order of the switch: SWITCH, packs into their repositories, the state file as the next
generation (generations.py), then the journal begins anew behind the snapshot (the engine does),
then the folder goes. A crash before the new generation is in force leaves the old state and the old
log; `finish_interrupted` then only forgets that the switch began. A crash after it leaves the new
state and a log that may not reach it; `finish_interrupted` begins the log anew, before the engine
looks at it. Blocking code; must not know of the network, nor of the engine.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import sqlite3
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

from google.protobuf.message import DecodeError

from quorepo.cluster.raft.journal import Journal
from quorepo.cluster.state.database import check_format, connect_reader
from quorepo.cluster.state.generations import install
from quorepo.cluster.state.machine import load_position
from quorepo.cluster.state.pack_table import PackPlace, live_packs
from quorepo.cluster.state.store import StateStore
from quorepo.internal.v1 import peer_pb2
from quorepo.storage.errors import CorruptPack, FatalError, InvalidArgument
from quorepo.storage.failpoints import failpoint
from quorepo.storage.layout import (
    GroupLayout,
    ensure_repository,
    fsync_dir,
    fsync_file,
    promote_pack,
    write_durably,
)

__all__ = ["FORMAT_VERSION", "StagedSnapshot", "finish_interrupted"]

# Of the manifest and of what it stands for; a newer one is refused.
FORMAT_VERSION = 1

_HASH_BYTES = 1024 * 1024
_BUSY_TIMEOUT_S = 5.0


class StagedSnapshot:
    """One group's snapshot.tmp. For one thread at a time."""

    def __init__(self, layout: GroupLayout, manifest: peer_pb2.SnapshotManifest) -> None:
        """Use `begin`."""
        self._layout = layout
        self._folder = _folder(layout)
        self._part = self._folder / "database.part"
        self._database = self._folder / "database.sqlite3"
        self.manifest = manifest

    @classmethod
    def begin(cls, layout: GroupLayout, manifest: peer_pb2.SnapshotManifest) -> StagedSnapshot:
        """Goes on with what is staged when it is of the same manifest, or starts over."""
        staged = cls(layout, manifest)
        if _read_manifest(staged._folder / "manifest") != manifest:
            staged.discard()
            staged._folder.mkdir(mode=0o700)
            fsync_dir(layout.state_dir)
            failpoint("snapshot.stage.before_manifest")
            write_durably(staged._folder / "manifest", manifest.SerializeToString())
        return staged

    @property
    def received_bytes(self) -> int:
        """How much of the database is here."""
        if self._database.exists():
            return self.manifest.database_bytes
        return self._part.stat().st_size if self._part.exists() else 0

    @property
    def complete(self) -> bool:
        """Whether the database is here and was verified."""
        return self._database.exists()

    def write(self, chunks: Sequence[bytes]) -> None:
        """Appends to the database. Raises OSError."""
        failpoint("snapshot.stage.before_write")
        with open(self._part, "ab") as file:
            for chunk in chunks:
                file.write(chunk)

    def verify(self) -> None:
        """Checks what came against the manifest, and makes it durable.

        Raises CorruptPack when it is something else; nothing is kept of it then. InvalidArgument:
        it is a state of a newer format.
        """
        if self.complete:
            return
        digest = hashlib.sha256()
        size = 0
        with open(self._part, "rb") as file:
            while block := file.read(_HASH_BYTES):
                digest.update(block)
                size += len(block)
        manifest = self.manifest
        if size != manifest.database_bytes or digest.digest() != manifest.database_digest:
            self.discard()
            raise CorruptPack(
                f"snapshot of group {manifest.group} at {manifest.index}: {size} bytes arrived "
                f"with SHA-256 {digest.hexdigest()}, announced were {manifest.database_bytes} with "
                f"{manifest.database_digest.hex()}"
            )
        fsync_file(self._part)
        failpoint("snapshot.stage.before_rename")
        os.rename(self._part, self._database)
        fsync_dir(self._folder)
        try:
            position = self._position()
        except sqlite3.Error as error:
            self.discard()
            raise CorruptPack(f"the snapshot is no state file: {error}") from error
        if position != (manifest.index, manifest.term):
            self.discard()
            raise CorruptPack(
                f"the snapshot holds entry {position[0]} of term {position[1]}, announced was "
                f"{manifest.index} of {manifest.term}"
            )

    @contextlib.contextmanager
    def _reading(self) -> Iterator[sqlite3.Connection]:
        """A reader of what came, once it is known to be a state that this program knows.

        A newer one stays staged, so that it is not fetched again and again while it waits for the
        newer program. Once in force it would keep this node from starting.
        """
        connection = connect_reader(self._database, _BUSY_TIMEOUT_S)
        try:
            check_format(connection, self._database, self._layout.group, older=True)
            yield connection
        except FatalError as error:
            raise InvalidArgument(
                f"the snapshot cannot be used, and nothing was changed: {error}",
                next_step="bring all nodes to one version of quorepo",
            ) from error
        finally:
            connection.close()

    def _position(self) -> tuple[int, int]:
        with self._reading() as connection:
            position = load_position(connection)
        return position.applied_index, position.applied_term

    def packs(self) -> list[PackPlace]:
        """The packs without which the snapshot must not come into force.

        Raises CorruptPack, and InvalidArgument for a state that this program doesn't know.
        """
        try:
            with self._reading() as connection:
                return list(live_packs(connection))
        except sqlite3.Error as error:
            self.discard()
            raise CorruptPack(f"the snapshot's pack table cannot be read: {error}") from error

    def put_into_force(self) -> None:
        """Packs into their repositories, the database as the next generation. Nobody applies
        meanwhile, and the store of the generation before is closed.

        Raises OSError or FatalError; the process has to end then.
        """
        failpoint("snapshot.switch.before_record")
        write_durably(self._folder / "SWITCH", self.manifest.SerializeToString())
        self._promote(self.packs())
        failpoint("snapshot.switch.before_install")
        install(self._layout, self._layout.group, self._database)
        failpoint("snapshot.switch.after_install")

    def _promote(self, packs: Iterable[PackPlace]) -> None:
        settled: set[Path] = set()
        ensured = ""
        for pack in packs:
            if pack.repository_id != ensured:
                ensure_repository(self._layout, pack.repository_id, pack.object_format)
                ensured = pack.repository_id
            targets = self._layout.pack_paths(pack.repository_id, pack.digest)
            if all(target.exists() for target in targets):
                settled.add(targets[0].parent)
                continue
            failpoint("snapshot.switch.before_promote")
            promote_pack(self._layout, pack.repository_id, pack.digest)
        # A pack that was there may have come there right before a crash, unsynced.
        for folder in sorted(settled):
            fsync_dir(folder)

    def discard(self) -> None:
        """Removes everything that is staged here; packs stay in quarantine for their time."""
        failpoint("snapshot.discard.before_remove")
        _remove(self._layout)


def finish_interrupted(layout: GroupLayout, store: StateStore, journal: Journal) -> None:
    """Ends a switch that a crash interrupted; before the engine opens the group's log.

    `store` has just been opened. Raises FatalError.
    """
    record = _folder(layout) / "SWITCH"
    if not record.exists():
        return
    manifest = _read_manifest(record)
    if manifest is None:
        raise FatalError(
            f"{record} is damaged; this node's copy of group {layout.group} can't be trusted: "
            "empty its data directory and let the node join again",
            exit_code=FatalError.EXIT_IO_ERROR,
        )
    if store.applied_index < manifest.index:
        # The old state is in force and the old log goes with it. A half-installed database is gone.
        failpoint("snapshot.recover.before_forget")
        if (_folder(layout) / "database.sqlite3").exists():
            record.unlink()
            fsync_dir(record.parent)
        else:
            _remove(layout)
        return
    if store.applied_index == manifest.index:
        known = journal.term_at(layout.group, manifest.index)
        if known != manifest.term:
            failpoint("snapshot.recover.before_restart")
            begin = b"\x01" + bytes(8)  # says nothing; the log is known by its index and term only
            journal.restart_at(layout.group, manifest.index, manifest.term, begin)
    failpoint("snapshot.recover.before_remove")
    _remove(layout)


def _folder(layout: GroupLayout) -> Path:
    return layout.state_dir / "snapshot.tmp"


def _read_manifest(path: Path) -> peer_pb2.SnapshotManifest | None:
    try:
        return peer_pb2.SnapshotManifest.FromString(path.read_bytes())
    except (FileNotFoundError, DecodeError):
        return None


def _remove(layout: GroupLayout) -> None:
    folder = _folder(layout)
    if folder.exists():
        # SWITCH last: as long as it is there, the rest is known to be left over.
        for path in sorted(folder.iterdir(), key=lambda path: path.name == "SWITCH"):
            path.unlink()
        shutil.rmtree(folder)
        fsync_dir(layout.state_dir)
