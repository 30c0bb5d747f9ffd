"""Merges, cherry-picks, reverts and rebases on random histories: git's trees, or git's refusal.

For both object formats: libgit2 reads SHA-1 repositories itself, the others are translated for it.
What may differ stands in docs/api-writes.md and in `agrees`, and nowhere else.
"""

from __future__ import annotations

import random
import subprocess
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.git import ENVIRONMENT
from support.packing import git_bytes
from support.stored_histories import StoredHistory

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

    def renamed(self, *steps: tuple[str, str]) -> bool:
        """Is there anything like a renamed file between two commits of a step? A root's parent
        counts as one: nobody knows."""
        words = ("diff-tree", "-r", "-M30%", "--diff-filter=R", "--name-only")
        found = [self.git(*words, before, after) for before, after in steps]
        return any(done.returncode != 0 or done.stdout for done in found)

    def commits_for_branches(self) -> Iterator[tuple[str, str]]:
        """Each branch with some commit that has one parent."""
        plain = self.history.lines("rev-list", "--all", "--min-parents=1", "--max-parents=1")
        for branch in self.branches if plain else ():
            yield self.history.oid(branch).hex(), self.chance.choice(sorted(plain))


def agrees(ours: str, gits: str, *, may_differ: bool) -> bool:
    """A tree is git's tree. Whether there is one or a conflict may differ in two cases: where
    histories cross, by what the merge of the merge bases leaves; and where files were renamed,
    since what is alike is measured in another way."""
    return ours == gits or (may_differ and CONFLICT in (ours, gits))


def check_merge(merges: Merges) -> None:
    for one in merges.branches:
        other = merges.chance.choice(merges.branches)
        ours, theirs = merges.history.oid(one).hex(), merges.history.oid(other).hex()
        bases = merges.git("merge-base", "--all", ours, theirs).stdout.split()
        spec = {"ours": ours, "theirs": theirs, "mode": "commit"}
        if len(bases) > 1 and len(ours) == 64:
            with pytest.raises(Rejected, match="merge bases"):
                merges.run("merge", **spec)
        elif bases:
            made = merges.run("merge", **spec)
            done = merges.git("merge-tree", "--write-tree", "--no-messages", ours, theirs)
            gits = done.stdout.split("\n")[0] if done.returncode == 0 else CONFLICT
            may_differ = len(bases) > 1 or merges.renamed((bases[0], ours), (bases[0], theirs))
            assert agrees(made, gits, may_differ=may_differ), (ours, theirs, made, gits)


def check_pick(merges: Merges) -> None:
    for ours, commit in merges.commits_for_branches():
        spec = {"ours": ours, "commit": commit, "mainline": 0, "allow_empty": True}
        made = merges.run("pick", revert=False, **spec)
        words = ("cherry-pick", "--allow-empty", "--keep-redundant-commits", commit)
        gits = merges.in_a_work_tree(ours, *words)
        may_differ = merges.renamed((f"{commit}~1", commit), (f"{commit}~1", ours))
        assert agrees(made, gits, may_differ=may_differ), (spec, made, gits)


def check_revert(merges: Merges) -> None:
    """`git revert` leaves its result in the index, so that an empty one is no error."""
    for ours, commit in merges.commits_for_branches():
        spec = {"ours": ours, "commit": commit, "mainline": 0, "allow_empty": True}
        made = merges.run("pick", revert=True, **spec)
        words = ("revert", "--no-commit", commit)
        gits = merges.in_a_work_tree(ours, *words, result=("write-tree",))
        may_differ = merges.renamed((commit, f"{commit}~1"), (commit, ours))
        assert agrees(made, gits, may_differ=may_differ), (spec, made, gits)


def check_rebase(merges: Merges) -> None:
    for one in merges.branches:
        other = merges.chance.choice(merges.branches)
        ours, onto = merges.history.oid(one).hex(), merges.history.oid(other).hex()
        spec = {"ours": ours, "onto": onto, "upstream": onto, "commits_max": 1000}
        made = merges.run("rebase", **spec)
        # Ours finds out that a commit is there already by replaying it.
        words = ("rebase", "--quiet", "--merge", "--reapply-cherry-picks")
        gits = merges.in_a_work_tree(ours, *words, onto)
        replayed = merges.git("rev-list", "--no-merges", f"{onto}..{ours}").stdout.split()
        steps = [(f"{commit}~1", side) for commit in replayed for side in (commit, onto)]
        may_differ = merges.renamed(*steps)
        assert agrees(made, gits, may_differ=may_differ), (spec, made, gits)


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
