"""CommitService and BlobService: the same answers as git's, and precise errors."""

from __future__ import annotations

import hashlib

import pytest
from dulwich.objects import Commit
from support.git import WorkTree
from support.grpc_api import Api, Refused, push_history

from quorepo.rpc.grpc.read_messages import _parsed_message, _plain_message
from quorepo.v1 import blob_pb2, commit_pb2, common_pb2


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> WorkTree:
    return WorkTree(tmp_path_factory.mktemp("objects") / "work")


@pytest.fixture(scope="module")
def pushed(api: Api, work: WorkTree) -> str:
    """One repository for all tests here, which only read its main."""
    push_history(api, work, "team/objects")
    return "team/objects"


def oid_of(work: WorkTree, expression: str) -> str:
    return work.git("rev-parse", expression).stdout.strip()


@pytest.mark.parametrize("name", ["HEAD", "main", "heads/main", "refs/heads/main", "{oid}"])
def test_a_commit_is_found_under_every_name(
    api: Api, pushed: str, work: WorkTree, name: str
) -> None:
    asked = name.format(oid=work.head()).encode()
    request = commit_pb2.GetCommitRequest(repository=pushed, commit=asked)
    commit = api.call(api.commits.GetCommit, request).commit
    assert commit.oid == work.head()
    assert commit.tree_oid == oid_of(work, "HEAD^{tree}")
    assert list(commit.parent_oids) == [oid_of(work, "HEAD~1")]
    assert commit.message == b"second\n"
    assert (commit.author.name, commit.author.email) == (b"A U Thor", b"author@example.com")
    assert commit.committer.name == b"C O Mitter"
    stamp = work.git("log", "-1", "--format=%ct").stdout.strip()
    assert commit.committer.time.seconds == int(stamp)


@pytest.mark.parametrize(
    ("headers", "is_plain"),
    [
        (b"author A <a@b> 1 +0130\ncommitter B <> 2 -0245\n", True),
        (b"author A <a> <b> 1 +0000\ncommitter <x@y> 123456789012 -0000\n", True),
        (b"author A<a@b> 1 -0030\ncommitter \xff <c> 0 +9999\n", True),
        (b"author A <a@b> 1 +0000\ncommitter B <c> 2 +0000\nencoding latin-1\n", False),
        (b"author A <a@b> 1 +0000\ncommitter B <c> 2 +0000\ngpgsig one\n two\n", False),
        (b"author A <a@b> -1 +0000\ncommitter B <c> 2 +0000\n", False),
        (b"parent x\nauthor A <a@b> 1 +0000\ncommitter B <c> 2 +0000\n", False),
    ],
)
@pytest.mark.parametrize("parents", [0, 1, 3])
def test_a_plain_commit_is_read_as_the_parser_reads_it(
    headers: bytes, is_plain: bool, parents: int
) -> None:
    raw = b"tree %s\n%s%s\nmessage\n\nlast" % (
        b"2" * 40,
        (b"parent %s\n" % (b"1" * 40)) * parents,
        headers,
    )
    quick = _plain_message(b"\1" * 20, raw)
    assert (quick is not None) == is_plain
    if is_plain:
        parsed = Commit.from_raw_string(1, raw)
        assert isinstance(parsed, Commit)
        assert quick == _parsed_message(b"\1" * 20, parsed)


def test_a_tag_leads_to_its_commit(api: Api, pushed: str, work: WorkTree) -> None:
    request = commit_pb2.GetCommitRequest(repository=pushed, commit=b"v1")
    assert api.call(api.commits.GetCommit, request).commit.oid == oid_of(work, "v1^{commit}")


@pytest.mark.parametrize(
    ("name", "code"),
    [
        ("{tree}", "INVALID_ARGUMENT"),
        ("nothing", "NOT_FOUND"),
        ("1" * 40, "NOT_FOUND"),
        ("", "INVALID_ARGUMENT"),
        ("x" * 5000, "INVALID_ARGUMENT"),
    ],
)
def test_what_is_no_commit_is_said(
    api: Api, pushed: str, work: WorkTree, name: str, code: str
) -> None:
    asked = name.format(tree=oid_of(work, "HEAD^{tree}")).encode()
    request = commit_pb2.GetCommitRequest(repository=pushed, commit=asked)
    assert api.refused(api.commits.GetCommit, request).code == code


def test_a_tree_is_listed_in_pages_that_do_not_move(api: Api, pushed: str, work: WorkTree) -> None:
    url = api.under_test.url(pushed)
    work.git("push", "--quiet", url, "main:refs/heads/pages")
    request = commit_pb2.ListTreeRequest(repository=pushed, commit=b"pages", page_size=2)
    first = api.call(api.commits.ListTree, request)
    work.git("checkout", "--quiet", "-b", "pages")
    work.commit("third", {"AAA": "new\n"})
    work.git("push", "--quiet", url, "pages")
    work.git("checkout", "--quiet", "main")
    request.page_token = first.next_page_token
    second = api.call(api.commits.ListTree, request)
    seen = [
        f"{entry.mode:06o} {entry.oid} {entry.path.decode()}"
        for entry in [*first.entries, *second.entries]
    ]
    lines = work.git("ls-tree", "HEAD", "--format=%(objectmode) %(objectname) %(path)").stdout
    assert seen == lines.splitlines()
    assert second.next_page_token == ""
    assert first.tree_oid == second.tree_oid == oid_of(work, "HEAD^{tree}")


