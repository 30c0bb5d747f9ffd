"""File names that are dangerous in a checkout, on any file system: `.git` and its disguises.

Owns git's rules (path.c: is_ntfs_dotgit, is_ntfs_dot_generic; utf8.c: is_hfs_dotgit): NTFS drops
trailing dots and spaces, knows `git~1` and streams (`.git:x`), HFS+ ignores some code points. Knows
nothing of trees.
"""

from __future__ import annotations

import enum
import functools
import re

__all__ = ["Name", "classify_name"]


class Name(enum.IntFlag):
    """What is special about a file name in a tree; PLAIN for nearly all."""

    PLAIN = 0
    EMPTY = enum.auto()
    LARGE = enum.auto()
    FULL_PATH = enum.auto()
    DOT = enum.auto()
    DOTDOT = enum.auto()
    DOTGIT = enum.auto()
    GITMODULES = enum.auto()
    GITATTRIBUTES = enum.auto()
    GITIGNORE = enum.auto()
    MAILMAP = enum.auto()


_NAME_BYTES_MAX = 4096  # fsck.c: max_tree_entry_len

_NTFS_DOTGIT = re.compile(rb"(?:\.git|git~1)[. ]*(?:$|[\\/:])", re.IGNORECASE | re.DOTALL)

# Code points that HFS+ ignores in names (utf8.c: next_hfs_char).
_HFS_IGNORED = re.compile("[\u200c-\u200f\u202a-\u202e\u206a-\u206f\ufeff]")

# Needle without its dot, and the prefix of the fall-back short name that NTFS makes of a hash.
_NEEDLES = {
    Name.GITMODULES: (b"gitmodules", b"gi7eba"),
    Name.GITATTRIBUTES: (b"gitattributes", b"gi7d29"),
    Name.GITIGNORE: (b"gitignore", b"gi250a"),
    Name.MAILMAP: (b"mailmap", b"maba30"),
}


def classify_name(name: bytes) -> Name:
    """All that is special about a name, as git's fsck sees it."""
    flags = Name.PLAIN
    if not name:
        return Name.EMPTY
    if len(name) > _NAME_BYTES_MAX:
        flags |= Name.LARGE
    if b"/" in name:
        flags |= Name.FULL_PATH
    if name == b".":
        flags |= Name.DOT
    if name == b"..":
        flags |= Name.DOTDOT
    folded = _hfs_folded(name)
    if folded == ".git" or folded.startswith(".git/") or _NTFS_DOTGIT.match(name):
        flags |= Name.DOTGIT
    for flag, (needle, _) in _NEEDLES.items():
        if folded == f".{needle.decode()}" or _ntfs_pattern(flag).match(name):
            flags |= flag
    # git looks behind every backslash too: it separates folders on Windows.
    for part in name.split(b"\\")[1:]:
        if _NTFS_DOTGIT.match(part):
            flags |= Name.DOTGIT
        if _ntfs_pattern(Name.GITMODULES).match(part):
            flags |= Name.GITMODULES
    return flags


def _hfs_folded(name: bytes) -> str:
    """The name as HFS+ compares it, up to the first byte that is not UTF-8."""
    try:
        text = name.decode("utf-8")
    except UnicodeDecodeError as error:
        text = name[: error.start].decode("utf-8")
    return _HFS_IGNORED.sub("", text).lower()


@functools.cache
def _ntfs_pattern(flag: Name) -> re.Pattern[bytes]:
    needle, hashed = _NEEDLES[flag]
    # <6 letters>~<1-4>, or up to 6 letters of the hashed name, `~`, digits, 8 characters in all.
    fallback = b"|".join(
        re.escape(hashed[:length]) + b"~[1-9]" + b"[0-9]" * (6 - length)
        for length in range(len(hashed), -1, -1)
    )
    return re.compile(
        rb"(?:\.%s|%s~[1-4]|%s)[ .]*(?:$|:)" % (needle, needle[:6], fallback),
        re.IGNORECASE | re.DOTALL,
    )
