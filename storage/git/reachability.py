"""Whether a visible tip reaches an object: the guard in front of every fetch.

A want that is no tip of the client's view is looked for behind the tips. Nothing that only a
deleted or hidden ref reaches passes, and a refusal does not tell whether the object exists.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

from quorepo.storage.errors import NotFound
from quorepo.storage.git.commits import CommitReader, tree_entry_pattern
from quorepo.storage.git.walk import ancestors
from quorepo.storage.packs import COMMIT

__all__ = ["check_wants"]

_TREE_MODES = (b"40000", b"040000")


def check_wants(reader: CommitReader, wants: Sequence[bytes], tips: Sequence[bytes]) -> None:
    """Raises NotFound, in git's words, for a want that no tip reaches or that is missing."""
    visible = set(tips)
    missing = dict.fromkeys(want for want in wants if want not in visible)
    for want in wants:
        if want not in reader.objects:
            raise _not_ours(want)
    if not missing:
        return
    roots = reader.roots(tips)
    unproven = set(missing)
    unproven.difference_update(roots.tags, roots.commits, roots.trees, roots.blobs)
    if unproven:
        commits_missing = {o for o in unproven if reader.objects.object_type(o) == COMMIT}
        unproven -= commits_missing
        _discard_reached(commits_missing, ancestors(reader, roots.commits))
        unproven |= commits_missing
        # A commit that was not reached is final; only trees and blobs are worth a tree walk.
        if not commits_missing:
            _discard_in_trees(reader, unproven, ancestors(reader, roots.commits), roots.trees)
    for want in missing:
        if want in unproven:
            raise _not_ours(want)


def _discard_reached(unproven: set[bytes], reached: Iterable[bytes]) -> None:
    if not unproven:
        return
    for oid in reached:
        unproven.discard(oid)
        if not unproven:
            return


def _discard_in_trees(
    reader: CommitReader,
    unproven: set[bytes],
    commits: Iterable[bytes],
    trees: Sequence[bytes],
) -> None:
    """Tree by tree from the newest commit on: what a client checks out is usually found at once."""
    if not unproven:
        return
    entries = tree_entry_pattern(reader.objects.object_format.hash_bytes)
    seen: set[bytes] = set()
    for root in _chain(trees, (reader.get(oid).tree for oid in commits)):
        pending = [root]
        while pending:
            tree = pending.pop()
            if tree in seen:
                continue
            seen.add(tree)
            unproven.discard(tree)
            for mode, oid in entries.findall(reader.objects.get(tree)[1]):
                if mode in _TREE_MODES:
                    if oid not in seen:
                        pending.append(oid)
                elif oid in unproven and mode != b"160000":
                    unproven.remove(oid)
            if not unproven:
                return


def _chain(first: Iterable[bytes], second: Iterable[bytes]) -> Iterable[bytes]:
    yield from first
    yield from second


def _not_ours(oid: bytes) -> NotFound:
    return NotFound(f"upload-pack: not our ref {oid.hex()}")
