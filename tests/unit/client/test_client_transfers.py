"""`client.transfers`: git's protocol through the Python client, with objects that C git made."""

from __future__ import annotations

import hashlib
import io
import subprocess
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from grpc_health.v1 import health, health_pb2, health_pb2_grpc
from support.edge import TOKEN
from support.git import WorkTree, git, refs_of
from support.grpc_api import Api
from support.raw_http import ZERO, commands, packet, packets

import quorepo
import quorepo.aio
from quorepo import errors
from quorepo.rpc.grpc.errors import to_status
from quorepo.storage.errors import QuorepoError, Unavailable
from quorepo.v1 import transfer_pb2, transfer_pb2_grpc

MAIN = "refs/heads/main"


@pytest.fixture
def work(tmp_path: Path) -> WorkTree:
    work = WorkTree(tmp_path / "work")
    work.commit("first", {"README": "hello\n", "large.bin": bytes(range(256)) * 4096})
    return work


def pack_of(work: WorkTree, *revisions: str) -> bytes:
    """As `git push` sends it."""
    asked = "".join(f"{revision}\n" for revision in revisions).encode()
    command = [
        "git",
        "pack-objects",
        "--revs",
        "--stdout",
        "--quiet",
        "--thin",
        "--delta-base-offset",
    ]
    return subprocess.run(
        command, cwd=work.path, input=asked, capture_output=True, check=True
    ).stdout


def creation(work: WorkTree) -> bytes:
    """A push of main into a repository without refs."""
    return commands(f"{ZERO} {work.head()} {MAIN}") + pack_of(work, "main")


def report(answer: bytes) -> list[str]:
    banded = b"".join(p[1:] for p in packets(answer) if p is not None and p[:1] == b"\1")
    return [line.decode().rstrip("\n") for line in packets(banded) if line is not None]


def wanting(oid: str) -> bytes:
    lines = [packet(b"command=fetch"), b"0001", packet(b"want " + oid.encode()), packet(b"done")]
    return b"".join(lines) + b"0000"


def packed(answer: bytes) -> bytes:
    """The pack in the answer to a fetch."""
    return b"".join(
        p[1:] for p in packets(answer.split(b"000dpackfile\n", 1)[1]) if p and p[0] == 1
    )


def pieces(data: bytes, size: int) -> Iterator[bytes]:
    for start in range(0, len(data), size):
        yield data[start : start + size]


def test_real_objects_are_pushed_and_fetched(
    api: Api, client: quorepo.Client, path: str, work: WorkTree, tmp_path: Path
) -> None:
    assert b"report-status" in client.transfers.receive_pack_refs(path)
    answer = b"".join(client.transfers.receive_pack(path, creation(work)))
    assert report(answer) == ["unpack ok", f"ok {MAIN}"]
    assert client.refs.get(path, MAIN).oid == work.head(), "the client reads what it pushed"
    assert b"version 2\n" in client.transfers.upload_pack_refs(path)
    shown = client.transfers.upload_pack_refs(path, git_protocol="")
    assert f"{work.head()} {MAIN}\n".encode() in shown
    fetched = b"".join(client.transfers.upload_pack(path, wanting(work.head())))
    git("init", "--quiet", "--bare", str(tmp_path / "there"))
    subprocess.run(
        ["git", "index-pack", "--stdin", "--fix-thin"],
        cwd=tmp_path / "there",
        input=packed(fetched),
        check=True,
        capture_output=True,
    )
    git("fsck", "--full", "--strict", cwd=tmp_path / "there")
    listed = git("ls-tree", "-r", work.head(), cwd=tmp_path / "there").stdout
    assert listed == work.git("ls-tree", "-r", "main").stdout


