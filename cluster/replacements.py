"""Replacement packs are distrusted: this node's own verdict on each (architecture, invariant 7).

Whoever proposes ReplacePacks or Prune built the new pack. Before this node says that it holds that
pack (an answer to StagePack) or takes the entry into its journal (the gate), a worker process
compares it with the packs that it replaces: `storage/replacement.py`. The verdict on ReplacePacks
depends on nothing but bytes named by digests, so it may be had at any time. That on Prune depends
on the refs at the revision that it was computed from; once this node's state is beyond that
revision, apply refuses the entry, and no check is needed.

Each check has a worker process of its own, one at a time, which ends with it: checks are rare and
may need much memory. Owns which replacements have passed. Must not parse packs, and never blocks
the Raft thread: `passed` only looks into a table.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import hashlib
import logging
import time
from collections.abc import Mapping
from typing import Any, Protocol

from quorepo.cluster.peer.held import HeldPacks
from quorepo.cluster.state.commands import check_command
from quorepo.cluster.state.effects import object_format_of
from quorepo.cluster.state.reader import PruneRoots, StateReader
from quorepo.internal.v1 import log_pb2, peer_pb2
from quorepo.storage.errors import CorruptPack, InvalidArgument, QuorepoError, Unavailable
from quorepo.storage.layout import GroupLayout
from quorepo.storage.limits import StorageLimits
from quorepo.storage.logs import fields
from quorepo.storage.packs import describe
from quorepo.storage.worker_pool import WorkerPool

__all__ = ["Replacement", "ReplacementChecks", "replacement_of"]

log = logging.getLogger(__name__)

_PASSED_MAX = 4096

Replacement = log_pb2.ReplacePacks | log_pb2.Prune
# The command's body, and those of the packs that it removes which this node does not hold.
_Key = tuple[int, bytes, tuple[bytes, ...]]


class CheckObserver(Protocol):
    """Where checks report what came out and what they took."""

    def replacement_checked(self, outcome: str, seconds: float) -> None: ...


def replacement_of(command: log_pb2.Command) -> Replacement | None:
    """The body of a command that replaces packs; None for any other command."""
    match command.WhichOneof("kind"):
        case "replace_packs":
            return command.replace_packs
        case "prune":
            return command.prune
        case _:
            return None


class ReplacementChecks:
    """Checks replacements for one node. All but `passed` runs in the core's event loop."""

    def __init__(
        self,
        layouts: Mapping[int, GroupLayout],
        held: HeldPacks,
        limits: StorageLimits,
        observer: CheckObserver,
    ) -> None:
        self._layouts = dict(layouts)
        self._readers = {group: StateReader(layout) for group, layout in layouts.items()}
        self._held = held
        self._limits = limits
        self._observer = observer
        self._passed: collections.OrderedDict[_Key, None] = collections.OrderedDict()
        self._running: dict[_Key, asyncio.Task[None]] = {}
        self._one_at_a_time = asyncio.Lock()

    async def close(self) -> None:
        """Ends the checks under way."""
        tasks = list(self._running.values())
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        for reader in self._readers.values():
            reader.close()

    def passed(self, group: int, body: Replacement) -> bool:
        """Whether the replacement was checked here and found right. Any thread; never blocks."""
        return self._key(group, body) in self._passed

    def _key(self, group: int, body: Replacement) -> _Key:
        absent = tuple(d for d in body.removed if not self._held.has(group, d))
        digest = hashlib.sha256(body.SerializeToString(deterministic=True)).digest()
        return group, type(body).__name__.encode() + digest, absent

    async def check_staged(self, header: peer_pb2.PackHeader) -> None:
        """For a pack that a peer has just staged here with the command that will add it.

        Raises InvalidArgument: it is wrong, or can't be judged here. Unavailable: this node is
        behind, and has no verdict yet.
        """
        check_command(header.replacement, header.group)
        command = log_pb2.Command.FromString(header.replacement)
        body = replacement_of(command)
        if body is None or header.digest not in [pack.digest for pack in body.added]:
            raise InvalidArgument("the command does not replace packs by this one")
        absent = [d for d in body.removed if not self._held.has(header.group, d)]
        if absent:
            raise Unavailable(f"pack {absent[0].hex()} has not come to this node yet")
        try:
            await self.check(header.group, body)
        except Unavailable:
            raise
        except QuorepoError as error:
            # Also what this node can't judge, because a file of its own is damaged or the check
            # needs too much memory: once in the log, the entry would stop here for good.
            raise InvalidArgument(f"the replacement is refused: {error}") from error

    async def check(self, group: int, body: Replacement) -> None:
        """Returns once the replacement has passed; those who ask at the same time share one check.

        A pack that it removes and this node does not hold is left out of the comparison: whoever
        has the log up to here has had every pack of the set, so that one is not in the set any
        more, and apply will refuse the entry. One whose bytes came in an entry that is not applied
        here yet is waited for.

        Raises CorruptPack: it is wrong. Unavailable: no verdict yet. QuorepoError: no verdict.
        """
        key = self._key(group, body)
        if key in self._passed:
            return
        task = self._running.get(key)
        if task is None:
            task = asyncio.create_task(self._check(key, group, body))
            self._running[key] = task
            task.add_done_callback(lambda _: self._running.pop(key, None))
        await asyncio.shield(task)

    async def _check(self, key: _Key, group: int, body: Replacement) -> None:
        started = time.monotonic()
        outcome = "failed"
        try:
            arguments = await self._arguments(group, body, key[2])
            if arguments is None:
                outcome = "stale"
            else:
                async with self._one_at_a_time, self._worker() as pool:
                    await pool.run("check_replacement", arguments, self._limits.worker_timeout_s)
                outcome = "passed"
            self._passed[key] = None
            while len(self._passed) > _PASSED_MAX:
                self._passed.popitem(last=False)
        except CorruptPack:
            outcome = "refused"
            raise
        except Unavailable:
            outcome = "too-early"
            raise
        finally:
            seconds = time.monotonic() - started
            self._observer.replacement_checked(outcome, seconds)
            log.info(
                "replacement checked",
                extra=fields(
                    group=group,
                    repository=body.repository_id,
                    kind=type(body).__name__,
                    removed=len(body.removed),
                    outcome=outcome,
                    seconds=round(seconds, 3),
                ),
            )

    async def _arguments(
        self, group: int, body: Replacement, absent: tuple[bytes, ...]
    ) -> dict[str, Any] | None:
        """What the worker is asked; None when apply will refuse the command anyway."""
        object_format = object_format_of(body.object_format)
        layout = self._layouts.get(group)
        if object_format is None or layout is None:
            raise InvalidArgument(f"object format {body.object_format} in group {group}")
        if coming := [d for d in absent if self._held.is_expected(group, d)]:
            raise Unavailable(f"pack {coming[0].hex()} is in the log, and not applied here yet")
        present = [digest for digest in body.removed if digest not in absent]
        arguments: dict[str, Any] = {
            "merge": [digest.hex() for digest in present],
            "added": [[pack.digest.hex(), pack.index_digest.hex()] for pack in body.added],
            "complete": not absent,
        }
        digests = present
        if isinstance(body, log_pb2.Prune):
            roots = await self._roots(group, body)
            if roots is None:
                return None
            digests = list(roots.packs)
            arguments["retain"] = {
                "tips": [oid.hex() for oid in roots.tips],
                "recent": [oid.hex() for oid in roots.recent],
            }
        arguments["repository"] = describe(layout, body.repository_id, digests, object_format)
        return arguments

    async def _roots(self, group: int, body: log_pb2.Prune) -> PruneRoots | None:
        """What the repository needs at the revision that the prune was computed from."""
        reader = self._readers[group]
        roots = await asyncio.to_thread(
            reader.prune_roots, body.repository_id, body.unreachable_before_ms
        )
        if roots is None or roots.counter < body.computed_from:
            raise Unavailable(f"revision {body.computed_from} has not come to this node yet")
        return roots if roots.counter == body.computed_from and not roots.deleted else None

    @contextlib.asynccontextmanager
    async def _worker(self) -> Any:
        pool = WorkerPool(1, self._limits, 1)
        try:
            await pool.start()
            yield pool
        except OSError as error:
            raise Unavailable(f"no worker process: {error}") from error
        finally:
            await pool.close()
