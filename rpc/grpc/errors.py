"""How an error of the tree looks to a gRPC client: a google.rpc.Status with typed details.

Owns the mapping. Must not know services. Source: AIP-193; the reasons are those of
`quorepo.storage.errors` and of the classes below.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NoReturn

import grpc
import grpc.aio
from google.protobuf import any_pb2, duration_pb2, message
from google.rpc import error_details_pb2, status_pb2

from quorepo.storage.errors import (
    LimitExceeded,
    QuorepoError,
    Rejected,
    StaleReference,
    Unavailable,
)
from quorepo.storage.history.revisions import AmbiguousObject
from quorepo.v1 import errors_pb2

__all__ = ["DOMAIN", "NameConflict", "ReferencesMismatch", "abort", "to_status"]

DOMAIN = "quorepo"
_STATUS_KEY = "grpc-status-details-bin"
_RETRY_DELAY_MS = 500
# Clients refuse response metadata above 8 KiB; the details are sent twice (text and binary).
_MESSAGE_CHARACTERS_MAX = 1000
_DETAIL_BYTES_MAX = 4000

Context = grpc.aio.ServicerContext[Any, Any]


class ReferencesMismatch(StaleReference):
    """At least one ref is not what it was expected to be; carries all of them."""

    def __init__(self, mismatches: Sequence[errors_pb2.ReferenceMismatch.Mismatch]) -> None:
        first = mismatches[0]
        name = first.name.decode("utf-8", "backslashreplace")
        more = f", and {len(mismatches) - 1} more" if len(mismatches) > 1 else ""
        super().__init__(
            f"ref {name!r} is {first.actual_oid or 'not there'}, "
            f"expected {first.expected_oid or 'not there'}{more}; nothing was changed",
            next_step="read the refs and try again",
        )
        self.mismatches = mismatches


class NameConflict(Rejected):
    """`a` against `a/b`; nothing was changed."""

    reason = "REFERENCE_NAME_CONFLICT"

    def __init__(self, name: bytes, conflicting_name: bytes) -> None:
        super().__init__(
            f"ref {_text(name)!r} can't exist beside {_text(conflicting_name)!r}; "
            "nothing was changed",
            next_step=f"delete {_text(conflicting_name)!r} first or choose another name",
        )
        self.detail = errors_pb2.ReferenceNameConflict(name=name, conflicting_name=conflicting_name)


class MergeConflicted(Rejected):
    """A merge, cherry-pick, revert or rebase that needs a person; nothing was changed."""

    reason = "MERGE_CONFLICT"

    def __init__(self, detail: errors_pb2.MergeConflict) -> None:
        first = _text(detail.conflicts[0].path)
        more = f" and {detail.conflict_count - 1} more" if detail.conflict_count > 1 else ""
        super().__init__(
            f"commit {detail.commit_oid} conflicts in {first!r}{more}; nothing was changed",
            next_step="resolve it in a clone and push",
        )
        self.detail = errors_pb2.MergeConflict(
            conflict_count=detail.conflict_count, commit_oid=detail.commit_oid
        )
        for conflict in detail.conflicts:
            if self.detail.ByteSize() + conflict.ByteSize() > _DETAIL_BYTES_MAX:
                break
            self.detail.conflicts.append(conflict)


def to_status(error: QuorepoError) -> status_pb2.Status:
    """The rich status of an error: ErrorInfo always, RetryInfo and typed details where they fit."""
    code = grpc.StatusCode[error.grpc_code]
    metadata = {key: value[:500] for key, value in error.metadata.items()}
    metadata["conclusion"] = error.conclusion
    if error.next_step:
        metadata["next_step"] = error.next_step[:500]
    details: list[message.Message] = [
        error_details_pb2.ErrorInfo(reason=error.reason, domain=DOMAIN, metadata=metadata)
    ]
    if isinstance(error, Unavailable):
        delay = duration_pb2.Duration()
        delay.FromMilliseconds(_RETRY_DELAY_MS)
        details.append(error_details_pb2.RetryInfo(retry_delay=delay))
    if isinstance(error, LimitExceeded):
        details.append(errors_pb2.LimitViolation(limit=error.limit))
    if isinstance(error, AmbiguousObject):
        details.append(
            errors_pb2.AmbiguousObjectId(prefix=error.prefix, candidate_oids=error.candidates)
        )
    if isinstance(error, ReferencesMismatch):
        details.append(_bounded(error.mismatches))
    if isinstance(error, NameConflict | MergeConflicted):
        details.append(error.detail)
    status = status_pb2.Status(code=code.value[0], message=str(error)[:_MESSAGE_CHARACTERS_MAX])
    for detail in details:
        packed = any_pb2.Any()
        packed.Pack(detail)
        status.details.append(packed)
    return status


async def abort(context: Context, error: QuorepoError) -> NoReturn:
    """Ends the call with the error's rich status."""
    status = to_status(error)
    await context.abort(
        grpc.StatusCode[error.grpc_code],
        status.message,
        trailing_metadata=((_STATUS_KEY, status.SerializeToString()),),
    )


def _bounded(
    mismatches: Sequence[errors_pb2.ReferenceMismatch.Mismatch],
) -> errors_pb2.ReferenceMismatch:
    """As many mismatches as fit into the metadata of a response."""
    detail = errors_pb2.ReferenceMismatch()
    for mismatch in mismatches:
        if detail.ByteSize() + mismatch.ByteSize() > _DETAIL_BYTES_MAX:
            break
        detail.mismatches.append(mismatch)
    return detail


def _text(name: bytes) -> str:
    return name[:200].decode("utf-8", "backslashreplace")
