"""One group's log with the rules that the engine must never break, in front of
`group_log.GroupLog`.

Owns: refusing to cut what is committed, and to guess at what is not there. Must not know of
elections or followers. All calls come from the Raft thread.
"""

from __future__ import annotations

from typing import Protocol

from quorepo.storage.errors import FatalError

__all__ = ["GroupLogLike", "LogRecord", "ReplicaLog"]

LogRecord = tuple[bytes, int, int]  # data, index, term: the order that pysyncobj uses


class GroupLogLike(Protocol):
    """What the engine needs of `group_log.GroupLog`; the names in mixed case are pysyncobj's."""

    @property
    def first_index(self) -> int: ...
    @property
    def last_index(self) -> int: ...
    @property
    def last_term(self) -> int: ...
    @property
    def durable_index(self) -> int: ...
    def term_at(self, index: int) -> int | None: ...
    def entries(self, from_index: int, bytes_max: int, count_max: int) -> list[LogRecord]: ...
    def add(self, command: bytes, idx: int, term: int) -> None: ...
    @property
    def record_bytes(self) -> int: ...
    def first_within(self, bytes_max: int) -> int: ...
    def truncate_from(self, index: int) -> None: ...
    def drop_prefix(self, index: int) -> None: ...
    def restart_at(self, index: int, term: int) -> None: ...
    def getCurrentTerm(self) -> int: ...
    def getVotedForNodeId(self) -> str | None: ...


class ReplicaLog:
    """The entries `first_index` .. `last_index` of one group; never empty."""

    def __init__(self, group: int, log: GroupLogLike) -> None:
        self._group = group
        self._log = log

    @property
    def for_pysyncobj(self) -> GroupLogLike:
        return self._log

    @property
    def first_index(self) -> int:
        return self._log.first_index

    @property
    def last_index(self) -> int:
        return self._log.last_index

    @property
    def last_term(self) -> int:
        return self._log.last_term

    @property
    def durable_index(self) -> int:
        """The last entry that survives a power cut."""
        return self._log.durable_index

    @property
    def record_bytes(self) -> int:
        """What the log takes in the journal."""
        return self._log.record_bytes

    def first_within(self, bytes_max: int) -> int:
        """The first entry of the longest end of the log that takes at most `bytes_max`; behind the
        last one when that is too large by itself."""
        return self._log.first_within(bytes_max)

    def has(self, index: int) -> bool:
        return self._log.first_index <= index <= self._log.last_index

    def term_at(self, index: int) -> int:
        """The term of an entry that must be in the log. Raises FatalError when it is not."""
        term = self._log.term_at(index)
        if term is None:
            raise FatalError(
                f"entry {index} of group {self._group} is not in the log "
                f"({self.first_index} to {self.last_index})"
            )
        return term

    def read(self, start: int, stop: int, bytes_max: int) -> list[LogRecord]:
        """Entries from `start` up to, not including, `stop`; the first one however large it is."""
        return self._log.entries(start, bytes_max, max(0, stop - start))

    def append(self, data: bytes, index: int, term: int) -> None:
        """Adds an entry; durable with the next sync of the journal."""
        self._log.add(data, index, term)

    def truncate_from(self, index: int, commit_index: int) -> None:
        """Removes the entries from `index` on. Raises FatalError when one of them is committed."""
        if index <= commit_index:
            raise FatalError(
                f"group {self._group} was asked to remove entry {index}, but entries up to "
                f"{commit_index} are committed: two leaders contradict each other, or a replica "
                "lost what it had acknowledged"
            )
        self._log.truncate_from(index)

    def drop_prefix(self, index: int, commit_index: int) -> None:
        """Removes the entries before `index`, which is committed; durable on return."""
        if index > commit_index:
            raise FatalError(
                f"group {self._group} was asked to cut its log before entry {index}, but only "
                f"{commit_index} is committed"
            )
        self._log.drop_prefix(index)

    def restart_at(self, index: int, term: int, commit_index: int) -> None:
        """Forgets all entries: the log begins with (index, term), of which only the term is known.
        Durable on return."""
        if index <= commit_index:
            raise FatalError(
                f"group {self._group} was asked to begin its log anew at entry {index}, but "
                f"{commit_index} is committed"
            )
        self._log.restart_at(index, term)
