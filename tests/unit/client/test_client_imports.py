"""`client.imports` and bundles: whole repositories through the client, with C git at the ends."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.edge import TOKEN
from support.git import WorkTree, git, refs_of
from support.grpc_api import Api, serving_api
from support.http_backend import Backend, backend, bare_clone

import quorepo
import quorepo.aio
from quorepo import errors
from quorepo.rpc.request_ids import new_request_uuid


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    """A node that may import from this machine."""
    folder = tmp_path_factory.mktemp("node") / "data"
    with serving_api(folder, imports={"allow_http": True, "allow_private": True}) as api:
        yield api


@pytest.fixture
def work(tmp_path: Path) -> WorkTree:
    work = WorkTree(tmp_path / "work")
    work.commit("first")
    work.git("tag", "v1")
    work.commit("second")
    return work


@pytest.fixture
def source(work: WorkTree, tmp_path: Path) -> Iterator[Backend]:
    bare_clone(work.path, tmp_path / "served" / "app.git")
    with backend(tmp_path / "served") as served:
        yield served


def test_a_bundle_goes_in_and_comes_out(
    api: Api, client: quorepo.Client, work: WorkTree, path: str, tmp_path: Path
) -> None:
    file = tmp_path / "all.bundle"
    work.git("bundle", "create", "--quiet", str(file), "--all")
    assert client.imports.from_bundle(path, file).counter == 1
    assert refs_of(api.under_test.url(path)) == refs_of(str(work.path))
    out = tmp_path / "out.bundle"
    out.write_bytes(b"".join(client.repositories.bundle(path)))
    git("bundle", "verify", str(out), cwd=work.path)
    client.imports.from_bundle(f"{path}-copy", out.read_bytes())
    assert refs_of(api.under_test.url(f"{path}-copy")) == refs_of(str(work.path))
    with pytest.raises(errors.AlreadyExists):
        client.imports.from_bundle(path, file)
    with pytest.raises(errors.InvalidArgument, match="no git bundle"):
        client.imports.from_bundle(f"{path}-bad", b"something else\n")
    part = b"".join(client.repositories.bundle(path, ["refs/heads/main"], exclusions=["v1"]))
    assert b"\n-" in part[:200]


def test_an_import_is_begun_and_waited_for(
    api: Api, client: quorepo.Client, source: Backend, path: str
) -> None:
    request_id = str(new_request_uuid())
    begun = client.imports.start(path, source.url("app.git"), request_id=request_id)
    assert (begun.path, begun.request_id) == (path, request_id)
    done = client.imports.wait(begun.name)
    assert done.state == "done"
    assert done.revision is not None
    assert done.objects > 0
    assert done.end_time is not None
    assert client.imports.get(begun.name) == done
    assert done in client.imports.list()
    assert client.imports.cancel(begun.name) == done, "it was over"
    assert refs_of(api.under_test.url(path)) == refs_of(source.url("app.git"))
    assert client.refs.exists(path, "refs/tags/v1")


def test_what_can_not_be_imported(client: quorepo.Client, source: Backend, path: str) -> None:
    failed = client.imports.wait(client.imports.start(path, source.url("none.git")).name)
    assert (failed.state, failed.error_reason) == ("failed", "SOURCE_FAILED")
    with pytest.raises(errors.InvalidArgument):
        client.imports.start(path, "ssh://somewhere/app.git")
    with pytest.raises(errors.NotFound):
        client.imports.get(f"n2/00000000/{new_request_uuid()}")


async def test_the_asynchronous_client_does_the_same(
    endpoint: str, source: Backend, path: str
) -> None:
    async with quorepo.aio.Client(endpoint, token=TOKEN) as client:
        begun = await client.imports.start(path, source.url("app.git"))
        assert (await client.imports.wait(begun.name)).state == "done"


def test_an_operation_is_found_whichever_endpoint_has_its_turn(
    api: Api, endpoint: str, source: Backend, path: str, tmp_path: Path
) -> None:
    """It is known to one node; the other one says NOT_FOUND."""
    with serving_api(tmp_path / "other" / "data") as other:
        endpoints = [other.under_test.edge.config.listen.grpc, endpoint]
        with (
            quorepo.Client(endpoint, token=TOKEN) as one,
            quorepo.Client(endpoints, token=TOKEN) as both,
        ):
            name = one.imports.start(path, source.url("app.git")).name
            assert [both.imports.wait(name).state for _ in range(4)] == ["done"] * 4
