"""Any sequence of operations, syncs, crashes and reopenings equals a dict of lists."""

from __future__ import annotations

import copy
import dataclasses
import tempfile
from pathlib import Path

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from quorepo.cluster.raft.journal import Journal

GROUPS = st.integers(0, 2)
# A memory file system where there is one: thousands of syncs, none of which has to be real.
FAST_DIRECTORY = "/dev/shm" if Path("/dev/shm").is_dir() else None


@dataclasses.dataclass
class ModelLog:
    """Entries (data, index, term) of one group."""

    entries: list[tuple[bytes, int, int]] = dataclasses.field(default_factory=list)

    @property
    def first(self) -> int:
        return self.entries[0][1] if self.entries else 0

    @property
    def last(self) -> int:
        return self.entries[-1][1] if self.entries else 0

    @property
    def last_term(self) -> int:
        return self.entries[-1][2] if self.entries else 0


class JournalMachine(RuleBasedStateMachine):
    """Tiny segments and caches: rolling, moving and reading from files happen all the time."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.TemporaryDirectory(dir=FAST_DIRECTORY)
        self.logs = {group: ModelLog() for group in range(3)}
        self.synced = copy.deepcopy(self.logs)
        self.dirty = False
        self.open()

    def teardown(self) -> None:
        self.journal.close()
        self.folder.cleanup()

    def open(self) -> None:
        self.journal = Journal.open(
            Path(self.folder.name), segment_bytes_max=1500, cache_bytes_max=600
        )

    def mark_synced(self) -> None:
        self.synced = copy.deepcopy(self.logs)
        self.dirty = False

    @rule(
        group=GROUPS,
        sizes=st.lists(st.integers(0, 400), min_size=1, max_size=5),
        term_step=st.integers(0, 1),
        start=st.integers(1, 1000),
    )
    def append(self, group: int, sizes: list[int], term_step: int, start: int) -> None:
        log = self.logs[group]
        for size in sizes:
            index = log.last + 1 if log.entries else start
            entry = (bytes([size % 251]) * size, index, log.last_term + term_step)
            self.journal.append(group, index, entry[2], entry[0])
            log.entries.append(entry)
        self.dirty = True

    @rule(group=GROUPS, back=st.integers(0, 12))
    def truncate(self, group: int, back: int) -> None:
        log = self.logs[group]
        index = log.last - back
        if not log.entries:
            return
        self.journal.truncate_from(group, index)
        log.entries = [entry for entry in log.entries if entry[1] < index]
        self.dirty = True

    @precondition(lambda self: any(log.entries for log in self.logs.values()))
    @rule(group=GROUPS, back=st.integers(0, 6))
    def drop_prefix(self, group: int, back: int) -> None:
        log = self.logs[group]
        index = log.last - back
        if index <= log.first:
            return
        self.journal.drop_prefix(group, index)
        log.entries = [entry for entry in log.entries if entry[1] >= index]
        self.mark_synced()

    @rule()
    def sync(self) -> None:
        self.journal.sync()
        self.mark_synced()

    @rule()
    def close_and_reopen(self) -> None:
        self.journal.close()
        self.mark_synced()
        self.open()

    @rule()
    def crash_and_reopen(self) -> None:
        self.journal._release()
        self.logs = copy.deepcopy(self.synced)
        self.dirty = False
        self.open()

    @rule(group=GROUPS, start=st.integers(0, 40), count=st.integers(0, 9), size=st.integers(0, 900))
    def read(self, group: int, start: int, count: int, size: int) -> None:
        log = self.logs[group]
        first = max(1, log.first) + start
        wanted = [entry for entry in log.entries if first <= entry[1] < first + count]
        while len(wanted) > 1 and sum(len(entry[0]) for entry in wanted) > size:
            wanted.pop()
        assert self.journal.read(group, first, first + count, size) == wanted

    @invariant()
    def indexes_and_terms_are_the_models(self) -> None:
        for group, log in self.logs.items():
            assert self.journal.first_index(group) == log.first
            assert self.journal.last_index(group) == log.last
            assert [self.journal.term_at(group, e[1]) for e in log.entries] == [
                e[2] for e in log.entries
            ]
            if not self.dirty:
                assert self.journal.durable_index(group) == log.last
            assert self.journal.durable_index(group) <= log.last

    @invariant()
    def contents_are_the_models(self) -> None:
        for group, log in self.logs.items():
            found = self.journal.read(group, log.first, log.last + 1, 1 << 30) if log.first else []
            assert found == log.entries


TestJournalEqualsItsModel = JournalMachine.TestCase
TestJournalEqualsItsModel.settings = settings(
    max_examples=60,
    stateful_step_count=40,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
