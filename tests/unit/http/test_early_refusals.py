"""A request that is refused is answered at once, however much of its body is still to come."""

from __future__ import annotations

import asyncio
import contextlib
import gzip
import os
import random
import signal
import socket
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.edge import EdgeUnderTest, edge_config, running_edge
from support.git import ENVIRONMENT, WorkTree, clone, git, refs_of
from support.raw_http import AUTHORIZATION, FETCH_TYPE, PUSH_TYPE, request
from support.waiting import eventually

GIB = 1024**3
# Long before any timeout of client or server.
AT_ONCE_S = 5.0


@pytest.fixture(scope="module")
def strict(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EdgeUnderTest]:
    """An edge that takes small pushes into repositories that exist."""
    config = edge_config(
        tmp_path_factory.mktemp("strict") / "data",
        limits={"push_bytes_max": 100_000},
        push={"create_on_push": False},
    )
    with running_edge(config) as server:
        yield server


@contextlib.contextmanager
def unfinished(
    server: EdgeUnderTest, path: str, *headers: str, service: str = "git-receive-pack"
) -> Iterator[socket.socket]:
    """A POST of which 64 KiB were sent, and more are announced."""
    host, port = server.address.split(":")
    kind = PUSH_TYPE if service == "git-receive-pack" else FETCH_TYPE
    with socket.create_connection((host, int(port)), timeout=AT_ONCE_S) as connection:
        lines = [f"POST /{path}/{service} HTTP/1.1", "Host: x", f"Content-Type: {kind}", *headers]
        connection.sendall("\r\n".join([*lines, "", ""]).encode())
        if "Expect: 100-continue" not in headers:
            connection.sendall(b"00" * 32768)
        yield connection


def answer_of(connection: socket.socket) -> bytes:
    """The head of the answer."""
    received = b""
    while b"\r\n\r\n" not in received and (piece := connection.recv(4096)):
        received += piece
    return received


@pytest.mark.parametrize("service", ["git-receive-pack", "git-upload-pack"])
def test_an_unauthenticated_body_is_not_waited_for(
    strict: EdgeUnderTest, path: str, service: str
) -> None:
    for headers in (
        ["Content-Length: 50000000"],
        ["Content-Length: 50000000", "Expect: 100-continue"],
    ):
        with unfinished(strict, path, *headers, service=service) as connection:
            answer = answer_of(connection)
            assert answer.startswith(b"HTTP/1.1 401 ")
            assert b'WWW-Authenticate: Basic realm="quorepo"' in answer


@pytest.mark.parametrize("service", ["git-receive-pack", "git-upload-pack"])
def test_a_body_for_an_unknown_repository_is_not_waited_for(
    strict: EdgeUnderTest, path: str, service: str
) -> None:
    headers = (f"Authorization: {AUTHORIZATION}", "Content-Length: 90000")
    with unfinished(strict, path, *headers, service=service) as connection:
        assert answer_of(connection).startswith(b"HTTP/1.1 404 ")


@pytest.mark.parametrize("expects", [False, True])
def test_a_push_that_announces_too_much_is_not_waited_for(
    strict: EdgeUnderTest, path: str, expects: bool
) -> None:
    headers = [f"Authorization: {AUTHORIZATION}", f"Content-Length: {GIB}"]
    if expects:
        headers.append("Expect: 100-continue")
    with unfinished(strict, path, *headers) as connection:
        assert answer_of(connection).startswith(b"HTTP/1.1 413 ")


def test_an_unknown_encoding_is_named(strict: EdgeUnderTest, path: str) -> None:
    headers = {"Content-Type": PUSH_TYPE, "Content-Encoding": "x-secret"}
    answer = request(strict, "POST", f"/{path}/git-receive-pack", b"0000", headers)
    assert answer.status == 415
    assert b"'x-secret' is not known" in answer.body


def test_git_sees_the_status_when_it_announces_too_much(
    strict: EdgeUnderTest, work: WorkTree, path: str
) -> None:
    strict.do(strict.edge.repositories.create(path, origin=strict.edge.origin("admin")))
    work.commit("large", {"noise.bin": random.Random(5).randbytes(20_000_000)})
    started = time.monotonic()
    refused = work.git(
        "-c", "http.postBuffer=100000000", "push", strict.url(path), "main", check=False
    )
    assert refused.returncode != 0
    assert "HTTP 413" in refused.stderr
    assert time.monotonic() - started < 4 * AT_ONCE_S
    assert refs_of(strict.url(path)) == {}


