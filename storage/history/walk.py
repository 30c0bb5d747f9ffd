"""Which commits `git log` lists, and in which order.

Owns the order, the filters and git's simplification of history by paths. Without exclusions a
walk reads no further than it has to. Source: git's revision.c; where clocks lie git lists too much
of a range, this does not: the range comes from generations.
"""

from __future__ import annotations

import heapq
import itertools
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

from quorepo.storage.git.walk import commits_between
from quorepo.storage.history.source import History

__all__ = ["LogQuery", "commits_of", "count_commits", "count_diverging", "last_commit_for_path"]


@dataclass(frozen=True)
class LogQuery:
    """What is asked of a log. Ids are raw; tags are followed already.

    `paths`: components of each. `since` and `until` in seconds, of the committer.
    """

    tips: tuple[bytes, ...]
    exclusions: tuple[bytes, ...] = ()
    paths: tuple[bytes, ...] = ()
    author: bytes = b""
    message: bytes = b""
    ignore_case: bool = False
    since: int | None = None
    until: int | None = None
    first_parent: bool = False
    topological: bool = False
    parents_max: int = 0
    components: tuple[tuple[bytes, ...], ...] = field(init=False, default=())

    def __post_init__(self) -> None:
        split = tuple(tuple(path.split(b"/")) for path in self.paths)
        object.__setattr__(self, "components", split)

    def to_json(self) -> dict[str, Any]:
        """For a worker process."""
        return {
            "tips": [oid.hex() for oid in self.tips],
            "exclusions": [oid.hex() for oid in self.exclusions],
            "paths": [path.hex() for path in self.paths],
            "author": self.author.hex(),
            "message": self.message.hex(),
            "ignore_case": self.ignore_case,
            "since": self.since,
            "until": self.until,
            "first_parent": self.first_parent,
            "topological": self.topological,
            "parents_max": self.parents_max,
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> LogQuery:
        """The reverse of `to_json`."""
        lists = {
            key: tuple(map(bytes.fromhex, value[key])) for key in ("tips", "exclusions", "paths")
        }
        texts = {key: bytes.fromhex(value[key]) for key in ("author", "message")}
        return cls(**{**value, **lists, **texts})


def commits_of(history: History, query: LogQuery) -> Iterator[bytes]:
    """The ids of the commits, in order."""
    history.need_graph()
    walk = _Walk(history, query)
    order = walk.topological() if query.topological else walk.by_date()
    return (oid for oid in order if walk.shows(oid))


def count_commits(history: History, query: LogQuery, at_most: int = 0) -> int:
    """How many commits `commits_of` gives; counting stops at `at_most`, if that is not 0."""
    found = commits_of(history, query)
    return sum(1 for _ in (itertools.islice(found, at_most) if at_most else found))


def count_diverging(
    history: History, left: bytes, right: bytes, at_most: int = 0
) -> tuple[int, int]:
    """Commits that only the one reaches, and only the other; at most `at_most` of both together."""
    history.need_graph()
    if at_most:
        query = LogQuery((left,), (right,))
        lefts = count_commits(history, query, at_most)
        query = LogQuery((right,), (left,))
        rights = count_commits(history, query, at_most - lefts) if at_most > lefts else 0
        return lefts, rights

    def tick(_found: int) -> None:
        history.spend()

    return (
        len(commits_between(history.reader, (left,), (right,), tick=tick).new),
        len(commits_between(history.reader, (right,), (left,), tick=tick).new),
    )


def last_commit_for_path(history: History, tip: bytes, path: bytes) -> bytes | None:
    """The newest commit that changed what lies at a path; None when none ever had it."""
    return next(commits_of(history, LogQuery((tip,), paths=(path,))), None)


class _Walk:
    def __init__(self, history: History, query: LogQuery) -> None:
        self._history = history
        self._query = query
        self._wanted: Container[bytes] | None = None
        self._bottoms = frozenset(query.exclusions)
        if query.exclusions:

            def tick(_found: int) -> None:
                history.spend()

            between = commits_between(history.reader, query.tips, query.exclusions, tick=tick)
            self._wanted = set(between.new)
        # (whether the commit changed a path against those of its parents that count, parents that
        # the walk goes on to)
        self._seen: dict[bytes, tuple[bool, Sequence[bytes]]] = {}
        self._filters = bool(query.author or query.message)

    def by_date(self) -> Iterator[bytes]:
        """The latest committer date first; equal ones in the order in which they were reached."""
        commit = self._history.commit
        since = self._query.since
        numbers = itertools.count()
        queued: set[bytes] = set()
        queue: list[tuple[int, int, bytes]] = []
        pending: Sequence[bytes] = self._query.tips
        while True:
            for oid in pending:
                if oid not in queued and (self._wanted is None or oid in self._wanted):
                    queued.add(oid)
                    heapq.heappush(queue, (-commit(oid).date, next(numbers), oid))
            if not queue:
                return
            date, _, oid = heapq.heappop(queue)
            self._history.spend()
            if since is not None and -date < since:
                pending = ()
                continue
            pending = self._simplified(oid)[1]
            yield oid

    def topological(self) -> Iterator[bytes]:
        """Children first, and lines of history kept together."""
        listed = list(self.by_date())
        degrees = dict.fromkeys(listed, 1)
        for oid in listed:
            for parent in self._simplified(oid)[1]:
                if parent in degrees:
                    degrees[parent] += 1
        stack = [oid for oid in reversed(listed) if degrees[oid] == 1]
        while stack:
            oid = stack.pop()
            yield oid
            for parent in self._simplified(oid)[1]:
                if parent in degrees:
                    degrees[parent] -= 1
                    if degrees[parent] == 1:
                        stack.append(parent)

    def shows(self, oid: bytes) -> bool:
        """Whether a commit that the walk came by is listed."""
        query = self._query
        commit = self._history.commit(oid)
        if query.until is not None and commit.date > query.until:
            return False
        if query.parents_max and len(commit.parents) > query.parents_max:
            return False
        if query.paths and not self._simplified(oid)[0]:
            return False
        return not self._filters or self._matches(oid)

    def _matches(self, oid: bytes) -> bool:
        query = self._query
        self._history.spend()
        headers, _, message = self._history.objects.get(oid)[1].partition(b"\n\n")
        author = b""
        for line in headers.split(b"\n"):
            if line.startswith(b"author "):
                author = line[7 : line.rfind(b">") + 1]
                break
        for wanted, text in ((query.author, author), (query.message, message)):
            if query.ignore_case:
                wanted, text = wanted.lower(), text.lower()
            if wanted not in text:
                return False
        return True

    def _simplified(self, oid: bytes) -> tuple[bool, Sequence[bytes]]:
        """(whether a path changed, the parents that the walk goes on to)."""
        known = self._seen.get(oid)
        if known is None:
            commit = self._history.commit(oid)
            parents: Sequence[bytes] = commit.parents
            if self._query.first_parent:
                parents = parents[:1]
            known = (True, parents)
            if self._query.paths:
                known = self._compared(commit.tree, parents)
                self._seen[oid] = known
        return known

    def _compared(self, tree: bytes, parents: Sequence[bytes]) -> tuple[bool, Sequence[bytes]]:
        """git's try_to_simplify_commit(): the first parent that has the same explains all."""
        own = self._at_paths(tree)
        if not parents:
            return any(entry is not None for entry in own), ()
        relevant = relevant_change = irrelevant_change = False
        for parent in parents:
            is_relevant = self._is_relevant(parent)
            same = own == self._at_paths(self._history.commit(parent).tree)
            if same and is_relevant:
                return False, (parent,)
            relevant |= is_relevant
            if not same:
                relevant_change |= is_relevant
                irrelevant_change |= not is_relevant
        return (relevant_change if relevant else irrelevant_change), parents

    def _is_relevant(self, parent: bytes) -> bool:
        return self._wanted is None or parent in self._wanted or parent in self._bottoms

    def _at_paths(self, tree: bytes) -> list[tuple[bytes, bytes] | None]:
        return [self._history.entry(tree, list(path)) for path in self._query.components]
