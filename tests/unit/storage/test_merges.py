"""Merges, cherry-picks, reverts and rebases on random histories: git's trees, or git's refusal.

For both object formats: libgit2 reads SHA-1 repositories itself, the others are translated for it.
What may differ stands in docs/api-writes.md and in `agrees`, and nowhere else.
"""

from __future__ import annotations

import contextlib
import random
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from pygit2.enums import MergeFlag
from support.git import ENVIRONMENT
from support.packing import git_bytes
from support.stored_histories import StoredHistory

from quorepo.storage import libgit2
from quorepo.storage.errors import Rejected
from quorepo.storage.operations import merging
from quorepo.storage.operations.objects import NewObjects
from quorepo.storage.packs import describe

PERSON = b"A <a@example.com> 1700000000 +0000".hex()
# libgit2 does not move new files along with a renamed folder.
GIT = ("git", "-c", "merge.directoryRenames=false", "-c", "advice.detachedHead=false")
COMMITS = 14
CONFLICT = "conflict"
Case = tuple[int, str]


class Merges:
    """One random history, in git and in a store of ours."""

    def __init__(self, folder: Path, seed: int, object_format: str) -> None:
        self.history = StoredHistory(folder, seed, COMMITS, object_format)
        self.chance = random.Random(seed)
        self.branches = self.history.lines("for-each-ref", "--format=%(refname)", "refs/heads")
        self._folder = folder

    def run(self, kind: str, **spec: Any) -> str:
        """The tree that ours makes, in hex, or CONFLICT."""
        store = self.history.store
        objects = NewObjects(store.packs)
        described = describe(store.layout, store.repository_id, store.digests, store.object_format)
        people = {"author": PERSON, "committer": PERSON, "message": b"m\n".hex()}
        place = self._folder / "tmp" / "merge"
        tip, answer = merging.KINDS[kind](objects, people | spec, described, place)
        assert not place.exists()
        return CONFLICT if "conflicts" in answer else objects.tree_of(tip).hex()

    def git(self, *arguments: str, cwd: Path | None = None) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [*GIT, *arguments],
            cwd=cwd or self.history.git_dir,
            env=ENVIRONMENT,
            capture_output=True,
            text=True,
            errors="replace",
            check=False,
        )

    def in_a_work_tree(
        self, start: str, *arguments: str, result: Sequence[str] = ("rev-parse", "HEAD^{tree}")
    ) -> str:
        """The tree after a command of git's at a commit, or CONFLICT."""
        place = self._folder / "work"
        self.history.git("worktree", "add", "--quiet", "--detach", str(place), start)
        done = self.git(*arguments, cwd=place)
        made = CONFLICT
        if done.returncode == 0:
            made = git_bytes(*result, cwd=place).decode().strip()
        self.history.git("worktree", "remove", "--force", str(place))
        return made

    def crosses(self, one: str, other: str) -> bool:
        return len(self.git("merge-base", "--all", one, other).stdout.split()) > 1

    def plain_commit(self) -> str:
        """Some commit with one parent; empty: there is none."""
        found = self.history.lines("rev-list", "--all", "--min-parents=1", "--max-parents=1")
        return self.chance.choice(sorted(found)) if found else ""


def agrees(ours: str, gits: str, *, crosses: bool, again: Callable[[], tuple[str, str]]) -> bool:
    """A tree is git's tree. Whether there is one or a conflict may differ in two cases: where
    histories cross, by what the merge of the merge bases leaves; and where files were renamed,
    since what is alike is measured in another way. `again`: both without looking for renames."""
    if ours == gits or (crosses and CONFLICT in (ours, gits)):
        return True
    plain_ours, plain_gits = again()
    return CONFLICT in (ours, gits) and plain_ours == plain_gits


@contextlib.contextmanager
def without_renames() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(libgit2, "RENAMES", MergeFlag(0))
        yield


