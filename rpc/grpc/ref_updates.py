"""Ref updates of the API: checked, proposed and answered, one transaction or many at a time.

Owns what is checked before a transaction is proposed, and the words of its refusals. Old values are
compared by apply only, so that a repeated request is given its first answer instead of a mismatch
with its own effect. Many requests share one read index, one visit to the disk and one turn on the
core's socket; nothing else: each has its own request id, its own transaction and its own outcome.
"""

from __future__ import annotations

import asyncio
import dataclasses
import uuid
from collections.abc import Iterable, Sequence

from quorepo.internal.v1 import log_pb2
from quorepo.rpc.auth import Identity
from quorepo.rpc.context import EdgeContext
from quorepo.rpc.grpc.conversions import request_uuid, telling_request_id
from quorepo.rpc.grpc.errors import NameConflict, ReferencesMismatch, to_status
from quorepo.rpc.objects import parse_oid
from quorepo.rpc.push_checks import Change
from quorepo.rpc.reads import READ_INDEX_TIMEOUT_S, RepositoryView
from quorepo.rpc.rounds import Rounds
from quorepo.rpc.transactions import Target, Transactions, Verified
from quorepo.rpc.visible_refs import check_not_hidden
from quorepo.storage.errors import (
    InvalidArgument,
    LimitExceeded,
    NotFound,
    QuorepoError,
    Rejected,
    Unavailable,
)
from quorepo.storage.git.refnames import check_ref_name
from quorepo.storage.names import normalize_path
from quorepo.storage.packs import COMMIT
from quorepo.v1 import common_pb2, errors_pb2, ref_pb2

__all__ = ["Outcome", "RefUpdates"]

_BRANCHES = b"refs/heads/"


@dataclasses.dataclass(frozen=True, slots=True)
class Outcome:
    """The end of one request."""

    request_id: str  # the client's, or the one made for it; empty when it was no UUID
    answer: ref_pb2.UpdateRefsResponse | QuorepoError


@dataclasses.dataclass(frozen=True, slots=True)
class _Request:
    """A request that is well-formed by itself."""

    message: ref_pb2.UpdateRefsRequest
    request_id: uuid.UUID
    path: str


@dataclasses.dataclass(frozen=True, slots=True)
class _Ready:
    """What it asks for was looked at: every object is there."""

    view: RepositoryView
    changes: list[Change]


