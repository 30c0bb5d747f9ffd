"""One edge for all other clients, and the history that they exchange with git."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.edge import EdgeUnderTest, edge_config, running_edge
from support.git import WorkTree
from support.other_clients import Program, installed

_numbers = itertools.count()


@pytest.fixture(scope="session")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EdgeUnderTest]:
    with running_edge(edge_config(tmp_path_factory.mktemp("clients") / "data")) as server:
        yield server


@pytest.fixture
def path() -> str:
    return f"clients/project-{next(_numbers)}"


@pytest.fixture
def work(server: EdgeUnderTest, path: str, tmp_path: Path) -> WorkTree:
    """Pushed: ten commits with deltas on main, an annotated tag, a second branch."""
    work = WorkTree(tmp_path / "work")
    lines = [f"line {number}\n" for number in range(800)]
    for number in range(10):
        lines[number * 70] = f"changed in {number}\n"
        work.commit(
            f"change {number}", {"text.txt": "".join(lines), f"d{number % 3}/n": f"{number}"}
        )
    work.git("tag", "--annotate", "--message=first", "v1", "HEAD~5")
    work.git("branch", "topic", "HEAD~2")
    work.git("push", "--quiet", server.url(path), "main", "topic", "v1")
    return work


@pytest.fixture
def gogit(tmp_path: Path) -> Program:
    return Program([str(installed("gogit"))], tmp_path)


@pytest.fixture
def jgit(tmp_path: Path) -> Program:
    jars = installed("jgit/.complete").parent
    # Short-lived: compiled no further than the first tier, and with little memory.
    options = ["-XX:TieredStopAtLevel=1", "-Xmx256m", "-Xshare:auto"]
    return Program(["java", *options, "-cp", f"{jars}/*", "org.eclipse.jgit.pgm.Main"], tmp_path)
