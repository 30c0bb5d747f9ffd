"""A replica that lacks more than the logs hold comes back by a snapshot, whoever dies meanwhile."""

from __future__ import annotations

import json
import os
import random
import re
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.demo import Demo
from support.git import WorkTree, clone, git, refs_of
from support.waiting import eventually

pytestmark = pytest.mark.system

STORAGE = 1
PUSHES = 14
SMALL_LOGS = (
    *("--set", "raft.compaction_entries_min=8"),
    *("--set", "raft.trailing_entries=2"),
)
SLOW_SNAPSHOTS = (*SMALL_LOGS, "--set", "raft.snapshot_bytes_per_s=400000")


@pytest.fixture
def small_logs(tmp_path: Path) -> Iterator[Demo]:
    with Demo(tmp_path / "demo", *SMALL_LOGS) as demo:
        yield demo


def metric(demo: Demo, node: str, name: str, **labels: str) -> float:
    """The sum of a metric's values that have the labels."""
    total = 0.0
    for line in demo.metrics(node).splitlines():
        found = re.fullmatch(rf"quorepo_{name}(?:\{{(.*)\}})? (\S+)", line)
        if found and all(f'{key}="{value}"' in (found[1] or "") for key, value in labels.items()):
            total += float(found[2])
    return total


def push_some(
    demo: Demo, work: WorkTree, node: str, path: str, count: int, size_bytes: int = 2000
) -> None:
    for _ in range(count):
        content = {f"file{random.randrange(9)}": os.urandom(size_bytes)}
        oid = work.commit("change", content)
        url = demo.url(node, path)
        work.git("push", "--quiet", url, f"{oid}:refs/heads/b{oid[:12]}", f"{oid}:refs/heads/main")


def applied(demo: Demo, node: str) -> dict[int, int]:
    """Applied index of each group, as that node tells it itself."""
    process = demo.cli("status", "-o", "json", node=node, check=False)
    if process.returncode:
        return {}
    groups = json.loads(process.stdout)["groups"]
    return {
        group["group"]: replica["applied_index"]
        for group in groups
        for replica in group["replicas"]
        if replica["node"] == node
    }


def wait_until_cut(demo: Demo, node: str) -> None:
    eventually(
        lambda: metric(demo, node, "raft_first_index", group="1") > 5,
        timeout_s=20, what=f"the log of {node} is cut",
    )  # fmt: skip


def wait_until_serves(demo: Demo, node: str, path: str, timeout_s: float = 60) -> dict[str, str]:
    def probe() -> dict[str, str]:
        if git("ls-remote", demo.url(node, path), check=False).returncode:
            return {}
        return refs_of(demo.url(node, path))

    return eventually(probe, timeout_s=timeout_s, what=f"{node} serves")


def check_equal(demo: Demo, path: str, tmp_path: Path) -> None:
    """Every node serves the same refs, and a whole repository."""
    refs = [wait_until_serves(demo, name, path) for name in demo.nodes]
    assert all(other == refs[0] for other in refs)
    for name in demo.nodes:
        target = clone(demo.url(name, path), tmp_path / f"check-{name}-{time.monotonic_ns()}")
        git("fsck", "--strict", cwd=target)


@pytest.mark.parametrize("emptied", [False, True], ids=["away", "emptied"])
def test_replica_behind_the_logs_comes_back_by_a_snapshot(
    small_logs: Demo, work: WorkTree, tmp_path: Path, emptied: bool
) -> None:
    demo = small_logs
    push_some(demo, work, "n1", "snap/repo", 2)
    leader = demo.leader(STORAGE)
    away = next(name for name in demo.nodes if name != leader)
    demo.kill(away)
    if emptied:
        shutil.rmtree(demo.nodes[away].data_dir)
    push_some(demo, work, leader, "snap/repo", PUSHES)
    wait_until_cut(demo, leader)
    demo.restart(away)
    wait_until_serves(demo, away, "snap/repo")
    assert metric(demo, away, "snapshots_total", group="1", outcome="installed") == 1
    check_equal(demo, "snap/repo", tmp_path)
    # It goes on as a replica like any other, and after a restart too.
    push_some(demo, work, away, "snap/repo", 3)
    demo.kill(away)
    demo.restart(away)
    wait_until_serves(demo, away, "snap/repo")
    check_equal(demo, "snap/repo", tmp_path)


@pytest.fixture
def slow_snapshots(tmp_path: Path) -> Iterator[Demo]:
    with Demo(tmp_path / "demo", *SLOW_SNAPSHOTS) as demo:
        yield demo


@pytest.mark.parametrize("kills", [4, pytest.param(16, marks=pytest.mark.slow)])
def test_receiver_and_source_killed_in_the_middle_again_and_again(
    slow_snapshots: Demo, work: WorkTree, tmp_path: Path, kills: int
) -> None:
    demo = slow_snapshots
    push_some(demo, work, "n1", "snap/repo", 2)
    leader = demo.leader(STORAGE)
    away = next(name for name in demo.nodes if name != leader)
    demo.kill(away)
    push_some(demo, work, leader, "snap/repo", PUSHES, size_bytes=200_000)
    wait_until_cut(demo, leader)
    seed = random.randrange(1 << 32)
    print(f"seed {seed}")
    rng = random.Random(seed)
    arriving = demo.nodes[away].data_dir / "groups" / str(STORAGE) / "snapshot.tmp"
    in_the_middle = 0
    demo.restart(away)
    for number in range(kills):
        eventually(arriving.exists, timeout_s=60, what=f"a snapshot arrives at {away}")
        until = time.monotonic() + rng.uniform(0, 1)  # anywhere in it
        while time.monotonic() < until and arriving.exists():
            time.sleep(0.01)
        victim = away if number % 2 == 0 else demo.leader(STORAGE)
        in_the_middle += arriving.exists()
        demo.kill(victim)
        demo.restart(victim)
        if victim == away and not arriving.exists():
            # It was quicker: it begins anew, with an empty disk.
            demo.kill(away)
            shutil.rmtree(demo.nodes[away].data_dir)
            demo.restart(away)
    assert in_the_middle
    check_equal(demo, "snap/repo", tmp_path)
    assert metric(demo, away, "snapshots_total", group="1", outcome="installed") == 1
    push_some(demo, work, away, "snap/repo", 2)
    check_equal(demo, "snap/repo", tmp_path)
