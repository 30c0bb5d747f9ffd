"""The edge that serves a call is killed at its proposal; the call is repeated on another node.

Killed before the proposal is sent nothing has happened, killed after its answer everything has:
whoever repeats the request cannot tell, and in both cases it is done once.
"""

from __future__ import annotations

import hashlib
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import grpc
import pytest
from support.demo import Demo
from support.operators import ADA, prepare
from support.waiting import eventually

import quorepo
from quorepo.cluster.state.reader import StateReader
from quorepo.rpc.client.codecs import signature_message
from quorepo.rpc.request_ids import new_request_uuid
from quorepo.storage.failpoints import ENVIRONMENT_VARIABLE
from quorepo.storage.layout import GroupLayout
from quorepo.types import FileAction
from quorepo.v1 import (
    operation_pb2,
    operation_pb2_grpc,
    ref_pb2,
    ref_pb2_grpc,
    repository_pb2,
    repository_pb2_grpc,
)

pytestmark = pytest.mark.system

STORAGE = 1
Call = tuple[str, Any]  # SERVICE.METHOD and the request
ADA_MESSAGE = signature_message(ADA)
OPERATION = operation_pb2


def _commit(client: quorepo.Client, path: str, branch: str) -> str:
    """A commit of a branch's own."""
    name = f"{branch}-{uuid.uuid4().hex}"
    made = client.operations.commit_files(
        path, branch, [FileAction("create", name, name.encode())],
        message=name, author=ADA, start="main",
    )  # fmt: skip
    return made.commit_oid


def commit_files(client: quorepo.Client, path: str) -> Call:
    content = b"content"
    header = OPERATION.CommitFilesRequest.Header(
        request_id=str(new_request_uuid()), repository=path, branch=b"main", message=b"once",
        author=ADA_MESSAGE,
    )  # fmt: skip
    action = OPERATION.CommitFilesRequest.Action(
        kind=OPERATION.CommitFilesRequest.KIND_CREATE, path=b"once", content=content
    )
    parts = (
        OPERATION.CommitFilesRequest(header=header),
        OPERATION.CommitFilesRequest(action=action),
        OPERATION.CommitFilesRequest(sha256=hashlib.sha256(content).digest()),
    )
    return "operations.CommitFiles", parts


def merge(client: quorepo.Client, path: str) -> Call:
    _commit(client, path, "topic")
    _commit(client, path, "main")
    return "operations.Merge", OPERATION.MergeRequest(
        repository=path, branch=b"main", source=b"topic", author=ADA_MESSAGE
    )


def fast_forward(client: quorepo.Client, path: str) -> Call:
    _commit(client, path, "ahead")
    return "operations.Merge", OPERATION.MergeRequest(
        repository=path, branch=b"main", source=b"ahead"
    )


def cherry_pick(client: quorepo.Client, path: str) -> Call:
    oid = _commit(client, path, "picked")
    return "operations.CherryPick", OPERATION.CherryPickRequest(
        repository=path, branch=b"main", commit=oid.encode(), committer=ADA_MESSAGE
    )


def revert(client: quorepo.Client, path: str) -> Call:
    oid = _commit(client, path, "main")
    return "operations.Revert", OPERATION.RevertRequest(
        repository=path, branch=b"main", commit=oid.encode(), author=ADA_MESSAGE
    )


def rebase(client: quorepo.Client, path: str) -> Call:
    _commit(client, path, "moving")
    _commit(client, path, "main")
    return "operations.Rebase", OPERATION.RebaseRequest(
        repository=path, branch=b"moving", onto=b"main", committer=ADA_MESSAGE
    )


def create_branch(client: quorepo.Client, path: str) -> Call:
    return "operations.CreateBranch", OPERATION.CreateBranchRequest(
        repository=path, branch=b"new", start=b"main"
    )


def delete_branch(client: quorepo.Client, path: str) -> Call:
    client.operations.create_branch(path, "old", "main")
    return "operations.DeleteBranch", OPERATION.DeleteBranchRequest(repository=path, branch=b"old")


def create_tag(client: quorepo.Client, path: str) -> Call:
    return "operations.CreateTag", OPERATION.CreateTagRequest(
        repository=path, tag=b"new", target=b"main", message=b"new", tagger=ADA_MESSAGE
    )


def delete_tag(client: quorepo.Client, path: str) -> Call:
    client.operations.create_tag(path, "old", "main")
    return "operations.DeleteTag", OPERATION.DeleteTagRequest(repository=path, tag=b"old")


def update_refs(client: quorepo.Client, path: str) -> Call:
    oid = client.refs.get(path, "refs/heads/main").oid
    updates = [
        ref_pb2.RefUpdate(name=b"refs/x/%d" % n, new_oid=oid, expected_old_oid="") for n in range(3)
    ]
    return "refs.UpdateRefs", ref_pb2.UpdateRefsRequest(repository=path, updates=updates)


def delete_refs(client: quorepo.Client, path: str) -> Call:
    client.operations.create_branch(path, "old", "main")
    return "refs.DeleteRefs", ref_pb2.DeleteRefsRequest(repository=path, names=[b"refs/heads/old"])


def set_head(client: quorepo.Client, path: str) -> Call:
    oid = client.refs.get(path, "refs/heads/main").oid
    return "refs.SetHead", ref_pb2.SetHeadRequest(repository=path, oid=oid)


def set_default_branch(client: quorepo.Client, path: str) -> Call:
    return "refs.SetDefaultBranch", ref_pb2.SetDefaultBranchRequest(
        repository=path, branch=b"merged"
    )


def update_repository(client: quorepo.Client, path: str) -> Call:
    return "repositories.UpdateRepository", repository_pb2.UpdateRepositoryRequest(
        path=path, description="new"
    )