class RefUpdates:
    """See protos/quorepo/v1/ref.proto, UpdateRefs and BatchUpdateRefs."""

    def __init__(self, edge: EdgeContext, transactions: Transactions) -> None:
        self._edge = edge
        self._transactions = transactions
        self._looks: Rounds[Sequence[_Request], Sequence[_Ready | QuorepoError]]
        self._looks = Rounds(self._look)

    async def batch(
        self, request: ref_pb2.BatchUpdateRefsRequest, identity: Identity, timeout_s: float
    ) -> ref_pb2.BatchUpdateRefsResponse:
        """Many transactions.

        Raises:
            InvalidArgument: none, or one request id stands for two of them.
            LimitExceeded: too many, or too many ref updates together.
        """
        self._check_batch(request.requests)
        outcomes = await self.run(request.requests, identity, timeout_s)
        for outcome in outcomes:
            if isinstance(outcome.answer, QuorepoError):
                self._edge.metrics.errors.labels(outcome.answer.reason).inc()
        return ref_pb2.BatchUpdateRefsResponse(items=[_item(outcome) for outcome in outcomes])

    async def run(
        self, messages: Sequence[ref_pb2.UpdateRefsRequest], identity: Identity, timeout_s: float
    ) -> list[Outcome]:
        """One outcome per request, in their order; a refused one holds up no other."""
        accepted = [self._accept(message, identity) for message in messages]
        requests = [request for request in accepted if isinstance(request, _Request)]
        deadline = asyncio.get_running_loop().time() + timeout_s
        prepared = await self._prepare(requests, min(timeout_s, READ_INDEX_TIMEOUT_S))
        left_s = max(0.001, deadline - asyncio.get_running_loop().time())
        done = iter(
            await asyncio.gather(
                *(
                    self._commit(request, ready, identity, left_s)
                    for request, ready in zip(requests, prepared, strict=True)
                )
            )
        )
        return [next(done) if isinstance(item, _Request) else item for item in accepted]

    async def _prepare(
        self, requests: Sequence[_Request], timeout_s: float
    ) -> Sequence[_Ready | QuorepoError]:
        """Looks at the repositories as they are now, and whether they have the objects."""
        if not requests:
            return ()
        try:
            return await self._looks.ask(requests, timeout_s)
        except (Unavailable, TimeoutError) as error:
            # One for each: an error is told with the request id of its own request.
            return [_not_looked_at(error) for _ in requests]

    async def _look(
        self, calls: Sequence[Sequence[_Request]], timeout_s: float
    ) -> Sequence[Sequence[_Ready | QuorepoError]]:
        """The same for all calls that wait: one read index, one visit to the disk."""
        reads = self._edge.reads
        await reads.confirm(timeout_s)

        def look() -> list[list[_Ready | QuorepoError]]:
            paths = dict.fromkeys(request.path for requests in calls for request in requests)
            views = {path: reads.look(path) for path in paths}
            return [
                [_checked(request, views[request.path]) for request in requests]
                for requests in calls
            ]

        return await reads.in_thread(look)

    # ---- before anything is looked at

    def _check_batch(self, messages: Sequence[ref_pb2.UpdateRefsRequest]) -> None:
        limits = self._edge.config.limits
        if not messages:
            raise InvalidArgument("requests must not be empty")
        if len(messages) > limits.batch_requests_max:
            raise LimitExceeded(
                f"{len(messages)} requests, limits.batch_requests_max is "
                f"{limits.batch_requests_max}; nothing was changed",
                limit="limits.batch_requests_max",
                next_step="send them in several calls",
            )
        updates = sum(len(message.updates) for message in messages)
        if updates > limits.refs_per_push_max:
            raise LimitExceeded(
                f"{updates} updates in all requests together, limits.refs_per_push_max is "
                f"{limits.refs_per_push_max}; nothing was changed",
                limit="limits.refs_per_push_max",
                next_step="send them in several calls",
            )
        given = [message.request_id.lower() for message in messages if message.request_id]
        if len(set(given)) != len(given):
            raise InvalidArgument(
                "one request_id stands for two requests; nothing was changed",
                next_step="give every request an id of its own",
            )

    def _accept(self, message: ref_pb2.UpdateRefsRequest, identity: Identity) -> _Request | Outcome:
        request_id = ""
        try:
            self._edge.authenticator.authorize(identity, "write", message.repository)
            made = request_uuid(message.request_id)
            request_id = str(made)
            with telling_request_id(made):
                self._check_size(message)
                check_not_hidden(self._edge, identity, [update.name for update in message.updates])
                return _Request(message, made, normalize_path(message.repository))
        except QuorepoError as error:
            return Outcome(request_id, error)

    def _check_size(self, request: ref_pb2.UpdateRefsRequest) -> None:
        at_most = self._edge.config.limits.refs_per_push_max
        if not request.updates:
            raise InvalidArgument("updates must not be empty")
        if len(request.updates) > at_most:
            raise LimitExceeded(
                f"{len(request.updates)} updates, limits.refs_per_push_max is {at_most}",
                limit="limits.refs_per_push_max",
                next_step="send them in several requests",
            )
        name_bytes_max = self._edge.config.limits.ref_name_bytes_max
        for update in request.updates:
            problem = check_ref_name(update.name)
            if problem is not None:
                raise InvalidArgument(f"ref name {_text(update.name)!r}: {problem}")
            if len(update.name) > name_bytes_max:
                raise LimitExceeded(
                    f"ref name has {len(update.name)} bytes, limits.ref_name_bytes_max is "
                    f"{name_bytes_max}",
                    limit="limits.ref_name_bytes_max",
                )

    # ---- one transaction

    async def _commit(
        self,
        request: _Request,
        ready: _Ready | QuorepoError,
        identity: Identity,
        timeout_s: float,
    ) -> Outcome:
        request_id = str(request.request_id)
        try:
            with telling_request_id(request.request_id):
                if isinstance(ready, QuorepoError):
                    raise ready
                response = await self._transact(request, ready, identity, timeout_s)
        except QuorepoError as error:
            return Outcome(request_id, error)
        return Outcome(request_id, response)

    async def _transact(
        self, request: _Request, ready: _Ready, identity: Identity, timeout_s: float
    ) -> ref_pb2.UpdateRefsResponse:
        view, changes = ready.view, ready.changes

        async def verify(target: Target) -> Verified:
            """Again, because objects were pruned meanwhile."""
            if target.view is None:
                raise NotFound(f"repository {target.path!r} does not exist")
            seen = target.view
            await self._edge.reads.in_thread(lambda: _check_objects(seen, changes))
            return Verified(target)

        result = await self._transactions.commit(
            Verified(Target(view.path, view, view.object_format)),
            changes,
            atomic=not request.message.allow_partial,
            origin=self._edge.origin(identity.user, request.request_id.bytes),
            verify=verify,
            timeout_s=timeout_s,
        )
        if not request.message.allow_partial:
            _raise_refusal(changes, result.refs)
        return ref_pb2.UpdateRefsResponse(
            revision=common_pb2.Revision(
                incarnation=result.revision.incarnation, counter=result.revision.counter
            ),
            results=[_result_message(ref) for ref in result.refs],
        )


