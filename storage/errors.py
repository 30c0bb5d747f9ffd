"""The one error tree.

    QuorepoError
    ├── Rejected                 certain: nothing happened
    │   ├── InvalidArgument      the request itself is wrong
    │   │   └── ConfigError      the configuration, or a file that it names, is wrong
    │   ├── NotFound             no such repository, ref or object
    │   ├── AlreadyExists
    │   ├── StaleReference       a compare-and-swap missed
    │   ├── PermissionDenied
    │   ├── Unauthenticated
    │   ├── LimitExceeded        names the limit and its configuration key
    │   ├── StorageFull          no room on the disk of the node that was asked
    │   ├── CorruptPack          a pushed pack is damaged, hostile or incomplete
    │   ├── DamagedPack          a stored pack on this node is damaged or gone
    │   └── Unavailable          try again later: no leader, busy, shutting down
    ├── OutcomeUnknown           it may have happened; ask again with the same request id
    └── FatalError               this process must end (I/O error, damaged journal, a bug in apply)

Each error knows its gRPC code, its HTTP status and a stable reason; `conclusion` says what a client
may conclude. Messages are lowercase, factual and quote values; `next_step` is a command or an
action.
"""

from __future__ import annotations

from typing import ClassVar, Literal

__all__ = [
    "AlreadyExists",
    "ConfigError",
    "CorruptPack",
    "DamagedPack",
    "FatalError",
    "InvalidArgument",
    "LimitExceeded",
    "NotFound",
    "OutcomeUnknown",
    "PermissionDenied",
    "QuorepoError",
    "Rejected",
    "StaleReference",
    "StorageFull",
    "Unauthenticated",
    "Unavailable",
]


class QuorepoError(Exception):
    """Base of all errors that a client may see."""

    grpc_code: ClassVar[str] = "INTERNAL"
    http_status: ClassVar[int] = 500
    reason: ClassVar[str] = "INTERNAL"
    conclusion: ClassVar[Literal["rejected", "unknown"]] = "unknown"

    def __init__(self, message: str, *, next_step: str = "", **metadata: str) -> None:
        super().__init__(message)
        self.message = message
        self.next_step = next_step
        self.metadata = metadata

    def __str__(self) -> str:
        return f"{self.message}; {self.next_step}" if self.next_step else self.message


class Rejected(QuorepoError):
    """Nothing happened, and nothing will."""

    conclusion = "rejected"
    grpc_code = "FAILED_PRECONDITION"
    http_status = 409
    reason = "REJECTED"


class InvalidArgument(Rejected):
    """The request itself is wrong, whatever the state."""

    grpc_code = "INVALID_ARGUMENT"
    http_status = 400
    reason = "INVALID_ARGUMENT"


class ConfigError(InvalidArgument):
    """The configuration, or a file that it names, is wrong; a process ends with `EXIT_CONFIG`."""

    reason = "CONFIGURATION"


class NotFound(Rejected):
    """No such repository, ref or object."""

    grpc_code = "NOT_FOUND"
    http_status = 404
    reason = "NOT_FOUND"


class AlreadyExists(Rejected):
    """The thing to create is there already."""

    grpc_code = "ALREADY_EXISTS"
    http_status = 409
    reason = "ALREADY_EXISTS"


class StaleReference(Rejected):
    """A ref's value is not the expected one."""

    grpc_code = "ABORTED"
    http_status = 409
    reason = "REFERENCE_MISMATCH"


class PermissionDenied(Rejected):
    """The caller is known and may not do this."""

    grpc_code = "PERMISSION_DENIED"
    http_status = 403
    reason = "PERMISSION_DENIED"


class Unauthenticated(Rejected):
    """No credential, or a wrong one."""

    grpc_code = "UNAUTHENTICATED"
    http_status = 401
    reason = "UNAUTHENTICATED"


class LimitExceeded(Rejected):
    """A configured limit; `limit` is its configuration key."""

    grpc_code = "RESOURCE_EXHAUSTED"
    http_status = 413
    reason = "LIMIT_EXCEEDED"

    def __init__(self, message: str, *, limit: str, next_step: str = "") -> None:
        super().__init__(message, next_step=next_step, limit=limit)
        self.limit = limit


class StorageFull(Rejected):
    """The disk has no room (ENOSPC, EDQUOT); nothing was kept of the request."""

    grpc_code = "RESOURCE_EXHAUSTED"
    http_status = 507
    reason = "STORAGE_FULL"


class CorruptPack(Rejected):
    """A pushed pack is damaged, hostile or refers to objects that are nowhere."""

    grpc_code = "INVALID_ARGUMENT"
    http_status = 400
    reason = "CORRUPT_PACK"


class DamagedPack(Rejected):
    """A stored pack of this node cannot be read as it was once verified; nothing happened."""

    grpc_code = "DATA_LOSS"
    http_status = 500
    reason = "DAMAGED_PACK"


class Unavailable(Rejected):
    """Certainly not done now; the same request may succeed later."""

    grpc_code = "UNAVAILABLE"
    http_status = 503
    reason = "UNAVAILABLE"


class OutcomeUnknown(QuorepoError):
    """It may have been applied, now or later; repeating it with its request id is harmless."""

    conclusion = "unknown"
    grpc_code = "UNKNOWN"
    http_status = 504
    reason = "OUTCOME_UNKNOWN"


class FatalError(BaseException):
    """This process must end at once: continuing could lose or invent data.

    Not an `Exception`, so that no broad handler swallows it. `exit_code` tells the supervisor
    whether a restart may help: `EXIT_IO_ERROR` is never answered by an automatic restart.
    """

    EXIT_BUG: ClassVar[int] = 70
    EXIT_IO_ERROR: ClassVar[int] = 74
    EXIT_WRONG_DISK: ClassVar[int] = 76  # on record; the next start takes part in nothing
    EXIT_CONFIG: ClassVar[int] = 78

    def __init__(self, message: str, *, exit_code: int = EXIT_BUG) -> None:
        super().__init__(message)
        self.exit_code = exit_code
