"""The command line against a stub of the gRPC API, in this process."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import click
import grpc
from click.testing import CliRunner, Result
from grpc_health.v1 import health, health_pb2, health_pb2_grpc

from quorepo.rpc.cli.main import root
from quorepo.rpc.grpc.errors import to_status
from quorepo.storage.errors import QuorepoError
from quorepo.v1 import cluster_pb2, cluster_pb2_grpc, repository_pb2, repository_pb2_grpc

TOKEN = "a-token-for-tests-only"
Run = Callable[..., Result]


class Stub(repository_pb2_grpc.RepositoryServiceServicer, cluster_pb2_grpc.ClusterServiceServicer):
    """Answers from `repositories`; raises `error` or breaks off with `code` when one is set."""

    def __init__(self) -> None:
        self.address = ""
        self.health = health.HealthServicer()
        self.error: QuorepoError | None = None
        self.code: grpc.StatusCode | None = None
        self.requests: list[Any] = []
        self.repositories = [
            repository_pb2.Repository(
                path=f"team/r{n}",
                repository_id=f"id{n}",
                revision={"incarnation": 1, "counter": n},  # type: ignore[arg-type]
                head=b"refs/heads/main",
            )
            for n in range(3)
        ]

    def reset(self) -> None:
        """As new."""
        self.error, self.code, self.requests = None, None, []
        self.serves(True)

    def serves(self, ready: bool) -> None:
        """What the health check says."""
        states = health_pb2.HealthCheckResponse
        self.health.set("readiness", states.SERVING if ready else states.NOT_SERVING)

    def _admit(self, request: Any, context: grpc.ServicerContext) -> None:
        self.requests.append(request)
        metadata = dict(context.invocation_metadata())
        assert metadata["authorization"] == f"Bearer {TOKEN}"
        if self.code is not None:
            context.abort(self.code, "stub")
        if self.error is not None:
            status = to_status(self.error)
            context.set_trailing_metadata(
                (("grpc-status-details-bin", status.SerializeToString()),)
            )
            context.abort(grpc.StatusCode[self.error.grpc_code], status.message)

    def OptimizeRepository(
        self, request: repository_pb2.OptimizeRepositoryRequest, context: grpc.ServicerContext
    ) -> repository_pb2.OptimizeRepositoryResponse:
        self._admit(request, context)
        return repository_pb2.OptimizeRepositoryResponse()

    def PruneRepository(
        self, request: repository_pb2.PruneRepositoryRequest, context: grpc.ServicerContext
    ) -> repository_pb2.PruneRepositoryResponse:
        self._admit(request, context)
        return repository_pb2.PruneRepositoryResponse()

    def CreateRepository(
        self, request: repository_pb2.CreateRepositoryRequest, context: grpc.ServicerContext
    ) -> repository_pb2.CreateRepositoryResponse:
        self._admit(request, context)
        return repository_pb2.CreateRepositoryResponse(repository=self.repositories[0])

    def GetRepository(
        self, request: repository_pb2.GetRepositoryRequest, context: grpc.ServicerContext
    ) -> repository_pb2.GetRepositoryResponse:
        self._admit(request, context)
        return repository_pb2.GetRepositoryResponse(repository=self.repositories[0])

    def ListRepositories(
        self, request: repository_pb2.ListRepositoriesRequest, context: grpc.ServicerContext
    ) -> repository_pb2.ListRepositoriesResponse:
        self._admit(request, context)
        position = int(request.page_token or 0)
        more = str(position + 1) if position + 1 < len(self.repositories) else ""
        return repository_pb2.ListRepositoriesResponse(
            repositories=self.repositories[position : position + 1], next_page_token=more
        )

    def DeleteRepository(
        self, request: repository_pb2.DeleteRepositoryRequest, context: grpc.ServicerContext
    ) -> repository_pb2.DeleteRepositoryResponse:
        self._admit(request, context)
        return repository_pb2.DeleteRepositoryResponse()

    def CreateJoinToken(
        self, request: cluster_pb2.CreateJoinTokenRequest, context: grpc.ServicerContext
    ) -> cluster_pb2.CreateJoinTokenResponse:
        self._admit(request, context)
        return cluster_pb2.CreateJoinTokenResponse(
            token="quorepo-join-1:secret", ca_fingerprint="00" * 32, peer_addresses=["n1:7423"]
        )

    def GetStatus(
        self, request: cluster_pb2.GetStatusRequest, context: grpc.ServicerContext
    ) -> cluster_pb2.GetStatusResponse:
        self._admit(request, context)
        return cluster_pb2.GetStatusResponse(
            cluster_id="c1",
            answered_by="n1",
            nodes=[
                cluster_pb2.NodeStatus(
                    name="n1", reachable=True, ready=True, http_url="http://h", grpc_address="g:1"
                ),
                cluster_pb2.NodeStatus(name="n2", replica_id="n2@1"),
            ],
            groups=[
                cluster_pb2.GroupStatus(
                    group=1,
                    leader="n1",
                    term=4,
                    commit_index=17,
                    replicas=[
                        cluster_pb2.ReplicaStatus(node="n1", role="leader", applied_index=17),
                        cluster_pb2.ReplicaStatus(node="n2", role="voter"),
                    ],
                ),
                cluster_pb2.GroupStatus(group=2, term=1),
            ],
        )


@contextlib.contextmanager
def serving(credentials: grpc.ServerCredentials | None = None) -> Iterator[Stub]:
    """A stub that listens on loopback."""
    stub = Stub()  # type: ignore[abstract]
    with ThreadPoolExecutor(4) as pool:
        server = grpc.server(pool, options=[("grpc.so_reuseport", 0)])
        repository_pb2_grpc.add_RepositoryServiceServicer_to_server(stub, server)
        cluster_pb2_grpc.add_ClusterServiceServicer_to_server(stub, server)
        health_pb2_grpc.add_HealthServicer_to_server(stub.health, server)
        if credentials is None:
            port = server.add_insecure_port("127.0.0.1:0")
        else:
            port = server.add_secure_port("127.0.0.1:0", credentials)
        server.start()
        stub.address = f"127.0.0.1:{port}"
        yield stub
        server.stop(0).wait()


def runner(home: Path, address: str) -> Run:
    """Runs `quorepo ARGUMENTS` with the environment of a user of `home`; more of it by keyword."""

    def run(*arguments: str, **environment: str | None) -> Result:
        base: dict[str, str | None] = {
            "QUOREPO_TOKEN": TOKEN,
            "QUOREPO_ENDPOINT": address,
            "QUOREPO_CONTEXT": None,
            "QUOREPO_CA_FILE": None,
            "XDG_CONFIG_HOME": str(home),
            "NO_COLOR": "1",
        }
        return CliRunner().invoke(root, arguments, env={**base, **environment})

    return run


def all_commands(
    group: click.Group = root, prefix: str = ""
) -> Iterator[tuple[str, click.Command]]:
    """Every command with its name, groups included."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        assert command is not None
        yield f"{prefix}{name}", command
        if isinstance(command, click.Group):
            yield from all_commands(command, f"{prefix}{name} ")
