"""The stream of CommitFiles: its actions as a list, their content as bytes on their way to a file.

Owns the order of the messages and the limits of a stream. Must not know what becomes of it.
"""

from __future__ import annotations

import hashlib
from collections.abc import AsyncIterator
from typing import Any

from quorepo.rpc.api_config import ApiSection
from quorepo.rpc.grpc.byte_streams import CHUNK_BYTES_MAX
from quorepo.storage.errors import InvalidArgument, LimitExceeded
from quorepo.storage.fsck_names import Name, classify_name
from quorepo.storage.objectformat import ObjectFormat
from quorepo.v1 import operation_pb2

__all__ = ["CommitStream"]

_PATH_BYTES_MAX = 4096
_MODES = (0, 0o100644, 0o100755, 0o120000)
_PB = operation_pb2.CommitFilesRequest
_KINDS = {
    _PB.KIND_CREATE: "create",
    _PB.KIND_UPDATE: "update",
    _PB.KIND_WRITE: "write",
    _PB.KIND_DELETE: "delete",
    _PB.KIND_MOVE: "move",
    _PB.KIND_CHMOD: "chmod",
}
_WITH_CONTENT = ("create", "update", "write")


class CommitStream:
    """One stream; `header` first, then `content` to its end, then `actions` are complete."""

    def __init__(self, messages: AsyncIterator[Any], limits: ApiSection) -> None:
        self._messages = messages
        self._limits = limits
        self._size = 0
        self.actions: list[dict[str, Any]] = []  # as storage/operations/jobs.py wants them

    async def header(self) -> operation_pb2.CommitFilesRequest.Header:
        """The first message. Raises InvalidArgument: it is something else."""
        first = await anext(self._messages, None)
        if first is None or first.WhichOneof("part") != "header":
            raise InvalidArgument("the first message of CommitFiles must be a header")
        header: operation_pb2.CommitFilesRequest.Header = first.header
        return header

    async def content(self, object_format: ObjectFormat) -> AsyncIterator[bytes]:
        """The content of all actions, piece by piece.

        Raises:
            InvalidArgument: what is wrong with which action; or the stream was cut.
            LimitExceeded: api.commit_files_max, api.commit_bytes_max.
        """
        digest = hashlib.sha256()
        async for message in self._messages:
            part = message.WhichOneof("part")
            if part == "action":
                self._begin(message.action, object_format)
                piece = message.action.content
            elif part == "chunk":
                piece = self._continue(message.chunk)
            elif part == "sha256":
                if message.sha256 != digest.digest():
                    raise InvalidArgument("sha256 is not that of the content that arrived")
                if await anext(self._messages, None) is not None:
                    raise InvalidArgument("sha256 must be the last message")
                return
            else:
                raise InvalidArgument(f"message {part or 'without a part'!r} is out of place")
            self._size += len(piece)
            if self._size > self._limits.commit_bytes_max:
                raise LimitExceeded(
                    f"the content exceeds api.commit_bytes_max ({self._limits.commit_bytes_max})",
                    limit="api.commit_bytes_max",
                )
            if piece:
                digest.update(piece)
                self.actions[-1]["content"][1] = self._size
                yield piece
        raise InvalidArgument("the stream was cut: its last message must be sha256")

    def _begin(self, action: Any, object_format: ObjectFormat) -> None:
        if len(self.actions) >= self._limits.commit_files_max:
            raise LimitExceeded(
                f"more actions than api.commit_files_max ({self._limits.commit_files_max})",
                limit="api.commit_files_max",
                next_step="make several commits of them",
            )
        kind = _KINDS.get(action.kind)
        if kind is None:
            raise InvalidArgument(f"action {len(self.actions) + 1} has no kind")
        _check_path(action.path)
        if (kind == "move") != bool(action.previous_path):
            raise InvalidArgument(f"{_shown(action.path)}: previous_path belongs to a move")
        if action.previous_path:
            _check_path(action.previous_path)
        if action.mode not in _MODES or (kind == "chmod" and not action.mode):
            raise InvalidArgument(
                f"{_shown(action.path)}: mode {action.mode:o} is none of 100644, 100755, 120000"
            )
        has_content = kind in _WITH_CONTENT or (kind == "move" and action.has_content)
        if action.content and not has_content:
            raise InvalidArgument(f"{_shown(action.path)}: {kind} takes no content")
        self.actions.append(
            {
                "kind": kind,
                "path": action.path.hex(),
                "previous_path": action.previous_path.hex(),
                "mode": action.mode,
                "content": [self._size, self._size] if has_content else None,
                "expected": _oid(action.expected_oid, object_format),
            }
        )

    def _continue(self, chunk: bytes) -> bytes:
        if not self.actions or self.actions[-1]["content"] is None:
            raise InvalidArgument("a chunk must follow an action that takes content")
        if len(chunk) > CHUNK_BYTES_MAX:
            raise InvalidArgument(f"a chunk has {len(chunk)} bytes, at most {CHUNK_BYTES_MAX}")
        return chunk


def _oid(text: str, object_format: ObjectFormat) -> str:
    try:
        raw = bytes.fromhex(text)
    except ValueError:
        raw = b"?"
    if raw and len(raw) != object_format.hash_bytes:
        raise InvalidArgument(f"expected_oid must be a full object id, got {text[:80]!r}")
    return raw.hex()


def _check_path(path: bytes) -> None:
    if not path or len(path) > _PATH_BYTES_MAX:
        raise InvalidArgument(f"a path must have 1 to {_PATH_BYTES_MAX} bytes, got {len(path)}")
    if path.startswith(b"/"):
        raise InvalidArgument(f"path {_shown(path)} is absolute")
    for name in path.split(b"/"):
        if not name or b"\0" in name:
            raise InvalidArgument(f"path {_shown(path)} has an empty part or a NUL")
        if name in (b".", b"..") or classify_name(name) & Name.DOTGIT:
            raise InvalidArgument(f"path {_shown(path)}: {_shown(name)} is not allowed")


def _shown(path: bytes) -> str:
    return repr(path[:200].decode("utf-8", "backslashreplace"))
