"""What calls of the client raise: one class per reason of docs/api-errors.md.

Owns the tree and the mapping from a `google.rpc.Status`. Every error says whether anything was
changed: `conclusion` is "rejected" (nothing was) or "unknown".
"""

from __future__ import annotations

import dataclasses
from typing import Any, TypeVar

import grpc
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from quorepo.v1 import errors_pb2

__all__ = [
    "AlreadyExists",
    "ApiError",
    "Conflict",
    "CursorOutOfRange",
    "CutStream",
    "HeadMismatch",
    "InvalidArgument",
    "LimitExceeded",
    "MergeConflict",
    "Mismatch",
    "NameConflict",
    "NotFound",
    "OutcomeUnknown",
    "PermissionDenied",
    "ReferenceMismatch",
    "RepositoryReadOnly",
    "RevisionNotReached",
    "SourceFailed",
    "SourceNotAllowed",
    "StorageFull",
    "Unauthenticated",
    "Unavailable",
    "from_rpc_error",
]

_STATUS_KEY = "grpc-status-details-bin"
_CODES = {code.value[0]: code.name for code in grpc.StatusCode}
_Detail = TypeVar("_Detail", bound=Message)


class ApiError(Exception):
    """A call failed.

    Attributes:
        reason: stable, see docs/api-errors.md; "TRANSPORT" when no answer of a node was got.
        code: name of the gRPC status code.
        conclusion: "rejected" (nothing was changed) or "unknown".
        next_step: what to try; may be empty.
        metadata: of the ErrorInfo.
        request_id: of the call that failed; empty for reads.
        retry_delay_s: after which the node wants to be asked again; None: it did not say.
    """

    def __init__(
        self,
        message: str,
        *,
        reason: str = "INTERNAL",
        code: str = "INTERNAL",
        conclusion: str = "rejected",
        metadata: dict[str, str] | None = None,
        request_id: str = "",
        retry_delay_s: float | None = None,
    ) -> None:
        super().__init__(message)
        self.reason = reason
        self.code = code
        self.conclusion = conclusion
        self.metadata = metadata or {}
        self.next_step = self.metadata.get("next_step", "")
        self.request_id = request_id
        self.retry_delay_s = retry_delay_s

    def of_request(self, request_id: str) -> ApiError:
        """The same, for one of several requests that a call carried."""
        return type(self)(
            str(self),
            reason=self.reason,
            code=self.code,
            conclusion=self.conclusion,
            metadata={**self.metadata, "request_id": request_id},
            request_id=request_id,
            retry_delay_s=self.retry_delay_s,
        )

    def _take_details(self, status: status_pb2.Status) -> None:
        """Reads the typed details that belong to this class."""


class InvalidArgument(ApiError):
    """The request itself is wrong."""


class NotFound(ApiError):
    """No such repository, ref, object or path."""


class AlreadyExists(ApiError):
    """The thing to create is there already."""


class Unauthenticated(ApiError):
    """No token, or a wrong one."""


class PermissionDenied(ApiError):
    """The token may not do this."""


class RevisionNotReached(ApiError):
    """The repository never had the revision that a read asked for."""


class RepositoryReadOnly(ApiError):
    """The repository takes no changes."""


class HeadMismatch(ApiError):
    """HEAD is not what it was expected to be."""


class SourceFailed(ApiError):
    """The server to import from can't be reached, refuses, or does not speak git."""


class SourceNotAllowed(ApiError):
    """The node may not ask the server to import from: http, or an address that is not public."""


class StorageFull(ApiError):
    """The disk of the node has no room."""


class CursorOutOfRange(ApiError):
    """The cursor is of another cluster, or ahead of this one's log."""


class Unavailable(ApiError):
    """No node that serves was found within the deadline; nothing was changed."""


class OutcomeUnknown(ApiError):
    """It may have happened, or may happen yet: repeat the call with `request_id` (harmless)."""


class CutStream(ApiError):
    """A stream ended before its end, or its content is not what its digest says."""


@dataclasses.dataclass(frozen=True, slots=True)
class Mismatch:
    """A ref whose value is not the expected one; an empty oid: it does not exist."""

    name: bytes
    expected_oid: str
    actual_oid: str


class ReferenceMismatch(ApiError):
    """Refs are not what they were expected to be (`mismatches`); nothing was changed."""

    mismatches: tuple[Mismatch, ...] = ()

    def _take_details(self, status: status_pb2.Status) -> None:
        detail = _detail(status, errors_pb2.ReferenceMismatch)
        self.mismatches = tuple(
            Mismatch(m.name, m.expected_oid, m.actual_oid)
            for m in (detail.mismatches if detail else ())
        )


class NameConflict(ApiError):
    """`a` against `a/b`."""

    name: bytes = b""
    conflicting_name: bytes = b""

    def _take_details(self, status: status_pb2.Status) -> None:
        detail = _detail(status, errors_pb2.ReferenceNameConflict)
        if detail is not None:
            self.name, self.conflicting_name = detail.name, detail.conflicting_name