def test_git_is_told_the_limit_when_it_sends_in_chunks(
    strict: EdgeUnderTest, work: WorkTree, path: str
) -> None:
    strict.do(strict.edge.repositories.create(path, origin=strict.edge.origin("admin")))
    work.commit("large", {"noise.bin": random.Random(6).randbytes(2_000_000)})
    refused = work.git("push", strict.url(path), "main", check=False)
    assert "unpack failed: pack exceeds limits.push_bytes_max" in refused.stderr


def test_a_wrong_token_stops_a_large_push_at_once(
    strict: EdgeUnderTest, work: WorkTree, path: str
) -> None:
    work.commit("large", {"noise.bin": random.Random(7).randbytes(5_000_000)})
    refused = work.git("push", strict.url(path, token="wrong"), "main", check=False)
    assert "Authentication failed" in refused.stderr


def test_git_compresses_long_requests_and_sends_large_packs_in_chunks(
    server: EdgeUnderTest, work: WorkTree, path: str, tmp_path: Path
) -> None:
    for number in range(40):
        work.commit(f"change {number}")
        work.git("branch", f"b{number}")
    work.commit("large", {"noise.bin": random.Random(8).randbytes(2_000_000)})
    trace = {"GIT_TRACE_CURL": "1", "GIT_TRACE_CURL_NO_DATA": "1"}
    pushed = work.git("push", "--all", server.url(path), environment=trace)
    assert "Transfer-Encoding: chunked" in pushed.stderr
    cloned = git("clone", server.url(path), str(tmp_path / "clone"), environment=trace)
    assert "Content-Encoding: gzip" in cloned.stderr
    assert len(refs_of(server.url(path))) == 42


def test_a_push_may_be_compressed_too(
    server: EdgeUnderTest, work: WorkTree, path: str, tmp_path: Path
) -> None:
    oid = work.commit("first")
    made = subprocess.run(
        ["git", "pack-objects", "--stdout", "--all", "--quiet"],
        cwd=work.path, env=ENVIRONMENT, stdin=subprocess.DEVNULL, capture_output=True, check=True,
    )  # fmt: skip
    line = f"{'0' * 40} {oid} refs/heads/main\0 report-status".encode()
    body = b"%04x" % (len(line) + 4) + line + b"0000" + made.stdout
    headers = {"Content-Type": PUSH_TYPE, "Content-Encoding": "gzip"}
    answer = request(server, "POST", f"/{path}/git-receive-pack", gzip.compress(body), headers)
    assert b"unpack ok" in answer.body
    clone(server.url(path), tmp_path / "clone")


def test_answers_are_never_cached(server: EdgeUnderTest, work: WorkTree, path: str) -> None:
    """The headers of git's http-backend, on every kind of answer."""
    work.commit("first")
    work.git("push", "--quiet", server.url(path), "main")
    for answer in (
        request(server, "GET", f"/{path}/info/refs?service=git-upload-pack"),
        request(server, "POST", f"/{path}/git-upload-pack", b"0000", {"Content-Type": FETCH_TYPE}),
        request(server, "POST", f"/{path}/git-receive-pack", b"0000", {"Content-Type": PUSH_TYPE}),
    ):
        assert answer.status == 200
        assert answer.headers["Expires"] == "Fri, 01 Jan 1980 00:00:00 GMT"
        assert answer.headers["Pragma"] == "no-cache"
        assert answer.headers["Cache-Control"] == "no-cache, max-age=0, must-revalidate"


def test_a_git_that_is_killed_stops_the_work_for_it(
    server: EdgeUnderTest, work: WorkTree, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    work.commit("first")
    work.git("push", "--quiet", server.url(path), "main")
    running, cancelled = asyncio.Event(), asyncio.Event()

    async def endless(*_: object) -> None:
        running.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    monkeypatch.setattr(server.edge.workers, "run", endless)
    client = subprocess.Popen(
        ["git", "clone", "--quiet", server.url(path), str(work.path / "clone")],
        env=ENVIRONMENT, stderr=subprocess.DEVNULL, start_new_session=True,
    )  # fmt: skip
    eventually(running.is_set, what="a worker negotiates")
    os.killpg(client.pid, signal.SIGKILL)
    client.wait(timeout=10)
    eventually(cancelled.is_set, what="the job is cancelled")
