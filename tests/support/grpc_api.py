"""A sync client of the public gRPC API, whose calls raise the rich error of a refusal."""

from __future__ import annotations

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

import grpc
import pytest
from google.protobuf.message import Message
from google.rpc import error_details_pb2, status_pb2

from quorepo.rpc.grpc.server import GrpcServer
from quorepo.v1 import (
    blob_pb2_grpc,
    cluster_pb2_grpc,
    commit_pb2_grpc,
    diff_pb2_grpc,
    event_pb2_grpc,
    import_pb2_grpc,
    operation_pb2_grpc,
    ref_pb2_grpc,
    repository_pb2_grpc,
)
from support.edge import TOKEN, EdgeUnderTest, edge_config, running_edge
from support.git import WorkTree

__all__ = ["Api", "Refused", "push_history", "serving_api"]

_Detail = TypeVar("_Detail", bound=Message)


class Refused(Exception):
    """A call's rich error."""

    def __init__(self, error: grpc.RpcError) -> None:
        call: Any = error
        super().__init__(f"{call.code().name}: {call.details()}")
        self.code: str = call.code().name
        self.text: str = call.details()
        trailers = dict(call.trailing_metadata() or ())
        self.status = status_pb2.Status.FromString(trailers.get("grpc-status-details-bin", b""))

    @classmethod
    def of_status(cls, status: status_pb2.Status) -> Refused:
        """An error that stands inside an answer."""
        made = cls.__new__(cls)
        Exception.__init__(made, status.message)
        made.code = next(c.name for c in grpc.StatusCode if c.value[0] == status.code)
        made.text, made.status = status.message, status
        return made

    def detail(self, kind: type[_Detail]) -> _Detail:
        for packed in self.status.details:
            found = kind()
            if packed.Unpack(found):
                return found
        raise AssertionError(f"no {kind.__name__} in {self.status}")

    @property
    def info(self) -> error_details_pb2.ErrorInfo:
        return self.detail(error_details_pb2.ErrorInfo)


@dataclasses.dataclass
class Api:
    """Sync stubs of all services; `call` raises Refused."""

    under_test: EdgeUnderTest
    channel: grpc.Channel

    def __post_init__(self) -> None:
        self.repositories = repository_pb2_grpc.RepositoryServiceStub(self.channel)
        self.refs = ref_pb2_grpc.RefServiceStub(self.channel)
        self.imports = import_pb2_grpc.ImportServiceStub(self.channel)
        self.events = event_pb2_grpc.EventServiceStub(self.channel)
        self.operations = operation_pb2_grpc.OperationServiceStub(self.channel)
        self.commits = commit_pb2_grpc.CommitServiceStub(self.channel)
        self.diffs = diff_pb2_grpc.DiffServiceStub(self.channel)
        self.blobs = blob_pb2_grpc.BlobServiceStub(self.channel)
        self.cluster = cluster_pb2_grpc.ClusterServiceStub(self.channel)

    def call(self, method: Any, request: Any, token: str | None = TOKEN) -> Any:
        metadata = () if token is None else (("authorization", f"Bearer {token}"),)
        try:
            return method(request, timeout=20, metadata=metadata)
        except grpc.RpcError as error:
            raise Refused(error) from error

    def refused(self, method: Any, request: Any, token: str | None = TOKEN) -> Refused:
        with pytest.raises(Refused) as caught:
            self.call(method, request, token)
        return caught.value

    def stream(self, method: Any, request: Any) -> list[Any]:
        try:
            return list(
                method(request, timeout=20, metadata=(("authorization", f"Bearer {TOKEN}"),))
            )
        except grpc.RpcError as error:
            raise Refused(error) from error


def push_history(api: Api, work: WorkTree, path: str) -> None:
    """Pushes two commits on main, an annotated tag, a folder and a large file."""
    work.commit("first", {"README": "hello\n", "src/a.txt": "a\n", "src/b.txt": "b\n"})
    work.git("tag", "--annotate", "--message=release", "v1")
    work.commit("second", {"src/sub/deep.txt": "deep\n", "large.bin": b"\0\1\2\3" * 1_000_000})
    work.git("push", "--quiet", "--follow-tags", api.under_test.url(path), "main")


@contextlib.contextmanager
def serving_api(data_dir: Path, **sections: Any) -> Iterator[Api]:
    """An edge over a fake core with its gRPC server, until the block ends; `sections` are those of
    its configuration."""
    config = edge_config(data_dir, **sections)
    with running_edge(config) as under_test:

        async def start() -> GrpcServer:
            server = GrpcServer(under_test.edge, config.listen.grpc)
            await server.start()
            return server

        server = under_test.do(start())
        try:
            with grpc.insecure_channel(config.listen.grpc) as channel:
                yield Api(under_test, channel)
        finally:
            under_test.do(server.stop(0))
