"""What the services of one edge process share. Built by `rpc/node/edge_main.py`, or by a test.

Must not know any protocol: HTTP and gRPC take what they need from here.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import os
import time
from collections.abc import Callable, Coroutine, Iterator
from typing import Any

from quorepo.rpc.auth import Authenticator
from quorepo.rpc.config import NodeConfig
from quorepo.rpc.core_client import Core
from quorepo.rpc.fetch_cache import FetchCache
from quorepo.rpc.metrics import EdgeMetrics
from quorepo.rpc.reads import Reads
from quorepo.rpc.repositories import Origin, Repositories
from quorepo.storage.disk_space import DiskReserve
from quorepo.storage.errors import FatalError, Unavailable
from quorepo.storage.logs import fields
from quorepo.storage.packs import PackCache
from quorepo.storage.worker_pool import WorkerPool

__all__ = ["EdgeContext", "Slots"]

log = logging.getLogger(__name__)


def _clock_ms() -> int:
    return time.time_ns() // 1_000_000


def _exit_at_once(error: FatalError) -> None:
    log.critical("this process must end", exc_info=error)
    os._exit(error.exit_code)


class Slots:
    """How many requests of one kind are served at a time; more of them are refused, not queued."""

    def __init__(self, kind: str, count_max: int) -> None:
        self._kind = kind
        self._count_max = count_max
        self._count = 0
        self.closed = False  # set when this process is about to stop
        self.drained = False  # an operator wants no more of them here

    def check_open(self) -> None:
        """Raises Unavailable when this node takes none at all, whether or not one is free."""
        if self.closed:
            raise Unavailable("this node is shutting down", next_step="try again")
        if self.drained:
            raise Unavailable(
                f"this node is drained and takes no {self._kind}; nothing was changed",
                next_step="use another node",
            )

    @contextlib.contextmanager
    def take(self) -> Iterator[None]:
        """Holds one slot. Raises Unavailable when none is free."""
        self.check_open()
        if self._count >= self._count_max:
            raise Unavailable(
                f"this node is busy: it serves {self._count} {self._kind} already "
                "(workers.queue_max)",
                next_step="try again later, or try another node",
            )
        self._count += 1
        try:
            yield
        finally:
            self._count -= 1


@dataclasses.dataclass(slots=True)
class EdgeContext:
    """The shared parts of an edge, each with an interface of its own."""

    config: NodeConfig
    core: Core
    reads: Reads
    repositories: Repositories
    pack_cache: PackCache
    workers: WorkerPool
    metrics: EdgeMetrics
    authenticator: Authenticator
    fetch_cache: FetchCache
    push_slots: Slots
    fetch_slots: Slots
    disk: DiskReserve
    clock_ms: Callable[[], int] = _clock_ms  # Unix time, ms
    packs_to_derive: int = 0  # that wait for their derived files, or are being given them
    imports_running: int = 0  # from other servers
    stopping: bool = False  # new requests are refused, see `stop_taking`
    on_fatal: Callable[[FatalError], None] = _exit_at_once
    upkeep_lock: asyncio.Lock = dataclasses.field(default_factory=asyncio.Lock)
    _running: set[asyncio.Task[Any]] = dataclasses.field(default_factory=set)

    def stop_taking(self) -> None:
        """New work is refused from now on; what runs goes on."""
        self.stopping = self.push_slots.closed = self.fetch_slots.closed = True

    def origin(self, actor: str, request_id: bytes | None = None) -> Origin:
        """Names a request that has just arrived.

        Raises:
            InvalidArgument: a given request id is not 16 bytes long.
        """
        return Origin.new(actor, request_id, self.clock_ms)

    def spawn(self, work: Coroutine[Any, Any, Any], name: str) -> asyncio.Task[Any]:
        """Starts work that must come to its end even when its client goes away."""
        task = asyncio.create_task(work, name=name)
        self._running.add(task)
        task.add_done_callback(self._ended)
        return task

    async def drain(self, timeout_s: float) -> int:
        """Waits for spawned work. Returns how many are still running after `timeout_s`."""
        if self._running:
            await asyncio.wait(set(self._running), timeout=timeout_s)
        return len(self._running)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        self._running.discard(task)
        if not task.cancelled() and (error := task.exception()) is not None:
            log.debug("spawned work failed", extra=fields(task=task.get_name()), exc_info=error)
