"""Bad input of every read of the API, found by the fields of its request: a precise error each."""

from __future__ import annotations

import asyncio
import base64
import time
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import MethodDescriptor
from support.api_methods import REVISIONS, ask, good, reads, variants
from support.edge import TOKEN
from support.git import WorkTree
from support.grpc_api import Api, Refused, push_history, serving_api

from quorepo.v1 import common_pb2, operation_pb2, ref_pb2

PATH = "team/bad-input"
BAD_REVISIONS = [
    b"1" * 40,  # no such object
    b"\x00",
    b"refs/heads/\xff\xfe",
    b"main^{nonsense}",
    b"../main",
    b"x" * 100_000,
]
PATHS = ("path", "paths", "folder")
BAD_PATHS = [b"/etc/passwd", b"..", b"a/../../b", b"a//b", b"./a", b"x" * 70_000]
BAD_REPOSITORIES = ["../up", "a/./b", "a//b", "a/../b", "x" * 5000, "nul\0", "a.git/b", ""]
BAD_TOKENS = ["nonsense", base64.urlsafe_b64encode(b"\xff" * 40).decode(), "é"]
# What such a name means there: nothing, and that is the answer.
TELLS_OF_ABSENCE = ("CheckObjectsExist",)


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with serving_api(tmp_path_factory.mktemp("node") / "data") as api:
        push_history(api, WorkTree(tmp_path_factory.mktemp("bad") / "work"), PATH)
        yield api


READS = reads()
NAMES = [method.name for method in READS]


def refused(api: Api, method: MethodDescriptor, request: Any) -> Refused:
    with pytest.raises(Refused) as caught:
        ask(api, method, request)
    error = caught.value
    assert error.info.domain == "quorepo"
    assert error.info.metadata["conclusion"] == "rejected"
    assert len(error.text) < 1000, "what was sent does not come back as a whole"
    return error


@pytest.mark.parametrize("method", READS, ids=NAMES)
def test_what_is_well_asked_is_answered(api: Api, method: MethodDescriptor) -> None:
    assert ask(api, method, good(method, PATH))


@pytest.mark.parametrize("method", READS, ids=NAMES)
def test_names_of_nothing_are_not_found_or_no_names(api: Api, method: MethodDescriptor) -> None:
    request = good(method, PATH)
    for name in REVISIONS:
        for bad in BAD_REVISIONS:
            for changed in variants(request, name, bad):
                if method.name in TELLS_OF_ABSENCE and b"^{" not in bad and len(bad) < 4096:
                    assert ask(api, method, changed)
                else:
                    assert refused(api, method, changed).code in ("NOT_FOUND", "INVALID_ARGUMENT")


@pytest.mark.parametrize("method", READS, ids=NAMES)
def test_paths_that_lead_elsewhere_are_refused_by_every_read(
    api: Api, method: MethodDescriptor
) -> None:
    request = good(method, PATH)
    for name in PATHS:
        for bad in BAD_PATHS:
            for changed in variants(request, name, bad):
                assert refused(api, method, changed).code == "INVALID_ARGUMENT"


@pytest.mark.parametrize("method", READS, ids=NAMES)
def test_paths_of_no_repository_are_refused(api: Api, method: MethodDescriptor) -> None:
    request = good(method, PATH)
    if "path_prefix" in method.input_type.fields_by_name:
        return
    for bad in BAD_REPOSITORIES:
        for name in ("repository", "path"):
            for changed in variants(request, name, bad):
                assert refused(api, method, changed).code == "INVALID_ARGUMENT"
    for name in ("repository", "path"):
        for changed in variants(request, name, "no/such"):
            if method.name == "CheckRepositoryExists":
                assert not ask(api, method, changed)[0].exists
            else:
                assert refused(api, method, changed).code == "NOT_FOUND"


@pytest.mark.parametrize("method", READS, ids=NAMES)
def test_pages_are_bounded_and_their_tokens_checked(api: Api, method: MethodDescriptor) -> None:
    request = good(method, PATH)
    for changed in variants(request, "page_size", -1):
        assert refused(api, method, changed).code == "INVALID_ARGUMENT"
    for changed in variants(request, "page_size", (1 << 31) - 1):
        assert ask(api, method, changed)
    for bad in BAD_TOKENS:
        for changed in variants(request, "page_token", bad):
            assert refused(api, method, changed).code == "INVALID_ARGUMENT"


