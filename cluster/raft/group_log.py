"""One group's log as pysyncobj wants it: a `pysyncobj.journal.Journal` over journal and vote file.

Owns: translating pysyncobj's positions in a list into Raft indexes. Must not know of messages,
elections or files. For the Raft thread only.

pysyncobj asks for `log[-1]` and `log[0]` several times in every tick, so these two are kept; and
it takes `log[n:]` to look at a few entries of it, so a slice without an end is a view that reads
when asked.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from typing import overload

from pysyncobj.journal import Journal as PysyncobjJournal

from quorepo.cluster.raft.journal import Journal, LogEntry
from quorepo.cluster.raft.votes import VoteFile
from quorepo.storage.errors import FatalError

__all__ = ["FOUNDING_ENTRY", "GroupLog", "LogView"]

# What pysyncobj puts into an empty log: its NO_OP command, at index 1, of term 0.
FOUNDING_ENTRY: LogEntry = (b"\x01", 1, 0)

_VIEW_BYTES = 256 * 1024  # read at a time while a view is walked


class LogView(Sequence[LogEntry]):
    """A slice of a log that reads its entries when they are asked for.

    It counts by index: entries that were dropped or truncated since it was made are missing at its
    ends.
    """

    def __init__(self, log: GroupLog, start: int, stop: int) -> None:
        """Entries with indexes from `start` up to, not including, `stop`."""
        self._log = log
        self._start = start
        self._stop = max(start, stop)

    def __len__(self) -> int:
        return self._stop - self._start

    def __iter__(self) -> Iterator[LogEntry]:
        index = self._start
        while index < self._stop:
            entries = self._log.entries(index, _VIEW_BYTES, self._stop - index)
            if not entries:
                return
            yield from entries
            index += len(entries)

    @overload
    def __getitem__(self, item: int) -> LogEntry: ...

    @overload
    def __getitem__(self, item: slice) -> Sequence[LogEntry]: ...

    def __getitem__(self, item: int | slice) -> LogEntry | Sequence[LogEntry]:
        if isinstance(item, slice):
            start, stop, step = item.indices(len(self))
            if step != 1:
                raise ValueError(f"a slice of the log cannot have the step {step}")
            if item.stop is None:
                return LogView(self._log, self._start + start, self._stop)
            return self._log.entries(self._start + start, sys.maxsize, max(0, stop - start))
        position = item + len(self) if item < 0 else item
        if not 0 <= position < len(self):
            raise IndexError(f"position {item} of {len(self)} entries")
        found = self._log.entries(self._start + position, 0, 1)
        if not found:
            raise IndexError(f"entry {self._start + position} is not in the log any more")
        return found[0]


class GroupLog(PysyncobjJournal):  # type: ignore[misc]
    """The log and the vote of one group's replica.

    Entries are tuples (data, index, term). Positions (`log[n]`, `deleteEntriesFrom`,
    `deleteEntriesTo`) count from the first entry that is still there, as in pysyncobj; everything
    else takes Raft indexes.
    """

    def __init__(self, journal: Journal, group: int, votes: VoteFile) -> None:
        """Opens the log of `group`; a new one gets FOUNDING_ENTRY, durable on return.

        Raises:
            FatalError: the vote file is missing or older than the log (EXIT_IO_ERROR): a replica
            stores
                a term before it takes entries of it, so `setCurrentTerm(t, ...)` must come before
                `add` of an entry of term t.
        """
        self._journal = journal
        self._group = group
        self._votes = votes
        self._commit_index = 1
        self._first: LogEntry | None = None
        self._last: LogEntry | None = None
        if journal.last_index(group) == 0:
            self.add(*FOUNDING_ENTRY)
            journal.sync()
        self._check_votes_are_of_this_log()

    def _check_votes_are_of_this_log(self) -> None:
        log_term = self.last_term
        if self._votes.term >= log_term:
            return
        state = f"of term {self._votes.term}" if self._votes.exists else "missing"
        raise FatalError(
            f"vote file {str(self._votes.path)!r} is {state}, and the log of group "
            f"{self._group} has entries of term {log_term}; without it this node could vote twice "
            "in a term: move the data directory away, and let the node rejoin with an empty one",
            exit_code=FatalError.EXIT_IO_ERROR,
        )

    # For the engine's own overrides: by Raft index.

    @property
    def group(self) -> int:
        return self._group

    @property
    def first_index(self) -> int:
        """The first entry's index; 0 after `clear`."""
        return self._journal.first_index(self._group)

    @property
    def last_index(self) -> int:
        """The last entry's index, synced or not; 0 after `clear`."""
        return self._journal.last_index(self._group)

    @property
    def last_term(self) -> int:
        """The last entry's term; 0 after `clear`."""
        return self.term_at(self.last_index) or 0

    @property
    def durable_index(self) -> int:
        """The last synced entry: all that may be acknowledged or counted for this replica."""
        return self._journal.durable_index(self._group)

    def term_at(self, index: int) -> int | None:
        """The term of the entry at a Raft index; None when it is not in the log. Reads nothing."""
        return self._journal.term_at(self._group, index)

    def entries(self, from_index: int, bytes_max: int, count_max: int) -> list[LogEntry]:
        """Entries from a Raft index on, in order.

        Args:
            bytes_max: of data in all; the first entry comes however large it is.
            count_max: entries at most.

        Returns:
            Empty when `from_index` is behind the last entry or `count_max` is 0.

        Raises:
            LookupError: `from_index` is below `first_index`: it was dropped.
        """
        return self._journal.read(self._group, from_index, from_index + count_max, bytes_max)

    def truncate_from(self, index: int) -> None:
        """Removes the entries from a Raft index on; durable with the next `sync`."""
        self._first = self._last = None
        self._journal.truncate_from(self._group, index)

    def drop_prefix(self, index: int) -> None:
        """Removes the entries before a Raft index, which must be in the log; durable on return."""
        self._first = None
        self._journal.drop_prefix(self._group, index)

    def restart_at(self, index: int, term: int) -> None:
        """Forgets all entries and begins with an entry that has an index and a term and says
        nothing; durable on return."""
        self._first = self._last = None
        self._journal.restart_at(self._group, index, term, FOUNDING_ENTRY[0] + bytes(8))

    @property
    def record_bytes(self) -> int:
        """What the entries take in the journal's segments."""
        return self._journal.record_bytes(self._group)

    def first_within(self, bytes_max: int) -> int:
        """The first entry of the longest end of the log that takes at most `bytes_max`."""
        return self._journal.first_within(self._group, bytes_max)

    def sync(self) -> None:
        """Makes everything added and truncated durable, in all groups of the node."""
        self._journal.sync()

    # pysyncobj's interface: by position.

    def add(self, command: bytes, idx: int, term: int) -> None:
        """Appends an entry that follows the last one; acknowledge it only once it is synced."""
        entry = (bytes(command), idx, term)
        self._journal.append(self._group, idx, term, entry[0])
        self._last = entry

    def clear(self) -> None:
        """Removes all entries; whatever index is added next begins the log."""
        self.truncate_from(self.first_index)

    def deleteEntriesFrom(self, entryFrom: int) -> None:
        """Removes the entries from a position on."""
        if 0 <= entryFrom < len(self):
            self.truncate_from(self.first_index + entryFrom)

    def deleteEntriesTo(self, entryTo: int) -> None:
        """Removes the entries before a position, which must be there; durable on return."""
        if entryTo > 0:
            self.drop_prefix(self.first_index + entryTo)

    @overload
    def __getitem__(self, item: int) -> LogEntry: ...

    @overload
    def __getitem__(self, item: slice) -> Sequence[LogEntry]: ...

    def __getitem__(self, item: int | slice) -> LogEntry | Sequence[LogEntry]:
        if item == -1:
            if self._last is None:
                self._last = self._view()[-1]
            return self._last
        if item == 0:
            if self._first is None:
                self._first = self._view()[0]
            return self._first
        return self._view()[item]

    def __len__(self) -> int:
        first_index = self.first_index
        return self.last_index - first_index + 1 if first_index else 0

    def __iter__(self) -> Iterator[LogEntry]:
        return iter(self._view())

    def _view(self) -> LogView:
        first_index = self.first_index
        return LogView(self, first_index, self.last_index + 1 if first_index else 0)

    def setRaftCommitIndex(self, raftCommitIndex: int) -> None:
        """In memory only: the commit index need not be durable (Raft paper, figure 2)."""
        self._commit_index = raftCommitIndex

    def getRaftCommitIndex(self) -> int:
        return self._commit_index

    def setCurrentTerm(self, term: int, votedForNodeId: str | None) -> None:
        """Stores term and vote; durable on return."""
        self._votes.store(term, votedForNodeId)

    def getCurrentTerm(self) -> int:
        return self._votes.term

    def getVotedForNodeId(self) -> str | None:
        return self._votes.voted_for

    def onOneSecondTimer(self) -> None:
        """Nothing is left for later."""

    def _destroy(self) -> None:
        """Syncs; the journal belongs to the node and stays open."""
        if self._journal.is_open:
            self._journal.sync()
