"""One edge per module, a work tree and a fresh repository path per test."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.edge import EdgeUnderTest, edge_config, running_edge
from support.git import WorkTree

_numbers = itertools.count()


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EdgeUnderTest]:
    with running_edge(edge_config(tmp_path_factory.mktemp("node") / "data")) as server:
        yield server


@pytest.fixture(autouse=True)
def _leaves_nothing_behind(request: pytest.FixtureRequest) -> Iterator[None]:
    """Whatever a test did, no upload and no built pack may be left behind."""
    yield
    if "server" in request.fixturenames:
        server: EdgeUnderTest = request.getfixturevalue("server")
        server.settle()
        assert server.uploads() == []
        assert server.fetch_files() == []


@pytest.fixture
def path() -> str:
    """A repository path that no other test uses."""
    return f"team/project-{next(_numbers)}"


@pytest.fixture
def work(tmp_path: Path) -> WorkTree:
    return WorkTree(tmp_path / "work")
