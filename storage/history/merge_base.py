"""Ancestry: whether one commit leads to another, what two have in common, which tips have one.

Owns three walks in order of generation, highest first, so no commit is looked at before all its
descendants, and nothing has to be looked at twice. Source of what a merge base is:
git-merge-base(1); git's own walk goes by date and cleans up afterwards, the results are the same.
"""

from __future__ import annotations

import heapq
from collections.abc import Iterable, Sequence

from quorepo.storage.history.source import History

__all__ = ["containing", "is_ancestor", "merge_bases"]

_ONE, _REST, _STALE = 1, 2, 4


def is_ancestor(history: History, ancestor: bytes, descendant: bytes) -> bool:
    """Whether `descendant` reaches `ancestor`; a commit reaches itself."""
    if ancestor == descendant:
        return True
    history.need_graph()
    commit = history.commit
    oldest = commit(ancestor).generation
    seen = {descendant}
    queue = [(-commit(descendant).generation, descendant)]
    while queue:
        _, oid = heapq.heappop(queue)
        history.spend()
        for parent in commit(oid).parents:
            if parent == ancestor:
                return True
            if parent not in seen:
                seen.add(parent)
                generation = commit(parent).generation
                if generation > oldest:
                    heapq.heappush(queue, (-generation, parent))
    return False


def merge_bases(history: History, one: bytes, rest: Sequence[bytes]) -> list[bytes]:
    """The best common ancestors of `one` and any of `rest` (as if those were merged), the newest
    first: as `git merge-base --all ONE REST...`.
    """
    history.need_graph()
    commit = history.commit
    flags: dict[bytes, int] = {}
    queue: list[tuple[int, bytes]] = []
    fresh = 0  # commits in the queue that are not stale

    def mark(oid: bytes, flag: int) -> None:
        nonlocal fresh
        before = flags.get(oid, 0)
        after = before | flag
        flags[oid] = after
        if not before:
            heapq.heappush(queue, (-commit(oid).generation, oid))
            fresh += not after & _STALE
        elif after & _STALE and not before & _STALE:
            fresh -= 1

    for oid, flag in ((one, _ONE), *((other, _REST) for other in rest)):
        mark(oid, flag)
    found: list[bytes] = []
    while fresh:
        _, oid = heapq.heappop(queue)
        history.spend()
        flag = flags[oid]
        if not flag & _STALE:
            fresh -= 1
            if flag == _ONE | _REST:
                found.append(oid)
        if flag & _ONE and flag & _REST:
            flag |= _STALE  # what it reaches is common, too, and no better
        for parent in commit(oid).parents:
            mark(parent, flag)
    return sorted(found, key=lambda oid: -commit(oid).date)


def containing(history: History, target: bytes, tips: Iterable[bytes]) -> set[bytes]:
    """Those of the commits `tips` that reach `target`."""
    history.need_graph()
    commit = history.commit
    oldest = commit(target).generation
    reached: dict[bytes, int] = {}
    pending = list(dict.fromkeys(tips))
    wanted = set(pending)
    while pending:
        oid = pending.pop()
        if oid in reached:
            continue
        history.spend()
        reached[oid] = commit(oid).generation
        if reached[oid] > oldest:
            pending += commit(oid).parents
    have = {target}
    for oid in sorted(reached, key=reached.__getitem__):
        if reached[oid] > oldest and not have.isdisjoint(commit(oid).parents):
            have.add(oid)
    return have & wanted
