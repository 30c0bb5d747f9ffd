"""The journal's promises while nothing fails, and what it does at the first I/O error."""

from __future__ import annotations

import errno
import os
import struct
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Callable
from pathlib import Path

import pytest

from quorepo.cluster.raft.durable import DirectoryLock
from quorepo.cluster.raft.journal import Journal
from quorepo.storage.errors import FatalError, Unavailable


def append(journal: Journal, group: int, first: int, last: int, term: int = 1) -> None:
    for index in range(first, last + 1):
        journal.append(group, index, term, b"%d/%d/%d" % (group, index, term))


def entries(journal: Journal, group: int) -> list[tuple[bytes, int, int]]:
    first = journal.first_index(group)
    return journal.read(group, first, journal.last_index(group) + 1, 1 << 30) if first else []


def expected(group: int, first: int, last: int, term: int = 1) -> list[tuple[bytes, int, int]]:
    return [(b"%d/%d/%d" % (group, i, term), i, term) for i in range(first, last + 1)]


def segments(directory: Path) -> list[str]:
    return sorted(path.name for path in directory.glob("*.segment"))


def test_synced_entries_of_all_groups_are_there_after_reopening(tmp_path: Path) -> None:
    with Journal.open(tmp_path / "journal") as journal:
        append(journal, 0, 1, 3)
        append(journal, 7, 1, 50)
        journal.sync()
    with Journal.open(tmp_path / "journal") as journal:
        assert journal.groups() == [0, 7]
        assert entries(journal, 0) == expected(0, 1, 3)
        assert entries(journal, 7) == expected(7, 1, 50)
        assert journal.durable_index(7) == 50


def test_only_synced_entries_are_durable(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path)
    append(journal, 1, 1, 2)
    assert (journal.last_index(1), journal.durable_index(1)) == (2, 0)
    journal.sync()
    append(journal, 1, 3, 4)
    assert (journal.last_index(1), journal.durable_index(1)) == (4, 2)
    journal._release()  # the process dies
    with Journal.open(tmp_path) as journal:
        assert entries(journal, 1) == expected(1, 1, 2)


def test_a_group_without_entries_has_index_0(tmp_path: Path) -> None:
    with Journal.open(tmp_path) as journal:
        assert journal.first_index(3) == journal.last_index(3) == journal.durable_index(3) == 0
        assert journal.term_at(3, 1) is None
        assert journal.read(3, 1, 10, 100) == []


@pytest.mark.parametrize(("index", "term"), [(5, 2), (3, 2), (4, 1), (0, 2)])
def test_an_entry_that_does_not_follow_is_refused(tmp_path: Path, index: int, term: int) -> None:
    with Journal.open(tmp_path) as journal:
        append(journal, 1, 1, 3, term=2)
        with pytest.raises(FatalError, match="cannot follow entry 3 of term 2"):
            journal.append(1, index, term, b"")


def test_truncation_is_there_after_reopening(tmp_path: Path) -> None:
    with Journal.open(tmp_path) as journal:
        append(journal, 1, 1, 9)
        journal.sync()
        journal.truncate_from(1, 4)
        assert journal.durable_index(1) == 3
        append(journal, 1, 4, 5, term=2)
        assert journal.durable_index(1) == 3
        journal.sync()
        assert journal.durable_index(1) == 5
    with Journal.open(tmp_path) as journal:
        assert entries(journal, 1) == expected(1, 1, 3) + expected(1, 4, 5, term=2)


def test_a_truncated_group_may_begin_anywhere(tmp_path: Path) -> None:
    with Journal.open(tmp_path) as journal:
        append(journal, 1, 1, 9)
        journal.truncate_from(1, 1)
        assert journal.last_index(1) == 0
        append(journal, 1, 70, 71)
    with Journal.open(tmp_path) as journal:
        assert entries(journal, 1) == expected(1, 70, 71)


def test_read_keeps_its_bounds(tmp_path: Path) -> None:
    with Journal.open(tmp_path, cache_bytes_max=0) as journal:
        for index in range(1, 11):
            journal.append(1, index, 1, bytes(10))
        journal.sync()
        assert [index for _, index, _ in journal.read(1, 3, 8, 1000)] == [3, 4, 5, 6, 7]
        assert [index for _, index, _ in journal.read(1, 3, 8, 30)] == [3, 4, 5]
        assert [index for _, index, _ in journal.read(1, 3, 8, 0)] == [3]
        assert journal.read(1, 11, 20, 1000) == []
        assert journal.read(1, 4, 4, 1000) == []
        journal.drop_prefix(1, 5)
        with pytest.raises(LookupError, match="first 5"):
            journal.read(1, 4, 8, 1000)


