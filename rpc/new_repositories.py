"""A repository that begins with what exists elsewhere: all refs and one pack in one transaction.

Owns exactly-once for it and the order of the steps, which is that of a push (push.py): verify, copy
to a majority, propose. Must not know where the pack comes from.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import json
import logging
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from quorepo.cluster.state.reader import StateReader
from quorepo.internal.v1 import log_pb2
from quorepo.rpc.context import EdgeContext
from quorepo.rpc.core_batches import beside_the_log
from quorepo.rpc.git_settings import is_hidden
from quorepo.rpc.push_checks import Change, early_refusals
from quorepo.rpc.reads import GROUP_STORAGE
from quorepo.rpc.repositories import Origin, Reservation
from quorepo.rpc.transactions import Target, Transactions, Verified, refusal_reasons
from quorepo.rpc.verification import Verifier
from quorepo.storage.errors import (
    AlreadyExists,
    InvalidArgument,
    LimitExceeded,
    OutcomeUnknown,
    QuorepoError,
    Rejected,
)
from quorepo.storage.logs import fields
from quorepo.storage.objectformat import ObjectFormat

__all__ = ["Content", "Made", "NewRepositories", "telling_the_end"]

log = logging.getLogger(__name__)

_PREFERRED_HEADS = (b"refs/heads/main", b"refs/heads/master")
_BRANCHES = b"refs/heads/"
# For a majority to take a pack: as for a push.
_REPLICATE_TIMEOUT_S = 10.0
_REPLICATE_BYTES_PER_S = 1024 * 1024


@dataclasses.dataclass(frozen=True, slots=True)
class Content:
    """What the new repository shows: refs by full name with raw ids, and where HEAD points."""

    object_format: ObjectFormat
    refs: Sequence[tuple[bytes, bytes]]
    head: bytes = b""  # a branch; empty: main, master or the first one

    @classmethod
    def with_head_id(
        cls, object_format: ObjectFormat, refs: Sequence[tuple[bytes, bytes]], head_id: bytes | None
    ) -> Content:
        """HEAD from the id alone, guessed as `git clone` does: a branch that has it."""
        fitting = [name for name, oid in refs if oid == head_id and name.startswith(_BRANCHES)]
        preferred = [name for name in _PREFERRED_HEADS if name in fitting]
        return cls(object_format, refs, (preferred or fitting or [b""])[0])


@dataclasses.dataclass(frozen=True, slots=True)
class Made:
    """The repository that a request made, now or when it was first sent."""

    path: str
    revision: log_pb2.Revision


class NewRepositories:
    """Makes repositories out of packs."""

    # What `make` tells when it comes to these steps; after the second one nothing is undone.
    COPYING = "Copying the pack to a majority of nodes"
    COMMITTING = "Waiting for a majority to agree"

    def __init__(self, edge: EdgeContext) -> None:
        self._edge = edge
        self._storage = StateReader(edge.reads.layout(GROUP_STORAGE))
        self._transactions = Transactions(
            edge.core, edge.reads, edge.repositories, edge.config.limits
        )

    def close(self) -> None:
        """Closes the connection to the state."""
        self._storage.close()

    async def made_before(self, path: str, origin: Origin) -> Made | None:
        """What this same request made already; None when it may still make it.

        Raises:
            AlreadyExists: another request made a repository at the path.
            Unavailable: that can't be told now.
        """
        if (made := await self.made(origin)) is not None:
            return made
        if await self._edge.reads.find(path, consistency="local") is not None:
            raise _exists(path)
        return None

    def check_room(self) -> None:
        """Told before anything is received: a node that is drained or full takes no packs.

        Raises:
            Unavailable, StorageFull
        """
        with self._edge.push_slots.take():
            self._edge.disk.check_new()

    async def made(self, origin: Origin) -> Made | None:
        """What this request made, as far as the log still keeps it.

        Raises:
            Unavailable: that can't be told now.
        """
        await self._edge.reads.confirm()
        return await self._edge.reads.in_thread(lambda: self._kept(origin))

    def visible(self, refs: Sequence[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
        """Those that are not hidden here: nobody could have pushed the others."""
        hidden = self._edge.config.git.hidden_prefixes
        return [(name, oid) for name, oid in refs if not is_hidden(name, hidden)]

    def check_refs(self, content: Content) -> None:
        """What can be refused before a pack is read.

        Raises:
            InvalidArgument: no ref, or a bad name. LimitExceeded: too many refs.
        """
        limits = self._edge.config.limits
        if not content.refs:
            raise InvalidArgument("there is no branch or tag to make a repository of")
        if len(content.refs) > limits.refs_per_push_max:
            raise LimitExceeded(
                f"{len(content.refs)} refs, limits.refs_per_push_max is {limits.refs_per_push_max}",
                limit="limits.refs_per_push_max",
            )
        refused = early_refusals(_changes(content), {}, None, content.object_format, limits)
        for position, reason in refused.items():
            raise InvalidArgument(f"ref {_shown(content.refs[position][0])}: {reason}")

    async def make(
        self,
        path: str,
        content: Content,
        pack: Path,
        origin: Origin,
        tell: Callable[[str], None],
    ) -> Made:
        """Verifies the pack at `pack`, an upload of group `GROUP_STORAGE`, and makes the
        repository. Until the transaction is proposed, cancelling leaves nothing behind; from then
        on the work goes on.

        Args:
            path: normalized. `tell` gets the progress, for people.

        Raises:
            CorruptPack, InvalidArgument, LimitExceeded, StorageFull, Unavailable, AlreadyExists:
                nothing was made.
            OutcomeUnknown: repeat it with the same request id.
        """
        self.check_refs(content)
        target = Target(path, None, content.object_format)
        changes = _changes(content)
        verifier = Verifier(self._edge, changes, tell)
        with self._edge.push_slots.take():
            verified = await verifier.verify_upload(target, pack)
        place = await self._transactions.place(target, origin)
        for addition in beside_the_log(verified.packs):
            tell(self.COPYING)
            timeout_s = _REPLICATE_TIMEOUT_S + addition.pack_bytes / _REPLICATE_BYTES_PER_S
            await self._edge.core.replicate_pack(
                place.group, place.repository_id, addition, timeout_s
            )
        tell(self.COMMITTING)
        work = self._commit(place, verified, changes, content, origin, verifier)
        return await asyncio.shield(self._edge.spawn(work, f"new repository {path}"))

    async def _commit(
        self,
        place: Reservation,
        verified: Verified,
        changes: Sequence[Change],
        content: Content,
        origin: Origin,
        verifier: Verifier,
    ) -> Made:
        path = place.path
        try:
            result = await self._transactions.commit(
                verified,
                changes,
                atomic=True,
                origin=origin,
                verify=verifier.verify,
                place=place,
                answer=json.dumps({"path": path}).encode("ascii"),
                must_create=True,
                head=content.head,
            )
        except AlreadyExists:
            raise _exists(path) from None
        reasons = refusal_reasons(result, changes, content.object_format)
        for position, reason in reasons.items():
            raise Rejected(f"ref {_shown(changes[position].name)}: {reason}; nothing was made")
        # The next reader finds a picture, and what is derived from a large pack is made.
        look = self._edge.reads.find(path, consistency="local")
        self._edge.spawn(look, f"look at {path}")
        return Made(path, result.revision)

    def _kept(self, origin: Origin) -> Made | None:
        for step in Transactions.steps(origin):
            kept = self._storage.result_of(step.request_id)
            if kept is not None and kept.transaction.created and kept.transaction.answer:
                path = json.loads(kept.transaction.answer)["path"]
                return Made(path, kept.transaction.revision)
        return None


@contextlib.contextmanager
def telling_the_end(
    edge: EdgeContext, source: str, path: str, origin: Origin
) -> Iterator[dict[str, object]]:
    """Counts and logs how a creation ended; what is put into the dictionary is logged too.

    `source` is "bundle" or "url".
    """
    started, result, also = time.monotonic(), "failed", dict[str, object]()
    try:
        yield also
        result = "ok"
    except OutcomeUnknown:
        result = "unknown"
        raise
    except QuorepoError as error:
        also["reason"] = error.reason
        raise
    except asyncio.CancelledError:
        result = "cancelled"
        raise
    finally:
        edge.metrics.imports.labels(source, result).inc()
        log.info(
            "import",
            extra=fields(
                source=source,
                path=path,
                user=origin.actor,
                request=origin.request_id,
                result=result,
                seconds=round(time.monotonic() - started, 4),
                **also,
            ),
        )


def _changes(content: Content) -> list[Change]:
    return [Change(name, oid, None) for name, oid in content.refs]


def _exists(path: str) -> AlreadyExists:
    return AlreadyExists(f"repository {path!r} exists already; nothing was made")


def _shown(name: bytes) -> str:
    return repr(name[:200].decode("utf-8", "backslashreplace"))
