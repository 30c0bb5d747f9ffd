"""Answers that are too large for one message, written part by part.

    a part: one byte, `J` (JSON) or `B` (bytes of a content), four bytes of length, that many bytes

Owns the parts of a diff, a blame, an archive and a bundle. Whoever reads them knows what belongs to
what: bytes belong to the JSON before them.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any

from quorepo.storage.errors import LimitExceeded
from quorepo.storage.history.archive import write_archive
from quorepo.storage.history.blame import blame, count_lines
from quorepo.storage.history.bundle import write_bundle
from quorepo.storage.history.patches import file_patch
from quorepo.storage.history.questions import change_to_json, diff_changes, raw
from quorepo.storage.history.source import History, TooMuchWork

__all__ = [
    "CHUNK_BYTES",
    "PART_HEADER",
    "STREAMS",
    "STREAMS_FOR_WORKERS",
    "PartList",
    "PartWriter",
    "parts_of",
]

CHUNK_BYTES = 256 * 1024
PART_HEADER = struct.Struct(">cL")
_JSON_BYTES = 300  # about as many as a change or a hunk takes

Arguments = Mapping[str, Any]


class PartWriter:
    """Writes parts to a file. `bytes_max`: more than that is TooMuchWork for this process."""

    def __init__(
        self,
        file: IO[bytes],
        bytes_max: int | None = None,
        flushed: Callable[[int], None] = lambda size: None,
    ) -> None:
        """`flushed` hears how many bytes of the file can be read, every chunk or so."""
        self._file = file
        self._bytes_max = bytes_max
        self._flushed = flushed
        self._written = self._told = 0
        self._pending = bytearray()

    def json(self, value: Mapping[str, Any]) -> None:
        """One JSON part."""
        self._flush_bytes()
        self._part(b"J", json.dumps(value, separators=(",", ":")).encode())

    def write(self, data: Any) -> int:
        """Bytes of a content; the interface of a file, for what writes archives."""
        content = bytes(data)
        self._pending += content
        while len(self._pending) >= CHUNK_BYTES:
            self._part(b"B", bytes(self._pending[:CHUNK_BYTES]))
            del self._pending[:CHUNK_BYTES]
        return len(content)

    def flush(self) -> None:
        """Nothing: parts are flushed when they are full."""

    def finish(self) -> None:
        """All that is left, told."""
        self._flush_bytes()
        self._tell()

    def _flush_bytes(self) -> None:
        if self._pending:
            self._part(b"B", bytes(self._pending))
            self._pending.clear()

    def _part(self, kind: bytes, body: bytes) -> None:
        self._written += PART_HEADER.size + len(body)
        if self._bytes_max is not None and self._written > self._bytes_max:
            raise TooMuchWork
        self._file.write(PART_HEADER.pack(kind, len(body)))
        self._file.write(body)
        if self._written - self._told >= CHUNK_BYTES:
            self._tell()

    def _tell(self) -> None:
        self._file.flush()
        self._told = self._written
        self._flushed(self._written)


class PartList:
    """Keeps parts as they are, for who needs them in this process. More than `bytes_max` bytes is
    TooMuchWork for it.
    """

    def __init__(self, bytes_max: int) -> None:
        self.parts: list[dict[str, Any] | bytes] = []
        self._left = bytes_max

    def json(self, value: Mapping[str, Any]) -> None:
        """What would be one JSON part."""
        self._take(_JSON_BYTES)
        self.parts.append(dict(value))

    def write(self, data: Any) -> int:
        """Bytes of a content."""
        content = bytes(data)
        self._take(len(content))
        starts = range(0, len(content), CHUNK_BYTES)
        self.parts += [content[start : start + CHUNK_BYTES] for start in starts]
        return len(content)

    def _take(self, size: int) -> None:
        self._left -= size
        if self._left < 0:
            raise TooMuchWork


def parts_of(content: bytes) -> Iterator[dict[str, Any] | bytes]:
    """The parts of a whole answer: a dict for JSON, bytes for a content."""
    position = 0
    while position < len(content):
        kind, size = PART_HEADER.unpack_from(content, position)
        position += PART_HEADER.size
        body = content[position : position + size]
        position += size
        yield json.loads(body) if kind == b"J" else body


Parts = PartWriter | PartList


def _diff(history: History, arguments: Arguments, out: Parts) -> None:
    """Changes, each with its patch if `format` is patch, then {files, additions, …}."""
    changes, truncated_by = diff_changes(history, arguments)
    lines, with_text = arguments["format"] in ("numstat", "patch"), arguments["format"] == "patch"
    additions = deletions = files = 0
    left = arguments["diff_bytes_max"]
    for change in changes:
        told = change_to_json(change)
        text = None
        if lines:
            patch = file_patch(
                history,
                change,
                arguments["context_lines"],
                arguments["diff_file_bytes_max"],
                with_text=with_text,
            )
            text = patch.text
            told |= {
                "additions": patch.additions,
                "deletions": patch.deletions,
                "binary": patch.is_binary,
                "left_out": patch.is_left_out,
            }
            additions += patch.additions
            deletions += patch.deletions
        left -= len(text or b"")
        if left < 0:
            truncated_by = "api.diff_bytes_max"
            break
        files += 1
        out.json(told)
        out.write(text or b"")
    out.json(
        {
            "files": files,
            "additions": additions,
            "deletions": deletions,
            "truncated_by": truncated_by,
        }
    )


def _blame(history: History, arguments: Arguments, out: Parts) -> None:
    """{commit, blob, line_count}, then hunks."""
    bytes_max, lines_max = arguments["blame_file_bytes_max"], arguments["blame_lines_max"]
    blob = bytes.fromhex(arguments["blob"])
    size = history.objects.object_size(blob)
    if size > bytes_max:
        raise LimitExceeded(
            f"the file has {size} bytes, api.blame_file_bytes_max is {bytes_max}",
            limit="api.blame_file_bytes_max",
        )
    history.need_graph()
    history.spend(size // 4096)
    count = count_lines(history.blob(blob))
    first = max(1, arguments["first_line"])
    last = min(count, arguments["last_line"] or count)
    if last - first + 1 > lines_max:
        raise LimitExceeded(
            f"{last - first + 1} lines to blame, api.blame_lines_max is {lines_max}",
            limit="api.blame_lines_max",
            next_step="ask for fewer lines with first_line and last_line",
        )
    commit, path = bytes.fromhex(arguments["commit"]), bytes.fromhex(arguments["path"])
    hunks = blame(history, commit, path, first, last, bytes_max, lambda: history.spend(5))
    out.json({"commit": commit.hex(), "blob": blob.hex(), "line_count": count})
    for hunk in hunks:
        out.json(
            {
                "commit": hunk.commit.hex(),
                "first_line": hunk.first_line,
                "line_count": hunk.line_count,
                "original_first_line": hunk.original_first_line,
                "original_path": hunk.original_path.hex(),
                "boundary": hunk.is_boundary,
            }
        )


def _archive(history: History, arguments: Arguments, out: Parts) -> None:
    """The bytes of an archive."""
    write_archive(
        history,
        bytes.fromhex(arguments["tree"]),
        out,  # type: ignore[arg-type]  # only written to
        kind=arguments["format"],
        prefix=bytes.fromhex(arguments["prefix"]),
        moment=arguments["moment"],
        comment=arguments["comment"],
        bytes_max=arguments["archive_bytes_max"],
    )


def _bundle(history: History, arguments: Arguments, out: Parts) -> None:
    """The bytes of a bundle."""
    write_bundle(
        history,
        [(bytes.fromhex(name), bytes.fromhex(oid)) for name, oid in arguments["refs"]],
        raw(arguments["exclusions"]),
        out,  # type: ignore[arg-type]  # only written to
        Path(arguments["pack"]),
        arguments["bundle_bytes_max"],
    )


STREAMS: dict[str, Callable[[History, Arguments, Parts], None]] = {
    "diff": _diff,
    "blame": _blame,
    "archive": _archive,
    "bundle": _bundle,
}
STREAMS_FOR_WORKERS = frozenset({"archive", "bundle"})
