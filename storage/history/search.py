"""Lines of files that have a text or match a pattern, bounded in bytes and in matches.

Owns the search. A regular expression of a client can take for ever: search in a worker process,
whose time is limited.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Any

from quorepo.storage.errors import InvalidArgument
from quorepo.storage.history.changes import PathFilter
from quorepo.storage.history.patches import is_binary
from quorepo.storage.history.source import History
from quorepo.storage.history.trees import list_tree

__all__ = ["compile_pattern", "search"]

_LINE_BYTES_SHOWN = 1024


def compile_pattern(
    pattern: bytes, *, regular_expression: bool, ignore_case: bool
) -> re.Pattern[bytes]:
    """The pattern, for lines. Raises InvalidArgument."""
    if not pattern or b"\n" in pattern:
        raise InvalidArgument("pattern must not be empty, and must not have a line end")
    source = pattern if regular_expression else re.escape(pattern)
    try:
        return re.compile(source, re.MULTILINE | (re.IGNORECASE if ignore_case else 0))
    except (re.error, OverflowError, RecursionError) as error:
        raise InvalidArgument(f"pattern is no regular expression: {error}") from None


def search(
    history: History,
    tree: bytes,
    pattern: re.Pattern[bytes],
    paths: Sequence[bytes],
    matches_max: int,
    bytes_max: int,
) -> tuple[list[dict[str, Any]], str]:
    """(matching lines in order of paths, what ended the search early: "bytes", "matches" or "")."""
    wanted = PathFilter(paths)
    found: list[dict[str, Any]] = []
    left = bytes_max
    for entry in list_tree(history, tree, recursive=True):
        if not entry.is_blob or entry.mode == 0o120000 or not wanted.matches(entry.path):
            continue
        left -= history.objects.object_size(entry.oid)
        if left < 0:
            return found, "bytes"
        content = history.blob(entry.oid)
        if is_binary(content):
            continue
        for number, column, line in _matching_lines(content, pattern):
            if len(found) == matches_max:
                return found, "matches"
            found.append(
                {
                    "path": entry.path.hex(),
                    "line_number": number,
                    "column": column,
                    "line": line[:_LINE_BYTES_SHOWN].hex(),
                    "oid": entry.oid.hex(),
                }
            )
    return found, ""


def _matching_lines(content: bytes, pattern: re.Pattern[bytes]) -> list[tuple[int, int, bytes]]:
    """(number from 1, column from 1, line) of each line with a match."""
    if pattern.search(content) is None:
        return []
    result = []
    for number, line in enumerate(content.split(b"\n"), 1):
        match = pattern.search(line)
        if match is not None and (line or number <= content.count(b"\n")):
            result.append((number, match.start() + 1, line))
    return result