@pytest.mark.parametrize("kind", ["bytes", "file", "iterator"])
def test_a_body_is_bytes_a_file_or_an_iterator(
    api: Api, client: quorepo.Client, path: str, work: WorkTree, tmp_path: Path, kind: str
) -> None:
    """A thin pack on what the repository has, in pieces that are larger than a chunk."""
    first = work.head()
    list(client.transfers.receive_pack(path, creation(work)))
    second = work.commit("second", {"large.bin": bytes(range(255)) * 8192})
    body = commands(f"{first} {second} {MAIN}") + pack_of(work, "main", f"^{first}")
    file = tmp_path / "body"
    file.write_bytes(body)
    given = {"bytes": body, "file": file, "iterator": pieces(body, 300_000)}[kind]
    answer = b"".join(client.transfers.receive_pack(path, given))  # type: ignore[arg-type]
    assert report(answer) == ["unpack ok", f"ok {MAIN}"]
    assert refs_of(api.under_test.url(path))[MAIN] == second


async def test_the_asynchronous_client_streams_both_ways(
    endpoint: str, path: str, work: WorkTree
) -> None:
    async def body() -> AsyncIterator[bytes]:
        for piece in pieces(creation(work), 100_000):
            yield piece

    async with quorepo.aio.Client(endpoint, token=TOKEN) as client:
        answer = b"".join([chunk async for chunk in client.transfers.receive_pack(path, body())])
        assert report(answer) == ["unpack ok", f"ok {MAIN}"]
        assert b"ls-refs" in await client.transfers.upload_pack_refs(path)
        assert f"{work.head()} {MAIN}\0".encode() in await client.transfers.receive_pack_refs(path)
        chunks = [c async for c in client.transfers.upload_pack(path, wanting(work.head()))]
        assert packed(b"".join(chunks))[:4] == b"PACK"


def test_what_git_has_words_for_is_part_of_the_answer(
    api: Api, client: quorepo.Client, path: str, work: WorkTree
) -> None:
    list(client.transfers.receive_pack(path, creation(work)))
    again = report(b"".join(client.transfers.receive_pack(path, creation(work))))
    assert again[0] == "unpack ok"
    assert again[1].startswith(f"ng {MAIN} ")
    unknown = b"".join(client.transfers.upload_pack(path, wanting("1" * 40)))
    assert b"not our ref" in unknown
    damaged = commands(f"{ZERO} {work.head()} refs/heads/new") + b"PACK and nothing more"
    lines = report(b"".join(client.transfers.receive_pack(path, damaged)))
    assert lines[0] != "unpack ok"
    assert set(refs_of(api.under_test.url(path))) == {"HEAD", MAIN}


def test_what_the_call_itself_is_refused_for(
    client: quorepo.Client, endpoint: str, path: str, work: WorkTree
) -> None:
    with pytest.raises(errors.NotFound):
        client.transfers.upload_pack_refs(path)
    with pytest.raises(errors.NotFound):
        list(client.transfers.upload_pack(path, wanting("1" * 40)))
    with pytest.raises(errors.InvalidArgument):
        client.transfers.receive_pack_refs("../elsewhere")
    with (
        quorepo.Client(endpoint, token="nobody's") as stranger,
        pytest.raises(errors.Unauthenticated),
    ):
        list(stranger.transfers.receive_pack(path, creation(work)))
    assert not client.repositories.exists(path)


def test_an_iterator_that_fails_pushes_nothing(
    client: quorepo.Client, path: str, work: WorkTree, tmp_path: Path
) -> None:
    """The caller gets its own error: a stream without its digest is not acted upon."""

    def body() -> Iterator[bytes]:
        yield creation(work)
        raise io.UnsupportedOperation("the disk of the caller")

    with pytest.raises(io.UnsupportedOperation):
        list(client.transfers.receive_pack(path, body()))
    with pytest.raises(FileNotFoundError):
        list(client.transfers.receive_pack(path, tmp_path / "none"))
    assert not client.repositories.exists(path)


async def test_an_asynchronous_iterator_that_fails_pushes_nothing(
    endpoint: str, path: str, work: WorkTree
) -> None:
    async def body() -> AsyncIterator[bytes]:
        yield creation(work)
        raise io.UnsupportedOperation("the disk of the caller")

    async with quorepo.aio.Client(endpoint, token=TOKEN) as client:
        with pytest.raises(io.UnsupportedOperation):
            _ = [chunk async for chunk in client.transfers.receive_pack(path, body())]
        assert not await client.repositories.exists(path)


