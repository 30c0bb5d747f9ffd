"""An edge whose disk is below the reserve takes no packs, says so by name, and goes on reading."""

from __future__ import annotations

import os
from collections.abc import Iterator

import pytest
from support.edge import EdgeUnderTest, edge_config, running_edge
from support.git import WorkTree, clone, refs_of

from quorepo.storage.disk_space import RESERVE_KEY, DiskReserve


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[EdgeUnderTest]:
    with running_edge(edge_config(tmp_path_factory.mktemp("reserve") / "data")) as server:
        yield server


@pytest.fixture
def full(server: EdgeUnderTest) -> Iterator[None]:
    """The disk of this edge has less free than its reserve, until the test ends."""
    usual = server.edge.disk
    free = usual.free_bytes()
    server.edge.disk = DiskReserve(server.edge.config.node.data_dir, 2 * free)
    yield
    server.edge.disk = usual


def test_a_push_is_refused_by_name_and_nothing_is_changed(
    server: EdgeUnderTest, work: WorkTree, full: None
) -> None:
    work.commit("never stored")
    refused = work.git("push", server.url("disk/full"), "main", check=False)
    assert refused.returncode != 0
    assert RESERVE_KEY in refused.stderr
    assert "the disk of this node is full" in refused.stderr
    server.settle()
    assert server.uploads() == []


def test_reads_and_deletions_go_on_below_the_reserve(
    server: EdgeUnderTest, work: WorkTree, request: pytest.FixtureRequest
) -> None:
    oid = work.commit("stored before", {"large": os.urandom(3_000_000)})
    work.git("push", "--quiet", server.url("disk/kept"), "main", "main:refs/heads/second")
    request.getfixturevalue("full")
    clone(server.url("disk/kept"), work.path.parent / "clone")
    work.git("push", "--quiet", server.url("disk/kept"), ":refs/heads/second")
    refs = refs_of(server.url("disk/kept"))
    assert refs["refs/heads/main"] == oid
    assert "refs/heads/second" not in refs


def test_a_push_that_would_eat_into_the_reserve_is_refused_while_it_arrives(
    server: EdgeUnderTest, work: WorkTree
) -> None:
    usual = server.edge.disk

    class Shrinking(DiskReserve):
        """Has room when the push begins, and none for its second megabyte."""

        def check_new(self, size_bytes: int = 0) -> None:
            if size_bytes and self.asked:
                self._free_bytes = 0
                raise self._refusal(self._reserve_bytes)
            self.asked = bool(size_bytes)

        asked = False

    server.edge.disk = Shrinking(server.edge.config.node.data_dir, 1)
    try:
        work.commit("large", {"large": os.urandom(5_000_000)})
        refused = work.git("push", server.url("disk/shrinks"), "main", check=False)
    finally:
        server.edge.disk = usual
    assert refused.returncode != 0
    assert RESERVE_KEY in refused.stderr
    server.settle()
    assert server.uploads() == []
    work.git("push", "--quiet", server.url("disk/shrinks"), "main")


def test_consolidation_waits_for_room(
    server: EdgeUnderTest, work: WorkTree, request: pytest.FixtureRequest
) -> None:
    from quorepo.rpc.upkeep import Upkeep
    from quorepo.storage.errors import StorageFull

    for number in range(2):
        work.commit(f"change {number}")
        work.git("push", "--quiet", server.url("disk/packs"), "main")
    request.getfixturevalue("full")
    upkeep = Upkeep(server.edge)
    try:
        with pytest.raises(StorageFull, match=RESERVE_KEY):
            server.do(upkeep.optimize("disk/packs", server.edge.origin("admin")))
    finally:
        upkeep.close()
