"""Pushes that no git client sends: damaged, hostile, oversized, cut off, or from sparse clients."""

from __future__ import annotations

import asyncio
import concurrent.futures
import socket
import subprocess
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from support.edge import EdgeUnderTest, edge_config, running_edge
from support.git import WorkTree, refs_of
from support.raw_http import (
    AUTHORIZATION,
    PUSH_TYPE,
    ZERO,
    blob_entry,
    blob_id,
    commands,
    pack,
    packets,
    push,
    request,
)
from support.waiting import eventually

BLOB = b"content\n"
TAG_REF = "refs/tags/blob"
CREATE = f"{ZERO} {blob_id(BLOB)} {TAG_REF}"
GOOD = commands(CREATE) + pack(blob_entry(BLOB))


def exists(server: EdgeUnderTest, path: str) -> bool:
    return request(server, "GET", f"/{path}/info/refs?service=git-upload-pack").status == 200


def test_a_hand_made_push_is_taken(server: EdgeUnderTest, path: str) -> None:
    answer = push(server, path, GOOD)
    assert answer.report() == ["unpack ok", f"ok {TAG_REF}"]
    assert refs_of(server.url(path)) == {TAG_REF: blob_id(BLOB)}


def test_bytes_may_come_one_by_one(server: EdgeUnderTest, path: str) -> None:
    answer = push(server, path, (GOOD[i : i + 1] for i in range(len(GOOD))))
    assert answer.report() == ["unpack ok", f"ok {TAG_REF}"]


def damaged_packs() -> dict[str, bytes]:
    good = pack(blob_entry(BLOB))
    return {
        "empty": b"",
        "truncated": good[:-10],
        "header only": good[:12],
        "no pack": b"hello, world" * 10,
        "wrong trailer": good[:-1] + bytes([good[-1] ^ 1]),
        "flipped bit": good[:16] + bytes([good[16] ^ 1]) + good[17:],
        "another object": pack(blob_entry(b"something else\n")),
        "no objects": pack(),
        "duplicate objects": pack(blob_entry(BLOB), blob_entry(BLOB)),
        "garbage behind": good + b"garbage",
        "declared too small": pack(b"\x32" + blob_entry(BLOB)[1:]),
    }


@pytest.mark.parametrize("kind", sorted(damaged_packs()))
def test_a_bad_pack_is_refused_and_leaves_no_trace(
    server: EdgeUnderTest, path: str, kind: str
) -> None:
    answer = push(server, path, commands(CREATE) + damaged_packs()[kind])
    assert answer.status == 200
    first, second = answer.report()
    assert first.startswith("unpack ")
    assert first != "unpack ok"
    assert second == f"ng {TAG_REF} unpacker error"
    assert not exists(server, path)
    assert list(server.edge.reads.layout(1).repositories.iterdir()) == [
        p for p in server.edge.reads.layout(1).repositories.iterdir() if p.name.endswith(".git")
    ]


def test_a_pack_with_a_missing_object_is_refused(
    server: EdgeUnderTest, work: WorkTree, path: str
) -> None:
    """A commit without its tree."""
    oid = work.commit("first")
    # Not through support.git, which reads text: a pack's CRLF would not survive that.
    made = subprocess.run(
        ["git", "pack-objects", "--stdout", "-q"],
        cwd=work.path,
        input=f"{oid}\n".encode(),
        capture_output=True,
        check=True,
    )
    answer = push(server, path, commands(f"{ZERO} {oid} refs/heads/main") + made.stdout)
    assert "did not receive expected object" in answer.report()[0]
    assert not exists(server, path)


def test_a_branch_to_a_blob_is_refused(server: EdgeUnderTest, path: str) -> None:
    body = commands(f"{ZERO} {blob_id(BLOB)} refs/heads/main") + pack(blob_entry(BLOB))
    assert "non-commit object" in push(server, path, body).report()[0]


def test_a_stale_old_value_is_refused_before_the_pack_is_looked_at(
    server: EdgeUnderTest, path: str
) -> None:
    push(server, path, GOOD)
    answer = push(server, path, commands(CREATE) + b"not a pack")
    assert answer.report() == [
        "unpack ok",
        f"ng {TAG_REF} stale info: expected {ZERO}, is {blob_id(BLOB)}",
    ]


