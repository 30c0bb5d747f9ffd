"""Push to any node, read it back from any other, with an unmodified git client."""

from __future__ import annotations

import base64
import contextlib
import http.client
import itertools
import os
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from support.demo import Demo
from support.git import WorkTree, clone, git, refs_of

pytestmark = pytest.mark.system

_names = itertools.count()


@pytest.fixture
def path() -> str:
    """A repository path that no other test uses."""
    return f"team/project-{next(_names)}.git"


@pytest.mark.parametrize("node", ["n1", "n2", "n3"])
def test_push_to_any_node_is_seen_on_every_other_at_once(
    cluster: Demo, work: WorkTree, path: str, node: str
) -> None:
    for number in range(5):
        oid = work.commit(f"change {number}")
        work.git("push", "--quiet", cluster.url(node, path), "main")
        for other in cluster.nodes:
            assert refs_of(cluster.url(other, path))["refs/heads/main"] == oid


@pytest.mark.parametrize("version", ["0", "1", "2"])
def test_clone_from_every_node_gives_the_same_history(
    cluster: Demo, work: WorkTree, path: str, version: str, tmp_path: Path
) -> None:
    for number in range(3):
        oid = work.commit(f"change {number}", {f"dir{number}/file": f"{number}\n" * 50})
    work.git("tag", "--annotate", "--message=first", "v1")
    work.git("push", "--quiet", cluster.url("n1", path), "main", "v1")
    for node in cluster.nodes:
        target = clone(cluster.url(node, path), tmp_path / node, f"protocol.version={version}")
        assert git("rev-parse", "HEAD", cwd=target).stdout.strip() == oid
        assert git("describe", "--exact-match", cwd=target).stdout.strip() == "v1"
        ours = git("rev-list", "--objects", "--all", cwd=work.path).stdout
        theirs = git("rev-list", "--objects", "--all", cwd=target).stdout
        assert sorted(ours.splitlines()) == sorted(theirs.splitlines())


@pytest.mark.parametrize("version", ["0", "2"])
def test_fetch_brings_what_was_pushed_elsewhere(
    cluster: Demo, work: WorkTree, path: str, version: str, tmp_path: Path
) -> None:
    work.commit("first")
    work.git("push", "--quiet", cluster.url("n1", path), "main")
    target = clone(cluster.url("n2", path), tmp_path / "clone", f"protocol.version={version}")
    for number in range(3):
        oid = work.commit(f"more {number}", {"file.txt": "line\n" * number, f"new{number}": "x"})
        work.git("push", "--quiet", cluster.url("n3", path), "main")
        git("-c", f"protocol.version={version}", "pull", "--quiet", "--ff-only", cwd=target)
        assert git("rev-parse", "HEAD", cwd=target).stdout.strip() == oid
    git("fsck", "--full", "--strict", cwd=target)


def test_path_works_with_and_without_git_suffix(cluster: Demo, work: WorkTree, path: str) -> None:
    oid = work.commit("first")
    bare = path.removesuffix(".git")
    work.git("push", "--quiet", cluster.url("n1", bare), "main")
    assert refs_of(cluster.url("n2", path)) == refs_of(cluster.url("n2", bare))
    assert refs_of(cluster.url("n2", path))["HEAD"] == oid


@pytest.mark.parametrize(
    ("branches", "head"),
    [
        (["zeta", "main", "master"], "refs/heads/main"),
        (["zeta", "master", "alpha"], "refs/heads/master"),
        (["zeta"], "refs/heads/zeta"),
    ],
)
def test_head_follows_the_first_push(
    cluster: Demo, work: WorkTree, path: str, branches: list[str], head: str
) -> None:
    work.commit("first")
    url = cluster.url("n2", path)
    work.git("push", "--quiet", url, *(f"HEAD:refs/heads/{branch}" for branch in branches))
    shown = git("ls-remote", "--symref", url, "HEAD").stdout
    assert shown.startswith(f"ref: {head}\tHEAD\n")


def test_unknown_repository_is_refused_with_a_text_that_git_shows(
    cluster: Demo, tmp_path: Path
) -> None:
    process = git("clone", cluster.url("n1", "no/such.git"), str(tmp_path / "x"), check=False)
    assert process.returncode != 0
    assert "not found" in process.stderr
    assert "does not exist" in process.stderr


@pytest.mark.parametrize(
    "bad",
    ["../etc/passwd", "a/../b", "%2e%2e/x", "a/%2e%2e/b", "..%2fx", ".hidden/x", "x.lock", "a%00b"],
)
def test_path_outside_the_namespace_is_refused(cluster: Demo, bad: str) -> None:
    """Asked byte for byte, since git clients tidy up a URL before they send it."""
    before = cluster.cli("repo", "list", "-o", "json").stdout
    parts = urlsplit(cluster.nodes["n1"].http)
    connection = http.client.HTTPConnection(parts.netloc, timeout=20)
    with contextlib.closing(connection):
        _ask_all(connection, bad, cluster.token)
    assert cluster.cli("repo", "list", "-o", "json").stdout == before


def _ask_all(connection: http.client.HTTPConnection, bad: str, token: str) -> None:
    credential = base64.b64encode(f"admin:{token}".encode()).decode()
    for method, suffix in (
        ("GET", "info/refs?service=git-receive-pack"),
        ("GET", "info/refs?service=git-upload-pack"),
        ("POST", "git-receive-pack"),
    ):
        connection.request(
            method, f"/{bad}/{suffix}", headers={"Authorization": f"Basic {credential}"}
        )
        answer = connection.getresponse()
        answer.read()
        assert answer.status in (400, 404), (method, suffix, answer.status)


@pytest.mark.parametrize("bad", [".hidden/x", "x.lock", "deep/.git/x"])
def test_bad_path_is_explained_in_the_git_client(cluster: Demo, work: WorkTree, bad: str) -> None:
    work.commit("first")
    process = work.git("push", cluster.url("n1", bad), "main", check=False)
    assert process.returncode != 0
    assert "remote:" in process.stderr


def test_wrong_token_is_refused(cluster: Demo, work: WorkTree, path: str) -> None:
    work.commit("first")
    url = cluster.url("n1", path).replace(cluster.token, "wrong-token-wrong-token")
    process = work.git("push", url, "main", check=False)
    assert process.returncode != 0
    assert "Authentication failed" in process.stderr


def test_large_history_survives_the_round_trip(
    cluster: Demo, work: WorkTree, path: str, tmp_path: Path
) -> None:
    """Enough bytes for chunked bodies, the probe before a large push, and many side-band frames."""
    for number in range(20):
        content = b"".join(
            f"{number}:{line}:{line * 7919 % 104729}\n".encode() for line in range(8000)
        )
        work.commit(f"change {number}", {f"d{number % 5}/f{number}": content})
    work.commit("incompressible", {"random.bin": os.urandom(3 * 1024 * 1024)})
    work.git("push", "--quiet", cluster.url("n2", path), "main")
    target = clone(cluster.url("n3", path), tmp_path / "clone")
    assert git("rev-parse", "HEAD", cwd=target).stdout.strip() == work.head()