def compare(
    merges: Merges, kind: str, gits: Callable[..., str], spec: dict[str, Any], *, crosses: bool
) -> None:
    ours, theirs = merges.run(kind, **spec), gits()

    def again() -> tuple[str, str]:
        with without_renames():
            return merges.run(kind, **spec), gits("-c", "merge.renames=false")

    assert agrees(ours, theirs, crosses=crosses, again=again), (spec, ours, theirs)


def check_merge(merges: Merges) -> None:
    for one in merges.branches:
        other = merges.chance.choice(merges.branches)
        ours, theirs = merges.history.oid(one).hex(), merges.history.oid(other).hex()

        def gits(*options: str, ours: str = ours, theirs: str = theirs) -> str:
            tree = ("merge-tree", "--write-tree", "--no-messages", ours, theirs)
            done = merges.git(*options, *tree)
            return done.stdout.split("\n")[0] if done.returncode == 0 else CONFLICT

        crosses = merges.crosses(ours, theirs)
        spec = {"ours": ours, "theirs": theirs, "mode": "commit"}
        if crosses and len(ours) == 64:
            with pytest.raises(Rejected, match="merge bases"):
                merges.run("merge", **spec)
        elif merges.git("merge-base", ours, theirs).returncode == 0:
            compare(merges, "merge", gits, spec, crosses=crosses)


def check_pick(merges: Merges) -> None:
    for branch in merges.branches:
        commit = merges.plain_commit()
        if not commit:
            return
        ours = merges.history.oid(branch).hex()
        spec = {"ours": ours, "commit": commit, "mainline": 0, "allow_empty": True}
        words = ("cherry-pick", "--allow-empty", "--keep-redundant-commits", commit)

        def gits(*options: str, ours: str = ours, words: Sequence[str] = words) -> str:
            return merges.in_a_work_tree(ours, *options, *words)

        compare(merges, "pick", gits, spec | {"revert": False}, crosses=False)


def check_revert(merges: Merges) -> None:
    """`git revert` leaves its result in the index, so that an empty one is no error."""
    for branch in merges.branches:
        commit = merges.plain_commit()
        if not commit:
            return
        ours = merges.history.oid(branch).hex()
        spec = {"ours": ours, "commit": commit, "mainline": 0, "allow_empty": True}

        def gits(*options: str, ours: str = ours, commit: str = commit) -> str:
            words = (*options, "revert", "--no-commit", commit)
            return merges.in_a_work_tree(ours, *words, result=("write-tree",))

        compare(merges, "pick", gits, spec | {"revert": True}, crosses=False)


def check_rebase(merges: Merges) -> None:
    for one in merges.branches:
        other = merges.chance.choice(merges.branches)
        ours, onto = merges.history.oid(one).hex(), merges.history.oid(other).hex()
        spec = {"ours": ours, "onto": onto, "upstream": onto, "commits_max": 1000}

        def gits(*options: str, ours: str = ours, onto: str = onto) -> str:
            return merges.in_a_work_tree(ours, *options, "rebase", "--quiet", "--merge", onto)

        compare(merges, "rebase", gits, spec, crosses=False)


CHECKS = (check_merge, check_pick, check_revert, check_rebase)
cases = st.tuples(st.integers(0, 100_000), st.sampled_from(["sha1", "sha256"]))
relaxed = [HealthCheck.function_scoped_fixture, HealthCheck.too_slow]


@pytest.mark.parametrize("check", CHECKS)
@given(case=cases)
@settings(max_examples=3, derandomize=True, deadline=None, suppress_health_check=relaxed)
def test_results_are_gits(
    check: Callable[[Merges], None], case: Case, tmp_path_factory: pytest.TempPathFactory
) -> None:
    check(Merges(tmp_path_factory.mktemp("merges") / "h", *case))


@pytest.mark.slow
@pytest.mark.parametrize("check", CHECKS)
@given(case=cases)
@settings(max_examples=100, deadline=None, suppress_health_check=relaxed)
def test_results_are_gits_on_many_histories(
    check: Callable[[Merges], None], case: Case, tmp_path_factory: pytest.TempPathFactory
) -> None:
    check(Merges(tmp_path_factory.mktemp("merges") / "h", *case))
