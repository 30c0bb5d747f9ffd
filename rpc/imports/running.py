"""Imports in the background: started, told of, cancelled; each ends in one transaction or in
nothing.

Owns what a name of an operation means: the node that runs it, its start and the request. While the
node runs it knows the operation; afterwards, and on every other node, what the log keeps of the
request still says whether it was done. Must not know gRPC.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import os
import time
import uuid
from collections.abc import Callable
from typing import Literal

from quorepo.internal.v1 import log_pb2
from quorepo.rpc.context import EdgeContext
from quorepo.rpc.imports.fetching import Source, fetch
from quorepo.rpc.new_repositories import Content, Made, NewRepositories, telling_the_end
from quorepo.rpc.reads import GROUP_STORAGE
from quorepo.rpc.repositories import Origin
from quorepo.rpc.uploads import Upload
from quorepo.storage.errors import (
    InvalidArgument,
    NotFound,
    OutcomeUnknown,
    QuorepoError,
    Unavailable,
)
from quorepo.storage.logs import fields

__all__ = ["Imports", "Operation"]

log = logging.getLogger(__name__)

State = Literal["running", "done", "failed", "cancelled"]


@dataclasses.dataclass(slots=True)
class Operation:
    """One import, as it is now. Times in Unix ms."""

    name: str
    path: str
    start_ms: int
    state: State = "running"
    phase: str = "waiting"
    bytes_done: int = 0
    objects: int = 0
    error: QuorepoError | None = None
    revision: log_pb2.Revision | None = None
    end_ms: int = 0
    ended_at: float = 0.0  # monotonic
    proposed: bool = False
    task: asyncio.Task[None] | None = None

    @property
    def over(self) -> bool:
        """Nothing about it changes any more."""
        return self.state != "running"


class Imports:
    """The imports of one node."""

    def __init__(self, edge: EdgeContext, new: NewRepositories) -> None:
        self._edge = edge
        self._new = new
        self._config = edge.config.imports
        self._prefix = f"{edge.config.node.name}/{os.urandom(4).hex()}/"
        self._operations: dict[str, Operation] = {}  # the oldest first

    async def close(self) -> None:
        """Ends what runs; what was proposed already may still be done."""
        tasks = [o.task for o in self._operations.values() if o.task is not None]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    async def start(self, path: str, source: Source, origin: Origin) -> Operation:
        """Begins an import, or gives the operation that this same request began.

        Args:
            path: normalized.

        Raises:
            InvalidArgument, SourceNotAllowed, AlreadyExists, Unavailable, StorageFull: nothing was
                begun.
        """
        source.check(self._config)
        name = self._prefix + str(uuid.UUID(bytes=origin.request_id))
        known = self._operations.get(name)
        if known is not None and known.state in ("running", "done"):
            return known
        made = await self._new.made_before(path, origin)
        known = self._operations.get(name)  # another repeat may have come first
        if known is not None and not known.over:
            return known
        self._forget()
        operation = Operation(name, path, self._edge.clock_ms())
        if made is not None:
            self._done(operation, made)
        else:
            self._new.check_room()
            running = sum(not o.over for o in self._operations.values())
            if running >= self._config.concurrent_max:
                raise Unavailable(
                    f"this node runs {running} imports already (imports.concurrent_max)",
                    next_step="try again later, or another node",
                )
            work = self._run(operation, source, origin)
            operation.task = asyncio.create_task(work, name=f"import {path}")
        self._operations.pop(name, None)
        self._operations[name] = operation
        self._count()
        return operation

    def node_of(self, name: str) -> str:
        """The node that runs, or ran, the operation. Raises InvalidArgument: no such name."""
        return _parts(name)[0]

    async def get(self, name: str, actor: str, why: str = "") -> Operation:
        """An operation by name, as this node knows it.

        Args:
            why: of an operation of another node: why that one did not answer, for the NotFound.

        Raises:
            InvalidArgument: no such name. Unavailable
            NotFound: this node does not know it, and it was not done.
        """
        self._forget()
        known = self._operations.get(name)
        if known is not None:
            return known
        node, request_id = _parts(name)
        made = await self._new.made(self._edge.origin(actor, request_id.bytes))
        if made is not None:
            operation = Operation(name, made.path, 0)
            self._done(operation, made)
            operation.end_ms = 0  # not known any more
            return operation
        own = node == self._edge.config.node.name
        if own:
            why = " any more: the node was started again, or it has been over for long"
        repeat = "repeat ImportRepository with the same request_id (harmless)"
        raise NotFound(
            f"operation {name!r} is not known here{why}; it has made nothing so far",
            next_step=repeat if own else f"ask node {node}, or {repeat}",
        )

    def all(self) -> list[Operation]:
        """Those that this node knows, the oldest first."""
        self._forget()
        return list(self._operations.values())

    async def cancel(self, name: str, actor: str, why: str = "") -> Operation:
        """Stops an operation unless it is over or proposed already, and gives what became of it."""
        operation = await self.get(name, actor, why)
        if operation.task is not None and not operation.over and not operation.proposed:
            operation.task.cancel()
        await self.wait(operation, None)
        return operation

    async def wait(self, operation: Operation, timeout_s: float | None) -> None:
        """Returns when the operation is over, or after `timeout_s`."""
        if operation.task is not None and not operation.over:
            await asyncio.wait({operation.task}, timeout=timeout_s)

    async def _run(self, operation: Operation, source: Source, origin: Origin) -> None:
        """Never raises: how it ended stands in the operation."""
        try:
            with telling_the_end(self._edge, "url", operation.path, origin) as told:
                told["host"] = source.host
                made = await self._import(operation, source, origin)
                told["bytes"], told["objects"] = operation.bytes_done, operation.objects
            self._done(operation, made)
        except asyncio.CancelledError:
            if operation.proposed:  # only when this process ends
                operation.error = OutcomeUnknown("the node was stopped while a majority agreed")
            self._end(operation, "failed" if operation.proposed else "cancelled")
        except QuorepoError as error:
            self._edge.metrics.errors.labels(error.reason).inc()
            operation.error = error
            self._end(operation, "failed")
        except Exception as error:
            incident = os.urandom(4).hex()
            about = fields(path=operation.path, incident=incident)
            log.error("import failed", extra=about, exc_info=error)
            message = f"internal error {incident} on node {self._edge.config.node.name}"
            operation.error = (
                OutcomeUnknown(message) if operation.proposed else QuorepoError(message)
            )
            self._end(operation, "failed")

    async def _import(self, operation: Operation, source: Source, origin: Origin) -> Made:
        layout = self._edge.reads.layout(GROUP_STORAGE)
        received = self._edge.metrics.bytes_received.labels("import")

        def on_progress(count: int, objects: int) -> None:
            self._edge.disk.check_new()
            received.inc(count - operation.bytes_done)
            operation.bytes_done, operation.objects = count, objects

        async with Upload(layout, self._edge.disk) as upload:
            operation.phase = "receiving"
            refs_max = self._edge.config.limits.refs_per_push_max
            fetched = await fetch(source, upload.path, self._config, refs_max, on_progress)
            on_progress(fetched.received, fetched.objects)
            refs = self._new.visible(fetched.refs)
            content = Content.with_head_id(fetched.object_format, refs, fetched.head_id)
            if any(name == fetched.head for name, _oid in refs):
                content = dataclasses.replace(content, head=fetched.head)
            operation.phase = "verifying"
            return await self._new.make(
                operation.path, content, upload.path, origin, self._tell(operation)
            )

    @staticmethod
    def _tell(operation: Operation) -> Callable[[str], None]:
        def tell(text: str) -> None:
            if text == NewRepositories.COPYING:
                operation.phase = "copying"
            elif text == NewRepositories.COMMITTING:
                operation.phase, operation.proposed = "committing", True

        return tell

    def _done(self, operation: Operation, made: Made) -> None:
        operation.revision, operation.path = made.revision, made.path
        self._end(operation, "done")

    def _end(self, operation: Operation, state: State) -> None:
        operation.state, operation.phase = state, ""
        operation.end_ms, operation.ended_at = self._edge.clock_ms(), time.monotonic()
        self._count()

    def _count(self) -> None:
        running = sum(not o.over for o in self._operations.values())
        self._edge.imports_running = running
        self._edge.metrics.imports_running.set(running)

    def _forget(self) -> None:
        """Drops what has been over for long, and the oldest when there are too many."""
        before = time.monotonic() - self._config.kept_s
        over = [o for o in self._operations.values() if o.over]
        too_many = max(0, len(self._operations) - self._config.kept_max + 1)
        for position, operation in enumerate(over):
            if operation.ended_at < before or position < too_many:
                del self._operations[operation.name]


def _parts(name: str) -> tuple[str, uuid.UUID]:
    """The node and the request of a name. Raises InvalidArgument."""
    node, _, rest = name.partition("/")
    start, _, request = rest.partition("/")
    with contextlib.suppress(ValueError):
        if node and start:
            return node, uuid.UUID(request)
    raise InvalidArgument(f"{name[:100]!r} is no name of an operation")
