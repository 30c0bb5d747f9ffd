"""What a rejection of the log is called towards clients: an error of the tree for each reason."""

from __future__ import annotations

from quorepo.internal.v1 import log_pb2
from quorepo.storage.errors import (
    AlreadyExists,
    InvalidArgument,
    NotFound,
    OutcomeUnknown,
    QuorepoError,
    Rejected,
    StaleReference,
)

__all__ = [
    "HeadStale",
    "NotDeleted",
    "PacksChanged",
    "ReadOnlyRepository",
    "RepositoryDeleted",
    "RetentionOver",
    "Reverify",
    "check_result",
]


class Reverify(Rejected):
    """Objects were pruned since they were checked: check again, propose under a new request id."""

    reason = "REVERIFY"


class MembershipBusy(Rejected):
    """Another change of the members is under way; one runs at a time."""

    reason = "MEMBERSHIP_BUSY"


class PacksChanged(Rejected):
    """The packs are not those that a replacement was computed from: look again, build again."""

    reason = "PACKS_CHANGED"


class HeadStale(StaleReference):
    """HEAD is not what it was expected to be."""

    reason = "HEAD_MISMATCH"


class ReadOnlyRepository(Rejected):
    """The repository's refs can't be changed until it is made writable again."""

    reason = "REPOSITORY_READ_ONLY"


class NotDeleted(Rejected):
    """There is nothing to take back."""

    reason = "REPOSITORY_NOT_DELETED"


class RetentionOver(Rejected):
    """Too late: the repository can't be taken back any more."""

    reason = "RETENTION_OVER"


class RepositoryDeleted(NotFound):
    """The repository id is a tombstone; its path may be reserved again for a new id."""

    reason = "REPOSITORY_DELETED"


def check_result(result: log_pb2.Result) -> log_pb2.Result:
    """Gives a result back, or raises the error that its rejection stands for.

    Raises:
        NotFound, AlreadyExists, InvalidArgument, RepositoryDeleted, Reverify: certain, by reason.
        OutcomeUnknown: the request is older than the window in which requests are remembered.
    """
    if result.WhichOneof("kind") != "rejection":
        return result
    rejection = result.rejection
    message = rejection.message or log_pb2.RejectionReason.Name(rejection.reason).lower()
    raise _REJECTIONS.get(rejection.reason, Rejected)(message)


_REJECTIONS: dict[int, type[QuorepoError]] = {
    log_pb2.REJECTION_REASON_REPOSITORY_NOT_FOUND: NotFound,
    log_pb2.REJECTION_REASON_REPOSITORY_EXISTS: AlreadyExists,
    log_pb2.REJECTION_REASON_REPOSITORY_DELETED: RepositoryDeleted,
    log_pb2.REJECTION_REASON_INVALID: InvalidArgument,
    log_pb2.REJECTION_REASON_REVERIFY: Reverify,
    log_pb2.REJECTION_REASON_REQUEST_EXPIRED: OutcomeUnknown,
    log_pb2.REJECTION_REASON_PATH_NOT_FOUND: NotFound,
    log_pb2.REJECTION_REASON_OBJECT_FORMAT: InvalidArgument,
    log_pb2.REJECTION_REASON_PACKS_CHANGED: PacksChanged,
    log_pb2.REJECTION_REASON_MEMBERSHIP_BUSY: MembershipBusy,
    log_pb2.REJECTION_REASON_NODE_NOT_FOUND: NotFound,
    log_pb2.REJECTION_REASON_JOIN_TOKEN_UNKNOWN: NotFound,
    log_pb2.REJECTION_REASON_CHANGE_NOT_FOUND: NotFound,
    log_pb2.REJECTION_REASON_HEAD_STALE: HeadStale,
    log_pb2.REJECTION_REASON_READ_ONLY: ReadOnlyRepository,
    log_pb2.REJECTION_REASON_NOT_DELETED: NotDeleted,
    log_pb2.REJECTION_REASON_RETENTION_OVER: RetentionOver,
    log_pb2.REJECTION_REASON_PATH_EXISTS: AlreadyExists,
}
