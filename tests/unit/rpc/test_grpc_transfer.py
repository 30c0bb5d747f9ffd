"""git through TransferService: the real git over `quorepo transfer`, and streams that no git
makes."""

from __future__ import annotations

import hashlib
import subprocess
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import grpc
import pytest
from support.edge import TOKEN, EdgeUnderTest, edge_config, running_edge
from support.git import WorkTree, clone, git, refs_of, through_the_api
from support.grpc_api import Api, Refused, serving_api
from support.raw_http import ZERO, blob_entry, blob_id, commands, pack, packets
from support.waiting import eventually

from quorepo.rpc.auth import Authenticator, TokenDigest
from quorepo.rpc.grpc.server import GrpcServer
from quorepo.v1 import transfer_pb2, transfer_pb2_grpc

READER = "a-token-that-may-only-read"
BLOB = b"content\n"
TAG_REF = "refs/tags/blob"
CREATE = f"{ZERO} {blob_id(BLOB)} {TAG_REF}"
AUTHORIZATION = (("authorization", f"Bearer {TOKEN}"),)
CHUNK = 256 * 1024


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with serving_api(tmp_path_factory.mktemp("node") / "data") as api:
        tokens: dict[str, str | TokenDigest] = {
            "admin": TOKEN,
            "reader": TokenDigest.of(READER, "read"),
        }
        api.under_test.edge.authenticator = Authenticator(tokens)
        yield api


@pytest.fixture(autouse=True)
def _leaves_nothing_behind(api: Api) -> Iterator[None]:
    yield
    api.under_test.settle()
    assert api.under_test.uploads() == []
    assert api.under_test.fetch_files() == []