@pytest.mark.parametrize(
    "name", ["refs/heads/a..b", "refs/heads/x.lock", "heads/main", "refs/heads/sp ace"]
)
def test_a_bad_name_is_refused_and_the_others_go_on(
    server: EdgeUnderTest, path: str, name: str
) -> None:
    body = commands(f"{ZERO} {blob_id(BLOB)} {name}", CREATE) + pack(blob_entry(BLOB))
    report = push(server, path, body).report()
    assert report[0] == "unpack ok"
    assert report[1].startswith(f"ng {name} funny refname")
    assert report[2] == f"ok {TAG_REF}"


def test_one_bad_name_in_an_atomic_push_stops_all(server: EdgeUnderTest, path: str) -> None:
    bad = f"{ZERO} {blob_id(BLOB)} refs/heads/a..b"
    capabilities = "report-status side-band-64k atomic"
    body = commands(CREATE, bad, capabilities=capabilities) + pack(blob_entry(BLOB))
    report = push(server, path, body).report()
    assert report[1] == f"ng {TAG_REF} atomic push failure"
    assert not exists(server, path)


def test_deletions_carry_no_pack(server: EdgeUnderTest, path: str) -> None:
    push(server, path, GOOD)
    answer = push(server, path, commands(f"{blob_id(BLOB)} {ZERO} {TAG_REF}"))
    assert answer.report() == ["unpack ok", f"ok {TAG_REF}"]
    assert refs_of(server.url(path)) == {}


def test_deleting_in_a_repository_that_is_not_there_creates_none(
    server: EdgeUnderTest, path: str
) -> None:
    answer = push(server, path, commands(f"{ZERO} {ZERO} {TAG_REF}"))
    assert answer.report() == ["unpack ok", f"ok {TAG_REF}"]
    assert not exists(server, path)


def test_a_client_without_side_band_gets_a_bare_report(server: EdgeUnderTest, path: str) -> None:
    body = commands(CREATE, capabilities="report-status") + pack(blob_entry(BLOB))
    answer = push(server, path, body)
    assert packets(answer.body) == [b"unpack ok\n", f"ok {TAG_REF}\n".encode(), None]


def test_a_client_without_any_capability_is_served(server: EdgeUnderTest, path: str) -> None:
    body = commands(CREATE, capabilities="") + pack(blob_entry(BLOB))
    answer = push(server, path, body)
    assert (answer.status, answer.body) == (200, b"")
    assert refs_of(server.url(path)) == {TAG_REF: blob_id(BLOB)}


@pytest.mark.parametrize(
    "body",
    [
        b"zzzz",
        b"00",
        b"0010hello",
        commands("nonsense"),
        commands(f"{ZERO} {ZERO[:-1]} {TAG_REF}"),
        commands(CREATE)[:-4],
        commands(CREATE, capabilities="report-status side-band-64k object-format=sha256"),
    ],
)
def test_garbage_instead_of_commands_is_an_error_in_the_protocol(
    server: EdgeUnderTest, path: str, body: bytes
) -> None:
    answer = push(server, path, body)
    assert answer.status == 200
    assert b"protocol error" in answer.body or b"mismatched object format" in answer.body
    assert not exists(server, path)


def test_without_a_leader_a_push_that_began_is_told_per_ref(
    server: EdgeUnderTest, path: str
) -> None:
    server.core.has_leader = False
    try:
        answer = push(server, path, GOOD)
    finally:
        server.core.has_leader = True
    assert answer.report()[0] == "unpack ok"
    assert answer.report()[1].startswith(f"ng {TAG_REF} no leader")


def test_a_repository_deleted_meanwhile_is_told_per_ref(server: EdgeUnderTest, path: str) -> None:
    push(server, path, GOOD)
    edge = server.edge
    view = server.do(edge.repositories.get(path))
    server.core.hold = asyncio.Event()
    other = b"content of another blob\n"
    body = commands(f"{ZERO} {blob_id(other)} refs/tags/other") + pack(blob_entry(other))

    async def delete() -> None:
        await server.core.holding.wait()
        command = edge.origin("admin").command()
        command.delete_repository.repository_id = view.repository_id
        server.core.apply(1, command)
        assert server.core.hold is not None
        server.core.hold.set()

    deletion = asyncio.run_coroutine_threadsafe(delete(), server.loop)
    try:
        answer = push(server, path, body)
        deletion.result(timeout=10)
    finally:
        server.core.hold = None
        server.core.holding.clear()
    assert answer.report()[1].startswith("ng refs/tags/other repository")
    assert "deleted meanwhile" in answer.report()[1]


