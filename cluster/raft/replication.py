"""The leader's side of the log: what to send to whom, and what the answers mean.

Owns: each follower's progress; when it is probed, when appends are pipelined, how many may be on
their way. Must not know how entries come into the log, nor what they say.

Every append of a follower carries prev = next index - 1, heartbeats too. So an append that was
lost on the way shows at the latest when the follower refuses the heartbeat behind it. Answers
only ever say what was true and durable on the follower in this term, so late and repeated ones do
no harm (defects S1, S4, S6).
"""

from __future__ import annotations

import logging
import math

from quorepo.cluster.raft.engine import Engine, Node
from quorepo.cluster.raft.progress import Flow, Progress
from quorepo.cluster.raft.wire import Message

__all__ = ["Replication"]

log = logging.getLogger(__name__)

# Appends for one follower in one turn of the Raft thread: reading old entries back from the disk
# must not hold up the heartbeats of the others. The answers bring the next turn.
_APPENDS_PER_TURN_MAX = 16


class Replication(Engine):
    """The part of a group that brings the followers up to the leader."""

    def _begin_replication(self) -> None:
        self.progress: dict[Node, Progress] = {}
        self.peers: list[Node] = []  # other voters and learners, in a fixed order
        self.has_more_to_send = False

    def begin_leading(self) -> None:
        """A new term of office: nothing is known of the followers' logs (Raft, figure 2)."""
        self.progress.clear()
        self.match_index.clear()
        self.next_index.clear()
        self.heard_at = {}
        for node in self.peers:
            self.track_follower(node)

    def track_follower(self, node: Node) -> None:
        """Leader: `node` is part of the configuration from now on."""
        self.progress[node] = Progress()
        self.match_index[node] = 0
        self.next_index[node] = self.log.last_index + 1
        self.heard_at[node] = self.now

    def forget_follower(self, node: Node) -> None:
        """`node` is no part of the configuration any more."""
        self.progress.pop(node, None)
        self.match_index.pop(node, None)
        self.next_index.pop(node, None)
        self.heard_at.pop(node, None)

    def reprobe(self, node: Node) -> None:
        """What was on its way to `node` may be lost."""
        progress = self.progress.get(node)
        if progress is not None:
            progress.probe()
            if self.match_index[node]:
                self.next_index[node] = self.match_index[node] + 1

    # ---- sending

    def send_heartbeats(self) -> None:
        """To every follower an append, an empty one when there is nothing to say."""
        # At the next whole multiple: the heartbeats of all groups that this node leads fall into
        # one step, and into one frame for each peer.
        interval_s = self.config.heartbeat_interval_s
        due = (math.floor(self.now / interval_s) + 1) * interval_s
        self.heartbeat_at = due if due > self.now else due + interval_s  # of floats
        for node in self.peers:
            self._send_appends(node, heartbeat=True)

    def replicate(self) -> None:
        """What is new since the last turn: entries, or the commit index."""
        self.has_more_to_send = False
        for node in self.peers:
            self._send_appends(node, heartbeat=False)

    def _send_appends(self, node: Node, *, heartbeat: bool) -> None:
        if node not in self.connected:
            return
        progress = self.progress[node]
        next_index = self.next_index[node]
        if next_index <= self.log.first_index:
            # Only a snapshot helps. It still hears that there is a leader.
            if heartbeat or progress.flow is not Flow.SNAPSHOT:
                progress.await_snapshot()
                self._send_append(node, self.log.last_index + 1, [])
                self.offer_snapshot(node)
            return
        if progress.flow is Flow.SNAPSHOT:
            progress.probe()
        if progress.flow is Flow.PROBE:
            if progress.probe_due:
                progress.probe_due = False
                self._send_append(node, next_index, self._batch(next_index))
            elif heartbeat:
                self._send_append(node, next_index, [])
        elif progress.flow is Flow.PIPELINE:
            sent = self._pipeline(node, progress)
            if not sent and (heartbeat or progress.sent_commit_index < self.commit_index):
                self._send_append(node, self.next_index[node], [])
        elif heartbeat or progress.sent_commit_index < self.commit_index:
            self._send_append(node, next_index, [])

    def _pipeline(self, node: Node, progress: Progress) -> bool:
        """Sends what is new as long as there is room on the way; returns whether it sent
        anything."""
        sent = 0
        last_index = self.log.last_index
        while self.next_index[node] <= last_index:
            if len(progress.inflight) >= self.config.append_inflight_max:
                break
            if sent == _APPENDS_PER_TURN_MAX:
                self.has_more_to_send = True
                break
            entries = self._batch(self.next_index[node])
            self._send_append(node, self.next_index[node], entries)
            progress.inflight.append(entries[-1][1])
            self.next_index[node] = entries[-1][1] + 1
            sent += 1
        return sent > 0

    def _batch(self, start: int) -> list[tuple[bytes, int, int]]:
        return self.log.read(start, self.log.last_index + 1, self.config.append_batch_bytes_max)

    def _send_append(
        self, node: Node, next_index: int, entries: list[tuple[bytes, int, int]]
    ) -> None:
        progress = self.progress[node]
        progress.sent_commit_index = self.commit_index
        self.send(
            node,
            "append_entries",
            commit_index=self.commit_index,
            prevLogIdx=next_index - 1,
            prevLogTerm=self.log.term_at(next_index - 1),
            entries=entries,
        )

    # ---- answers

    def _on_append_reply(self, node: Node, message: Message) -> None:
        if message["term"] > self.current_term:
            self.step_down(message["term"])
            return
        progress = self.progress.get(node)
        if not self.is_leader or message["term"] < self.current_term or progress is None:
            return
        self.heard_at[node] = self.now
        progress.applied_index = message["applied_index"]
        progress.disk_full = message["disk_full"]
        progress.disk_low = message["disk_low"]
        if message["success"]:
            self._on_success(node, progress, message)
        else:
            self._on_rejection(node, progress, message)

    def _on_success(self, node: Node, progress: Progress, message: Message) -> None:
        """The follower's log is durable and the same as ours up to next_node_idx - 1."""
        match_index = message["next_node_idx"] - 1
        if match_index > self.log.last_index:
            log.error(
                "a replica acknowledged entries that were never sent",
                extra={"fields": {"group": self.group, "replica": node.id, "index": match_index}},
            )
            return
        match_index = max(match_index, self.match_index[node])
        self.match_index[node] = match_index
        progress.answered(match_index)
        if message["waits_for_packs"]:
            progress.flow = Flow.WAIT
            progress.inflight.clear()
            self.next_index[node] = match_index + 1
        elif progress.flow is not Flow.PIPELINE:
            progress.flow = Flow.PIPELINE
            progress.inflight.clear()
            self.next_index[node] = match_index + 1
        elif self.next_index[node] <= match_index:
            self.next_index[node] = match_index + 1

    def _on_rejection(self, node: Node, progress: Progress, message: Message) -> None:
        """The follower lacks the entry prev, or has another one there."""
        prev, match_index = message["prev"], self.match_index[node]
        last_prev = self.next_index[node] - 1  # of all appends since the last probe
        if prev > last_prev or (progress.flow is not Flow.PIPELINE and prev < last_prev):
            return  # the answer to an append before the last probe
        if prev <= match_index:
            # In this term it had acknowledged that entry: an old answer, or a disk that forgot.
            log.warning(
                "a replica rejects what it had acknowledged",
                extra={"fields": {"group": self.group, "replica": node.id, "index": prev}},
            )
            return
        progress.probe()
        # Never below what it acknowledged, and always lower than the last attempt: this ends.
        self.next_index[node] = max(match_index + 1, 2, min(message["next_node_idx"], prev))
