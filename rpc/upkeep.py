"""Consolidation and prune of repositories: one node builds, all replicas check, one entry switches.

Owns what is merged when, the order of the steps and the retries:

    look      the repository at its newest revision, and which of its packs to merge
    build     in a worker process of its own, below everything else in priority
    copy      to every replica that can be reached; each checks it before it acknowledges it
    switch    ReplacePacks or Prune; refused when the packs changed meanwhile, and then all over

The node that was asked builds; the automatic runs are those of the node that leads the storage
group, so that normally one node does them. Nothing depends on that: two that consolidate one
repository at a time waste work, and the log refuses the second. Pushes go on all the while: what
they add is not among the packs that are replaced. Must not know HTTP or gRPC, nor what is in a
pack.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import random
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence

from quorepo.cluster.state.reader import StateReader
from quorepo.cluster.state.rows import PackRow
from quorepo.internal.v1 import log_pb2
from quorepo.rpc.context import EdgeContext
from quorepo.rpc.core_client import PacksChanged, check_result
from quorepo.rpc.reads import GROUP_DIRECTORY, GROUP_STORAGE, RepositoryView
from quorepo.rpc.repositories import PROPOSE_TIMEOUT_S, Origin, object_format_message
from quorepo.rpc.verification import pack_addition
from quorepo.storage.errors import QuorepoError, Unavailable
from quorepo.storage.ingest import IngestResult
from quorepo.storage.logs import fields
from quorepo.storage.upkeep_plan import PackSize, geometric, within_bytes
from quorepo.storage.worker_pool import WorkerPool

__all__ = ["Outcome", "Upkeep"]

log = logging.getLogger(__name__)

_ATTEMPTS_MAX = 5
_BACKOFF_S = 0.5
_PAGE = 500
_FAILURE_PAUSE_S, _FAILURE_PAUSE_S_MAX = 30.0, 3600.0
# Repeated objects in a few packs are not worth a run.
_PACKS_MIN = 8

Progress = Callable[[str], None]
Choose = Callable[[Sequence[PackSize]], Sequence[PackSize]]


@dataclasses.dataclass(frozen=True, slots=True)
class Outcome:
    """What a consolidation or prune did; all counts are 0 when there was nothing to do."""

    revision: tuple[int, int]  # (incarnation, counter) that the repository is at now
    packs_before: int
    packs_after: int
    packs_removed: int = 0
    bytes_removed: int = 0
    bytes_added: int = 0
    objects: int = 0  # in the new pack
    objects_dropped: int = 0  # pruned, or repeated ones that were left out


class Upkeep:
    """Keeps repositories in few packs; one run at a time on a node."""

    def __init__(self, edge: EdgeContext) -> None:
        self._edge = edge
        self._storage = StateReader(edge.reads.layout(GROUP_STORAGE))
        self._directory = StateReader(edge.reads.layout(GROUP_DIRECTORY))
        # Of repositories whose last automatic run failed: when to try again, and the pause then.
        self._failed: dict[str, tuple[float, float]] = {}

    def close(self) -> None:
        """Closes the connections to the state."""
        self._storage.close()
        self._directory.close()

    # ---- on demand

    async def optimize(
        self,
        path: str,
        origin: Origin,
        *,
        incremental: bool = False,
        progress: Progress | None = None,
    ) -> Outcome:
        """Merges all packs of a repository into one; `incremental`: only the small ones of them.

        Raises:
            NotFound, Unavailable, OutcomeUnknown, StorageFull, DamagedPack
            Rejected: a replica refuses the new pack; a bug, or a damaged disk. Nothing changed.
        """
        choose: Choose = geometric if incremental else _all
        return await self._repeat(
            lambda: self._consolidate(path, origin, choose, progress or _silent), "consolidate"
        )

    async def prune(
        self, path: str, origin: Origin, *, grace_s: float, progress: Progress | None = None
    ) -> Outcome:
        """Removes objects that nothing has led to for `grace_s` seconds of log time.

        Raises: as `optimize`.
        """
        return await self._repeat(
            lambda: self._prune(path, origin, grace_s, progress or _silent), "prune"
        )

    # ---- by itself

    async def run(self) -> None:
        """Consolidates what needs it while this node leads the storage group; for ever."""
        settings = self._edge.config.storage
        while True:
            await asyncio.sleep(settings.consolidation_interval_s)
            try:
                if settings.consolidate and await self._leads():
                    await self._look()
            except QuorepoError as error:
                log.warning("consolidation has to wait", extra=fields(error=str(error)))
            except Exception:
                # A bug here must not take clients down with it; it is loud, and the next round
                # may be luckier.
                log.exception("consolidation failed")

    async def _look(self) -> None:
        """One round over all repositories."""
        after = ""
        while not self._edge.stopping:
            page = await asyncio.to_thread(self._storage.pack_use, after, _PAGE, 2)
            for use in page:
                crowded = use.pack_count > self._edge.config.storage.packs_max
                repeated = use.repeated_bytes / max(1, use.pack_bytes)
                repeats = (
                    use.pack_count >= _PACKS_MIN
                    and repeated > self._edge.config.storage.repeated_fraction_max
                )
                if (crowded or repeats) and await self._leads():
                    await self._look_after(use.repository_id, geometric if crowded else _all)
            if len(page) < _PAGE:
                return
            after = page[-1].repository_id

    async def _look_after(self, repository_id: str, choose: Choose) -> None:
        not_before, pause_s = self._failed.get(repository_id, (0.0, _FAILURE_PAUSE_S))
        if time.monotonic() < not_before:
            return
        paths = await asyncio.to_thread(self._directory.paths_of, repository_id)
        if not paths:
            return
        bytes_max = self._edge.config.storage.consolidation_bytes_max

        def bounded(packs: Sequence[PackSize]) -> Sequence[PackSize]:
            return within_bytes(choose(packs), bytes_max)

        origin = self._edge.origin(f"node:{self._edge.config.node.name}")
        try:
            await self._repeat(
                lambda: self._consolidate(paths[0].path, origin, bounded, _silent), "consolidate"
            )
            self._failed.pop(repository_id, None)
        except QuorepoError as error:
            # Nothing waits for it, and each attempt costs as much as one that succeeds.
            self._failed[repository_id] = (
                time.monotonic() + pause_s,
                min(2 * pause_s, _FAILURE_PAUSE_S_MAX),
            )
            log.warning(
                "repository not consolidated",
                extra=fields(repository=repository_id, error=str(error), pause_s=pause_s),
            )

    async def _leads(self) -> bool:
        status = await self._edge.core.status(this_node_only=True)
        return any(g.group == GROUP_STORAGE and g.role == "leader" for g in status.groups)

    # ---- the steps

    async def _repeat(self, attempt: Callable[[], Awaitable[Outcome]], kind: str) -> Outcome:
        """Runs attempts until one is not overtaken by another change of the packs."""
        metrics = self._edge.metrics
        started = time.monotonic()
        result = "failed"
        try:
            for number in range(_ATTEMPTS_MAX):
                try:
                    async with self._edge.upkeep_lock:
                        outcome = await attempt()
                    result = "done" if outcome.packs_removed else "nothing"
                    return outcome
                except PacksChanged as error:
                    log.info("packs changed meanwhile", extra=fields(kind=kind, error=str(error)))
                    metrics.upkeep_retries.labels(kind).inc()
                    await asyncio.sleep(_BACKOFF_S * 2**number * random.uniform(0.5, 1))  # noqa: S311
            raise Unavailable(
                "the packs change faster than they are merged", next_step="try again later"
            )
        finally:
            metrics.upkeep_runs.labels(kind, result).inc()
            metrics.upkeep_seconds.labels(kind).inc(time.monotonic() - started)

    async def _consolidate(
        self, path: str, origin: Origin, choose: Choose, progress: Progress
    ) -> Outcome:
        view = await self._edge.reads.open(path)
        chosen = choose([_size(row) for row in view.pack_rows])
        if len(chosen) < 2:
            return _unchanged(view)
        digests = [pack.digest for pack in chosen]
        result, _ = await self._build("consolidate", view, digests, {}, progress)
        if result is None:
            return _unchanged(view)
        command = _command(origin, view)
        body = command.replace_packs
        body.repository_id = view.repository_id
        body.prune_epoch = view.row.prune_epoch
        body.object_format = object_format_message(view.object_format)
        body.removed.extend(digests)
        body.added.append(pack_addition(result))
        objects = sum(pack.object_count for pack in chosen)
        return await self._switch(
            view, command, digests, result, objects - result.object_count, progress
        )

    async def _prune(
        self, path: str, origin: Origin, grace_s: float, progress: Progress
    ) -> Outcome:
        view = await self._edge.reads.open(path)
        log_time_ms = await asyncio.to_thread(self._storage.log_time_ms)
        before_ms = log_time_ms - int(grace_s * 1000)
        roots = await asyncio.to_thread(self._storage.prune_roots, view.repository_id, before_ms)
        if roots is None or roots.counter != view.row.counter:
            raise PacksChanged("the repository changed while it was looked at")
        digests = [row.digest for row in view.pack_rows if row.arrived_ms < before_ms]
        if not digests:
            return _unchanged(view)
        arguments = {
            "tips": [oid.hex() for oid in roots.tips],
            "recent": [oid.hex() for oid in roots.recent],
        }
        result, dropped = await self._build("prune", view, digests, arguments, progress)
        if not dropped:
            return _unchanged(view)  # the packs hold nothing but what is needed
        command = _command(origin, view)
        body = command.prune
        body.repository_id = view.repository_id
        body.prune_epoch = view.row.prune_epoch
        body.object_format = object_format_message(view.object_format)
        body.computed_from = view.row.counter
        body.unreachable_before_ms = before_ms
        body.removed.extend(digests)
        if result is not None:
            body.added.append(pack_addition(result))
        return await self._switch(view, command, digests, result, dropped, progress)

    async def _build(
        self,
        job: str,
        view: RepositoryView,
        digests: Sequence[bytes],
        arguments: dict[str, list[str]],
        progress: Progress,
    ) -> tuple[IngestResult | None, int]:
        """The new pack, durable in this node's quarantine; and how many objects were pruned.

        Raises StorageFull, before anything is built, when a pack as large as those it replaces
        would not leave the reserve of this node's disk.
        """
        chosen = frozenset(digests)
        self._edge.disk.check_new(
            sum(row.pack_bytes for row in view.pack_rows if row.digest in chosen)
        )
        upload = view.layout.new_upload()
        async with self._worker() as worker:
            answer = await worker.run(
                job,
                {
                    "repository": view.describe(),
                    "merge": [digest.hex() for digest in digests],
                    "upload": str(upload),
                    **arguments,
                },
                self._edge.config.limits.worker_timeout_s,
                progress,
            )
        built = answer["result"]
        result = None if built is None else IngestResult.from_json(built)
        return result, int(answer.get("dropped", 0))

    async def _switch(
        self,
        view: RepositoryView,
        command: log_pb2.Command,
        digests: Sequence[bytes],
        result: IngestResult | None,
        dropped: int,
        progress: Progress,
    ) -> Outcome:
        """Copies the new pack to the replicas, and replaces the old ones by it."""
        core = self._edge.core
        if result is not None:
            progress("Replicas check the new pack")
            await core.replicate_pack(
                view.group,
                view.repository_id,
                pack_addition(result),
                self._edge.config.limits.worker_timeout_s,
                replacement=command,
            )
        # Building and checking may have taken longer than requests are remembered.
        command.first_seen_ms = self._edge.clock_ms()
        applied = check_result(await core.propose(view.group, command, PROPOSE_TIMEOUT_S))
        added = set() if result is None else {result.digest}
        going = set(digests) - added
        removed = [row for row in view.pack_rows if row.digest in going]
        revision = applied.repository.revision
        outcome = Outcome(
            revision=(revision.incarnation, revision.counter),
            packs_before=len(view.pack_rows),
            packs_after=len(({row.digest for row in view.pack_rows} - going) | added),
            packs_removed=len(removed),
            bytes_removed=sum(row.pack_bytes for row in removed),
            bytes_added=0 if result is None else result.pack_bytes,
            objects=0 if result is None else result.object_count,
            objects_dropped=dropped,
        )
        self._edge.metrics.upkeep_packs_removed.inc(outcome.packs_removed)
        log.info(
            "packs replaced",
            extra=fields(
                repository=view.repository_id,
                kind=command.WhichOneof("kind"),
                packs_removed=outcome.packs_removed,
                bytes_removed=outcome.bytes_removed,
                bytes_added=outcome.bytes_added,
                objects=outcome.objects,
                objects_dropped=outcome.objects_dropped,
            ),
        )
        return outcome

    @contextlib.asynccontextmanager
    async def _worker(self) -> AsyncIterator[WorkerPool]:
        """A worker process of this run's own: those of the edge are there for clients."""
        pool = WorkerPool(1, self._edge.config.limits, 1)
        try:
            await pool.start()
            yield pool
        finally:
            await pool.close()


def _silent(_message: str) -> None:
    """Nobody listens."""


def _all(packs: Sequence[PackSize]) -> Sequence[PackSize]:
    return packs


def _command(origin: Origin, view: RepositoryView) -> log_pb2.Command:
    """A request of its own at every revision: the same one again finds the packs replaced."""
    return origin.step(f"replace packs at {view.row.counter}").command()


def _size(row: PackRow) -> PackSize:
    return PackSize(row.digest, row.object_count, row.pack_bytes)


def _unchanged(view: RepositoryView) -> Outcome:
    count = len(view.pack_rows)
    return Outcome(view.row.revision, packs_before=count, packs_after=count)