@pytest.mark.parametrize("cache_bytes_max", [0, 2000, 1 << 20])
def test_entries_are_the_same_from_memory_and_from_files(
    tmp_path: Path, cache_bytes_max: int
) -> None:
    with Journal.open(tmp_path, cache_bytes_max=cache_bytes_max, segment_bytes_max=4000) as journal:
        for index in range(1, 201):
            append(journal, 1, index, index)
            append(journal, 2, index, index)
            if index % 3 == 0:
                journal.sync()
        assert entries(journal, 1) == expected(1, 1, 200)
        assert entries(journal, 2) == expected(2, 1, 200)


def test_a_prefix_that_all_groups_passed_frees_segments(tmp_path: Path) -> None:
    with Journal.open(tmp_path, segment_bytes_max=2000) as journal:
        for index in range(1, 101):
            append(journal, 1, index, index)
            append(journal, 2, index, index)
            journal.sync()
        before = segments(tmp_path)
        journal.drop_prefix(1, 90)
        assert segments(tmp_path) == before  # group 2 needs them
        journal.drop_prefix(2, 80)
        assert len(segments(tmp_path)) < len(before) / 3
        assert entries(journal, 1) == expected(1, 90, 100)
    with Journal.open(tmp_path) as journal:
        assert (journal.first_index(1), journal.first_index(2)) == (90, 80)
        assert entries(journal, 2) == expected(2, 80, 100)


def test_a_quiet_group_does_not_keep_old_segments(tmp_path: Path) -> None:
    with Journal.open(tmp_path, segment_bytes_max=2000, cache_bytes_max=0) as journal:
        append(journal, 0, 1, 5)
        for index in range(1, 101):
            append(journal, 1, index, index)
            journal.sync()
        journal.drop_prefix(1, 100)
        assert len(segments(tmp_path)) <= 2
        assert entries(journal, 0) == expected(0, 1, 5)
        append(journal, 0, 6, 6)
    for _ in range(2):
        with Journal.open(tmp_path, segment_bytes_max=2000) as journal:
            assert entries(journal, 0) == expected(0, 1, 6)
            assert entries(journal, 1) == expected(1, 100, 100)


def test_dropping_the_whole_log_is_refused(tmp_path: Path) -> None:
    with Journal.open(tmp_path) as journal:
        append(journal, 1, 1, 3)
        with pytest.raises(FatalError, match="its last is 3"):
            journal.drop_prefix(1, 4)


def test_much_unsynced_data_is_synced_by_itself(tmp_path: Path) -> None:
    with Journal.open(tmp_path) as journal:
        for index in range(1, 4):
            journal.append(1, index, 1, bytes(16 << 20))
        assert journal.durable_index(1) == 2
        assert journal.last_index(1) == 3


def test_fsync_time_is_reported(tmp_path: Path) -> None:
    seen: list[float] = []
    ticks = iter(range(100))
    with Journal.open(tmp_path, on_sync=seen.append, clock_s=lambda: float(next(ticks))) as journal:
        append(journal, 1, 1, 5)
        journal.sync()
        journal.sync()  # nothing to do, nothing done
        assert seen == [1.0]


def test_indexes_may_be_read_from_another_thread(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    stop = threading.Event()

    def watch(journal: Journal) -> None:
        while not stop.is_set():
            durable = journal.durable_index(1)
            seen.append((durable, journal.last_index(1)))

    with Journal.open(tmp_path) as journal:
        thread = threading.Thread(target=watch, args=(journal,))
        thread.start()
        for index in range(1, 300):
            append(journal, 1, index, index)
            if index % 10 == 0:
                journal.sync()
        stop.set()
        thread.join()
    assert seen
    assert all(durable <= last for durable, last in seen)


def test_batch_of_64_costs_less_than_a_millisecond_of_cpu(tmp_path: Path) -> None:
    data = bytes(200)
    costs_s = []
    with Journal.open(tmp_path) as journal:
        for batch in range(30):
            started_s = time.process_time()
            for index in range(batch * 64 + 1, batch * 64 + 65):
                journal.append(1, index, 1, data)
            journal.sync()
            costs_s.append(time.process_time() - started_s)
    assert min(costs_s) < 0.001


# Locking.


def test_a_second_opener_is_refused(tmp_path: Path) -> None:
    with Journal.open(tmp_path):
        with pytest.raises(Unavailable, match=f"in use by process {os.getpid()}"):
            Journal.open(tmp_path)
        code = (
            "import sys; from pathlib import Path\n"
            "from quorepo.cluster.raft.journal import Journal\n"
            "Journal.open(Path(sys.argv[1]), lock_wait_s=0.1)"
        )
        done = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path)], capture_output=True, text=True, check=False
        )
        assert done.returncode == 1
        assert "is in use by process" in done.stderr
    Journal.open(tmp_path).close()


def test_an_opener_waits_for_the_one_before(tmp_path: Path) -> None:
    lock = DirectoryLock(tmp_path / "LOCK")
    timer = threading.Timer(0.2, lock.release)
    timer.start()
    Journal.open(tmp_path, lock_wait_s=30).close()
    timer.join()


