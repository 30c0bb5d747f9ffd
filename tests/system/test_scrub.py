"""A pack whose bytes went wrong on one disk is found, and replaced by another node's copy."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from support.demo import Demo
from support.git import WorkTree, git

pytestmark = pytest.mark.system


def test_a_damaged_pack_is_found_and_healed(
    own_cluster: Demo, work: WorkTree, tmp_path: Path
) -> None:
    demo = own_cluster
    work.commit("first", {"file.bin": "content " * 500})
    work.git("push", "--quiet", demo.url("n1", "kept/repo"), "main")
    git("clone", "--quiet", "--bare", demo.url("n3", "kept/repo"), str(tmp_path / "before.git"))
    packs = sorted(
        demo.nodes["n3"].data_dir.glob("groups/*/repositories/*.git/objects/pack/*.pack")
    )
    assert packs
    pack = packs[0]
    good = pack.read_bytes()
    damaged = bytearray(good)
    damaged[len(good) // 2] ^= 0x40
    with pack.open("r+b") as file:  # the same file: whoever has it open sees it too
        file.write(damaged)

    process = demo.cli("cluster", "verify", "-o", "json", node="n1")
    nodes = {node["node"]: node for node in json.loads(process.stdout)["nodes"]}
    assert set(nodes) == {"n1", "n2", "n3"}
    assert nodes["n1"]["faults"] == nodes["n2"]["faults"] == []
    (fault,) = nodes["n3"]["faults"]
    assert (fault["kind"], fault["healed"]) == ("damaged", True), fault
    assert fault["digest"] == hashlib.sha256(good).hexdigest()
    assert pack.read_bytes() == good
    kept = list(demo.nodes["n3"].data_dir.glob("groups/*/damaged/*.pack"))
    assert [path.read_bytes() for path in kept] == [bytes(damaged)]
    assert 'quorepo_scrub_faults_total{group="1",kind="damaged"} 1.0' in demo.metrics("n3")

    git("clone", "--quiet", "--bare", demo.url("n3", "kept/repo"), str(tmp_path / "after.git"))
    git("-C", str(tmp_path / "after.git"), "fsck", "--strict")

    pack.unlink()
    process = demo.cli("cluster", "verify", "-o", "json", node="n3")
    nodes = {node["node"]: node for node in json.loads(process.stdout)["nodes"]}
    (fault,) = nodes["n3"]["faults"]
    assert (fault["kind"], fault["healed"]) == ("missing", True), fault
    assert pack.read_bytes() == good
