"""Where a log begins: cutting what nobody needs, and beginning anew behind an installed snapshot.

Owns: how much of a log is cut, telling a follower that only a snapshot helps it, and the switch of
a group to a state that came from elsewhere. Must not know how a snapshot travels or what is in it;
`SnapshotClient` is told that one is needed, and whoever has it calls `begin_install`, puts it into
force, and calls `finish_install`.

A snapshot is the state after a committed entry (index, term), so it is true under every leader. It
is never newer than what some majority committed, and never taken in place of entries that this
replica knows to be committed (defects S2 and D5: pysyncobj commits over an unverified tail, and
answers success for a snapshot that failed to load).
"""

from __future__ import annotations

import logging

from quorepo.cluster.raft.configuration import ConfigurationHistory
from quorepo.cluster.raft.engine import Engine, Node
from quorepo.cluster.raft.interface import LogExtent, SnapshotClient
from quorepo.cluster.raft.wire import Message
from quorepo.internal.v1 import log_pb2
from quorepo.storage.errors import FatalError

__all__ = ["Snapshots"]

log = logging.getLogger(__name__)


class Snapshots(Engine):
    """The part of a group that knows where its log begins."""

    history: ConfigurationHistory
    applied_index: int
    installing: bool

    def _begin_snapshots(self, client: SnapshotClient | None) -> None:
        self._snapshot_client = client

    # ---- compaction

    def extent(self) -> LogExtent:
        """How long the log is."""
        return LogExtent(
            first_index=self.log.first_index,
            last_index=self.log.last_index,
            applied_index=self.applied_index,
            record_bytes=self.log.record_bytes,
        )

    def compact(self, durable_index: int, keep_from: int | None) -> int:
        """Cuts the log below what is worth keeping, durably; returns its first index then.

        Args:
            durable_index: the state holds everything up to here, whatever happens to the power.
            keep_from: the entry at this index and those behind it are needed by somebody.

        Entries are kept for followers that were away for a short time. One entry that the state
        holds always stays: the log knows the term of the state by it.
        """
        config = self.config
        kept = max(
            self.log.last_index - config.trailing_entries,
            self.log.first_within(config.compaction_bytes_min // 2),
        )
        limits = [kept, durable_index, self.applied_index, self.log.durable_index]
        index = min(limits if keep_from is None else [*limits, keep_from])
        if not self.installing and index > self.log.first_index:
            self.log.drop_prefix(index, self.commit_index)
        return self.log.first_index

    # ---- the leader's side

    def offer_snapshot(self, node: Node) -> None:
        """Tells a follower that the log does not reach back to what it lacks."""
        first_index = self.log.first_index
        self.send(
            node,
            "snapshot_offer",
            index=first_index,
            index_term=self.log.term_at(first_index),
            configuration=self.history.current,
        )

    # ---- the follower's side

    def _on_snapshot_offer(self, node: Node, message: Message) -> None:
        if message["term"] < self.current_term:
            self.send(node, "term_notice")
            return
        self.follow(node, message["term"])
        if self.installing:
            return
        if message["index"] <= self.commit_index:
            # An answer was lost. What is committed is in every later leader's log (Raft 5.4.3).
            self.acknowledge_to(node, self.commit_index)
        elif self._snapshot_client is not None:
            self._snapshot_client.offered(
                self.group, message["index"], message["configuration"], node.id
            )

    def begin_install(self, index: int, term: int) -> bool:
        """Halts apply for a snapshot that is complete on this disk; False when it is not needed.

        Until `finish_install`, no entry is taken or handed over. Heartbeats are answered.
        """
        if self.is_leader or self.installing or index <= self.commit_index:
            return False
        if self.log.has(index) and self.log.term_at(index) == term:
            # The log got there meanwhile, and the snapshot says that this much is committed.
            self.set_commit_index(index)
            self.history.commit(index)
            return False
        self.installing = True
        return True

    def finish_install(self, index: int, term: int, configuration: log_pb2.Configuration) -> None:
        """The state in force is the snapshot's: the log begins anew behind it, durably."""
        if not self.installing or self.is_leader or index <= self.commit_index:
            raise FatalError(
                f"group {self.group}: the state was switched to entry {index} while the log had "
                f"{self.commit_index} committed"
            )
        self.log.restart_at(index, term, self.commit_index)
        self.installing = False
        self.set_commit_index(index)
        self.history.restart(index, configuration)
        self.note_installed(index, term)
        self.adopt_configuration()
        self.release_reads()
        log.info("log begins behind a snapshot", extra={"fields": {"group": self.group,
                 "index": index, "term": term}})  # fmt: skip
        if self.leader is not None:
            self.acknowledge_to(self.leader, index)

    def cancel_install(self) -> None:
        """The snapshot could not be put into force, and nothing was changed."""
        self.installing = False
