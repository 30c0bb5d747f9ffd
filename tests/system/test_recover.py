"""The majority is lost for good: `quorepo cluster recover` goes on with what one survivor holds."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from support.demo import Demo, free_base_port
from support.git import WorkTree, git
from support.membership import add_command, start_newcomer, wait_until_waiting, wipe
from support.pusher import Pusher
from support.waiting import eventually

pytestmark = pytest.mark.system

PATH = "kept/repo"
STEPS = [
    "recover.after_begin",
    "recover.after_group",
    "recover.before_identity",
    "recover.after_identity",
    "recover.before_end",
]


def refs(demo: Demo, name: str) -> str:
    process = git("ls-remote", demo.url(name, PATH), check=False)
    return process.stdout if process.returncode == 0 else ""


def voters(demo: Demo, name: str) -> set[str]:
    return {
        replica["node"]
        for group in demo.status(name)["groups"]
        for replica in group["replicas"]
        if replica["votes"]
    }


def is_voter(demo: Demo, ask: str, name: str) -> bool:
    return name in voters(demo, ask)


def test_two_of_three_are_lost_under_pushes_and_the_survivor_goes_on(
    tmp_path: Path, work: WorkTree
) -> None:
    """Until three vote again: one that comes back on an empty disk, and one that is new."""
    with Demo(tmp_path / "demo", base_port=free_base_port(4)) as demo:
        _lose_two_and_go_on(demo, work)


def _lose_two_and_go_on(demo: Demo, work: WorkTree) -> None:
    work.commit("first")
    work.git("push", "--quiet", demo.url("n1", PATH), "main")
    pusher = Pusher(demo, work, PATH, list(demo.nodes))
    pusher.start()
    eventually(lambda: len(pusher.acknowledged) >= 10, timeout_s=60, what="ten pushes")
    survivor, lost = "n1", ["n2", "n3"]
    for name in lost:
        demo.kill(name)
    pusher.finish()
    config = str(demo.directory / "config" / f"{survivor}.toml")
    cluster_id = demo.status(survivor)["cluster_id"]
    running = demo.cli("cluster", "recover", "--config", config, "--dry-run", check=False)
    assert running.returncode == 5
    assert "a node runs on" in running.stderr
    demo.kill(survivor)

    data_dir = demo.nodes[survivor].data_dir
    before = (data_dir / "node.json").read_bytes()
    dry = demo.cli("cluster", "recover", "--config", config, "--dry-run", "-o", "json")
    preview = json.loads(dry.stdout)
    storage = next(g for g in preview["groups"] if g["group"] == 1)
    assert [r["path"] for r in preview["repositories"]] == [PATH]
    kept = [ref for entry in storage["not_certain"] for ref in entry["refs"]]
    assert (data_dir / "node.json").read_bytes() == before
    refused = demo.cli(
        "cluster", "recover", "--config", config, "--force", "--cluster-name", "x", check=False
    )
    assert refused.returncode == 5
    assert "nothing was changed" in refused.stderr
    done = demo.cli(
        "cluster", "recover", "--config", config, "--force", "--cluster-name", cluster_id
    )
    assert "only member of the new cluster" in done.stdout

    demo.restart(survivor)
    eventually(lambda: refs(demo, survivor), timeout_s=60, what="the survivor serves")
    have = refs(demo, survivor)
    missing = [ref for ref, oid in pusher.acknowledged.items() if f"{oid}\t{ref}" not in have]
    # What it never received is lost, and was told: at most what came after its log's end. Every
    # third push went to the survivor itself.
    assert len(missing) <= len(lost)
    assert all(ref in have for ref in kept)
    assert demo.status(survivor)["cluster_id"] != cluster_id
    assert voters(demo, survivor) == {survivor}
    work.commit("after the loss")
    work.git("push", "--quiet", demo.url(survivor, PATH), "HEAD:refs/heads/after")

    for name in lost:  # with their old disks: neither side talks to the other
        demo.restart(name)
    log = demo.directory.parent / f"{survivor}.restart.log"
    eventually(
        lambda: "was removed from this cluster" in log.read_text(),
        timeout_s=60,
        what="an old one is refused",
    )
    assert voters(demo, survivor) == {survivor}
    work.git("push", "--quiet", demo.url(survivor, PATH), "HEAD:refs/heads/beside")
    for name in lost:
        demo.kill(name)
    _three_vote_again(demo, work, survivor)


def _three_vote_again(demo: Demo, work: WorkTree, survivor: str) -> None:
    """n2 on an emptied disk, and n4, which nobody knows, by `quorepo node add`."""
    wipe(demo, "n2")
    demo.restart("n2", QUOREPO_CLUSTER__REJOIN_EMPTY="false")
    start_newcomer(demo, "n4")
    for name in ("n2", "n4"):
        wait_until_waiting(demo, name, survivor)
        added = demo.cli(*add_command(demo, name), node=survivor)
    assert "2 voters, 2 reachable, majority 2; after promotion 3 voters" in added.stderr
    assert voters(demo, survivor) == {survivor, "n2", "n4"}
    verified = demo.cli("cluster", "verify", node=survivor)
    assert all(name in verified.stdout for name in (survivor, "n2", "n4"))
    demo.kill(survivor)  # the two that came have everything, and decide
    work.commit("with the new ones")
    url = demo.url("n4", PATH)
    eventually(
        lambda: work.git("push", "-q", url, "HEAD:refs/heads/new", check=False).returncode == 0,
        timeout_s=60, what="a push to n4",
    )  # fmt: skip
    eventually(lambda: "refs/heads/new" in refs(demo, "n2"), timeout_s=60, what="n2 has it")
    assert "refs/heads/after" in refs(demo, "n2")


def test_recovery_that_is_killed_at_any_step_is_ended_by_the_next_and_no_node_starts_over_it(
    own_cluster: Demo, work: WorkTree
) -> None:
    demo = own_cluster
    work.commit("first")
    work.git("push", "--quiet", demo.url("n1", PATH), "main")
    cluster_id = demo.status("n1")["cluster_id"]
    for name in demo.nodes:
        demo.kill(name)
    config = str(demo.directory / "config" / "n1.toml")
    argv = [sys.executable, "-m", "quorepo", "cluster", "recover", "--config", config, "--force"]
    argv += ["--cluster-name", cluster_id]
    for step in STEPS:
        environment = {**os.environ, "QUOREPO_FAILPOINTS": f"{step}=kill"}
        killed = subprocess.run(argv, env=environment, capture_output=True, check=False, timeout=60)
        assert killed.returncode == -signal.SIGKILL, (step, killed.stderr)
        if step in (STEPS[0], STEPS[-1]):
            demo.restart("n1")
            assert demo.process_of("n1").wait(timeout=60) == 78
            log = (demo.directory.parent / "n1.restart.log").read_text()
            assert "a recovery of" in log
    subprocess.run(argv, capture_output=True, check=True, timeout=60)
    demo.restart("n1")
    eventually(lambda: refs(demo, "n1"), timeout_s=60, what="n1 serves what it had")
    assert voters(demo, "n1") == {"n1"}
    groups = demo.status("n1")["groups"]
    assert all(group["leader"] == "n1" for group in groups)


def test_only_the_longest_log_goes_on(own_cluster: Demo, work: WorkTree, tmp_path: Path) -> None:
    demo = own_cluster
    work.commit("first")
    work.git("push", "--quiet", demo.url("n1", PATH), "main")
    demo.kill("n3")
    work.commit("second")
    work.git("push", "--quiet", demo.url("n1", PATH), "main")
    for name in ("n1", "n2"):
        demo.kill(name)
    configs = {name: str(demo.directory / "config" / f"{name}.toml") for name in demo.nodes}
    shorter = demo.cli(
        "cluster", "recover", "--config", configs["n3"], "--dry-run",
        "--compare", str(demo.nodes["n2"].data_dir), check=False,
    )  # fmt: skip
    assert shorter.returncode == 5
    assert "goes further" in shorter.stderr
    longest = demo.cli(
        "cluster", "recover", "--config", configs["n2"], "--dry-run",
        "--compare", str(demo.nodes["n3"].data_dir),
    )  # fmt: skip
    assert "survivor n3" in longest.stdout
    assert "is given up" in longest.stdout
    assert "nothing was changed" in longest.stderr
