"""What the rest of the cluster may know of the Raft engine: its words, its limits, its hooks.

Nothing here imports pysyncobj. The engine (`host.RaftHost`) is used through these types only, so
that the state machine, the peer transport and the simulator stay independent of how Raft is done.
"""

from __future__ import annotations

import dataclasses
import enum
from collections.abc import Sequence
from typing import Any, Literal, Protocol

from pydantic import BaseModel, ConfigDict, Field, model_validator

from quorepo.internal.v1 import log_pb2, peer_pb2

__all__ = [
    "ApplySink",
    "DiskSpace",
    "Entry",
    "EntryKind",
    "GroupStart",
    "GroupStatus",
    "LogExtent",
    "Outcome",
    "PackGate",
    "PackNeed",
    "Proposal",
    "RaftConfig",
    "RaftTransport",
    "ReplicaStatus",
    "Role",
    "SnapshotClient",
]

EntryKind = Literal["command", "noop", "configuration"]
Role = Literal["leader", "candidate", "follower", "learner"]


class Outcome(enum.Enum):
    """What a proposer may conclude of one attempt; there is no fourth answer."""

    APPLIED = "applied"
    NOT_APPLIED = "not applied"  # certain: this attempt never will be
    UNKNOWN = "unknown"  # it may be applied, now or later


@dataclasses.dataclass(frozen=True, slots=True)
class Proposal:
    """The end of one attempt; `result` is what the apply sink gave for the entry."""

    outcome: Outcome
    index: int = 0
    term: int = 0
    result: Any = None
    reason: str = ""  # no-leader, not-leader, queue-full, packs-missing, denied, leader-changed, …


@dataclasses.dataclass(frozen=True, slots=True)
class Entry:
    """One committed log entry as the state machine sees it."""

    group: int
    index: int
    term: int
    time_ms: int  # the leader's clock when it appended, Unix ms; 0 for the entry at index 1
    kind: EntryKind
    data: bytes  # the command's or configuration's payload, without the Raft layer's framing


@dataclasses.dataclass(frozen=True, slots=True)
class GroupStart:
    """Where a group begins in this process."""

    founding: log_pb2.Configuration  # same on all replicas, in force until the log says otherwise
    applied_index: int  # what the state machine holds durably; 0 for a new one
    applied_term: int
    applied_configuration: log_pb2.Configuration | None  # newest one at or below applied_index


@dataclasses.dataclass(frozen=True, slots=True)
class ReplicaStatus:
    """One replica as the local replica sees it; indexes are known on the leader only."""

    replica_id: str
    node: str
    votes: bool
    match_index: int
    applied_index: int
    connected: bool
    disk_low: bool = False  # it said that it is below its reserve
    installs_snapshot: bool = False  # the log does not reach back to what it lacks


@dataclasses.dataclass(frozen=True, slots=True)
class LogExtent:
    """How long one group's log is, and the journal of all groups."""

    first_index: int
    last_index: int
    applied_index: int  # what the state holds, durably or not
    record_bytes: int  # of this group in the journal
    journal_bytes: int = 0
    journal_segments: int = 0


@dataclasses.dataclass(frozen=True, slots=True)
class GroupStatus:
    """A consistent picture of one group, published by the Raft thread."""

    group: int
    role: Role
    leader: str | None  # replica id
    term: int
    commit_index: int
    last_index: int
    applied_index: int
    configuration: log_pb2.Configuration
    replicas: tuple[ReplicaStatus, ...]
    first_index: int = 1  # where the local log begins


@dataclasses.dataclass(frozen=True, slots=True)
class PackNeed:
    """A pack that a log entry adds."""

    repository_id: str
    digest: bytes
    index_digest: bytes
    pack_bytes: int
    index_bytes: int


class ApplySink(Protocol):
    """Takes committed entries; applies them on a thread of its own."""

    def submit(self, group: int, entries: Sequence[Entry]) -> None:
        """Queues entries in order. Called on the Raft thread; never blocks.

        The entries are committed and durable in the local journal. Once they are applied the sink
        calls `RaftHost.applied(group, up_to_index, results)`.
        """

    def backlog(self, group: int) -> int:
        """Entries queued and not yet applied; the host holds back above `apply_backlog_max`."""


