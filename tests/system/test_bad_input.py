"""Bad input gets a clear error in the client, in bounded time, and leaves no trace."""

from __future__ import annotations

import base64
import http.client
import itertools
import subprocess
import zlib
from collections.abc import Callable
from pathlib import Path
from urllib.parse import urlsplit

import pytest
from support.demo import Demo
from support.git import ENVIRONMENT, WorkTree, git, refs_of
from support.packing import PackWriter, copy, delta, insert, object_id

from quorepo.storage.packfile import BLOB

pytestmark = pytest.mark.system

_names = itertools.count()
ZERO = "0" * 40


@pytest.fixture
def path() -> str:
    return f"hostile/project-{next(_names)}"


def post_push(demo: Demo, path: str, commands: list[str], pack: bytes) -> str:
    """A push without a git client in the way; returns the answer as text."""
    lines = []
    for number, command in enumerate(commands):
        capabilities = "\0report-status" if number == 0 else ""
        payload = f"{command}{capabilities}".encode()
        lines.append(b"%04x" % (len(payload) + 4) + payload)
    body = b"".join(lines) + b"0000" + pack
    parts = urlsplit(demo.nodes["n1"].http)
    connection = http.client.HTTPConnection(parts.netloc, timeout=60)
    try:
        credential = base64.b64encode(f"admin:{demo.token}".encode()).decode()
        connection.request(
            "POST",
            f"/{path}/git-receive-pack",
            body,
            {
                "Authorization": f"Basic {credential}",
                "Content-Type": "application/x-git-receive-pack-request",
            },
        )
        answer = connection.getresponse()
        assert answer.status == 200
        return answer.read().decode(errors="replace")
    finally:
        connection.close()


def pack_of(work: WorkTree, *objects: str) -> bytes:
    """A pack of exactly these objects."""
    return subprocess.run(
        ["git", "pack-objects", "--stdout", "--quiet"],
        cwd=work.path,
        env=ENVIRONMENT,
        input="\n".join(objects).encode(),
        capture_output=True,
        check=True,
    ).stdout


def whole_pack(work: WorkTree) -> bytes:
    listed = work.git("rev-list", "--objects", "--all").stdout
    return pack_of(work, *(line.split(" ")[0] for line in listed.splitlines()))


def quarantine_of(demo: Demo) -> list[Path]:
    """Files of incoming uploads on any node."""
    return [
        path
        for node in demo.nodes.values()
        for path in node.data_dir.glob("groups/*/quarantine/*.tmp")
    ]


def assert_no_trace(demo: Demo, path: str) -> None:
    for node in demo.nodes:
        assert git("ls-remote", demo.url(node, path), check=False).returncode != 0
    assert path not in demo.cli("repo", "list", "-o", "json").stdout
    assert quarantine_of(demo) == []


@pytest.mark.parametrize("damage", ["truncated", "flipped", "no pack at all", "trailer only"])
def test_damaged_pack_is_refused(cluster: Demo, work: WorkTree, path: str, damage: str) -> None:
    oid = work.commit("first", {"a.txt": "content\n" * 100})
    pack = whole_pack(work)
    middle = len(pack) // 2
    damaged = {
        "truncated": pack[:middle],
        "flipped": pack[:middle] + bytes([pack[middle] ^ 0x55]) + pack[middle + 1 :],
        "no pack at all": b"this is not a pack, and longer than a header",
        "trailer only": pack[-20:],
    }[damage]
    answer = post_push(cluster, path, [f"{ZERO} {oid} refs/heads/main"], damaged)
    assert "ng refs/heads/main" in answer
    assert_no_trace(cluster, path)


def test_pack_that_lacks_an_object_is_refused(cluster: Demo, work: WorkTree, path: str) -> None:
    oid = work.commit("first", {"a.txt": "content\n"})
    tree = work.git("rev-parse", "HEAD^{tree}").stdout.strip()
    answer = post_push(cluster, path, [f"{ZERO} {oid} refs/heads/main"], pack_of(work, oid, tree))
    assert "ng refs/heads/main" in answer
    assert "did not receive expected object" in answer
    assert_no_trace(cluster, path)


def test_tip_that_is_nowhere_is_refused(cluster: Demo, work: WorkTree, path: str) -> None:
    work.commit("first")
    answer = post_push(cluster, path, [f"{ZERO} {'ab' * 20} refs/heads/main"], whole_pack(work))
    assert "ng refs/heads/main" in answer
    assert_no_trace(cluster, path)


def test_tree_that_escapes_its_folder_is_refused(cluster: Demo, work: WorkTree, path: str) -> None:
    """git's fsck message ids reach the pusher."""
    work.commit("first")
    blob = work.git("rev-parse", "HEAD:file.txt").stdout.strip()
    raw = b"100644 ..\0" + bytes.fromhex(blob)
    tree = subprocess.run(
        ["git", "hash-object", "-w", "-t", "tree", "--literally", "--stdin"],
        cwd=work.path, env=ENVIRONMENT, input=raw, capture_output=True, check=True,
    ).stdout.decode().strip()  # fmt: skip
    commit = work.git("commit-tree", "-m", "escape", tree).stdout.strip()
    answer = post_push(
        cluster, path, [f"{ZERO} {commit} refs/heads/main"], pack_of(work, commit, tree, blob)
    )
    assert "ng refs/heads/main" in answer
    assert "hasDotdot" in answer
    assert_no_trace(cluster, path)


