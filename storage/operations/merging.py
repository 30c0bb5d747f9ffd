"""Merges, cherry-picks, reverts and rebases by libgit2, in a private folder over the stored packs.

The folder is a repository of its own whose alternate is the stored one: nothing is written there,
and what libgit2 makes is taken from the folder as new objects. libgit2 knows SHA-1 only; trees of
another format are translated for it (translation.py).
"""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pygit2

from quorepo.storage import libgit2
from quorepo.storage.errors import InvalidArgument, LimitExceeded, Rejected
from quorepo.storage.failpoints import failpoint
from quorepo.storage.history.merge_base import merge_bases
from quorepo.storage.history.source import Caches, History
from quorepo.storage.history.walk import LogQuery, commits_of
from quorepo.storage.layout import GroupLayout
from quorepo.storage.objectformat import ObjectFormat
from quorepo.storage.operations.objects import NewObjects
from quorepo.storage.operations.translation import Translation
from quorepo.storage.packs import TREE, PackSet

__all__ = ["KINDS"]

_CONFLICTS_MAX = 1000
_Made = tuple[bytes, dict[str, Any]]


class _Conflicted(Exception):
    def __init__(self, answer: dict[str, Any]) -> None:
        super().__init__("conflict")
        self.answer = answer


class _Merger:
    def __init__(self, objects: NewObjects, packs: PackSet, folder: Path, stored: Path) -> None:
        self.objects = objects
        self._packs = packs
        self._folder = folder
        self.git = pygit2.init_repository(str(folder), bare=True)
        (folder / "objects" / "info").mkdir(exist_ok=True)
        (folder / "objects" / "info" / "alternates").write_text(f"{stored}\n")
        self.git = pygit2.Repository(str(folder))

    def bases(self, one: bytes, other: bytes) -> list[bytes]:
        return merge_bases(History(self._packs, Caches()), one, [other])

    def merged(self, ours: bytes, theirs: bytes) -> bytes:
        """The tree of a merge of two commits. Raises _Conflicted."""
        found = self.git.merge_commits(_oid(ours), _oid(theirs), flags=libgit2.RENAMES)
        return self._tree(found, theirs)

    def applied(self, ancestor: bytes, ours: bytes, theirs: bytes, commit: bytes) -> bytes:
        """The tree `ours` with what changed from tree `ancestor` to tree `theirs`."""
        sides = (_oid(ancestor), _oid(ours), _oid(theirs))
        return self._tree(self.git.merge_trees(*sides, flags=libgit2.RENAMES), commit)

    def _tree(self, index: Any, commit: bytes) -> bytes:
        if index.conflicts is not None:
            raise _conflicted([_conflict(*sides) for sides in index.conflicts], commit)
        tree: bytes = index.write_tree(self.git).raw
        return tree

    def parent_tree(self, commit: bytes, mainline: int) -> bytes:
        """The tree to compare a commit with. Raises InvalidArgument."""
        parents = self.objects.parents_of(commit)
        if len(parents) > 1 and not mainline:
            raise InvalidArgument(f"commit {commit.hex()} is a merge: mainline is needed")
        if mainline > len(parents) or (mainline and len(parents) == 1):
            raise InvalidArgument(f"commit {commit.hex()} has {len(parents)} parents")
        if not parents:
            return self.empty_tree()
        return self.objects.tree_of(parents[max(0, mainline - 1)])

    def empty_tree(self) -> bytes:
        """A tree without entries."""
        empty: bytes = self.git.TreeBuilder().write().raw
        return empty

    def commits_behind(self, tip: bytes, upstream: bytes) -> list[bytes]:
        """What `tip` has and `upstream` has not, parents before their children."""
        query = LogQuery((tip,), (upstream,), topological=True)
        return list(commits_of(History(self._packs, Caches()), query))[::-1]

    def keep(self) -> None:
        """Takes what libgit2 wrote as new objects."""
        failpoint("operations.merge.before_keep")
        for path in sorted((self._folder / "objects").glob("??/*")):
            type_num, content = self.git.odb.read(pygit2.Oid(hex=path.parent.name + path.name))
            self.objects.add(int(type_num), content)