class Node(transfer_pb2_grpc.TransferServiceServicer):
    """A node that answers `parts` and then fails with `failure`; then well."""

    def __init__(self) -> None:
        self.parts: list[bytes] = []
        self.failure: QuorepoError | grpc.StatusCode | None = None
        self.whole = True
        self.calls = 0

    def _answer(
        self, kind: Any, requests: Iterator[Any], context: grpc.ServicerContext
    ) -> Iterator[Any]:
        self.calls += 1
        for _ in requests:
            pass
        digest = hashlib.sha256()
        for part in self.parts:
            digest.update(part)
            yield kind(chunk=part)
        failure, self.failure = self.failure, None
        if isinstance(failure, QuorepoError):
            status = to_status(failure)
            context.set_trailing_metadata(
                (("grpc-status-details-bin", status.SerializeToString()),)
            )
            context.abort(grpc.StatusCode[failure.grpc_code], status.message)
        elif failure is not None:
            context.abort(failure, "broken off")
        if self.whole:
            yield kind(trailer=transfer_pb2.TransferTrailer(sha256=digest.digest()))

    def ReceivePack(self, requests: Iterator[Any], context: grpc.ServicerContext) -> Iterator[Any]:
        return self._answer(transfer_pb2.ReceivePackResponse, requests, context)

    def UploadPack(self, requests: Iterator[Any], context: grpc.ServicerContext) -> Iterator[Any]:
        return self._answer(transfer_pb2.UploadPackResponse, requests, context)


@pytest.fixture
def node() -> Iterator[tuple[Node, quorepo.Client]]:
    node = Node()
    healthy = health.HealthServicer()
    healthy.set("readiness", health_pb2.HealthCheckResponse.SERVING)
    with ThreadPoolExecutor(4) as pool:
        server = grpc.server(pool, options=[("grpc.so_reuseport", 0)])
        transfer_pb2_grpc.add_TransferServiceServicer_to_server(node, server)
        health_pb2_grpc.add_HealthServicer_to_server(healthy, server)
        port = server.add_insecure_port("127.0.0.1:0")
        server.start()
        try:
            with quorepo.Client(f"127.0.0.1:{port}", token="t") as client:
                yield node, client
        finally:
            server.stop(0).wait()


@pytest.mark.parametrize("parts", [[], [b"a part of the report"]])
@pytest.mark.parametrize("failure", [grpc.StatusCode.UNAVAILABLE, None])
def test_a_push_that_breaks_off_is_in_doubt_and_not_sent_again(
    node: tuple[Node, quorepo.Client], parts: list[bytes], failure: grpc.StatusCode | None
) -> None:
    served, client = node
    served.parts, served.failure, served.whole = parts, failure, False
    with pytest.raises(errors.OutcomeUnknown) as caught:
        list(client.transfers.receive_pack("team/app", b"0000"))
    assert (caught.value.conclusion, caught.value.reason) == ("unknown", "OUTCOME_UNKNOWN")
    assert caught.value.next_step == "push again (harmless)"
    assert served.calls == 1


@pytest.mark.parametrize("once", [False, True])
def test_a_push_that_was_refused_for_now_is_sent_again_if_it_can_be(
    node: tuple[Node, quorepo.Client], once: bool
) -> None:
    served, client = node
    served.failure = Unavailable("this node is stopping")
    body: Any = iter([b"0000"]) if once else b"0000"
    if once:
        with pytest.raises(errors.Unavailable, match="stopping"):
            list(client.transfers.receive_pack("team/app", body))
        assert served.calls == 1
    else:
        assert list(client.transfers.receive_pack("team/app", body)) == []
        assert served.calls == 2


def test_a_fetch_is_asked_again_until_its_first_chunk_and_never_passes_for_whole(
    node: tuple[Node, quorepo.Client],
) -> None:
    served, client = node
    served.failure = grpc.StatusCode.UNAVAILABLE
    assert list(client.transfers.upload_pack("team/app", b"0000")) == []
    assert served.calls == 2
    served.parts, served.whole = [b"PACK"], False
    with pytest.raises(errors.CutStream) as caught:
        list(client.transfers.upload_pack("team/app", b"0000"))
    assert caught.value.conclusion == "rejected"
