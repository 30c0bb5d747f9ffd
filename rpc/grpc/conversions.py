"""Between the messages of quorepo.v1 and our own types: revisions, ids, pages, deadlines.

Must not know any service. What a client sent wrong is an InvalidArgument that names the field.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import hashlib
import uuid
from collections.abc import Iterator

from google.protobuf.timestamp_pb2 import Timestamp

from quorepo.rpc.context import EdgeContext
from quorepo.rpc.grpc.errors import Context
from quorepo.rpc.grpc.interceptor import caller
from quorepo.rpc.reads import READ_INDEX_TIMEOUT_S, RepositoryView
from quorepo.rpc.request_ids import new_request_uuid
from quorepo.rpc.visible_refs import shown_to
from quorepo.storage.errors import InvalidArgument, QuorepoError, Rejected
from quorepo.storage.names import normalize_path
from quorepo.storage.objectformat import ObjectFormat
from quorepo.v1 import common_pb2

__all__ = [
    "PageKey",
    "RevisionNotReached",
    "confirm",
    "object_format_message",
    "object_format_of",
    "open_view",
    "page_size",
    "request_uuid",
    "revision_message",
    "telling_request_id",
    "time_left_s",
    "timestamp",
]

_ANSWER_MARGIN_S = 0.1  # of a client's deadline, kept for the answer that says what happened
_QUERY_DIGEST_BYTES = 8


class RevisionNotReached(Rejected):
    """`at_least` names a revision that the repository, read linearizably, does not have."""

    reason = "REVISION_NOT_REACHED"


def revision_message(view: RepositoryView) -> common_pb2.Revision:
    """The revision that a view shows."""
    return common_pb2.Revision(incarnation=view.row.incarnation, counter=view.row.counter)


def object_format_message(object_format: ObjectFormat) -> common_pb2.ObjectFormat.ValueType:
    """The object format in the words of the API."""
    if object_format is ObjectFormat.SHA256:
        return common_pb2.OBJECT_FORMAT_SHA256
    return common_pb2.OBJECT_FORMAT_SHA1


def object_format_of(value: int) -> ObjectFormat:
    """The object format that a client asked for; SHA-1 when it did not say.

    Raises:
        InvalidArgument: a number that this version does not know.
    """
    if value in (common_pb2.OBJECT_FORMAT_UNSPECIFIED, common_pb2.OBJECT_FORMAT_SHA1):
        return ObjectFormat.SHA1
    if value == common_pb2.OBJECT_FORMAT_SHA256:
        return ObjectFormat.SHA256
    raise InvalidArgument(f"object_format {value} is unknown")


def timestamp(unix_ms: int) -> Timestamp:
    """A moment as the API shows it."""
    message = Timestamp()
    message.FromMilliseconds(unix_ms)
    return message


def time_left_s(context: Context, at_most_s: float) -> float:
    """How long the call may still work: the client's deadline less a margin, at most
    `at_most_s`."""
    remaining = context.time_remaining()
    if remaining is None:
        return at_most_s
    return max(0.001, min(at_most_s, remaining - _ANSWER_MARGIN_S))


def request_uuid(text: str) -> uuid.UUID:
    """The request id that a client gave, or a new one.

    Raises:
        InvalidArgument: not a UUID.
    """
    if not text:
        return new_request_uuid()
    try:
        return uuid.UUID(text)
    except ValueError:
        raise InvalidArgument(f"request_id must be a UUID, got {text[:80]!r}") from None


@contextlib.contextmanager
def telling_request_id(request_id: uuid.UUID) -> Iterator[None]:
    """Every error of a mutating call names the request id that it can be repeated with."""
    try:
        yield
    except QuorepoError as error:
        error.metadata.setdefault("request_id", str(request_id))
        raise


async def confirm(edge: EdgeContext, context: Context, consistency: common_pb2.Consistency) -> None:
    """Makes a read that spans repositories as fresh as it was asked to be.

    Raises:
        InvalidArgument: `at_least`, which names one repository's revision.
        Unavailable: no leader within the deadline.
    """
    level = consistency.WhichOneof("level")
    if level == "at_least":
        raise InvalidArgument("consistency.at_least needs one repository; use linearizable")
    if level != "local":
        await edge.reads.confirm(time_left_s(context, READ_INDEX_TIMEOUT_S))


async def open_view(
    edge: EdgeContext, context: Context, path: str, consistency: common_pb2.Consistency
) -> RepositoryView:
    """The repository at `path`, as fresh as it was asked to be, without refs that are hidden from
    the caller.

    Raises:
        NotFound, InvalidArgument
        Unavailable: no leader within the deadline.
        RevisionNotReached: the repository never had the revision of `at_least`.
    """
    path = normalize_path(path)
    level = consistency.WhichOneof("level")
    if level == "at_least":
        view = await edge.reads.find(path, consistency="local")
        if view is not None and _reached(view, consistency.at_least):
            return shown_to(edge, caller(), view)
    if level != "local":
        await edge.reads.confirm(time_left_s(context, READ_INDEX_TIMEOUT_S))
    view = shown_to(edge, caller(), await edge.reads.open(path, consistency="local"))
    if level == "at_least" and not _reached(view, consistency.at_least):
        wanted = consistency.at_least
        raise RevisionNotReached(
            f"repository {path!r} has revision {view.row.incarnation}.{view.row.counter}, "
            f"{wanted.incarnation}.{wanted.counter} was never reached"
        )
    return view


def _reached(view: RepositoryView, wanted: common_pb2.Revision) -> bool:
    return (view.row.incarnation, view.row.counter) >= (wanted.incarnation, wanted.counter)


def page_size(asked: int, default: int, at_most: int) -> int:
    """How many rows a page gets; more than `at_most` is cut, as AIP-158 wants.

    Raises:
        InvalidArgument: negative.
    """
    if asked < 0:
        raise InvalidArgument(f"page_size must not be negative, got {asked}")
    return min(asked or default, at_most)


class PageKey:
    """Where a page begins: a key of the last row before it, bound to the question that was
    asked."""

    def __init__(self, *question: str | bytes) -> None:
        """`question`: everything that must be the same on the next page."""
        parts = (
            part.encode("utf-8", "surrogatepass") if isinstance(part, str) else part
            for part in question
        )
        digest = hashlib.sha256(b"\0".join(parts)).digest()
        self._digest = digest[:_QUERY_DIGEST_BYTES]

    def token(self, key: bytes) -> str:
        """An opaque token for the page after `key`."""
        return base64.urlsafe_b64encode(self._digest + key).decode("ascii")

    def key(self, token: str) -> bytes:
        """The key inside a token; empty for the first page.

        Raises:
            InvalidArgument: not a token, or one of another question.
        """
        if not token:
            return b""
        try:
            raw = base64.b64decode(token, altchars=b"-_", validate=True)
        except (binascii.Error, ValueError):
            raise InvalidArgument("page_token is not a token of this service") from None
        if raw[:_QUERY_DIGEST_BYTES] != self._digest:
            raise InvalidArgument("page_token belongs to a request with other fields")
        return raw[_QUERY_DIGEST_BYTES:]
