"""Where a shallow client's history ends: depth, deepen-since, deepen-not, deepen-relative,
unshallow.

Owns the computation of the boundary, after git's shallow.c and upload-pack.c; the walk that sends
objects takes the result as grafts. Vocabulary: a *shallow* commit is one whose parents the client
does not have.
"""

from __future__ import annotations

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass

from quorepo.storage.errors import InvalidArgument
from quorepo.storage.git.commits import CommitReader, Roots
from quorepo.storage.git.fetch_request import INFINITE_DEPTH, FetchRequest
from quorepo.storage.git.walk import ancestors, commits_between
from quorepo.storage.packs import COMMIT

__all__ = ["ShallowPlan", "client_shallow", "plan_shallow"]


@dataclass(frozen=True)
class ShallowPlan:
    """The lines for the client: newly `shallow` commits, and those that are not any more."""

    shallow: tuple[bytes, ...] = ()
    unshallow: tuple[bytes, ...] = ()


def client_shallow(reader: CommitReader, request: FetchRequest) -> tuple[bytes, ...]:
    """The client's shallow commits that this repository holds; others cannot matter to a walk.

    Raises InvalidArgument when one of them is no commit.
    """
    known = []
    for oid in request.client_shallow:
        if oid not in reader.objects:
            continue
        if reader.objects.object_type(oid) != COMMIT:
            raise InvalidArgument(f"invalid shallow object {oid.hex()}")
        known.append(oid)
    return tuple(known)


def plan_shallow(
    reader: CommitReader,
    request: FetchRequest,
    wants: Roots,
    excluded: Sequence[bytes] = (),
) -> ShallowPlan:
    """Where the client's history shall end. `excluded` are the commits that `deepen-not` names.

    Raises InvalidArgument when deepen-since or deepen-not leave nothing to fetch.
    """
    if not request.deepens:
        return ShallowPlan()
    present = client_shallow(reader, request)
    if request.depth == INFINITE_DEPTH:
        return ShallowPlan(unshallow=present)
    if request.depth:
        heads: Iterable[bytes] = wants.commits
        depth = request.depth
        if request.deepen_relative:
            heads = _reachable(reader, wants.commits, present)
            depth += 1
        inside, edge = _by_depth(reader, heads, depth)
    else:
        inside, edge = _by_selection(reader, request, wants.commits, excluded)
    told = set(present)
    return ShallowPlan(
        tuple(oid for oid in edge if oid not in told),
        tuple(oid for oid in present if oid in inside),
    )


def _reachable(
    reader: CommitReader,
    wants: Sequence[bytes],
    shallow: Sequence[bytes],
) -> list[bytes]:
    """Those of the client's shallow commits that the wants reach: depth counts from there on."""
    missing = set(shallow)
    found: list[bytes] = []
    for oid in ancestors(reader, wants):
        if oid in missing:
            missing.remove(oid)
            found.append(oid)
        if not missing:
            break
    return found


def _by_depth(
    reader: CommitReader,
    heads: Iterable[bytes],
    depth: int,
) -> tuple[set[bytes], list[bytes]]:
    """Breadth first, so that a depth is the smallest: (closer than `depth`, at `depth`)."""
    level = list(dict.fromkeys(heads))
    seen = set(level)
    inside: set[bytes] = set()
    for _ in range(depth - 1):
        if not level:
            break
        inside.update(level)
        next_level: list[bytes] = []
        for oid in level:
            for parent in reader.get(oid).parents:
                if parent not in seen:
                    seen.add(parent)
                    next_level.append(parent)
        level = next_level
    return inside, level


def _by_selection(
    reader: CommitReader,
    request: FetchRequest,
    wants: Sequence[bytes],
    excluded: Collection[bytes],
) -> tuple[set[bytes], list[bytes]]:
    """Everything young enough and not behind an excluded ref; the edge has a parent outside."""
    since = request.deepen_since or 0
    too_old = _OlderThan(reader, since)
    found = commits_between(reader, wants, excluded, too_old).new
    selected = [oid for oid in found if oid not in too_old]
    if not selected:
        raise InvalidArgument("no commits selected for shallow requests")
    inside = set(selected)
    edge = [
        oid for oid in selected if any(parent not in inside for parent in reader.get(oid).parents)
    ]
    inside.difference_update(edge)
    return inside, edge


class _OlderThan:
    """As grafts: a commit older than that is outside, and hides what only it reaches."""

    def __init__(self, reader: CommitReader, since: int) -> None:
        self._reader = reader
        self._since = since

    def __contains__(self, oid: object) -> bool:
        return isinstance(oid, bytes) and self._reader.get(oid).date < self._since
