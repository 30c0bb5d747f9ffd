"""One demo cluster for the tests that leave all nodes running, one per test that kills."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from support.demo import Demo
from support.git import WorkTree


@pytest.fixture(scope="session")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Demo]:
    """Three nodes that no test may stop."""
    with Demo(tmp_path_factory.mktemp("shared") / "demo") as demo:
        yield demo


@pytest.fixture
def own_cluster(tmp_path: Path) -> Iterator[Demo]:
    """Three nodes of one test's own."""
    with Demo(tmp_path / "demo") as demo:
        yield demo


@pytest.fixture
def work(tmp_path: Path) -> WorkTree:
    """An empty repository to push from."""
    return WorkTree(tmp_path / "work")
