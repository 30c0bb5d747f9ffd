"""Derived files of large packs are made before a client waits for them.

Owns when: as soon as this node reads a repository with a large pack whose table of changes is not
there, which is after each push of one, each consolidation and on every node. One pack at a time, in
a worker process of its own, below everything else in priority. Nothing depends on it: until the
files are there fetches are answered in another way. Must not know what is in the files.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections import OrderedDict
from typing import Any

from quorepo.rpc.context import EdgeContext
from quorepo.rpc.reads import RepositoryView
from quorepo.storage.errors import QuorepoError
from quorepo.storage.git.derived import derived_path
from quorepo.storage.git.pack_changes import CHANGES_KIND, CHANGES_OBJECTS_MIN
from quorepo.storage.logs import fields
from quorepo.storage.worker_pool import WorkerPool

__all__ = ["Derivation"]

log = logging.getLogger(__name__)

# Packs that were looked at; the rest is looked at again, which costs a look into a folder.
_SEEN_MAX = 10_000
_QUEUE_MAX = 1000


class Derivation:
    """The queue of packs, and what works on it."""

    def __init__(self, edge: EdgeContext) -> None:
        self._edge = edge
        self._loop = asyncio.get_running_loop()
        self._seen: OrderedDict[tuple[str, bytes], None] = OrderedDict()
        self._queue: asyncio.Queue[dict[str, Any]] = asyncio.Queue(_QUEUE_MAX)
        edge.reads.on_new_view = self.look
        edge.packs_to_derive = 0

    def look(self, view: RepositoryView) -> None:
        """Puts the packs that lack files into the queue. May be called in any thread."""
        wanted = []
        for row in view.pack_rows:
            seen = (view.repository_id, row.digest) in self._seen
            if row.object_count < CHANGES_OBJECTS_MIN or seen:
                continue
            pack, _ = view.layout.pack_paths(view.repository_id, row.digest)
            if not derived_path(pack, row.digest, CHANGES_KIND).exists():
                wanted.append(row.digest)
        if wanted:
            repository = view.describe()
            with contextlib.suppress(RuntimeError):  # the loop is closed: this process ends
                self._loop.call_soon_threadsafe(self._put, repository, wanted)

    async def run(self) -> None:
        """Makes files; for ever."""
        while True:
            arguments = await self._queue.get()
            started = time.monotonic()
            result = "failed"
            try:
                pool = WorkerPool(1, self._edge.config.limits, 1)
                try:
                    await pool.start()
                    await pool.run("derive", arguments, self._edge.config.limits.worker_timeout_s)
                finally:
                    await pool.close()
                result = "done"
            except QuorepoError as error:
                # The pack may be gone by now. If it is not, the next start tries again.
                log.warning("derived files not made", extra=fields(error=str(error)))
            finally:
                self._edge.packs_to_derive -= 1
                self._edge.metrics.derivations.labels(result).inc()
                self._edge.metrics.derivation_seconds.inc(time.monotonic() - started)

    def _put(self, repository: dict[str, Any], digests: list[bytes]) -> None:
        for digest in digests:
            key = (repository["repository_id"], digest)
            if key in self._seen or self._queue.full():
                continue
            self._seen[key] = None
            if len(self._seen) > _SEEN_MAX:
                self._seen.popitem(last=False)
            self._edge.packs_to_derive += 1
            self._queue.put_nowait({"repository": repository, "pack": digest.hex()})
