"""Walks over commits: what wants reach and haves do not, and whether a common commit is reached.

All walks are iterative and ordered by generation (`commit_graph.py`), highest first: no commit
comes before a descendant of it that the walk reaches, however clocks were set. `grafts` are
commits taken as parentless: where the client's history is, or shall be, cut off.
"""

from __future__ import annotations

import heapq
from collections.abc import Callable, Container, Iterable, Iterator, Sequence
from dataclasses import dataclass, field

from quorepo.storage.git.commits import CommitReader

__all__ = ["CommitRange", "ancestors", "commits_between", "wants_reach_common"]

_WANTED = 1
_HAD = 2

Tick = Callable[[int], None]


@dataclass
class CommitRange:
    """`new`: the commits to send, newest first. `boundary`: parents of those which the client has,
    with their trees. `had`: every commit seen that the client has.
    """

    new: list[bytes] = field(default_factory=list)
    boundary: list[bytes] = field(default_factory=list)
    had: set[bytes] = field(default_factory=set)


def commits_between(
    reader: CommitReader,
    wants: Iterable[bytes],
    haves: Iterable[bytes],
    grafts: Container[bytes] = frozenset(),
    tick: Tick | None = None,
) -> CommitRange:
    """The commits that `wants` reach and `haves` do not. `tick` gets the number found so far."""
    marks: dict[bytes, int] = {}
    queue: list[tuple[int, bytes]] = []
    wanted_queued = 0
    found: list[bytes] = []

    def mark(oid: bytes, flag: int) -> None:
        nonlocal wanted_queued
        before = marks.get(oid)
        if before is None:
            marks[oid] = flag
            heapq.heappush(queue, (-reader.get(oid).generation, oid))
            wanted_queued += flag == _WANTED
        elif before == _WANTED and flag == _HAD:
            # All its descendants come first, so it still is in the queue.
            marks[oid] = _HAD
            wanted_queued -= 1

    for oid in haves:
        mark(oid, _HAD)
    for oid in wants:
        mark(oid, _WANTED)
    while wanted_queued:
        _, oid = heapq.heappop(queue)
        flag = marks[oid]
        if flag == _WANTED:
            wanted_queued -= 1
            found.append(oid)
            if tick is not None:
                tick(len(found))
        for parent in reader.parents(oid, grafts):
            mark(parent, flag)
    had = {oid for oid, flag in marks.items() if flag == _HAD}
    boundary = dict.fromkeys(
        parent for oid in found for parent in reader.parents(oid, grafts) if parent in had
    )
    return CommitRange(found, list(boundary), had)


def ancestors(
    reader: CommitReader,
    tips: Iterable[bytes],
    grafts: Container[bytes] = frozenset(),
    seen: set[bytes] | None = None,
) -> Iterator[bytes]:
    """`tips` and all they reach, newest first. `seen` may hold commits not to be walked."""
    visited = set() if seen is None else seen
    queue: list[tuple[int, bytes]] = []
    pending: Sequence[bytes] = list(tips)
    while True:
        for oid in pending:
            if oid not in visited:
                visited.add(oid)
                heapq.heappush(queue, (-reader.get(oid).generation, oid))
        if not queue:
            return
        _, oid = heapq.heappop(queue)
        yield oid
        pending = reader.parents(oid, grafts)


def wants_reach_common(
    reader: CommitReader,
    wants: Sequence[bytes],
    common: Sequence[bytes],
    grafts: Container[bytes] = frozenset(),
    visits_max: int = 100_000,
) -> bool:
    """Whether every want reaches a common commit, so that more haves would gain nothing.

    git's `ok_to_give_up`: a parent of a common commit is common too, and nothing older than the
    oldest common commit is looked at. False when that takes more than `visits_max` visits: the
    client then goes on until it says `done` by itself.
    """
    if not common:
        return False
    reached = set(common)
    for oid in common:
        reached.update(reader.parents(oid, grafts))
    oldest = min(reader.get(oid).generation for oid in common)
    visits = 0
    for want in wants:
        child_of: dict[bytes, bytes] = {want: want}
        queue = [(-reader.get(want).generation, want)]
        while queue:
            generation, oid = heapq.heappop(queue)
            visits += 1
            if visits > visits_max:
                return False
            if oid in reached:
                _add_path(reached, child_of, oid)
                break
            if -generation < oldest:
                continue
            for parent in reader.parents(oid, grafts):
                if parent not in child_of:
                    child_of[parent] = oid
                    heapq.heappush(queue, (-reader.get(parent).generation, parent))
        else:
            return False
    return True


def _add_path(reached: set[bytes], child_of: dict[bytes, bytes], oid: bytes) -> None:
    """Every commit on the way from the want down to `oid` reaches a common commit as well."""
    while child_of[oid] != oid:
        oid = child_of[oid]
        reached.add(oid)
