"""A client that leaves ends the work for it: every stream of the API, and a call that waits."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterator
from typing import Any

import grpc
import pytest
from google.protobuf.descriptor import MethodDescriptor
from support.api_methods import good, reads, stub_of
from support.api_writes import all_methods
from support.edge import TOKEN
from support.git import WorkTree
from support.grpc_api import Api, push_history, serving_api
from support.raw_http import packet
from support.waiting import eventually

from quorepo.rpc.grpc import interceptor
from quorepo.v1 import event_pb2, ref_pb2, transfer_pb2

PATH = "team/cancelled"
METADATA = (("authorization", f"Bearer {TOKEN}"),)
READS = {method.name for method in reads()}
STREAMS = [method for method in all_methods() if method.server_streaming]


@pytest.fixture(scope="module")
def work(tmp_path_factory: pytest.TempPathFactory) -> WorkTree:
    return WorkTree(tmp_path_factory.mktemp("cancelled") / "work")


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory, work: WorkTree) -> Iterator[Api]:
    with serving_api(tmp_path_factory.mktemp("node") / "data") as api:
        push_history(api, work, PATH)
        yield api


def cancelled(api: Api, name: str) -> float:
    return float(api.under_test.edge.metrics.cancelled_calls.labels(name)._value.get())


def request_of(method: MethodDescriptor, work: WorkTree) -> Any:
    if method.name in READS:
        return good(method, PATH)
    if method.name == "Watch":
        return event_pb2.WatchRequest(repository=PATH, from_beginning=True)
    version = "version=2" if method.name == "UploadPack" else ""
    header = transfer_pb2.TransferHeader(repository=PATH, advertise=True, git_protocol=version)
    kind = {
        "UploadPack": transfer_pb2.UploadPackRequest,
        "ReceivePack": transfer_pb2.ReceivePackRequest,
    }[method.name]
    return iter([kind(header=header)])


@pytest.mark.parametrize("method", STREAMS, ids=lambda method: method.name)
def test_a_stream_whose_client_leaves_is_ended_and_leaves_nothing(
    api: Api, work: WorkTree, method: MethodDescriptor, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the size of its answer: the second message of each waits for ever."""
    write = interceptor._write
    written: list[str] = []

    async def one_only(context: Any, response: Any) -> None:
        if written:
            await asyncio.Event().wait()
        written.append(method.name)
        await write(context, response)

    monkeypatch.setattr(interceptor, "_write", one_only)
    before = cancelled(api, method.name)
    call = stub_of(api, method)(request_of(method, work), timeout=120, metadata=METADATA)
    next(call)
    call.cancel()
    eventually(
        lambda: cancelled(api, method.name) == before + 1, timeout_s=60, what="the call has ended"
    )
    api.under_test.settle()
    tmp = api.under_test.edge.config.node.data_dir / "tmp"
    eventually(lambda: not list(tmp.glob("read-*")), timeout_s=60, what="no file is left")
    assert api.under_test.uploads() == []
    assert api.under_test.edge.workers.running == 0


def test_a_call_whose_client_leaves_while_it_waits_is_ended(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one whose deadline is over."""
    waits = asyncio.Event()
    asked: list[float] = []

    async def never(groups: Any, timeout_s: float) -> Any:
        asked.append(timeout_s)
        await waits.wait()

    monkeypatch.setattr(api.under_test.core, "read_index", never)
    request = ref_pb2.GetRefRequest(repository=PATH, name=b"HEAD")
    before = cancelled(api, "GetRef")
    call = api.refs.GetRef.future(request, timeout=120, metadata=METADATA)
    eventually(lambda: asked != [], timeout_s=60, what="the call waits")
    call.cancel()
    eventually(lambda: cancelled(api, "GetRef") == before + 1, timeout_s=60, what="it has ended")
    assert call.code() == grpc.StatusCode.CANCELLED


def test_a_fetch_of_a_pack_ends_with_its_client(api: Api, work: WorkTree) -> None:
    """In the middle of 4 MB, without any help."""
    body = packet(b"command=fetch") + b"0001" + packet(f"want {work.head()}".encode())
    body += packet(b"done") + b"0000"
    header = transfer_pb2.TransferHeader(repository=PATH, git_protocol="version=2")
    metrics = api.under_test.edge.metrics
    kind = transfer_pb2.UploadPackRequest
    parts = [kind(header=header), kind(chunk=body), kind(sha256=hashlib.sha256(body).digest())]
    method = next(method for method in STREAMS if method.name == "UploadPack")
    call = stub_of(api, method)(iter(parts), timeout=120, metadata=METADATA)
    next(call)
    call.cancel()
    in_flight = metrics.in_flight.labels("git-upload-pack")
    eventually(lambda: in_flight._value.get() == 0, timeout_s=60, what="the stream has ended")