@dataclasses.dataclass(frozen=True, slots=True)
class Conflict:
    """A path that a person has to merge; an empty oid: no such blob on that side."""

    path: bytes
    ancestor_oid: str
    our_oid: str
    their_oid: str


class MergeConflict(ApiError):
    """A merge, cherry-pick, revert or rebase needs a person; nothing was changed.

    Attributes:
        conflicts: as many as fit into the answer.
        conflict_count: of all.
        commit_oid: the commit that did not apply.
    """

    conflicts: tuple[Conflict, ...] = ()
    conflict_count: int = 0
    commit_oid: str = ""

    def _take_details(self, status: status_pb2.Status) -> None:
        detail = _detail(status, errors_pb2.MergeConflict)
        if detail is not None:
            self.conflicts = tuple(
                Conflict(c.path, c.ancestor_oid, c.our_oid, c.their_oid) for c in detail.conflicts
            )
            self.conflict_count, self.commit_oid = detail.conflict_count, detail.commit_oid


class LimitExceeded(ApiError):
    """Above a limit; `limit` is its configuration key, `at_most` its value (0: not known)."""

    limit: str = ""
    at_most: int = 0

    def named(self, limit: str) -> LimitExceeded:
        """The same, of a limit that an answer named."""
        self.limit = limit
        return self

    def _take_details(self, status: status_pb2.Status) -> None:
        self.limit = self.metadata.get("limit", "")
        detail = _detail(status, errors_pb2.LimitViolation)
        if detail is not None:
            self.limit, self.at_most = detail.limit or self.limit, detail.at_most


_BY_REASON: dict[str, type[ApiError]] = {
    "INVALID_ARGUMENT": InvalidArgument,
    "AMBIGUOUS_OBJECT_ID": InvalidArgument,
    "NOT_FOUND": NotFound,
    "REPOSITORY_DELETED": NotFound,
    "ALREADY_EXISTS": AlreadyExists,
    "REFERENCE_MISMATCH": ReferenceMismatch,
    "REFERENCE_NAME_CONFLICT": NameConflict,
    "HEAD_MISMATCH": HeadMismatch,
    "MERGE_CONFLICT": MergeConflict,
    "REPOSITORY_READ_ONLY": RepositoryReadOnly,
    "REVISION_NOT_REACHED": RevisionNotReached,
    "LIMIT_EXCEEDED": LimitExceeded,
    "SOURCE_FAILED": SourceFailed,
    "SOURCE_NOT_ALLOWED": SourceNotAllowed,
    "STORAGE_FULL": StorageFull,
    "UNAUTHENTICATED": Unauthenticated,
    "PERMISSION_DENIED": PermissionDenied,
    "UNAVAILABLE": Unavailable,
    "OUTCOME_UNKNOWN": OutcomeUnknown,
    "CURSOR_OUT_OF_RANGE": CursorOutOfRange,
}


def from_rpc_error(error: grpc.RpcError, endpoint: str, request_id: str = "") -> ApiError:
    """What a failed call means.

    Without an ErrorInfo no node said anything: the connection broke, or a time ran out. Then the
    reason is "TRANSPORT", and the conclusion of a call with a request id is "unknown".
    """
    call: Any = error  # what a call raises is a grpc.Call too
    code, text = call.code().name, call.details() or ""
    status = _status(call)
    info = None if status is None else _detail(status, error_details_pb2.ErrorInfo)
    if status is None or info is None:
        return ApiError(
            f"{endpoint} gave no answer ({code}: {text})",
            reason="TRANSPORT",
            code=code,
            conclusion="unknown" if request_id else "rejected",
            request_id=request_id,
        )
    return from_status(status, request_id)


def from_status(status: status_pb2.Status, request_id: str = "") -> ApiError:
    """What a node said, of a call or of one item of a batch."""
    info = _detail(status, error_details_pb2.ErrorInfo) or error_details_pb2.ErrorInfo()
    retry = _detail(status, error_details_pb2.RetryInfo)
    kind = _BY_REASON.get(info.reason, ApiError)
    made = kind(
        status.message,
        reason=info.reason,
        code=_CODES.get(status.code, "UNKNOWN"),
        conclusion=info.metadata.get("conclusion", "unknown"),
        metadata=dict(info.metadata),
        request_id=request_id,
        retry_delay_s=None if retry is None else retry.retry_delay.ToMilliseconds() / 1000,
    )
    made._take_details(status)
    return made


def _status(call: Any) -> status_pb2.Status | None:
    for key, value in call.trailing_metadata() or ():
        if key == _STATUS_KEY:
            return status_pb2.Status.FromString(value)
    return None


def _detail(status: status_pb2.Status, kind: type[_Detail]) -> _Detail | None:
    for packed in status.details:
        found = kind()
        if packed.Unpack(found):
            return found
    return None
