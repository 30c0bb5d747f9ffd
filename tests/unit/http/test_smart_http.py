"""HTTP around git: who is let in, what is answered to what is no git request, and how."""

from __future__ import annotations

import gzip
import http.client
import socket
from pathlib import Path

import pytest
from support.edge import TOKEN, EdgeUnderTest, edge_config, running_edge
from support.git import WorkTree, git
from support.raw_http import AUTHORIZATION, FETCH_TYPE, PUSH_TYPE, request


@pytest.mark.parametrize("service", ["git-upload-pack", "git-receive-pack"])
def test_without_a_credential_nobody_gets_past_401_and_raft_is_not_asked(
    server: EdgeUnderTest, path: str, service: str
) -> None:
    before = server.core.read_indexes
    for answer in (
        request(server, "GET", f"/{path}/info/refs?service={service}", authorized=False),
        request(server, "POST", f"/{path}/{service}", b"0000", authorized=False),
        request(
            server,
            "GET",
            f"/{path}/info/refs?service={service}",
            headers={"Authorization": "Bearer wrong"},
        ),
    ):
        assert answer.status == 401
        assert answer.headers["WWW-Authenticate"] == 'Basic realm="quorepo"'
    assert server.core.read_indexes == before


def test_a_wrong_token_is_an_authentication_failure_in_git(
    server: EdgeUnderTest, path: str
) -> None:
    refused = git("ls-remote", server.url(path, token="wrong-token"), check=False)
    assert "Authentication failed" in refused.stderr


def test_a_bearer_token_works(server: EdgeUnderTest, path: str) -> None:
    answer = request(
        server,
        "GET",
        f"/{path}/info/refs?service=git-receive-pack",
        headers={"Authorization": f"Bearer {TOKEN}"},
    )
    assert answer.status == 200
    assert answer.body.startswith(b"001f# service=git-receive-pack\n0000")
    assert answer.headers["Content-Type"] == "application/x-git-receive-pack-advertisement"
    assert answer.headers["Cache-Control"] == "no-cache, max-age=0, must-revalidate"
    assert answer.headers["Expires"] == "Fri, 01 Jan 1980 00:00:00 GMT"
    assert answer.headers["Pragma"] == "no-cache"


def test_advertising_to_a_push_creates_nothing(server: EdgeUnderTest, path: str) -> None:
    before = len(server.core.commands)
    answer = request(server, "GET", f"/{path}/info/refs?service=git-receive-pack")
    assert b"capabilities^{}" in answer.body
    assert len(server.core.commands) == before


def test_an_unknown_repository_is_a_text_that_git_shows(server: EdgeUnderTest, path: str) -> None:
    answer = request(server, "GET", f"/{path}/info/refs?service=git-upload-pack")
    assert answer.status == 404
    assert answer.headers["Content-Type"].startswith("text/plain")
    refused = git("clone", server.url(path), "nowhere", check=False)
    assert f"remote: repository '{path}' does not exist" in refused.stderr
    answer = request(
        server, "POST", f"/{path}/git-upload-pack", b"0000", {"Content-Type": FETCH_TYPE}
    )
    assert answer.status == 404


@pytest.mark.parametrize(
    ("method", "target", "status"),
    [
        ("GET", "/team/x/info/refs", 403),
        ("GET", "/team/x/info/refs?service=git-upload-archive", 403),
        ("GET", "/team/x.git/HEAD", 403),
        ("GET", "/team/x.git/objects/info/packs", 403),
        ("GET", "/team/x.git/objects/ab/" + "c" * 38, 403),
        ("GET", "/", 404),
        ("GET", "/team/x", 404),
        ("HEAD", "/team/x", 404),
        ("POST", "/team/x/git-upload-archive", 404),
        ("PUT", "/team/x/git-upload-pack", 405),
        ("DELETE", "/team/x", 405),
        ("GET", "/team/../x/info/refs?service=git-upload-pack", 400),
        ("GET", "/team/%2e%2e/x/info/refs?service=git-upload-pack", 400),
        ("GET", "/team%2F..%2Fx/info/refs?service=git-upload-pack", 400),
        ("GET", "/te%00am/info/refs?service=git-upload-pack", 400),
        ("GET", "/te%0aam/info/refs?service=git-upload-pack", 400),
        ("GET", "/te%5Cam/info/refs?service=git-upload-pack", 400),
        ("GET", "/.git/info/refs?service=git-upload-pack", 400),
        ("GET", "/" + "a" * 300 + "/info/refs?service=git-upload-pack", 400),
    ],
)
def test_what_is_no_git_request_is_answered_clearly(
    server: EdgeUnderTest, method: str, target: str, status: int
) -> None:
    answer = request(server, method, target)
    assert answer.status == status, answer.body
    assert answer.headers["Content-Type"].startswith("text/plain")


def test_a_post_of_another_content_type_is_refused(server: EdgeUnderTest, path: str) -> None:
    answer = request(server, "POST", f"/{path}/git-receive-pack", b"0000")
    assert answer.status == 415


def test_health_needs_no_credential(server: EdgeUnderTest) -> None:
    answer = request(server, "GET", "/healthz", authorized=False)
    assert (answer.status, answer.body) == (200, b"ok\n")


