"""Object checks are strict, and relaxed message by message for one repository at a time."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator

import pytest
from pydantic import ValidationError
from support.edge import EdgeUnderTest, edge_config, running_edge
from support.git import ENVIRONMENT, WorkTree, refs_of

from quorepo.rpc.git_settings import GitSection


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EdgeUnderTest]:
    """Takes padded file modes in one repository."""
    relaxed = {"old/history.git": {"zeroPaddedFilemode": "ignore"}}
    config = edge_config(tmp_path_factory.mktemp("fsck") / "data", git={"fsck": relaxed})
    with running_edge(config) as server:
        yield server


def padded_commit(work: WorkTree) -> str:
    """A commit whose tree has a mode with a leading zero, as some old tools wrote."""
    work.commit("first")
    blob = work.git("rev-parse", "HEAD:file.txt").stdout.strip()
    tree = subprocess.run(
        ["git", "hash-object", "-w", "-t", "tree", "--literally", "--stdin"],
        cwd=work.path,
        env=ENVIRONMENT,
        input=b"0100644 file.txt\0" + bytes.fromhex(blob),
        capture_output=True,
        check=True,
    ).stdout.decode()
    return work.git("commit-tree", "-m", "padded", tree.strip()).stdout.strip()


def test_a_message_is_relaxed_for_the_named_repository_only(
    server: EdgeUnderTest, work: WorkTree
) -> None:
    oid = padded_commit(work)
    refused = work.git("push", server.url("new/history"), f"{oid}:refs/heads/main", check=False)
    assert refused.returncode != 0
    assert "zeroPaddedFilemode" in refused.stderr
    work.git("push", "--quiet", server.url("old/history"), f"{oid}:refs/heads/main")
    assert refs_of(server.url("old/history"))["refs/heads/main"] == oid


@pytest.mark.parametrize(
    ("overrides", "problem"),
    [
        ({"noSuchMessage": "ignore"}, "unknown fsck message id"),
        ({"hasDotdot": "maybe"}, "is not ignore, warn or error"),
        ({"badTree": "ignore"}, "cannot be relaxed"),
    ],
)
def test_a_policy_that_cannot_be_is_refused(overrides: dict[str, str], problem: str) -> None:
    with pytest.raises(ValidationError, match=problem):
        GitSection(fsck={"team/app": overrides})