@pytest.mark.parametrize("method", READS, ids=NAMES)
def test_a_revision_of_the_future_is_not_waited_for(api: Api, method: MethodDescriptor) -> None:
    request = good(method, PATH)
    request.consistency.at_least.CopyFrom(common_pb2.Revision(incarnation=9, counter=9))
    error = refused(api, method, request)
    assert error.code in ("FAILED_PRECONDITION", "INVALID_ARGUMENT")


def test_a_message_above_the_limit_is_refused_and_the_next_one_served(api: Api) -> None:
    request = ref_pb2.FindMergeBaseRequest(repository=PATH, commits=[b"x" * 5_000_000])
    with pytest.raises(grpc.RpcError) as caught:
        api.refs.FindMergeBase(
            request, timeout=60, metadata=(("authorization", f"Bearer {TOKEN}"),)
        )
    error: Any = caught.value
    assert error.code() == grpc.StatusCode.RESOURCE_EXHAUSTED
    assert "larger than max" in error.details()
    assert api.call(api.refs.GetRef, ref_pb2.GetRefRequest(repository=PATH, name=b"HEAD")).ref.oid


@pytest.mark.parametrize(
    "name",
    [b"refs/heads/\xff\x00", b"refs/heads/a..b", b"refs/heads/.a", b"refs/heads/a.lock", b"main",
     b"refs/heads/a b", b"refs/heads/" + b"x" * 70_000, b"", b"refs/heads/\x7f"],
)  # fmt: skip
def test_a_ref_name_that_git_would_refuse_is_never_written(api: Api, name: bytes) -> None:
    before = api.call(api.refs.ListRefs, ref_pb2.ListRefsRequest(repository=PATH))
    oid = api.call(api.refs.GetRef, ref_pb2.GetRefRequest(repository=PATH, name=b"HEAD")).ref.oid
    update = ref_pb2.RefUpdate(name=name, new_oid=oid, any_old=True)
    request = ref_pb2.UpdateRefsRequest(repository=PATH, updates=[update])
    assert api.refused(api.refs.UpdateRefs, request).code in (
        "INVALID_ARGUMENT",
        "RESOURCE_EXHAUSTED",
    )
    branch = operation_pb2.CreateBranchRequest(
        repository=PATH, branch=name.removeprefix(b"refs/heads/").replace(b"main", b"/main"),
        start=b"main",
    )  # fmt: skip
    assert api.refused(api.operations.CreateBranch, branch).code in (
        "INVALID_ARGUMENT",
        "RESOURCE_EXHAUSTED",
    )
    assert api.call(api.refs.ListRefs, ref_pb2.ListRefsRequest(repository=PATH)) == before


def test_the_deadline_of_a_client_reaches_the_core(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    core = api.under_test.core
    told: list[float] = []
    read_index = core.read_index

    async def recording(groups: Any, timeout_s: float) -> Any:
        told.append(timeout_s)
        return await read_index(groups, timeout_s)

    monkeypatch.setattr(core, "read_index", recording)
    request = ref_pb2.GetRefRequest(repository=PATH, name=b"HEAD")
    metadata = (("authorization", f"Bearer {TOKEN}"),)
    api.refs.GetRef(request, timeout=3, metadata=metadata)
    api.refs.GetRef(request, timeout=3600, metadata=metadata)
    assert 0 < told[0] < 3
    assert 3 < told[1] < 3600


def test_a_deadline_that_is_over_ends_the_call(api: Api, monkeypatch: pytest.MonkeyPatch) -> None:
    core = api.under_test.core

    async def never(groups: Any, timeout_s: float) -> Any:
        await asyncio.Event().wait()

    monkeypatch.setattr(core, "read_index", never)
    started = time.monotonic()
    with pytest.raises(grpc.RpcError) as caught:
        api.refs.GetRef(
            ref_pb2.GetRefRequest(repository=PATH, name=b"HEAD"),
            timeout=0.5,
            metadata=(("authorization", f"Bearer {TOKEN}"),),
        )
    error: Any = caught.value
    # The node says what it waited for just before the client gives up; the client may be first.
    assert error.code() in (grpc.StatusCode.UNAVAILABLE, grpc.StatusCode.DEADLINE_EXCEEDED)
    assert time.monotonic() - started < 60
