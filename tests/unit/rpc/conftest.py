"""One edge with its gRPC server per module, a client, and a repository with history per test."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.cli import Run, Stub, runner, serving
from support.git import WorkTree
from support.grpc_api import Api, push_history, serving_api

_numbers = itertools.count()


@pytest.fixture(scope="module")
def api(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Api]:
    with serving_api(tmp_path_factory.mktemp("node") / "data") as api:
        yield api


@pytest.fixture
def path() -> str:
    """A repository path that no other test uses."""
    return f"team/project-{next(_numbers)}"


@pytest.fixture
def work(tmp_path: Path) -> WorkTree:
    return WorkTree(tmp_path / "work")


@pytest.fixture
def pushed(api: Api, work: WorkTree, path: str) -> str:
    """The path of a repository with the history of `push_history`."""
    push_history(api, work, path)
    return path


@pytest.fixture(scope="module")
def cli_server() -> Iterator[Stub]:
    with serving() as stub:
        yield stub


@pytest.fixture
def stub(cli_server: Stub) -> Stub:
    """What the command line of `run` talks to."""
    cli_server.reset()
    return cli_server


@pytest.fixture
def run(stub: Stub, tmp_path: Path) -> Run:
    """Runs `quorepo ARGUMENTS` in this process."""
    return runner(tmp_path / "home", stub.address)
