"""State files of older formats: upgraded by their writer, waited for by readers."""

from __future__ import annotations

import shutil
import sqlite3
from pathlib import Path

import pytest
from support.state_log import REPOSITORY, Log, RecordingFiles, pack, transaction, update

from quorepo.cluster.state.database import FORMAT_VERSION, check_format
from quorepo.cluster.state.generations import current_generation, install, state_path
from quorepo.cluster.state.pack_table import live_packs
from quorepo.cluster.state.reader import StateReader
from quorepo.cluster.state.store import StateStore
from quorepo.internal.v1 import log_pb2
from quorepo.storage.errors import Unavailable
from quorepo.storage.layout import GroupLayout

SCHEMA_1 = Path(__file__).with_name("schema_1.sql")


def entries() -> Log:
    log = Log()
    log.command(transaction(update("refs/heads/main", 1), packs=[pack(1)]), request=1)
    log.command(transaction(update("refs/heads/main", 2, 1), packs=[pack(2)]), request=2)
    log.command(transaction(update("refs/heads/a", 2), repository_id="gone"), request=3)
    log.command(log_pb2.DeleteRepository(repository_id="gone"), request=4)
    return log


def written_by_format_1(layout: GroupLayout, folder: Path) -> Path:
    """A state file as the program of format 1 left it: its schema, today's rows."""
    store = StateStore.open(layout)
    store.apply_batch(entries().entries, RecordingFiles())
    store.close()
    old = folder / "old.sqlite3"
    connection = sqlite3.connect(old, isolation_level=None)
    connection.executescript(SCHEMA_1.read_text("utf-8"))
    connection.execute("ATTACH ? AS new", (str(state_path(layout, 1)),))
    tables = connection.execute("SELECT name FROM main.sqlite_schema WHERE type = 'table'")
    for (table,) in tables.fetchall():
        columns = ", ".join(
            row[1] for row in connection.execute(f"PRAGMA main.table_info({table})")
        )
        connection.execute(f"INSERT INTO main.{table} SELECT {columns} FROM new.{table}")
    connection.execute("DETACH new")
    connection.execute("PRAGMA application_id=0x71726570")
    connection.execute("PRAGMA user_version=1")
    connection.close()
    return old


@pytest.fixture
def old_layout(tmp_path: Path) -> tuple[GroupLayout, bytes]:
    """A group whose state file is of format 1, and the dump that it has to give."""
    new, old = GroupLayout(tmp_path / "new", 1), GroupLayout(tmp_path / "old", 1)
    new.create()
    old.create()
    path = written_by_format_1(new, tmp_path)
    store = StateStore.open(new)
    wanted = store.export()
    store.close()
    shutil.move(path, state_path(old, 1))
    (old.state_dir / "CURRENT").write_bytes(b"state.1.sqlite3\n")
    return old, wanted


def test_state_of_format_1_is_upgraded_and_equals_one_that_was_always_new(
    old_layout: tuple[GroupLayout, bytes],
) -> None:
    layout, wanted = old_layout
    reader = StateReader(layout)
    with pytest.raises(Unavailable, match="not upgraded"):
        reader.repository(REPOSITORY)
    store = StateStore.open(layout)
    assert store.export() == wanted
    assert [ref.name for ref in reader.refs(REPOSITORY)] == [b"refs/heads/main"]
    log = entries()
    log.command(log_pb2.UpdateRepository(repository_id=REPOSITORY, description="new"), request=5)
    store.apply_batch(log.entries, RecordingFiles())
    assert reader.transactions(0, 10)[0][-1].kind == "settings"
    store.close()
    StateStore.open(layout).close()
    reader.close()


def test_snapshot_of_a_node_of_format_1_is_taken(
    old_layout: tuple[GroupLayout, bytes], tmp_path: Path
) -> None:
    layout, _wanted = old_layout
    copy = tmp_path / "copy.sqlite3"
    shutil.copyfile(state_path(layout, 1), copy)
    connection = sqlite3.connect(copy)
    assert len(list(live_packs(connection))) == 2
    connection.close()
    fresh = GroupLayout(tmp_path / "fresh", 1)
    fresh.create()
    StateStore.open(fresh).close()
    moved = fresh.state_dir / "snapshot.sqlite3"
    shutil.move(copy, moved)
    assert install(fresh, 1, moved) == current_generation(fresh)
    connection = sqlite3.connect(state_path(fresh, 2))
    check_format(connection, state_path(fresh, 2), 1)
    assert connection.execute("PRAGMA user_version").fetchone()[0] == FORMAT_VERSION
    connection.close()