def test_a_probe_is_answered_empty_without_touching_raft(server: EdgeUnderTest, path: str) -> None:
    before = server.core.read_indexes
    answer = request(
        server, "POST", f"/{path}/git-receive-pack", b"0000", {"Content-Type": PUSH_TYPE}
    )
    assert (answer.status, answer.body) == (200, b"")
    assert answer.headers["Content-Type"] == "application/x-git-receive-pack-result"
    assert server.core.read_indexes == before


def test_a_gzip_body_is_inflated(server: EdgeUnderTest, work: WorkTree, path: str) -> None:
    oid = work.commit("first")
    work.git("push", server.url(path), "main")
    body = f"0032want {oid}\n00000009done\n".encode()
    headers = {"Content-Type": FETCH_TYPE, "Content-Encoding": "gzip"}
    answer = request(server, "POST", f"/{path}/git-upload-pack", gzip.compress(body), headers)
    assert answer.status == 200
    assert answer.body.startswith(b"0008NAK\nPACK")


def test_a_body_that_only_claims_to_be_gzip_is_an_error_not_a_hang(
    server: EdgeUnderTest, work: WorkTree, path: str
) -> None:
    work.commit("first")
    work.git("push", server.url(path), "main")
    headers = {"Content-Type": FETCH_TYPE, "Content-Encoding": "gzip"}
    answer = request(server, "POST", f"/{path}/git-upload-pack", b"not gzip at all", headers)
    assert answer.status in (200, 400)
    assert answer.status == 400 or b"ERR" in answer.body


def test_a_body_that_inflates_beyond_the_limit_is_refused(
    server: EdgeUnderTest, work: WorkTree, path: str
) -> None:
    work.commit("first")
    work.git("push", server.url(path), "main")
    limit = server.edge.config.limits.fetch_request_bytes_max
    body = gzip.compress(bytes(limit + 2_000_000), 9)
    headers = {"Content-Type": FETCH_TYPE, "Content-Encoding": "gzip"}
    answer = request(server, "POST", f"/{path}/git-upload-pack", body, headers)
    assert answer.status == 200
    assert b"ERR the request exceeds limits.fetch_request_bytes_max" in answer.body


@pytest.mark.parametrize("authorized", [True, False])
def test_expect_100_continue_is_answered_after_authentication(
    server: EdgeUnderTest, path: str, authorized: bool
) -> None:
    host, port = server.address.split(":")
    with socket.create_connection((host, int(port)), timeout=10) as connection:
        authorization = f"Authorization: {AUTHORIZATION}\r\n" if authorized else ""
        connection.sendall(
            f"POST /{path}/git-receive-pack HTTP/1.1\r\nHost: x\r\nContent-Type: {PUSH_TYPE}\r\n"
            f"{authorization}Content-Length: 4\r\nExpect: 100-continue\r\n\r\n".encode()
        )
        first = connection.recv(4096)
        if not authorized:
            assert first.startswith(b"HTTP/1.1 401 ")
            return
        assert first.startswith(b"HTTP/1.1 100 Continue\r\n\r\n")
        connection.sendall(b"0000")
        assert connection.recv(4096).startswith(b"HTTP/1.1 200 ")


def test_large_and_chunked_bodies_work_with_curl_options(
    server: EdgeUnderTest, work: WorkTree, path: str
) -> None:
    work.commit("large", {"file.txt": "line\n" * 50_000})
    oid = work.head()
    work.git("-c", "http.postBuffer=1024", "push", server.url(path), "main")
    assert oid in work.git("ls-remote", server.url(path)).stdout


def test_metrics_are_served_with_and_without_a_core(
    server: EdgeUnderTest, work: WorkTree, path: str
) -> None:
    import urllib.request

    work.commit("first")
    work.git("push", server.url(path), "main")

    def text() -> str:
        with urllib.request.urlopen(server.metrics_url, timeout=10) as response:
            return str(response.read(), "utf-8")

    assert 'quorepo_pushes_total{result="ok"}' in text()
    assert "quorepo_core_up 1" in text()
    assert "quorepo_fake_core 1" in text()
    server.core.has_leader = False
    try:
        assert "quorepo_core_up 0" in text()
        assert 'quorepo_push_phase_seconds_count{phase="commit"}' in text()
    finally:
        server.core.has_leader = True


def test_a_session_ends_with_its_last_command_and_git_begins_another(
    tmp_path: Path, work: WorkTree
) -> None:
    config = edge_config(tmp_path / "node" / "data", limits={"session_commands_max": 2})
    (tmp_path / "node").mkdir()
    with running_edge(config) as server:
        for number in range(3):
            work.commit(f"change {number}")
            work.git("push", "--quiet", server.url("team/app"), "main")
        git("clone", "--quiet", server.url("team/app"), str(tmp_path / "clone"))
        assert git("rev-parse", "HEAD", cwd=tmp_path / "clone").stdout.strip() == work.head()
        host, port = server.address.split(":")
        connection = http.client.HTTPConnection(host, int(port), timeout=20)
        said = []
        for _ in range(2):
            connection.request("GET", "/healthz")
            answer = connection.getresponse()
            assert answer.read() == b"ok\n"
            said.append(answer.headers.get("Connection"))
        assert said == [None, "close"]
        assert connection.sock is None, "the client saw that it is closed"
