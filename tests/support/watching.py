"""Watchers of a cluster's changes, and the history that its nodes have on disk to compare with."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
from collections.abc import Iterable

import grpc

from quorepo.cluster.state.reader import StateReader
from quorepo.cluster.state.rows import TransactionRow
from quorepo.storage.layout import GroupLayout
from quorepo.v1 import event_pb2, event_pb2_grpc
from support.demo import Demo
from support.waiting import eventually

__all__ = ["Change", "Watcher", "history_of"]

_STORAGE = 1
_LOST_S = 5.0  # a stream without a word for this long is broken off and begun again
_AGAIN_S = 0.1


@dataclasses.dataclass(frozen=True, slots=True)
class Change:
    """One ref change; an empty oid: created, or deleted."""

    index: int
    repository_id: str
    name: bytes
    old_oid: str
    new_oid: str


class Watcher(threading.Thread):
    """Reads Watch of the given nodes, one at a time; goes on from its cursor when a stream breaks.

    `forgetful`: its cursor is that of the tenth event before, as of a client that keeps one now
    and then: what it has seen since comes again.
    """

    def __init__(self, demo: Demo, nodes: list[str], *, forgetful: bool = False) -> None:
        super().__init__(daemon=True)
        self._demo, self._nodes, self._forgetful = demo, nodes, forgetful
        self._stop_requested = threading.Event()
        self._call: grpc.Call | None = None
        self.events: list[event_pb2.Event] = []
        self.cursors: list[bytes] = []
        self.streams = 0
        self.wrong: list[str] = []  # what no stream may show

    def run(self) -> None:
        turn = 0
        while not self._stop_requested.is_set():
            node = self._nodes[turn % len(self._nodes)]
            turn += 1
            with contextlib.suppress(grpc.RpcError):
                self._read(node)
            self._stop_requested.wait(_AGAIN_S)

    def _read(self, node: str) -> None:
        kept = self.cursors[: max(0, len(self.cursors) - 10)] if self._forgetful else self.cursors
        request = event_pb2.WatchRequest(cursor=kept[-1] if kept else b"", from_beginning=True)
        metadata = (("authorization", f"Bearer {self._demo.token}"),)
        with grpc.insecure_channel(self._demo.nodes[node].grpc) as channel:
            stub = event_pb2_grpc.EventServiceStub(channel)
            call = self._call = stub.Watch(request, metadata=metadata, timeout=_LOST_S)
            last = 0
            for message in call:
                if not message.HasField("event"):
                    continue
                self.streams += not last
                if message.event.index <= last and not self.events[-1].continued:
                    self.wrong.append(f"{node}: index {message.event.index} after {last}")
                last = message.event.index
                self.events.append(message.event)
                self.cursors.append(message.cursor)

    def wait_for(self, index: int) -> None:
        """Returns once it has seen the log entry `index`."""
        eventually(
            lambda: bool(self.events) and max(e.index for e in self.events[-20:]) >= index,
            timeout_s=60,
            what=f"a watcher of {self._nodes} sees the log entry {index}",
        )

    def finish(self) -> None:
        self._stop_requested.set()
        if self._call is not None:
            self._call.cancel()
        self.join(60)

    def changes(self) -> list[Change]:
        """Each once, in the order in which they came first."""
        seen: dict[Change, None] = {}
        for event in self.events:
            for change in event.ref_changes:
                row = (event.index, event.repository_id, change.name)
                seen.setdefault(Change(*row, change.old_oid, change.new_oid))
        return list(seen)


def history_of(demo: Demo, node: str) -> list[Change]:
    """Every ref change that a node has applied, from its own file."""
    reader = StateReader(GroupLayout(demo.nodes[node].data_dir, _STORAGE))
    try:
        rows: list[TransactionRow] = []
        after = 0
        while page := reader.transactions(after, 500)[0]:
            rows.extend(page)
            after = page[-1].log_index
        return list(_changes(reader, rows))
    finally:
        reader.close()


def _changes(reader: StateReader, rows: Iterable[TransactionRow]) -> Iterable[Change]:
    for row in rows:
        for _, name, old, new in reader.changes_of(row.repository_id, row.counter, -1, 10_000):
            yield Change(
                row.log_index, row.repository_id, name, (old or b"").hex(), (new or b"").hex()
            )
