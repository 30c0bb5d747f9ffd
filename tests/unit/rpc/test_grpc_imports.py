"""Imports from another git server: C git's `http-backend` on loopback, and servers that
misbehave."""

from __future__ import annotations

import contextlib
import datetime
import hashlib
import logging
import socket
import ssl
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from support.git import WorkTree, clone, git, refs_of
from support.grpc_api import Api, serving_api
from support.http_backend import Backend, backend, bare_clone
from support.peer_certificates import authority, now
from support.waiting import eventually

from quorepo.cluster.peer.authority import issue_listener_certificate
from quorepo.internal.v1 import log_pb2
from quorepo.rpc.grpc.peer_channels import PeerChannels
from quorepo.rpc.imports.config import ImportsSection
from quorepo.rpc.imports.network import AddressRefused, is_public, pool_manager
from quorepo.rpc.request_ids import new_request_uuid
from quorepo.v1 import cluster_pb2, import_pb2, repository_pb2

PB = import_pb2
STATES = PB.LongRunningOperation.State
OPEN = {"allow_http": True, "allow_private": True}
SECRET = "Basic c2VjcmV0OnNlY3JldA=="


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    folder = tmp_path_factory.mktemp("node") / "data"
    with serving_api(folder, imports=OPEN, git={"hidden_refs": ["refs/heads/hidden"]}) as api:
        yield api


@pytest.fixture(autouse=True)
def _leaves_nothing_behind(api: Api) -> Iterator[None]:
    configured = api.under_test.edge.config.imports.model_dump()
    yield
    configure(api, **configured)
    api.under_test.settle()
    assert api.under_test.uploads() == []


@pytest.fixture(scope="module")
def history(tmp_path_factory: pytest.TempPathFactory) -> WorkTree:
    """Branches, tags, a hidden branch, a note, and HEAD on neither main nor master."""
    work = WorkTree(tmp_path_factory.mktemp("work") / "work")
    work.commit("first", {"a.txt": "a\n", "large.bin": hashlib.shake_256(b"x").digest(2**20)})
    work.git("tag", "--annotate", "--message=release", "v1")
    work.git("branch", "hidden/one")
    work.git("update-ref", "refs/pull/1/head", "HEAD")
    work.git("checkout", "--quiet", "-b", "trunk")
    work.commit("second", {"b.txt": "b\n"})
    return work


@pytest.fixture
def source(history: WorkTree, tmp_path: Path) -> Iterator[Backend]:
    bare_clone(history.path, tmp_path / "served" / "app.git")
    with backend(tmp_path / "served") as served:
        yield served


def configure(api: Api, **changes: Any) -> None:
    """Other values for [imports]; the service reads them through the one section that it holds."""
    section = api.under_test.edge.config.imports
    for key, value in ImportsSection(**{**section.model_dump(), **changes}):
        object.__setattr__(section, key, value)


def begin(api: Api, path: str, url: str, request_id: str = "", authorization: str = "") -> Any:
    request = PB.ImportRepositoryRequest(
        path=path, url=url, request_id=request_id, authorization=authorization
    )
    return api.call(api.imports.ImportRepository, request).operation


def end_of(api: Api, operation: Any) -> Any:
    """The operation when it is over."""

    def over() -> bool:
        nonlocal operation
        request = PB.WaitOperationRequest(name=operation.name, timeout_s=10)
        operation = api.call(api.imports.WaitOperation, request).operation
        return bool(operation.state != STATES.STATE_RUNNING)

    eventually(over, timeout_s=120, what="the import is over")
    return operation


def imported(api: Api, path: str, url: str, **arguments: str) -> Any:
    operation = end_of(api, begin(api, path, url, **arguments))
    assert operation.state == STATES.STATE_DONE, operation
    return operation


def failed(api: Api, path: str, url: str, **arguments: str) -> Any:
    """How it failed; and nothing was made."""
    operation = end_of(api, begin(api, path, url, **arguments))
    assert operation.state == STATES.STATE_FAILED, operation
    assert not exists(api, path)
    return operation


