"""Lines: the patch of one changed file, how many lines it adds and deletes, and raw hunks.

Owns the use of libgit2's xdiff and the text around hunks, which is git's. Must not know trees.
"""

from __future__ import annotations

from dataclasses import dataclass

import pygit2
from pygit2.enums import DiffOption

from quorepo.storage.history.changes import Change, Side
from quorepo.storage.history.source import History, Hunk

__all__ = ["FilePatch", "file_patch", "hunks", "is_binary", "quoted"]

_BINARY_LOOKED_AT = 8000  # git's FIRST_FEW_BYTES
_TRIMMED_BLOCK = 1024
_BYTES_PER_STEP = 4096  # of a budget: about as much work as reading a small tree
_FLAGS = DiffOption.INDENT_HEURISTIC  # git's default since 2.14
_ESCAPES = {7: b"\\a", 8: b"\\b", 9: b"\\t", 10: b"\\n", 11: b"\\v", 12: b"\\f", 13: b"\\r"}


@dataclass(frozen=True)
class FilePatch:
    """`text` is None when it was not asked for; nothing is counted of a binary file."""

    text: bytes | None
    additions: int = 0
    deletions: int = 0
    is_binary: bool = False
    is_left_out: bool = False  # a side is larger than allowed


def file_patch(
    history: History, change: Change, context_lines: int, bytes_max: int, *, with_text: bool
) -> FilePatch:
    """The patch of one file, as `git diff --full-index` writes it.

    A file of more than `bytes_max` bytes is not read, and neither is a patch kept that is longer.
    """
    for side in (change.old, change.new):
        if (
            side is not None
            and _is_blob(side)
            and history.objects.object_size(side.oid) > bytes_max
        ):
            return FilePatch(None, is_left_out=True)
        history.spend()
    old, new = _content(history, change.old), _content(history, change.new)
    history.spend((len(old) + len(new)) // _BYTES_PER_STEP)
    head = _head(change) if with_text else b""
    if old == new:
        return FilePatch(head + _index_line(change) if with_text else None)
    if change.status == "T":
        return _type_change(change, old, new, context_lines, with_text)
    if is_binary(old) or is_binary(new):
        text = None
        if with_text:
            one, other = _names(change)
            text = head + _index_line(change) + b"Binary files %s and %s differ\n" % (one, other)
        return FilePatch(text, is_binary=True)
    patch = pygit2.Patch.create_from(
        old, new, flag=_FLAGS | DiffOption.FORCE_TEXT, context_lines=context_lines
    )
    _, additions, deletions = patch.line_stats
    if not with_text:
        return FilePatch(None, additions, deletions)
    body = patch.data
    body = body[body.index(b"\n@@ ") + 1 :] if b"\n@@ " in body else b""
    if len(body) > bytes_max:
        return FilePatch(None, additions, deletions, is_left_out=True)
    one, other = _names(change)
    lines = head + _index_line(change)
    if body:
        lines += b"--- %s\n+++ %s\n" % (_tabbed(one), _tabbed(other))
    return FilePatch(lines + body, additions, deletions)


def _type_change(
    change: Change, old: bytes, new: bytes, context_lines: int, with_text: bool
) -> FilePatch:
    """git writes a change of type as a deletion and an addition."""
    text = b""
    additions = deletions = 0
    binary = False
    for half, one, other in (
        (Change(change.old, None), old, b""),
        (Change(None, change.new), b"", new),
    ):
        if is_binary(one) or is_binary(other):
            binary = True
            body = b"Binary files %s and %s differ\n" % _names(half)
        else:
            patch = pygit2.Patch.create_from(
                one, other, flag=_FLAGS | DiffOption.FORCE_TEXT, context_lines=context_lines
            )
            additions += patch.line_stats[1]
            deletions += patch.line_stats[2]
            data = patch.data
            body = data[data.index(b"\n@@ ") + 1 :] if b"\n@@ " in data else b""
            if body:
                body = b"--- %s\n+++ %s\n" % tuple(map(_tabbed, _names(half))) + body
        text += _head(half) + _index_line(half) + body
    return FilePatch(text if with_text else None, additions, deletions, binary)


def hunks(old: bytes, new: bytes) -> list[Hunk]:
    """What differs, without context, as git's blame asks for it: in order."""
    old, new = _trimmed(old, new)
    patch = pygit2.Patch.create_from(
        old, new, flag=_FLAGS | DiffOption.FORCE_TEXT, context_lines=0, interhunk_lines=0
    )
    return [(h.old_start, h.old_lines, h.new_start, h.new_lines) for h in patch.hunks]


def is_binary(content: bytes) -> bool:
    """git's guess."""
    return b"\0" in content[:_BINARY_LOOKED_AT]


def quoted(path: bytes) -> bytes:
    """A path as git writes it: in quotes and escaped when it has unusual bytes."""
    if all(32 <= byte < 127 and byte not in b'"\\' for byte in path):
        return path
    out = bytearray(b'"')
    for byte in path:
        if byte in _ESCAPES:
            out += _ESCAPES[byte]
        elif byte in b'"\\':
            out += b"\\%c" % byte
        elif 32 <= byte < 127:
            out.append(byte)
        else:
            out += b"\\%03o" % byte
    return bytes(out + b'"')


def _trimmed(old: bytes, new: bytes) -> tuple[bytes, bytes]:
    """Without a common end, in whole blocks and up to a line's end: git's trim_common_tail()."""
    trimmed = 0
    smaller = min(len(old), len(new))
    while _TRIMMED_BLOCK + trimmed <= smaller:
        old_end, new_end = len(old) - trimmed, len(new) - trimmed
        if old[old_end - _TRIMMED_BLOCK : old_end] != new[new_end - _TRIMMED_BLOCK : new_end]:
            break
        trimmed += _TRIMMED_BLOCK
    if not trimmed:
        return old, new
    line_end = old.find(b"\n", len(old) - trimmed)
    cut = 0 if line_end < 0 else len(old) - line_end - 1
    return old[: len(old) - cut], new[: len(new) - cut]


def _content(history: History, side: Side | None) -> bytes:
    if side is None:
        return b""
    if not _is_blob(side):
        return b"Subproject commit %s\n" % side.oid.hex().encode()
    return history.blob(side.oid)


def _is_blob(side: Side) -> bool:
    return side.mode != 0o160000


def _names(change: Change) -> tuple[bytes, bytes]:
    old = quoted(b"a/" + change.old.path) if change.old else b"/dev/null"
    new = quoted(b"b/" + change.new.path) if change.new else b"/dev/null"
    return old, new


def _tabbed(name: bytes) -> bytes:
    """git ends a name that has a space with a tab, for the sake of `patch`."""
    return name + b"\t" if b" " in name and not name.startswith(b'"') else name


def _head(change: Change) -> bytes:
    old, new = change.old or change.new, change.new or change.old
    assert old is not None
    assert new is not None
    lines = [b"diff --git %s %s" % (quoted(b"a/" + old.path), quoted(b"b/" + new.path))]
    if change.old is None:
        lines.append(b"new file mode %06o" % new.mode)
    elif change.new is None:
        lines.append(b"deleted file mode %06o" % old.mode)
    elif old.mode != new.mode:
        lines += [b"old mode %06o" % old.mode, b"new mode %06o" % new.mode]
    if change.status in "RC":
        word = b"copy" if change.status == "C" else b"rename"
        lines += [
            b"similarity index %d%%" % change.similarity,
            b"%s from %s" % (word, quoted(old.path)),
            b"%s to %s" % (word, quoted(new.path)),
        ]
    return b"\n".join(lines) + b"\n"


def _index_line(change: Change) -> bytes:
    side = change.new or change.old
    assert side is not None
    zero = b"0" * (2 * len(side.oid))
    old = change.old.oid.hex().encode() if change.old else zero
    new = change.new.oid.hex().encode() if change.new else zero
    if old == new:
        return b""
    same_mode = change.old and change.new and change.old.mode == change.new.mode
    return b"index %s..%s%s\n" % (old, new, b" %06o" % side.mode if same_mode else b"")
