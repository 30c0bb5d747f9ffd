"""GroupLog does what pysyncobj's own journal does, on disk and without loading the log."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pysyncobj.journal import MemoryJournal

from quorepo.cluster.raft.group_log import FOUNDING_ENTRY, GroupLog, LogView
from quorepo.cluster.raft.journal import Journal
from quorepo.cluster.raft.votes import VoteFile
from quorepo.storage.errors import FatalError

FAST_DIRECTORY = "/dev/shm" if Path("/dev/shm").is_dir() else None


@pytest.fixture
def journal(tmp_path: Path) -> Any:
    with Journal.open(tmp_path / "journal") as journal:
        yield journal


@pytest.fixture
def log(journal: Journal, tmp_path: Path) -> GroupLog:
    return GroupLog(journal, 1, VoteFile(tmp_path / "vote"))


def fill(log: GroupLog, last: int, data: bytes = b"data") -> None:
    for index in range(log.last_index + 1, last + 1):
        log.add(data, index, 0)


positions = st.one_of(st.none(), st.integers(-12, 12))
operations = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.binary(max_size=30), st.integers(0, 1)),
        st.tuples(st.just("deleteEntriesFrom"), st.integers(0, 12)),
        st.tuples(st.just("deleteEntriesTo"), st.integers(0, 12)),
        st.tuples(st.just("clear"), st.integers(1, 50)),
        st.tuples(st.just("item"), st.integers(-12, 12)),
        st.tuples(st.just("slice"), positions, positions),
        st.tuples(st.just("reopen")),
    ),
    max_size=40,
)


@settings(max_examples=150, deadline=None)
@given(operations=operations)
def test_it_equals_pysyncobjs_memory_journal(operations: list[tuple[Any, ...]]) -> None:
    with tempfile.TemporaryDirectory(dir=FAST_DIRECTORY) as name:
        journal = Journal.open(Path(name), segment_bytes_max=600, cache_bytes_max=300)
        votes = VoteFile(Path(name) / "vote")
        votes.store(100, None)
        log, model = GroupLog(journal, 1, votes), MemoryJournal()
        model.add(*FOUNDING_ENTRY)
        for operation, *arguments in operations:
            last_index, last_term = model[-1][1:]
            if operation == "add":
                data, term_step = arguments
                for target in (log, model):
                    target.add(data, last_index + 1, last_term + term_step)
            elif operation == "deleteEntriesFrom" and arguments[0] > 0:
                for target in (log, model):
                    target.deleteEntriesFrom(arguments[0])
            elif operation == "deleteEntriesTo" and arguments[0] < len(model):
                for target in (log, model):
                    target.deleteEntriesTo(arguments[0])
            elif operation == "clear":
                for target in (log, model):
                    target.clear()
                    assert len(target) == 0
                    target.add(b"snapshot", arguments[0], 1)
            elif operation == "item":
                try:
                    wanted = model[arguments[0]]
                except IndexError:
                    with pytest.raises(IndexError):
                        log[arguments[0]]
                else:
                    assert log[arguments[0]] == wanted
            elif operation == "slice":
                piece = slice(*arguments)
                assert list(log[piece]) == model[piece]
                assert len(log[piece]) == len(model[piece])
                assert list(log[piece][1:3]) == model[piece][1:3]
            elif operation == "reopen":
                journal.close()
                journal = Journal.open(Path(name), segment_bytes_max=600, cache_bytes_max=300)
                log = GroupLog(journal, 1, VoteFile(Path(name) / "vote"))
            assert (len(log), log[0], log[-1]) == (len(model), model[0], model[-1])
            assert list(log) == model[:]
        journal.close()


def test_an_empty_log_begins_as_pysyncobj_begins_it(log: GroupLog) -> None:
    assert list(log) == [(b"\x01", 1, 0)]
    assert log.durable_index == 1


def test_the_founding_entry_is_added_once(tmp_path: Path) -> None:
    for _ in range(2):
        with Journal.open(tmp_path / "journal") as journal:
            log = GroupLog(journal, 1, VoteFile(tmp_path / "vote"))
            assert (log.first_index, log.last_index, len(log)) == (1, 1, 1)


def test_a_slice_without_an_end_reads_only_what_is_asked_for(
    log: GroupLog, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(log, 2000, bytes(1000))
    read: list[int] = []
    real = journal.read

    def counting(group: int, start: int, stop: int, bytes_max: int) -> Any:
        found = real(group, start, stop, bytes_max)
        read.append(len(found))
        return found

    monkeypatch.setattr(journal, "read", counting)
    view = log[3:]
    assert isinstance(view, LogView)
    assert isinstance(view[5:], LogView)
    assert (len(view), view[-1][1], view[0][1]) == (1997, 2000, 4)
    assert [index for _, index, _ in view[:3]] == [4, 5, 6]
    assert next(iter(view))[1] == 4
    assert sum(read) < 300


def test_last_and_first_entry_cost_no_read(
    log: GroupLog, journal: Journal, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(log, 10)
    assert (log[0][1], log[-1][1]) == (1, 10)
    monkeypatch.setattr(journal, "read", None)
    for _ in range(3):
        assert (log[0][1], log[-1][1]) == (1, 10)


def test_entries_keeps_both_bounds(log: GroupLog) -> None:
    fill(log, 20, bytes(10))
    assert [e[1] for e in log.entries(5, 35, 100)] == [5, 6, 7]
    assert [e[1] for e in log.entries(5, 1000, 2)] == [5, 6]
    assert [e[1] for e in log.entries(5, 0, 9)] == [5]
    assert log.entries(21, 1000, 9) == []
    assert log.entries(5, 1000, 0) == []
    log.deleteEntriesTo(9)
    assert log.first_index == 10
    with pytest.raises(LookupError):
        log.entries(9, 1000, 1)


def test_terms_are_known_without_reading(log: GroupLog) -> None:
    log.setCurrentTerm(3, None)
    log.add(b"x", 2, 3)
    assert [log.term_at(index) for index in (0, 1, 2, 3)] == [None, 0, 3, None]
    assert log.last_term == 3


def test_other_steps_of_a_slice_are_refused(log: GroupLog) -> None:
    with pytest.raises(ValueError, match="step -1"):
        log[::-1]


def test_term_and_vote_are_durable_and_the_commit_index_is_not(tmp_path: Path) -> None:
    with Journal.open(tmp_path / "journal") as journal:
        log = GroupLog(journal, 1, VoteFile(tmp_path / "vote"))
        assert (log.getCurrentTerm(), log.getVotedForNodeId(), log.getRaftCommitIndex()) == (
            0,
            None,
            1,
        )
        log.setCurrentTerm(7, "replica-b")
        log.setRaftCommitIndex(5)
        assert log.getRaftCommitIndex() == 5
        log.onOneSecondTimer()
        log._destroy()
    with Journal.open(tmp_path / "journal") as journal:
        log = GroupLog(journal, 1, VoteFile(tmp_path / "vote"))
        assert (log.getCurrentTerm(), log.getVotedForNodeId()) == (7, "replica-b")
        assert log.getRaftCommitIndex() == 1


@pytest.mark.parametrize("term", [0, 4])
def test_a_missing_or_older_vote_file_is_refused(tmp_path: Path, term: int) -> None:
    with Journal.open(tmp_path / "journal") as journal:
        log = GroupLog(journal, 1, VoteFile(tmp_path / "vote"))
        log.setCurrentTerm(5, "replica-a")
        log.add(b"x", 2, 5)
    (tmp_path / "vote").unlink()
    if term:
        VoteFile(tmp_path / "vote").store(term, None)
    with Journal.open(tmp_path / "journal") as journal:
        with pytest.raises(FatalError, match="could vote twice") as error:
            GroupLog(journal, 1, VoteFile(tmp_path / "vote"))
        assert error.value.exit_code == FatalError.EXIT_IO_ERROR


def test_destroying_a_log_after_the_journal_was_closed_is_harmless(tmp_path: Path) -> None:
    with Journal.open(tmp_path / "journal") as journal:
        log = GroupLog(journal, 1, VoteFile(tmp_path / "vote"))
    log._destroy()
