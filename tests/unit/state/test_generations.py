"""CURRENT and the state files: creation, crashes on the way, foreign files, the next generation."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path

import pytest
from support.state_log import Log, RecordingFiles, transaction, update

from quorepo.cluster.state import store as store_module
from quorepo.cluster.state.database import FORMAT_VERSION
from quorepo.cluster.state.generations import current_generation, install, state_path
from quorepo.cluster.state.reader import StateReader
from quorepo.cluster.state.store import StateStore
from quorepo.storage import failpoints
from quorepo.storage.errors import FatalError
from quorepo.storage.layout import GroupLayout, fsync_dir


def names(layout: GroupLayout) -> list[str]:
    folders = ("quarantine", "repositories", "retired")
    return sorted(name for name in os.listdir(layout.state_dir) if name not in folders)


def fill(store: StateStore, count: int = 1) -> None:
    log = Log()
    for number in range(1, count + 1):
        log.command(transaction(update("refs/heads/main", number, number - 1)))
    store.apply_batch(log.entries, RecordingFiles())


def test_new_group_gets_generation_one(layout: GroupLayout) -> None:
    assert current_generation(layout) is None
    store = StateStore.open(layout)
    assert (store.generation, store.group, store.applied_index) == (1, 1, 0)
    assert (store.applied_term, store.log_time_ms, store.configuration) == (0, 0, None)
    store.close()
    assert names(layout) == ["CURRENT", "state.1.sqlite3"]
    assert (layout.state_dir / "CURRENT").read_bytes() == b"state.1.sqlite3\n"


def test_crash_while_creating_is_repaired(layout: GroupLayout) -> None:
    (layout.state_dir / "creating.sqlite3.tmp").write_bytes(b"half a file")
    with failpoints.enabled("state.create.before_current", "error"), pytest.raises(FatalError):
        StateStore.open(layout)
    assert names(layout) == ["state.1.sqlite3"]
    store = StateStore.open(layout)
    assert store.applied_index == 0
    store.close()


def test_used_state_without_current_is_not_thrown_away(layout: GroupLayout) -> None:
    store = StateStore.open(layout)
    fill(store)
    store.close()
    (layout.state_dir / "CURRENT").unlink()
    with pytest.raises(FatalError, match="no CURRENT") as caught:
        StateStore.open(layout)
    assert caught.value.exit_code == FatalError.EXIT_IO_ERROR
    assert "state.1.sqlite3" in names(layout)


@pytest.mark.parametrize(
    "content", [b"", b"state.1.sqlite3", b"state.0.sqlite3\n", b"../state.1.sqlite3\n", b"\xff\n"]
)
def test_damaged_current_is_fatal(layout: GroupLayout, content: bytes) -> None:
    StateStore.open(layout).close()
    (layout.state_dir / "CURRENT").write_bytes(content)
    with pytest.raises(FatalError, match="CURRENT is damaged"):
        StateStore.open(layout)


def test_missing_state_file_is_fatal_and_not_made_anew(layout: GroupLayout) -> None:
    StateStore.open(layout).close()
    state_path(layout, 1).unlink()
    with pytest.raises(FatalError) as caught:
        StateStore.open(layout)
    assert caught.value.exit_code == FatalError.EXIT_IO_ERROR
    assert names(layout) == ["CURRENT"]


def test_damaged_state_file_is_fatal(layout: GroupLayout) -> None:
    StateStore.open(layout).close()
    state_path(layout, 1).write_bytes(b"no database " * 1000)
    with pytest.raises(FatalError) as caught:
        StateStore.open(layout)
    assert caught.value.exit_code == FatalError.EXIT_IO_ERROR


def change(path: Path, statement: str) -> None:
    connection = sqlite3.connect(path, isolation_level=None)
    connection.execute(statement)
    connection.close()


@pytest.mark.parametrize(
    ("statement", "words"),
    [
        (f"PRAGMA user_version={FORMAT_VERSION + 1}", f"newer state format {FORMAT_VERSION + 1}"),
        ("PRAGMA user_version=0", "unknown state format 0"),
        ("PRAGMA application_id=0", "not a quorepo state file"),
        ("UPDATE position SET group_id = 2", "group 2, not of group 1"),
    ],
)
def test_foreign_or_newer_file_is_refused(
    layout: GroupLayout, reader: StateReader, statement: str, words: str
) -> None:
    StateStore.open(layout).close()
    change(state_path(layout, 1), statement)
    with pytest.raises(FatalError, match=words) as caught:
        StateStore.open(layout)
    assert caught.value.exit_code == FatalError.EXIT_CONFIG
    with pytest.raises(FatalError, match=words):
        reader.applied_index()


# ---- the next generation


def test_copy_becomes_the_next_generation(
    layout: GroupLayout, store: StateStore, reader: StateReader, tmp_path: Path
) -> None:
    fill(store)
    copy = tmp_path / "copy.sqlite3"
    position = store.copy_to(copy)
    assert position == store.position
    exported = store.export()
    log = Log()
    log.noop()
    log.command(transaction(update("refs/heads/main", 7, 1)))
    store.apply_batch(log.entries[1:], RecordingFiles())
    assert reader.applied() == (1, 2)
    assert install(layout, 1, copy) == 2
    assert reader.applied() == (2, 1)  # at the next call, without being told
    store.close()
    next_store = StateStore.open(layout)
    assert (next_store.generation, next_store.export()) == (2, exported)
    assert "state.1.sqlite3" not in names(layout)
    next_store.apply_batch(log.entries[1:], RecordingFiles())
    assert reader.applied() == (2, 2)
    next_store.close()


def test_crash_before_the_switch_leaves_the_old_generation(
    layout: GroupLayout, store: StateStore, tmp_path: Path
) -> None:
    fill(store)
    copy = tmp_path / "copy.sqlite3"
    store.copy_to(copy)
    with failpoints.enabled("state.install.before_current", "error"), pytest.raises(OSError):
        install(layout, 1, copy)
    store.close()
    reopened = StateStore.open(layout)
    assert reopened.generation == 1
    assert names(layout) == ["CURRENT", "state.1.sqlite3", "state.1.sqlite3-shm",
                             "state.1.sqlite3-wal"]  # fmt: skip
    reopened.close()


def test_current_is_made_durable_before_it_is_believed(
    layout: GroupLayout, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A process may have died between the rename of CURRENT and the sync of its folder; what it
    names is taken for good afterwards, and the other generations are removed."""
    StateStore.open(layout).close()
    did: list[object] = []

    def synced(path: Path) -> None:
        did.append(path)
        fsync_dir(path)

    def named(layout: GroupLayout) -> int | None:
        did.append("read")
        return current_generation(layout)

    monkeypatch.setattr(store_module, "fsync_dir", synced)
    monkeypatch.setattr(store_module, "current_generation", named)
    StateStore.open(layout).close()
    assert did[:2] == [layout.state_dir, "read"]


def test_unsound_file_is_not_installed(
    layout: GroupLayout, store: StateStore, tmp_path: Path
) -> None:
    fill(store, 50)
    copy = tmp_path / "copy.sqlite3"
    store.copy_to(copy)
    damaged = bytearray(copy.read_bytes())
    damaged[5000:9000] = bytes(4000)
    copy.write_bytes(damaged)
    with pytest.raises(FatalError):
        install(layout, 1, copy)
    assert current_generation(layout) == 1
    other = tmp_path / "other"
    other_layout = GroupLayout(other, 2)
    other_layout.create()
    StateStore.open(other_layout).close()
    with pytest.raises(FatalError, match="group 2"):
        install(layout, 1, state_path(other_layout, 1))
