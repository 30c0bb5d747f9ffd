"""Which added files are renames or copies of others.

Owns git's method (diffcore-rename.c): equal content first, then files whose name is unique on both
sides, then the most similar pairs. Two files are as similar as the share of the larger one's bytes
that are in chunks (lines, and pieces of 64 bytes) of both. git counts chunks by a hash of 17 bits,
so its percentage can be a little higher than this one.
"""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass
from typing import TypeVar

from quorepo.storage.history.changes import Change, Side
from quorepo.storage.history.source import History

__all__ = ["RenameOptions", "find_renames", "find_source"]

_T = TypeVar("_T")

_SCORE_MAX = 60_000
_CANDIDATES_PER_FILE = 4
_IDENTICAL_TRIED_MAX = 100
_CHUNKS = re.compile(rb"[^\n]{0,63}\n|[^\n]{1,64}")
_BINARY_LOOKED_AT = 8000


@dataclass(frozen=True)
class RenameOptions:
    """`similarity` in percent; `pairs_max` is the square of git's diff.renameLimit."""

    similarity: int = 50
    copies: bool = False
    pairs_max: int = 1000 * 1000
    blob_bytes_max: int = 16 * 1024 * 1024  # larger files are renames only of equal ones


class _Source:
    def __init__(self, side: Side, is_used: bool) -> None:
        self.side = side
        self.is_used = is_used


def find_renames(
    history: History, changes: list[Change], options: RenameOptions
) -> tuple[list[Change], bool]:
    """The changes with deletions and additions that belong together as one.

    Returns also whether similar files were not looked for, because there were too many pairs.
    """
    finder = _Finder(history, changes, options)
    finder.find()
    return finder.result(), finder.gave_up


def find_source(
    history: History, changes: list[Change], path: bytes, options: RenameOptions
) -> Side | None:
    """What the added file at `path` is a rename of; None when of nothing."""
    only = [change for change in changes if change.status != "A" or change.path == path]
    found, _ = find_renames(history, only, options)
    return next((c.old for c in found if c.status == "R" and c.path == path), None)