def exists(api: Api, path: str) -> bool:
    request = repository_pb2.CheckRepositoryExistsRequest(path=path)
    return bool(api.call(api.repositories.CheckRepositoryExists, request).exists)


# ---- what is imported


def test_branches_tags_and_head_arrive_in_one_transaction(
    api: Api, source: Backend, history: WorkTree, path: str, tmp_path: Path
) -> None:
    before = len(api.under_test.core.commands)
    operation = imported(api, path, source.url("app.git"))
    kinds = [c.WhichOneof("kind") for c in api.under_test.core.commands[before:]]
    assert kinds == ["reserve_path", "transaction"]
    assert (operation.path, operation.revision.counter) == (path, 1)
    assert operation.objects == int(
        git("rev-list", "--objects", "--all", "--count", cwd=history.path).stdout
    )
    assert operation.bytes_done > 2**20
    assert operation.end_time.seconds >= operation.start_time.seconds > 0
    expected = refs_of(source.url("app.git"))
    hidden = expected.pop("refs/heads/hidden/one")
    assert hidden
    expected.pop("refs/pull/1/head")
    assert refs_of(api.under_test.url(path)) == expected
    target = clone(api.under_test.url(path), tmp_path / "clone")
    assert git("symbolic-ref", "HEAD", cwd=target).stdout == "refs/heads/trunk\n"


def test_sha256_is_imported_too(api: Api, path: str, tmp_path: Path) -> None:
    served = tmp_path / "served"
    work = WorkTree(tmp_path / "sha1")
    git("init", "--quiet", "--object-format=sha256", "--initial-branch=main", str(tmp_path / "w"))
    work.path = tmp_path / "w"
    work.commit("first")
    bare_clone(work.path, served / "long.git")
    with backend(served) as source:
        imported(api, path, source.url("long.git"))
        assert refs_of(api.under_test.url(path)) == refs_of(source.url("long.git"))


def test_an_empty_source_makes_nothing(api: Api, path: str, tmp_path: Path) -> None:
    git("init", "--quiet", "--bare", str(tmp_path / "served" / "empty.git"))
    with backend(tmp_path / "served") as source:
        operation = failed(api, path, source.url("empty.git"))
    assert operation.error_reason == "SOURCE_FAILED"
    assert "no branch and no tag" in operation.error_message


def test_a_damaged_source_makes_nothing(api: Api, path: str, source: Backend) -> None:
    """The pack is checked as that of a push: here one byte of it was changed on its way."""
    pack = bytearray()

    def flip(handler: BaseHTTPRequestHandler) -> bool:
        if handler.command != "POST":
            return False
        write = handler.wfile.write

        def damaged(data: Any) -> int:
            at = bytes(data).find(b"PACK")
            if at >= 0 and not pack:  # one connection, one writer: it is wrapped twice
                pack[:] = data
                pack[at + 500] ^= 1
                return write(bytes(pack))
            return write(data)

        handler.wfile.write = damaged  # type: ignore[method-assign]
        return False

    source.instead = flip
    operation = failed(api, path, source.url("app.git"))
    assert pack
    assert operation.error_reason == "CORRUPT_PACK"


# ---- exactly once


def test_a_repeated_request_is_the_same_operation_and_a_later_one_finds_it_done(
    api: Api, path: str, source: Backend
) -> None:
    request_id = str(new_request_uuid())
    first = begin(api, path, source.url("app.git"), request_id)
    again = begin(api, path, source.url("app.git"), request_id)
    assert first.name == again.name
    assert first.request_id == request_id
    done = end_of(api, first)
    asked = len(source.seen)
    assert begin(api, path, source.url("app.git"), request_id).revision == done.revision
    assert len(source.seen) == asked
    other = api.refused(
        api.imports.ImportRepository,
        PB.ImportRepositoryRequest(path=path, url=source.url("app.git")),
    )
    assert other.code == "ALREADY_EXISTS"


