"""Merge, cherry-pick, revert and rebase give the trees that git gives; conflicts change nothing."""

from __future__ import annotations

import contextlib
import hashlib
import random
import uuid
from pathlib import Path
from typing import Any

import pytest
from support.git import WorkTree, git, refs_of
from support.grpc_api import Api, serving_api

from quorepo.storage.failpoints import ENVIRONMENT_VARIABLE
from quorepo.v1 import commit_pb2, common_pb2, errors_pb2, operation_pb2, repository_pb2

PB = operation_pb2
ADA = commit_pb2.Signature(name=b"Ada", email=b"ada@example.org")


def tree(work: WorkTree, name: str) -> str:
    return work.git("rev-parse", f"{name}^{{tree}}").stdout.strip()


def diverge(work: WorkTree, seed: int, *, conflict: bool = False) -> None:
    """Branches `one` and `two` with three commits each since a base, on lines of their own."""
    rng = random.Random(seed)
    lines = [f"line {n}\n" for n in range(60)]
    files = {f"d{n % 3}/f{n}": list(lines) for n in range(6)}
    work.commit("base", {name: "".join(text) for name, text in files.items()})
    for side, branch in enumerate(("one", "two")):
        work.git("switch", "--quiet", "--create", branch, "main")
        mine = {name: list(text) for name, text in files.items()}
        for number in range(3):
            name = rng.choice(sorted(mine))
            at = 0 if conflict else side * 40 + number * 7
            mine[name if not conflict else "d0/f0"][at] = f"{branch} {number}\n"
            changed = {n: "".join(text) for n, text in mine.items()}
            work.commit(f"{branch} {number}", {**changed, f"new-{branch}-{number}": branch})
    work.git("switch", "--quiet", "main")


def publish(api: Api, work: WorkTree, path: str) -> None:
    work.git("push", "--quiet", api.under_test.url(path), "main", "one", "two")


def fetched(api: Api, work: WorkTree, path: str, branch: str = "one") -> str:
    work.git("fetch", "--quiet", api.under_test.url(path), f"+refs/heads/{branch}:refs/r/{branch}")
    work.git("fsck", "--strict", "--no-dangling")
    return f"refs/r/{branch}"


def merge(path: str, **fields: Any) -> PB.MergeRequest:
    fields = {"branch": b"one", "source": b"two", "author": ADA, **fields}
    return PB.MergeRequest(repository=path, request_id=str(uuid.uuid4()), **fields)


@pytest.mark.parametrize("seed", [1, 2, 3])
def test_results_are_gits(api: Api, path: str, work: WorkTree, seed: int) -> None:
    diverge(work, seed)
    publish(api, work, path)
    check = PB.MergeCheckRequest(repository=path, target=b"one", source=b"two")
    clean = api.call(api.operations.MergeCheck, check)
    request = merge(path)
    answer = api.call(api.operations.Merge, request)
    assert api.call(api.operations.Merge, request) == answer
    assert answer.outcome == PB.MergeResponse.OUTCOME_COMMIT
    ref = fetched(api, work, path)
    work.git("switch", "--quiet", "--create", "wanted", "one")
    work.git("merge", "--quiet", "--no-edit", "two")
    assert tree(work, ref) == tree(work, "wanted") == clean.tree_oid
    assert work.git("log", "-1", "--format=%P", ref).stdout == (
        work.git("log", "-1", "--format=%P", "wanted").stdout
    )
    again = api.call(api.operations.Merge, merge(path))
    assert again.outcome == PB.MergeResponse.OUTCOME_UP_TO_DATE

    picked = api.call(api.operations.CherryPick, PB.CherryPickRequest(
        repository=path, branch=b"main", commit=b"two", committer=ADA, allow_empty=True
    ))  # fmt: skip
    work.git("switch", "--quiet", "--detach", "main")
    work.git("cherry-pick", "--allow-empty", "two")
    assert picked.tree_oid == tree(work, "HEAD")
    reverted = api.call(api.operations.Revert, PB.RevertRequest(
        repository=path, branch=b"two", commit=b"two~1", author=ADA, allow_empty=True
    ))  # fmt: skip
    work.git("switch", "--quiet", "--detach", "two")
    work.git("revert", "--no-edit", "HEAD~1")
    assert reverted.tree_oid == tree(work, "HEAD")


