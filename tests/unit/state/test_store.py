"""The store: one transaction per batch, files around it, failures that end the process, deaths."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from support.state_log import REPOSITORY, Log, RecordingFiles, pack, transaction, update

from quorepo.cluster.raft.interface import Entry
from quorepo.cluster.state.database import fatal_from_sqlite, reader_error
from quorepo.cluster.state.reader import StateReader
from quorepo.cluster.state.store import StateStore
from quorepo.internal.v1 import log_pb2
from quorepo.storage import failpoints
from quorepo.storage.errors import FatalError, Unavailable
from quorepo.storage.layout import GroupLayout
from quorepo.storage.objectformat import ObjectFormat

MAIN = "refs/heads/main"
DELETE = log_pb2.DeleteRepository(repository_id=REPOSITORY)


def pushes(count: int) -> list[Entry]:
    """A no-op, then pushes that each add a pack."""
    log = Log()
    log.noop()
    for number in range(1, count + 1):
        log.command(transaction(update(MAIN, number, number - 1), packs=[pack(number)]))
    return log.entries


def test_position_is_committed_with_the_batch(layout: GroupLayout, store: StateStore) -> None:
    entries = pushes(2)
    configuration = log_pb2.Configuration(replicas=[log_pb2.Replica(replica_id="n1@d")])
    log = Log()
    log.entries = [*entries]
    entries = [*entries, log.configuration(configuration)]
    results = store.apply_batch(entries, RecordingFiles())
    assert [None if r is None else r.WhichOneof("kind") for r in results] == [
        None,
        "transaction",
        "transaction",
        None,
    ]
    expected = (4, 1, max(entry.time_ms for entry in entries), configuration.SerializeToString())
    assert _position(store) == expected
    store.close()
    reopened = StateStore.open(layout)
    assert _position(reopened) == expected
    assert reopened.position.configuration_index == 4
    reopened.close()


def _position(store: StateStore) -> tuple[int, int, int, bytes | None]:
    return store.applied_index, store.applied_term, store.log_time_ms, store.configuration


def test_skipped_entries_have_no_result_but_a_place(store: StateStore) -> None:
    entries = pushes(2)
    store.apply_batch(entries[:2], RecordingFiles())
    files = RecordingFiles()
    results = store.apply_batch(entries, files)
    assert results[:2] == [None, None]
    assert results[2] is not None
    assert [digest for _, digest, _ in files.promoted] == [pack(2).digest]


def test_gap_is_fatal_and_changes_nothing(store: StateStore) -> None:
    entries = pushes(2)
    with pytest.raises(FatalError, match="gap"):
        store.apply_batch([entries[0], entries[2]], RecordingFiles())
    assert store.applied_index == 0


def test_packs_are_promoted_before_anybody_sees_their_refs(
    store: StateStore, reader: StateReader
) -> None:
    seen: list[object] = []

    class Files(RecordingFiles):
        def promote(self, repository_id: str, digest: bytes, object_format: ObjectFormat) -> None:
            seen.append(reader.repository(repository_id))

        def retire(self, repository_id: str) -> None:
            row = reader.repository(repository_id)
            seen.append(row is not None and row.deleted)

    log = Log()
    log.command(transaction(update(MAIN, 1), packs=[pack(1)]))
    log.command(DELETE)
    store.apply_batch(log.entries, Files())
    assert seen == [None, True]


@pytest.mark.parametrize(
    ("error", "exit_code"),
    [
        (OSError(28, "No space left on device"), FatalError.EXIT_IO_ERROR),
        (FatalError("journal", exit_code=FatalError.EXIT_IO_ERROR), FatalError.EXIT_IO_ERROR),
        (KeyError("bug"), FatalError.EXIT_BUG),
        (MemoryError(), FatalError.EXIT_BUG),
        (sqlite3.OperationalError("nested"), FatalError.EXIT_BUG),
    ],
)
def test_failed_promotion_leaves_exactly_the_state_before(
    layout: GroupLayout, store: StateStore, error: BaseException, exit_code: int
) -> None:
    entries = pushes(4)
    store.apply_batch(entries[:2], RecordingFiles())
    before = store.export()
    failing = RecordingFiles(fail_at=3, error=error)
    with pytest.raises(FatalError) as caught:
        store.apply_batch(entries[2:], failing)
    assert caught.value.exit_code == exit_code
    assert store.export() == before
    # The process has to end: nothing goes on in it, reading aside.
    with pytest.raises(FatalError, match="failed before"):
        store.apply_batch(entries[2:], RecordingFiles())
    store.close()
    reopened = StateStore.open(layout)
    assert reopened.export() == before
    again = RecordingFiles()
    results = reopened.apply_batch(entries, again)
    assert [digest for _, digest, _ in again.promoted] == [pack(n).digest for n in (2, 3, 4)]
    assert all(result is not None for result in results[2:])
    reopened.close()


def test_keyboard_interrupt_rolls_back_and_passes(store: StateStore) -> None:
    files = RecordingFiles(fail_at=1, error=KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        store.apply_batch(pushes(1), files)
    assert store.applied_index == 0
    assert store.tombstones() == []


def test_deletion_whose_files_were_not_retired_is_repaired(
    layout: GroupLayout, store: StateStore
) -> None:
    log = Log()
    log.command(transaction(update(MAIN, 1)))
    log.command(DELETE)
    with (
        failpoints.enabled("state.apply.before_retire", "error"),
        pytest.raises(FatalError) as caught,
    ):
        store.apply_batch(log.entries, RecordingFiles())
    assert caught.value.exit_code == FatalError.EXIT_IO_ERROR
    store.close()
    reopened = StateStore.open(layout)
    assert reopened.applied_index == 2
    assert reopened.tombstones() == [REPOSITORY]
    reopened.close()


def test_deletion_is_durable_before_its_files_are_retired(store: StateStore) -> None:
    """Else a power loss could replay a push into a repository whose packs are gone."""
    syncs: list[int] = []

    def synced() -> int:
        count: int = store._connection.execute("SELECT syncs FROM local").fetchone()[0]
        return count

    class Files(RecordingFiles):
        def promote(self, repository_id: str, digest: bytes, object_format: ObjectFormat) -> None:
            syncs.append(synced())

        def retire(self, repository_id: str) -> None:
            syncs.append(synced())

    log = Log()
    log.command(transaction(update(MAIN, 1), packs=[pack(1)]))
    log.command(DELETE)
    store.apply_batch(log.entries, Files())
    assert syncs[1] == syncs[0] + 1


def test_retired_packs_stay_named(store: StateStore) -> None:
    log = Log()
    log.command(transaction(update(MAIN, 1), packs=[pack(1), pack(2)]))
    log.command(transaction(update(MAIN, 1), packs=[pack(1)], repository_id="a"))
    log.command(DELETE)
    store.apply_batch(log.entries, RecordingFiles())
    assert store.pack_digests() == {
        pack(1).digest: ["a", REPOSITORY],
        pack(2).digest: [REPOSITORY],
    }


def test_sync_writes_something_each_time(layout: GroupLayout, store: StateStore) -> None:
    """An update that changes no byte would commit nothing, and fsync nothing."""
    store.apply_batch(pushes(1), RecordingFiles())
    wal = store.path.with_name(store.path.name + "-wal")
    sizes = [wal.stat().st_size]
    for _ in range(3):
        assert store.sync() == 2
        sizes.append(wal.stat().st_size)
    assert sizes == sorted(dict.fromkeys(sizes))
    mode = store._connection.execute("PRAGMA synchronous").fetchone()[0]
    assert mode == 1  # NORMAL again


def test_closed_store_refuses(store: StateStore) -> None:
    store.close()
    with pytest.raises(FatalError, match="closed"):
        store.apply_batch(pushes(1), RecordingFiles())


def test_second_writer_is_fatal_not_waiting_for_ever(
    layout: GroupLayout, store: StateStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("quorepo.cluster.state.database._WRITER_BUSY_TIMEOUT_S", 0.05)
    other = StateStore.open(layout)
    store._connection.execute("BEGIN IMMEDIATE")
    with pytest.raises(FatalError, match="another process writes"):
        other.apply_batch(pushes(1), RecordingFiles())
    store._connection.execute("ROLLBACK")
    other.close()


def test_full_disk_is_an_io_error_and_leaves_the_state_before(
    layout: GroupLayout, store: StateStore
) -> None:
    entries = pushes(1)
    store.apply_batch(entries, RecordingFiles())
    before = store.export()
    pages = store._connection.execute("PRAGMA page_count").fetchone()[0]
    store._connection.execute(f"PRAGMA max_page_count={pages}")  # SQLITE_FULL beyond
    log = Log()
    log.entries = [*entries]
    many = [update(f"refs/heads/{number:08}", 1) for number in range(2000)]
    with pytest.raises(FatalError) as caught:
        store.apply_batch([log.command(transaction(*many), request=7)], RecordingFiles())
    assert caught.value.exit_code == FatalError.EXIT_IO_ERROR
    assert store.export() == before


def test_errors_of_sqlite_tell_whether_a_restart_may_help() -> None:
    def error(code: int) -> sqlite3.OperationalError:
        failed = sqlite3.OperationalError("words")
        failed.sqlite_errorcode = code
        return failed

    for code in (sqlite3.SQLITE_IOERR_FSYNC, sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_CANTOPEN):
        assert fatal_from_sqlite(error(code), "x").exit_code == FatalError.EXIT_IO_ERROR
        assert isinstance(reader_error(error(code), "x"), FatalError)
    assert fatal_from_sqlite(error(sqlite3.SQLITE_ERROR), "x").exit_code == FatalError.EXIT_BUG
    assert isinstance(reader_error(error(sqlite3.SQLITE_BUSY_SNAPSHOT), "x"), Unavailable)


# ---- real deaths

KILLED = """
import sys
from pathlib import Path
from support.state_log import Log, RecordingFiles, pack, transaction, update
from quorepo.cluster.state.store import StateStore
from quorepo.internal.v1 import log_pb2
from quorepo.storage.layout import GroupLayout
layout = GroupLayout(Path(sys.argv[1]), 1)
layout.create()
store = StateStore.open(layout)
log = Log()
log.noop()
log.command(transaction(update("refs/heads/main", 1), packs=[pack(1)]))
store.apply_batch(log.entries, RecordingFiles())
log.command(transaction(update("refs/heads/main", 2, 1), packs=[pack(2)]))
log.command(log_pb2.DeleteRepository(repository_id="r" * 32))
store.apply_batch(log.entries[2:], RecordingFiles())
"""


@pytest.mark.parametrize(
    ("failpoint", "applied"),
    [
        ("state.create.before_current", 0),
        ("state.sync.before_commit", 0),
        ("state.apply.before_promote", 0),
        ("state.apply.before_commit", 0),
        ("state.apply.before_promote@2", 2),
        ("state.apply.before_commit@2", 2),
        ("state.apply.after_commit@2", 4),
        ("state.sync.before_commit@2", 4),
        ("state.apply.before_retire", 4),
    ],
)
def test_kill_leaves_the_state_after_some_batch(
    tmp_path: Path, failpoint: str, applied: int
) -> None:
    name, _, hit = failpoint.partition("@")
    specification = f"{name}=kill@{hit or 1}"
    done = subprocess.run(
        [sys.executable, "-c", KILLED, str(tmp_path)],
        env={
            **os.environ,
            "PYTHONPATH": str(Path(__file__).parents[2]),
            failpoints.ENVIRONMENT_VARIABLE: specification,
        },
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    store = StateStore.open(GroupLayout(tmp_path, 1))
    assert store.applied_index == applied
    assert store.tombstones() == ([REPOSITORY] if applied == 4 else [])
    log = Log()
    log.noop()
    log.command(transaction(update(MAIN, 1), packs=[pack(1)]))
    log.command(transaction(update(MAIN, 2, 1), packs=[pack(2)]))
    log.command(DELETE)
    store.apply_batch(log.entries, RecordingFiles())
    replayed = store.export()
    store.close()
    fresh_layout = GroupLayout(tmp_path / "fresh", 1)
    fresh_layout.create()
    fresh = StateStore.open(fresh_layout)
    fresh.apply_batch(log.entries, RecordingFiles())
    assert fresh.export() == replayed
    fresh.close()


def test_batches_of_two_threads_exclude_each_other(store: StateStore) -> None:
    """The store may be handed from thread to thread; a batch sees the one before."""
    entries = pushes(20)
    store.apply_batch(entries[:1], RecordingFiles())
    failures: list[BaseException] = []

    def apply_all() -> None:
        try:
            for entry in entries:
                # Whoever comes second finds the entry applied and skips it.
                if entry.index <= store.applied_index + 1:
                    store.apply_batch([entry], RecordingFiles())
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=apply_all) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert failures == []
