"""`quorepo repo import|imports|cancel-import|bundle|unbundle|archive` against a real edge."""

from __future__ import annotations

import hashlib
import json
import tarfile
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.cli import Run, runner
from support.git import WorkTree, git, refs_of
from support.grpc_api import Api, serving_api
from support.http_backend import Backend, backend, bare_clone

SECRET = "Basic c2VjcmV0OnNlY3JldA=="


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """A node that may import from this machine."""
    folder = tmp_path_factory.mktemp("node") / "data"
    with serving_api(folder, imports={"allow_http": True, "allow_private": True}) as api:
        yield api


@pytest.fixture
def run(endpoint: str, tmp_path: Path) -> Run:
    return runner(tmp_path / "home", endpoint)


@pytest.fixture
def work(tmp_path: Path) -> WorkTree:
    work = WorkTree(tmp_path / "work")
    work.commit("first", {"a.txt": "a\n", "dir/b.txt": "b\n"})
    work.git("tag", "v1")
    return work


@pytest.fixture
def source(work: WorkTree, tmp_path: Path) -> Iterator[Backend]:
    bare_clone(work.path, tmp_path / "served" / "app.git")
    with backend(tmp_path / "served") as served:
        yield served


def test_bundles_and_archives(
    api: Api, run: Run, work: WorkTree, path: str, tmp_path: Path
) -> None:
    file = tmp_path / "all.bundle"
    work.git("bundle", "create", "--quiet", str(file), "--all")
    assert run("repo", "unbundle", path, str(file)).stdout == f"created {path}\n"
    assert refs_of(api.under_test.url(path)) == refs_of(str(work.path))
    again = run("repo", "unbundle", path, str(file))
    assert again.exit_code == 1
    assert "exists already" in again.stderr

    out = tmp_path / "out.bundle"
    told = json.loads(run("repo", "bundle", path, str(out), "-o", "json").stdout)
    assert told["sha256"] == hashlib.sha256(out.read_bytes()).hexdigest()
    assert told["bytes"] == out.stat().st_size
    git("bundle", "verify", str(out), cwd=work.path)
    assert run("repo", "bundle", path, "-").stdout_bytes == out.read_bytes()
    missing = tmp_path / "missing.bundle"
    assert run("repo", "bundle", path, str(missing), "--ref", "refs/heads/x").exit_code == 1
    assert sorted(entry.name for entry in tmp_path.glob("*.bundle")) == ["all.bundle", "out.bundle"]
    assert list(tmp_path.glob(".*.part")) == []

    tar = tmp_path / "app.tar.gz"
    assert run("repo", "archive", path, str(tar), "--prefix", "app/").exit_code == 0
    with tarfile.open(tar) as opened:
        assert {name for name in opened.getnames() if "." in name} == {
            "app/a.txt",
            "app/dir/b.txt",
        }


def test_an_import_is_waited_for_or_not(
    api: Api, run: Run, source: Backend, path: str, tmp_path: Path
) -> None:
    source.authorization = SECRET
    refused = run("repo", "import", path, source.url("app.git"))
    assert refused.exit_code == 1
    assert "asks for one" in refused.stderr
    assert "nothing was made" in refused.stderr
    header = tmp_path / "header"
    header.write_text(f"{SECRET}\n")
    arguments = ("repo", "import", path, source.url("app.git"), "--authorization-file", str(header))
    done = run(*arguments)
    assert done.stdout == f"imported {path}\n", done.output
    assert SECRET not in done.output
    assert refs_of(api.under_test.url(path)).keys() >= {"refs/heads/main", "refs/tags/v1"}
    source.authorization = ""
    begun = json.loads(
        run("repo", "import", f"{path}-2", source.url("app.git"), "--no-wait", "-o", "json").stdout
    )
    assert begun["name"].startswith("n1/")
    listed = json.loads(run("repo", "imports", "-o", "json").stdout)
    assert begun["name"] in [one["name"] for one in listed]
    assert path in run("repo", "imports").stdout
    ended = json.loads(run("repo", "cancel-import", begun["name"], "-o", "json").stdout)
    assert ended["state"] in ("done", "cancelled")
    unusable = run("repo", "import", path, "ssh://somewhere/app.git")
    assert unusable.exit_code == 1
    assert "nothing was" in unusable.stderr
    assert run("repo", "import", path, "https://h/a", "--authorization-file", "none").exit_code == 2
