"""What exceeds a limit of the API is refused by the key of that limit, and changes nothing."""

from __future__ import annotations

import asyncio
import hashlib
import time
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from support.edge import TOKEN
from support.git import WorkTree, refs_of
from support.grpc_api import Api, Refused, push_history, serving_api
from support.waiting import eventually

from quorepo.rpc.api_config import ApiSection
from quorepo.v1 import (
    blob_pb2,
    commit_pb2,
    common_pb2,
    errors_pb2,
    event_pb2,
    operation_pb2,
    ref_pb2,
    repository_pb2,
)

PATH = "team/limits"
PB = operation_pb2
REQUEST = PB.CommitFilesRequest
ADA = commit_pb2.Signature(name=b"Ada", email=b"ada@example.org")
MIB = 1024 * 1024
TESTS = Path(__file__).parent


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> WorkTree:
    return WorkTree(tmp_path_factory.mktemp("limits") / "work")


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory, work: WorkTree) -> Iterator[Api]:
    limits = {
        "commit_files_max": 2,
        "commit_bytes_max": 10,
        "rebase_commits_max": 2,
        "batch_bytes_max": 1 * MIB,
        "unary_bytes_max": 5,
        "watch_heartbeat_s": 0.01,
    }
    with serving_api(tmp_path_factory.mktemp("node") / "data", api=limits) as api:
        push_history(api, work, PATH)
        yield api


@pytest.fixture(scope="module")
def hurried(tmp_path_factory: pytest.TempPathFactory, api: Api, work: WorkTree) -> Iterator[Api]:
    """A node whose workers have no time."""
    limits = {"read_timeout_s": 0.001, "fsck_timeout_s": 0.001}
    with serving_api(tmp_path_factory.mktemp("hurried") / "data", api=limits) as hurried:
        work.git("fetch", "--quiet", api.under_test.url(PATH), "main")
        url = hurried.under_test.url(PATH)
        work.git("push", "--quiet", url, "FETCH_HEAD:refs/heads/main")
        yield hurried


def limit_of(call: Callable[[], Any]) -> tuple[str, int]:
    """The key and the value that a refusal names."""
    with pytest.raises(Refused) as caught:
        call()
    assert caught.value.code == "RESOURCE_EXHAUSTED", caught.value.text
    assert caught.value.info.metadata["conclusion"] == "rejected"
    violation = caught.value.detail(errors_pb2.LimitViolation)
    assert violation.limit in caught.value.text
    return violation.limit, violation.at_most


def commit(api: Api, *actions: REQUEST.Action | bytes) -> Any:
    def messages() -> Iterator[REQUEST]:
        header = REQUEST.Header(repository=PATH, branch=b"main", message=b"m", author=ADA)
        yield REQUEST(header=header)
        digest = hashlib.sha256()
        for part in actions:
            if isinstance(part, bytes):
                yield REQUEST(chunk=part)
                digest.update(part)
            else:
                yield REQUEST(action=part)
                digest.update(part.content)
        yield REQUEST(sha256=digest.digest())

    return api.call(api.operations.CommitFiles, messages())


def write(name: bytes, content: bytes) -> REQUEST.Action:
    return REQUEST.Action(kind=REQUEST.KIND_WRITE, path=name, content=content)


def test_commit_with_too_many_files_or_bytes_is_refused(api: Api) -> None:
    before = refs_of(api.under_test.url(PATH))
    three = [write(b"%d" % n, b"x") for n in range(3)]
    assert limit_of(lambda: commit(api, *three))[0] == "api.commit_files_max"
    for parts in ([write(b"a", b"x" * 11)], [write(b"a", b"x" * 6), b"x" * 5]):
        assert limit_of(lambda parts=parts: commit(api, *parts))[0] == "api.commit_bytes_max"  # type: ignore[misc]
    assert refs_of(api.under_test.url(PATH)) == before
    assert api.under_test.uploads() == []
    assert commit(api, write(b"a", b"x" * 5), write(b"b", b"x" * 5)).commit_oid


def test_chunk_above_its_size_is_refused(api: Api) -> None:
    with pytest.raises(Refused, match=r"INVALID_ARGUMENT.*chunk"):
        commit(api, write(b"a", b""), b"x" * (256 * 1024 + 1))


def test_rebase_of_too_many_commits_is_refused(api: Api, work: WorkTree) -> None:
    work.git("switch", "--quiet", "--create", "long", "main~1")
    for number in range(3):
        work.commit(f"long {number}", {f"long{number}": "x\n"})
    work.git("push", "--quiet", api.under_test.url(PATH), "long")
    work.git("switch", "--quiet", "main")
    before = refs_of(api.under_test.url(PATH))
    request = PB.RebaseRequest(repository=PATH, branch=b"long", onto=b"v1", committer=ADA)
    request.upstream = b"long~2"
    assert api.call(api.operations.Rebase, request).commits_replayed == 2
    work.git("push", "--quiet", "--force", api.under_test.url(PATH), "long")
    request = PB.RebaseRequest(repository=PATH, branch=b"long", onto=b"main", committer=ADA)
    refused = limit_of(lambda: api.call(api.operations.Rebase, request))
    assert refused[0] == "api.rebase_commits_max"
    assert refs_of(api.under_test.url(PATH)) == before


def test_batch_of_too_many_bytes_ends_with_its_limit(api: Api, work: WorkTree) -> None:
    large = work.git("rev-parse", "main:large.bin").stdout.strip()
    item = blob_pb2.BatchGetBlobsRequest.Item
    request = blob_pb2.BatchGetBlobsRequest(repository=PATH, items=[item(oid=large)])
    limit = limit_of(lambda: api.stream(api.blobs.BatchGetBlobs, request))[0]
    assert limit == "api.batch_bytes_max"


