"""JGit's command line: Eclipse, Gerrit and most of what runs on a JVM."""

from __future__ import annotations

from pathlib import Path

from support.edge import EdgeUnderTest
from support.git import WorkTree, git, refs_of
from support.other_clients import Program


def oid(directory: Path, name: str = "HEAD") -> str:
    return git("rev-parse", name, cwd=directory).stdout.strip()


def test_it_clones_fetches_and_pushes(
    jgit: Program, server: EdgeUnderTest, work: WorkTree, path: str, tmp_path: Path
) -> None:
    target = tmp_path / "clone"
    jgit("clone", server.url(path), target)
    assert oid(target) == work.head()
    newer = work.commit("newer", {"text.txt": "other\n" * 900, "new/file": "new\n"})
    work.git("push", "--quiet", server.url(path), "main")
    jgit("fetch", "origin", cwd=target)
    assert oid(target, "origin/main") == newer
    assert oid(target, "v1^{}") == oid(work.path, "v1^{}")
    git("reset", "--quiet", "--hard", "origin/main", cwd=target)
    (target / "mine.txt").write_text("mine\n")
    git("add", "mine.txt", cwd=target)
    git("commit", "--quiet", "--message=mine", cwd=target)
    pushed = jgit("push", "origin", "HEAD:refs/heads/main", "HEAD:refs/heads/fresh", cwd=target)
    refs = refs_of(server.url(path))
    assert refs["refs/heads/main"] == refs["refs/heads/fresh"] == oid(target)
    assert "HEAD -> main" in pushed.stdout + pushed.stderr
    git("fsck", "--full", "--strict", cwd=target)


def test_a_shallow_clone_and_a_refused_push(
    jgit: Program, server: EdgeUnderTest, work: WorkTree, path: str, tmp_path: Path
) -> None:
    target = tmp_path / "clone"
    jgit("clone", "--depth", "2", server.url(path), target)
    assert git("rev-list", "--count", "HEAD", cwd=target).stdout.strip() == "2"
    git("fsck", "--full", "--strict", cwd=target)
    refused = jgit("push", "origin", ":refs/heads/main", cwd=target, check=False)
    words = "deletion of the current branch prohibited"
    assert f"[remote rejected] main ({words})" in refused.stdout + refused.stderr
