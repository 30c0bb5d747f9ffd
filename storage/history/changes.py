"""Which paths differ between two trees.

Owns the comparison: only folders that differ are read. Renames are `renames.py`'s matter. A file
that becomes a folder is a deletion and additions, as in git.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from quorepo.storage.history.source import (
    ENTRIES_PER_STEP,
    FOLDER_MODES,
    History,
    is_folder,
    mode_number,
)

__all__ = ["Change", "PathFilter", "Side", "changed_paths"]


@dataclass(frozen=True, slots=True)
class Side:
    """What lies at a path on one side."""

    path: bytes
    mode: int
    oid: bytes

    @property
    def is_regular(self) -> bool:
        """A file, and no symbolic link or submodule."""
        return self.mode & 0o170000 == 0o100000


@dataclass(frozen=True, slots=True)
class Change:
    """One changed path. `similarity` in percent, of renames (R) and copies (C)."""

    old: Side | None
    new: Side | None
    similarity: int = 0
    is_copy: bool = False

    @property
    def status(self) -> str:
        """git's letter: A, D, M, R, C or T."""
        if self.old is None:
            return "A"
        if self.new is None:
            return "D"
        if self.old.path != self.new.path or self.is_copy:
            return "C" if self.is_copy else "R"
        return "M" if (self.old.mode ^ self.new.mode) & 0o170000 == 0 else "T"

    @property
    def path(self) -> bytes:
        """The new path, or the old one of what was deleted."""
        side = self.new or self.old
        assert side is not None
        return side.path

    def renamed_from(self, old: Side, similarity: int, *, is_copy: bool) -> Change:
        """The addition as a rename or copy."""
        return replace(self, old=old, similarity=similarity, is_copy=is_copy)


class PathFilter:
    """Files at or below one of some paths; everything when there are none."""

    def __init__(self, paths: Sequence[bytes] = ()) -> None:
        self._paths = tuple(path.removesuffix(b"/") for path in paths)
        self._below = tuple(path + b"/" for path in self._paths)

    def matches(self, path: bytes) -> bool:
        """Whether what lies at `path` counts."""
        if not self._paths:
            return True
        return path in self._paths or path.startswith(self._below)

    def enters(self, folder: bytes) -> bool:
        """Whether anything below a folder may count."""
        return self.matches(folder) or any(below.startswith(folder + b"/") for below in self._below)


def changed_paths(
    history: History,
    old: bytes | None,
    new: bytes | None,
    paths: PathFilter | None = None,
) -> list[Change]:
    """The changes from one tree to another, by path; None is the empty tree."""
    paths = paths or PathFilter()
    found: list[Change] = []
    pending: list[tuple[bytes, bytes | None, bytes | None]] = [(b"", old, new)]
    while pending:
        prefix, old_tree, new_tree = pending.pop()
        if old_tree == new_tree:
            continue
        before, after = history.tree(old_tree), history.tree(new_tree)
        history.spend((len(before) + len(after)) // ENTRIES_PER_STEP)
        for name in before.keys() | after.keys():
            was, now = before.get(name), after.get(name)
            if was == now:
                continue
            path = prefix + name
            was_folder = was is not None and was[0] in FOLDER_MODES
            now_folder = now is not None and now[0] in FOLDER_MODES
            if (was_folder or now_folder) and paths.enters(path):
                old_child = was[1] if was is not None and was_folder else None
                new_child = now[1] if now is not None and now_folder else None
                pending.append((path + b"/", old_child, new_child))
            if paths.matches(path):
                found += _file_changes(path, was, now)
    found.sort(key=lambda change: change.path)
    return found


def _file_changes(
    path: bytes, was: tuple[bytes, bytes] | None, now: tuple[bytes, bytes] | None
) -> list[Change]:
    """The change of what are no folders; none when both are."""
    old = None if was is None or is_folder(was[0]) else Side(path, mode_number(was[0]), was[1])
    new = None if now is None or is_folder(now[0]) else Side(path, mode_number(now[0]), now[1])
    if (old is None and new is None) or old == new:
        return []
    return [Change(old, new)]
