"""An edge with its gRPC server, as the tests of the API have it."""

from __future__ import annotations

import itertools
from collections.abc import Iterator

import pytest
from support.edge import TOKEN
from support.grpc_api import Api, serving_api

import quorepo

_numbers = itertools.count()


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with serving_api(tmp_path_factory.mktemp("node") / "data") as api:
        yield api


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
