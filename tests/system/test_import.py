"""An import whose node is killed in the middle: nothing is half there, and its repeat makes it
once."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import grpc
import pytest
from support.demo import Demo
from support.git import WorkTree, clone, git, refs_of
from support.http_backend import Backend, backend, bare_clone
from support.waiting import eventually

from quorepo.rpc.request_ids import new_request_uuid
from quorepo.v1 import import_pb2 as pb
from quorepo.v1 import import_pb2_grpc

pytestmark = pytest.mark.system

PATH = "team/imported"
STATES = pb.LongRunningOperation.State


@pytest.fixture
def demo(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Demo]:
    """Three nodes that may import from this machine."""
    monkeypatch.setenv("QUOREPO_IMPORTS__ALLOW_HTTP", "true")
    monkeypatch.setenv("QUOREPO_IMPORTS__ALLOW_PRIVATE", "true")
    with Demo(tmp_path / "demo") as demo:
        yield demo


@pytest.fixture
def source(work: WorkTree, tmp_path: Path) -> Iterator[Backend]:
    work.commit("first")
    work.git("tag", "v1")
    work.commit("second")
    bare_clone(work.path, tmp_path / "served" / "app.git")
    with backend(tmp_path / "served") as served:
        yield served


def call(demo: Demo, node: str, method: str, request: Any) -> Any:
    """The operation in the answer."""
    with grpc.insecure_channel(demo.nodes[node].grpc) as channel:
        stub: Any = import_pb2_grpc.ImportServiceStub(channel)
        metadata = (("authorization", f"Bearer {demo.token}"),)
        return getattr(stub, method)(request, timeout=60, metadata=metadata).operation


def processes_of_imports(demo: Demo) -> list[Path]:
    """In /proc: those whose parent is an edge of this demo."""
    found = []
    for entry in Path("/proc").glob("[0-9]*"):
        words = words_of(entry)
        if b"quorepo.rpc.imports.source" in words:
            parent = words_of(entry.parent / words[-1].decode())
            if any(word.startswith(bytes(demo.directory)) for word in parent):
                found.append(entry)
    return found


def words_of(process: Path) -> list[bytes]:
    """Its command line; nothing when it has ended."""
    try:
        return (process / "cmdline").read_bytes().rstrip(b"\0").split(b"\0")
    except OSError:
        return []


def test_a_node_is_killed_in_the_middle_of_an_import(
    demo: Demo, source: Backend, tmp_path: Path
) -> None:
    asked, go_on = threading.Event(), threading.Event()

    def hang(handler: BaseHTTPRequestHandler) -> bool:
        if handler.command == "POST" and not asked.is_set():
            asked.set()
            go_on.wait(120)
        return False

    source.instead = hang
    request = pb.ImportRepositoryRequest(
        request_id=str(new_request_uuid()), path=PATH, url=source.url("app.git")
    )
    begun = call(demo, "n1", "ImportRepository", request)
    assert begun.state == STATES.STATE_RUNNING
    assert asked.wait(60)
    (process,) = processes_of_imports(demo)
    told = call(demo, "n2", "GetOperation", pb.GetOperationRequest(name=begun.name))
    assert (told.name, told.state, told.phase) == (begun.name, STATES.STATE_RUNNING, "receiving")
    demo.kill("n1")
    eventually(lambda: not words_of(process), timeout_s=60, what="its process has ended")
    go_on.set()

    # Nothing of it is there, and nobody claims otherwise.
    with pytest.raises(grpc.RpcError, match="made nothing so far"):
        when_known(demo, "n2", begun.name)
    assert git("ls-remote", demo.url("n2", PATH), check=False).returncode != 0

    # The same request on another node makes it, once.
    again = call(demo, "n2", "ImportRepository", request)
    wait = pb.WaitOperationRequest(name=again.name, timeout_s=60)
    done = call(demo, "n2", "WaitOperation", wait)
    assert done.state == STATES.STATE_DONE, done
    expected = refs_of(source.url("app.git"))
    assert refs_of(demo.url("n3", PATH)) == expected

    # The first node, started again, says so too under the name that it gave.
    demo.restart("n1")
    eventually(
        lambda: git("ls-remote", demo.url("n1", PATH), check=False).returncode == 0,
        timeout_s=60,
        what="n1 serves",
    )
    found = call(demo, "n1", "GetOperation", pb.GetOperationRequest(name=begun.name))
    assert (found.state, found.revision) == (STATES.STATE_DONE, done.revision)
    assert call(demo, "n1", "ImportRepository", request).revision == done.revision
    clone(demo.url("n1", PATH), tmp_path / "clone")


def when_known(demo: Demo, node: str, name: str) -> Any:
    """Asked once a leader is there again: before, the node can't say."""

    def there_is_a_leader() -> bool:
        answer = git("ls-remote", demo.url(node, "no/such"), check=False)
        return "does not exist" in answer.stderr or "not found" in answer.stderr

    eventually(there_is_a_leader, timeout_s=60, what="a leader")
    return call(demo, node, "GetOperation", pb.GetOperationRequest(name=name))