def test_blob_that_no_message_holds_is_refused_and_can_be_streamed(
    api: Api, work: WorkTree
) -> None:
    oid = work.git("rev-parse", "main:README").stdout.strip()
    request = blob_pb2.GetBlobRequest(repository=PATH, oid=oid)
    assert limit_of(lambda: api.call(api.blobs.GetBlob, request))[0] == "api.unary_bytes_max"
    parts = api.stream(api.blobs.ReadBlob, blob_pb2.ReadBlobRequest(repository=PATH, oid=oid))
    assert b"".join(part.chunk for part in parts) == b"hello\n"


def test_watch_tells_its_progress_after_the_heartbeat(api: Api) -> None:
    call = api.events.Watch(
        event_pb2.WatchRequest(repository=PATH),
        timeout=30,
        metadata=(("authorization", f"Bearer {TOKEN}"),),
    )
    kinds = [next(call).WhichOneof("kind") for _ in range(4)]
    call.cancel()
    assert kinds == ["progress"] * 4


def test_worker_that_takes_too_long_is_stopped_and_the_limit_is_named(hurried: Api) -> None:
    api = hurried
    fsck = repository_pb2.FsckRepositoryRequest(path=PATH)
    bundle = repository_pb2.CreateBundleRequest(path=PATH)
    check = PB.MergeCheckRequest(repository=PATH, target=b"main", source=b"main")
    calls: list[tuple[Callable[[], Any], str]] = [
        (lambda: api.call(api.repositories.FsckRepository, fsck), "api.fsck_timeout_s"),
        (lambda: api.stream(api.repositories.CreateBundle, bundle), "api.read_timeout_s"),
        (lambda: api.call(api.operations.MergeCheck, check), "api.read_timeout_s"),
    ]
    for call, limit in calls:
        # Each call costs a worker; until another is there, the answer is that the node is busy.
        refused = eventually(lambda call=call: _unless_busy(call), timeout_s=60, what=limit)  # type: ignore[misc]
        assert refused is not None
        assert refused.code == "RESOURCE_EXHAUSTED"
        assert refused.detail(errors_pb2.LimitViolation).limit == limit
        assert limit in refused.text
    # What the edge answers by itself is answered still.
    head = ref_pb2.GetRefRequest(repository=PATH, name=b"HEAD")
    assert api.call(api.refs.GetRef, head).ref.oid


def _unless_busy(call: Callable[[], Any]) -> Refused | None:
    with pytest.raises(Refused) as caught:
        call()
    return None if caught.value.code == "UNAVAILABLE" else caught.value


@pytest.mark.parametrize("size", [-1, -(2**31)])
def test_negative_page_is_refused_and_a_huge_one_is_cut(api: Api, size: int) -> None:
    for method, request in (
        (api.refs.ListRefs, ref_pb2.ListRefsRequest(repository=PATH)),
        (api.commits.ListCommits, commit_pb2.ListCommitsRequest(repository=PATH)),
        (api.repositories.ListRepositories, repository_pb2.ListRepositoriesRequest()),
        (api.repositories.ListDeletedRepositories, repository_pb2.ListDeletedRepositoriesRequest()),
    ):
        request.page_size = size
        assert api.refused(method, request).code == "INVALID_ARGUMENT"
        request.page_size = 2**31 - 1
        api.call(method, request)


def test_deadline_of_the_caller_is_passed_on(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    core = api.under_test.core
    given: list[float] = []
    for name in ("propose", "read_index", "replicate_pack"):
        method = getattr(core, name)

        async def noting(*arguments: Any, method: Any = method) -> Any:
            given.append(next(a for a in reversed(arguments) if isinstance(a, float)))
            return await method(*arguments)

        monkeypatch.setattr(core, name, noting)
    metadata = (("authorization", f"Bearer {TOKEN}"),)
    started = time.monotonic()
    tag = PB.CreateTagRequest(
        repository=PATH, tag=b"deadline", target=b"main", message=b"m", tagger=ADA
    )
    api.operations.CreateTag(tag, timeout=3.0, metadata=metadata)
    api.refs.GetRef(
        ref_pb2.GetRefRequest(
            repository=PATH,
            name=b"HEAD",
            consistency=common_pb2.Consistency(linearizable=common_pb2.Consistency.Linearizable()),
        ),
        timeout=3.0,
        metadata=metadata,
    )
    assert len(given) >= 3
    assert max(given) < 3.0, f"after {time.monotonic() - started} s"


def test_call_whose_deadline_is_over_goes_on_and_is_done_once(api: Api) -> None:
    core, metadata = api.under_test.core, (("authorization", f"Bearer {TOKEN}"),)
    request = PB.CreateBranchRequest(
        request_id=str(uuid.uuid4()), repository=PATH, branch=b"late", start=b"main"
    )
    hold = core.hold = asyncio.Event()
    try:
        with pytest.raises(grpc.RpcError) as caught:
            api.operations.CreateBranch(request, timeout=1.0, metadata=metadata)
        assert caught.value.code() == grpc.StatusCode.DEADLINE_EXCEEDED
    finally:
        core.hold = None
        api.under_test.loop.call_soon_threadsafe(hold.set)
    oid = api.call(api.operations.CreateBranch, request).oid
    assert refs_of(api.under_test.url(PATH))["refs/heads/late"] == oid


def test_every_limit_of_the_api_has_a_test() -> None:
    """A new key of [api] fails here until a test exceeds it."""
    tests = "".join(path.read_text() for path in TESTS.glob("test_grpc_*.py"))
    assert [name for name in ApiSection.model_fields if name not in tests] == []