def test_rebase_is_gits(api: Api, path: str, work: WorkTree) -> None:
    diverge(work, 4)
    publish(api, work, path)
    request = PB.RebaseRequest(repository=path, branch=b"one", onto=b"two", committer=ADA)
    answer = api.call(api.operations.Rebase, request)
    assert answer.commits_replayed == 3
    ref = fetched(api, work, path)
    work.git("switch", "--quiet", "one")
    work.git("rebase", "--quiet", "two")
    for back in ("", "~1", "~2", "~3"):
        assert tree(work, ref + back) == tree(work, f"one{back}")
    assert api.call(api.operations.Rebase, request).commits_replayed == 0


def test_conflict_is_told_by_path_and_changes_nothing(api: Api, path: str, work: WorkTree) -> None:
    diverge(work, 5, conflict=True)
    publish(api, work, path)
    before = refs_of(api.under_test.url(path))
    for method, request in (
        (api.operations.Merge, merge(path)),
        (
            api.operations.Rebase,
            PB.RebaseRequest(repository=path, branch=b"one", onto=b"two", committer=ADA),
        ),
    ):
        error = api.refused(method, request)
        assert (error.code, error.info.reason) == ("FAILED_PRECONDITION", "MERGE_CONFLICT")
        detail = error.detail(errors_pb2.MergeConflict)
        assert [conflict.path for conflict in detail.conflicts] == [b"d0/f0"]
        assert detail.conflicts[0].our_oid != detail.conflicts[0].their_oid
    check = PB.MergeCheckRequest(repository=path, target=b"one", source=b"two")
    found = api.call(api.operations.MergeCheck, check)
    assert (found.clean, found.conflict_count) == (False, 1)
    assert refs_of(api.under_test.url(path)) == before
    assert not list((api.under_test.edge.config.node.data_dir / "tmp").glob("merge-*"))


def test_modes_of_a_merge(api: Api, path: str, work: WorkTree) -> None:
    diverge(work, 6)
    publish(api, work, path)
    mode = PB.MergeRequest
    only = merge(path, mode=mode.MODE_FAST_FORWARD_ONLY)
    assert api.refused(api.operations.Merge, only).code == "FAILED_PRECONDITION"
    forward = api.call(api.operations.Merge, merge(path, branch=b"main", source=b"one"))
    assert forward.outcome == PB.MergeResponse.OUTCOME_FAST_FORWARD
    squashed = api.call(api.operations.Merge, merge(path, mode=mode.MODE_SQUASH))
    ref = fetched(api, work, path)
    assert work.git("rev-parse", ref).stdout.strip() == squashed.commit_oid
    parents = work.git("log", "-1", "--format=%P", ref).stdout.split()
    assert parents == [work.git("rev-parse", "one").stdout.strip()]


def test_configuration_of_the_machine_is_not_read(
    tmp_path: Path, work: WorkTree, monkeypatch: pytest.MonkeyPatch
) -> None:
    """libgit2 would refuse to open any repository with this in a home directory."""
    for name in (".gitconfig", "git/config"):
        (tmp_path / "home" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "home" / name).write_text("[broken\n")
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "home"))
    with serving_api(tmp_path / "data") as own:
        diverge(work, 7)
        publish(own, work, "merges/configured")
        answer = own.call(own.operations.Merge, merge("merges/configured"))
        assert answer.outcome == PB.MergeResponse.OUTCOME_COMMIT


def test_folder_of_a_merge_whose_worker_was_killed_is_removed(
    tmp_path: Path, work: WorkTree, monkeypatch: pytest.MonkeyPatch
) -> None:
    left = tmp_path / "data" / "tmp" / "merge-of-a-node-that-was-killed"
    (left / "objects" / "12").mkdir(parents=True)
    (left / "objects" / "12" / "34").write_bytes(b"an object")
    monkeypatch.setenv(ENVIRONMENT_VARIABLE, "operations.merge.before_keep=kill")
    with serving_api(tmp_path / "data") as own:
        assert not left.exists(), "removed when the node starts"
        diverge(work, 8)
        publish(own, work, "merges/killed")
        before = refs_of(own.under_test.url("merges/killed"))
        error = own.refused(own.operations.Merge, merge("merges/killed"))
        assert error.code == "UNAVAILABLE"
        assert list((tmp_path / "data" / "tmp").glob("merge-*")) == []
        assert own.under_test.uploads() == []
        assert refs_of(own.under_test.url("merges/killed")) == before