def _not_looked_at(error: Exception) -> Unavailable:
    if isinstance(error, Unavailable):
        return Unavailable(error.message, next_step=error.next_step)
    return Unavailable("this node's state was not read in time", next_step="try again")


def _item(outcome: Outcome) -> ref_pb2.BatchUpdateRefsItem:
    if not isinstance(outcome.answer, QuorepoError):
        return ref_pb2.BatchUpdateRefsItem(request_id=outcome.request_id, response=outcome.answer)
    status = to_status(outcome.answer)
    return ref_pb2.BatchUpdateRefsItem(
        request_id=outcome.request_id,
        error=ref_pb2.BatchError(code=status.code, message=status.message, details=status.details),
    )


def _checked(request: _Request, view: RepositoryView | None) -> _Ready | QuorepoError:
    if view is None:
        return NotFound(f"repository {request.path!r} does not exist")
    try:
        changes = [_change(view, update) for update in request.message.updates]
        _refuse_repeated(changes)
        _check_objects(view, changes)
    except QuorepoError as error:
        return error
    return _Ready(view, changes)


def _change(view: RepositoryView, update: ref_pb2.RefUpdate) -> Change:
    expectation = update.WhichOneof("expectation")
    if expectation is None or (expectation == "any_old" and not update.any_old):
        raise InvalidArgument(
            f"update of {_text(update.name)!r} needs expected_old_oid (empty: must not exist) or "
            "any_old = true"
        )
    return Change(
        name=update.name,
        new=_optional_oid(view, update.new_oid, "new_oid"),
        expected=_optional_oid(view, update.expected_old_oid, "expected_old_oid"),
        any_old=update.any_old,
    )


def _optional_oid(view: RepositoryView, text: str, field: str) -> bytes | None:
    if not text:
        return None
    raw = parse_oid(view, text, field)
    return None if raw == view.object_format.zero else raw


def _refuse_repeated(changes: Sequence[Change]) -> None:
    seen: set[bytes] = set()
    for change in changes:
        if change.name in seen:
            raise InvalidArgument(f"ref {_text(change.name)!r} stands in the updates twice")
        seen.add(change.name)


def _check_objects(view: RepositoryView, changes: Iterable[Change]) -> None:
    """The store is closed (invariant 6): an object that is there brings all that it refers to."""
    for change in changes:
        if change.new is None:
            continue
        if change.new not in view.packs:
            raise NotFound(f"object {change.new.hex()} is not in {view.path!r}")
        if change.name.startswith(_BRANCHES) and view.packs.object_type(change.new) != COMMIT:
            raise InvalidArgument(
                f"branch {_text(change.name)!r} must point to a commit, {change.new.hex()} is none"
            )


def _raise_refusal(changes: Sequence[Change], results: Sequence[log_pb2.RefResult]) -> None:
    """The error of a transaction of which nothing was applied."""
    mismatches = []
    for change, result in zip(changes, results, strict=True):
        if result.status == log_pb2.REF_STATUS_STALE:
            mismatches.append(
                errors_pb2.ReferenceMismatch.Mismatch(
                    name=change.name,
                    expected_oid=(change.expected or b"").hex(),
                    actual_oid=result.actual_old_oid.hex(),
                )
            )
        elif result.status == log_pb2.REF_STATUS_NAME_CONFLICT:
            raise NameConflict(change.name, result.conflicting_name)
        elif result.status == log_pb2.REF_STATUS_INVALID_NAME:
            raise InvalidArgument(f"ref name {_text(change.name)!r} is not allowed")
    if mismatches:
        raise ReferencesMismatch(mismatches)
    refused = [r for r in results if r.status != log_pb2.REF_STATUS_OK]
    if refused:
        raise Rejected(f"refused: {log_pb2.RefStatus.Name(refused[0].status)}")


_STATUSES = {
    log_pb2.REF_STATUS_OK: ref_pb2.REF_UPDATE_STATUS_OK,
    log_pb2.REF_STATUS_STALE: ref_pb2.REF_UPDATE_STATUS_STALE,
    log_pb2.REF_STATUS_NAME_CONFLICT: ref_pb2.REF_UPDATE_STATUS_NAME_CONFLICT,
}


def _result_message(result: log_pb2.RefResult) -> ref_pb2.RefUpdateResult:
    return ref_pb2.RefUpdateResult(
        name=result.name,
        status=_STATUSES.get(result.status, ref_pb2.REF_UPDATE_STATUS_UNSPECIFIED),
        actual_old_oid=result.actual_old_oid.hex(),
        conflicting_name=result.conflicting_name,
    )


def _text(name: bytes) -> str:
    return name[:200].decode("utf-8", "backslashreplace")