class _TranslatingMerger(_Merger):
    """Of a repository that libgit2 can't read."""

    def __init__(self, objects: NewObjects, packs: PackSet, folder: Path, stored: Path) -> None:
        super().__init__(objects, packs, folder, stored)
        self._translation = Translation(objects, self.git)

    def merged(self, ours: bytes, theirs: bytes) -> bytes:
        bases = self.bases(ours, theirs)
        if len(bases) > 1:
            raise Rejected(
                f"the commits have {len(bases)} merge bases (their histories cross), and those of "
                "SHA-256 repositories are not merged by the server",
                next_step="merge in a clone and push",
            )
        tree_of = self.objects.tree_of
        base = tree_of(bases[0]) if bases else self.empty_tree()
        return self.applied(base, tree_of(ours), tree_of(theirs), theirs)

    def applied(self, ancestor: bytes, ours: bytes, theirs: bytes, commit: bytes) -> bytes:
        made = self._translation.merge(ancestor, ours, theirs)
        if isinstance(made, bytes):
            return made
        raise _conflicted(
            [
                (c.path.hex(), *("" if side is None else side.hex() for side in c.sides))
                for c in made
            ],
            commit,
        )

    def empty_tree(self) -> bytes:
        return self.objects.add(TREE, b"")

    def keep(self) -> None:
        """Translated back they are new objects already."""


def _conflicted(found: list[tuple[str, ...]], commit: bytes) -> _Conflicted:
    found.sort()
    return _Conflicted(
        {
            "conflicts": [list(each) for each in found[:_CONFLICTS_MAX]],
            "count": len(found),
            "commit": commit.hex(),
        }
    )


def _conflict(*sides: Any) -> tuple[str, ...]:
    path = next(side.path for side in sides if side is not None)
    return (
        path.encode("utf-8", "surrogateescape").hex(),
        *("" if side is None else str(side.id) for side in sides),
    )


def _oid(raw: bytes) -> pygit2.Oid:
    return pygit2.Oid(raw=raw)


@contextlib.contextmanager
def _merger(objects: NewObjects, repository: Mapping[str, Any], folder: Path) -> Iterator[_Merger]:
    layout = GroupLayout(Path(repository["data_dir"]), int(repository["group"]))
    libgit2.cut_off()
    folder.parent.mkdir(mode=0o700, exist_ok=True)
    folder.mkdir(mode=0o700)
    try:
        stored = layout.repository(repository["repository_id"]) / "objects"
        is_known = objects.object_format is ObjectFormat.SHA1
        kind = _Merger if is_known else _TranslatingMerger
        yield kind(objects, PackSet.from_description(dict(repository)), folder, stored)
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _raw(spec: Mapping[str, Any], key: str) -> bytes:
    return bytes.fromhex(spec[key])


def _merge(merger: _Merger, spec: Mapping[str, Any]) -> _Made:
    ours, theirs, mode = _raw(spec, "ours"), _raw(spec, "theirs"), spec["mode"]
    bases = merger.bases(ours, theirs)
    if theirs in bases:
        return ours, {"outcome": "up_to_date", "commit": ours.hex()}
    if ours in bases and mode in ("any", "ff"):
        return theirs, {"outcome": "fast_forward", "commit": theirs.hex()}
    if mode == "ff":
        raise Rejected("the branch can't be fast-forwarded", next_step="merge with a commit")
    if not bases:
        raise Rejected("refusing to merge unrelated histories")
    if not spec["author"]:
        raise InvalidArgument("author is required: a commit has to be made")
    tree = merger.merged(ours, theirs)
    merger.keep()
    parents = [ours] if mode == "squash" else [ours, theirs]
    commit = merger.objects.add_commit(
        tree, parents, _raw(spec, "author"), _raw(spec, "committer"), _raw(spec, "message")
    )
    return commit, {"outcome": "commit", "commit": commit.hex()}


