"""Who the replicas are: taking a configuration into force, and refusing unsafe ones.

Owns: pysyncobj's sets of nodes, filled from the newest configuration in the log (defect S3:
pysyncobj fills them from applied entries, and lets several changes run at once). Must not know
why somebody changes members.
"""

from __future__ import annotations

from google.protobuf.message import DecodeError

from quorepo.cluster.raft.configuration import ConfigurationHistory, describe_change
from quorepo.cluster.raft.engine import Engine, Node
from quorepo.cluster.raft.entries import decode_configuration, is_configuration
from quorepo.cluster.raft.interface import GroupStart
from quorepo.internal.v1 import log_pb2
from quorepo.storage.errors import FatalError

__all__ = ["Membership"]

_SCAN_BYTES = 1024 * 1024  # of the log read at a time when a group starts

# A learner may become a voter when it lacks no more entries than this: it is counted from then on.
PROMOTION_LAG_ENTRIES_MAX = 256


class Membership(Engine):
    """The part of a group that knows its replicas."""

    peers: list[Node]

    def _begin_membership(self, start: GroupStart) -> None:
        base = start.applied_configuration or start.founding
        self.configuration_version = 0  # counts changes of what is in force
        self.history = ConfigurationHistory(start.applied_index, base)
        index = max(start.applied_index + 1, self.log.first_index)
        while index <= self.log.last_index:
            for data, at, _ in self.log.read(index, self.log.last_index + 1, _SCAN_BYTES):
                if is_configuration(data):
                    self.history.append(at, self._parse(at, data))
                index = at + 1
        self.adopt_configuration()

    def _parse(self, index: int, data: bytes) -> log_pb2.Configuration:
        try:
            return decode_configuration(data)
        except ValueError as error:
            raise FatalError(f"group {self.group}, entry {index}: {error}") from error

    def adopt_configuration(self) -> None:
        """Puts the newest configuration of the log into force (dissertation, 4.1)."""
        others = [r for r in self.history.current.replicas if r.replica_id != self.me.id]
        voters = {Node(replica.replica_id) for replica in others if replica.votes}
        learners = {Node(replica.replica_id) for replica in others if not replica.votes}
        before = set(self.peers)
        self.set_peers(voters, learners)
        self.peers = sorted(voters | learners, key=str)
        if self.is_leader:
            for node in self.peers:
                if node not in before:
                    self.track_follower(node)
        for node in before - set(self.peers):
            self.forget_follower(node)
        self.configuration_version += 1

    def append_configuration(self, index: int, payload: bytes) -> None:
        """The leader appended a configuration that `why_denied` had nothing against."""
        self.history.append(index, log_pb2.Configuration.FromString(payload))
        self.adopt_configuration()

    def why_denied(self, payload: bytes) -> str:
        """Why this leader must not append the configuration; empty when it may."""
        try:
            proposed = log_pb2.Configuration.FromString(payload)
        except DecodeError as error:
            return f"it does not parse: {error}"
        # Until its own no-op is committed a leader may sit on a change that another leader decided
        # against (the bug of the single-server change algorithm, raft-dev 2015).
        if self.no_op_index is None or self.commit_index < self.no_op_index:
            return "the leader is new and does not know yet what is committed"
        if self.history.current_index > self.commit_index:
            return "the change before is not committed yet"
        current = self.history.current
        if why := describe_change(current, proposed, self.me.id):
            return why
        return self._why_not_ready(current, proposed)

    def _why_not_ready(
        self, current: log_pb2.Configuration, proposed: log_pb2.Configuration
    ) -> str:
        voting = {replica.replica_id for replica in current.replicas if replica.votes}
        for replica in proposed.replicas:
            if not replica.votes or replica.replica_id in voting:
                continue
            node = Node(replica.replica_id)
            behind = self.log.last_index - self.match_index.get(node, 0)
            if node not in self.connected or behind > PROMOTION_LAG_ENTRIES_MAX:
                return f"replica {replica.replica_id!r} is {behind} entries behind"
        return ""
