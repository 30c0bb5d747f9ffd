"""What an edge is made of, put together and taken apart in order; for the process and for tests.

Must not know sockets that clients connect to.
"""

from __future__ import annotations

import contextlib
from collections.abc import AsyncIterator, Callable
from pathlib import Path

from quorepo.cluster.state.reader import StateReader
from quorepo.rpc.auth import Authenticator
from quorepo.rpc.config import NodeConfig
from quorepo.rpc.context import EdgeContext, Slots
from quorepo.rpc.core_client import Core, CoreClient
from quorepo.rpc.fetch_cache import FetchCache
from quorepo.rpc.fetch_files import FetchFiles
from quorepo.rpc.metrics import EdgeMetrics
from quorepo.rpc.reads import GROUP_DIRECTORY, GROUP_STORAGE, Reads
from quorepo.rpc.repositories import Repositories
from quorepo.rpc.uploads import remove_abandoned_uploads
from quorepo.storage.disk_space import DiskReserve
from quorepo.storage.errors import FatalError
from quorepo.storage.layout import GroupLayout
from quorepo.storage.packs import PackCache
from quorepo.storage.worker_pool import WorkerPool

__all__ = ["open_edge"]


@contextlib.asynccontextmanager
async def open_edge(
    config: NodeConfig,
    core: Core | Path,
    authenticator: Authenticator,
    *,
    on_fatal: Callable[[FatalError], None] | None = None,
) -> AsyncIterator[EdgeContext]:
    """The parts of an edge, with its workers running.

    Args:
        core: the path of the core's socket, or something that is a core (in tests).
        on_fatal: told when this process must end; by default it ends at once.
    """
    limits = config.limits
    groups = (GROUP_DIRECTORY, GROUP_STORAGE)
    layouts = {group: GroupLayout(config.node.data_dir, group) for group in groups}
    readers = {group: StateReader(layout) for group, layout in layouts.items()}
    pack_cache = PackCache(limits.open_packs_max)
    metrics = EdgeMetrics()
    workers = WorkerPool(
        config.workers.count,
        limits,
        config.workers.queue_max,
        metrics.worker_wait_seconds.observe,
    )
    fetch_files = FetchFiles(config.node.data_dir)
    fetch_files.clear()
    for layout in layouts.values():
        remove_abandoned_uploads(layout)
    client = CoreClient(core, config.proposals) if isinstance(core, Path) else None
    core = client or core
    assert not isinstance(core, Path)
    reads = Reads(core, readers, layouts, pack_cache, config.git.hidden_prefixes)
    fetch_cache = FetchCache(fetch_files, limits.fetch_cache_bytes_max)
    metrics.cache_answers.set_function(lambda: fetch_cache.answers_held)
    metrics.cache_bytes.set_function(lambda: fetch_cache.bytes_held)
    metrics.workers_busy.set_function(lambda: workers.running)
    metrics.workers_queue.set_function(lambda: workers.queued)
    edge = EdgeContext(
        config=config,
        core=core,
        reads=reads,
        repositories=Repositories(core, reads, config.storage.undelete_retention_s),
        pack_cache=pack_cache,
        workers=workers,
        metrics=metrics,
        authenticator=authenticator,
        fetch_cache=fetch_cache,
        push_slots=Slots("pushes", config.workers.queue_max),
        fetch_slots=Slots("fetches", config.workers.queue_max),
        disk=DiskReserve(config.node.data_dir, config.storage.reserve_bytes),
    )
    metrics.packs_to_derive.set_function(lambda: edge.packs_to_derive)
    if on_fatal is not None:
        edge.on_fatal = on_fatal
    await workers.start()
    try:
        yield edge
    finally:
        await workers.close()
        reads.close()
        for reader in readers.values():
            reader.close()
        if client is not None:
            await client.close()
