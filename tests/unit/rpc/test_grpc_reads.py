"""The reads of the API over the wire: git's answers, pages that keep to what they began with, and
precise errors for what is wrong or too much.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import subprocess
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from support.edge import TOKEN
from support.git import ENVIRONMENT, WorkTree
from support.grpc_api import Api, Refused, serving_api
from support.waiting import eventually

from quorepo.v1 import (
    blob_pb2,
    commit_pb2,
    common_pb2,
    diff_pb2,
    errors_pb2,
    ref_pb2,
    repository_pb2,
)

PATH = "team/reads"
POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "a" * 64 + "\nsize 12345\n"


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> WorkTree:
    work = WorkTree(tmp_path_factory.mktemp("reads") / "work")
    work.commit("first", {"README": "hello\n", "src/a.txt": "a\nb\nc\n", "src/b.txt": "b\n" * 9})
    work.git("tag", "--annotate", "--message=release", "v1")
    work.git("branch", "side")
    work.commit("second", {"src/sub/deep.txt": "deep\n", "big.lfs": POINTER, "src/a.txt": "a\nc\n"})
    work.git("mv", "src/b.txt", "moved.txt")
    work.commit("third", {"README": "hello\nworld\n", "bin": "\0\1", "large": "x" * 300_000})
    work.git("checkout", "--quiet", "side")
    work.commit("on the side", {"side": "side\n"})
    work.git("checkout", "--quiet", "main")
    return work


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory, work: WorkTree) -> Iterator[Api]:
    with serving_api(tmp_path_factory.mktemp("node") / "data") as api:
        url = api.under_test.url(PATH)
        work.git("push", "--quiet", "--follow-tags", url, "main", "side")
        yield api


@pytest.fixture(scope="module")
def tight(tmp_path_factory: pytest.TempPathFactory, work: WorkTree) -> Iterator[Api]:
    """A node whose limits are as small as they can be."""
    limits = {
        "page_size_max": 2,
        "revisions_max": 2,
        "batch_objects_max": 2,
        "batch_bytes_max": 1 << 20,
        "diff_files_max": 2,
        "diff_bytes_max": 300,
        "diff_file_bytes_max": 200_000,
        "blame_lines_max": 1,
        "blame_file_bytes_max": 1000,
        "search_bytes_max": 8,
        "search_matches_max": 1,
        "archive_bytes_max": 1000,
        "bundle_bytes_max": 100,
        "fsck_problems_max": 1,
        # A development environment may be older than this dependency.
        "channelz": importlib.util.find_spec("grpc_channelz") is not None,
    }
    with serving_api(tmp_path_factory.mktemp("tight") / "data", api=limits) as api:
        work.git("push", "--quiet", api.under_test.url(PATH), "main", "side", "v1")
        yield api


def lines(work: WorkTree, *arguments: str) -> list[str]:
    return work.git(*arguments).stdout.splitlines()


def pages(api: Api, method: Any, request: Any, field: str) -> list[Any]:
    found = []
    while True:
        response = api.call(method, request)
        assert response.HasField("revision")
        found += list(getattr(response, field))
        request.page_token = response.next_page_token
        if not request.page_token:
            return found


def test_refs_are_listed_by_what_they_point_to_contain_and_when(api: Api, work: WorkTree) -> None:
    def names(**fields: Any) -> list[str]:
        request = ref_pb2.ListRefsRequest(repository=PATH, page_size=1, **fields)
        return [ref.name.decode() for ref in pages(api, api.refs.ListRefs, request, "refs")]

    assert names() == ["refs/heads/main", "refs/heads/side", "refs/tags/v1"]
    assert names(descending=True) == ["refs/tags/v1", "refs/heads/side", "refs/heads/main"]
    assert names(pointing_at=b"v1^{}") == ["refs/tags/v1"]
    assert names(containing=b"main~1") == ["refs/heads/main"]
    by_date = lines(work, "for-each-ref", "--sort=committerdate", "--format=%(refname)")
    order = ref_pb2.REF_ORDER_COMMITTER_DATE
    assert names(order=order, prefix=b"refs/heads/") == [n for n in by_date if "/heads/" in n]
    request = ref_pb2.ListRefsContainingRequest(repository=PATH, commit=b"v1", page_size=1)
    found = pages(api, api.refs.ListRefsContaining, request, "refs")
    assert [ref.name.decode() for ref in found] == names()


def test_existence_default_branch_and_merge_base(api: Api, work: WorkTree) -> None:
    exists = ref_pb2.CheckRefExistsRequest(repository=PATH, name=b"refs/heads/main")
    assert api.call(api.refs.CheckRefExists, exists).exists
    exists.name = b"refs/heads/\xff"
    assert not api.call(api.refs.CheckRefExists, exists).exists
    branch = api.call(api.refs.GetDefaultBranch, ref_pb2.GetDefaultBranchRequest(repository=PATH))
    assert (branch.name, branch.oid) == (b"refs/heads/main", work.head())
    request = ref_pb2.FindMergeBaseRequest(repository=PATH, commits=[b"main", b"side"])
    assert list(api.call(api.refs.FindMergeBase, request).oids) == lines(
        work, "merge-base", "--all", "main", "side"
    )


def test_logs_counts_and_ancestry(api: Api, work: WorkTree) -> None:
    request = commit_pb2.ListCommitsRequest(
        repository=PATH, revisions=[b"main", b"side"], page_size=1
    )
    found = pages(api, api.commits.ListCommits, request, "commits")
    assert [c.oid for c in found] == lines(work, "log", "--format=%H", "main", "side")
    request = commit_pb2.ListCommitsRequest(
        repository=PATH, exclusions=[b"side"], paths=[b"src"], page_size=10
    )
    found = pages(api, api.commits.ListCommits, request, "commits")
    assert [c.oid for c in found] == lines(work, "log", "--format=%H", "side..main", "--", "src")
    count = commit_pb2.CountCommitsRequest(repository=PATH, revisions=[b"main"])
    assert api.call(api.commits.CountCommits, count).count == 3
    apart = commit_pb2.CountDivergingCommitsRequest(repository=PATH, left=b"main", right=b"side")
    response = api.call(api.commits.CountDivergingCommits, apart)
    assert (response.left_count, response.right_count) == (2, 1)
    for ancestor, descendant, expected in (("v1", "main", True), ("side", "main", False)):
        ask = commit_pb2.IsAncestorRequest(
            repository=PATH, ancestor=ancestor.encode(), descendant=descendant.encode()
        )
        assert api.call(api.commits.IsAncestor, ask).is_ancestor is expected
    last = commit_pb2.GetLastCommitForPathRequest(repository=PATH, commit=b"main", path=b"src")
    assert (
        api.call(api.commits.GetLastCommitForPath, last).commit.oid
        == lines(work, "log", "-1", "--format=%H", "main", "--", "src")[0]
    )
    last.path = b"never/there"
    assert not api.call(api.commits.GetLastCommitForPath, last).HasField("commit")


def test_pages_of_a_log_keep_to_their_commits_when_the_branch_moves(
    api: Api, work: WorkTree
) -> None:
    path = "team/moving"
    work.git("push", "--quiet", api.under_test.url(path), "main~1:refs/heads/main")
    request = commit_pb2.ListCommitsRequest(repository=path, revisions=[b"main"], page_size=1)
    first = api.call(api.commits.ListCommits, request)
    work.git("push", "--quiet", api.under_test.url(path), "main")
    request.page_token = first.next_page_token
    second = api.call(api.commits.ListCommits, request)
    assert second.commits[0].oid == lines(work, "rev-parse", "main~2")[0]
    assert not second.next_page_token


def test_trees_recursive_and_with_last_commits(api: Api, work: WorkTree) -> None:
    request = commit_pb2.ListTreeRequest(
        repository=PATH, commit=b"main", recursive=True, with_last_commit=True, page_size=2
    )
    entries = pages(api, api.commits.ListTree, request, "entries")
    assert [e.path.decode() for e in entries] == lines(work, "ls-tree", "-r", "--name-only", "main")
    for entry in entries:
        expected = lines(work, "log", "-1", "--format=%H", "main", "--", entry.path.decode())
        assert [entry.last_commit.oid] == expected
    request = commit_pb2.ListTreeRequest(
        repository=PATH, commit=b"main", path=b"src", recursive=True, with_folders=True, page_size=1
    )
    entries = pages(api, api.commits.ListTree, request, "entries")
    assert [e.path for e in entries] == [b"src/a.txt", b"src/sub", b"src/sub/deep.txt"]
    files = commit_pb2.ListFilesRequest(repository=PATH, commit=b"main", page_size=3)
    assert [path.decode() for path in pages(api, api.commits.ListFiles, files, "paths")] == lines(
        work, "ls-tree", "-r", "--name-only", "main"
    )


def test_blobs_are_listed_with_sizes_and_pointers(api: Api, work: WorkTree) -> None:
    request = blob_pb2.ListBlobsRequest(repository=PATH, commit=b"main", page_size=2)
    blobs = pages(api, api.blobs.ListBlobs, request, "blobs")
    told = [f"{blob.size}\t{blob.path.decode()}" for blob in blobs]
    assert told == lines(work, "ls-tree", "-r", "--format=%(objectsize)%x09%(path)", "main")
    request = blob_pb2.ListBlobsRequest(repository=PATH, commit=b"main", lfs_pointers_only=True)
    (pointer,) = pages(api, api.blobs.ListBlobs, request, "blobs")
    assert pointer.path == b"big.lfs"
    assert (pointer.lfs_pointer.oid_sha256, pointer.lfs_pointer.size) == ("a" * 64, 12345)


def test_many_blobs_come_in_one_stream(api: Api, work: WorkTree) -> None:
    item = blob_pb2.BatchGetBlobsRequest.Item
    oid = lines(work, "rev-parse", "main:README")[0]
    request = blob_pb2.BatchGetBlobsRequest(
        repository=PATH,
        commit=b"main",
        items=[item(oid=oid), item(path=b"large"), item(path=b"gone"), item(oid="1" * 40)],
    )
    header, *parts, trailer = api.stream(api.blobs.BatchGetBlobs, request)
    assert header.header.items == 4
    assert header.header.HasField("revision")
    content: dict[int, bytes] = {}
    for part in parts:
        if part.HasField("blob"):
            current = part.blob
            content[current.index] = current.data
        else:
            content[current.index] += part.chunk
    assert content == {0: b"hello\nworld\n", 1: b"x" * 300_000, 2: b"", 3: b""}
    assert trailer.trailer.sha256 == hashlib.sha256(b"".join(content.values())).digest()
    request.blob_bytes_max = 100
    blobs = [p.blob for p in api.stream(api.blobs.BatchGetBlobs, request) if p.HasField("blob")]
    assert [(blob.content_left_out, blob.missing) for blob in blobs] == [
        (False, False), (True, False), (False, True), (False, True)
    ]  # fmt: skip


def diff(api: Api, **fields: Any) -> tuple[list[Any], bytes, Any]:
    request = diff_pb2.DiffRequest(
        repository=PATH, range=diff_pb2.DiffRange(base=b"v1", head=b"main"), **fields
    )
    header, *parts, trailer = api.stream(api.diffs.Diff, request)
    assert header.header.HasField("revision")
    patch = b"".join(part.chunk for part in parts)
    assert trailer.trailer.sha256 == hashlib.sha256(patch).digest()
    return [part.change for part in parts if part.HasField("change")], patch, trailer.trailer


def test_a_diff_is_gits(api: Api, work: WorkTree) -> None:
    changes, patch, trailer = diff(api, format=diff_pb2.DIFF_FORMAT_PATCH)
    asked = ["diff", "--full-index", "-M", "v1", "main"]
    assert (
        patch
        == subprocess.run(
            ["git", *asked], cwd=work.path, env=ENVIRONMENT, capture_output=True, check=True
        ).stdout
    )
    summary = lines(work, "diff", "--numstat", "-M", "v1", "main")
    assert trailer.files == len(changes) == len(summary)
    assert trailer.additions == sum(int(line.split()[0]) for line in summary if line[0] != "-")
    assert any(change.status == diff_pb2.CHANGE_STATUS_RENAMED for change in changes)
    stats = diff_pb2.GetDiffStatsRequest(
        repository=PATH, range=diff_pb2.DiffRange(base=b"v1", head=b"main")
    )
    told = api.call(api.diffs.GetDiffStats, stats)
    assert (told.files, told.additions, told.deletions) == (
        trailer.files, trailer.additions, trailer.deletions
    )  # fmt: skip
    paths = diff_pb2.ListChangedPathsRequest(
        repository=PATH,
        range=diff_pb2.DiffRange(base=b"side", head=b"main", from_merge_base=True),
        page_size=2,
    )
    found = pages(api, api.diffs.ListChangedPaths, paths, "changes")
    assert [c.new_path.decode() for c in found] == lines(
        work, "diff", "--name-only", "-M", "side...main"
    )
    commit = commit_pb2.GetCommitStatsRequest(repository=PATH, commit=b"main~2")
    assert api.call(api.commits.GetCommitStats, commit).files == 3


def test_blame_is_gits(api: Api, work: WorkTree) -> None:
    request = commit_pb2.BlameRequest(repository=PATH, commit=b"main", path=b"README")
    header, *hunks, trailer = api.stream(api.commits.Blame, request)
    assert header.header.line_count == 2
    told = [(h.hunk.commit_oid, h.hunk.first_line) for h in hunks]
    expected = [line.split()[0].lstrip("^") for line in lines(work, "blame", "-l", "README")]
    assert [oid for oid, _ in told] == [lines(work, "rev-parse", oid[:20])[0] for oid in expected]
    assert hunks[0].hunk.commit.message == b"first\n"
    assert hunks[0].hunk.boundary
    assert len(trailer.trailer.sha256) == 32


def test_content_is_searched(api: Api) -> None:
    request = commit_pb2.SearchContentRequest(
        repository=PATH, commit=b"main", pattern=b"^d..p", regular_expression=True
    )
    response = api.call(api.commits.SearchContent, request)
    assert [(m.path, m.line_number, m.line) for m in response.matches] == [
        (b"src/sub/deep.txt", 1, b"deep")
    ]
    assert response.truncated_by == ""
    request = commit_pb2.SearchContentRequest(
        repository=PATH, commit=b"main", pattern=b"HELLO", ignore_case=True, paths=[b"README"]
    )
    assert api.call(api.commits.SearchContent, request).matches[0].column == 1


def test_what_exists_is_told_without_errors(api: Api, work: WorkTree) -> None:
    request = commit_pb2.CheckObjectsExistRequest(
        repository=PATH,
        revisions=[b"main", b"main^{tree}", b"0" * 40, b"v1", work.head()[:8].encode()],
    )
    found = api.call(api.commits.CheckObjectsExist, request).objects
    assert [o.type for o in found] == [1, 2, 0, 4, 1]
    exists = repository_pb2.CheckRepositoryExistsRequest(path="team/nothing")
    assert not api.call(api.repositories.CheckRepositoryExists, exists).exists
    exists.path = PATH
    assert api.call(api.repositories.CheckRepositoryExists, exists).exists
    size = api.call(
        api.repositories.GetRepositorySize, repository_pb2.GetRepositorySizeRequest(path=PATH)
    )
    assert size.objects > 10
    assert size.ref_count == 3
    checksum = repository_pb2.GetRepositoryChecksumRequest(path=PATH)
    assert len(api.call(api.repositories.GetRepositoryChecksum, checksum).checksum) == 64
    fsck = api.call(
        api.repositories.FsckRepository, repository_pb2.FsckRepositoryRequest(path=PATH)
    )
    assert list(fsck.problems) == []
    assert fsck.objects == size.objects


def streamed(api: Api, method: Any, request: Any) -> bytes:
    header, *chunks, trailer = api.stream(method, request)
    assert header.header.HasField("revision")
    content = b"".join(part.chunk for part in chunks)
    assert all(0 < len(part.chunk) <= 256 * 1024 for part in chunks)
    assert trailer.trailer.sha256 == hashlib.sha256(content).digest()
    assert trailer.trailer.size == len(content)
    return content


@pytest.mark.parametrize("kind", ["TAR", "TAR_GZ"])
def test_an_archive_holds_what_git_archives(api: Api, work: WorkTree, kind: str) -> None:
    request = repository_pb2.GetArchiveRequest(
        path=PATH,
        commit=b"main",
        prefix=b"p-1.0/",
        format=getattr(repository_pb2, f"ARCHIVE_FORMAT_{kind}"),
    )
    ours, headers = tar_entries(streamed(api, api.repositories.GetArchive, request))
    git = subprocess.run(
        ["git", "archive", "--prefix=p-1.0/", "main"],
        cwd=work.path, env=ENVIRONMENT, capture_output=True, check=True,
    ).stdout  # fmt: skip
    assert ours == tar_entries(git)[0]
    assert headers["comment"] == work.head()


def tar_entries(content: bytes) -> tuple[list[tuple[Any, ...]], dict[str, str]]:
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        entries = [(m.name, m.mode, m.size, m.type, m.mtime) for m in archive]
        return entries, dict(archive.pax_headers)


def test_a_zip_can_be_read(api: Api) -> None:
    request = repository_pb2.GetArchiveRequest(
        path=PATH, commit=b"main", folder=b"src", format=repository_pb2.ARCHIVE_FORMAT_ZIP
    )
    content = streamed(api, api.repositories.GetArchive, request)
    archive = zipfile.ZipFile(io.BytesIO(content))
    assert archive.testzip() is None
    assert archive.read("sub/deep.txt") == b"deep\n"


def test_git_clones_and_fetches_from_bundles(api: Api, work: WorkTree, tmp_path: Path) -> None:
    request = repository_pb2.CreateBundleRequest(path=PATH)
    whole = tmp_path / "whole.bundle"
    whole.write_bytes(streamed(api, api.repositories.CreateBundle, request))
    run = {"env": ENVIRONMENT, "check": True, "capture_output": True}
    subprocess.run(["git", "clone", "-q", str(whole), str(tmp_path / "clone")], **run)  # type: ignore[call-overload]
    assert WorkTree(tmp_path / "clone").head() == work.head()
    request = repository_pb2.CreateBundleRequest(
        path=PATH, refs=[b"refs/heads/main"], exclusions=[b"v1"]
    )
    part = tmp_path / "part.bundle"
    part.write_bytes(streamed(api, api.repositories.CreateBundle, request))
    work.git("bundle", "verify", str(part))


@pytest.mark.parametrize("path", [b"/etc", b"a/../b", b"..", b"a//b", b"./a", b"x" * 70_000])
def test_paths_that_lead_elsewhere_are_refused(api: Api, path: bytes) -> None:
    asked: dict[str, Any] = {"repository": PATH, "commit": b"main", "path": path}
    for method, request in (
        (api.commits.ListTree, commit_pb2.ListTreeRequest(**asked)),
        (api.commits.GetTreeEntry, commit_pb2.GetTreeEntryRequest(**asked)),
        (api.commits.ListFiles, commit_pb2.ListFilesRequest(**asked)),
        (api.commits.GetLastCommitForPath, commit_pb2.GetLastCommitForPathRequest(**asked)),
        (api.blobs.ListBlobs, blob_pb2.ListBlobsRequest(**asked)),
    ):
        assert api.refused(method, request).code == "INVALID_ARGUMENT"
    archive = repository_pb2.GetArchiveRequest(path=PATH, commit=b"main", prefix=path)
    with pytest.raises(Refused, match="INVALID_ARGUMENT"):
        api.stream(api.repositories.GetArchive, archive)


def test_wrong_types_are_named(api: Api, work: WorkTree) -> None:
    tree = lines(work, "rev-parse", "main^{tree}")[0].encode()
    blob = lines(work, "rev-parse", "main:README")[0].encode()
    log = commit_pb2.ListCommitsRequest(repository=PATH, revisions=[tree])
    assert "tree, not a commit" in api.refused(api.commits.ListCommits, log).text
    ask = commit_pb2.ListTreeRequest(repository=PATH, commit=blob)
    assert api.refused(api.commits.ListTree, ask).code == "INVALID_ARGUMENT"
    ask = commit_pb2.ListTreeRequest(repository=PATH, commit=tree, with_last_commit=True)
    assert api.refused(api.commits.ListTree, ask).code == "INVALID_ARGUMENT"
    search = commit_pb2.SearchContentRequest(
        repository=PATH, commit=b"main", pattern=b"(", regular_expression=True
    )
    assert "no regular expression" in api.refused(api.commits.SearchContent, search).text
    log = commit_pb2.ListCommitsRequest(repository=PATH, page_token="bm9uc2Vuc2U=")
    assert api.refused(api.commits.ListCommits, log).code == "INVALID_ARGUMENT"
    for token in (b"[]", b'{"tips":["zz"],"exclusions":[],"offset":0}', b"\xff",
                  b'{"tips":[],"exclusions":[],"offset":-1}'):  # fmt: skip
        forged = forge(api, token)
        assert api.refused(api.commits.ListCommits, forged).code == "INVALID_ARGUMENT"


def forge(api: Api, content: bytes) -> commit_pb2.ListCommitsRequest:
    """A request whose token was made by somebody who knows how."""
    from quorepo.rpc.grpc.conversions import PageKey

    request = commit_pb2.ListCommitsRequest(repository=PATH)
    key = PageKey("log", request.SerializeToString(deterministic=True))
    request.page_token = key.token(content)
    return request


def limit_of(api: Api, method: Any, request: Any, *, stream: bool = False) -> str:
    if stream:
        with pytest.raises(Refused, match="RESOURCE_EXHAUSTED") as caught:
            api.stream(method, request)
        return caught.value.detail(errors_pb2.LimitViolation).limit
    refused = api.refused(method, request)
    assert refused.code == "RESOURCE_EXHAUSTED"
    return refused.detail(errors_pb2.LimitViolation).limit


def test_every_limit_is_named(tight: Api) -> None:
    api = tight
    log = commit_pb2.ListCommitsRequest(repository=PATH, revisions=[b"main"] * 3)
    assert limit_of(api, api.commits.ListCommits, log) == "api.revisions_max"
    log = commit_pb2.ListCommitsRequest(repository=PATH, page_size=100)
    assert len(api.call(api.commits.ListCommits, log).commits) == 2  # api.page_size_max
    check = commit_pb2.CheckObjectsExistRequest(repository=PATH, revisions=[b"main"] * 3)
    assert limit_of(api, api.commits.CheckObjectsExist, check) == "api.batch_objects_max"
    item = blob_pb2.BatchGetBlobsRequest.Item
    many = blob_pb2.BatchGetBlobsRequest(repository=PATH, items=[item(oid="1" * 40)] * 3)
    limit = limit_of(api, api.blobs.BatchGetBlobs, many, stream=True)
    assert limit == "api.batch_objects_max"
    blame = commit_pb2.BlameRequest(repository=PATH, commit=b"main", path=b"README")
    assert limit_of(api, api.commits.Blame, blame, stream=True) == "api.blame_lines_max"
    blame.path = b"large"
    assert limit_of(api, api.commits.Blame, blame, stream=True) == "api.blame_file_bytes_max"
    search = commit_pb2.SearchContentRequest(
        repository=PATH, commit=b"main", pattern=b"o", matches_max=2
    )
    assert limit_of(api, api.commits.SearchContent, search) == "api.search_matches_max"
    search.matches_max = 0
    assert api.call(api.commits.SearchContent, search).truncated_by == "api.search_bytes_max"
    archive = repository_pb2.GetArchiveRequest(path=PATH, commit=b"main")
    limit = limit_of(api, api.repositories.GetArchive, archive, stream=True)
    assert limit == "api.archive_bytes_max"
    bundle = repository_pb2.CreateBundleRequest(path=PATH)
    limit = limit_of(api, api.repositories.CreateBundle, bundle, stream=True)
    assert limit == "api.bundle_bytes_max"


def test_channelz_is_served_when_configured_to_those_who_are_known(api: Api, tight: Api) -> None:
    channelz_pb2 = pytest.importorskip("grpc_channelz.v1.channelz_pb2")
    channelz_pb2_grpc = pytest.importorskip("grpc_channelz.v1.channelz_pb2_grpc")
    for where, token, code in ((tight, None, "UNAUTHENTICATED"), (api, TOKEN, "UNIMPLEMENTED")):
        stub = channelz_pb2_grpc.ChannelzStub(where.channel)
        refused = where.refused(stub.GetServers, channelz_pb2.GetServersRequest(), token)
        assert refused.code == code
    stub = channelz_pb2_grpc.ChannelzStub(tight.channel)
    assert tight.call(stub.GetServers, channelz_pb2.GetServersRequest()).server


def test_a_diff_above_its_limits_is_cut_and_marked(tight: Api) -> None:
    changes, _, trailer = diff(tight, format=diff_pb2.DIFF_FORMAT_RAW)
    assert (len(changes), trailer.truncated_by) == (2, "api.diff_files_max")
    options = diff_pb2.DiffOptions(paths=[b"README", b"large"])
    changes, _, trailer = diff(tight, format=diff_pb2.DIFF_FORMAT_PATCH, options=options)
    assert [c.patch_left_out for c in changes] == [False, True]
    options = diff_pb2.DiffOptions(paths=[b"big.lfs", b"README"])
    changes, _, trailer = diff(tight, format=diff_pb2.DIFF_FORMAT_PATCH, options=options)
    assert (len(changes), trailer.truncated_by) == (1, "api.diff_bytes_max")


def test_a_worker_answers_what_is_too_much_for_the_edge(
    api: Api, work: WorkTree, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("quorepo.rpc.history._BUDGET", 0)
    monkeypatch.setattr("quorepo.rpc.history._STREAMED_HERE_BYTES_MAX", 0)
    asked: list[str] = []
    run = api.under_test.edge.workers.run

    async def counted(job: str, *arguments: Any) -> dict[str, Any]:
        asked.append(job)
        return await run(job, *arguments)

    monkeypatch.setattr(api.under_test.edge.workers, "run", counted)
    test_logs_counts_and_ancestry(api, work)
    test_trees_recursive_and_with_last_commits(api, work)
    test_blobs_are_listed_with_sizes_and_pointers(api, work)
    test_a_diff_is_gits(api, work)
    test_blame_is_gits(api, work)
    test_refs_are_listed_by_what_they_point_to_contain_and_when(api, work)
    assert {"history_answer", "history_stream"} == set(asked)
    counted_blames = api.under_test.edge.metrics.questions.labels("blame", "worker")
    assert counted_blames._value.get() >= 1
    tmp = api.under_test.edge.config.node.data_dir / "tmp"
    assert list(tmp.glob("read-*")) == []


def test_fsck_finds_a_pack_that_rotted(tmp_path: Path, work: WorkTree) -> None:
    with serving_api(tmp_path / "data") as api:
        work.git("push", "--quiet", api.under_test.url(PATH), "main")
        (pack,) = (tmp_path / "data").glob("groups/1/repositories/*.git/objects/pack/*.pack")
        content = bytearray(pack.read_bytes())
        content[len(content) // 2] ^= 0xFF
        pack.chmod(0o600)
        pack.write_bytes(content)
        request = repository_pb2.FsckRepositoryRequest(path=PATH)
        found = api.call(api.repositories.FsckRepository, request)
        assert "damagedPack" in {problem.message_id for problem in found.problems}


def test_leaving_a_stream_ends_its_work_and_removes_its_file(api: Api) -> None:
    request = repository_pb2.GetArchiveRequest(path=PATH, commit=b"main")
    metadata = (("authorization", f"Bearer {TOKEN}"),)
    call = api.repositories.GetArchive(request, timeout=20, metadata=metadata)
    next(call)
    call.cancel()
    tmp = api.under_test.edge.config.node.data_dir / "tmp"
    eventually(lambda: not list(tmp.glob("read-*")), what="no file of a read is left")
    assert streamed(api, api.repositories.GetArchive, request)


def test_reads_say_at_which_revision_and_wait_for_one(api: Api) -> None:
    request = commit_pb2.IsAncestorRequest(repository=PATH, ancestor=b"v1", descendant=b"main")
    revision = api.call(api.commits.IsAncestor, request).revision
    request.consistency.at_least.CopyFrom(revision)
    assert api.call(api.commits.IsAncestor, request).revision == revision
    request.consistency.at_least.counter += 1000
    assert api.refused(api.commits.IsAncestor, request).info.reason == "REVISION_NOT_REACHED"
    request.consistency.CopyFrom(common_pb2.Consistency(local=common_pb2.Consistency.Local()))
    assert api.call(api.commits.IsAncestor, request).is_ancestor


def test_what_is_small_is_answered_at_once_and_still_new(
    tmp_path: Path, work: WorkTree, monkeypatch: pytest.MonkeyPatch
) -> None:
    def head(name: str) -> str:
        return work.git("rev-parse", name).stdout.strip()

    with serving_api(tmp_path / "data") as api:
        url = api.under_test.url(PATH)
        work.git("push", "--quiet", url, "main~1:refs/heads/main")
        reads = api.under_test.edge.reads
        in_threads: list[object] = []
        in_thread = reads.in_thread

        async def counted(function: Callable[[], Any]) -> Any:
            if function.__qualname__.startswith(("Reads.find", "HistoryReads.read")):
                in_threads.append(function)
            return await in_thread(function)

        monkeypatch.setattr(reads, "in_thread", counted)

        def asked() -> str:
            request = commit_pb2.GetCommitRequest(repository=PATH, commit=b"main")
            return str(api.call(api.commits.GetCommit, request).commit.oid)

        assert asked() == head("main~1")
        in_threads.clear()
        for _ in range(3):
            assert asked() == head("main~1")
        assert not in_threads
        work.git("push", "--quiet", url, "main")
        for _ in range(2):
            assert asked() == head("main")
        in_threads.clear()
        assert asked() == head("main")
        assert not in_threads
        api.call(
            api.repositories.DeleteRepository, repository_pb2.DeleteRepositoryRequest(path=PATH)
        )
        request = commit_pb2.GetCommitRequest(repository=PATH, commit=b"main")
        assert api.refused(api.commits.GetCommit, request).code == "NOT_FOUND"
