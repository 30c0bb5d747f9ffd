"""Which objects a fetch is sent: the closure of its wants without what the client has.

Owns the enumeration: commits by a walk, then the trees and blobs of the new commits without those
of the boundary, with filters. How the objects are written is `pack_builder.py`'s matter.
Iterative, and bounded by about 200 bytes per object selected.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Container, Iterable, Sequence

from quorepo.storage.git.commits import CommitReader, Roots, tree_entry_pattern
from quorepo.storage.git.fetch_request import FetchRequest, Negotiation
from quorepo.storage.git.filters import ObjectFilter
from quorepo.storage.git.pack_part import part_of_range
from quorepo.storage.git.shallow import client_shallow
from quorepo.storage.git.tree_changes import Selection, TreeChanges
from quorepo.storage.git.walk import CommitRange, commits_between
from quorepo.storage.packs import BLOB, COMMIT, TAG, TREE

__all__ = ["Selection", "select_objects"]

_TREE_MODES = (b"40000", b"040000")
_GITLINK_MODE = b"160000"

Count = Callable[[int], None]


def select_objects(
    reader: CommitReader,
    request: FetchRequest,
    negotiation: Negotiation,
    tags: Sequence[tuple[bytes, bytes]] = (),
    count: Count | None = None,
    *,
    by_parts: bool = False,
) -> Selection:
    """Enumerate. `tags` are (tag object, peeled) for `include-tag`; `count` hears of progress.
    `by_parts`: entries of a large pack may be chosen by their numbers.
    """
    wants = reader.roots(request.wants)
    haves = reader.roots(negotiation.common)
    grafts = {*client_shallow(reader, request), *negotiation.shallow}
    # The client names its shallow commits because it has them; of those that it shall have the
    # parents of now, the walk goes on at the parents (upload-pack.c, send_unshallow).
    deeper = [p for oid in negotiation.unshallow for p in reader.get(oid).parents]
    commits = commits_between(
        reader,
        [*wants.commits, *deeper],
        [*haves.commits, *negotiation.unshallow],
        grafts,
        count,
    )
    object_filter = request.filter or ObjectFilter()
    part = None
    is_named = wants.trees or wants.blobs or haves.trees or haves.blobs
    if by_parts and is_plain(object_filter) and not grafts and not deeper and not is_named:
        part = part_of_range(reader, commits, object_filter == ObjectFilter())
    if part is not None:
        commits = dataclasses.replace(commits, new=part[1])
    enumeration = _Enumeration(reader, object_filter, count)
    enumeration.take_commits(commits, wants, haves)
    enumeration.take_named(wants, haves)
    enumeration.take_trees(commits, wants, haves, grafts, compares=part is not None)
    if part is not None:
        enumeration.selection.take(part[0])
    if request.include_tag:
        enumeration.take_tags_of(tags)
    return enumeration.selection


def is_plain(object_filter: ObjectFilter) -> bool:
    """Whether it keeps everything, or everything but files."""
    return object_filter in (ObjectFilter(), ObjectFilter(blob_bytes_limit=0))


class _Enumeration:
    def __init__(
        self,
        reader: CommitReader,
        object_filter: ObjectFilter,
        count: Count | None,
    ) -> None:
        self._reader = reader
        self._filter = object_filter
        self._count = count or (lambda _: None)
        self._entries = tree_entry_pattern(reader.objects.object_format.hash_bytes)
        self.selection = Selection()

    def take_commits(self, commits: CommitRange, wants: Roots, haves: Roots) -> None:
        selection = self.selection
        new: Iterable[bytes] = commits.new
        if not self._filter.keeps_type(COMMIT):
            named = set(wants.commits)
            new = (oid for oid in commits.new if oid in named)
        selection.chosen.update(dict.fromkeys(new, 0))
        selection.commit_count = len(selection.chosen)
        selection.known.update(commits.had, haves.tags, haves.blobs)

    def take_named(self, wants: Roots, haves: Roots) -> None:
        """What a client names it gets: filters do not apply, nor what it might have already."""
        had_tags = set(haves.tags)
        for oid in (
            *(tag for tag in wants.tags if tag not in had_tags),
            *wants.trees,
            *wants.blobs,
        ):
            self.selection.chosen[oid] = 0
            self.selection.known.discard(oid)

    def take_trees(
        self,
        commits: CommitRange,
        wants: Roots,
        haves: Roots,
        grafts: Container[bytes],
        *,
        compares: bool,
    ) -> None:
        """The trees and blobs of the new commits and of the trees that the client named.

        `compares`: the trees of all parents are sent or had, also where there is no boundary.
        """
        reader = self._reader
        bound = self._filter
        if bound.tree_depth == 0 or not (bound.keeps_type(TREE) or bound.keeps_type(BLOB)):
            return
        keeps_blobs = bound == ObjectFilter()
        if is_plain(bound) and (commits.boundary or compares):
            if keeps_blobs:
                self._mark_known(haves.trees)
            self._walk((), wants.trees, keeps_blobs)
            changes = TreeChanges(reader, self.selection, commits, grafts, keeps_blobs)
            changes.take_all(self._count)
            return
        roots = [reader.get(oid).tree for oid in commits.new]
        if roots or wants.trees:
            self._mark_known([reader.get(oid).tree for oid in commits.boundary] + haves.trees)
        if is_plain(bound):
            self._walk(roots, wants.trees, keeps_blobs)
        else:
            self._walk_filtered(roots, wants.trees)

    def take_tags_of(self, tags: Sequence[tuple[bytes, bytes]]) -> None:
        """Annotated tags of what is sent, with the tags that they point to on the way."""
        selection = self.selection
        for tag, peeled in tags:
            oid = tag
            while peeled in selection and oid != peeled and oid not in selection.known:
                if self._reader.objects.object_type(oid) != TAG:
                    break
                if oid not in selection:
                    selection.chosen[oid] = 0
                oid = self._reader.tag_target(oid)

    def _mark_known(self, roots: Iterable[bytes]) -> None:
        """The client has these trees and all in them."""
        known = self.selection.known
        chosen = self.selection.chosen
        get = self._reader.objects.get
        findall = self._entries.findall
        pending = []
        for root in roots:
            if root not in known and root not in chosen:
                known.add(root)
                pending.append(root)
        while pending:
            for mode, oid in findall(get(pending.pop())[1]):
                # The commit of a submodule may lie in this repository; having the link is not
                # having the commit.
                if oid in known or oid in chosen or mode == _GITLINK_MODE:
                    continue
                known.add(oid)
                if mode in _TREE_MODES:
                    pending.append(oid)

    def _walk(self, roots: Iterable[bytes], named: Iterable[bytes], keeps_blobs: bool) -> None:
        """Every tree once, depth first, newest commit first."""
        chosen = self.selection.chosen
        known = self.selection.known
        get = self._reader.objects.get
        findall = self._entries.findall
        pending = list(named)
        for root in roots:
            if root not in chosen and root not in known:
                chosen[root] = 0
                pending.append(root)
            while pending:
                for mode, oid in findall(get(pending.pop())[1]):
                    if oid in chosen or oid in known:
                        continue
                    if mode in _TREE_MODES:
                        pending.append(oid)
                    elif not keeps_blobs or mode == _GITLINK_MODE:
                        continue
                    chosen[oid] = 0
            self._count(len(chosen))

    def _walk_filtered(self, roots: Iterable[bytes], named: Iterable[bytes]) -> None:
        """As `_walk`, with depths: a tree that shows up nearer to a root again is walked again."""
        chosen = self.selection.chosen
        bound = self._filter
        depth_max = bound.tree_depth
        keeps_trees = bound.keeps_type(TREE)
        keeps_blobs = bound.keeps_type(BLOB) and bound.blob_bytes_limit != 0
        depths: dict[bytes, int] = {}
        get = self._reader.objects.get
        for tree, depth in _with_depth(named, roots):
            pending = [(tree, depth)]
            while pending:
                tree, depth = pending.pop()
                if tree in self.selection.known or depths.get(tree, depth + 1) <= depth:
                    continue
                depths[tree] = depth
                if depth_max is not None and depth >= depth_max:
                    continue
                # The depth of a named tree is -1: it is chosen, and its entries count from 0.
                if keeps_trees and depth >= 0:
                    chosen.setdefault(tree, 0)
                for mode, oid in self._entries.findall(get(tree)[1]):
                    if mode in _TREE_MODES:
                        pending.append((oid, depth + 1))
                    elif keeps_blobs and mode != _GITLINK_MODE and self._keeps_blob(oid, depth + 1):
                        chosen[oid] = 0
            self._count(len(chosen))

    def _keeps_blob(self, oid: bytes, depth: int) -> bool:
        bound = self._filter
        if oid in self.selection.chosen or oid in self.selection.known:
            return False
        if bound.tree_depth is not None and depth >= bound.tree_depth:
            return False
        limit = bound.blob_bytes_limit
        return limit is None or self._reader.objects.object_size(oid) < limit


def _with_depth(
    named: Iterable[bytes],
    roots: Iterable[bytes],
) -> Iterable[tuple[bytes, int]]:
    for tree in named:
        yield tree, -1
    for tree in roots:
        yield tree, 0
