"""HEAD, settings, renames, forks and deletions taken back, through the API and seen by real git."""

from __future__ import annotations

import uuid
from typing import Any

import pytest
from support.git import WorkTree, git, refs_of
from support.grpc_api import Api

from quorepo.v1 import ref_pb2, repository_pb2

PB = repository_pb2


def lines_of(api: Api, path: str, version: int) -> str:
    url = api.under_test.url(path)
    return git("-c", f"protocol.version={version}", "ls-remote", "--symref", url).stdout


def set_head(api: Api, path: str, **fields: Any) -> ref_pb2.SetHeadResponse:
    answer: ref_pb2.SetHeadResponse = api.call(
        api.refs.SetHead, ref_pb2.SetHeadRequest(repository=path, **fields)
    )
    return answer


@pytest.mark.parametrize("version", [0, 1, 2])
def test_detached_head_is_what_git_clones(
    api: Api, pushed: str, work: WorkTree, version: int, tmp_path: Any
) -> None:
    first = work.git("rev-parse", "HEAD~1").stdout.strip()
    set_head(api, pushed, oid=first, expected_branch=b"refs/heads/main")
    shown = lines_of(api, pushed, version)
    assert f"{first}\tHEAD" in shown
    assert "ref:" not in shown
    clone = tmp_path / "clone"
    git("-c", f"protocol.version={version}", "clone", "-q", api.under_test.url(pushed), str(clone))
    assert git("-C", str(clone), "rev-parse", "HEAD").stdout.strip() == first
    set_head(api, pushed, branch=b"main", expected_oid=first)
    assert "ref: refs/heads/main\tHEAD" in lines_of(api, pushed, version)


def test_head_keeps_what_no_ref_has(api: Api, pushed: str, work: WorkTree) -> None:
    """A commit that only a detached HEAD leads to can be fetched."""
    head = work.head()
    set_head(api, pushed, oid=head)
    api.call(api.refs.DeleteRefs, ref_pb2.DeleteRefsRequest(
        repository=pushed, names=[b"refs/heads/main", b"refs/tags/v1", b"refs/tags/none"]
    ))  # fmt: skip
    assert refs_of(api.under_test.url(pushed)) in ({}, {"HEAD": head})
    assert f"{head}\tHEAD" in lines_of(api, pushed, 2)


def test_head_that_is_not_as_expected_stays(api: Api, pushed: str, work: WorkTree) -> None:
    request = ref_pb2.SetHeadRequest(
        repository=pushed, branch=b"other", expected_branch=b"refs/heads/third"
    )
    error = api.refused(api.refs.SetHead, request)
    assert (error.code, error.info.reason) == ("ABORTED", "HEAD_MISMATCH")
    request = ref_pb2.SetHeadRequest(repository=pushed, oid="1" * 40)
    assert api.refused(api.refs.SetHead, request).code == "NOT_FOUND"
    tree = work.git("rev-parse", "HEAD^{tree}").stdout.strip()
    request = ref_pb2.SetHeadRequest(repository=pushed, oid=tree)
    assert api.refused(api.refs.SetHead, request).code == "INVALID_ARGUMENT"
    assert api.refused(api.refs.SetHead, ref_pb2.SetHeadRequest(repository=pushed)).code == (
        "INVALID_ARGUMENT"
    )


def test_default_branch_may_be_unborn(api: Api, pushed: str) -> None:
    request = ref_pb2.SetDefaultBranchRequest(repository=pushed, branch=b"next")
    assert api.call(api.refs.SetDefaultBranch, request).head == b"refs/heads/next"
    found = api.call(api.repositories.GetRepository, PB.GetRepositoryRequest(path=pushed))
    assert found.repository.head == b"refs/heads/next"
    bad = ref_pb2.SetDefaultBranchRequest(repository=pushed, branch=b"refs/tags/v1")
    assert api.refused(api.refs.SetDefaultBranch, bad).code == "INVALID_ARGUMENT"


def test_read_only_repository_refuses_a_push_by_name(api: Api, pushed: str, work: WorkTree) -> None:
    update = PB.UpdateRepositoryRequest(path=pushed, description="frozen", read_only=True)
    api.call(api.repositories.UpdateRepository, update)
    found = api.call(api.repositories.GetRepository, PB.GetRepositoryRequest(path=pushed))
    assert (found.repository.description, found.repository.read_only) == ("frozen", True)
    work.commit("third")
    push = work.git("push", api.under_test.url(pushed), "main", check=False)
    assert push.returncode != 0
    assert "read-only" in push.stderr
    request = ref_pb2.DeleteRefsRequest(repository=pushed, names=[b"refs/heads/main"])
    error = api.refused(api.refs.DeleteRefs, request)
    assert (error.code, error.info.reason) == ("FAILED_PRECONDITION", "REPOSITORY_READ_ONLY")
    api.call(
        api.repositories.UpdateRepository,
        PB.UpdateRepositoryRequest(path=pushed, read_only=False),
    )
    work.git("push", "--quiet", api.under_test.url(pushed), "main")


