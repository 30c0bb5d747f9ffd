"""RepositoryService, authentication, health and status, over a core without Raft."""

from __future__ import annotations

import uuid

import pytest
from google.rpc import error_details_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_reflection.v1alpha import reflection_pb2, reflection_pb2_grpc
from support.grpc_api import Api
from support.waiting import eventually

from quorepo.rpc.grpc import server
from quorepo.storage.errors import ConfigError
from quorepo.v1 import cluster_pb2, common_pb2, repository_pb2


def create(api: Api, path: str, request_id: str = "") -> repository_pb2.Repository:
    request = repository_pb2.CreateRepositoryRequest(path=path, request_id=request_id)
    response: repository_pb2.CreateRepositoryResponse = api.call(
        api.repositories.CreateRepository, request
    )
    return response.repository


def test_a_created_repository_is_found_listed_and_deleted(api: Api, path: str) -> None:
    request = repository_pb2.CreateRepositoryRequest(
        path=f"/{path}.git", default_branch=b"trunk", object_format=common_pb2.OBJECT_FORMAT_SHA256
    )
    created = api.call(api.repositories.CreateRepository, request)
    assert created.repository.path == path
    assert created.repository.head == b"refs/heads/trunk"
    assert created.repository.object_format == common_pb2.OBJECT_FORMAT_SHA256
    assert created.revision == created.repository.revision
    found = api.call(api.repositories.GetRepository, repository_pb2.GetRepositoryRequest(path=path))
    assert found.repository == created.repository
    listed = api.call(
        api.repositories.ListRepositories, repository_pb2.ListRepositoriesRequest(path_prefix=path)
    )
    assert [r.path for r in listed.repositories] == [path]
    api.call(api.repositories.DeleteRepository, repository_pb2.DeleteRepositoryRequest(path=path))
    gone = api.refused(
        api.repositories.GetRepository, repository_pb2.GetRepositoryRequest(path=path)
    )
    assert (gone.code, gone.info.reason) == ("NOT_FOUND", "NOT_FOUND")
    assert create(api, path).repository_id != created.repository.repository_id


def test_creating_twice_is_refused_unless_it_is_the_same_request(api: Api, path: str) -> None:
    request_id = str(uuid.uuid4())
    first = create(api, path, request_id)
    assert create(api, path, request_id) == first
    refused = api.refused(
        api.repositories.CreateRepository, repository_pb2.CreateRepositoryRequest(path=path)
    )
    assert refused.code == "ALREADY_EXISTS"
    assert refused.info.metadata["conclusion"] == "rejected"


def test_a_repeated_deletion_spares_the_successor(api: Api, path: str) -> None:
    create(api, path)
    request = repository_pb2.DeleteRepositoryRequest(path=path, request_id=str(uuid.uuid4()))
    first = api.call(api.repositories.DeleteRepository, request)
    assert api.call(api.repositories.DeleteRepository, request) == first
    successor = create(api, path)
    assert api.call(api.repositories.DeleteRepository, request) == first
    found = repository_pb2.GetRepositoryRequest(path=path)
    assert api.call(api.repositories.GetRepository, found).repository == successor
    other = repository_pb2.DeleteRepositoryRequest(path=path)
    api.call(api.repositories.DeleteRepository, other)
    assert api.refused(api.repositories.DeleteRepository, other).code == "NOT_FOUND"


def test_pages_of_a_listing_join_to_the_whole(api: Api, path: str) -> None:
    expected = [f"{path}/r{number}" for number in range(5)]
    for name in expected:
        create(api, name)
    request = repository_pb2.ListRepositoriesRequest(path_prefix=f"{path}/", page_size=2)
    seen = []
    while True:
        page = api.call(api.repositories.ListRepositories, request)
        assert len(page.repositories) <= 2
        seen += [repository.path for repository in page.repositories]
        if not page.next_page_token:
            break
        request.page_token = page.next_page_token
    assert seen == expected
    request = repository_pb2.ListRepositoriesRequest(path_prefix=f"{path}/", page_size=2)
    token = api.call(api.repositories.ListRepositories, request).next_page_token
    foreign = repository_pb2.ListRepositoriesRequest(path_prefix="other", page_token=token)
    assert api.refused(api.repositories.ListRepositories, foreign).code == "INVALID_ARGUMENT"
    foreign.page_token = "garbage!"
    assert api.refused(api.repositories.ListRepositories, foreign).code == "INVALID_ARGUMENT"


@pytest.mark.parametrize("bad", ["", "/", "../x", "a/../b", ".hidden", "a//b", "a\\b", "x" * 2000])
def test_paths_outside_the_namespace_are_refused(api: Api, bad: str) -> None:
    for method, request in (
        (api.repositories.CreateRepository, repository_pb2.CreateRepositoryRequest(path=bad)),
        (api.repositories.GetRepository, repository_pb2.GetRepositoryRequest(path=bad)),
        (api.repositories.DeleteRepository, repository_pb2.DeleteRepositoryRequest(path=bad)),
    ):
        assert api.refused(method, request).code == "INVALID_ARGUMENT"


