"""go-git, which Flux is built on: it speaks v0 and never offers thin-pack."""

from __future__ import annotations

from pathlib import Path

from support.edge import EdgeUnderTest
from support.git import WorkTree, git, refs_of
from support.other_clients import Program


def oid(directory: Path, name: str = "HEAD") -> str:
    return git("rev-parse", name, cwd=directory).stdout.strip()


def url(server: EdgeUnderTest, path: str) -> str:
    """Without the credential: go-git is given it apart."""
    return f"http://{server.address}/{path}"


def test_it_lists_clones_and_fetches(
    gogit: Program, server: EdgeUnderTest, work: WorkTree, path: str, tmp_path: Path
) -> None:
    listed = gogit("list", url(server, path)).stdout
    assert f"{work.head()} refs/heads/main" in listed
    target = tmp_path / "clone"
    gogit("clone", url(server, path), target)
    git("fsck", "--full", "--strict", cwd=target)
    assert oid(target) == work.head()
    assert oid(target, "v1^{}") == oid(work.path, "main~5")
    newer = work.commit("newer", {"text.txt": "other\n" * 900, "new/file": "new\n"})
    work.git("push", "--quiet", server.url(path), "main")
    gogit("fetch", target)
    assert oid(target, "origin/main") == newer
    gogit("fetch", target)
    git("fsck", "--full", "--strict", cwd=target)


def test_a_shallow_clone_has_what_was_asked_for(
    gogit: Program, server: EdgeUnderTest, work: WorkTree, path: str, tmp_path: Path
) -> None:
    target = tmp_path / "clone"
    gogit("clone", url(server, path), target, "1")
    assert git("rev-list", "--count", "HEAD", cwd=target).stdout.strip() == "1"
    git("fsck", "--full", "--strict", cwd=target)


def test_it_pushes_commits_tags_and_deletions(
    gogit: Program, server: EdgeUnderTest, work: WorkTree, path: str, tmp_path: Path
) -> None:
    target = tmp_path / "clone"
    gogit("clone", url(server, path), target)
    made = gogit("commit", target, "from-go.txt", "content\n").stdout.strip()
    git("tag", "light", cwd=target)
    branch = git("symbolic-ref", "HEAD", cwd=target).stdout.strip()
    gogit("push", target, f"{branch}:refs/heads/main", "refs/tags/light:refs/tags/light")
    refs = refs_of(server.url(path))
    assert (refs["refs/heads/main"], refs["refs/tags/light"]) == (made, made)
    gogit("push", target, ":refs/heads/topic")
    assert "refs/heads/topic" not in refs_of(server.url(path))


def test_what_the_server_refuses_is_an_error_of_the_client(
    gogit: Program, server: EdgeUnderTest, work: WorkTree, path: str, tmp_path: Path
) -> None:
    target = tmp_path / "clone"
    gogit("clone", url(server, path), target)
    refused = gogit("push", target, ":refs/heads/main", check=False)
    assert refused.returncode != 0
    assert "deletion of the current branch prohibited" in refused.stderr
    missing = gogit("clone", url(server, "no/such"), tmp_path / "none", check=False)
    assert "not found" in missing.stderr


def test_a_wrong_token_is_an_authentication_error(
    gogit: Program, server: EdgeUnderTest, work: WorkTree, path: str, tmp_path: Path
) -> None:
    refused = gogit("list", url(server, path), check=False, token="wrong")
    assert refused.returncode != 0
    assert "authentication" in refused.stderr