def test_a_check_needs_no_place_among_the_pushes(api: Api, path: str, work: WorkTree) -> None:
    diverge(work, 9)
    publish(api, work, path)
    edge = api.under_test.edge
    with contextlib.ExitStack() as stack:
        for _ in range(edge.config.workers.queue_max):
            stack.enter_context(edge.push_slots.take())
        assert api.refused(api.operations.Merge, merge(path)).code == "UNAVAILABLE"
        check = PB.MergeCheckRequest(repository=path, target=b"one", source=b"two")
        assert api.call(api.operations.MergeCheck, check).clean


def test_sha256_repository_is_merged_too(api: Api, path: str, tmp_path: Path) -> None:
    api.call(api.repositories.CreateRepository, repository_pb2.CreateRepositoryRequest(
        path=path, default_branch=b"main", object_format=common_pb2.OBJECT_FORMAT_SHA256
    ))  # fmt: skip
    lines = [f"line {number}\n" for number in range(40)]

    def commit(branch: bytes, start: bytes, **files: str) -> str:
        request = PB.CommitFilesRequest
        parts = [request(header=request.Header(
            repository=path, branch=branch, start=start, message=branch, author=ADA
        ))]  # fmt: skip
        for name, text in files.items():
            parts.append(request(action=request.Action(
                kind=request.KIND_WRITE, path=name.encode(), content=text.encode()
            )))  # fmt: skip
        content = "".join(files.values()).encode()
        parts.append(request(sha256=hashlib.sha256(content).digest()))
        answer: PB.CommitFilesResponse = api.call(api.operations.CommitFiles, iter(parts))
        return answer.commit_oid

    commit(b"main", b"", file="".join(lines), other="same\n")
    commit(b"one", b"main", file="".join(["one\n", *lines[1:]]))
    commit(b"two", b"main", file="".join([*lines[:-1], "two\n"]), new="new\n")
    commit(b"wrong", b"main", file="".join(["wrong\n", *lines[1:]]))
    check = PB.MergeCheckRequest(repository=path, target=b"one", source=b"two")
    checked = api.call(api.operations.MergeCheck, check)
    assert checked.clean
    answer = api.call(api.operations.Merge, merge(path))
    assert len(answer.commit_oid) == 64
    picked = api.call(api.operations.CherryPick, PB.CherryPickRequest(
        repository=path, branch=b"wrong", commit=b"two", committer=ADA
    ))  # fmt: skip
    rebased = api.call(api.operations.Rebase, PB.RebaseRequest(
        repository=path, branch=b"two", onto=b"wrong~1", committer=ADA
    ))  # fmt: skip
    assert rebased.commits_replayed == 1
    error = api.refused(api.operations.Merge, merge(path, branch=b"one", source=b"wrong"))
    (conflict,) = error.detail(errors_pb2.MergeConflict).conflicts
    assert conflict.path == b"file"
    assert {len(conflict.our_oid), len(conflict.their_oid), len(conflict.ancestor_oid)} == {64}

    folder = tmp_path / "clone"
    git("clone", "--quiet", api.under_test.url(path), str(folder))
    git("fsck", "--strict", cwd=folder)

    def shown(name: str) -> str:
        return git("show", name, cwd=folder).stdout

    assert shown("origin/one:file") == "".join(["one\n", *lines[1:-1], "two\n"])
    assert shown(f"{picked.commit_oid}:file") == "".join(["wrong\n", *lines[1:-1], "two\n"])
    assert shown("origin/two:file") == shown(f"{picked.commit_oid}:file")
    assert shown("origin/one:other") == "same\n"
    tree = git("rev-parse", "origin/one^{tree}", cwd=folder).stdout.strip()
    assert tree == checked.tree_oid
