"""Protocol v2 beyond plain fetches: ref-in-want, sideband-all, wait-for-done, object-info, options.

Where git would silently do without a capability, its packet trace shows that it was used.
"""

from __future__ import annotations

from pathlib import Path

import pytest
from support.edge import EdgeUnderTest
from support.git import WorkTree, git
from support.raw_http import FETCH_TYPE, Answer, packet, request

SHA1 = "object-format=sha1"


def post(server: EdgeUnderTest, path: str, body: bytes) -> Answer:
    headers = {"Content-Type": FETCH_TYPE, "Git-Protocol": "version=2"}
    return request(server, "POST", f"/{path}/git-upload-pack", body, headers)


def v2(command: str, *arguments: str, head: tuple[str, ...] = (SHA1,)) -> bytes:
    first = b"".join(packet(f"{line}\n".encode()) for line in (f"command={command}", *head))
    lines = b"".join(packet(f"{line}\n".encode()) for line in arguments)
    return first + b"0001" + lines + b"0000"


def lines_of(body: bytes) -> list[str]:
    """The packets as text; markers as "flush" and "delim"."""
    found = []
    while body:
        length = int(body[:4], 16)
        if length < 4:
            found.append(("flush", "delim", "end")[length])
            body = body[4:]
        else:
            found.append(body[4:length].decode("latin-1").rstrip("\n"))
            body = body[length:]
    return found


def traced(*arguments: str, cwd: Path | None = None) -> str:
    done = git(*arguments, cwd=cwd, environment={"GIT_TRACE_PACKET": "1"}, check=False)
    assert done.returncode == 0, done.stderr
    return done.stderr


@pytest.fixture
def pushed(server: EdgeUnderTest, work: WorkTree, path: str) -> str:
    """The id of a commit that is on main."""
    oid = work.commit("first", {"a.txt": "content\n"})
    work.git("push", "--quiet", server.url(path), "main")
    return oid


def test_git_asks_for_refs_by_name_in_bands_and_with_options(
    server: EdgeUnderTest, pushed: str, path: str, tmp_path: Path
) -> None:
    version = ("-c", "protocol.version=2")
    trace = traced(
        *version, "clone", "--server-option=one=1", server.url(path), str(tmp_path / "ours")
    )
    assert "want-ref refs/heads/main" in trace
    assert "sideband-all" in trace
    assert "server-option=one=1" in trace
    assert f"{pushed} refs/heads/main" in trace
    assert git("rev-parse", "HEAD", cwd=tmp_path / "ours").stdout.strip() == pushed


def test_git_waits_for_done_when_it_only_negotiates(
    server: EdgeUnderTest, pushed: str, path: str, tmp_path: Path
) -> None:
    ours = tmp_path / "ours"
    git("clone", "--quiet", server.url(path), str(ours))
    trace = traced("fetch", "--negotiate-only", "--negotiation-tip=HEAD", "origin", cwd=ours)
    assert "wait-for-done" in trace
    assert f"ACK {pushed}" in trace
    assert "ready" not in trace


def test_a_wanted_ref_is_answered_with_what_it_points_to_by_now(
    server: EdgeUnderTest, work: WorkTree, pushed: str, path: str
) -> None:
    """A ref that moves after ls-refs: the pack is that of the newer value, which is named."""
    newer = work.commit("second")
    work.git("push", "--quiet", server.url(path), "main")
    before = server.core.read_indexes
    answer = lines_of(post(server, path, v2("fetch", "want-ref refs/heads/main", "done")).body)
    assert answer[:4] == ["wanted-refs", f"{newer} refs/heads/main", "delim", "packfile"]
    assert server.core.read_indexes > before


def test_a_wanted_ref_that_is_gone_is_named(server: EdgeUnderTest, pushed: str, path: str) -> None:
    answer = post(server, path, v2("fetch", "want-ref refs/heads/gone", "done"))
    assert lines_of(answer.body) == ["ERR unknown ref refs/heads/gone"]


def test_without_a_leader_a_wanted_ref_is_not_guessed(
    server: EdgeUnderTest, pushed: str, path: str
) -> None:
    server.core.has_leader = False
    try:
        answer = post(server, path, v2("fetch", "want-ref refs/heads/main", "done"))
    finally:
        server.core.has_leader = True
    assert lines_of(answer.body)[0].startswith("ERR no leader")


def test_a_refusal_in_bands_is_shown_by_git(
    server: EdgeUnderTest, pushed: str, path: str, tmp_path: Path
) -> None:
    git("init", "--quiet", str(tmp_path))
    refused = git("fetch", server.url(path), "ab" * 20, cwd=tmp_path, check=False)
    assert f"remote error: upload-pack: not our ref {'ab' * 20}" in refused.stderr


def test_sizes_of_objects_are_told_and_nothing_of_what_nobody_may_see(
    server: EdgeUnderTest, work: WorkTree, pushed: str, path: str
) -> None:
    url = server.url(path)
    blob = work.git("rev-parse", "HEAD:a.txt").stdout.strip()
    work.git("checkout", "--quiet", "-b", "topic")
    dropped = work.commit("dropped", {"secret.txt": "secret\n"})
    secret = work.git("rev-parse", "HEAD:secret.txt").stdout.strip()
    work.git("push", "--quiet", url, "topic")
    wanted = (blob, secret, dropped, "ab" * 20)
    ask = v2("object-info", "size", *(f"oid {oid}" for oid in wanted))
    answer = lines_of(post(server, path, ask).body)
    commit_bytes = len(work.git("cat-file", "commit", dropped).stdout)
    sizes = [f"{blob} 8", f"{secret} 7", f"{dropped} {commit_bytes}", f"{'ab' * 20} "]
    assert answer == ["size", *sizes, "flush"]
    work.git("push", "--quiet", url, "--delete", "topic")
    answer = lines_of(post(server, path, ask).body)
    assert answer == ["size", f"{blob} 8", f"{secret} ", f"{dropped} ", f"{'ab' * 20} ", "flush"]


@pytest.mark.parametrize(
    ("body", "words"),
    [
        (v2("fetch", "want-ref main"), "ERR unknown ref main"),
        (v2("fetch", "packfile-uris https"), "ERR unexpected line: 'packfile-uris https'"),
        (v2("frobnicate"), "ERR invalid command 'frobnicate'"),
        (v2("ls-refs", head=(SHA1, "sparkle")), "ERR unknown capability 'sparkle'"),
        (v2("object-info", "type"), "ERR object-info: unexpected line: 'type'"),
        (v2("ls-refs", head=("object-format=sha256",)), "ERR mismatched object format"),
    ],
)
def test_what_was_not_offered_is_refused_by_name(
    server: EdgeUnderTest, pushed: str, path: str, body: bytes, words: str
) -> None:
    answer = post(server, path, body)
    assert answer.status == 200
    assert lines_of(answer.body)[0].startswith(words)


def test_what_is_offered_is_what_is_served(server: EdgeUnderTest, pushed: str, path: str) -> None:
    answer = request(
        server,
        "GET",
        f"/{path}/info/refs?service=git-upload-pack",
        headers={"Git-Protocol": "version=2"},
    )
    first, agent, *rest = lines_of(answer.body)
    assert first == "version 2"
    assert agent.startswith("agent=quorepo/")
    assert rest == [
        "ls-refs=unborn",
        "fetch=shallow wait-for-done filter ref-in-want sideband-all",
        "server-option",
        "object-format=sha1",
        "object-info",
        "bundle-uri",
        "flush",
    ]
