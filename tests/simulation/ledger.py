"""What the rules know of one node's disk: which entries a power cut would leave, and which vote.

Owns the account, kept from what the journal is told to do and from the virtual disk, never from
what the engine believes. `Node` is one of these.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, cast

from quorepo.cluster.raft.votes import VoteFile
from simulation.disk import VirtualDisk
from simulation.events import Violation

if TYPE_CHECKING:
    from simulation.cluster import Cluster
    from simulation.node import Node
    from simulation.watched import WatchedJournal

__all__ = ["Ledger"]

_VOTE_FILES = {group: f"/data/votes/group-{group}.vote" for group in (0, 1)}


class Ledger:
    """The account of one node."""

    world: Cluster
    disk: VirtualDisk
    journal: WatchedJournal

    def __init__(self, groups: Sequence[int]) -> None:
        # What the disk would keep, by group: index -> term. And all configuration entries.
        self.durable: dict[int, dict[int, int]] = {group: {} for group in groups}
        self.changes: dict[int, dict[int, int]] = {group: {} for group in groups}
        # By group: the last entry of the snapshot that the log durably begins with.
        self.beginnings: dict[tuple[int, int, int], bytes] = {}
        self.installed = dict.fromkeys(groups, 0)
        self._unsynced: list[tuple[int, int, int]] = []
        self._vote_inodes: dict[int, object] = {}
        self._votes: dict[int, tuple[int, str | None]] = {}

    @property
    def _node(self) -> Node:
        return cast("Node", self)

    def note_append(self, group: int, record: tuple[bytes, int, int], before: int) -> None:
        data, index, term = record
        self._unsynced.append((group, index, term))
        if data[0] == 2:
            self.changes[group][index] = term
        self.world.rules.check_append(self._node, group, record, before)

    def note_truncate(self, group: int, index: int) -> None:
        for gone in range(index, self.journal.last_index(group) + 1):
            self.world.rules.check_truncate(self._node, group, gone)
            self.changes[group].pop(gone, None)
        self._unsynced.append((group, index, -1))

    def note_restart(self, group: int, index: int, term: int, data: bytes) -> None:
        """The log is about to begin anew, behind a snapshot."""
        self.world.rules.check_restart(self._node, group, index, term)
        self._unsynced += [(group, 0, -1), (group, index, term)]
        self.changes[group].clear()
        self.beginnings[group, index, term] = data

    def note_sync(self) -> None:
        if not self._unsynced:
            return
        if not self.disk.all_synced("/data/journal"):
            return
        for group, index, term in self._unsynced:
            durable = self.durable[group]
            if term >= 0:
                durable[index] = term
            else:
                for gone in [other for other in durable if other >= index]:
                    del durable[gone]
        self._unsynced.clear()

    def note_recovered(self) -> None:
        """After a start: what the journal found must be what somebody had appended."""
        for group, index, term in self._unsynced:
            if term < 0:  # a removal that was not synced may have survived, or not
                for gone in [other for other in self.durable[group] if other >= index]:
                    del self.durable[group][gone]
        self._unsynced.clear()
        for group in self.world.groups:
            self.note_installed(group)
            first, last = self.journal.first_index(group), self.journal.last_index(group)
            durable, changes = self.durable[group], self.changes[group]
            for index, term in durable.items():
                if index >= first and self.journal.term_at(group, index) != term:
                    raise Violation(f"journal: {self} lost entry {index}, which was synced")
            durable.clear()
            changes.clear()
            if not last:
                continue
            before = 0
            for data, index, term in self.journal.read(group, first, last + 1, 1 << 30):
                known = self.world.rules.entries.get((group, index, term))
                if index == first and self.beginnings.get((group, index, term)) == data:
                    known = (data, before)
                if known is None or known[0] != data or (index > first and known[1] != before):
                    raise Violation(f"journal: {self} invented entry {index} of term {term}")
                durable[index] = before = term
                if data[0] == 2:
                    changes[index] = term

    def note_installed(self, group: int) -> None:
        """Whether the log begins behind a snapshot, durably."""
        first = self.journal.first_index(group)
        if (group, first, self.journal.term_at(group, first)) in self.beginnings:
            self.installed[group] = max(first, self.installed[group])

    def durable_vote(self, group: int) -> tuple[int, str | None]:
        """Term and vote as a power cut would leave them."""
        name = _VOTE_FILES[group]
        inode = self.disk.durable_inode(name)
        if inode is None:
            return (0, None)
        if self._vote_inodes.get(group) is not inode:
            vote = VoteFile.__new__(VoteFile)
            vote._path = cast(Path, name)
            self._votes[group] = vote._decode(bytes(inode.data[: inode.durable_bytes]))
            self._vote_inodes[group] = inode
        return self._votes[group]
