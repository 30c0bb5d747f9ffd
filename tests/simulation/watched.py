"""The product's journal and host with a witness: what they do is told to the rules.

Owns nothing but the telling, and what costs time and shows nothing here: messages need not be
encoded (`lean`) in most schedules, the inbox needs no lock, nobody looks at the published status.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any, cast

from quorepo.cluster.raft.engine import Node as RaftNode
from quorepo.cluster.raft.errands import StoppableWaiter
from quorepo.cluster.raft.host import RaftHost
from quorepo.cluster.raft.journal import Journal
from quorepo.cluster.raft.status_board import StatusBoard

if TYPE_CHECKING:
    from simulation.node import Node

__all__ = ["WatchedHost", "WatchedJournal"]


class WatchedJournal(Journal):
    """The product's journal; tells the rules what is appended and removed, and what is durable."""

    node: Node | None = None  # none yet while it is opened: it may free segments then

    def append(self, group: int, index: int, term: int, data: bytes) -> None:
        before = self.term_at(group, index - 1) or 0
        super().append(group, index, term, data)
        if self.node is not None:  # else: begins behind a snapshot
            self.node.note_append(group, (data, index, term), before)

    def restart_at(self, group: int, index: int, term: int, data: bytes) -> None:
        assert self.node is not None
        self.node.note_restart(group, index, term, data)
        node, self.node = self.node, None
        try:
            super().restart_at(group, index, term, data)
        finally:
            self.node = node
        node.note_sync()
        node.note_installed(group)

    def truncate_from(self, group: int, index: int) -> None:
        if index <= self.last_index(group) and self.node is not None:
            self.node.note_truncate(group, index)
        super().truncate_from(group, index)

    def sync(self) -> None:
        super().sync()
        if self.node is not None:
            self.node.note_sync()


class _NoStatus:
    """In place of a StatusBoard."""

    def publish(self, changed: Iterable[int], now: float) -> None:
        pass

    def wake_at(self) -> list[float]:
        return []


class WatchedHost(RaftHost):
    """The product's host; what it says is checked, and need not be encoded."""

    node: Node
    lean = True

    def watch(self, node: Node, *, lean: bool) -> None:
        """Once it is made."""
        self.node, self.lean = node, lean
        self._status = cast(StatusBoard, _NoStatus())

    def _post(
        self, action: Callable[..., None], *arguments: Any, waiter: StoppableWaiter | None = None
    ) -> None:
        self._inbox.append((action, arguments, waiter))

    def _flush(self) -> None:
        if self._outbox:
            super()._flush()

    def _carry(self, replica_id: str, group: int, message: dict[str, Any]) -> bool:
        self.node.world.rules.check_message(self.node, replica_id, group, message)
        if not self.lean:
            return super()._carry(replica_id, group, message)
        message.setdefault("error", 0)
        outbox = cast(dict[str, list[Any]], self._outbox)
        outbox.setdefault(replica_id, []).append((group, message))
        return True

    def _receive(self, from_replica: str, messages: Sequence[Any]) -> None:
        if not self.lean:
            super()._receive(from_replica, messages)
            return
        sender, now = RaftNode(from_replica), self._monotonic()
        for number, message in messages:
            if number in self._groups:
                self._touched.add(number)
                self._groups[number].receive(sender, message, now)
