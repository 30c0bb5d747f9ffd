"""Commits and tags that the server makes: from a look at a ref to the transaction that moves it.

Owns exactly-once for them. A request is a chain of attempts, each under a request id of its own
that follows from the client's one. Apply keeps what it said to each, with the answer that the
client is given; the next attempt is made only where the one before is kept as *stale*. So whoever
repeats the request, on whatever node, walks the same chain and ends at the same commit. Must not
know gRPC.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from quorepo.cluster.state.reader import StateReader
from quorepo.internal.v1 import log_pb2
from quorepo.rpc.context import EdgeContext
from quorepo.rpc.core_batches import beside_the_log
from quorepo.rpc.push_checks import Change
from quorepo.rpc.reads import GROUP_STORAGE, RepositoryView
from quorepo.rpc.repositories import PROPOSE_TIMEOUT_S, Origin
from quorepo.rpc.transactions import Target, Transactions, Verified
from quorepo.rpc.verification import pack_addition
from quorepo.storage.errors import LimitExceeded, Unavailable
from quorepo.storage.ingest import IngestResult

__all__ = ["Built", "Done", "Operations"]

_ATTEMPTS_MAX = 8  # of other writers who come between
_REPLICATE_TIMEOUT_S = 10.0
_REPLICATE_BYTES_PER_S = 1024 * 1024


@dataclasses.dataclass(frozen=True, slots=True)
class Built:
    """What one attempt wants: the ref's new value, what it needs, what the client is told."""

    new: bytes | None  # None deletes the ref
    expected: bytes | None  # None: the ref must not exist
    answer: dict[str, Any]
    packs: Sequence[log_pb2.PackAddition] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class Done:
    """The first answer to the request, and the verdict on its one ref."""

    answer: dict[str, Any]
    result: log_pb2.TransactionResult
    change: Change


Build = Callable[[RepositoryView], Awaitable[Built]]


@dataclasses.dataclass(frozen=True, slots=True)
class _Early:
    """An attempt made before this node knew that its picture is the newest."""

    view: RepositoryView
    built: Built | Exception
    confirmed: asyncio.Task[None]

    def still_holds(self, now: RepositoryView) -> bool:
        """Does the picture that it was made from show what is there, as is known now?"""
        before = self.view.row
        return (before.repository_id, before.incarnation, before.counter) == (
            now.row.repository_id,
            now.row.incarnation,
            now.row.counter,
        )

    def outcome(self) -> Built:
        """What `build` gave, or raised."""
        if isinstance(self.built, Exception):
            raise self.built
        return self.built


