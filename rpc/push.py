"""One `git push` from its first byte to its report: the write path of architecture.md.

    read index -> parse the commands -> refuse early what must fail -> stream the pack into
    quarantine -> verify it in a worker -> copy it to a majority -> propose it -> report

Owns that order and what the client is told at each point. Must not know HTTP: bytes come from an
`Incoming` and go to a `Reply`.

What a client is told is certain or says that it is not: `ng` means that the ref was not changed; a
ref without a line may have been. Until the transaction is proposed everything may be cancelled and
leaves nothing behind; from then on the work goes on without the client.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import os
import time
from collections.abc import Callable, Sequence

from quorepo.internal.v1 import log_pb2
from quorepo.rpc.auth import Identity
from quorepo.rpc.context import EdgeContext
from quorepo.rpc.core_batches import beside_the_log
from quorepo.rpc.push_checks import ATOMIC_FAILURE, Change, early_refusals
from quorepo.rpc.reads import GROUP_STORAGE, RepositoryView
from quorepo.rpc.reply import Liveness, Reply
from quorepo.rpc.transactions import Target, Transactions, Verified, refusal_reasons
from quorepo.rpc.uploads import Incoming, Upload
from quorepo.rpc.verification import Verifier
from quorepo.storage.errors import (
    CorruptPack,
    InvalidArgument,
    LimitExceeded,
    NotFound,
    OutcomeUnknown,
    QuorepoError,
    StorageFull,
    Unavailable,
)
from quorepo.storage.git.receive_pack import (
    KEEPALIVE,
    Ng,
    Ok,
    PushCapabilities,
    PushReport,
    ReceivePackParser,
    RefStatus,
    Unknown,
    push_error,
    push_progress,
    report_status,
)
from quorepo.storage.logs import fields
from quorepo.storage.objectformat import ObjectFormat

__all__ = ["receive_pack"]

log = logging.getLogger(__name__)

_UNPACKER_ERROR = "unpacker error"  # git's words for refs whose pack was refused
_SHALLOW = "shallow update not allowed"  # git's words, receive-pack.c update()
# For a majority to take a pack: as long as for a leader, and a second per MiB.
_REPLICATE_TIMEOUT_S = 10.0
_REPLICATE_BYTES_PER_S = 1024 * 1024
_WARNINGS_MAX = 20
_PACK_REFUSALS = (CorruptPack, InvalidArgument, LimitExceeded, StorageFull)


async def receive_pack(
    edge: EdgeContext, identity: Identity, path: str, incoming: Incoming, reply: Reply
) -> None:
    """Serves the body of one push; everything that goes wrong is part of the answer.

    Args:
        path: normalized; need not name a repository when the configuration lets pushes create one.

    Raises:
        NotFound: no such repository, and this push may not create it. `reply` was not used.
        ConnectionError, CancelledError: the client is gone.
    """
    if await _is_probe(incoming):
        return
    push = _Push(edge, identity, path, incoming, reply)
    with edge.metrics.phase("total"):
        await push.run()


async def _is_probe(incoming: Incoming) -> bool:
    """git sends a lone flush first when the push is large (remote-curl.c, probe_rpc())."""
    start = b""
    while len(start) < 5 and (piece := await incoming.read()):
        start += piece
    incoming.push_back(start)
    return start in (b"", b"0000")


@dataclasses.dataclass(slots=True)
class _Outcome:
    """What the report will say; refs without a status here are still open."""

    unpack: str = "ok"
    statuses: dict[int, RefStatus] = dataclasses.field(default_factory=dict)
    explanation: str = ""  # for people, on side-band 2


class _Push:
    def __init__(
        self, edge: EdgeContext, identity: Identity, path: str, incoming: Incoming, reply: Reply
    ) -> None:
        self._edge = edge
        self._path = path
        self._incoming = incoming
        self._reply = reply
        self._origin = edge.origin(identity.user)
        self._outcome = _Outcome()
        self._changes: list[Change] = []
        self._capabilities = PushCapabilities()
        self._push_options: list[str] = []
        self._is_shallow = False  # the client's repository ends somewhere
        self._expects_pack = False
        self._started = time.monotonic()
        self._proposed = False
        self._transactions = Transactions(
            edge.core, edge.reads, edge.repositories, edge.config.limits
        )

    async def run(self) -> None:
        result = "cancelled"
        try:
            view, problem = await self._find()
            target = Target(
                self._path, view, ObjectFormat.SHA1 if view is None else view.object_format
            )
            try:
                await self._parse(target.object_format)
            except (InvalidArgument, LimitExceeded) as error:
                if view is None and "client_format" in error.metadata:
                    error.next_step = (
                        "a push creates SHA-1 repositories; create this one with: "
                        f"quorepo repo create {self._path} --object-format sha256"
                    )
                self._edge.metrics.errors.labels(error.reason).inc()
                await self._finish(push_error(str(error), self._capabilities))
                result = "rejected"
                return
            await self._handle(target, problem)
            result = self._result()
            await self._finish(self._report())
        except QuorepoError:
            result = "rejected"
            raise
        except asyncio.CancelledError:
            result = "abandoned" if self._proposed else "cancelled"
            raise
        finally:
            self._edge.metrics.pushes.labels(result).inc()
            self._log(result)

    async def _find(self) -> tuple[RepositoryView | None, Unavailable | None]:
        """The repository as this push sees it. Without a leader, what is known here, and why."""
        problem = None
        try:
            view = await self._edge.reads.find(self._path)
        except Unavailable as error:
            problem = error
            view = await self._edge.reads.find(self._path, consistency="local")
        if view is None and not self._edge.config.push.create_on_push and problem is None:
            raise NotFound(f"repository {self._path!r} does not exist")
        return view, problem

    async def _parse(self, object_format: ObjectFormat) -> None:
        limits = self._edge.config.limits
        parser = ReceivePackParser(
            object_format,
            refs_per_push_max=limits.refs_per_push_max,
            ref_name_bytes_max=limits.ref_name_bytes_max,
            push_options_max=limits.push_options_max,
            push_options_bytes_max=limits.push_options_bytes_max,
        )
        try:
            while not parser.finished:
                piece = await self._incoming.read()
                if not piece:
                    parser.close()
                self._incoming.push_back(parser.feed(piece))
        finally:
            self._capabilities = parser.capabilities
        self._changes = [Change(c.name, c.new, c.old) for c in parser.commands]
        self._push_options = list(parser.push_options)
        self._is_shallow = bool(parser.shallow)
        self._expects_pack = parser.expects_pack

    async def _handle(self, target: Target, problem: Unavailable | None) -> None:
        """Fills in the outcome; raises only when the client is gone."""
        try:
            if problem is not None:
                raise problem
            with self._edge.metrics.phase("check"):
                self._refuse_early(target)
            if self._open():
                with self._edge.push_slots.take():
                    await self._receive_and_commit(target)
        except OutcomeUnknown as error:
            self._unknown(str(error))
        except _PACK_REFUSALS as error:
            self._edge.metrics.errors.labels(error.reason).inc()
            if self._is_shallow and "missing" in error.metadata:
                # Not the pack is to blame: the history that it continues is not here.
                self._settle(Ng(_SHALLOW))
            else:
                self._refuse_pack(str(error))
        except QuorepoError as error:
            self._edge.metrics.errors.labels(error.reason).inc()
            self._settle(Ng(str(error)))
        except ConnectionError:
            raise
        except Exception as error:  # whatever it is, the client gets a report  # noqa: BLE001
            self._failed(error)

    def _refuse_early(self, target: Target) -> None:
        view = target.view
        refused = early_refusals(
            self._changes,
            {} if view is None else view.refs,
            None if view is None else view.head,
            target.object_format,
            self._edge.config.limits,
            hidden_prefixes=self._edge.config.git.hidden_prefixes,
        )
        for position, reason in refused.items():
            self._outcome.statuses[position] = Ng(reason)
        if refused and self._capabilities.atomic:
            self._settle(Ng(ATOMIC_FAILURE))
        if view is None and not any(self._changes[i].new for i in self._open()):
            self._settle(Ok())  # only deletions of refs that do not exist: nothing to create for

    async def _receive_and_commit(self, target: Target) -> None:
        changes = [self._changes[i] for i in self._open()]
        # No keepalives before the request was read to its end: HTTP/1.1 has no answer before that.
        alive = Liveness(self._reply, KEEPALIVE if self._capabilities.side_band_64k else b"")
        say = self._progress(alive)
        verifier = Verifier(self._edge, changes, say)
        if self._expects_pack and any(change.new for change in changes):
            async with Upload(self._edge.reads.layout(_group(target)), self._edge.disk) as upload:
                with self._edge.metrics.phase("receive"):
                    await upload.receive(self._incoming, self._edge.config.limits.push_bytes_max)
                async with alive:
                    with self._edge.metrics.phase("verify"):
                        verified = await verifier.verify_upload(target, upload.path)
                    await self._commit(verified, changes, verifier, say)
        else:
            async with contextlib.nullcontext() if self._expects_pack else alive:
                await self._commit(await verifier.verify(target), changes, verifier, say)

    async def _commit(
        self,
        verified: Verified,
        changes: Sequence[Change],
        verifier: Verifier,
        say: Callable[[str], None],
    ) -> None:
        for warning in verifier.warnings[:_WARNINGS_MAX]:
            self._outcome.explanation += f"warning: {warning}\n"
        place = await self._transactions.place(verified.target, self._origin)
        with self._edge.metrics.phase("replicate"):
            for pack in beside_the_log(verified.packs):
                say(f"Copying the pack to a majority of nodes ({_size(pack.pack_bytes)})\n")
                timeout_s = _REPLICATE_TIMEOUT_S + pack.pack_bytes / _REPLICATE_BYTES_PER_S
                await self._edge.core.replicate_pack(
                    place.group, place.repository_id, pack, timeout_s
                )
        say("Waiting for a majority to agree\n")
        self._proposed = True
        commit = self._transactions.commit(
            verified,
            changes,
            atomic=self._capabilities.atomic,
            origin=self._origin,
            verify=verifier.verify,
            place=place,
            push_options=self._push_options,
        )
        with self._edge.metrics.phase("commit"):
            # From here on a client that goes away changes nothing any more.
            result = await asyncio.shield(self._edge.spawn(commit, f"push {self._path}"))
        self._take(result, changes, verified.target.object_format)
        if verified.packs:
            # The next reader finds a picture, and what is derived from a large pack is made.
            look = self._edge.reads.find(self._path, consistency="local")
            self._edge.spawn(look, f"look at {self._path}")

    def _take(
        self,
        result: log_pb2.TransactionResult,
        changes: Sequence[Change],
        object_format: ObjectFormat,
    ) -> None:
        reasons = refusal_reasons(result, changes, object_format)
        for index, position in enumerate(self._open()):
            reason = reasons.get(index)
            self._outcome.statuses[position] = Ok() if reason is None else Ng(reason)

    def _progress(self, alive: Liveness) -> Callable[[str], None]:
        def say(text: str) -> None:
            line = text if text.endswith(("\n", "\r")) else text + "\r"
            alive.say(push_progress(line, self._capabilities))

        return say

    def _open(self) -> list[int]:
        return [i for i in range(len(self._changes)) if i not in self._outcome.statuses]

    def _settle(self, status: RefStatus) -> None:
        for position in self._open():
            self._outcome.statuses[position] = status

    def _unknown(self, reason: str) -> None:
        self._edge.metrics.errors.labels(OutcomeUnknown.reason).inc()
        names = ", ".join(_text(self._changes[i].name) for i in self._open()[:10])
        self._outcome.explanation += (
            f"the outcome of this push is not known for {names}: {reason}. "
            "Pushing again is harmless.\n"
        )
        self._settle(Unknown())

    def _refuse_pack(self, reason: str) -> None:
        self._outcome.unpack = reason
        self._settle(Ng(_UNPACKER_ERROR))

    def _failed(self, error: Exception) -> None:
        incident = os.urandom(4).hex()
        log.error("push failed", extra=fields(path=self._path, incident=incident), exc_info=error)
        self._edge.metrics.errors.labels(QuorepoError.reason).inc()
        message = f"internal error {incident} on node {self._edge.config.node.name}, see its log"
        if self._proposed:
            self._unknown(message)
        else:
            self._refuse_pack(message)

    def _result(self) -> str:
        kinds = {type(status) for status in self._outcome.statuses.values()}
        if Unknown in kinds:
            return "unknown"
        if kinds == {Ok}:
            return "ok"
        return "partial" if Ok in kinds else "rejected"

    def _report(self) -> bytes:
        statuses = [
            (change.name, self._outcome.statuses[i]) for i, change in enumerate(self._changes)
        ]
        loud = dataclasses.replace(self._capabilities, quiet=False)
        explanation = push_progress(self._outcome.explanation, loud)
        report = report_status(PushReport(self._outcome.unpack, statuses), self._capabilities)
        return (explanation if self._outcome.explanation else b"") + report

    async def _finish(self, answer: bytes) -> None:
        """Sends the answer once the request has been read: before that, git would not read it."""
        if not await self._incoming.drain(self._edge.config.limits.push_bytes_max):
            self._reply.close_after()
        await self._reply.write(answer)

    def _log(self, result: str) -> None:
        refusals = {s.reason for s in self._outcome.statuses.values() if isinstance(s, Ng)}
        log.info(
            "push",
            extra=fields(
                path=self._path,
                user=self._origin.actor,
                request=self._origin.request_id,
                result=result,
                refs=len(self._changes),
                bytes=self._incoming.received_bytes,
                seconds=round(time.monotonic() - self._started, 4),
                unpack=self._outcome.unpack,
                refused="; ".join(sorted(refusals)[:3]),
            ),
        )


def _group(target: Target) -> int:
    return GROUP_STORAGE if target.view is None else target.view.group


def _size(size_bytes: int) -> str:
    return f"{size_bytes / 1024 / 1024:.1f} MiB"


def _text(name: bytes) -> str:
    return name.decode("utf-8", "replace")
