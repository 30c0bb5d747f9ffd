"""What the edge counts, for /metrics.

Owns the names and labels of the edge's metrics. Labels are few and fixed: no path, user or ref
name ever becomes a label. The core's metrics are its own text, joined to this one by the metrics
endpoint.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Iterator

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest

__all__ = ["EdgeMetrics"]

_LATENCY_BUCKETS = (
    *(0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5),
    *(1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 300.0),
)


class EdgeMetrics:
    """One edge process's metrics, in a registry of their own."""

    def __init__(self) -> None:
        self.registry = CollectorRegistry()
        self._declare_tls()
        self.pushes = Counter(
            "quorepo_pushes",
            "Pushes by result: ok, partial, rejected, unknown; the client went away before it was"
            " proposed (cancelled) or after (abandoned).",
            ["result"],
            registry=self.registry,
        )
        self.push_phase_seconds = Histogram(
            "quorepo_push_phase_seconds",
            "Time of one push in a phase: receive, check, verify, replicate, commit, total.",
            ["phase"],
            buckets=_LATENCY_BUCKETS,
            registry=self.registry,
        )
        self.fetches = Counter(
            "quorepo_fetches",
            "Packs sent: clone (no haves) or fetch, by result: ok, failed, cancelled.",
            ["kind", "result"],
            registry=self.registry,
        )
        self.fetch_seconds = Histogram(
            "quorepo_fetch_seconds",
            "Time from a fetch request to its last byte.",
            buckets=_LATENCY_BUCKETS,
            registry=self.registry,
        )
        self.advertisements = Counter(
            "quorepo_ref_advertisements",
            "Ref advertisements and ls-refs answers, by service.",
            ["service"],
            registry=self.registry,
        )
        self.bytes_received = Counter(
            "quorepo_git_bytes_received",
            "Bytes of git request bodies, inflated.",
            ["service"],
            registry=self.registry,
        )
        self.bytes_sent = Counter(
            "quorepo_git_bytes_sent",
            "Bytes of git response bodies.",
            ["service"],
            registry=self.registry,
        )
        self.in_flight = Gauge(
            "quorepo_git_requests_in_flight",
            "Git requests being served, by service.",
            ["service"],
            registry=self.registry,
        )
        self.http_requests = Counter(
            "quorepo_http_requests",
            "HTTP requests by status code.",
            ["status"],
            registry=self.registry,
        )
        self._declare_upkeep()
        self._declare_imports()
        self._declare_fetches()
        self._declare_operations()
        self._declare_calls()

    def _declare_calls(self) -> None:
        self.errors = Counter(
            "quorepo_edge_errors",
            "Errors told to clients, by the reason in the error tree (storage/errors.py).",
            ["reason"],
            registry=self.registry,
        )

        self.cancelled_calls = Counter(
            "quorepo_grpc_calls_cancelled",
            "Calls of the API that ended before their answer did: the client left, or its deadline"
            " was over.",
            ["method"],
            registry=self.registry,
        )

    def _declare_tls(self) -> None:
        self.listener_certificate_expiry = Gauge(
            "quorepo_listener_certificate_expiry_seconds",
            "Seconds until the certificate of a listener of clients expires.",
            ["listener"],
            registry=self.registry,
        )
        self.certificate_reloads = Counter(
            "quorepo_listener_certificate_reloads",
            "Certificates of listeners taken while running, by result: ok, failed (the one before"
            " stays).",
            ["listener", "result"],
            registry=self.registry,
        )

    def _declare_fetches(self) -> None:
        self.questions = Counter(
            "quorepo_history_questions",
            "Questions about history (logs, diffs, blame, archives), by where they are answered: "
            "edge or worker.",
            ["question", "where"],
            registry=self.registry,
        )
        self.answers = Counter(
            "quorepo_fetch_answers",
            "Answers to fetches: hit (finished before), built, shared (built for another client).",
            ["source"],
            registry=self.registry,
        )
        self.answer_bytes = Counter(
            "quorepo_fetch_answer_bytes",
            "Bytes of packs sent to clients: hit, built or shared as in quorepo_fetch_answers.",
            ["source"],
            registry=self.registry,
        )
        self.build_seconds = Histogram(
            "quorepo_fetch_build_seconds",
            "Time to build an answer, waiting for a worker included.",
            buckets=_LATENCY_BUCKETS,
            registry=self.registry,
        )
        self.worker_wait_seconds = Histogram(
            "quorepo_worker_wait_seconds",
            "Time that a job of a push or a fetch waited for a worker process.",
            buckets=_LATENCY_BUCKETS,
            registry=self.registry,
        )
        self.cache_answers = Gauge(
            "quorepo_fetch_cache_answers",
            "Finished answers that are kept; those that are stored packs cost no bytes.",
            registry=self.registry,
        )
        self.cache_bytes = Gauge(
            "quorepo_fetch_cache_bytes",
            "Bytes of files of finished answers that are kept.",
            registry=self.registry,
        )
        self.workers_busy = Gauge(
            "quorepo_workers_busy", "Worker processes that do a job.", registry=self.registry
        )
        self.workers_queue = Gauge(
            "quorepo_workers_queue", "Jobs that wait for a worker.", registry=self.registry
        )
        self.derivations = Counter(
            "quorepo_derivations",
            "Large packs whose derived files were made, by result: done, failed.",
            ["result"],
            registry=self.registry,
        )
        self.packs_to_derive = Gauge(
            "quorepo_packs_to_derive",
            "Large packs whose derived files are not made yet; fetches from them cost more.",
            registry=self.registry,
        )
        self.derivation_seconds = Counter(
            "quorepo_derivation_seconds",
            "Time that making derived files took.",
            registry=self.registry,
        )

    def _declare_operations(self) -> None:
        self.operations = Counter(
            "quorepo_operations",
            "Calls of OperationService by outcome: ok, up_to_date, conflict, refused, unavailable,"
            " unknown, cancelled, failed.",
            ["operation", "outcome"],
            registry=self.registry,
        )
        self.operation_seconds = Histogram(
            "quorepo_operation_seconds",
            "Time of one call of OperationService.",
            ["operation"],
            buckets=_LATENCY_BUCKETS,
            registry=self.registry,
        )
        self.operation_phase_seconds = Histogram(
            "quorepo_operation_phase_seconds",
            "Time of an operation in a phase: receive, look (at the refs), build, replicate,"
            " commit; once per attempt.",
            ["phase"],
            buckets=_LATENCY_BUCKETS,
            registry=self.registry,
        )
        self.watchers = Gauge(
            "quorepo_watchers", "Calls of Watch being served.", registry=self.registry
        )
        self.watch_events = Counter(
            "quorepo_watch_events", "Events sent to watchers.", registry=self.registry
        )
        self.watch_lag_entries = Gauge(
            "quorepo_watch_lag_entries",
            "Log entries that this node has applied and the slowest watcher has not been sent.",
            registry=self.registry,
        )

    def _declare_imports(self) -> None:
        self.imports = Counter(
            "quorepo_imports",
            "Repositories made from a bundle or from another server (url), by result: ok, failed,"
            " unknown, cancelled.",
            ["source", "result"],
            registry=self.registry,
        )
        self.imports_running = Gauge(
            "quorepo_imports_running", "Imports that this node runs.", registry=self.registry
        )

    def _declare_upkeep(self) -> None:
        self.upkeep_runs = Counter(
            "quorepo_upkeep_runs",
            "Consolidations and prunes by result: done, nothing (to do), failed.",
            ["kind", "result"],
            registry=self.registry,
        )
        self.upkeep_retries = Counter(
            "quorepo_upkeep_retries",
            "Consolidations and prunes that another change of the packs overtook.",
            ["kind"],
            registry=self.registry,
        )
        self.upkeep_seconds = Counter(
            "quorepo_upkeep_seconds",
            "Time that consolidations and prunes took, retries and waiting included.",
            ["kind"],
            registry=self.registry,
        )
        self.upkeep_packs_removed = Counter(
            "quorepo_upkeep_packs_removed",
            "Packs that consolidations and prunes replaced.",
            registry=self.registry,
        )

    def phase(self, phase: str) -> contextlib.AbstractContextManager[None]:
        """Times one phase of a push, also when it ends in an error."""
        return _timing(self.push_phase_seconds, phase)

    def operation_phase(self, phase: str) -> contextlib.AbstractContextManager[None]:
        """The same of an operation."""
        return _timing(self.operation_phase_seconds, phase)

    def text(self) -> bytes:
        """All of it in Prometheus' text format."""
        return generate_latest(self.registry)


@contextlib.contextmanager
def _timing(histogram: Histogram, label: str) -> Iterator[None]:
    started = time.perf_counter()
    try:
        yield
    finally:
        histogram.labels(label).observe(time.perf_counter() - started)
