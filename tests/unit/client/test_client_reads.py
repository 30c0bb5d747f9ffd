"""Every read of the client, next to what git says of the same repository; nothing is left out."""

from __future__ import annotations

import inspect
import io
import re
import tarfile
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from support.edge import TOKEN
from support.git import WorkTree
from support.grpc_api import Api

import quorepo
from quorepo import errors
from quorepo.rpc.client.asynchronous import client as asynchronous
from quorepo.types import BlobInfo, DiffOptions, DivergingCounts, FoundObject, LfsPointer
from quorepo.v1 import (
    blob_pb2,
    commit_pb2,
    diff_pb2,
    event_pb2,
    import_pb2,
    operation_pb2,
    ref_pb2,
    repository_pb2,
    transfer_pb2,
)

POINTER = "version https://git-lfs.github.com/spec/v1\noid sha256:" + "a" * 64 + "\nsize 12345\n"
PATH = "client/reads"


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> WorkTree:
    work = WorkTree(tmp_path_factory.mktemp("reads") / "work")
    work.commit("first", {"README": "hello\n", "src/a.txt": "a\nb\nc\n", "big.lfs": POINTER})
    work.git("tag", "--annotate", "--message=release", "v1")
    work.commit("second", {"src/a.txt": "a\nx\nc\n", "large": b"x" * 4_000_000})
    work.git("checkout", "--quiet", "-b", "side", "v1")
    work.commit("aside", {"side": "side\n"})
    work.git("checkout", "--quiet", "main")
    return work


@pytest.fixture(scope="module")
def reader(api: Api, work: WorkTree) -> Iterator[quorepo.Client]:
    url = api.under_test.url(PATH)
    work.git("push", "--quiet", "--follow-tags", url, "main", "side")
    with quorepo.Client(api.under_test.edge.config.listen.grpc, token=TOKEN) as client:
        yield client


def out(work: WorkTree, *arguments: str) -> list[str]:
    return work.git(*arguments).stdout.splitlines()


def test_no_call_of_the_api_is_without_a_method() -> None:
    called: set[str] = set()
    for module in Path(inspect.getfile(asynchronous)).parent.glob("*.py"):
        called |= set(re.findall(r'"(\w+Service/\w+)"', module.read_text(encoding="utf-8")))
    served = {
        f"{service.name}/{method.name}"
        for module in (
            blob_pb2,
            commit_pb2,
            diff_pb2,
            event_pb2,
            import_pb2,
            operation_pb2,
            ref_pb2,
            repository_pb2,
            transfer_pb2,
        )
        for service in module.DESCRIPTOR.services_by_name.values()
        for method in service.methods
    }
    assert served - called == set()


def test_refs(reader: quorepo.Client, work: WorkTree) -> None:
    by_date = out(
        work, "for-each-ref", "--sort=-committerdate", "--format=%(refname)", "refs/heads"
    )
    found = list(reader.refs.list(PATH, "refs/heads/", order="date", descending=True, page_size=1))
    assert sorted(ref.name.decode() for ref in found) == sorted(by_date)
    assert reader.refs.exists(PATH, "refs/heads/main")
    assert not reader.refs.exists(PATH, b"refs/heads/\xff")
    branch = reader.refs.default_branch(PATH)
    assert (branch.name, branch.oid) == (b"refs/heads/main", work.head())
    names = [ref.name for ref in reader.refs.containing(PATH, "v1", page_size=1)]
    assert names == [b"refs/heads/main", b"refs/heads/side", b"refs/tags/v1"]
    with pytest.raises(errors.InvalidArgument, match="nothing was tried"):
        list(reader.refs.list(PATH, order="size"))


def test_head_is_pointed_elsewhere_only_from_what_was_expected(
    client: quorepo.Client, api: Api, path: str, work: WorkTree
) -> None:
    work.git("push", "--quiet", api.under_test.url(path), "main", "side")
    client.refs.set_head(path, branch="side", expected_branch="refs/heads/main")
    assert client.refs.default_branch(path).name == b"refs/heads/side"
    with pytest.raises(errors.HeadMismatch):
        client.refs.set_head(path, branch="main", expected_branch="refs/heads/main")
    client.refs.set_head(path, oid=work.head())
    assert client.refs.default_branch(path).name == b""
    client.refs.set_head(path, branch="main", expected_oid=work.head())


