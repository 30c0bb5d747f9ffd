"""`git clone` and `git fetch` against one edge, and fetch requests made by hand."""

from __future__ import annotations

import asyncio
import socket
from pathlib import Path
from typing import Any

import pytest
from support.edge import EdgeUnderTest
from support.git import WorkTree, clone, git, refs_of
from support.raw_http import AUTHORIZATION, FETCH_TYPE, packet, request
from support.waiting import eventually

from quorepo.storage.errors import NotFound, Unavailable
from quorepo.storage.git.advertise import RefsView, advertise_upload_pack_v0
from quorepo.storage.objectformat import ObjectFormat


def fetch(server: EdgeUnderTest, path: str, body: bytes, version: int = 0) -> Any:
    headers = {"Content-Type": FETCH_TYPE}
    if version:
        headers["Git-Protocol"] = f"version={version}"
    return request(server, "POST", f"/{path}/git-upload-pack", body, headers)


def v2_fetch(*arguments: str) -> bytes:
    lines = b"".join(packet(f"{a}\n".encode()) for a in arguments)
    return packet(b"command=fetch") + packet(b"object-format=sha1") + b"0001" + lines + b"0000"


@pytest.mark.parametrize("version", ["0", "1", "2"])
def test_a_fetch_brings_what_was_pushed_since(
    server: EdgeUnderTest, work: WorkTree, path: str, tmp_path: Path, version: str
) -> None:
    url = server.url(path)
    work.commit("first", {"a.txt": "a\n" * 500})
    work.git("push", url, "main")
    target = clone(url, tmp_path / "clone", f"protocol.version={version}")
    for number in range(3):
        oid = work.commit(f"more {number}", {f"{number}.txt": f"{number}\n"})
        work.git("tag", "--annotate", "--message=note", f"v{number}")
        work.git("push", url, "main", f"v{number}")
        git("-c", f"protocol.version={version}", "fetch", "--quiet", "origin", cwd=target)
        assert git("rev-parse", "origin/main", cwd=target).stdout.strip() == oid
        assert git("rev-parse", f"v{number}^{{}}", cwd=target).stdout.strip() == oid
    git("fsck", "--full", "--strict", cwd=target)


def test_ls_remote_shows_peeled_tags_and_head(
    server: EdgeUnderTest, work: WorkTree, path: str
) -> None:
    oid = work.commit("first")
    work.git("tag", "--annotate", "--message=inner", "inner")
    work.git("tag", "--annotate", "--message=outer", "outer", "inner")
    work.git("push", server.url(path), "main", "inner", "outer")
    for version in "0", "2":
        shown = git("-c", f"protocol.version={version}", "ls-remote", server.url(path)).stdout
        refs = {name: oid for oid, name in (line.split("\t") for line in shown.splitlines())}
        assert refs["HEAD"] == refs["refs/tags/outer^{}"] == refs["refs/tags/inner^{}"] == oid


def test_an_empty_repository_can_be_cloned(
    server: EdgeUnderTest, path: str, tmp_path: Path
) -> None:
    origin = server.edge.origin("admin")
    server.do(
        server.edge.repositories.create(path, origin=origin, default_branch=b"refs/heads/trunk")
    )
    target = tmp_path / "clone"
    done = git("clone", server.url(path), str(target))
    assert "empty repository" in done.stderr
    head = git("symbolic-ref", "HEAD", cwd=target).stdout.strip()
    assert head == "refs/heads/trunk"


def test_a_shallow_clone_and_its_deepening(
    server: EdgeUnderTest, work: WorkTree, path: str, tmp_path: Path
) -> None:
    for number in range(5):
        work.commit(f"change {number}")
    work.git("push", server.url(path), "main")
    target = tmp_path / "clone"
    git("clone", "--quiet", "--depth=2", server.url(path), str(target))
    assert git("rev-list", "--count", "HEAD", cwd=target).stdout.strip() == "2"
    git("fetch", "--quiet", "--unshallow", cwd=target)
    assert git("rev-list", "--count", "HEAD", cwd=target).stdout.strip() == "5"


