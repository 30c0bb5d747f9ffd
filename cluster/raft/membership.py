"""Who the replicas are: taking a configuration into force, and refusing unsafe ones.

Owns: pysyncobj's sets of nodes, filled from the newest configuration in the log (defect S3:
pysyncobj fills them from applied entries, and lets several changes run at once). Must not know
why somebody changes members.
"""

from __future__ import annotations

import dataclasses

from google.protobuf.message import DecodeError

from quorepo.cluster.raft.configuration import ConfigurationHistory, describe_change
from quorepo.cluster.raft.engine import Engine, Node
from quorepo.cluster.raft.entries import decode_configuration, is_configuration
from quorepo.cluster.raft.interface import GroupStart
from quorepo.internal.v1 import log_pb2
from quorepo.storage.errors import FatalError

__all__ = ["Membership"]

_SCAN_BYTES = 1024 * 1024  # of the log read at a time when a group starts

# A replica that was removed is sent the log for this long, until it has the entry that says so:
# otherwise it would never learn of it, and ask for votes for ever.
_FAREWELL_S = 5.0

# A learner may become a voter when it lacks no more entries than this: it is counted from then on.
PROMOTION_LAG_ENTRIES_MAX = 256


@dataclasses.dataclass(frozen=True, slots=True)
class Leaving:
    """A replica that is not counted any more and has not heard of it yet."""

    replica: log_pb2.Replica
    index: int  # of the entry that removed it
    until: float


class Membership(Engine):
    """The part of a group that knows its replicas."""

    peers: list[Node]

    def _begin_membership(self, start: GroupStart) -> None:
        if self.log.first_index > start.applied_index + 1:
            raise FatalError(
                f"group {self.group}: the journal begins at entry {self.log.first_index}, the "
                f"state ends at {start.applied_index}, and what lies between is lost; give this "
                "node an empty disk and let it rejoin",
                exit_code=FatalError.EXIT_IO_ERROR,
            )
        base = start.applied_configuration or start.founding
        self._leaving: dict[Node, Leaving] = {}
        self._replicas: dict[Node, log_pb2.Replica] = {}  # of the configuration in force
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
        removed = self._replicas
        self._replicas = {Node(r.replica_id): r for r in self.history.current.replicas}
        voters = {node for node, replica in self._replicas.items() if replica.votes}
        learners = self._replicas.keys() - voters
        self.set_peers(voters - {self.me}, learners - {self.me})
        if self.is_leader:
            for node in removed.keys() - self._replicas.keys():
                if node in self.connected:
                    until = self.now + _FAREWELL_S
                    self._leaving[node] = Leaving(removed[node], self.history.current_index, until)
        self._set_followers()

    def _set_followers(self) -> None:
        """Whom a leader sends the log to: the configuration in force, and who has to hear of it."""
        for node in self._replicas:
            self._leaving.pop(node, None)
        before = set(self.peers)
        after = (self._replicas.keys() | self._leaving.keys()) - {self.me}
        self.peers = sorted(after, key=str)
        for node in before - after:
            self.forget_follower(node)
        if self.is_leader:
            for node in sorted(after - before, key=str):
                self.track_follower(node)
        self.configuration_version += 1

    def let_go(self) -> None:
        """Forgets removed replicas that know it, or cannot be told."""
        gone = [
            node
            for node, leaving in self._leaving.items()
            if not self.is_leader
            or node not in self.connected
            or self.now >= leaving.until
            or self.match_index.get(node, 0) >= leaving.index
        ]
        for node in gone:
            del self._leaving[node]
        if gone:
            self._set_followers()

    def contacts(self) -> list[log_pb2.Replica]:
        """The replicas that this one has to be connected to."""
        return [*self._replicas.values(), *(leaving.replica for leaving in self._leaving.values())]

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
            match_index = self.match_index.get(node, 0)
            if match_index < self.log.first_index:
                # Few entries may stand for a state of hours: with it goes the majority till then.
                return f"replica {replica.replica_id!r} still needs a snapshot"
            behind = self.log.last_index - match_index
            if node not in self.connected or behind > PROMOTION_LAG_ENTRIES_MAX:
                return f"replica {replica.replica_id!r} is {behind} entries behind"
        return ""