def test_a_node_that_was_started_again_tells_what_was_done_and_what_was_not(
    api: Api, path: str, source: Backend
) -> None:
    """The name of another start of the node stands for one that this process never saw."""
    done = imported(api, path, source.url("app.git"))
    name = f"n1/00000000/{done.request_id}"
    found = api.call(api.imports.GetOperation, PB.GetOperationRequest(name=name)).operation
    assert (found.state, found.revision, found.path) == (
        STATES.STATE_DONE, done.revision, path,
    )  # fmt: skip
    for node, step in (("n1", "request_id"), ("n2", "ask node n2")):
        unknown = api.refused(
            api.imports.GetOperation,
            PB.GetOperationRequest(name=f"{node}/00000000/{new_request_uuid()}"),
        )
        assert unknown.code == "NOT_FOUND"
        assert step in unknown.info.metadata["next_step"]
        assert "made nothing" in unknown.text
    bad = api.refused(api.imports.GetOperation, PB.GetOperationRequest(name="n1/x"))
    assert bad.code == "INVALID_ARGUMENT"


def test_an_outcome_that_is_not_known_is_settled_by_the_same_request(
    api: Api, path: str, source: Backend
) -> None:
    request_id = str(new_request_uuid())
    api.under_test.core.answers_lost = 1
    operation = end_of(api, begin(api, path, source.url("app.git"), request_id))
    assert operation.state == STATES.STATE_FAILED
    assert operation.error_reason == "OUTCOME_UNKNOWN"
    assert imported(api, path, source.url("app.git"), request_id=request_id).revision.counter == 1


# ---- cancelled


def hanging(source: Backend) -> tuple[threading.Event, threading.Event]:
    """The source says nothing more once it is asked for objects: (asked, let it go on)."""
    asked, go_on = threading.Event(), threading.Event()

    def wait(handler: BaseHTTPRequestHandler) -> bool:
        if handler.command == "POST":
            asked.set()
            go_on.wait(120)
        return False

    source.instead = wait
    return asked, go_on


def test_a_cancelled_import_leaves_nothing_behind(api: Api, path: str, source: Backend) -> None:
    asked, go_on = hanging(source)
    try:
        operation = begin(api, path, source.url("app.git"))
        assert asked.wait(60)
        listed = api.call(api.imports.ListOperations, PB.ListOperationsRequest(page_size=1000))
        assert operation.name in [o.name for o in listed.operations]
        request = PB.CancelOperationRequest(name=operation.name)
        ended = api.call(api.imports.CancelOperation, request).operation
        assert ended.state == STATES.STATE_CANCELLED
        assert api.call(api.imports.CancelOperation, request).operation == ended
        assert not exists(api, path)
        assert api.under_test.uploads() == []
    finally:
        go_on.set()


@contextlib.contextmanager
def other_node(folder: Path, address: str) -> Iterator[Api]:
    """A node n2 to which n1 is registered at `address`; their logs are not one."""
    data_dir = folder / "data"
    with serving_api(data_dir, node={"name": "n2", "data_dir": data_dir}) as other:
        command = other.under_test.edge.origin("admin").command()
        row = log_pb2.RegisterNode(name="n1", replica_id="r1", grpc_address=address)
        command.register_node.CopyFrom(row)
        other.under_test.core.apply(0, command)
        yield other


def test_any_node_asks_the_one_that_runs_the_import(
    api: Api, path: str, source: Backend, tmp_path: Path
) -> None:
    """Progress, the wait for its end, and its cancellation; as the caller, not as the node."""
    asked, go_on = hanging(source)
    address = api.under_test.edge.config.listen.grpc
    try:
        begun = begin(api, path, source.url("app.git"))
        assert asked.wait(60)
        with other_node(tmp_path, address) as n2:
            ask = PB.GetOperationRequest(name=begun.name)
            found = n2.call(n2.imports.GetOperation, ask).operation
            assert (found.state, found.path) == (STATES.STATE_RUNNING, path)
            assert found.phase == "receiving"
            wait = PB.WaitOperationRequest(name=begun.name, timeout_s=0.01)
            waited = n2.call(n2.imports.WaitOperation, wait).operation
            assert waited.state == STATES.STATE_RUNNING
            of_this = cluster_pb2.GetStatusRequest(this_node_only=True)
            serving = api.call(api.cluster.GetStatus, of_this).nodes[0].serving
            assert (serving.imports_running, serving.imports_running_max) == (1, 2)
            cancel = PB.CancelOperationRequest(name=begun.name)
            stopped = n2.call(n2.imports.CancelOperation, cancel).operation
            assert stopped.state == STATES.STATE_CANCELLED
            refused = n2.refused(n2.imports.GetOperation, ask, token="nobody's")
            assert refused.code == "UNAUTHENTICATED"
    finally:
        go_on.set()
    assert not exists(api, path)