def test_a_folder_is_listed_with_full_paths(api: Api, pushed: str) -> None:
    request = commit_pb2.ListTreeRequest(repository=pushed, commit=b"main", path=b"src/")
    entries = api.call(api.commits.ListTree, request).entries
    assert [entry.path for entry in entries] == [b"src/a.txt", b"src/b.txt", b"src/sub"]
    assert [entry.type for entry in entries] == [
        common_pb2.OBJECT_TYPE_BLOB,
        common_pb2.OBJECT_TYPE_BLOB,
        common_pb2.OBJECT_TYPE_TREE,
    ]
    of_file = commit_pb2.ListTreeRequest(repository=pushed, commit=b"main", path=b"README")
    assert api.refused(api.commits.ListTree, of_file).code == "INVALID_ARGUMENT"


def test_an_entry_comes_with_its_content_when_it_fits(
    api: Api, pushed: str, work: WorkTree
) -> None:
    request = commit_pb2.GetTreeEntryRequest(
        repository=pushed, commit=b"main", path=b"src/sub/deep.txt", data_bytes_max=5
    )
    found = api.call(api.commits.GetTreeEntry, request)
    assert found.entry.oid == oid_of(work, "HEAD:src/sub/deep.txt")
    assert (found.size, found.data, found.entry.mode) == (5, b"deep\n", 0o100644)
    request.data_bytes_max = 4
    found = api.call(api.commits.GetTreeEntry, request)
    assert not found.HasField("data")
    request.path = b""
    root = api.call(api.commits.GetTreeEntry, request)
    assert root.entry.oid == oid_of(work, "HEAD^{tree}")
    request.data_bytes_max = 1 << 30
    assert "ReadBlob" in api.refused(api.commits.GetTreeEntry, request).text


@pytest.mark.parametrize(
    ("inside", "code"),
    [
        (b"/README", "INVALID_ARGUMENT"),
        (b"src/../README", "INVALID_ARGUMENT"),
        (b"src//a.txt", "INVALID_ARGUMENT"),
        (b"./README", "INVALID_ARGUMENT"),
        (b"x" * 70_000, "INVALID_ARGUMENT"),
        (b"nothing", "NOT_FOUND"),
        (b"README/below", "NOT_FOUND"),
        (b"\xff\xfe", "NOT_FOUND"),
    ],
)
def test_bad_and_absent_paths_are_told_apart(
    api: Api, pushed: str, inside: bytes, code: str
) -> None:
    request = commit_pb2.GetTreeEntryRequest(repository=pushed, commit=b"main", path=inside)
    assert api.refused(api.commits.GetTreeEntry, request).code == code


def test_a_small_blob_comes_whole(api: Api, pushed: str, work: WorkTree) -> None:
    oid = oid_of(work, "HEAD:README")
    blob = api.call(api.blobs.GetBlob, blob_pb2.GetBlobRequest(repository=pushed, oid=oid))
    assert (blob.size, blob.data, blob.oid) == (6, b"hello\n", oid)


def test_a_large_blob_is_streamed_with_its_digest_last(
    api: Api, pushed: str, work: WorkTree
) -> None:
    oid = oid_of(work, "HEAD:large.bin")
    refused = api.refused(api.blobs.GetBlob, blob_pb2.GetBlobRequest(repository=pushed, oid=oid))
    assert (refused.code, refused.info.reason) == ("RESOURCE_EXHAUSTED", "LIMIT_EXCEEDED")
    assert "use ReadBlob" in refused.text
    parts = api.stream(api.blobs.ReadBlob, blob_pb2.ReadBlobRequest(repository=pushed, oid=oid))
    assert parts[0].header.size == 4_000_000
    assert parts[0].header.revision.counter > 0
    chunks = [part.chunk for part in parts[1:-1]]
    assert max(map(len, chunks)) <= 256 * 1024
    content = b"".join(chunks)
    assert content == b"\0\1\2\3" * 1_000_000
    assert parts[-1].trailer.sha256 == hashlib.sha256(content).digest()


def test_what_is_no_blob_is_said(api: Api, pushed: str, work: WorkTree) -> None:
    for oid, code in (
        (work.head(), "INVALID_ARGUMENT"),
        ("1" * 40, "NOT_FOUND"),
        ("README", "INVALID_ARGUMENT"),
        ("", "INVALID_ARGUMENT"),
    ):
        request = blob_pb2.GetBlobRequest(repository=pushed, oid=oid)
        assert api.refused(api.blobs.GetBlob, request).code == code
        with pytest.raises(Refused) as caught:
            api.stream(api.blobs.ReadBlob, blob_pb2.ReadBlobRequest(repository=pushed, oid=oid))
        assert caught.value.code == code
