"""What a push may and may not do to refs, in git's usual words."""

from __future__ import annotations

import itertools
import threading

import pytest
from support.demo import Demo
from support.git import WorkTree, refs_of

pytestmark = pytest.mark.system

_names = itertools.count()


@pytest.fixture
def path() -> str:
    return f"rules/project-{next(_names)}"


def test_fast_forward_force_and_delete(cluster: Demo, work: WorkTree, path: str) -> None:
    url, other = cluster.url("n1", path), cluster.url("n3", path)
    work.commit("first")
    work.git("push", url, "main", "HEAD:refs/heads/topic")
    second = work.commit("second")
    work.git("push", url, "main")
    assert refs_of(other)["refs/heads/main"] == second
    work.git("reset", "--quiet", "--hard", "HEAD~1")
    rewritten = work.commit("rewritten")
    refused = work.git("push", url, "main", check=False)
    assert "non-fast-forward" in refused.stderr
    work.git("push", "--force", url, "main")
    assert refs_of(other)["refs/heads/main"] == rewritten
    work.git("push", url, "--delete", "topic")
    assert "refs/heads/topic" not in refs_of(other)


def test_several_refs_and_tags_in_one_push(cluster: Demo, work: WorkTree, path: str) -> None:
    oid = work.commit("first")
    work.git("tag", "light")
    work.git("tag", "--annotate", "--message=note", "heavy")
    work.git("push", cluster.url("n1", path), "main", "HEAD:refs/heads/b", "light", "heavy")
    refs = refs_of(cluster.url("n2", path))
    assert refs["refs/heads/main"] == refs["refs/heads/b"] == refs["refs/tags/light"] == oid
    assert refs["refs/tags/heavy^{}"] == oid
    assert refs["refs/tags/heavy"] != oid


def test_force_with_lease_protects_what_it_did_not_see(
    cluster: Demo, work: WorkTree, path: str
) -> None:
    url = cluster.url("n2", path)
    first = work.commit("first")
    work.git("push", url, "main")
    second = work.commit("second")
    work.git("push", url, "main")
    work.commit("third")
    stale = work.git("push", f"--force-with-lease=main:{first}", url, "main", check=False)
    assert "stale info" in stale.stderr
    assert refs_of(url)["refs/heads/main"] == second
    work.git("push", f"--force-with-lease=main:{second}", url, "main")


def test_atomic_push_is_all_or_nothing(cluster: Demo, work: WorkTree, path: str) -> None:
    url = cluster.url("n3", path)
    work.commit("first")
    work.git("push", url, "main", "HEAD:refs/heads/a/b")
    before = refs_of(url)
    work.commit("second")
    refused = work.git("push", "--atomic", url, "main", "HEAD:refs/heads/a", check=False)
    assert refused.returncode != 0
    assert refs_of(url) == before
    partial = work.git("push", url, "main", "HEAD:refs/heads/a", check=False)
    assert partial.returncode != 0
    assert refs_of(url)["refs/heads/main"] == work.head()
    assert "refs/heads/a" not in refs_of(url)


@pytest.mark.parametrize(("first", "second"), [("a", "a/b"), ("a/b", "a"), ("a/b/c", "a/b")])
def test_a_ref_and_a_folder_of_the_same_name_conflict(
    cluster: Demo, work: WorkTree, path: str, first: str, second: str
) -> None:
    url = cluster.url("n1", path)
    work.commit("first")
    work.git("push", url, f"HEAD:refs/heads/{first}")
    refused = work.git("push", url, f"HEAD:refs/heads/{second}", check=False)
    assert refused.returncode != 0
    assert "[remote rejected]" in refused.stderr
    assert set(refs_of(url)) == {"HEAD", f"refs/heads/{first}"}


def test_two_pushers_of_one_ref_are_not_both_acknowledged(
    cluster: Demo, work: WorkTree, path: str
) -> None:
    """The loser of a race hears of it, whichever nodes the two pushed to."""
    work.commit("base")
    work.git("push", cluster.url("n1", path), "main")
    base = work.head()
    for number in range(5):
        tips = []
        for side in ("left", "right"):
            work.git("checkout", "--quiet", "--detach", base)
            tips.append(work.commit(f"{side} {number}", {f"{side}.txt": f"{number}"}))
        outcomes: dict[str, int] = {}

        threads = [
            threading.Thread(
                target=_push_over, args=(work, cluster.url(node, path), oid, base, outcomes)
            )
            for node, oid in zip(("n2", "n3"), tips, strict=True)
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        winners = [oid for oid, code in outcomes.items() if code == 0]
        assert len(winners) == 1, outcomes
        assert refs_of(cluster.url("n1", path))["refs/heads/main"] == winners[0]
        base = winners[0]


def _push_over(work: WorkTree, url: str, oid: str, seen: str, outcomes: dict[str, int]) -> None:
    lease = f"--force-with-lease=refs/heads/main:{seen}"
    outcomes[oid] = work.git("push", lease, url, f"{oid}:refs/heads/main", check=False).returncode