def test_histories(reader: quorepo.Client, work: WorkTree) -> None:
    commits = reader.commits
    assert [c.oid for c in commits.list(PATH, "main", "side", order="topological")] == out(
        work, "rev-list", "--topo-order", "main", "side"
    )
    assert [c.message for c in commits.list(PATH, message="SECOND", ignore_case=True)] == [
        b"second\n"
    ]
    assert commits.count(PATH, "main", "side") == 3
    assert commits.count(PATH, "main", exclusions=["v1"]) == 1
    assert commits.count(PATH, "main", count_max=1) == 1
    assert commits.count(PATH, until=datetime(1980, 1, 1, tzinfo=UTC)) == 0
    assert commits.count_diverging(PATH, "main", "side") == DivergingCounts(1, 1)
    last = commits.last_for_path(PATH, "README")
    assert last is not None
    assert last.oid == out(work, "rev-parse", "v1^{}")[0]
    assert commits.last_for_path(PATH, "never") is None
    stats = commits.stats(PATH, "v1")
    assert (stats.oid, stats.files, stats.additions) == (last.oid, 3, 7)
    assert commits.check_objects(PATH, ["main", "0" * 40, "v1"]) == (
        FoundObject(b"main", work.head(), "commit"),
        FoundObject(b"0" * 40, "", ""),
        FoundObject(b"v1", out(work, "rev-parse", "v1")[0], "tag"),
    )


def test_files_and_their_lines(reader: quorepo.Client, work: WorkTree) -> None:
    commits = reader.commits
    listed = [path.decode() for path in commits.files(PATH, page_size=1)]
    assert listed == out(work, "ls-tree", "-r", "--name-only", "main")
    assert list(commits.files(PATH, "main", "src")) == [b"src/a.txt"]
    entries = list(
        commits.tree(PATH, recursive=True, with_folders=True, with_last_commit=True, page_size=2)
    )
    assert [entry.path.decode() for entry in entries] == out(
        work, "ls-tree", "-r", "-t", "--name-only", "main"
    )
    for entry in entries:
        assert entry.last_commit is not None
        assert [entry.last_commit.oid] == out(
            work, "log", "-1", "--format=%H", "--", entry.path.decode()
        )
    hunks = list(commits.blame(PATH, "src/a.txt"))
    told = [hunk.commit.oid for hunk in hunks for _ in range(hunk.line_count)]
    assert told == [
        line.split()[0].lstrip("^") for line in out(work, "blame", "-l", "--root", "src/a.txt")
    ]
    assert [h.first_line for h in commits.blame(PATH, "src/a.txt", first_line=2, last_line=2)] == [
        2
    ]
    found = commits.search(PATH, "^[xh]", regular_expression=True, paths=["src", "README"])
    assert [(m.path, m.line_number, m.line) for m in found.matches] == [
        (b"README", 1, b"hello"),
        (b"src/a.txt", 2, b"x"),
    ]
    assert found.truncated_by == ""
    assert commits.search(PATH, "l", matches_max=1).truncated_by == "matches_max"


