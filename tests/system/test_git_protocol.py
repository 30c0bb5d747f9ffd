"""The git protocol through real nodes: what a client asks of one holds on the others."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest
from support.demo import Demo
from support.git import WorkTree, clone, git, refs_of
from support.waiting import eventually

pytestmark = pytest.mark.system

_names = itertools.count()


@pytest.fixture
def path() -> str:
    return f"protocol/project-{next(_names)}"


def test_a_sha256_repository_is_created_pushed_to_and_cloned(
    cluster: Demo, work: WorkTree, path: str, tmp_path: Path
) -> None:
    cluster.cli("repo", "create", path, "--object-format", "sha256")
    tree = tmp_path / "sha256"
    git("init", "--quiet", "--object-format=sha256", "--initial-branch=main", str(tree))
    for number in range(3):
        (tree / "file.txt").write_text("line\n" * 500 + f"{number}\n")
        git("add", ".", cwd=tree)
        git("commit", "--quiet", f"--message=change {number}", cwd=tree)
        git("push", "--quiet", cluster.url("n1", path), "main", cwd=tree)
    oid = git("rev-parse", "HEAD", cwd=tree).stdout.strip()
    assert len(oid) == 64
    for version in "0", "2":
        target = clone(cluster.url("n2", path), tmp_path / version, f"protocol.version={version}")
        assert git("rev-parse", "HEAD", cwd=target).stdout.strip() == oid
    shallow = clone(cluster.url("n3", path), tmp_path / "shallow", "--depth=1")
    assert git("rev-list", "--count", "HEAD", cwd=shallow).stdout.strip() == "1"
    work.commit("in SHA-1")
    refused = work.git("push", cluster.url("n1", path), "main", check=False)
    assert "does not support this repository's hash algorithm" in refused.stderr


def test_push_options_are_in_the_log_of_a_majority(
    cluster: Demo, work: WorkTree, path: str
) -> None:
    work.commit("first")
    option = f"marker.of={path}"
    work.git("push", "--quiet", "-o", option, cluster.url("n1", path), "main")

    def has_it(node: str) -> bool:
        journal = cluster.nodes[node].data_dir / "journal"
        files = (file for file in journal.iterdir() if file.is_file())
        return any(option.encode() in file.read_bytes() for file in files)

    def holders() -> int:
        return sum(map(has_it, cluster.nodes))

    eventually(lambda: holders() >= 2, what="the option is in two journals")


def test_the_objects_of_a_deleted_branch_are_refused_on_every_node(
    cluster: Demo, work: WorkTree, path: str, tmp_path: Path
) -> None:
    work.commit("first")
    work.git("checkout", "--quiet", "-b", "secret")
    secret = work.commit("secret", {"secret.txt": "secret\n"})
    blob = work.git("rev-parse", "HEAD:secret.txt").stdout.strip()
    work.git("push", "--quiet", cluster.url("n1", path), "main", "secret")
    thief = tmp_path / "thief"
    git("init", "--quiet", str(thief))
    for oid in (secret, blob):
        git("fetch", "--quiet", cluster.url("n2", path), oid, cwd=thief)
    work.git("push", "--quiet", cluster.url("n1", path), "--delete", "secret")
    git("init", "--quiet", str(tmp_path / "late"))
    for node, version, oid in itertools.product(cluster.nodes, ("0", "2"), (secret, blob)):
        refused = git(
            "-c", f"protocol.version={version}", "fetch", cluster.url(node, path), oid,
            cwd=tmp_path / "late", check=False,
        )  # fmt: skip
        assert refused.returncode != 0
        # v0 clients see in the advertisement that nobody may ask for that.
        assert f"not our ref {oid}" in refused.stderr or "allow" in refused.stderr


def test_head_follows_the_first_push_and_shows_before_it(
    cluster: Demo, work: WorkTree, path: str, tmp_path: Path
) -> None:
    cluster.cli("repo", "create", path, "--default-branch", "refs/heads/trunk")
    git("clone", "--quiet", cluster.url("n2", path), str(tmp_path / "empty"))
    head = git("symbolic-ref", "HEAD", cwd=tmp_path / "empty").stdout.strip()
    assert head == "refs/heads/trunk"
    other = path + "-other"
    oid = work.commit("first")
    work.git("push", "--quiet", cluster.url("n1", other), "HEAD:refs/heads/devel")
    target = clone(cluster.url("n3", other), tmp_path / "clone")
    assert git("symbolic-ref", "HEAD", cwd=target).stdout.strip() == "refs/heads/devel"
    assert refs_of(cluster.url("n2", other))["HEAD"] == oid