class Operations:
    """Runs operations on one ref each."""

    def __init__(self, edge: EdgeContext) -> None:
        self._edge = edge
        self._storage = StateReader(edge.reads.layout(GROUP_STORAGE))
        self._transactions = Transactions(
            edge.core, edge.reads, edge.repositories, edge.config.limits
        )

    def close(self) -> None:
        """Closes the connections to the state."""
        self._storage.close()

    async def run(
        self, path: str, ref: bytes, origin: Origin, build: Build, *, again: bool,
        timeout_s: float = PROPOSE_TIMEOUT_S,
    ) -> Done:  # fmt: skip
        """Does the operation once.

        `again`: another attempt when the ref moved meanwhile, since the client expects no value.

        Raises:
            NotFound: no such repository. Unavailable, OutcomeUnknown. What `build` raises.
        """
        deadline = asyncio.get_running_loop().time() + timeout_s

        def left_s() -> float:
            return max(0.001, deadline - asyncio.get_running_loop().time())

        early = await self._begin(path, origin, build, left_s())
        for attempt in range(_ATTEMPTS_MAX):
            step = origin if attempt == 0 else origin.step(f"attempt {attempt}")
            with self._edge.metrics.operation_phase("look"):
                await (self._edge.reads.confirm(left_s()) if early is None else early.confirmed)
                view = await self._edge.reads.open(path, consistency="local")
                result = await self._kept(step, view)
            change = Change(ref, None, None)
            if result is None:
                if early is not None and early.still_holds(view):
                    view, built = early.view, early.outcome()
                else:
                    built = await build(view)
                change = Change(ref, built.new, built.expected)
                work = self._commit(view, change, built, step, left_s())
                # From here on a client that goes away changes nothing any more.
                result = await asyncio.shield(self._edge.spawn(work, f"operation {path}"))
            early = None
            assert result is not None
            stale = result.refs[0].status == log_pb2.REF_STATUS_STALE
            if not (stale and again):
                return Done(json.loads(result.answer or b"{}"), result, change)
        raise Unavailable("the ref is moved faster than it can be followed", next_step="try again")

    async def _begin(
        self, path: str, origin: Origin, build: Build, timeout_s: float
    ) -> _Early | None:
        """Builds on what this node knows while it asks whether that is all there is."""
        view = await self._edge.reads.find(path, consistency="local")
        if view is None or await self._kept(origin, view) is not None:
            return None
        confirmed = asyncio.create_task(self._edge.reads.confirm(timeout_s))
        try:
            built: Built | Exception = await build(view)
        except Exception as error:  # it may be of a picture that is too old  # noqa: BLE001
            built = error
        except BaseException:
            confirmed.cancel()
            raise
        return _Early(view, built, confirmed)

    async def _kept(self, step: Origin, view: RepositoryView) -> log_pb2.TransactionResult | None:
        kept = await self._edge.reads.in_thread(
            lambda: self._storage.result_of(step.request_id, view.repository_id)
        )
        if kept is None or kept.WhichOneof("kind") != "transaction" or not kept.transaction.refs:
            return None
        return kept.transaction

    async def _commit(
        self, view: RepositoryView, change: Change, built: Built, step: Origin, timeout_s: float
    ) -> log_pb2.TransactionResult:
        with self._edge.metrics.operation_phase("replicate"):
            for pack in beside_the_log(built.packs):
                await self._edge.core.replicate_pack(
                    view.group,
                    view.repository_id,
                    pack,
                    min(timeout_s, _REPLICATE_TIMEOUT_S + pack.pack_bytes / _REPLICATE_BYTES_PER_S),
                )

        async def verify(_target: Target) -> Verified:
            raise Unavailable(
                "objects were pruned meanwhile", next_step="repeat it with the same request id"
            )

        with self._edge.metrics.operation_phase("commit"):
            return await self._transactions.commit(
                Verified(Target(view.path, view, view.object_format), built.packs),
                [change],
                atomic=True,
                origin=step,
                verify=verify,
                timeout_s=timeout_s,
                answer=json.dumps(built.answer).encode("ascii"),
            )

    async def make(
        self, view: RepositoryView, ref: bytes, kind: str, arguments: dict[str, Any]
    ) -> tuple[bytes, dict[str, Any], list[log_pb2.PackAddition]]:
        """Makes objects in a worker: (raw id of the new tip, answer, packs)."""
        with self._edge.metrics.operation_phase("build"), self._edge.push_slots.take():
            job = self._job(view, ref, kind, arguments)
            timeout_s = self._edge.config.limits.worker_timeout_s
            done = await self._edge.workers.run("operate", job, timeout_s)
        packs = []
        if done["result"] is not None:
            packs.append(pack_addition(IngestResult.from_json(done["result"])))
        return bytes.fromhex(done["oid"]), done["answer"], packs

    async def try_out(
        self, view: RepositoryView, kind: str, arguments: dict[str, Any], timeout_s: float
    ) -> dict[str, Any]:
        """The answer of a kind that makes nothing: a read, which needs no place among writes.

        Raises:
            LimitExceeded: it took longer than `timeout_s`, which api.read_timeout_s bounds.
        """
        try:
            done = await self._edge.workers.run(
                "operate", self._job(view, b"", kind, arguments), timeout_s
            )
        except LimitExceeded as error:
            if error.limit != "limits.worker_timeout_s":
                raise
            raise LimitExceeded(
                f"it took longer than {timeout_s:g} s (the caller's deadline, at most "
                "api.read_timeout_s)",
                limit="api.read_timeout_s",
                next_step="ask the operator to raise the limit",
            ) from None
        answer: dict[str, Any] = done["answer"]
        return answer

    def _job(
        self, view: RepositoryView, ref: bytes, kind: str, arguments: dict[str, Any]
    ) -> dict[str, Any]:
        upload = view.layout.new_upload()
        folder = self._edge.config.node.data_dir / "tmp" / f"merge-{upload.stem}"
        return {
            "repository": view.describe(),
            "upload": str(upload),
            "folder": str(folder),
            "ref": ref.hex(),
            "kind": kind,
            "arguments": arguments,
            "fsck": dict(self._edge.config.git.fsck_policy(view.path).overrides),
        }