@pytest.mark.parametrize(
    "name",
    ["refs/heads/a..b", "refs/heads/.x", "refs/heads/x.lock", "refs/heads/", "HEAD",
     "refs/heads/sp ace", "refs/heads/@{x", "../refs/heads/x", "refs/heads/" + "n" * 5000],
)  # fmt: skip
def test_bad_ref_name_is_refused(cluster: Demo, work: WorkTree, path: str, name: str) -> None:
    oid = work.commit("first")
    answer = post_push(cluster, path, [f"{ZERO} {oid} {name}"], whole_pack(work))
    assert f"ng {name}" in answer or "ERR ref name has" in answer
    assert f"ok {name}" not in answer
    assert_no_trace(cluster, path)


def test_wrong_old_value_is_refused_with_both_values(
    cluster: Demo, work: WorkTree, path: str
) -> None:
    first = work.commit("first")
    work.git("push", "--quiet", cluster.url("n2", path), "main")
    second = work.commit("second")
    answer = post_push(cluster, path, [f"{'12' * 20} {second} refs/heads/main"], whole_pack(work))
    assert f"ng refs/heads/main stale info: expected {'12' * 20}, is {first}" in answer
    assert refs_of(cluster.url("n3", path))["refs/heads/main"] == first


def test_unknown_repository_is_named(cluster: Demo) -> None:
    answer = cluster.cli("repo", "info", "no/such", check=False)
    assert answer.returncode != 0
    assert "no/such" in answer.stderr


MIB = 1024 * 1024


def inflate_bomb() -> bytes:
    """A megabyte and a half that inflates to 320 MiB."""
    writer = PackWriter()
    stream = zlib.compressobj(1)
    content = b"".join(stream.compress(bytes(16 * MIB)) for _ in range(20)) + stream.flush()
    size = 320 * MIB
    header = bytearray([BLOB << 4 | size & 15])
    size >>= 4
    while size:
        header[-1] |= 0x80
        header.append(size & 0x7F)
        size >>= 7
    writer.raw(bytes(header) + content)
    return writer.finish()


def lying_bomb() -> bytes:
    """The same bytes behind a header that says ten."""
    stream = zlib.compress(bytes(200 * MIB), 9)
    writer = PackWriter()
    writer.raw(bytes([BLOB << 4 | 10]) + stream)
    return writer.finish()


def delta_bomb() -> bytes:
    """A few kilobytes of copies that say four gigabytes."""
    writer = PackWriter()
    base = writer.whole(BLOB, bytes(8 * MIB))
    writer.ofs_delta(base, delta(8 * MIB, 4096 * MIB, *[copy(0, 8 * MIB)] * 512))
    return writer.finish()


def deep_chain() -> bytes:
    writer = PackWriter()
    content = b"x" * 40
    offset = writer.whole(BLOB, content)
    for number in range(5000):
        step = b"%06d" % number
        offset = writer.ofs_delta(offset, delta(len(content), 46, copy(0, 40), insert(step)))
        content = content[:40] + step
    return writer.finish()


def duplicates() -> bytes:
    writer = PackWriter()
    for _ in range(2):
        writer.whole(BLOB, b"the same")
    return writer.finish()


def boast() -> bytes:
    """A header that says four billion objects."""
    writer = PackWriter()
    writer.whole(BLOB, b"one")
    return writer.finish(count=4_000_000_000)


def memory_peak_bytes(pid: int) -> int:
    """The largest peak of any process of a node."""
    peak = 0
    pending = [pid]
    while pending:
        process = Path("/proc") / str(pending.pop())
        try:
            status = (process / "status").read_text()
            children = (process / "task" / process.name / "children").read_text()
        except OSError:  # ended meanwhile
            continue
        pending += map(int, children.split())
        peak = max(peak, int(status.partition("VmHWM:")[2].split()[0]) * 1024)
    return peak


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (inflate_bomb, "limits.object_bytes_max is"),
        (lying_bomb, "inflate of entry"),
        (delta_bomb, "limits.delta_result_bytes_max is"),
        (deep_chain, "limits.delta_depth_max is"),
        (duplicates, "appears twice"),
        (boast, "limits.push_objects_max is"),
    ],
)
def test_a_hostile_pack_is_refused_with_bounded_memory(
    cluster: Demo, path: str, make: Callable[[], bytes], words: str
) -> None:
    oid = object_id(BLOB, b"the same").hex()
    answer = post_push(cluster, path, [f"{ZERO} {oid} refs/tags/x"], make())
    assert words in answer
    assert "ng refs/tags/x unpacker error" in answer
    assert_no_trace(cluster, path)
    assert memory_peak_bytes(cluster.nodes["n1"].pid) < 700 * MIB


def test_a_node_serves_on_after_hostile_packs(cluster: Demo, work: WorkTree, path: str) -> None:
    oid = work.commit("first")
    work.git("push", "--quiet", cluster.url("n1", path), "main")
    assert refs_of(cluster.url("n2", path))["refs/heads/main"] == oid