def _check(merger: _Merger, spec: Mapping[str, Any]) -> _Made:
    ours, theirs = _raw(spec, "ours"), _raw(spec, "theirs")
    bases = merger.bases(ours, theirs)
    answer: dict[str, Any] = {
        "bases": [base.hex() for base in bases],
        "up_to_date": theirs in bases,
        "fast_forward": ours in bases,
    }
    answer["tree"] = merger.merged(ours, theirs).hex()
    merger.objects.drop()
    return ours, answer


def _pick(merger: _Merger, spec: Mapping[str, Any]) -> _Made:
    """A cherry-pick, or with `revert` the opposite."""
    ours, commit = _raw(spec, "ours"), _raw(spec, "commit")
    old_tree, tree = merger.objects.tree_of(ours), merger.objects.tree_of(commit)
    parent = merger.parent_tree(commit, spec["mainline"])
    before, after = (tree, parent) if spec["revert"] else (parent, tree)
    made = merger.applied(before, old_tree, after, commit)
    if made == old_tree and not spec["allow_empty"]:
        raise Rejected("the commit would change nothing", next_step="set allow_empty to want that")
    merger.keep()
    author, message = _author_and_message(merger.objects, commit)
    if spec["revert"]:
        subject = message.split(b"\n", 1)[0]
        message = b'Revert "%b"\n\nThis reverts commit %b.\n' % (subject, commit.hex().encode())
        author = _raw(spec, "author")
    new = merger.objects.add_commit(
        made, [ours], author, _raw(spec, "committer"), _raw(spec, "message") or message
    )
    return new, {"commit": new.hex(), "tree": made.hex()}


def _rebase(merger: _Merger, spec: Mapping[str, Any]) -> _Made:
    ours, onto, upstream = _raw(spec, "ours"), _raw(spec, "onto"), _raw(spec, "upstream")
    commits = merger.commits_behind(ours, upstream)
    if len(commits) > spec["commits_max"]:
        raise LimitExceeded(
            f"{len(commits)} commits to replay, api.rebase_commits_max is {spec['commits_max']}",
            limit="api.rebase_commits_max",
        )
    parents = {commit: len(merger.objects.parents_of(commit)) for commit in commits}
    linear = all(count == 1 for count in parents.values())
    if upstream == onto and linear and onto in merger.bases(ours, onto):
        return ours, {"commit": ours.hex(), "replayed": 0, "dropped": 0}
    tip, tree, replayed, dropped = onto, merger.objects.tree_of(onto), 0, 0
    for commit in commits:
        if parents[commit] > 1:
            continue
        before, after = merger.parent_tree(commit, 0), merger.objects.tree_of(commit)
        made = merger.applied(before, tree, after, commit)
        if made == tree and before != after:
            dropped += 1
            continue
        author, message = _author_and_message(merger.objects, commit)
        tip = merger.objects.add_commit(made, [tip], author, _raw(spec, "committer"), message)
        tree, replayed = made, replayed + 1
    merger.keep()
    return tip, {"commit": tip.hex(), "replayed": replayed, "dropped": dropped}


def _author_and_message(objects: NewObjects, commit: bytes) -> tuple[bytes, bytes]:
    header, _, message = objects.get(commit)[1].partition(b"\n\n")
    author = next(line for line in header.split(b"\n") if line.startswith(b"author "))
    return author.removeprefix(b"author "), message


def _run(
    function: Callable[[_Merger, Mapping[str, Any]], _Made],
) -> Callable[[NewObjects, Mapping[str, Any], Mapping[str, Any], Path], _Made]:
    def run(
        objects: NewObjects, spec: Mapping[str, Any], repository: Mapping[str, Any], folder: Path
    ) -> _Made:
        with _merger(objects, repository, folder) as merger:
            try:
                return function(merger, spec)
            except _Conflicted as conflict:
                objects.drop()
                return bytes.fromhex(spec["ours"]), conflict.answer

    return run


KINDS = {
    "merge": _run(_merge),
    "check": _run(_check),
    "pick": _run(_pick),
    "rebase": _run(_rebase),
}
assert TREE == 2  # libgit2's numbers of types are git's
