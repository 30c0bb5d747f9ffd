"""What each role may do through the gRPC API; each may do what the one before it may."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from support.edge import TOKEN
from support.grpc_api import Api, Refused

from quorepo.rpc.auth import Authenticator, Role, TokenDigest
from quorepo.v1 import cluster_pb2, common_pb2, repository_pb2

CALLS: list[tuple[str, Callable[[Api, str], Any]]] = [
    (
        "read",
        lambda api, _: api.call(
            api.repositories.ListRepositories, repository_pb2.ListRepositoriesRequest()
        ),
    ),
    (
        "write",
        lambda api, path: api.call(
            api.repositories.CreateRepository,
            repository_pb2.CreateRepositoryRequest(
                path=path, object_format=common_pb2.OBJECT_FORMAT_SHA1
            ),
        ),
    ),
    (
        "admin",
        lambda api, path: api.call(
            api.repositories.DeleteRepository, repository_pb2.DeleteRepositoryRequest(path=path)
        ),
    ),
    (
        "admin",
        lambda api, _: api.call(api.cluster.CreateJoinToken, cluster_pb2.CreateJoinTokenRequest()),
    ),
]
RANK = {"read": 0, "write": 1, "admin": 2}


@pytest.fixture(params=["read", "write", "admin"])
def role(api: Api, request: pytest.FixtureRequest) -> Iterator[Role]:
    before = api.under_test.edge.authenticator
    role: Role = request.param
    api.under_test.edge.authenticator = Authenticator({"someone": TokenDigest.of(TOKEN, role)})
    yield role
    api.under_test.edge.authenticator = before


def test_a_role_may_do_its_part(api: Api, role: Role, path: str) -> None:
    for needed, call in CALLS:
        if RANK[role] >= RANK[needed]:
            call(api, path)
            continue
        with pytest.raises(Refused) as caught:
            call(api, path)
        assert caught.value.code == "PERMISSION_DENIED"
        assert f"has the role {role!r}" in caught.value.text
        assert f"use a token with the role {needed!r}" in caught.value.text
