"""The one thread that drives all Raft groups of a node, and the thread-safe way in and out of it.

Owns: the Raft thread, its inbox and timers, the one journal sync per turn, the release of what may leave only
after it. Must not know what a command means, where packs lie, or how messages travel.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from pathlib import Path
from typing import Any

from quorepo.cluster.raft.interface import (
    ApplySink,
    GroupStart,
    GroupStatus,
    PackGate,
    Proposal,
    RaftConfig,
    RaftTransport,
)
from quorepo.internal.v1 import log_pb2, peer_pb2

__all__ = ["RaftHost"]


class RaftHost:
    """All groups of one node."""

    def __init__(
        self,
        *,
        replica_id: str,
        groups: Mapping[int, GroupStart],
        journal: Any,
        votes_dir: Path,
        sink: ApplySink,
        gate: PackGate,
        transport: RaftTransport,
        config: RaftConfig,
        on_fatal: Callable[[BaseException], None],
        clock_ms: Callable[[], int],
        rng: random.Random,
        monotonic: Callable[[], float] = time.monotonic,
    ) -> None:
        """`on_fatal` is called once, on the Raft thread, when the process must end."""

    def start(self) -> None:
        """Starts the Raft thread."""
        raise NotImplementedError

    def stop(self) -> None:
        """Ends the thread; open proposals and reads are resolved."""
        raise NotImplementedError

    def propose(self, group: int, payload: bytes, timeout_s: float) -> Future[Proposal]:
        """Proposes a command; never raises for what the cluster does, the verdict is in the Proposal."""
        raise NotImplementedError

    def read_index(self, group: int, timeout_s: float) -> Future[int]:
        """Resolves once the local state has applied everything acknowledged before this call.

        The future raises Unavailable when no leader could be confirmed in time, or the host stops.
        """
        raise NotImplementedError

    def change_configuration(
        self, group: int, configuration: log_pb2.Configuration, timeout_s: float
    ) -> Future[Proposal]:
        """Leader only ("not-leader" otherwise); "denied" unless it changes exactly one replica."""
        raise NotImplementedError

    def transfer_leadership(self, group: int, to_replica: str | None = None) -> Future[bool]:
        """True once another replica leads; None chooses the voter that is furthest."""
        raise NotImplementedError

    def status(self, group: int) -> GroupStatus:
        """The newest published picture; at most a few tens of milliseconds old."""
        raise NotImplementedError

    def wait_for_leader(self, group: int, timeout_s: float) -> Future[str]:
        """The leader's replica id; the future raises Unavailable after `timeout_s`."""
        raise NotImplementedError

    def applied(self, group: int, up_to_index: int, results: Mapping[int, Any]) -> None:
        """The sink's report: everything up to `up_to_index` is durable in the state."""
        raise NotImplementedError

    def packs_arrived(self, group: int) -> None:
        """The gate's report: packs that were wanted are here."""
        raise NotImplementedError

    def deliver(self, from_replica: str, messages: Sequence[peer_pb2.GroupMessage]) -> None:
        """Messages from an authenticated peer, in order."""
        raise NotImplementedError

    def peer_connected(self, replica_id: str) -> None:
        """Messages to this replica will be carried from now on."""
        raise NotImplementedError

    def peer_disconnected(self, replica_id: str) -> None:
        """The connection is gone, and with it whatever was in flight."""
        raise NotImplementedError