def rename(client: quorepo.Client, path: str) -> Call:
    return "repositories.RenameRepository", repository_pb2.RenameRepositoryRequest(
        path=path, new_path=f"{path}-renamed"
    )


def fork(client: quorepo.Client, path: str) -> Call:
    return "repositories.ForkRepository", repository_pb2.ForkRepositoryRequest(
        path=path, new_path=f"{path}-fork"
    )


def delete(client: quorepo.Client, path: str) -> Call:
    return "repositories.DeleteRepository", repository_pb2.DeleteRepositoryRequest(path=path)


def undelete(client: quorepo.Client, path: str) -> Call:
    found = client.repositories.get(path)
    client.repositories.delete(path)
    return "repositories.UndeleteRepository", repository_pb2.UndeleteRepositoryRequest(
        repository_id=found.repository_id
    )


def create(client: quorepo.Client, path: str) -> Call:
    return "repositories.CreateRepository", repository_pb2.CreateRepositoryRequest(
        path=f"{path}-new"
    )


ALWAYS = (commit_files, merge, create_tag)
SLOW = (
    *(fast_forward, cherry_pick, revert, rebase, create_branch, delete_branch, delete_tag),
    *(update_refs, delete_refs, set_head, set_default_branch),
    *(update_repository, rename, fork, delete, undelete, create),
)
CHANGES = {"rename": 0}  # of the storage group; else 1


class Cluster:
    """A demo whose third node's edge dies at a failpoint, each time that it comes there."""

    victim = "n3"

    def __init__(self, demo: Demo) -> None:
        self.demo = demo
        self._channels = {
            name: grpc.insecure_channel(node.grpc) for name, node in demo.nodes.items()
        }
        self._log = demo.directory.parent / f"{self.victim}.restart.log"

    def close(self) -> None:
        for channel in self._channels.values():
            channel.close()

    def call(self, node: str, call: Call) -> Any:
        stubs = {
            "operations": operation_pb2_grpc.OperationServiceStub,
            "refs": ref_pb2_grpc.RefServiceStub,
            "repositories": repository_pb2_grpc.RepositoryServiceStub,
        }
        service, _, method = call[0].partition(".")
        stub: Any = stubs[service](self._channels[node])
        request = iter(call[1]) if isinstance(call[1], tuple) else call[1]
        metadata = (("authorization", f"Bearer {self.demo.token}"),)
        return getattr(stub, method)(request, metadata=metadata, timeout=60)

    def deaths(self) -> int:
        """Of the victim's edge."""
        return self._log.read_text().count("killed by SIGKILL") if self._log.exists() else 0

    def wait_for_the_victim(self) -> None:
        def serves() -> bool:
            done = self.demo.cli("status", "-o", "json", node=self.victim, check=False)
            return done.returncode == 0

        eventually(serves, timeout_s=60, what="the victim's edge serves again")

    def changes(self, node: str) -> int:
        """That the storage group has had, but consolidations."""
        reader = StateReader(GroupLayout(self.demo.nodes[node].data_dir, STORAGE))
        try:
            count, after = 0, 0
            while page := reader.transactions(after, 500)[0]:
                count += sum(row.kind not in ("replace", "prune") for row in page)
                after = page[-1].log_index
            return count
        finally:
            reader.close()


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    with Demo(tmp_path_factory.mktemp("edge-kill") / "demo") as demo:
        cluster = Cluster(demo)
        yield cluster
        cluster.close()


@pytest.mark.parametrize("point", ["edge.propose.before_send", "edge.propose.after_answer"])
@pytest.mark.parametrize(
    "kinds", [pytest.param(ALWAYS, id="some"), pytest.param(SLOW, id="all", marks=pytest.mark.slow)]
)
def test_call_that_died_with_its_edge_is_done_once_when_it_is_repeated(
    cluster: Cluster, point: str, kinds: tuple[Callable[[quorepo.Client, str], Call], ...]
) -> None:
    demo, victim = cluster.demo, cluster.victim
    demo.kill(victim)
    demo.restart(victim, **{ENVIRONMENT_VARIABLE: f"{point}=kill"})
    for kind in kinds:
        path = f"edge/{kind.__name__}-{uuid.uuid4().hex[:8]}"
        # n1 alone makes what the call needs, so that its state shows all of it.
        with quorepo.Client(demo.nodes["n1"].grpc, token=demo.token) as client:
            prepare(client, path)
            method, request = kind(client, path)
        if not isinstance(request, tuple):
            request.request_id = str(new_request_uuid())
        cluster.wait_for_the_victim()
        before, deaths = cluster.changes("n1"), cluster.deaths()
        with pytest.raises(grpc.RpcError):
            cluster.call(victim, (method, request))
        eventually(lambda: cluster.deaths() > deaths, what="the edge died")  # noqa: B023
        answer = cluster.call("n1", (method, request))
        assert cluster.changes("n1") - before == CHANGES.get(kind.__name__, 1), kind.__name__
        # And once more, on a third node: nothing but the same answer.
        assert cluster.call("n2", (method, request)) == answer
        assert cluster.call("n1", (method, request)) == answer
        assert cluster.changes("n1") - before == CHANGES.get(kind.__name__, 1), kind.__name__


def test_a_call_that_changes_something_is_among_these() -> None:
    """A new method with a request id fails here until it is killed above."""
    named = Path(__file__).read_text()
    for module in (operation_pb2, ref_pb2, repository_pb2):
        for service in module.DESCRIPTOR.services_by_name.values():
            for method in service.methods:
                fields = method.input_type.fields_by_name
                upkeep = method.name in ("OptimizeRepository", "PruneRepository")
                if "request_id" in fields and not upkeep:
                    assert f'.{method.name}"' in named, method.full_name
