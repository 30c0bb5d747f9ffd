"""A pack that a disk lost comes back from another node when the node starts."""

from __future__ import annotations

import pytest
from support.demo import Demo
from support.git import WorkTree
from support.waiting import eventually

pytestmark = pytest.mark.system


def test_a_lost_pack_is_fetched_from_another_node(own_cluster: Demo, work: WorkTree) -> None:
    demo = own_cluster
    work.commit("first")
    work.git("push", "--quiet", demo.url("n1", "kept/repo"), "main")
    demo.kill("n3")
    folder = demo.nodes["n3"].data_dir / "groups"
    lost = sorted(folder.glob("*/repositories/*.git/objects/pack/*.pack"))
    assert lost
    for path in lost:
        path.unlink()
    demo.restart("n3")
    eventually(lambda: all(p.exists() for p in lost), timeout_s=40, what="the packs are back")
    eventually(
        lambda: 'quorepo_packs_missing{group="1"} 0.0' in demo.metrics("n3"), what="none missing"
    )
