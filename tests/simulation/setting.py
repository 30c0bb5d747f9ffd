"""The shape of one schedule, drawn from its seed: limits, delays, sizes, what may go wrong.

Livelocks show with large batches and delays near the heartbeat, lost rules with small batches; so
everything varies. Owns no event.
"""

from __future__ import annotations

import dataclasses
import random

from quorepo.cluster.raft.interface import RaftConfig

__all__ = ["FAULTS", "Setting"]

# Method names of `faults.Faults`, and how often each is drawn.
FAULTS = {
    "kill": 3.0,
    "lose_power": 3.0,
    "lose_power_everywhere": 0.7,
    "kill_everywhere": 0.4,
    "crash_at_disk_operation": 4.0,
    "fail_sync": 1.0,
    "fill_disk": 1.0,
    "slow_disk": 1.0,
    "stop_process": 1.0,
    "partition": 3.0,
    "isolate_leader": 2.0,
    "block_one_way": 3.0,
    "drop_stream": 3.0,
    "supersede_stream": 2.0,
    "slow_network": 2.0,
    "step_clock": 1.0,
    "transfer_leadership": 1.0,
    "stall_apply": 1.0,
}


@dataclasses.dataclass(frozen=True, slots=True)
class Setting:
    """What one schedule is like."""

    voters: int
    groups: tuple[int, ...]
    config: RaftConfig
    delay_s: tuple[float, float]
    patience_s: float
    skew_s: float
    apply_delay_s: float
    segment_bytes_max: int
    cache_bytes_max: int
    state_files: bool  # StateStore over files, else the machine over SQLite in memory
    lean: bool  # messages are not encoded
    membership: bool
    compaction: bool
    compacting_nodes: int  # the first so many by name
    snapshot_chunks: int
    snapshot_s: float  # a chunk takes this long, at most
    snapshot_kept_s: float  # how long a source keeps a copy, and its log, that nobody uses
    snapshot_crash_odds: float  # that a node ends in a step of catching up
    packs: bool
    fetch_fails: float
    digest_odds: float
    large_clock_steps: bool
    faults: int
    fault_weights: dict[str, float]
    requests: int
    payload_bytes_max: int
    burst_max: int

    @classmethod
    def draw(cls, rng: random.Random) -> Setting:
        heartbeat_s, timeout_s = rng.choice(((0.1, 0.5), (0.2, 0.8), (0.25, 1.0), (0.25, 1.0)))
        heartbeat_config = RaftConfig(
            heartbeat_interval_s=heartbeat_s,
            election_timeout_s_min=timeout_s,
            election_timeout_s_max=2 * timeout_s,
            leader_fallback_timeout_s=2.5 * timeout_s,
            append_batch_bytes_max=rng.choice((1, 300, 2000, 262_144)),
            append_inflight_max=rng.choice((1, 2, 8, 64)),
            apply_backlog_max=rng.choice((2, 50, 4096)),
            trailing_entries=rng.choice((0, 1, 5, 30)),
            proposal_queue_max=rng.choice((8, 4096, 4096)),
        )
        membership = rng.random() < 0.35
        state_files = rng.random() < 0.12
        # A subset of the kinds of faults in each schedule: they hide each other otherwise.
        weights = {name: weight * rng.choice((0, 1, 1, 3)) for name, weight in FAULTS.items()}
        weights["drop_stream"] += 0.1
        return cls(
            voters=rng.choice((3, 3, 3, 2, 1) if membership else (3, 3, 3, 3, 3, 3, 5, 1)),
            groups=(0, 1) if rng.random() < 0.15 else (1,),
            config=heartbeat_config,
            delay_s=rng.choice(((0.0002, 0.002), (0.0002, 0.002), (0.0, 0.03), (0.01, 0.12))),
            patience_s=rng.choice((0.5, 1.5, 4.0)),
            skew_s=rng.choice((0.0, 500.0)),
            apply_delay_s=rng.choice((0.002, 0.02, 0.3)),
            segment_bytes_max=rng.choice((700, 5000, 60_000, 1 << 26)),
            cache_bytes_max=rng.choice((0, 3000, 1 << 23)),
            state_files=state_files,
            lean=rng.random() < 0.75,
            membership=membership,
            compaction=rng.random() < 0.5,
            snapshot_chunks=rng.choice((1, 3, 8)),
            snapshot_s=rng.choice((0.005, 0.05, 0.5, 2.0)),
            compacting_nodes=rng.choice((1, 9)),
            snapshot_kept_s=rng.choice((0.3, 60.0)),
            snapshot_crash_odds=rng.choice((0.0, 0.05, 0.25)),
            packs=rng.random() < 0.4,
            fetch_fails=rng.choice((0.0, 0.4)),
            digest_odds=0.01,
            large_clock_steps=rng.random() < 0.1,
            faults=rng.randint(3, 10),
            fault_weights=weights,
            requests=rng.randint(140, 170),
            payload_bytes_max=rng.choice((0, 0, 300, 5000)),
            burst_max=rng.choice((1, 4, 20)),
        )