def test_a_failed_opening_gives_the_lock_back(tmp_path: Path) -> None:
    Journal.open(tmp_path).close()
    path = tmp_path / segments(tmp_path)[0]
    path.write_bytes(b"x" + path.read_bytes()[1:])
    for _ in range(2):
        with pytest.raises(FatalError, match="does not begin as a journal segment does"):
            Journal.open(tmp_path)


# Formats.


def test_a_newer_format_version_is_refused(tmp_path: Path) -> None:
    Journal.open(tmp_path).close()
    path = tmp_path / segments(tmp_path)[0]
    data = bytearray(path.read_bytes())
    struct.pack_into("<I", data, 8, 2)
    struct.pack_into("<I", data, 48, zlib.crc32(data[:48]))
    path.write_bytes(data)
    with pytest.raises(
        FatalError, match="has format version 2, and this program knows up to 1"
    ) as e:
        Journal.open(tmp_path)
    assert e.value.exit_code == FatalError.EXIT_CONFIG
    assert "newer" in str(e.value)


# I/O errors.


class Failing:
    """Stands in for a function of `os`, raising from the given call on."""

    def __init__(self, code: int, real: Callable[..., int | None], before: int = 0) -> None:
        self.calls = 0
        self._code = code
        self._real = real
        self._before = before

    def __call__(self, *arguments: object) -> int | None:
        self.calls += 1
        if self.calls <= self._before:
            return self._real(*arguments)
        raise OSError(self._code, os.strerror(self._code))


@pytest.mark.parametrize("name", ["fdatasync", "write"])
@pytest.mark.parametrize("code", [errno.EIO, errno.ENOSPC])
def test_io_error_is_fatal_and_never_retried(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str, code: int
) -> None:
    journal = Journal.open(tmp_path)
    append(journal, 1, 1, 3)
    journal.sync()
    append(journal, 1, 4, 5)
    failing = Failing(code, getattr(os, name))
    monkeypatch.setattr(os, name, failing)
    with pytest.raises(FatalError) as first:
        journal.sync()
    assert first.value.exit_code == FatalError.EXIT_IO_ERROR
    assert segments(tmp_path)[0] in str(first.value)
    assert errno.errorcode[code] in str(first.value)
    assert "check the disk" in str(first.value)
    assert journal.durable_index(1) == 3
    assert not journal.is_open
    for call in (
        journal.sync,
        lambda: journal.append(1, 6, 1, b""),
        lambda: journal.truncate_from(1, 2),
        lambda: journal.drop_prefix(1, 2),
        lambda: journal.read(1, 1, 2, 10),
    ):
        with pytest.raises(FatalError, match="ended at an earlier error") as later:
            call()
        assert later.value.exit_code == FatalError.EXIT_IO_ERROR
    journal.close()
    assert failing.calls == 1
    monkeypatch.undo()
    with Journal.open(tmp_path) as journal:
        assert entries(journal, 1)[:3] == expected(1, 1, 3)


def test_a_partial_write_is_continued_or_cut(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = os.write
    monkeypatch.setattr(os, "write", lambda fd, data: real(fd, bytes(data)[:7]))
    with Journal.open(tmp_path) as journal:
        append(journal, 1, 1, 3)
        journal.sync()
    journal = Journal.open(tmp_path)
    append(journal, 1, 4, 5)
    short = Failing(errno.ENOSPC, lambda fd, data: real(fd, bytes(data)[:50]), before=2)
    monkeypatch.setattr(os, "write", short)
    with pytest.raises(FatalError, match="ENOSPC"):
        journal.sync()
    journal.close()
    monkeypatch.undo()
    with Journal.open(tmp_path) as journal:
        assert entries(journal, 1) == expected(1, 1, 4)


def test_after_a_failed_fsync_the_segment_is_written_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal.open(tmp_path)
    append(journal, 1, 1, 3)
    with monkeypatch.context() as patch:
        patch.setattr(os, "fdatasync", Failing(errno.EIO, os.fdatasync))
        with pytest.raises(FatalError):
            journal.sync()
    journal.close()
    path = tmp_path / segments(tmp_path)[0]
    with path.open("rb") as before:  # open, so that its inode is not used again
        with Journal.open(tmp_path) as journal:
            assert entries(journal, 1) == expected(1, 1, 3)
        assert path.stat().st_ino != os.fstat(before.fileno()).st_ino


def test_any_interruption_of_a_sync_ends_the_journal(tmp_path: Path) -> None:
    def interrupt(_: float) -> None:
        raise KeyboardInterrupt

    journal = Journal.open(tmp_path, on_sync=interrupt)
    append(journal, 1, 1, 1)
    with pytest.raises(KeyboardInterrupt):
        journal.sync()
    with pytest.raises(FatalError, match="ended at an earlier error"):
        journal.sync()
    journal.close()


def test_a_closed_journal_refuses_use(tmp_path: Path) -> None:
    journal = Journal.open(tmp_path)
    journal.close()
    journal.close()
    with pytest.raises(FatalError, match="the journal is closed"):
        journal.append(1, 1, 1, b"")
