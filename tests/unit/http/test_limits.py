"""Every limit of a push or a fetch is refused by its name, and leaves nothing behind."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.edge import EdgeUnderTest, edge_config, running_edge
from support.git import WorkTree
from support.packing import PackWriter, copy, delta, insert, object_id
from support.raw_http import FETCH_TYPE, ZERO, Answer, commands, packet, push, request
from support.waiting import eventually

from quorepo.internal.v1 import log_pb2
from quorepo.storage.limits import StorageLimits
from quorepo.storage.packfile import BLOB

NARROW: dict[str, Any] = {
    "push_bytes_max": 20_000,
    "inline_pack_bytes_max": 2000,
    "push_objects_max": 8,
    "object_bytes_max": 4000,
    "push_inflated_bytes_max": 12_000,
    "delta_result_bytes_max": 3000,
    "delta_depth_max": 3,
    "refs_per_push_max": 2,
    "ref_name_bytes_max": 64,
    "push_options_max": 2,
    "push_options_bytes_max": 50,
    "filters_combined_max": 3,
    "negotiation_lines_max": 100,
    "fetch_request_bytes_max": 8192,
}
# Kept by other parts, whose own tests show it: where, and by what word.
ELSEWHERE = {
    "worker_memory_bytes_max": ("storage/test_worker_pool.py", "worker_memory_bytes_max"),
    "worker_timeout_s": ("storage/test_worker_pool.py", "worker_timeout_s"),
    "worker_cache_bytes_max": ("storage/test_worker_pool.py", "worker_cache_bytes_max"),
    "batch_requests_max": ("rpc/test_grpc_batch_refs.py", "batch_requests_max"),
    "session_commands_max": ("http/test_smart_http.py", "session_commands_max"),
    "open_packs_max": ("storage/test_packs.py", "max_open_packs"),
    "bundle_url_s": ("http/test_bundles.py", "bundle_url_s"),
    "fetch_cache_bytes_max": ("http/test_fetch_cache.py", "fetch_cache_bytes_max"),
}


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EdgeUnderTest]:
    directory = tmp_path_factory.mktemp("narrow") / "data"
    workers = {"count": 1, "queue_max": 1}
    with running_edge(edge_config(directory, limits=NARROW, workers=workers)) as server:
        yield server


def chain(length: int) -> tuple[bytes, bytes]:
    """A pack of one blob and `length` deltas, each upon the one before; the last one's id."""
    writer = PackWriter()
    content = b"x" * 40
    offset = writer.whole(BLOB, content)
    for number in range(length):
        step = b"%04d" % number
        offset = writer.ofs_delta(offset, delta(len(content), 44, copy(0, 40), insert(step)))
        content = content[:40] + step
    return writer.finish(), object_id(BLOB, content)


def blobs(*contents: bytes) -> tuple[bytes, bytes]:
    writer = PackWriter()
    for content in contents:
        writer.whole(BLOB, content)
    return writer.finish(), object_id(BLOB, contents[0])


def delta_bomb() -> tuple[bytes, bytes]:
    """Six bytes of a delta say 64 KiB."""
    writer = PackWriter()
    base = writer.whole(BLOB, b"x" * 1000)
    writer.ofs_delta(base, delta(1000, 10_000, *[copy(0, 1000)] * 10))
    return writer.finish(), object_id(BLOB, b"x" * 10_000)


PACKS = {
    "push_objects_max": blobs(*(b"%d" % number for number in range(9))),
    "object_bytes_max": blobs(b"\0" * 4001),
    "push_inflated_bytes_max": blobs(*(b"%d" % number * 3000 for number in range(5))),
    "delta_result_bytes_max": delta_bomb(),
    "delta_depth_max": chain(4),
}


@pytest.mark.parametrize("key", PACKS)
def test_a_pack_beyond_a_limit_is_refused_by_its_name(
    server: EdgeUnderTest, path: str, key: str
) -> None:
    pack, oid = PACKS[key]
    answer = push(server, path, commands(f"{ZERO} {oid.hex()} refs/tags/x") + pack)
    first, second = answer.report()
    assert f"limits.{key} is {NARROW[key]}" in first
    assert second == "ng refs/tags/x unpacker error"
    assert b"refs/tags" not in advertised(server, path)


def test_a_pack_at_its_limits_is_taken(server: EdgeUnderTest, path: str) -> None:
    for number, (pack, oid) in enumerate([chain(3), blobs(b"\0" * 4000)]):
        name = f"refs/tags/{number}"
        answer = push(server, path, commands(f"{ZERO} {oid.hex()} {name}") + pack)
        assert answer.report() == ["unpack ok", f"ok {name}"]


def test_a_pack_beyond_the_inline_limit_is_copied_before_its_log_entry(
    server: EdgeUnderTest, path: str
) -> None:
    """The one limit that refuses nothing: it chooses the way of a pack, its index counted."""
    index_bytes = 8 + 4 * 256 + 20 + 4 + 4 + 2 * 20  # of one object
    noise = random.Random(1).randbytes(NARROW["inline_pack_bytes_max"])
    small, large = (
        next(made for size in range(len(noise)) if len((made := blobs(noise[:size]))[0]) == wanted)
        for wanted in (2000 - index_bytes, 2001 - index_bytes)
    )
    for number, (pack, oid) in enumerate([small, large]):
        line = f"{ZERO} {oid.hex()} refs/tags/{number}"
        assert push(server, path, commands(line) + pack).report()[0] == "unpack ok"
        (added,) = server.core.commands[-1].transaction.packs_added
        assert (added.pack_bytes, added.index_bytes) == (len(pack), index_bytes)
        inline = added.encoding == log_pb2.PACK_ENCODING_INLINE
        copied = added.digest in [copied.digest for copied in server.core.replicated]
        assert (inline, copied) == ((True, False), (False, True))[number]


