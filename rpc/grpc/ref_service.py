"""RefService of quorepo.v1: refs at one revision, and their changes through the log."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from quorepo.internal.v1 import log_pb2
from quorepo.rpc.context import EdgeContext
from quorepo.rpc.grpc.conversions import (
    open_view,
    request_uuid,
    telling_request_id,
    time_left_s,
)
from quorepo.rpc.grpc.errors import Context, NameConflict, ReferencesMismatch
from quorepo.rpc.grpc.interceptor import caller
from quorepo.rpc.grpc.ref_reads import RefReadMethods
from quorepo.rpc.grpc.ref_writes import RefWrites
from quorepo.rpc.history import HistoryReads
from quorepo.rpc.objects import parse_oid
from quorepo.rpc.push_checks import Change
from quorepo.rpc.reads import RepositoryView
from quorepo.rpc.repositories import PROPOSE_TIMEOUT_S
from quorepo.rpc.transactions import Target, Transactions, Verified
from quorepo.storage.errors import InvalidArgument, LimitExceeded, NotFound, Rejected
from quorepo.storage.git.refnames import check_ref_name
from quorepo.storage.packs import COMMIT
from quorepo.v1 import common_pb2, errors_pb2, ref_pb2, ref_pb2_grpc

__all__ = ["RefService"]

_BRANCHES = b"refs/heads/"


class RefService(RefReadMethods, RefWrites, ref_pb2_grpc.RefServiceServicer):
    """See protos/quorepo/v1/ref.proto."""

    def __init__(self, edge: EdgeContext, history: HistoryReads) -> None:
        self._edge = edge
        self._history = history
        self._transactions = Transactions(
            edge.core, edge.reads, edge.repositories, edge.config.limits
        )

    async def UpdateRefs(
        self, request: ref_pb2.UpdateRefsRequest, context: Context
    ) -> ref_pb2.UpdateRefsResponse:
        """One transaction. Old values are compared by apply only, so that a repeated request is
        given its first answer instead of a mismatch with its own effect."""
        identity = caller()
        self._edge.authenticator.authorize(identity, "write", request.repository)
        request_id = request_uuid(request.request_id)
        with telling_request_id(request_id):
            self._check_size(request)
            view = await open_view(
                self._edge, context, request.repository, common_pb2.Consistency()
            )
            changes = [_change(view, update) for update in request.updates]
            _refuse_repeated(changes)

            async def verify(target: Target) -> Verified:
                if target.view is None:
                    raise NotFound(f"repository {target.path!r} does not exist")
                seen = target.view
                await self._edge.reads.in_thread(lambda: _check_objects(seen, changes))
                return Verified(target)

            target = Target(view.path, view, view.object_format)
            result = await self._transactions.commit(
                await verify(target),
                changes,
                atomic=not request.allow_partial,
                origin=self._edge.origin(identity.user, request_id.bytes),
                verify=verify,
                timeout_s=time_left_s(context, PROPOSE_TIMEOUT_S),
            )
            if not request.allow_partial:
                _raise_refusal(changes, result.refs)
        return ref_pb2.UpdateRefsResponse(
            revision=common_pb2.Revision(
                incarnation=result.revision.incarnation, counter=result.revision.counter
            ),
            results=[_result_message(ref) for ref in result.refs],
        )

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
