"""Which commit each line of a file comes from.

Owns the passing of lines from a commit to its parents, as git does it (blame.c): a parent with the
same content takes all; else each parent in turn takes the lines that a diff shows unchanged; a file
that is new in a commit is looked for under another name. Bounded by lines and by bytes of a file.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

from quorepo.storage.history.changes import changed_paths
from quorepo.storage.history.patches import hunks
from quorepo.storage.history.renames import RenameOptions, find_source
from quorepo.storage.history.source import GITLINK_MODE, SYMLINK_MODE, History, Hunk, is_folder

__all__ = ["BlamedLines", "blame", "count_lines"]

_REMEMBERED_OF = 16  # the first and every 16th commit that leaves a file as it is
_STEPS_OF_ONE = 4  # commits that leave the file as it is cost as much as reading one tree

# (first line in the file that was asked about, first line where it came from, lines), from 0
_Span = tuple[int, int, int]


@dataclass(frozen=True, slots=True)
class BlamedLines:
    """Lines of the file, counted from 1, and where they come from."""

    commit: bytes
    first_line: int
    line_count: int
    original_first_line: int
    original_path: bytes
    is_boundary: bool


@dataclass(frozen=True, slots=True)
class _Origin:
    commit: bytes
    path: bytes
    mode: bytes
    blob: bytes


def blame(
    history: History,
    commit: bytes,
    path: bytes,
    first_line: int,
    last_line: int,
    bytes_max: int,
    tick: Callable[[], None] = lambda: None,
) -> list[BlamedLines]:
    """The origin of the lines `first_line` to `last_line` (from 1, both included), in order.

    A version of the file that is larger than `bytes_max` takes the blame for what reached it.
    `tick` is called for every version that is looked at.
    """
    entry = history.entry(history.commit(commit).tree, path.split(b"/"))
    assert entry is not None
    work = _Work(history, bytes_max)
    lines = last_line - first_line + 1
    if lines > 0:
        work.suspect(_Origin(commit, path, *entry), [(first_line - 1, first_line - 1, lines)])
    while work.step():
        tick()
    return _merged(work.found)


def count_lines(content: bytes) -> int:
    """Lines of a file; a last one without an end counts."""
    return content.count(b"\n") + (not content.endswith(b"\n") and bool(content))


class _Work:
    def __init__(self, history: History, bytes_max: int) -> None:
        self.found: list[BlamedLines] = []
        self._history = history
        self._bytes_max = bytes_max
        self._suspects: dict[bytes, dict[_Origin, list[_Span]]] = {}
        self._queue: list[tuple[int, int, bytes]] = []
        self._number = 0
        self._sizes: dict[bytes, int] = {}

    def suspect(self, origin: _Origin, spans: list[_Span]) -> None:
        """These lines come from `origin` or from before it."""
        if not spans:
            return
        origin = self._settled(origin)
        of_commit = self._suspects.setdefault(origin.commit, {})
        if not of_commit:
            self._number += 1
            date = self._history.commit(origin.commit).date
            heapq.heappush(self._queue, (-date, self._number, origin.commit))
        of_commit.setdefault(origin, []).extend(spans)

    def _settled(self, origin: _Origin) -> _Origin:
        """The commit back to which the file stays as it is, on the way that git takes: to the first
        parent that has the same. Where lines come from does not depend on the order in which
        commits are looked at, so this needs no queue.
        """
        history = self._history
        since = history.unchanged_since(origin.path)
        top, *below = origin.path.split(b"/")
        oid = origin.commit
        commit = history.commit(oid)
        found = history.tree(commit.tree)[top]
        passed: list[bytes] = []
        while oid not in since:
            passed.append(oid)
            if len(passed) % _STEPS_OF_ONE == 0:
                history.spend()
            for parent in commit.parents:
                before = history.commit(parent)
                there = history.tree(before.tree).get(top)
                if there == found or (there and history.same_at(found, there, below)):
                    oid, commit, found = parent, before, there
                    break
            else:
                break
        oid = since.get(oid, oid)
        history.remember(origin.path, passed[::_REMEMBERED_OF], oid)
        return origin if oid == origin.commit else replace(origin, commit=oid)

    def step(self) -> bool:
        """Passes on the lines of one version of the file; False when all are done."""
        while self._queue:
            oid = self._queue[0][2]
            origins = self._suspects[oid]
            if not origins:
                heapq.heappop(self._queue)
                continue
            origin = next(iter(origins))
            spans = sorted(origins.pop(origin))
            if not origins:
                heapq.heappop(self._queue)
            self._history.spend()
            self._pass_on(origin, spans)
            return True
        return False

    def _pass_on(self, origin: _Origin, spans: list[_Span]) -> None:
        parents = self._history.commit(origin.commit).parents
        is_boundary = not parents
        sources = self._sources(origin, parents)
        for source in sources:
            if source.blob == origin.blob:
                self.suspect(source, spans)
                return
        if sources and self._is_small(origin):
            for source in sources:
                if not spans:
                    break
                if self._is_small(source):
                    changed = self._history.differences(source.blob, origin.blob, self._compared)
                    passed, spans = _divided(spans, changed)
                    self.suspect(source, passed)
        for final, own, count in spans:
            self.found.append(
                BlamedLines(origin.commit, final + 1, count, own + 1, origin.path, is_boundary)
            )

    def _compared(self, old: bytes, new: bytes) -> list[Hunk]:
        return hunks(self._history.blob(old), self._history.blob(new))

    def _sources(self, origin: _Origin, parents: tuple[bytes, ...]) -> list[_Origin]:
        """What the file was in the parents; one with the same content ends the search."""
        by_parent: dict[int, _Origin] = {}
        for find in (self._same_path, self._renamed):
            for number, parent in enumerate(parents):
                if number in by_parent:
                    continue
                source = find(origin, parent)
                if source is None:
                    continue
                if source.blob == origin.blob:
                    return [source]
                if all(other.blob != source.blob for other in by_parent.values()):
                    by_parent[number] = source
        return [by_parent[number] for number in sorted(by_parent)]

    def _same_path(self, origin: _Origin, parent: bytes) -> _Origin | None:
        history = self._history
        entry = history.entry(history.commit(parent).tree, origin.path.split(b"/"))
        if entry is None or _type_of(entry[0]) != _type_of(origin.mode):
            return None
        return _Origin(parent, origin.path, *entry)

    def _renamed(self, origin: _Origin, parent: bytes) -> _Origin | None:
        history = self._history
        changes = changed_paths(
            history, history.commit(parent).tree, history.commit(origin.commit).tree
        )
        if not any(change.status == "A" and change.path == origin.path for change in changes):
            return None
        options = RenameOptions(blob_bytes_max=self._bytes_max)
        side = find_source(history, changes, origin.path, options)
        if side is None:
            return None
        return _Origin(parent, side.path, b"%o" % side.mode, side.oid)

    def _is_small(self, origin: _Origin) -> bool:
        size = self._sizes.get(origin.blob)
        if size is None:
            size = self._sizes[origin.blob] = self._history.objects.object_size(origin.blob)
        return size <= self._bytes_max


def _type_of(mode: bytes) -> bytes:
    if mode in (GITLINK_MODE, SYMLINK_MODE):
        return mode
    return b"folder" if is_folder(mode) else b"file"


def _divided(spans: list[_Span], changed: list[Hunk]) -> tuple[list[_Span], list[_Span]]:
    """(spans that the parent has, with its line numbers, spans that stay)."""
    passed: list[_Span] = []
    kept: list[_Span] = []
    pieces = list(_pieces(changed))
    position = 0
    for final, own, count in spans:
        while position and pieces[position - 1][1] > own:
            position -= 1
        while count:
            _, end, shift, is_same = pieces[position]
            if own >= end:
                position += 1
                continue
            taken = min(count, end - own)
            if is_same:
                passed.append((final, own + shift, taken))
            else:
                kept.append((final, own, taken))
            final, own, count = final + taken, own + taken, count - taken
    return passed, kept


def _pieces(changed: list[Hunk]) -> Iterator[tuple[int, int, int, bool]]:
    """The new file in pieces: (first line, end, what leads to the old line, is it unchanged)."""
    position = shift = 0
    for old_start, old_lines, new_start, new_lines in changed:
        first = new_start - 1 if new_lines else new_start
        if first > position:
            yield position, first, shift, True
        if new_lines:
            yield first, first + new_lines, 0, False
        position = first + new_lines
        old_end = old_start - 1 + old_lines if old_lines else old_start
        shift = old_end - position
    yield position, 1 << 62, shift, True


def _merged(found: list[BlamedLines]) -> list[BlamedLines]:
    """In order of the lines, neighbours that were neighbours as one."""
    result: list[BlamedLines] = []
    for lines in sorted(found, key=lambda lines: lines.first_line):
        last = result[-1] if result else None
        if (
            last is not None
            and (last.commit, last.original_path) == (lines.commit, lines.original_path)
            and last.first_line + last.line_count == lines.first_line
            and last.original_first_line + last.line_count == lines.original_first_line
        ):
            result[-1] = BlamedLines(
                last.commit,
                last.first_line,
                last.line_count + lines.line_count,
                last.original_first_line,
                last.original_path,
                last.is_boundary,
            )
        else:
            result.append(lines)
    return result