class Through:
    """git whose ssh is `quorepo transfer`."""

    def __init__(self, api: Api, token: str = TOKEN) -> None:
        endpoint = api.under_test.edge.config.listen.grpc
        self.environment = through_the_api(endpoint, token)

    def git(
        self, *arguments: str, cwd: Path | None = None, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        return git(*arguments, cwd=cwd, check=check, environment=self.environment)


def address(path: str) -> str:
    return f"cluster:{path}"


# ---- the real git


def test_push_clone_and_fetch(api: Api, work: WorkTree, path: str, tmp_path: Path) -> None:
    through = Through(api)
    first = work.commit("first", {"a.txt": "a\n", "large.bin": bytes(range(256)) * 8192})
    pushed = through.git("push", address(path), "main", cwd=work.path)
    assert "new branch" in pushed.stderr
    assert refs_of(api.under_test.url(path))["refs/heads/main"] == first
    target = tmp_path / "clone"
    through.git("clone", "--quiet", address(path), str(target))
    git("fsck", "--full", "--strict", "--no-progress", cwd=target)
    assert git("rev-parse", "HEAD", cwd=target).stdout.strip() == first
    second = work.commit("second")
    through.git("push", f"ssh://any.host.at.all/{path}.git", "main", cwd=work.path)
    through.git("fetch", "--quiet", "origin", cwd=target)
    assert git("rev-parse", "origin/main", cwd=target).stdout.strip() == second
    shown = through.git("ls-remote", address(path)).stdout
    assert shown == git("ls-remote", api.under_test.url(path)).stdout


def test_long_negotiations_and_partial_clones(
    api: Api, work: WorkTree, path: str, tmp_path: Path
) -> None:
    """Many rounds of haves, and requests after the first one, on one connection of git's."""
    through = Through(api)
    for number in range(3):
        work.commit(f"shared {number}", {f"f{number}": f"{number}\n"})
    through.git("push", address(path), "main", cwd=work.path)
    target = clone(api.under_test.url(path), tmp_path / "clone")
    for number in range(200):
        git("commit", "--quiet", "--allow-empty", f"--message=own {number}", cwd=target)
    theirs = work.commit("theirs")
    through.git("push", address(path), "main", cwd=work.path)
    through.git("fetch", "--quiet", address(path), "main", cwd=target)
    assert git("rev-parse", "FETCH_HEAD", cwd=target).stdout.strip() == theirs
    partial = tmp_path / "partial"
    through.git("clone", "--quiet", "--filter=blob:none", address(path), str(partial))
    assert (partial / "f2").read_text() == "2\n"


def test_deletions_push_options_and_nothing_to_push(api: Api, work: WorkTree, path: str) -> None:
    through = Through(api)
    work.commit("first")
    through.git("push", address(path), "main", "HEAD:refs/heads/topic", cwd=work.path)
    options = ("--push-option=one", "--push-option=two")
    through.git("push", *options, address(path), "HEAD:refs/heads/third", cwd=work.path)
    command = api.under_test.core.commands[-1].transaction
    assert list(command.push_options) == ["one", "two"]
    through.git("push", *options, address(path), "--delete", "topic", "third", cwd=work.path)
    through.git("push", address(path), "main", cwd=work.path)
    assert set(refs_of(api.under_test.url(path))) == {"HEAD", "refs/heads/main"}


def test_a_refused_ref_and_an_atomic_push(api: Api, work: WorkTree, path: str) -> None:
    through = Through(api)
    first = work.commit("first")
    through.git("push", address(path), "main", cwd=work.path)
    work.git("commit", "--quiet", "--amend", "--message=rewritten")
    lease = f"--force-with-lease=main:{'1' * 40}"
    both = ("main", "HEAD:refs/heads/new")
    refused = through.git(
        "push", "--atomic", lease, address(path), *both, cwd=work.path, check=False
    )
    assert refused.returncode != 0
    assert refs_of(api.under_test.url(path)) == {"HEAD": first, "refs/heads/main": first}
    refused = through.git("push", lease, address(path), *both, cwd=work.path, check=False)
    assert refused.returncode != 0
    assert "refs/heads/new" in refs_of(api.under_test.url(path))


def test_a_reader_fetches_and_does_not_push(
    api: Api, work: WorkTree, path: str, tmp_path: Path
) -> None:
    work.commit("first")
    work.git("push", "--quiet", api.under_test.url(path), "main")
    through = Through(api, READER)
    through.git("clone", "--quiet", address(path), str(tmp_path / "clone"))
    work.commit("second")
    refused = through.git("push", address(path), "main", cwd=work.path, check=False)
    assert "has the role 'read'" in refused.stderr
    assert "nothing was changed" in refused.stderr
    strange = Through(api, "a-token-that-nobody-has")
    assert "unknown token" in strange.git("ls-remote", address(path), check=False).stderr


def test_a_repository_that_is_not_there(api: Api, path: str) -> None:
    failed = Through(api).git("ls-remote", address(path), check=False)
    assert failed.returncode != 0
    assert f"repository '{path}' does not exist" in failed.stderr


def test_protocol_0_is_refused_by_the_bridge_and_served_by_the_service(
    api: Api, work: WorkTree, path: str
) -> None:
    oid = work.commit("first")
    work.git("push", "--quiet", api.under_test.url(path), "main")
    failed = Through(api).git("-c", "protocol.version=0", "ls-remote", address(path), check=False)
    assert "protocol version 2" in failed.stderr
    shown = fetch(api, header(path, advertise=True))
    assert f"{oid} refs/heads/main\n".encode() in shown


def test_a_drained_node_refuses_pushes_and_serves_fetches(
    api: Api, work: WorkTree, path: str
) -> None:
    work.commit("first")
    work.git("push", "--quiet", api.under_test.url(path), "main")
    api.under_test.core.draining = True
    try:
        slots = api.under_test.edge.push_slots
        eventually(lambda: slots.drained, timeout_s=60, what="the edge knows")
        refused = report(push(api, path, commands(CREATE) + pack(blob_entry(BLOB))))
        assert "drained" in refused[1]
        assert "refs/heads/main" in Through(api).git("ls-remote", address(path)).stdout
    finally:
        api.under_test.core.draining = False
        eventually(lambda: not slots.drained, timeout_s=60, what="the edge knows")


# ---- streams that no git makes


def header(path: str, **fields: Any) -> transfer_pb2.TransferHeader:
    return transfer_pb2.TransferHeader(repository=path, **fields)


def messages(kind: Any, first: transfer_pb2.TransferHeader, body: bytes) -> Iterator[Any]:
    yield kind(header=first)
    for start in range(0, len(body), CHUNK):
        yield kind(chunk=body[start : start + CHUNK])
    yield kind(sha256=hashlib.sha256(body).digest())


def send(api: Api, method: str, requests: Iterator[Any]) -> bytes:
    """The bytes of the answer; checks its form."""
    stub = transfer_pb2_grpc.TransferServiceStub(api.channel)
    call: Any = getattr(stub, method)
    try:
        parts = list(call(requests, metadata=AUTHORIZATION, timeout=60))
    except grpc.RpcError as error:
        raise Refused(error) from error
    *chunks, last = parts
    body = b"".join(part.chunk for part in chunks)
    assert all(len(part.chunk) <= CHUNK for part in chunks)
    assert last.trailer.sha256 == hashlib.sha256(body).digest()
    assert last.trailer.size == len(body)
    return body


def fetch(api: Api, first: transfer_pb2.TransferHeader, body: bytes = b"") -> bytes:
    kind = transfer_pb2.UploadPackRequest
    requests = iter([kind(header=first)]) if first.advertise else messages(kind, first, body)
    return send(api, "UploadPack", requests)


def push(api: Api, path: str, body: bytes) -> bytes:
    return send(api, "ReceivePack", messages(transfer_pb2.ReceivePackRequest, header(path), body))


def report(answer: bytes) -> list[str]:
    banded = b"".join(p[1:] for p in packets(answer) if p is not None and p[:1] == b"\1")
    return [line.decode().rstrip("\n") for line in packets(banded) if line is not None]


def test_a_hand_made_push_is_taken(api: Api, path: str) -> None:
    answer = push(api, path, commands(CREATE) + pack(blob_entry(BLOB)))
    assert report(answer) == ["unpack ok", f"ok {TAG_REF}"]
    assert refs_of(api.under_test.url(path)) == {TAG_REF: blob_id(BLOB)}


@pytest.mark.parametrize("kind", ["cut", "wrong digest", "large chunk", "header twice"])
def test_a_stream_that_is_not_whole_changes_nothing(api: Api, path: str, kind: str) -> None:
    """Also one of commands without a pack, which nothing else would tell from a whole one."""
    push(api, path, commands(CREATE) + pack(blob_entry(BLOB)))
    request = transfer_pb2.ReceivePackRequest
    deletion = commands(f"{blob_id(BLOB)} {ZERO} {TAG_REF}")
    parts = list(messages(request, header(path), deletion))
    if kind == "cut":
        parts.pop()
    elif kind == "wrong digest":
        parts[-1] = request(sha256=bytes(32))
    elif kind == "large chunk":
        parts.insert(1, request(chunk=bytes(CHUNK + 1)))
    else:
        parts.insert(1, parts[0])
    with pytest.raises(Refused, match=r"sha256|chunk|out of place") as refused:
        send(api, "ReceivePack", iter(parts))
    assert refused.value.info.reason == "INVALID_ARGUMENT"
    assert refs_of(api.under_test.url(path)) == {TAG_REF: blob_id(BLOB)}


def test_a_first_message_that_is_no_header_and_a_bad_path(api: Api) -> None:
    kind = transfer_pb2.UploadPackRequest
    with pytest.raises(Refused, match="must be a header"):
        send(api, "UploadPack", iter([kind(chunk=b"x")]))
    with pytest.raises(Refused, match="must be a header"):
        send(api, "UploadPack", iter([]))
    with pytest.raises(Refused) as refused:
        fetch(api, header("../elsewhere", advertise=True))
    assert refused.value.info.reason == "INVALID_ARGUMENT"


def test_what_git_has_words_for_is_part_of_the_answer(api: Api, work: WorkTree, path: str) -> None:
    work.commit("first")
    work.git("push", "--quiet", api.under_test.url(path), "main")
    wanted = b"0011command=fetch0001" + b"0032want " + b"1" * 40 + b"\n" + b"0009done\n0000"
    answer = fetch(api, header(path, git_protocol="version=2"), wanted)
    assert b"ERR " in answer
    assert b"not our ref" in answer


def test_a_push_whose_client_goes_away_leaves_nothing_behind(api: Api, path: str) -> None:
    """Cancelled while its pack arrives."""
    stub = transfer_pb2_grpc.TransferServiceStub(api.channel)
    kind = transfer_pb2.ReceivePackRequest
    body = commands(CREATE) + pack(blob_entry(BLOB))
    sent, gone = threading.Event(), threading.Event()

    def requests() -> Iterator[Any]:
        yield kind(header=header(path))
        yield kind(chunk=body[:-10])
        yield kind(chunk=body[-10:-5])
        sent.set()
        gone.wait(60)

    call: Any = stub.ReceivePack(requests(), metadata=AUTHORIZATION)
    assert sent.wait(60)
    eventually(lambda: api.under_test.uploads() != [], timeout_s=60, what="the upload has begun")
    call.cancel()
    gone.set()
    eventually(lambda: api.under_test.uploads() == [], timeout_s=60, what="the upload is gone")
    with pytest.raises(Refused) as refused:
        fetch(api, header(path, advertise=True))
    assert refused.value.info.reason == "NOT_FOUND"


def test_a_proposed_push_goes_on_without_its_client(api: Api, path: str) -> None:
    under_test = api.under_test
    hold_commits(under_test)
    kind = transfer_pb2.ReceivePackRequest
    body = commands(CREATE) + pack(blob_entry(BLOB))
    stub = transfer_pb2_grpc.TransferServiceStub(api.channel)
    call: Any = stub.ReceivePack(messages(kind, header(path), body), metadata=AUTHORIZATION)
    eventually(under_test.core.holding.is_set, timeout_s=60, what="the transaction is proposed")
    call.cancel()
    under_test.settle_requests()
    release_commits(under_test)
    under_test.settle()
    assert refs_of(under_test.url(path)) == {TAG_REF: blob_id(BLOB)}


def test_a_push_that_is_being_served_is_answered_before_the_server_ends(tmp_path: Path) -> None:
    """What began before a node stops gets its report, as over HTTP; what comes later is refused."""
    with running_edge(edge_config(tmp_path / "node" / "data")) as under_test:
        address = under_test.edge.config.listen.grpc

        async def start() -> GrpcServer:
            server = GrpcServer(under_test.edge, address)
            await server.start()
            return server

        server = under_test.do(start())
        hold_commits(under_test)
        with grpc.insecure_channel(address) as channel, ThreadPoolExecutor(2) as threads:
            one = Api(under_test, channel)
            body = commands(CREATE) + pack(blob_entry(BLOB))
            pushing = threads.submit(push, one, "team/app", body)
            eventually(under_test.core.holding.is_set, timeout_s=60, what="it is proposed")
            under_test.edge.stop_taking()
            stopping = threads.submit(under_test.do, server.stop(0.1))
            with pytest.raises(Refused, match="stopping"):
                fetch(one, header("team/app", advertise=True))
            release_commits(under_test)
            assert report(pushing.result(60)) == ["unpack ok", f"ok {TAG_REF}"]
            stopping.result(60)


def test_an_outcome_that_is_not_known_is_a_ref_without_a_line(api: Api, path: str) -> None:
    api.under_test.core.answers_lost = 1
    lines = report(push(api, path, commands(CREATE) + pack(blob_entry(BLOB))))
    assert lines == ["unpack ok"]
    assert refs_of(api.under_test.url(path)) == {TAG_REF: blob_id(BLOB)}


def test_a_client_that_never_reads_holds_bounded_memory(
    api: Api, work: WorkTree, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of an answer of 32 MiB little is sent while nobody takes it, and the stream ends."""
    monkeypatch.setattr("quorepo.rpc.grpc.interceptor._WRITE_TIMEOUT_S", 0.5)
    work.commit("large", {"large.bin": random_bytes(32 * 1024 * 1024)})
    oid = work.head()
    work.git("push", "--quiet", api.under_test.url(path), "main")
    sent = api.under_test.edge.metrics.bytes_sent.labels("git-upload-pack")
    before = sent._value.get()
    request = f"0011command=fetch00010032want {oid}\n0009done\n0000".encode()
    kind = transfer_pb2.UploadPackRequest
    endpoint = api.under_test.edge.config.listen.grpc
    with grpc.insecure_channel(endpoint) as channel:
        stub = transfer_pb2_grpc.TransferServiceStub(channel)
        call: Any = stub.UploadPack(
            messages(kind, header(path, git_protocol="version=2"), request),
            metadata=AUTHORIZATION,
        )
        next(call)
        in_flight = api.under_test.edge.metrics.in_flight.labels("git-upload-pack")
        eventually(lambda: in_flight._value.get() == 0, timeout_s=60, what="the stream has ended")
        assert sent._value.get() - before < 16 * 1024 * 1024
        call.cancel()


def random_bytes(count: int) -> bytes:
    return hashlib.shake_256(b"of a test").digest(count)


def hold_commits(under_test: EdgeUnderTest) -> None:
    import asyncio

    async def hold() -> None:
        under_test.core.holding.clear()
        under_test.core.hold = asyncio.Event()

    under_test.do(hold())


def release_commits(under_test: EdgeUnderTest) -> None:
    async def release() -> None:
        assert under_test.core.hold is not None
        under_test.core.hold.set()
        under_test.core.hold = None

    under_test.do(release())
