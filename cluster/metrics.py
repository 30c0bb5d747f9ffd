"""What the core process counts, in the words of the architecture.

One class owns every metric, built on a registry that is passed in, so that two nodes in one test
process do not collide. The parts feed it; it asks nothing of them. Labels are bounded: groups, node
names of the configuration, and fixed words. Names end in their unit.
"""

from __future__ import annotations

import dataclasses

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from quorepo.cluster.raft.interface import GroupStatus, LogExtent

__all__ = ["ClusterMetrics", "PeerCounters"]

_ROLES = ("leader", "candidate", "follower", "learner")
_LATENCY_BUCKETS_S = (
    0.0005, 0.001, 0.002, 0.004, 0.008, 0.016, 0.032, 0.064,
    0.128, 0.256, 0.512, 1.0, 2.5, 5.0, 10.0,
)  # fmt: skip


@dataclasses.dataclass(frozen=True, slots=True)
class PeerCounters:
    """The children of one peer, looked up once per connection instead of once per frame."""

    messages_sent: Counter
    messages_received: Counter
    bytes_sent: Counter
    bytes_received: Counter
    messages_dropped: Counter
    connected: Gauge


class ClusterMetrics:
    """All metrics of the core. Safe to use from every thread."""

    def __init__(self, registry: CollectorRegistry) -> None:
        self.registry = registry
        self._lagging: dict[int, set[str]] = {}
        self._declare_raft(registry)
        self._declare_peers(registry)
        self._declare_packs(registry)
        self._declare_snapshots(registry)
        self._declare_disk(registry)
        self._declare_members(registry)

    def _declare_raft(self, registry: CollectorRegistry) -> None:
        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"quorepo_{name}", text, ["group", *labels], registry=registry)

        def seconds(name: str, text: str, *labels: str) -> Histogram:
            return Histogram(
                f"quorepo_{name}", text, labels, registry=registry, buckets=_LATENCY_BUCKETS_S
            )

        self.raft_role = gauge("raft_role", "1 for the role this replica has.", "role")
        self.raft_has_leader = gauge("raft_has_leader", "1 while a leader is known.")
        self.raft_term = gauge("raft_term", "Current Raft term.")
        self.raft_last_index = gauge("raft_last_index", "Last index of the local log.")
        self.raft_commit_index = gauge("raft_commit_index", "Commit index known to this replica.")
        self.raft_applied_index = gauge("raft_applied_index", "Last index applied to the state.")
        self.raft_replica_lag = gauge(
            "raft_replica_lag_entries",
            "Entries a replica lacks; on the leader only.",
            "replica_node",
        )
        self.proposals = Counter(
            "quorepo_proposals_total", "Requests to change state, by outcome.",
            ["group", "outcome"], registry=registry,
        )  # fmt: skip
        self.proposal_seconds = seconds(
            "proposal_seconds", "From a request to its verdict, all attempts together.", "group"
        )
        self.apply_seconds = seconds("apply_seconds", "One batch applied to the state.", "group")
        self.applied_entries = Counter(
            "quorepo_applied_entries_total", "Log entries applied to the state.",
            ["group"], registry=registry,
        )  # fmt: skip
        self.journal_fsync_seconds = seconds(
            "journal_fsync_seconds", "One sync of the journal, all groups together."
        )
        self.request_errors = Counter(
            "quorepo_request_errors_total", "Requests that failed, by the error's reason.",
            ["kind"], registry=registry,
        )  # fmt: skip

    def _declare_peers(self, registry: CollectorRegistry) -> None:
        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"quorepo_peer_{name}_total", text, ["peer", *labels], registry=registry)

        self.peer_messages = counter("messages", "Raft messages exchanged.", "direction")
        self.peer_bytes = counter("bytes", "Bytes of Raft messages exchanged.", "direction")
        self.peer_dropped = counter("dropped_messages", "Raft messages given up with a connection.")
        self.peer_disconnects = counter("disconnects", "Connections lost or refused.", "cause")
        self.peer_certificate_expiry = Gauge(
            "quorepo_peer_certificate_expiry_seconds",
            "Seconds until the certificate of this node, or its CA, expires.",
            registry=registry,
        )
        self.join_tokens = Counter(
            "quorepo_join_tokens_total", "Join tokens: created, used, refused.",
            ["outcome"], registry=registry,
        )  # fmt: skip
        self.wrong_disks_refused = Counter(
            "quorepo_wrong_disk_refusals_total",
            "Streams refused because the caller's disk is an old or a second copy.",
            ["peer"], registry=registry,
        )  # fmt: skip
        self.wrong_disk = Gauge(
            "quorepo_wrong_disk", "1 while this node is out of service: its disk is the wrong one.",
            registry=registry,
        )  # fmt: skip
        self.peer_connected = Gauge(
            "quorepo_peer_connected", "1 while Raft messages flow both ways.",
            ["peer"], registry=registry,
        )  # fmt: skip

    def _declare_packs(self, registry: CollectorRegistry) -> None:
        self.replacement_checks = Counter(
            "quorepo_replacement_checks_total",
            "Checks of packs that are to replace others, by outcome.",
            ["outcome"], registry=registry,
        )  # fmt: skip
        self.replacement_check_seconds = Counter(
            "quorepo_replacement_check_seconds_total", "Time that those checks took.",
            registry=registry,
        )  # fmt: skip
        labels = ["action"]  # stage_out, stage_in, fetch_out, fetch_in
        self.packs = Counter(
            "quorepo_packs_total", "Packs copied between nodes, by outcome.",
            [*labels, "outcome"], registry=registry,
        )  # fmt: skip
        self.pack_bytes = Counter(
            "quorepo_pack_bytes_total", "Bytes of packs and indexes copied between nodes.",
            labels, registry=registry,
        )  # fmt: skip
        self.pack_seconds = Histogram(
            "quorepo_pack_seconds", "One pack copied, until it is durable.",
            labels, registry=registry, buckets=(*_LATENCY_BUCKETS_S, 30.0, 120.0, 600.0),
        )  # fmt: skip

    def _declare_snapshots(self, registry: CollectorRegistry) -> None:
        def gauge(name: str, text: str, *labels: str) -> Gauge:
            return Gauge(f"quorepo_{name}", text, labels, registry=registry)

        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(f"quorepo_{name}_total", text, labels, registry=registry)

        self.raft_first_index = gauge("raft_first_index", "Where the local log begins.", "group")
        self.raft_log_bytes = gauge("raft_log_bytes", "The group's log in the journal.", "group")
        self.journal_bytes = gauge("journal_bytes", "All segments of the journal.")
        self.journal_segments = gauge("journal_segments", "Files of the journal.")
        self.compactions = counter("raft_compactions", "Cuts of the local log.", "group")
        self.snapshots = counter(
            "snapshots", "Snapshots made and received, by outcome.", "group", "action", "outcome"
        )
        self.snapshot_bytes = counter(
            "snapshot_bytes", "Bytes of states made, sent and received.", "group", "action"
        )
        self.snapshot_seconds = Histogram(
            "quorepo_snapshot_seconds", "One snapshot made, or received and installed.",
            ["action"], registry=registry, buckets=(0.01, 0.1, 1.0, 10.0, 60.0, 600.0, 3600.0),
        )  # fmt: skip
        self.snapshot_installing = gauge(
            "snapshot_installing", "1 while a replica lacks more than the log has; on the leader.",
            "group", "replica_node",
        )  # fmt: skip

    def _declare_members(self, registry: CollectorRegistry) -> None:
        self.membership_steps = Counter(
            "quorepo_membership_steps_total",
            "Configurations that this node proposed as a leader, by what they change.",
            ["group", "step", "outcome"], registry=registry,
        )  # fmt: skip
        self.membership_change_running = Gauge(
            "quorepo_membership_change_running", "1 while a change of the members is under way.",
            registry=registry,
        )  # fmt: skip
        self.level_known = Gauge(
            "quorepo_level_known", "Level of the log's commands that this node's program knows.",
            registry=registry,
        )  # fmt: skip
        self.level_cluster = Gauge(
            "quorepo_level_cluster", "Level that every member has, as this node knows it.",
            registry=registry,
        )  # fmt: skip
        self.node_draining = Gauge(
            "quorepo_node_draining", "1 while this node is to lead nothing and takes no pushes.",
            registry=registry,
        )  # fmt: skip
        self.replicas = Gauge(
            "quorepo_raft_replicas", "Replicas of the group by role, as this node knows it.",
            ["group", "role"], registry=registry,
        )  # fmt: skip
        self.packs_missing = Gauge(
            "quorepo_packs_missing", "Packs that this node should hold and does not.",
            ["group"], registry=registry,
        )  # fmt: skip
        self.scrubbed_bytes = Counter(
            "quorepo_scrub_bytes_total", "Bytes of packs re-read against their digests.",
            registry=registry,
        )  # fmt: skip
        self.scrub_faults = Counter(
            "quorepo_scrub_faults_total", "Packs found damaged or missing by a scrub.",
            ["group", "kind"], registry=registry,
        )  # fmt: skip
        self.scrub_faults_left = Gauge(
            "quorepo_scrub_faults_left", "Packs that the last scrub found and could not heal.",
            registry=registry,
        )  # fmt: skip
        self.scrub_finished = Gauge(
            "quorepo_scrub_finished_timestamp_seconds", "When the last scrub ended; 0: none did.",
            registry=registry,
        )  # fmt: skip
        self.packs_repaired = Counter(
            "quorepo_packs_repaired_total", "Missing packs looked for on other nodes, by outcome.",
            ["group", "outcome"], registry=registry,
        )  # fmt: skip

    def _declare_disk(self, registry: CollectorRegistry) -> None:
        def gauge(name: str, text: str) -> Gauge:
            return Gauge(f"quorepo_{name}", text, registry=registry)

        self.swept_files = Counter(
            "quorepo_swept_files_total", "Files removed after their retention, by what they were.",
            ["kind"], registry=registry,
        )  # fmt: skip
        self.disk_free_bytes = gauge("disk_free_bytes", "Free below the data directory.")
        self.disk_low = gauge("disk_low", "1 below the reserve: nothing new is begun here.")
        self.disk_full = gauge("disk_full", "1 below half of it: nothing is taken over either.")

    def snapshot_made(self, group: int, size_bytes: int, seconds: float) -> None:
        """This node made a copy of a state for another."""
        self.snapshots.labels(group, "made", "ok").inc()
        self.snapshot_bytes.labels(group, "made").inc(size_bytes)
        self.snapshot_seconds.labels("made").observe(seconds)

    def snapshot_received(self, group: int, outcome: str, seconds: float) -> None:
        """One attempt to get a snapshot ended; `outcome` is one of a few words."""
        self.snapshots.labels(group, "received", outcome).inc()
        if outcome == "installed":
            self.snapshot_seconds.labels("received").observe(seconds)

    def observe_log(self, group: int, extent: LogExtent) -> None:
        """Publishes how long a group's log and the journal are."""
        self.raft_first_index.labels(group).set(extent.first_index)
        self.raft_log_bytes.labels(group).set(extent.record_bytes)
        self.journal_bytes.set(extent.journal_bytes)
        self.journal_segments.set(extent.journal_segments)

    def peer(self, node: str) -> PeerCounters:
        """The counters of one peer; `node` is its name, which survives a new disk."""
        return PeerCounters(
            messages_sent=self.peer_messages.labels(node, "sent"),
            messages_received=self.peer_messages.labels(node, "received"),
            bytes_sent=self.peer_bytes.labels(node, "sent"),
            bytes_received=self.peer_bytes.labels(node, "received"),
            messages_dropped=self.peer_dropped.labels(node),
            connected=self.peer_connected.labels(node),
        )

    def proposed(self, group: int, outcome: str, seconds: float) -> None:
        """One request ended; `outcome` is `Outcome.value`."""
        self.proposals.labels(group, outcome).inc()
        self.proposal_seconds.labels(group).observe(seconds)

    def applied(self, group: int, entries: int, seconds: float) -> None:
        """One batch of `entries` was applied."""
        self.applied_entries.labels(group).inc(entries)
        self.apply_seconds.labels(group).observe(seconds)

    def pack_stored(self, size_bytes: int) -> None:
        """A pack that came in its log entry was written."""
        self.packs.labels("log", "ok").inc()
        self.pack_bytes.labels("log").inc(size_bytes)

    def replacement_checked(self, outcome: str, seconds: float) -> None:
        """A replacement pack was checked: passed, refused, stale, too-early or failed."""
        self.replacement_checks.labels(outcome).inc()
        self.replacement_check_seconds.inc(seconds)

    def journal_synced(self, seconds: float) -> None:
        """The journal synced once."""
        self.journal_fsync_seconds.observe(seconds)

    def failed(self, kind: str) -> None:
        """A request failed; `kind` is `QuorepoError.reason`, never free text."""
        self.request_errors.labels(kind).inc()

    def observe_group(self, status: GroupStatus) -> None:
        """Publishes the engine's picture of one group; called before the metrics are read."""
        group = status.group
        for role in _ROLES:
            self.raft_role.labels(group, role).set(role == status.role)
        self.raft_has_leader.labels(group).set(status.leader is not None)
        self.raft_term.labels(group).set(status.term)
        self.raft_last_index.labels(group).set(status.last_index)
        self.raft_commit_index.labels(group).set(status.commit_index)
        self.raft_applied_index.labels(group).set(status.applied_index)
        for role, votes in (("voter", True), ("learner", False)):
            count = sum(replica.votes is votes for replica in status.replicas)
            self.replicas.labels(group, role).set(count)
        # Lag is the leader's knowledge: an old leader's last word must not linger.
        known = status.replicas if status.role == "leader" else ()
        for node in self._lagging.pop(group, set()) - {replica.node for replica in known}:
            self.raft_replica_lag.remove(group, node)
            self.snapshot_installing.remove(group, node)
        for replica in known:
            lag = max(0, status.last_index - replica.match_index)
            self.raft_replica_lag.labels(group, replica.node).set(lag)
            self.snapshot_installing.labels(group, replica.node).set(replica.installs_snapshot)
            self._lagging.setdefault(group, set()).add(replica.node)