def test_an_unexpected_failure_is_reported_and_the_connection_kept(
    server: EdgeUnderTest, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def broken(*_: object) -> None:
        raise RuntimeError("a bug")

    monkeypatch.setattr(server.edge.workers, "run", broken)
    answer = push(server, path, GOOD)
    assert answer.report()[0].startswith("unpack internal error")
    assert answer.report()[1] == f"ng {TAG_REF} unpacker error"
    assert "a bug" not in str(answer.body)


def test_an_unexpected_failure_after_the_proposal_is_unknown(
    server: EdgeUnderTest, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("quorepo.rpc.push.refusal_reasons", lambda *_: 1 / 0)
    answer = push(server, path, GOOD)
    assert answer.report() == ["unpack ok"]
    assert b"not known" in answer.bands()[2]


def test_a_client_that_goes_away_before_the_proposal_stops_the_push(
    server: EdgeUnderTest, path: str
) -> None:
    connection = _begin_push(server, path, len(GOOD) + 1_000_000)
    connection.sendall(GOOD)
    eventually(server.uploads, what="an upload has begun")
    connection.close()
    eventually(lambda: not server.uploads(), what="the upload is removed")
    assert not exists(server, path)


def test_a_client_that_goes_away_while_a_worker_verifies_stops_the_push(
    server: EdgeUnderTest, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cancelled = asyncio.Event()
    running = asyncio.Event()

    async def endless(*_: object) -> None:
        running.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    monkeypatch.setattr(server.edge.workers, "run", endless)
    connection = _begin_push(server, path, len(GOOD))
    connection.sendall(GOOD)
    eventually(running.is_set, what="verification runs")
    connection.close()
    eventually(cancelled.is_set, what="verification is cancelled")
    eventually(lambda: not server.uploads(), what="the upload is removed")


def test_a_client_that_goes_away_after_the_proposal_changes_nothing(
    server: EdgeUnderTest, path: str
) -> None:
    server.core.hold = asyncio.Event()
    try:
        connection = _begin_push(server, path, len(GOOD))
        connection.sendall(GOOD)
        eventually(server.core.holding.is_set, what="the transaction is proposed")
        connection.close()
        server.settle_requests()
        text = server.edge.metrics.text()
        assert b'quorepo_pushes_total{result="abandoned"} 1.0' in text
        server.loop.call_soon_threadsafe(server.core.hold.set)
        eventually(lambda: exists(server, path), what="the transaction is applied")
    finally:
        server.core.hold = None
        server.core.holding.clear()


def test_slow_verification_is_told_while_it_runs(
    server: EdgeUnderTest, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Progress after a second on side-band 2, and nothing for a client that wants quiet."""
    run = server.edge.workers.run

    async def slow(
        job: str, arguments: Any, timeout_s: float, on_progress: Callable[[str], None]
    ) -> Any:
        on_progress("Checking objects: 50% (1/2)")
        await asyncio.sleep(1.2)
        return await run(job, arguments, timeout_s, on_progress)

    monkeypatch.setattr(server.edge.workers, "run", slow)
    quiet = commands(CREATE, capabilities="report-status side-band-64k quiet")
    with concurrent.futures.ThreadPoolExecutor() as threads:
        loud = threads.submit(push, server, path, GOOD)
        silent = threads.submit(push, server, path + "-quiet", quiet + pack(blob_entry(BLOB)))
        assert loud.result().bands()[2] == b"Checking objects: 50% (1/2)\r"
        assert loud.result().report() == ["unpack ok", f"ok {TAG_REF}"]
        assert 2 not in silent.result().bands()


def test_the_answer_of_a_lost_race_names_the_winner(server: EdgeUnderTest, path: str) -> None:
    """Many pushes of one ref at once: one is told ok, each of the others why not."""
    contents = [b"content %d\n" % number for number in range(6)]
    bodies = [commands(f"{ZERO} {blob_id(c)} {TAG_REF}") + pack(blob_entry(c)) for c in contents]
    with concurrent.futures.ThreadPoolExecutor(6) as threads:
        reports = [a.report() for a in threads.map(lambda body: push(server, path, body), bodies)]
    verdicts = [report[1] for report in reports]
    assert verdicts.count(f"ok {TAG_REF}") == 1
    winner = refs_of(server.url(path))[TAG_REF]
    assert blob_id(contents[verdicts.index(f"ok {TAG_REF}")]) == winner
    stale = f"ng {TAG_REF} stale info: expected {ZERO}, is {winner}"
    assert verdicts.count(stale) == len(contents) - 1


def _begin_push(server: EdgeUnderTest, path: str, length: int) -> socket.socket:
    host, port = server.address.split(":")
    connection = socket.create_connection((host, int(port)), timeout=10)
    connection.sendall(
        f"POST /{path}/git-receive-pack HTTP/1.1\r\nHost: x\r\nContent-Type: {PUSH_TYPE}\r\n"
        f"Authorization: {AUTHORIZATION}\r\nContent-Length: {length}\r\n\r\n".encode()
    )
    return connection


@pytest.fixture(scope="module")
def small(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EdgeUnderTest]:
    """An edge with narrow limits, where pushes create nothing."""
    config = edge_config(
        tmp_path_factory.mktemp("small") / "data",
        limits={"push_bytes_max": 100_000, "refs_per_push_max": 3, "push_options_max": 1},
        push={"create_on_push": False},
        workers={"count": 1, "queue_max": 1},
    )
    with running_edge(config) as server:
        yield server


@pytest.fixture
def small_path(small: EdgeUnderTest, path: str) -> str:
    small.do(small.edge.repositories.create(path, origin=small.edge.origin("admin")))
    return path


def test_a_pack_above_the_limit_is_refused_without_a_hang(
    small: EdgeUnderTest, small_path: str, work: WorkTree
) -> None:
    import random

    work.commit("large", {"noise.bin": random.Random(3).randbytes(2_000_000)})
    refused = work.git("push", small.url(small_path), "main", check=False, timeout_s=30)
    assert refused.returncode != 0
    assert "unpack failed: pack exceeds limits.push_bytes_max" in refused.stderr
    assert small.uploads() == []
    assert refs_of(small.url(small_path)) == {}


def test_too_many_commands_or_options_are_refused(
    small: EdgeUnderTest, small_path: str, work: WorkTree
) -> None:
    oid = work.commit("first")
    refs = [f"{oid}:refs/heads/b{number}" for number in range(4)]
    refused = work.git("push", small.url(small_path), *refs, check=False)
    assert "more than 3 commands" in refused.stderr
    refused = work.git("push", "-o", "a", "-o", "b", small.url(small_path), "main", check=False)
    assert "limits.push_options_max" in refused.stderr
    assert refs_of(small.url(small_path)) == {}


def test_where_pushes_create_nothing_an_unknown_path_is_not_found(
    small: EdgeUnderTest, path: str, work: WorkTree
) -> None:
    work.commit("first")
    refused = work.git("push", small.url(path), "main", check=False)
    assert f"repository '{path}' does not exist" in refused.stderr
    assert "quorepo repo create" in refused.stderr
    assert push(small, path, GOOD).status == 404


def test_a_busy_node_says_so(small: EdgeUnderTest, small_path: str) -> None:
    small.core.hold = asyncio.Event()
    try:
        connection = _begin_push(small, small_path, len(GOOD))
        connection.sendall(GOOD)
        eventually(small.core.holding.is_set, what="the first push is proposed")
        answer = push(small, small_path, GOOD)
        assert answer.report()[0] == "unpack ok"
        assert "busy" in answer.report()[1]
        small.loop.call_soon_threadsafe(small.core.hold.set)
        assert connection.recv(4096).startswith(b"HTTP/1.1 200")
        connection.close()
    finally:
        small.core.hold = None
        small.core.holding.clear()


def test_a_node_that_stops_refuses_new_pushes_and_ends_running_ones(
    tmp_path_factory: pytest.TempPathFactory, path: str
) -> None:
    with running_edge(edge_config(tmp_path_factory.mktemp("stopping") / "data")) as server:
        server.core.hold = asyncio.Event()
        connection = _begin_push(server, path, len(GOOD))
        connection.sendall(GOOD)
        eventually(server.core.holding.is_set, what="the push is proposed")
        server.edge.stop_taking()
        answer = push(server, path, GOOD)
        assert "shutting down" in answer.report()[1]
        server.loop.call_soon_threadsafe(server.core.hold.set)
        assert connection.recv(4096).startswith(b"HTTP/1.1 200")
        connection.close()