def test_bytes_on_the_wire(server: EdgeUnderTest, path: str) -> None:
    body = commands(f"{ZERO} {'ab' * 20} refs/tags/x") + bytes(30_000)
    answer = push(server, path, (body[i : i + 1000] for i in range(0, len(body), 1000)))
    assert "limits.push_bytes_max" in answer.report()[0]


@pytest.mark.parametrize(
    ("key", "names", "options"),
    [
        ("refs_per_push_max", ["refs/tags/a", "refs/tags/b", "refs/tags/c"], []),
        ("ref_name_bytes_max", ["refs/tags/" + "n" * 60], []),
        ("push_options_max", ["refs/tags/a"], ["a", "b", "c"]),
        ("push_options_bytes_max", ["refs/tags/a"], ["a" * 60]),
    ],
)
def test_a_command_list_beyond_a_limit_is_refused_by_its_name(
    server: EdgeUnderTest, path: str, key: str, names: list[str], options: list[str]
) -> None:
    pack, oid = blobs(b"content")
    capabilities = "report-status side-band-64k push-options"
    body = commands(*(f"{ZERO} {oid.hex()} {n}" for n in names), capabilities=capabilities)
    body += b"".join(packet(option.encode()) for option in options) + b"0000"
    answer = push(server, path, body + pack)
    assert f"limits.{key}".encode() in answer.body
    assert b"unpack ok" not in answer.body
    assert b"refs/tags" not in advertised(server, path)


def fetch(server: EdgeUnderTest, path: str, *lines: str) -> Answer:
    body = packet(b"command=fetch") + b"0001" + b"".join(packet(x.encode()) for x in lines)
    headers = {"Content-Type": FETCH_TYPE, "Git-Protocol": "version=2"}
    return request(server, "POST", f"/{path}/git-upload-pack", body + b"0000", headers)


def advertised(server: EdgeUnderTest, path: str) -> bytes:
    return request(server, "GET", f"/{path}/info/refs?service=git-receive-pack").body


@pytest.mark.parametrize(
    ("key", "lines"),
    [
        ("negotiation_lines_max", [f"have {number:040x}" for number in range(1, 102)]),
        ("fetch_request_bytes_max", ["deepen-not " + "x" * 9000]),
        ("filters_combined_max", ["filter combine:tree:1+tree:2+tree:3+tree:4"]),
        ("filters_combined_max", ["filter combine:combine:combine:combine:tree:1"]),
    ],
)
def test_a_fetch_beyond_a_limit_is_refused_by_its_name(
    server: EdgeUnderTest, path: str, key: str, lines: list[str]
) -> None:
    pack, oid = blobs(b"content")
    push(server, path, commands(f"{ZERO} {oid.hex()} refs/tags/x") + pack)
    answer = fetch(server, path, f"want {oid.hex()}", *lines)
    assert answer.body[4:8] == b"ERR "
    assert f"limits.{key}".encode() in answer.body


def test_nested_filters_within_the_limit_are_served(server: EdgeUnderTest, path: str) -> None:
    pack, oid = blobs(b"content")
    push(server, path, commands(f"{ZERO} {oid.hex()} refs/tags/x") + pack)
    nested = "filter combine:combine:tree%3a1%2bblob%3anone"
    assert b"PACK" in fetch(server, path, f"want {oid.hex()}", nested, "done").body


def test_a_request_has_one_command(server: EdgeUnderTest, path: str) -> None:
    pack, oid = blobs(b"content")
    push(server, path, commands(f"{ZERO} {oid.hex()} refs/tags/x") + pack)
    one = packet(b"command=ls-refs") + b"0000"
    headers = {"Content-Type": FETCH_TYPE, "Git-Protocol": "version=2"}
    answer = request(server, "POST", f"/{path}/git-upload-pack", one + one, headers)
    assert b"ERR only one command per request is served, after 'ls-refs'" in answer.body
    answer = request(server, "POST", f"/{path}/git-upload-pack", one, headers)
    assert f"{oid.hex()} refs/tags/x".encode() in answer.body


def test_more_builds_than_workers_are_told_that_the_node_is_busy(
    server: EdgeUnderTest, work: WorkTree, path: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    pack, oid = blobs(b"content")
    push(server, path, commands(f"{ZERO} {oid.hex()} refs/tags/x") + pack)
    run = server.edge.workers.run
    running = asyncio.Event()
    released = asyncio.Event()

    async def held(*arguments: Any) -> Any:
        running.set()
        await released.wait()
        return await run(*arguments)

    monkeypatch.setattr(server.edge.workers, "run", held)
    first = asyncio.run_coroutine_threadsafe(
        asyncio.to_thread(fetch, server, path, f"want {oid.hex()}", "done"), server.loop
    )
    eventually(running.is_set, what="a worker is asked")
    other = fetch(server, path, f"want {oid.hex()}", "filter blob:none", "done")
    server.loop.call_soon_threadsafe(released.set)
    assert b"ERR this node is busy: it serves 1 fetches already (workers.queue_max)" in other.body
    assert b"try again later, or try another node" in other.body
    assert b"PACK" in first.result(timeout=20).body


def test_every_limit_has_a_test() -> None:
    assert NARROW.keys() | ELSEWHERE.keys() == StorageLimits.model_fields.keys()
    for file, word in ELSEWHERE.values():
        assert word in (Path(__file__).parents[1] / file).read_text()
