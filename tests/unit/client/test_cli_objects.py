"""`quorepo ref|file|log|diff` against a real edge over a core without Raft."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from support.cli import Run, runner

import quorepo
from quorepo.types import FileAction, Signature

AUTHOR = "Ada <ada@example.org>"
ADA = Signature("Ada", "ada@example.org")


@pytest.fixture
def run(endpoint: str, tmp_path: Path) -> Run:
    return runner(tmp_path, endpoint)


@pytest.fixture
def commits(client: quorepo.Client, path: str) -> list[str]:
    client.repositories.create(path, default_branch="main")
    return [
        client.operations.commit_files(
            path, "main", [FileAction("write", "a.txt", content)], message=f"{n}\n", author=ADA
        ).commit_oid
        for n, content in enumerate([b"one\n", b"two\n"])
    ]


def test_refs_are_moved_only_from_what_was_expected(
    run: Run, path: str, commits: list[str]
) -> None:
    first, second = commits
    name = "refs/heads/b"
    assert run("ref", "update", path, name, first).exit_code == 2
    assert run("ref", "update", path, name, first, "--create").stdout == f"{name} is {first}\n"
    missed = run("ref", "update", path, name, second, "--expect", second)
    assert missed.exit_code == 1
    assert "nothing was changed" in missed.stderr
    assert run("ref", "update", path, name, second, "--expect", first).exit_code == 0
    assert run("ref", "update", path, name, first, "--force").exit_code == 0
    shown = json.loads(run("ref", "get", path, name, "-o", "json").stdout)
    assert shown == {"name": name, "oid": first, "peeled_oid": None, "symbolic_target": None}
    listed = json.loads(run("ref", "list", path, "--prefix", "refs/heads/", "-o", "json").stdout)
    assert [ref["name"] for ref in listed] == [name, "refs/heads/main"]
    assert "refs/heads/main" in run("ref", "list", path).stdout
    assert run("ref", "delete", path, name).exit_code == 5
    assert run("ref", "delete", path, name, "--yes").stdout == f"deleted {name}\n"
    assert run("ref", "get", path, name).exit_code == 1


def test_a_file_is_put_and_got(run: Run, path: str, commits: list[str], tmp_path: Path) -> None:
    content = bytes(range(256))
    source = tmp_path / "source"
    source.write_bytes(content)
    put = run("file", "put", path, "dir/b.bin", str(source), "--author", AUTHOR, "-o", "json")
    assert put.exit_code == 0, put.output
    made = json.loads(put.stdout)
    assert made["branch"] == "main"
    assert run("file", "get", path, "dir/b.bin").stdout_bytes == content
    assert run("file", "get", path, "a.txt", "--revision", commits[0]).stdout == "one\n"
    stale = run("file", "put", path, "x", str(source), "--author", AUTHOR, "--expect", commits[0])
    assert stale.exit_code == 1
    assert run("file", "put", path, "x", str(source), "--author", "Ada").exit_code == 2
    assert run("file", "get", path, "nothing").exit_code == 1
    assert run("file", "get", path, "dir").exit_code == 1


def test_the_history_is_listed(run: Run, path: str, commits: list[str]) -> None:
    found = json.loads(run("log", path, "-o", "json").stdout)
    assert [(commit["oid"], commit["message"]) for commit in found] == [
        (commits[1], "1\n"),
        (commits[0], "0\n"),
    ]
    assert found[0]["author"]["name"] == "Ada"
    assert len(json.loads(run("log", path, "-n", "1", "-o", "json").stdout)) == 1
    assert commits[0][:12] in run("log", path).stdout


def test_a_diff_is_what_git_prints(run: Run, path: str, commits: list[str]) -> None:
    patch = run("diff", path, *commits).stdout
    assert patch.startswith("diff --git a/a.txt b/a.txt\n")
    assert patch.endswith("-one\n+two\n")
    (change,) = json.loads(run("diff", path, *commits, "-o", "json").stdout)
    assert (change["status"], change["additions"], change["deletions"]) == ("modified", 1, 1)
    assert "modified" in run("diff", path, *commits, "--name-status").stdout


def test_nobody_there_is_code_3(run: Run) -> None:
    result = run("log", "a", "--timeout", "0.3", QUOREPO_ENDPOINT="127.0.0.1:1")
    assert result.exit_code == 3
    assert "nothing was changed" in result.stderr


def test_a_repository_is_renamed_forked_deleted_and_brought_back(
    run: Run, path: str, commits: list[str]
) -> None:
    renamed = run("repo", "rename", path, f"{path}-2")
    assert renamed.stdout == f"renamed {path} to {path}-2\n"
    assert run("repo", "info", path).exit_code == 1
    forked = json.loads(run("repo", "fork", f"{path}-2", f"{path}-fork", "-o", "json").stdout)
    assert forked["forked_from"] == f"{path}-2"
    heads = [run("ref", "get", p, "HEAD").stdout for p in (f"{path}-2", f"{path}-fork")]
    assert heads[0] == heads[1]

    deleted = run("repo", "delete", f"{path}-2", "--yes", "-o", "json")
    document = json.loads(deleted.stdout)
    assert f"quorepo repo undelete {document['repository_id']}" in deleted.stderr
    listed = json.loads(run("repo", "deleted", "-o", "json").stdout)
    (mine,) = [row for row in listed if row["path"] == f"{path}-2"]
    assert mine["repository_id"] == document["repository_id"]
    assert mine["purge_time"] == document["purge_time"]
    assert f"{path}-2" in run("repo", "deleted").stdout
    assert run("repo", "undelete", f"{path}-2", "--to", path).stdout == f"{path} is back\n"
    assert run("ref", "get", path, "HEAD").stdout == heads[0]
    missing = run("repo", "undelete", f"{path}-2")
    assert missing.exit_code == 1
    assert "nothing was changed" in missing.stderr
    assert "quorepo repo deleted" in missing.stderr


def test_which_of_two_deleted_repositories_is_meant_is_asked(run: Run, path: str) -> None:
    ids = []
    for _ in range(2):
        assert run("repo", "create", path).exit_code == 0
        deleted = run("repo", "delete", path, "--yes", "-o", "json")
        ids.append(json.loads(deleted.stdout)["repository_id"])
    refused = run("repo", "undelete", path)
    assert refused.exit_code == 1
    assert all(repository_id in refused.stderr for repository_id in ids)
    assert run("repo", "undelete", ids[0]).stdout == f"{path} is back\n"
