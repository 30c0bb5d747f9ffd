"""When a call is tried again, and what it means when it is not: no network in here.

A call that changes something carries one request id in all its attempts, so a repeat is harmless.
Once an attempt may have happened, only an answer to a repeat that knows of the first can settle it:
success, or a refusal that is found after the request id was looked up. A node that is too busy or
has no leader says nothing of the first, nor does "no such repository": it may have been deleted
since.
"""

from __future__ import annotations

import random
import time

from quorepo.rpc.client.errors import (
    AlreadyExists,
    ApiError,
    HeadMismatch,
    InvalidArgument,
    MergeConflict,
    NameConflict,
    OutcomeUnknown,
    ReferenceMismatch,
    Unavailable,
)

__all__ = ["Attempts"]

_NEXT_NODE_DELAY_S = 0.02
_DELAY_S_FIRST = 0.1
_DELAY_S_MAX = 2.0
# Refusals of a repeat that also tell that the attempt before it was not applied.
_SETTLES_A_DOUBT = (
    AlreadyExists,
    HeadMismatch,
    InvalidArgument,
    MergeConflict,
    NameConflict,
    ReferenceMismatch,
)
_TRANSPORT_CODES = frozenset(
    {"UNAVAILABLE", "DEADLINE_EXCEEDED", "UNKNOWN", "INTERNAL", "CANCELLED", "RESOURCE_EXHAUSTED"}
)


class Attempts:
    """The attempts of one call."""

    def __init__(
        self, timeout_s: float, attempt_timeout_s: float, nodes: int, request_id: str = ""
    ) -> None:
        """`nodes`: how many endpoints there are; the first round over them is quick."""
        self._deadline = time.monotonic() + timeout_s
        self._attempt_timeout_s = attempt_timeout_s
        self._nodes = nodes
        self._request_id = request_id
        self._failures = 0
        self._doubt: ApiError | None = None  # an attempt that may have happened

    def time_left_s(self) -> float:
        """Seconds until the call's deadline; at least 0."""
        return max(0.0, self._deadline - time.monotonic())

    def attempt_timeout_s(self) -> float:
        """How long the next attempt may take."""
        return max(0.001, min(self.time_left_s(), self._attempt_timeout_s))

    def failed(self, error: ApiError) -> float:
        """An attempt failed: the seconds to wait before the next one.

        Raises:
            ApiError: there is no next one.
        """
        uncertain = error.conclusion == "unknown" and bool(self._request_id)
        if uncertain:
            self._doubt = error
        elif not _may_be_repeated(error):
            if self._doubt is not None and not isinstance(error, _SETTLES_A_DOUBT):
                raise self._unknown(error) from error
            raise error
        self._failures += 1
        delay_s = self._delay_s(error)
        if delay_s >= self.time_left_s():
            raise self.gave_up(error) from error
        return delay_s

    def gave_up(self, last: ApiError) -> ApiError:
        """The error of a call whose time is over."""
        if self._doubt is not None:
            return self._unknown(self._doubt)
        if isinstance(last, Unavailable) or last.reason != "TRANSPORT":
            return last
        return Unavailable(
            f"{last}; nothing was changed",
            reason="UNAVAILABLE",
            code=last.code,
            request_id=self._request_id,
        )

    def _unknown(self, cause: ApiError) -> OutcomeUnknown:
        return OutcomeUnknown(
            f"{cause}; it may have been done or may be done yet: repeat it with request_id "
            f"{self._request_id!r}",
            reason="OUTCOME_UNKNOWN",
            code=cause.code,
            conclusion="unknown",
            metadata={**cause.metadata, "request_id": self._request_id},
            request_id=self._request_id,
        )

    def _delay_s(self, error: ApiError) -> float:
        if self._failures % self._nodes:
            return _NEXT_NODE_DELAY_S
        rounds = self._failures // self._nodes
        backoff_s = min(_DELAY_S_MAX, _DELAY_S_FIRST * 2.0 ** min(rounds, 10))
        return max(error.retry_delay_s or 0.0, backoff_s) * random.uniform(0.7, 1.3)  # noqa: S311


def _may_be_repeated(error: ApiError) -> bool:
    """Of an error after which nothing is in doubt."""
    if isinstance(error, Unavailable):
        return True
    return error.reason == "TRANSPORT" and error.code in _TRANSPORT_CODES