def test_a_want_that_nobody_knows_is_refused_after_the_read_index(
    server: EdgeUnderTest, work: WorkTree, path: str
) -> None:
    work.commit("first")
    work.git("push", server.url(path), "main")
    before = server.core.read_indexes
    answer = fetch(server, path, v2_fetch("want " + "ab" * 20, "done"), 2)
    assert answer.status == 200
    assert b"ERR upload-pack: not our ref " + b"ab" * 20 in answer.body
    assert server.core.read_indexes == before + 1


def test_a_want_that_is_known_here_needs_no_leader(
    server: EdgeUnderTest, work: WorkTree, path: str
) -> None:
    oid = work.commit("first")
    work.git("push", server.url(path), "main")
    server.core.has_leader = False
    try:
        answer = fetch(server, path, v2_fetch(f"want {oid}", "done"), 2)
        assert b"PACK" in answer.body
        unknown = fetch(server, path, v2_fetch("want " + "ab" * 20, "done"), 2)
        assert b"ERR no leader" in unknown.body
        listing = packet(b"command=ls-refs") + b"0000"
        assert b"ERR no leader" in fetch(server, path, listing, 2).body
    finally:
        server.core.has_leader = True


def test_a_client_without_side_band_gets_the_bare_pack(
    server: EdgeUnderTest, work: WorkTree, path: str, tmp_path: Path
) -> None:
    oid = work.commit("first")
    work.git("push", server.url(path), "main")
    answer = fetch(server, path, packet(f"want {oid}".encode()) + b"0000" + packet(b"done\n"))
    assert answer.body.startswith(b"0008NAK\nPACK")
    pack = tmp_path / "answer.pack"
    pack.write_bytes(answer.body[8:])
    git("init", "--quiet", "--bare", str(tmp_path / "bare.git"))
    git("index-pack", "--strict", str(pack), cwd=tmp_path / "bare.git")


@pytest.mark.parametrize(
    ("body", "version"),
    [
        (b"zzzz", 0),
        (packet(b"want nothing") + b"0000", 0),
        (packet(b"command=bogus") + b"0000", 2),
        (v2_fetch("want 123"), 2),
        (v2_fetch("frobnicate"), 2),
        (packet(b"command=fetch")[:-3], 2),
    ],
)
def test_garbage_is_an_error_in_the_protocol(
    server: EdgeUnderTest, work: WorkTree, path: str, body: bytes, version: int
) -> None:
    work.commit("first")
    work.git("push", server.url(path), "main")
    answer = fetch(server, path, body, version)
    assert answer.status == 200
    assert answer.body[4:8] == b"ERR "


