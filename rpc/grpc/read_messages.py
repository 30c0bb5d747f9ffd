"""What several read services have in common: commits and changes as messages, paths, page keys.

Must not know any service.
"""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

from dulwich.objects import Commit

from quorepo.rpc import objects
from quorepo.rpc.api_config import ApiSection
from quorepo.rpc.context import EdgeContext
from quorepo.rpc.grpc.conversions import PageKey, time_left_s
from quorepo.rpc.grpc.errors import Context
from quorepo.rpc.reads import RepositoryView
from quorepo.storage.errors import InvalidArgument, LimitExceeded
from quorepo.storage.history.source import History
from quorepo.v1 import commit_pb2, common_pb2, diff_pb2

__all__ = [
    "ANSWER_BYTES_MAX",
    "TYPES",
    "change_message",
    "check_count",
    "commit_message",
    "commit_messages",
    "decoded_page",
    "encoded_page",
    "fitting",
    "normal_paths",
    "read_timeout_s",
    "tree_entry_message",
    "unhexed",
]

ANSWER_BYTES_MAX = 3 * 1024 * 1024  # a unary answer stays under gRPC's default of 4 MiB

TYPES = {
    1: common_pb2.OBJECT_TYPE_COMMIT,
    2: common_pb2.OBJECT_TYPE_TREE,
    3: common_pb2.OBJECT_TYPE_BLOB,
    4: common_pb2.OBJECT_TYPE_TAG,
}
_STATUSES = {
    "A": diff_pb2.CHANGE_STATUS_ADDED,
    "M": diff_pb2.CHANGE_STATUS_MODIFIED,
    "D": diff_pb2.CHANGE_STATUS_DELETED,
    "R": diff_pb2.CHANGE_STATUS_RENAMED,
    "C": diff_pb2.CHANGE_STATUS_COPIED,
    "T": diff_pb2.CHANGE_STATUS_TYPE_CHANGED,
}
# Without a signature, an encoding or anything else after the committer.
_PLAIN_COMMIT = re.compile(
    rb"tree ([0-9a-f]{40}|[0-9a-f]{64})\n((?:parent [0-9a-f]+\n)*)"
    rb"author ([^\n]*>) ([0-9]{1,12}) ([+-][0-9]{4})\n"
    rb"committer ([^\n]*>) ([0-9]{1,12}) ([+-][0-9]{4})\n\n"
)
# google.protobuf.Timestamp covers the years 1 to 9999.
_SECONDS_MIN, _SECONDS_MAX = -62_135_596_800, 253_402_300_799


def read_timeout_s(edge: EdgeContext, context: Context) -> float:
    """How long a read may keep a worker: the client's deadline, at most api.read_timeout_s."""
    return time_left_s(context, edge.config.api.read_timeout_s)


def check_count(api: ApiSection, count: int, what: str) -> None:
    """Raises LimitExceeded when a request names more of something than api.revisions_max."""
    if count > api.revisions_max:
        raise LimitExceeded(
            f"{count} {what}, api.revisions_max is {api.revisions_max}",
            limit="api.revisions_max",
            next_step="ask in several requests",
        )


def normal_paths(api: ApiSection, paths: Sequence[bytes]) -> list[bytes]:
    """Paths of a request, checked; the root is every path, so it is left out.

    Raises:
        InvalidArgument, LimitExceeded
    """
    check_count(api, len(paths), "paths")
    found = [objects.normal_path(path) for path in paths]
    return [] if b"" in found else found


def encoded_page(key: PageKey, value: dict[str, Any]) -> str:
    """A page token that holds a small value."""
    return key.token(json.dumps(value, separators=(",", ":")).encode())


def decoded_page(
    key: PageKey, token: str, strings: Sequence[str] = (), numbers: Sequence[str] = ()
) -> dict[str, Any] | None:
    """The value of `encoded_page` with its fields of hex and its numbers; None on the first page.

    Raises:
        InvalidArgument: not such a token.
    """
    content = key.key(token)
    if not content:
        return None
    try:
        value = json.loads(content)
        for name in strings:
            values = value[name] if isinstance(value[name], list) else [value[name]]
            for text in values:
                bytes.fromhex(text)
        if all(isinstance(value[name], int) and value[name] >= 0 for name in numbers):
            return dict(value)
    except (ValueError, TypeError, KeyError):
        raise InvalidArgument("page_token is not a token of this service") from None
    raise InvalidArgument("page_token is not a token of this service")


