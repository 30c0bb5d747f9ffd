"""A pack whose bytes went wrong on one disk is found, and replaced by another node's copy."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

import pytest
from support.demo import Demo
from support.git import WorkTree, git
from support.waiting import eventually

from quorepo.storage.failpoints import ENVIRONMENT_VARIABLE

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


@pytest.mark.slow
@pytest.mark.parametrize("failpoint", ["scrub.heal.before_rename", "scrub.heal.before_dir_fsync"])
def test_killed_while_it_heals_a_node_heals_when_it_starts(
    own_cluster: Demo, work: WorkTree, tmp_path: Path, failpoint: str
) -> None:
    demo = own_cluster
    work.commit("first")
    work.git("push", "--quiet", demo.url("n1", "kept/repo"), "main")
    demo.kill("n3")
    (pack,) = demo.nodes["n3"].data_dir.glob("groups/1/repositories/*.git/objects/pack/*.pack")
    good = pack.read_bytes()
    damaged = bytearray(good)
    damaged[len(good) // 2] ^= 0x40
    pack.write_bytes(damaged)
    demo.restart("n3", **{ENVIRONMENT_VARIABLE: f"{failpoint}=kill"})
    healing = pack.parents[4] / "damaged" / "healing"

    def begun() -> bool:
        demo.cli("cluster", "verify", "--no-wait", node="n1", check=False)
        return healing.exists()

    eventually(begun, timeout_s=60, what="n3 heals")
    log = tmp_path / "n3.restart.log"
    eventually(lambda: "killed by SIGKILL" in log.read_text(), timeout_s=40, what="death")
    demo.kill("n3")
    demo.restart("n3")
    eventually(lambda: not healing.exists(), timeout_s=60, what="the pass ended")
    assert pack.read_bytes() == good