def test_a_failure_while_the_pack_is_built_is_told_in_side_band_3(
    server: EdgeUnderTest, work: WorkTree, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    work.commit("first")
    work.git("push", server.url(path), "main")
    run = server.edge.workers.run

    async def broken(job: str, *arguments: Any) -> Any:
        if job == "build_pack":
            raise Unavailable("the worker process died")
        return await run(job, *arguments)

    monkeypatch.setattr(server.edge.workers, "run", broken)
    refused = git("clone", server.url(path), str(work.path / "clone"), check=False)
    assert refused.returncode != 0
    assert "the worker process died" in refused.stderr


def test_a_client_that_goes_away_stops_the_work_for_it(
    server: EdgeUnderTest, work: WorkTree, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    oid = work.commit("first")
    work.git("push", server.url(path), "main")
    running, cancelled = asyncio.Event(), asyncio.Event()

    async def endless(*_: object) -> None:
        running.set()
        try:
            await asyncio.Event().wait()
        finally:
            cancelled.set()

    monkeypatch.setattr(server.edge.workers, "run", endless)
    body = v2_fetch(f"want {oid}", "done")
    host, port = server.address.split(":")
    connection = socket.create_connection((host, int(port)), timeout=10)
    connection.sendall(
        f"POST /{path}/git-upload-pack HTTP/1.1\r\nHost: x\r\nContent-Type: {FETCH_TYPE}\r\n"
        f"Authorization: {AUTHORIZATION}\r\nGit-Protocol: version=2\r\n"
        f"Content-Length: {len(body)}\r\n\r\n".encode()
        + body
    )
    eventually(running.is_set, what="a worker negotiates")
    connection.close()
    eventually(cancelled.is_set, what="the job is cancelled")


def test_repositories_are_created_listed_and_deleted(server: EdgeUnderTest, path: str) -> None:
    repositories, edge = server.edge.repositories, server.edge
    names = [f"{path}/{letter}" for letter in "abcde"]
    for name in names:
        view = server.do(repositories.create(f"/{name}.git", origin=edge.origin("admin")))
        assert view.path == name
        assert view.refs == {}
    first, after = server.do(repositories.list(limit=3, prefix=path + "/"))
    rest, end = server.do(repositories.list(limit=3, prefix=path + "/", after=after))
    assert [view.path for view in first + rest] == names
    assert end == ""
    server.do(repositories.delete(names[0], origin=edge.origin("admin")))
    with pytest.raises(NotFound):
        server.do(repositories.get(names[0]))
    with pytest.raises(NotFound):
        server.do(repositories.delete(names[0], origin=edge.origin("admin")))
    assert server.do(repositories.resolve(names[0])) is None


def test_creating_again_with_the_same_request_gives_the_same_repository(
    server: EdgeUnderTest, path: str
) -> None:
    repositories, origin = server.edge.repositories, server.edge.origin("admin")
    first = server.do(repositories.create(path, origin=origin))
    again = server.do(repositories.create(path, origin=origin))
    assert first.repository_id == again.repository_id


def test_a_reservation_alone_is_no_repository(
    server: EdgeUnderTest, work: WorkTree, path: str
) -> None:
    """A crash after the first step of a creation."""
    edge = server.edge
    reserved = server.do(edge.repositories.reserve(path, edge.origin("admin")))
    with pytest.raises(NotFound):
        server.do(edge.repositories.get(path))
    assert server.do(edge.repositories.list(prefix=path))[0] == []
    work.commit("first")
    work.git("push", server.url(path), "main")
    assert server.do(edge.repositories.get(path)).repository_id == reserved.repository_id


def test_views_are_shared_until_the_revision_moves(
    server: EdgeUnderTest, work: WorkTree, path: str
) -> None:
    work.commit("first")
    work.git("push", server.url(path), "main")
    first = server.do(server.edge.reads.open(path))
    assert server.do(server.edge.reads.open(path)) is first
    oid = work.commit("second")
    work.git("push", server.url(path), "main")
    second = server.do(server.edge.reads.open(path))
    assert second is not first
    assert refs_of(server.url(path))["refs/heads/main"] == oid
    assert second.refs[b"refs/heads/main"].hex() == oid
    assert first.refs[b"refs/heads/main"].hex() != oid


def test_an_advertisement_is_encoded_once_per_revision(
    server: EdgeUnderTest, work: WorkTree, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    encoded: list[RefsView] = []

    def encode(view: RefsView, version: int) -> bytes:
        encoded.append(view)
        return advertise_upload_pack_v0(view, version)

    monkeypatch.setattr("quorepo.rpc.advertisement.advertise_upload_pack_v0", encode)
    for number in range(2):
        oid = work.commit(f"{number}")
        work.git("push", server.url(path), "main")
        encoded.clear()
        for _ in range(3):
            answer = request(server, "GET", f"/{path}/info/refs?service=git-upload-pack")
            assert oid.encode() in answer.body
        assert len(encoded) == 1


def test_a_sha256_repository_is_pushed_to_and_cloned(
    server: EdgeUnderTest, work: WorkTree, path: str, tmp_path: Path
) -> None:
    server.do(
        server.edge.repositories.create(
            path, origin=server.edge.origin("admin"), object_format=ObjectFormat.SHA256
        )
    )
    tree = tmp_path / "sha256"
    git("init", "--quiet", "--object-format=sha256", "--initial-branch=main", str(tree))
    (tree / "file.txt").write_text("content\n")
    git("add", ".", cwd=tree)
    git("commit", "--quiet", "--message=first", cwd=tree)
    git("push", "--quiet", server.url(path), "main", cwd=tree)
    oid = git("rev-parse", "HEAD", cwd=tree).stdout.strip()
    for version in "0", "2":
        target = clone(server.url(path), tmp_path / version, f"protocol.version={version}")
        assert git("rev-parse", "HEAD", cwd=target).stdout.strip() == oid
    work.commit("in SHA-1")
    assert "hash algorithm" in work.git("push", server.url(path), "main", check=False).stderr
