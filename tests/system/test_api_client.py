"""Applications that misbehave, and the client's promises, on three real nodes."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

import grpc
import pytest
from support.demo import Demo
from support.git import WorkTree
from support.waiting import eventually

import quorepo
from quorepo.types import FileAction, Signature
from quorepo.v1 import blob_pb2, blob_pb2_grpc

pytestmark = pytest.mark.system

ADA = Signature("Ada", "ada@example.org")
BLOB_BYTES = 24 * 1024 * 1024
READERS = 24
# Four large blobs may be held at a time (blob_service.py), and inflating one takes it twice.
GROWTH_MAX = 12 * BLOB_BYTES

_names = itertools.count()


@pytest.fixture
def path() -> str:
    return f"api/client-{next(_names)}"


@pytest.fixture
def client(cluster: Demo) -> Iterator[quorepo.Client]:
    addresses = [node.grpc for node in cluster.nodes.values()]
    with quorepo.Client(addresses, token=cluster.token, timeout_s=120) as made:
        yield made


def edge_pid(demo: Demo, name: str) -> int:
    supervisor = demo.nodes[name].pid
    children = Path(f"/proc/{supervisor}/task/{supervisor}/children").read_text().split()
    for pid in children:
        if b"quorepo.rpc.node.edge_main" in Path(f"/proc/{pid}/cmdline").read_bytes():
            return int(pid)
    raise AssertionError(f"{name} has no edge")


def resident_bytes(pid: int) -> int:
    for line in Path(f"/proc/{pid}/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) * 1024
    raise AssertionError("no VmRSS")


def test_clients_that_never_read_hold_little_memory_and_nobody_up(
    cluster: Demo, work: WorkTree, path: str
) -> None:
    node = next(iter(cluster.nodes))
    oids = []
    for number in range(2):
        content = f"{number}".encode() + b"x" * BLOB_BYTES
        work.commit(f"{number}", {"large": content})
        oids.append(work.git("rev-parse", "HEAD:large").stdout.strip())
    work.git("push", "--quiet", cluster.url(node, path), "main")
    pid = edge_pid(cluster, node)
    metadata = (("authorization", f"Bearer {cluster.token}"),)
    with grpc.insecure_channel(cluster.nodes[node].grpc) as channel:
        stub = blob_pb2_grpc.BlobServiceStub(channel)
        before = resident_bytes(pid)
        calls = [
            stub.ReadBlob(
                blob_pb2.ReadBlobRequest(repository=path, oid=oids[number % 2]),
                timeout=300,
                metadata=metadata,
            )
            for number in range(READERS)
        ]
        # The header of each is read, and then nothing.
        assert all(next(call).header.size == BLOB_BYTES + 1 for call in calls)
        with quorepo.Client(
            cluster.nodes[node].grpc, token=cluster.token, timeout_s=120
        ) as another:
            for _ in range(20):
                assert another.refs.get(path, "refs/heads/main").oid
                grown = resident_bytes(pid) - before
                assert grown < GROWTH_MAX, f"{grown} bytes for {READERS} readers"
        for call in calls:
            call.cancel()
        # Who reads is served again: the places of those that left are free.
        whole = stub.ReadBlob(
            blob_pb2.ReadBlobRequest(repository=path, oid=oids[0]), timeout=120, metadata=metadata
        )
        assert sum(len(message.chunk) for message in whole) == BLOB_BYTES + 1


def test_what_a_client_wrote_it_reads_at_every_node(
    client: quorepo.Client, cluster: Demo, path: str
) -> None:
    client.repositories.create(path, default_branch="main")
    for number in range(30):
        made = client.operations.commit_files(
            path, "main", [FileAction("write", "f", b"%d" % number)], message="m", author=ADA
        )
        for _ in cluster.nodes:  # the next call goes to the next node
            assert client.refs.get(path, "refs/heads/main").oid == made.commit_oid
        assert client.blobs.file(path, "f").data == b"%d" % number


def test_pages_keep_to_their_revision_on_every_node_while_branches_move(
    client: quorepo.Client, path: str
) -> None:
    client.repositories.create(path, default_branch="main")

    def write(number: int) -> None:
        files = [FileAction("write", f"d/{number}-{part}", b"x\n") for part in range(3)]
        client.operations.commit_files(path, "main", files, message=f"{number}", author=ADA)

    for number in range(5):
        write(number)
    listings: dict[str, Callable[[], Iterable[object]]] = {
        "commits": lambda: client.commits.list(path, "main", page_size=2),
        "files": lambda: client.commits.files(path, "main", page_size=4),
        "tree": lambda: client.commits.tree(path, "main", recursive=True, page_size=4),
        "blobs": lambda: client.blobs.list(path, "main", page_size=4),
        "changes": lambda: client.diffs.changes(path, "main~3", "main", page_size=2),
    }
    numbers = itertools.count(5)
    for what, listing in listings.items():
        expected = list(listing())
        found: list[object] = []
        for one in listing():
            found.append(one)
            if len(found) in (1, 5):
                write(next(numbers))
        assert found == expected, what


def test_a_node_that_is_killed_between_calls_and_pages_is_not_noticed(
    own_cluster: Demo, tmp_path: Path
) -> None:
    demo, path = own_cluster, "api/killed"
    addresses = [node.grpc for node in demo.nodes.values()]
    with quorepo.Client(addresses, token=demo.token, timeout_s=120) as client:
        client.repositories.create(path, default_branch="main")
        for number in range(12):
            client.operations.commit_files(
                path, f"b{number}", [FileAction("write", "f", b"x")], message="m", author=ADA
            )
        victim = demo.leader(1)
        names = []
        for number, ref in enumerate(client.refs.list(path, page_size=3)):
            names.append(ref.name)
            if number == 4:
                demo.kill(victim)
        assert len(names) == 12
        for number in range(6):
            made = client.operations.commit_files(
                path, "main", [FileAction("write", "f", b"%d" % number)], message="m", author=ADA
            )
            assert client.refs.get(path, "refs/heads/main").oid == made.commit_oid
        assert len(list(client.commits.list(path, "main"))) == 6
        demo.restart(victim)
        eventually(lambda: demo.leader(1, ask=victim), timeout_s=60, what=f"{victim} is back")
        assert client.refs.get(path, "refs/heads/main").oid == made.commit_oid