def test_an_operation_of_a_node_that_does_not_answer_names_that_node(
    api: Api, tmp_path: Path
) -> None:
    request = PB.GetOperationRequest(name=f"n1/00000000/{new_request_uuid()}")
    with other_node(tmp_path, "127.0.0.1:1") as n2:
        refused = n2.refused(n2.imports.GetOperation, request)
        assert refused.code == "NOT_FOUND"
        assert "node n1 does not know it or does not answer" in refused.text
        assert "it has made nothing so far" in refused.text
        assert "ask node n1" in refused.info.metadata["next_step"]
        request.name = request.name.replace("n1", "n9", 1)
        assert "n9 is no member" in n2.refused(n2.imports.GetOperation, request).text


def test_a_question_that_was_passed_on_is_not_passed_on_again(tmp_path: Path) -> None:
    """A registered address that leads to the wrong node, here to n2 itself, makes no loop."""
    request = PB.GetOperationRequest(name=f"n1/00000000/{new_request_uuid()}")
    with other_node(tmp_path, "127.0.0.1:1") as n2:
        row = log_pb2.RegisterNode(
            name="n1", replica_id="r1", grpc_address=n2.under_test.edge.config.listen.grpc
        )
        command = n2.under_test.edge.origin("admin").command()
        command.register_node.CopyFrom(row)
        n2.under_test.core.apply(0, command)
        assert n2.refused(n2.imports.GetOperation, request).code == "NOT_FOUND"