class PackGate(Protocol):
    """Invariant 2: a replica appends an entry only once it durably holds the packs that it adds."""

    def missing(self, group: int, data: bytes) -> Sequence[PackNeed]:
        """Packs that `data` adds and this node does not hold. Called on the Raft thread."""

    def want(self, group: int, needs: Sequence[PackNeed], from_replica: str) -> None:
        """Starts fetching; calls `RaftHost.packs_arrived(group)` afterwards. Never blocks."""


class DiskSpace(Protocol):
    """How much room this node's disk has. Asked on the Raft thread; must be quick."""

    def low(self) -> bool:
        """Below the reserve: nothing new is begun here."""

    def full(self) -> bool:
        """Far below it: nothing is taken over from others either."""


class SnapshotClient(Protocol):
    """Brings a snapshot to this node when the leader's log does not reach back far enough."""

    def offered(
        self, group: int, index_min: int, configuration: log_pb2.Configuration, leader: str
    ) -> None:
        """The replica `leader` has a state at or behind `index_min`. Never blocks; called often."""


class RaftTransport(Protocol):
    """Ordered, duplicate-free message streams to the other replicas."""

    def send(self, to_replica: str, messages: Sequence[peer_pb2.GroupMessage]) -> None:
        """Queues messages, or drops them when not connected. Thread-safe, never blocks."""

    def set_replicas(self, replicas: Sequence[log_pb2.Replica]) -> None:
        """The replicas to keep connections to (all groups' configurations together)."""


class RaftConfig(BaseModel):
    """Timing and limits of the Raft engine; the same on every node of a cluster."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    heartbeat_interval_s: float = Field(0.1, gt=0, description="Between heartbeats of a leader.")
    election_timeout_s_min: float = Field(
        0.5, gt=0, description="Silence after which a follower may start an election, at least."
    )
    election_timeout_s_max: float = Field(1.0, gt=0, description="The same, at most.")
    leader_fallback_timeout_s: float = Field(
        1.5, gt=0, description="A leader that heard no majority for this long steps down."
    )
    proposal_queue_max: int = Field(
        4096, gt=0, description="Proposals waiting in one group before new ones are refused."
    )
    append_batch_bytes_max: int = Field(
        262_144, gt=0, description="Log bytes in one append message (a larger entry goes alone)."
    )
    append_inflight_max: int = Field(
        64,
        gt=0,
        description="Append messages on their way to one follower before the leader waits.",
    )
    command_bytes_max: int = Field(
        3_145_728, gt=0, description="Largest command accepted into a log, bytes."
    )
    apply_backlog_max: int = Field(
        4096, gt=0, description="Committed entries handed to apply ahead of what it has applied."
    )
    apply_backlog_bytes_max: int = Field(
        67_108_864, gt=0, description="The same in bytes of log entries."
    )
    proposal_queue_bytes_max: int = Field(
        67_108_864,
        gt=0,
        description="Bytes of commands waiting in one group before new ones are refused.",
    )
    compaction_entries_min: int = Field(
        50_000, gt=0, description="A group's log of this many entries is cut."
    )
    compaction_bytes_min: int = Field(
        67_108_864, gt=0, description="A group's log of this many bytes is cut, to half at most."
    )
    trailing_entries: int = Field(
        10_000,
        ge=0,
        description="Newest entries kept by a cut: a replica that lacks fewer needs no snapshot.",
    )
    snapshot_bytes_per_s: int = Field(
        104_857_600, ge=0, description="Pace at which a replica pulls a snapshot; 0: no limit."
    )
    snapshot_fetches_max: int = Field(
        4, gt=0, le=64, description="Packs that a replica pulls at once for a snapshot."
    )

    @model_validator(mode="after")
    def _timeouts_are_ordered(self) -> RaftConfig:
        if self.election_timeout_s_min <= 3 * self.heartbeat_interval_s:
            raise ValueError("election_timeout_s_min must be above 3 * heartbeat_interval_s")
        if self.election_timeout_s_max <= self.election_timeout_s_min:
            raise ValueError("election_timeout_s_max must be above election_timeout_s_min")
        if self.leader_fallback_timeout_s < self.election_timeout_s_max:
            raise ValueError("leader_fallback_timeout_s must be at least election_timeout_s_max")
        if self.trailing_entries >= self.compaction_entries_min:
            raise ValueError("trailing_entries must be below compaction_entries_min")
        return self