def test_bad_fields_are_named(api: Api, path: str) -> None:
    request = repository_pb2.CreateRepositoryRequest(path=path, request_id="not-a-uuid")
    assert (
        "request_id must be a UUID" in api.refused(api.repositories.CreateRepository, request).text
    )
    request = repository_pb2.CreateRepositoryRequest(path=path, default_branch=b"a..b")
    assert "a..b" in api.refused(api.repositories.CreateRepository, request).text
    listing = repository_pb2.ListRepositoriesRequest(page_size=-1)
    assert "page_size" in api.refused(api.repositories.ListRepositories, listing).text


@pytest.mark.parametrize("token", [None, "", "wrong"])
def test_every_service_needs_a_token(api: Api, token: str | None) -> None:
    refused = api.refused(
        api.repositories.ListRepositories, repository_pb2.ListRepositoriesRequest(), token
    )
    assert refused.code == "UNAUTHENTICATED"
    assert refused.info.domain == "quorepo"
    refused = api.refused(api.cluster.GetStatus, cluster_pb2.GetStatusRequest(), token)
    assert refused.code == "UNAUTHENTICATED"


def test_health_and_reflection_need_none(api: Api) -> None:
    health = health_pb2_grpc.HealthStub(api.channel)

    def serving(service: str) -> bool:
        answer = health.Check(health_pb2.HealthCheckRequest(service=service), timeout=5)
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

    assert serving("liveness")
    eventually(lambda: serving("readiness") and serving(""), what="readiness follows the core")
    api.under_test.core.has_leader = False
    try:
        eventually(lambda: not serving("readiness") and not serving(""), what="not ready")
        assert serving("liveness")
    finally:
        api.under_test.core.has_leader = True
    eventually(lambda: serving("readiness"), what="ready again")
    stub = reflection_pb2_grpc.ServerReflectionStub(api.channel)
    request = reflection_pb2.ServerReflectionRequest(list_services="")
    (answer,) = stub.ServerReflectionInfo(iter([request]), timeout=5)
    names = {service.name for service in answer.list_services_response.service}
    assert {"quorepo.v1.RefService", "quorepo.v1.ClusterService", "grpc.health.v1.Health"} <= names


def test_without_a_leader_everything_says_try_again(api: Api, path: str) -> None:
    create(api, path)
    api.under_test.core.has_leader = False
    try:
        for method, request in (
            (api.repositories.GetRepository, repository_pb2.GetRepositoryRequest(path=path)),
            (api.repositories.CreateRepository, repository_pb2.CreateRepositoryRequest(path="n")),
            (api.repositories.DeleteRepository, repository_pb2.DeleteRepositoryRequest(path=path)),
        ):
            refused = api.refused(method, request)
            assert refused.code == "UNAVAILABLE"
            assert refused.info.metadata["conclusion"] == "rejected"
            assert refused.detail(error_details_pb2.RetryInfo).retry_delay.ToMilliseconds() > 0
        local = common_pb2.Consistency(local=common_pb2.Consistency.Local())
        request = repository_pb2.GetRepositoryRequest(path=path, consistency=local)
        assert api.call(api.repositories.GetRepository, request).repository.path == path
        status = api.call(api.cluster.GetStatus, cluster_pb2.GetStatusRequest())
        assert [(node.name, node.reachable, node.ready) for node in status.nodes] == [
            ("n1", True, False)
        ]
    finally:
        api.under_test.core.has_leader = True


def test_a_client_may_insist_on_the_revision_it_wrote(api: Api, path: str) -> None:
    revision = create(api, path).revision
    before = api.under_test.core.read_indexes
    request = repository_pb2.GetRepositoryRequest(
        path=path, consistency=common_pb2.Consistency(at_least=revision)
    )
    assert api.call(api.repositories.GetRepository, request).revision == revision
    assert api.under_test.core.read_indexes == before, "a revision that is here needs no leader"
    request.consistency.at_least.counter += 1
    refused = api.refused(api.repositories.GetRepository, request)
    assert (refused.code, refused.info.reason) == ("FAILED_PRECONDITION", "REVISION_NOT_REACHED")
    assert api.under_test.core.read_indexes == before + 1


def test_a_taken_address_is_a_configuration_error(
    api: Api, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "_BIND_WAIT_S", 0.2)
    edge = api.under_test.edge

    async def start() -> None:
        second = server.GrpcServer(edge, edge.config.listen.grpc)
        try:
            await second.start()
        finally:
            await second.stop(0)

    with pytest.raises(ConfigError, match="cannot be bound"):
        api.under_test.do(start())