def test_rename_is_seen_at_once_and_only_once(api: Api, pushed: str, work: WorkTree) -> None:
    request = PB.RenameRepositoryRequest(
        request_id=str(uuid.uuid4()), path=pushed, new_path=f"{pushed}-renamed"
    )
    answer = api.call(api.repositories.RenameRepository, request)
    assert api.call(api.repositories.RenameRepository, request) == answer
    assert refs_of(api.under_test.url(answer.path))["refs/heads/main"] == work.head()
    gone = api.refused(api.repositories.GetRepository, PB.GetRepositoryRequest(path=pushed))
    assert gone.code == "NOT_FOUND"
    api.call(api.repositories.CreateRepository, PB.CreateRepositoryRequest(path=pushed))
    back = PB.RenameRepositoryRequest(path=answer.path, new_path=pushed)
    assert api.refused(api.repositories.RenameRepository, back).code == "ALREADY_EXISTS"


def test_fork_shares_its_packs_until_it_diverges(api: Api, pushed: str, work: WorkTree) -> None:
    request = PB.ForkRepositoryRequest(
        request_id=str(uuid.uuid4()), path=pushed, new_path=f"{pushed}-fork"
    )
    fork = api.call(api.repositories.ForkRepository, request)
    assert api.call(api.repositories.ForkRepository, request) == fork
    url = api.under_test.url(fork.path)
    assert refs_of(url) == refs_of(api.under_test.url(pushed))
    layout = api.under_test.edge.reads.layout(1)
    folder = layout.repository(fork.repository_id) / "objects" / "pack"
    packs = sorted(folder.glob("*.pack"))
    assert packs
    assert all(pack.stat().st_nlink == 2 for pack in packs)
    work.commit("only in the fork", {"fork": "fork\n"})
    work.git("push", "--quiet", url, "main")
    assert refs_of(url)["refs/heads/main"] == work.head()
    assert refs_of(api.under_test.url(pushed))["refs/heads/main"] != work.head()
    api.call(api.repositories.OptimizeRepository, PB.OptimizeRepositoryRequest(path=pushed))
    api.call(api.repositories.DeleteRepository, PB.DeleteRepositoryRequest(path=pushed))
    git("clone", "--quiet", "--mirror", url, str(work.path.parent / "clone"))
    taken = PB.ForkRepositoryRequest(path=fork.path, new_path=fork.path)
    assert api.refused(api.repositories.ForkRepository, taken).code == "ALREADY_EXISTS"


def test_deleted_repository_is_listed_and_comes_back(api: Api, pushed: str, work: WorkTree) -> None:
    deleted = api.call(api.repositories.DeleteRepository, PB.DeleteRepositoryRequest(path=pushed))
    assert deleted.purge_time.seconds > 0
    listed = api.call(api.repositories.ListDeletedRepositories, PB.ListDeletedRepositoriesRequest())
    assert deleted.repository_id in [row.repository_id for row in listed.repositories]
    api.call(api.repositories.CreateRepository, PB.CreateRepositoryRequest(path=pushed))
    back = PB.UndeleteRepositoryRequest(repository_id=deleted.repository_id)
    taken = api.refused(api.repositories.UndeleteRepository, back)
    assert taken.code == "ALREADY_EXISTS"
    back = PB.UndeleteRepositoryRequest(
        request_id=str(uuid.uuid4()), repository_id=deleted.repository_id, path=f"{pushed}-back"
    )
    answer = api.call(api.repositories.UndeleteRepository, back)
    assert api.call(api.repositories.UndeleteRepository, back) == answer
    assert answer.revision.counter == deleted.revision.counter + 1
    url = api.under_test.url(answer.path)
    assert refs_of(url)["refs/heads/main"] == work.head()
    git("clone", "--quiet", url, str(work.path.parent / "clone"))
    again = PB.UndeleteRepositoryRequest(repository_id=deleted.repository_id)
    assert api.refused(api.repositories.UndeleteRepository, again).code in (
        "ALREADY_EXISTS", "FAILED_PRECONDITION",
    )  # fmt: skip