def test_blobs(reader: quorepo.Client, work: WorkTree) -> None:
    blobs = {blob.path: blob for blob in reader.blobs.list(PATH, page_size=1)}
    assert blobs[b"large"].size == 4_000_000
    pointer = BlobInfo(
        b"big.lfs",
        out(work, "rev-parse", "main:big.lfs")[0],
        0o100644,
        len(POINTER),
        LfsPointer("a" * 64, 12345),
    )
    assert list(reader.blobs.list(PATH, lfs_pointers_only=True)) == [pointer]
    large = blobs[b"large"].oid
    assert reader.blobs.get(PATH, large).data == b"x" * 4_000_000
    assert reader.blobs.get(PATH, pointer.oid).data == POINTER.encode()
    wanted: list[str | bytes] = [large, b"README", "0" * 40, b"src", pointer.oid]
    got = list(reader.blobs.batch(PATH, wanted))
    assert [blob.asked for blob in got] == wanted
    assert [blob.missing for blob in got] == [False, False, True, True, False]
    assert got[0].data == b"x" * 4_000_000
    assert got[1].data == b"hello\n"
    assert got[2].data is None
    small = list(reader.blobs.batch(PATH, wanted, blob_bytes_max=100))
    assert (small[0].size, small[0].data, small[1].data) == (4_000_000, None, b"hello\n")


def test_diffs(reader: quorepo.Client, work: WorkTree) -> None:
    options = DiffOptions(context_lines=0)
    (patch,) = reader.diffs.patches(PATH, "v1", "main", paths=["src"], options=options)
    assert (
        patch.patch.decode() == work.git("diff", "-U0", "--full-index", "v1", "main", "src").stdout
    )
    counted = list(reader.diffs.counted_changes(PATH, "v1", "main"))
    assert [change.left_out for change in counted] == [True, False]  # the large file
    assert [f"{c.additions}\t{c.deletions}\t{c.new_path.decode()}" for c in counted[1:]] == out(
        work, "diff", "--numstat", "v1", "main", "src"
    )
    stats = reader.diffs.stats(PATH, "v1", "main", paths=["src"])
    assert (stats.files, stats.additions, stats.deletions) == (1, 1, 1)


def test_repositories_are_chosen_by_what_they_are(client: quorepo.Client, path: str) -> None:
    made = client.repositories.create(f"{path}/one")
    client.repositories.create(f"{path}/two", object_format="sha256")
    client.repositories.fork(f"{path}/one", f"{path}/fork-of-one")
    client.repositories.update(f"{path}/two", read_only=True)

    def listed(**chosen: Any) -> list[str]:
        found = client.repositories.list(f"{path}/", page_size=1, **chosen)
        return [repository.path.rpartition("/")[2] for repository in found]

    assert listed() == ["fork-of-one", "one", "two"]
    assert listed(path_contains="one") == ["fork-of-one", "one"]
    assert listed(object_format="sha256") == ["two"]
    assert listed(read_only=True) == ["two"]
    assert listed(read_only=False, is_fork=False) == ["one"]
    assert listed(is_fork=True) == ["fork-of-one"]
    assert listed(forked_from_id=made.repository_id) == ["fork-of-one"]
    assert listed(forked_from_id="0" * 32) == []


def test_what_a_repository_is_as_a_whole(
    reader: quorepo.Client, client: quorepo.Client, work: WorkTree, path: str
) -> None:
    repositories = reader.repositories
    size = repositories.size(PATH)
    assert (size.ref_count, size.pack_count) == (3, 1)
    assert size.objects == len(out(work, "rev-list", "--objects", "--all"))
    checksum = repositories.checksum(PATH)
    assert checksum.checksum == repositories.get(PATH).checksum
    assert checksum.revision == size.revision
    report = repositories.fsck(PATH)
    assert (report.problems, report.objects, report.truncated) == ((), size.objects, False)
    content = b"".join(repositories.archive(PATH, "v1", kind="tar.gz", prefix="app-1/"))
    with tarfile.open(fileobj=io.BytesIO(content)) as archive:
        names = [member.name for member in archive.getmembers()]
    assert names == ["app-1", "app-1/README", "app-1/big.lfs", "app-1/src", "app-1/src/a.txt"]
    with pytest.raises(errors.InvalidArgument, match=r"'rar' is none of"):
        list(repositories.archive(PATH, kind="rar"))
    client.repositories.create(path)
    assert client.repositories.prune(path).packs_removed == 0
    deleted = client.repositories.delete(path).repository_id
    (found,) = (r for r in client.repositories.list_deleted(page_size=1) if r.path == path)
    assert found.repository_id == deleted
    assert found.purge_time > found.delete_time