def test_a_token_does_not_leave_the_machine_in_the_clear(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[str] = []
    with other_node(tmp_path, "192.0.2.1:7421") as n2:
        monkeypatch.setattr(PeerChannels, "_channel", lambda _self, address: opened.append(address))
        request = PB.GetOperationRequest(name=f"n1/00000000/{new_request_uuid()}")
        assert n2.refused(n2.imports.GetOperation, request).code == "NOT_FOUND"
    assert opened == []


def test_operations_are_listed_page_by_page_and_forgotten_after_a_while(
    api: Api, path: str, source: Backend
) -> None:
    for number in range(3):
        imported(api, f"{path}-{number}", source.url("app.git"))
    names: list[str] = []
    request = PB.ListOperationsRequest(page_size=2)
    while True:
        page = api.call(api.imports.ListOperations, request)
        names += [operation.name for operation in page.operations]
        if not page.next_page_token:
            break
        request.page_token = page.next_page_token
    assert len(names) == len(set(names)) >= 3
    configure(api, kept_max=1)
    imported(api, f"{path}-last", source.url("app.git"))
    listed = api.call(api.imports.ListOperations, PB.ListOperationsRequest()).operations
    assert len(listed) <= 1
    configure(api, kept_s=1e-9)
    assert not api.call(api.imports.ListOperations, PB.ListOperationsRequest()).operations


# ---- limits


def test_limits_are_named(api: Api, path: str, source: Backend) -> None:
    url = source.url("app.git")
    configure(api, bytes_max=100_000)
    assert "imports.bytes_max" in failed(api, path, url).error_message
    configure(api, bytes_max=2**30)
    endless(source)
    configure(api, redirects_max=2)
    operation = failed(api, path, url)
    assert operation.error_reason == "LIMIT_EXCEEDED"
    assert "imports.redirects_max" in operation.error_message
    _asked, go_on = hanging(source)
    try:
        configure(api, idle_timeout_s=0.5)
        operation = failed(api, path, url)
        assert operation.error_reason == "SOURCE_FAILED"
        assert "timed out" in operation.error_message
        configure(api, idle_timeout_s=60, timeout_s=2)
        assert "imports.timeout_s" in failed(api, path, url).error_message
    finally:
        go_on.set()


def endless(source: Backend) -> None:
    def redirect(handler: BaseHTTPRequestHandler) -> bool:
        answer(handler, 302, Location=handler.path)
        return True

    source.instead = redirect


def answer(handler: BaseHTTPRequestHandler, status: int, body: bytes = b"", **headers: str) -> None:
    handler.send_response(status)
    for name, value in headers.items():
        handler.send_header(name.replace("_", "-"), value)
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


def test_more_imports_at_a_time_than_the_limit(api: Api, path: str, source: Backend) -> None:
    configure(api, concurrent_max=1)
    asked, go_on = hanging(source)
    try:
        operation = begin(api, path, source.url("app.git"))
        assert asked.wait(60)
        refused = api.refused(
            api.imports.ImportRepository,
            PB.ImportRepositoryRequest(path=f"{path}-2", url=source.url("app.git")),
        )
        assert refused.code == "UNAVAILABLE"
        assert "imports.concurrent_max" in refused.text
    finally:
        go_on.set()
    assert end_of(api, operation).state == STATES.STATE_DONE


def test_a_node_that_is_drained_begins_no_import(api: Api, path: str, source: Backend) -> None:
    slots = api.under_test.edge.push_slots
    api.under_test.core.draining = True
    try:
        eventually(lambda: slots.drained, timeout_s=60, what="the edge knows")
        request = PB.ImportRepositoryRequest(path=path, url=source.url("app.git"))
        error = api.refused(api.imports.ImportRepository, request)
        assert error.code == "UNAVAILABLE"
        assert "drained" in error.text
        assert source.seen == []
    finally:
        api.under_test.core.draining = False
        eventually(lambda: not slots.drained, timeout_s=60, what="the edge knows")


def test_refs_without_end_meet_the_limit_of_memory(api: Api, path: str, source: Backend) -> None:
    """Half a gigabyte of refs before any pack."""
    configure(api, memory_bytes_max=96 * 2**20, timeout_s=300)
    line = b"%040d refs/heads/%0900d\n"

    def many(handler: BaseHTTPRequestHandler) -> bool:
        handler.send_response(200)
        handler.send_header("Content-Type", "application/x-git-upload-pack-advertisement")
        handler.send_header("Connection", "close")
        handler.end_headers()
        try:
            handler.wfile.write(b"001e# service=git-upload-pack\n0000")
            for block in range(1000):
                rows = [line % (n + 1, block * 1000 + n) for n in range(1000)]
                handler.wfile.write(b"".join(b"%04x" % (len(r) + 4) + r for r in rows))
        except ConnectionError:
            handler.close_connection = True
        return True

    source.instead = many
    operation = failed(api, path, source.url("app.git"))
    assert operation.error_reason == "LIMIT_EXCEEDED"
    assert "imports.memory_bytes_max" in operation.error_message


# ---- who is asked


@pytest.mark.parametrize(
    "address",
    [
        *("127.0.0.1", "10.1.2.3", "172.16.0.1", "192.168.1.1", "169.254.169.254", "100.64.0.1"),
        *("0.0.0.0", "224.0.0.1", "255.255.255.255", "192.0.2.1", "240.0.0.1", "198.18.0.1"),
        *("::", "::1", "fe80::1%eth0", "fc00::1", "fd12::1", "ff02::1", "2001:db8::1"),
        *("::ffff:127.0.0.1", "::ffff:10.0.0.1", "64:ff9b::10.0.0.1", "64:ff9b::7f00:1"),
        *("2002:0a00:0001::", "2001:0:4136:e378:8000:63bf:3fff:fdd2", "fec0::1"),
    ],
)  # fmt: skip
def test_addresses_that_are_not_public(address: str) -> None:
    assert not is_public(address)


def test_addresses_that_are_public() -> None:
    for address in ("8.8.8.8", "2606:4700::1111", "64:ff9b::8.8.8.8", "::ffff:8.8.8.8"):
        assert is_public(address)


def test_by_default_only_https_to_public_addresses(api: Api, path: str, source: Backend) -> None:
    configure(api, **ImportsSection().model_dump())
    plain = api.refused(
        api.imports.ImportRepository,
        PB.ImportRepositoryRequest(path=path, url=source.url("app.git")),
    )
    assert plain.info.reason == "SOURCE_NOT_ALLOWED"
    for host in ("localhost", "127.0.0.1", "[::1]", "[::ffff:127.0.0.1]", "2130706433"):
        port = source.address.rpartition(":")[2]
        operation = failed(api, path, f"https://{host}:{port}/app.git")
        assert operation.error_reason == "SOURCE_NOT_ALLOWED", operation
        assert "not public" in operation.error_message
    assert source.seen == []


def test_https_with_a_certificate_that_is_trusted_and_one_that_is_not(
    api: Api, history: WorkTree, path: str, tmp_path: Path
) -> None:
    """Also: a redirect that leads from https to http is not followed."""
    bare_clone(history.path, tmp_path / "served" / "app.git")
    lifetime = datetime.timedelta(days=1)
    issued = issue_listener_certificate(authority("public"), ["localhost"], now(), lifetime)
    pair = tmp_path / "pair.pem"
    pair.write_bytes(issued.certificate_pem + issued.key_pem)
    ca_file = tmp_path / "ca.pem"
    ca_file.write_bytes(authority("public").certificate_pem)
    tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    tls.load_cert_chain(pair)
    with backend(tmp_path / "served", tls) as source:
        configure(api, allow_http=False)
        unknown = failed(api, path, source.url("app.git"))
        assert unknown.error_reason == "SOURCE_FAILED"
        assert "certificate" in unknown.error_message.lower()
        configure(api, allow_http=False, ca_file=ca_file)
        another = failed(api, path, source.url("app.git").replace("localhost", "127.0.0.1"))
        assert "certificate" in another.error_message.lower()
        imported(api, path, source.url("app.git"))

        def redirect(handler: BaseHTTPRequestHandler) -> bool:
            answer(handler, 302, Location=f"http://{source.address}{handler.path}")
            return True

        source.instead = redirect
        downgraded = failed(api, f"{path}-2", source.url("app.git"))
        assert downgraded.error_reason == "SOURCE_NOT_ALLOWED", downgraded
        assert "a scheme that is not allowed" in downgraded.error_message


def test_what_was_judged_is_connected_to_and_a_name_is_asked_once(
    source: Backend, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A name whose address changes between the look and the connection (DNS rebinding)."""
    port = int(source.address.rpartition(":")[2])
    answers = ["192.0.2.7", "127.0.0.1", "10.0.0.1"]
    asked: list[str] = []

    def resolve(host: str, *_arguments: Any, **_named: Any) -> list[Any]:
        asked.append(host)
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (answers[len(asked) - 1], port))]

    judged: list[str] = []

    def judge(address: str) -> bool:
        judged.append(address)
        return address == "127.0.0.1"

    monkeypatch.setattr("quorepo.rpc.imports.network.socket.getaddrinfo", resolve)
    monkeypatch.setattr("quorepo.rpc.imports.network.is_public", judge)
    manager = pool_manager(
        allow_http=True, allow_private=False, redirects_max=0, idle_timeout_s=10, ca_file=None
    )
    url = f"http://changing.example:{port}/app.git/HEAD"
    with pytest.raises(AddressRefused, match=r"192\.0\.2\.7"):
        manager.request("GET", url)
    assert manager.request("GET", url).status == 200
    assert asked == ["changing.example"] * 2
    assert judged == answers[:2]


@pytest.mark.parametrize(
    ("target", "reason"),
    [
        ("ftp://127.0.0.1/app.git/info/refs", "SOURCE_NOT_ALLOWED"),
        ("file:///etc/passwd", "SOURCE_FAILED"),
    ],
)
def test_a_redirect_to_another_scheme_is_not_followed(
    api: Api, path: str, source: Backend, target: str, reason: str
) -> None:
    def redirect(handler: BaseHTTPRequestHandler) -> bool:
        answer(handler, 302, Location=target)
        return True

    source.instead = redirect
    assert failed(api, path, source.url("app.git")).error_reason == reason


@pytest.mark.parametrize(
    "url",
    [
        *("", "app.git", "ssh://h/a", "file:///etc", "git://h/a", "https://", "https:///a"),
        *("https://u:p@h/a", "https://u@h/a", "https://h/a?token=x", "https://h/a#x"),
        *("https://h:99999/a", "https://h/a\nb", "https://h/\\a", "https://h/ä", "https://[::1/a"),
    ],
)  # fmt: skip
def test_urls_that_are_refused_at_once(api: Api, path: str, url: str) -> None:
    error = api.refused(
        api.imports.ImportRepository, PB.ImportRepositoryRequest(path=path, url=url)
    )
    assert error.code == "INVALID_ARGUMENT"


def test_the_authorization_reaches_its_origin_only_and_no_log(
    api: Api, path: str, source: Backend, caplog: pytest.LogCaptureFixture, tmp_path: Path
) -> None:
    caplog.set_level(logging.DEBUG)
    source.authorization = SECRET
    operation = failed(api, path, source.url("app.git"))
    assert "asks for one" in operation.error_message
    wrong = failed(api, path, source.url("app.git"), authorization="Basic d3Jvbmc6d3Jvbmc=")
    assert "refuses the authorization" in wrong.error_message
    with backend(tmp_path / "served") as elsewhere:

        def redirect(handler: BaseHTTPRequestHandler) -> bool:
            answer(handler, 302, Location=f"http://{elsewhere.address}{handler.path}")
            return True

        source.instead = redirect
        imported(api, f"{path}-moved", source.url("app.git"), authorization=SECRET)
        assert elsewhere.seen
        assert {given for _path, given in elsewhere.seen} == {""}
    source.instead = None
    imported(api, path, source.url("app.git"), authorization=SECRET)
    logged = caplog.text + "".join(str(record.__dict__) for record in caplog.records)
    assert "import" in logged
    assert SECRET.split()[1] not in logged
    commands = b"".join(c.SerializeToString() for c in api.under_test.core.commands)
    assert SECRET.encode() not in commands


def test_servers_that_are_none_of_git(api: Api, path: str, source: Backend) -> None:
    kinds = {"Content_Type": "application/x-git-upload-pack-advertisement"}
    answers: list[tuple[int, bytes, dict[str, str]]] = [
        (200, b"<html>", {"Content_Type": "text/html"}),
        (404, b"", {}),
        (500, b"", {}),
        (200, b"", kinds),
        (200, b"zzzz", kinds),
        (200, b"001e# service=git-upload-pack\n0000", kinds),
        (200, b"001e# service=git-upload-pack\n0000000eversion 2\n0000", kinds),
        (200, b"ffff" + b"x" * 100, kinds),
    ]
    for status, body, headers in answers:

        def instead(
            handler: BaseHTTPRequestHandler,
            status: int = status,
            body: bytes = body,
            headers: dict[str, str] = headers,
        ) -> bool:
            answer(handler, status, body, **headers)
            return True

        source.instead = instead
        operation = failed(api, path, source.url("app.git"))
        assert operation.error_reason == "SOURCE_FAILED", (body, operation)
    nobody = failed(api, path, "http://127.0.0.1:1/app.git")
    assert nobody.error_reason == "SOURCE_FAILED"
    assert "nothing was made" in nobody.error_message


def test_who_may_not_create_may_not_import(api: Api, path: str) -> None:
    request = PB.ImportRepositoryRequest(path=path, url="https://h/a")
    assert api.refused(api.imports.ImportRepository, request, token=None).code == "UNAUTHENTICATED"
