"""With `grouped` the streams of small things hold the same in fewer messages."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from support.git import WorkTree
from support.grpc_api import Api, serving_api

from quorepo.v1 import blob_pb2, commit_pb2, diff_pb2

PATH = "team/groups"
SIZES = [10, 70_000, 300_000, 20, 0, 600_000]
SMALL = 40


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> WorkTree:
    work = WorkTree(tmp_path_factory.mktemp("groups") / "work")
    for number in range(SMALL):
        work.commit(f"{number}", {"file": "".join(f"{line}\n" for line in range(number))})
    files = {f"d/{number}": "x" * 79 + "\n" for number in range(SMALL)}
    files |= {f"s/{n}-{size}": ("y" * 49 + "\n") * (size // 50) for n, size in enumerate(SIZES)}
    work.commit("many", {**files, "s/bin": b"\0"})
    return work


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory, work: WorkTree) -> Iterator[Api]:
    with serving_api(tmp_path_factory.mktemp("node") / "data") as api:
        work.git("push", "--quiet", api.under_test.url(PATH), "main")
        yield api


def both(api: Api, method: Any, request: Any) -> tuple[list[Any], list[Any]]:
    request.grouped = False
    one_by_one = api.stream(method, request)
    request.grouped = True
    return one_by_one, api.stream(method, request)


def flattened(messages: list[Any], field: str, items: str) -> list[tuple[str, bytes]]:
    """Each thing without its content, and the content."""
    found: list[tuple[str, bytes]] = []
    content = "patch" if field == "change" else "data"
    for message in messages:
        part = message.WhichOneof("part")
        if part == "chunk":
            name, before = found.pop()
            found.append((name, before + message.chunk))
        for one in getattr(message.group, items) if part == "group" else [getattr(message, field)]:
            if part in ("group", field):
                own = getattr(one, content, b"")
                if own:
                    one.ClearField(content)
                found.append((str(one), own))
    return found


@pytest.mark.parametrize(
    "kind", [diff_pb2.DIFF_FORMAT_PATCH, diff_pb2.DIFF_FORMAT_NUMSTAT, diff_pb2.DIFF_FORMAT_RAW]
)
def test_a_diff(api: Api, kind: Any) -> None:
    request = diff_pb2.DiffRequest(
        repository=PATH, range=diff_pb2.DiffRange(head=b"main"), format=kind
    )
    single, grouped = both(api, api.diffs.Diff, request)
    assert grouped[0].group.header == single[0].header
    assert grouped[-1].group.trailer == single[-1].trailer
    assert flattened(grouped, "change", "changes") == flattened(single, "change", "changes")
    assert len(grouped) < len(single) / 3


def test_a_blame(api: Api) -> None:
    request = commit_pb2.BlameRequest(repository=PATH, commit=b"main", path=b"file")
    single, grouped = both(api, api.commits.Blame, request)
    assert grouped[0].group.header == single[0].header
    assert grouped[-1].group.trailer == single[-1].trailer
    assert flattened(grouped, "hunk", "hunks") == flattened(single, "hunk", "hunks")
    assert len(grouped) == 1
    assert len(single) == SMALL + 1


@pytest.mark.parametrize("blob_bytes_max", [None, 50_000])
def test_many_blobs(api: Api, work: WorkTree, blob_bytes_max: int | None) -> None:
    paths = work.git("ls-tree", "-r", "--name-only", "main").stdout.splitlines()
    items = [blob_pb2.BatchGetBlobsRequest.Item(path=path.encode()) for path in paths]
    items.append(blob_pb2.BatchGetBlobsRequest.Item(oid="0" * 40))
    request = blob_pb2.BatchGetBlobsRequest(
        repository=PATH, commit=b"main", items=items, blob_bytes_max=blob_bytes_max
    )
    single, grouped = both(api, api.blobs.BatchGetBlobs, request)
    assert (grouped[0], grouped[-1]) == (single[0], single[-1])
    assert flattened(grouped, "blob", "blobs") == flattened(single, "blob", "blobs")
    assert len(grouped) < len(single) / 2


def test_a_diff_that_begins_with_a_large_patch_begins_with_its_header(api: Api) -> None:
    """The header does not wait for a group, and every message but the last is no trailer."""
    request = diff_pb2.DiffRequest(
        repository=PATH,
        range=diff_pb2.DiffRange(head=b"main"),
        options=diff_pb2.DiffOptions(paths=[b"s/1-70000", b"s/2-300000"]),
        format=diff_pb2.DIFF_FORMAT_PATCH,
    )
    single, grouped = both(api, api.diffs.Diff, request)
    assert grouped[0].group.header == single[0].header
    assert [message.WhichOneof("part") for message in grouped] == [
        "group", "change", "chunk", "change", "chunk", "chunk", "group",
    ]  # fmt: skip
    assert not grouped[0].group.changes
    assert not grouped[-1].group.changes
    assert grouped[-1].group.trailer == single[-1].trailer


def test_a_diff_without_changes_is_one_group(api: Api) -> None:
    request = diff_pb2.DiffRequest(
        repository=PATH, range=diff_pb2.DiffRange(base=b"main", head=b"main")
    )
    single, (group,) = both(api, api.diffs.Diff, request)
    assert [group.group.header, group.group.trailer] == [single[0].header, single[-1].trailer]
