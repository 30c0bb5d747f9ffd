"""A pack that a disk lost comes back from another node when the node starts."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from support.demo import Demo
from support.git import WorkTree, git
from support.waiting import eventually

pytestmark = pytest.mark.system

PATH = "kept/repo"


def packs_of_n3_once_it_has(demo: Demo, oid: str) -> list[Path]:
    """A push is acknowledged by a majority, which n3 need not be of."""
    eventually(
        lambda: oid in git("ls-remote", demo.url("n3", PATH), check=False).stdout,
        timeout_s=60, what="n3 has the push",
    )  # fmt: skip
    folder = demo.nodes["n3"].data_dir / "groups"
    packs = sorted(folder.glob("*/repositories/*.git/objects/pack/*.pack"))
    assert packs
    return packs


def test_a_lost_pack_is_fetched_from_another_node(own_cluster: Demo, work: WorkTree) -> None:
    demo = own_cluster
    work.commit("first")
    work.git("push", "--quiet", demo.url("n1", PATH), "main")
    lost = packs_of_n3_once_it_has(demo, work.head())
    demo.kill("n3")
    for path in lost:
        path.unlink()
    demo.restart("n3")
    eventually(lambda: all(p.exists() for p in lost), timeout_s=60, what="the packs are back")
    eventually(
        lambda: 'quorepo_packs_missing{group="1"} 0.0' in demo.metrics("n3"),
        timeout_s=60, what="none missing",
    )  # fmt: skip


def lacking(demo: Demo) -> dict[str, Any]:
    """n3, as n1 tells it; empty while it says nothing of its packs."""
    node = next(n for n in demo.status("n1")["nodes"] if n["name"] == "n3")
    return node if node["packs_total"] else {}


def test_status_shows_how_far_the_repair_is_and_a_killed_node_goes_on_with_it(
    own_cluster: Demo, work: WorkTree
) -> None:
    """At a fourth of a pack in three seconds there is time to look, and to kill it in between."""
    demo = own_cluster
    for number in range(4):
        work.commit(f"pack {number}", {f"file{number}": os.urandom(225_000).hex()})
        work.git("push", "--quiet", demo.url("n1", PATH), "main")
    lost = packs_of_n3_once_it_has(demo, work.head())
    assert len(lost) == 4
    demo.kill("n3")
    for path in lost:
        path.unlink()
    demo.restart("n3", QUOREPO_RAFT__SNAPSHOT_BYTES_PER_S="25000")
    node = eventually(
        lambda: (n := lacking(demo)) and 0 < n["packs_missing"] < 4 and n,
        timeout_s=60, what="status shows that some are back",
    )  # fmt: skip
    assert node["packs_total"] == 4
    assert 200_000 * node["packs_missing"] < node["missing_bytes"] < 4 * 300_000
    shown = demo.cli("status", node="n1")
    health = demo.cli("cluster", "health", node="n1", check=False)
    assert "of 4 packs missing" in shown.stdout
    assert "n3 lacks" in health.stdout
    assert health.returncode == 6
    demo.kill("n3")
    kept = {path: path.stat().st_ino for path in lost if path.exists()}
    assert kept
    demo.restart("n3")
    eventually(lambda: all(p.exists() for p in lost), timeout_s=60, what="the packs are back")
    eventually(lambda: lacking(demo).get("packs_missing") == 0, timeout_s=60, what="it says so")
    assert {path: path.stat().st_ino for path in kept} == kept, "fetched once"