def unhexed(history: History, values: Sequence[str]) -> list[bytes]:
    """Ids out of a page token. Raises NotFound when the repository has not (any more) got one."""
    oids = [bytes.fromhex(value) for value in values]
    for oid in oids:
        if len(oid) != history.hash_bytes:
            raise InvalidArgument("page_token is not a token of this service")
        history.need(oid)
    return oids


def fitting(messages: Sequence[Any]) -> int:
    """How many of these messages fit into one answer; at least one."""
    left = ANSWER_BYTES_MAX
    for number, message in enumerate(messages):
        left -= message.ByteSize() + 16
        if left < 0:
            return max(1, number)
    return len(messages)


def commit_messages(view: RepositoryView, oids: Sequence[str]) -> list[commit_pb2.Commit]:
    """Commits by their ids in hex. Reads packs."""
    return [commit_message(view, bytes.fromhex(oid)) for oid in oids]


def commit_message(view: RepositoryView, oid: bytes) -> commit_pb2.Commit:
    """A commit in the words of the API. Reads packs.

    Raises:
        NotFound, InvalidArgument
        MalformedObject: it can't be parsed.
    """
    content = objects.commit_content(view, oid)
    return _plain_message(oid, content) or _parsed_message(oid, objects.commit_of(view, oid))


def _plain_message(oid: bytes, content: bytes) -> commit_pb2.Commit | None:
    """Of a commit that looks as nearly all do, six times as fast as a parser for all of them; None
    of any other."""
    found = _PLAIN_COMMIT.match(content)
    if found is None:
        return None
    tree, parents, author, author_s, author_zone, committer, committer_s, committer_zone = (
        found.groups()
    )
    message = commit_pb2.Commit(
        oid=oid.hex(),
        tree_oid=tree.decode("ascii"),
        parent_oids=[line[7:] for line in parents.decode("ascii").splitlines()],
        message=content[found.end() :],
    )
    _fill_signature(message.author, author, int(author_s), _seconds(author_zone))
    _fill_signature(message.committer, committer, int(committer_s), _seconds(committer_zone))
    return message


def _seconds(zone: bytes) -> int:
    seconds = int(zone[1:3]) * 3600 + int(zone[3:]) * 60
    return -seconds if zone.startswith(b"-") else seconds


def _parsed_message(oid: bytes, commit: Commit) -> commit_pb2.Commit:
    message = commit_pb2.Commit(
        oid=oid.hex(),
        tree_oid=commit.tree.decode("ascii"),
        parent_oids=[parent.decode("ascii") for parent in commit.parents],
        message=commit.message or b"",
        encoding=(commit.encoding or b"").decode("ascii", "replace"),
        pgp_signature=commit.gpgsig or b"",
    )
    _fill_signature(message.author, commit.author, commit.author_time, commit.author_timezone)
    _fill_signature(message.committer, commit.committer, commit.commit_time, commit.commit_timezone)
    return message


def tree_entry_message(path: bytes, mode: int, oid: str) -> commit_pb2.TreeEntry:
    """An entry of a tree in the words of the API."""
    kind = common_pb2.OBJECT_TYPE_BLOB
    if mode == objects.GITLINK_MODE:
        kind = common_pb2.OBJECT_TYPE_COMMIT
    elif mode == objects.TREE_MODE:
        kind = common_pb2.OBJECT_TYPE_TREE
    return commit_pb2.TreeEntry(
        name=path.rpartition(b"/")[2], path=path, mode=mode, type=kind, oid=oid
    )


def change_message(told: dict[str, Any]) -> diff_pb2.FileChange:
    """A change as `storage/history/questions.py` tells it."""
    message = diff_pb2.FileChange(
        status=_STATUSES[told["status"]],
        similarity=told["similarity"],
        additions=told.get("additions", 0),
        deletions=told.get("deletions", 0),
        binary=told.get("binary", False),
        patch_left_out=told.get("left_out", False),
    )
    if told["old"]:
        path, message.old_mode, message.old_oid = told["old"]
        message.old_path = bytes.fromhex(path)
    if told["new"]:
        path, message.new_mode, message.new_oid = told["new"]
        message.new_path = bytes.fromhex(path)
    return message


def _fill_signature(
    message: commit_pb2.Signature, person: bytes, unix_s: float, utc_offset_s: int
) -> None:
    name, _, rest = person.partition(b"<")
    message.name = name.rstrip(b" ")
    message.email = rest.rpartition(b">")[0]
    message.time.seconds = max(_SECONDS_MIN, min(int(unix_s), _SECONDS_MAX))
    message.utc_offset_minutes = utc_offset_s // 60
