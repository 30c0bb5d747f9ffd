"""From verified ref changes to the transaction's result, for git pushes and for the API alike.

Owns the command, the attempts at it and what each refusal of a ref is called. Must not know HTTP,
gRPC, side-bands or how a pack was verified: that is a callback, because a prune can make it
necessary again.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Awaitable, Callable, Sequence

from quorepo.internal.v1 import log_pb2
from quorepo.rpc.core_client import Core, RepositoryDeleted, Reverify, check_result
from quorepo.rpc.push_checks import (
    ATOMIC_FAILURE,
    Change,
    conflict_reason,
    stale_reason,
)
from quorepo.rpc.reads import Reads, RepositoryView
from quorepo.rpc.repositories import (
    PROPOSE_TIMEOUT_S,
    Origin,
    Repositories,
    Reservation,
    object_format_message,
)
from quorepo.storage.errors import LimitExceeded, NotFound, Unavailable
from quorepo.storage.limits import StorageLimits
from quorepo.storage.objectformat import ObjectFormat

__all__ = ["Target", "Transactions", "Verified", "refusal_reasons"]

_ATTEMPTS_MAX = 4  # of prunes or deletions that come between verifying and applying


@dataclasses.dataclass(frozen=True, slots=True)
class Target:
    """Where a transaction goes: a repository as it was seen, or a path that has none yet."""

    path: str
    view: RepositoryView | None
    object_format: ObjectFormat

    @property
    def prune_epoch(self) -> int:
        """What the objects were checked under."""
        return 0 if self.view is None else self.view.row.prune_epoch

    @property
    def revision(self) -> int:
        """The revision counter the objects were checked at."""
        return 0 if self.view is None else self.view.row.counter


@dataclasses.dataclass(frozen=True, slots=True)
class Verified:
    """What verification says: every new object id is stored, given the packs that come with it."""

    target: Target
    packs: Sequence[log_pb2.PackAddition] = ()


Verify = Callable[[Target], Awaitable[Verified]]


class Transactions:
    """Proposes ref changes until they have a certain result, or none can be had."""

    def __init__(
        self, core: Core, reads: Reads, repositories: Repositories, limits: StorageLimits
    ) -> None:
        self._core = core
        self._reads = reads
        self._repositories = repositories
        self._refs_max = limits.refs_per_push_max

    @staticmethod
    def steps(origin: Origin) -> list[Origin]:
        """What the verdict on a request may be kept under, the first attempt's first."""
        return [Transactions.step(origin, deletions) for deletions in range(_ATTEMPTS_MAX)]

    @staticmethod
    def step(origin: Origin, deletions: int) -> Origin:
        """The origin of the attempt after so many deletions of what was at the path."""
        return origin if deletions == 0 else origin.step(f"transaction {deletions}")

    async def place(self, target: Target, origin: Origin, attempt: int = 0) -> Reservation:
        """Where a target's objects go; reserves the path of a repository that is not there yet.

        Raises:
            Unavailable: not known; nothing happened.
        """
        if target.view is not None:
            return Reservation(target.path, target.view.repository_id, target.view.group)
        return await self._repositories.reserve(target.path, origin.step(f"reserve {attempt}"))

    async def commit(
        self,
        verified: Verified,
        changes: Sequence[Change],
        *,
        atomic: bool,
        origin: Origin,
        verify: Verify,
        place: Reservation | None = None,
        push_options: Sequence[str] = (),
        timeout_s: float = PROPOSE_TIMEOUT_S,
        answer: bytes = b"",
        must_create: bool = False,
        head: bytes = b"",
    ) -> log_pb2.TransactionResult:
        """Proposes one transaction; all attempts at one verification carry one request id.

        Args:
            verified: what the changes were verified against.
            verify: verifies them again, when objects were pruned in between.
            place: what `place` gave for this target and origin, when the caller asked already.
            answer: comes back with the first result, also to a repeated request.
            must_create: the repository must come into being here, with HEAD at the branch `head`
                (empty: HEAD follows the branches).

        Returns:
            Apply's verdict on every change, in their order.

        Raises:
            LimitExceeded: too many changes for one log entry, whoever asks.
            NotFound: the repository was deleted in between.
            AlreadyExists: `must_create`, and another request has made it.
            Unavailable: certainly not applied.
            OutcomeUnknown: it may be applied, now or later.
        """
        if len(changes) > self._refs_max:
            raise LimitExceeded(
                f"{len(changes)} ref changes in one transaction", limit="limits.refs_per_push_max"
            )
        deletions = 0
        for attempt in range(_ATTEMPTS_MAX):
            if place is None:
                place = await self.place(verified.target, origin, attempt)
            # A verdict is stored under its request id: asking again needs a new one. Only REVERIFY
            # is not, so that a request that was verified again stays one request.
            step = self.step(origin, deletions)
            command = _command(step, place, verified, changes, atomic, push_options)
            command.transaction.answer = answer
            command.transaction.must_create = must_create
            command.transaction.head = head
            try:
                result = check_result(await self._core.propose(place.group, command, timeout_s))
                return result.transaction
            except Reverify:
                view = await self._reads.find(verified.target.path)
                target = dataclasses.replace(verified.target, view=view)
                verified = await verify(target)
            except RepositoryDeleted:
                if verified.target.view is not None:
                    raise NotFound(
                        f"repository {verified.target.path!r} was deleted meanwhile"
                    ) from None
                await self._repositories.release(place, origin.step(f"release {attempt}"))
                deletions += 1
            place = None
        raise Unavailable("objects are pruned faster than they are checked", next_step="try again")


def refusal_reasons(
    result: log_pb2.TransactionResult, changes: Sequence[Change], object_format: ObjectFormat
) -> dict[int, str]:
    """Apply's refusals by position of the change, in the words that a git client is shown."""
    reasons: dict[int, str] = {}
    for position, (change, ref) in enumerate(zip(changes, result.refs, strict=True)):
        if ref.status == log_pb2.REF_STATUS_OK:
            continue
        if ref.status == log_pb2.REF_STATUS_STALE:
            reasons[position] = stale_reason(
                change.expected, ref.actual_old_oid or None, object_format
            )
        elif ref.status == log_pb2.REF_STATUS_NAME_CONFLICT:
            reasons[position] = conflict_reason(change.name, ref.conflicting_name)
        elif ref.status == log_pb2.REF_STATUS_INVALID_NAME:
            reasons[position] = "funny refname"
        elif ref.status == log_pb2.REF_STATUS_ATOMIC_ABORTED:
            reasons[position] = ATOMIC_FAILURE
        else:
            reasons[position] = f"refused ({log_pb2.RefStatus.Name(ref.status)})"
    return reasons


def _command(
    origin: Origin,
    place: Reservation,
    verified: Verified,
    changes: Sequence[Change],
    atomic: bool,
    push_options: Sequence[str],
) -> log_pb2.Command:
    command = origin.command()
    transaction = command.transaction
    transaction.repository_id = place.repository_id
    transaction.create_if_missing = verified.target.view is None
    transaction.object_format = object_format_message(verified.target.object_format)
    transaction.verified_revision = verified.target.revision
    transaction.prune_epoch = verified.target.prune_epoch
    transaction.atomic = atomic
    transaction.packs_added.extend(verified.packs)
    transaction.push_options.extend(push_options)
    for change in changes:
        transaction.ref_updates.add(
            name=change.name,
            new_oid=change.new or b"",
            expected_old_oid=change.expected or b"",
            any_old=change.any_old,
        )
    return command
