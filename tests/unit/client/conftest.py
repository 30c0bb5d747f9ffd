"""An edge with its gRPC server, as the tests of the API have it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import grpc
import pytest
from support.edge import TOKEN, edge_config, running_edge
from support.grpc_api import Api

import quorepo
from quorepo.rpc.grpc.server import GrpcServer

_numbers = itertools.count()


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    config = edge_config(tmp_path_factory.mktemp("node") / "data")
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


@pytest.fixture
def endpoint(api: Api) -> str:
    return str(api.under_test.edge.config.listen.grpc)


@pytest.fixture
def client(endpoint: str) -> Iterator[quorepo.Client]:
    with quorepo.Client(endpoint, token=TOKEN) as made:
        yield made


@pytest.fixture
def path() -> str:
    """A repository path that no other test uses."""
    return f"client/project-{next(_numbers)}"