class _Finder:
    def __init__(self, history: History, changes: list[Change], options: RenameOptions) -> None:
        self.gave_up = False
        self._history = history
        self._changes = changes
        self._options = options
        self._min_score = options.similarity * _SCORE_MAX // 100
        self._targets = [change.new for change in changes if change.old is None and change.new]
        self._sources = [
            _Source(change.old, change.new is not None)
            for change in changes
            if change.old is not None and (change.new is None or options.copies)
        ]
        self._found: dict[bytes, tuple[_Source, int, bool]] = {}  # by the path of the target
        self._chunks: dict[bytes, Counter[bytes]] = {}
        self._sizes: dict[bytes, int] = {}

    def find(self) -> None:
        if not self._targets or not self._sources:
            return
        self._find_identical()
        if self._min_score >= _SCORE_MAX:
            return
        if not self._options.copies:
            self._find_by_name()
        self._find_similar()

    def result(self) -> list[Change]:
        # A source that stays, or that has more than one target, is copied to all but the last.
        uses = Counter(id(source) for source, _, _ in self._found.values())
        kept = {id(s) for s in self._sources if s.side.path in self._remaining()}
        result = []
        for change in self._changes:
            found = self._found.get(change.path) if change.old is None else None
            if found is not None:
                source, score, _ = found
                uses[id(source)] -= 1
                is_copy = id(source) in kept or uses[id(source)] > 0
                percent = score * 100 // _SCORE_MAX
                change = change.renamed_from(source.side, percent, is_copy=is_copy)
            elif change.new is None and self._is_renamed(change):
                continue
            result.append(change)
        return result

    def _remaining(self) -> set[bytes]:
        """Paths of sources that are on both sides."""
        return {c.old.path for c in self._changes if c.old is not None and c.new is not None}

    def _is_renamed(self, change: Change) -> bool:
        return any(source.side == change.old for source, _, _ in self._found.values())

    def _record(self, target: Side, source: _Source, score: int) -> None:
        self._found[target.path] = (source, score, source.is_used)
        source.is_used = True

    def _find_identical(self) -> None:
        by_oid: dict[bytes, list[_Source]] = {}
        for source in self._sources:
            by_oid.setdefault(source.side.oid, []).append(source)
        for target in self._targets:
            best, best_score = None, -1
            for source in by_oid.get(target.oid, ())[:_IDENTICAL_TRIED_MAX]:
                side = source.side
                if not (side.is_regular and target.is_regular) and side.mode != target.mode:
                    continue
                if source.is_used and not self._options.copies:
                    continue
                score = (not source.is_used) + _same_name(side.path, target.path)
                if score > best_score:
                    best, best_score = source, score
                if score == 2:
                    break
            if best is not None:
                self._record(target, best, _SCORE_MAX)

    def _find_by_name(self) -> None:
        """Names that are unique among what is left; they must be more similar than others."""
        sources = _by_unique_name([(s.side.path, s) for s in self._sources if not s.is_used])
        targets = _by_unique_name([(t.path, t) for t in self._open_targets()])
        min_score = self._min_score + (_SCORE_MAX - self._min_score) // 2
        for name, source in sources.items():
            target = targets.get(name)
            if target is None or target.path in self._found:
                continue
            score = self._score(source.side, target, min_score)
            if score >= min_score:
                self._record(target, source, score)

    def _find_similar(self) -> None:
        targets = self._open_targets()
        sources = [s for s in self._sources if self._options.copies or not s.is_used]
        if len(targets) * len(sources) > self._options.pairs_max:
            self.gave_up = True
            return
        pairs = []
        for target in targets:
            best = []
            for source in sources:
                score = self._score(source.side, target, self._min_score)
                if score >= self._min_score:
                    same_name = _same_name(source.side.path, target.path)
                    best.append((-score, -same_name, target, source))
            best.sort(key=lambda pair: pair[:2])
            pairs += best[:_CANDIDATES_PER_FILE]
        pairs.sort(key=lambda pair: pair[:2])
        for uses_again in (False, True) if self._options.copies else (False,):
            for score, _, target, source in pairs:
                if target.path not in self._found and (uses_again or not source.is_used):
                    self._record(target, source, -score)

    def _open_targets(self) -> list[Side]:
        return [target for target in self._targets if target.path not in self._found]

    def _score(self, old: Side, new: Side, min_score: int) -> int:
        """How similar two files are, of 60,000; 0 when it can't be `min_score`."""
        if not (old.is_regular and new.is_regular):
            return 0
        self._history.spend()
        old_size, new_size = self._size(old), self._size(new)
        larger, smaller = max(old_size, new_size), min(old_size, new_size)
        if larger * (_SCORE_MAX - min_score) < (larger - smaller) * _SCORE_MAX:
            return 0
        if not new_size or larger > self._options.blob_bytes_max:
            return 0
        ours, theirs = self._chunks_of(old), self._chunks_of(new)
        copied = sum((ours & theirs).values())
        return copied * _SCORE_MAX // larger

    def _size(self, side: Side) -> int:
        size = self._sizes.get(side.oid)
        if size is None:
            size = self._sizes[side.oid] = self._history.objects.object_size(side.oid)
        return size

    def _chunks_of(self, side: Side) -> Counter[bytes]:
        """Bytes by the content of the chunk that they are in."""
        chunks = self._chunks.get(side.oid)
        if chunks is None:
            content = self._history.blob(side.oid)
            if b"\0" not in content[:_BINARY_LOOKED_AT]:
                content = content.replace(b"\r\n", b"\n")
            chunks = Counter()
            for chunk, count in Counter(_CHUNKS.findall(content)).items():
                chunks[chunk] = len(chunk) * count
            self._chunks[side.oid] = chunks
        return chunks


def _by_unique_name(items: list[tuple[bytes, _T]]) -> dict[bytes, _T]:
    names = Counter(_name(path) for path, _ in items)
    return {_name(path): item for path, item in items if names[_name(path)] == 1}


def _name(path: bytes) -> bytes:
    return path.rpartition(b"/")[2]


def _same_name(one: bytes, other: bytes) -> bool:
    return _name(one) == _name(other)
