"""A node that comes back with a disk that is not the one the cluster counts on.

Two members would otherwise count on what it has forgotten: it must be recognised, taken out of
service, and say so; and nothing that a network, a kill or a restart does may look like it.
"""

from __future__ import annotations

import functools
import json
import os
import random
import re
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest
from support.demo import Demo, free_base_port
from support.git import WorkTree, git
from support.membership import lead
from support.pusher import Pusher
from support.waiting import eventually

pytestmark = pytest.mark.system

PATH = "kept/repo"


def serves(demo: Demo, name: str) -> bool:
    return git("ls-remote", demo.url(name, PATH), check=False).returncode == 0


def own_word(demo: Demo, name: str) -> dict[str, Any]:
    """What the node says of itself."""
    process = demo.cli("status", "-o", "json", node=name, check=False)
    nodes = json.loads(process.stdout)["nodes"] if process.returncode == 0 else []
    return next((node for node in nodes if node["name"] == name), {})


def wrong(demo: Demo, name: str) -> str:
    node = own_word(demo, name)
    return str(node["problem"]) if node.get("phase") == "wrong disk" else ""


def copy_of(data_dir: Path, target: Path) -> Path:
    """As a backup tool would take it from a running node, but for files that go meanwhile."""
    ignore = shutil.ignore_patterns("*.tmp", "*-shm")
    shutil.copytree(data_dir, target, ignore=ignore, ignore_dangling_symlinks=True)
    return target


def push(demo: Demo, work: WorkTree, name: str, count: int = 1) -> None:
    for number in range(count):
        work.commit(f"more {number}")
        work.git("push", "--quiet", demo.url(name, PATH), "main")


def check_out_of_service(demo: Demo, name: str) -> None:
    """It serves nothing and says so everywhere; the others go on and say so too."""
    data_dir = demo.nodes[name].data_dir
    problem = eventually(lambda: wrong(demo, name), timeout_s=60, what=f"{name} says what is wrong")
    assert f"quorepo node replace {name}" in problem
    assert not serves(demo, name)
    assert (data_dir / "wrong-disk").exists()
    assert "quorepo_wrong_disk 1.0" in demo.metrics(name)
    other = next(n for n in demo.nodes if n != name and demo.nodes[n].alive())
    view = next(n for n in demo.status(other)["nodes"] if n["name"] == name)
    assert view["phase"] == "wrong disk"
    health = demo.cli("cluster", "health", node=other, check=False)
    assert f"{name} is out of service" in health.stdout
    config = next((demo.directory).glob(f"**/{name}*.toml"))
    doctor = demo.cli("doctor", "--config", str(config), check=False)
    assert "this disk was refused by" in doctor.stdout


def test_disk_restored_from_a_copy_is_refused_until_it_is_emptied(
    own_cluster: Demo, work: WorkTree, tmp_path: Path
) -> None:
    demo = own_cluster
    work.commit("first")
    push(demo, work, "n1", 3)
    victim, other, third = "n3", "n1", "n2"
    data_dir = demo.nodes[victim].data_dir
    old = copy_of(data_dir, tmp_path / "last-week")
    push(demo, work, other, 3)
    # What a replica acknowledges it tells the leader: the one that stays is the one that knows.
    lead(demo, other, ask=other)
    eventually(
        lambda: _applied(demo, victim) == _applied(demo, other) and _leads_all(demo, other),
        timeout_s=60, what=f"{victim} has everything, and {other} knows",
    )  # fmt: skip
    demo.kill(victim)
    shutil.rmtree(data_dir)
    shutil.move(old, data_dir)
    demo.kill(third)  # the old disk would be needed for a majority
    demo.restart(victim)
    check_out_of_service(demo, victim)
    demo.kill(victim)
    demo.restart(victim)
    check_out_of_service(demo, victim)  # also after a restart, before it asks anybody
    demo.restart(third)
    push(demo, work, other)

    demo.kill(victim)
    shutil.rmtree(data_dir)
    demo.restart(victim)
    eventually(lambda: serves(demo, victim), timeout_s=60, what=f"{victim} came back as a new one")
    push(demo, work, victim)


def _leads_all(demo: Demo, name: str) -> bool:
    return all(group["leader"] == name for group in demo.status(name)["groups"])


def _applied(demo: Demo, name: str) -> list[int]:
    groups = demo.status("n1")["groups"]
    return [r["match_index"] for g in groups for r in g["replicas"] if r["node"] == name]


@pytest.mark.parametrize("original", ["runs", "paused"])
def test_one_of_two_copies_of_a_data_directory_is_refused(
    work: WorkTree, tmp_path: Path, original: str
) -> None:
    """The copy starts beside it, at other ports. Paused: it stands still, and comes back later."""
    with Demo(tmp_path / "demo", base_port=free_base_port(4)) as demo:
        _check_two_copies(demo, work, tmp_path, original)


def _check_two_copies(demo: Demo, work: WorkTree, tmp_path: Path, original: str) -> None:
    work.commit("first")
    push(demo, work, "n1", 2)
    victim = "n3"
    if original == "paused":
        _signal_node(demo, victim, signal.SIGSTOP)
    copy = copy_of(demo.nodes[victim].data_dir, tmp_path / "copy")
    (copy / "lock").unlink(missing_ok=True)
    twin = _start_beside(demo, victim, copy, tmp_path)
    if original == "runs":
        marker = copy / "wrong-disk"
        eventually(marker.exists, timeout_s=60, what="the copy is refused")
        assert json.loads(marker.read_text())["reason"] == "runs-twice"
        assert serves(demo, victim)
        assert not (demo.nodes[victim].data_dir / "wrong-disk").exists()
    else:
        counter = json.loads((copy / "boots.json").read_text())["counter"]

        def taken_in(peer: str) -> bool:
            known = json.loads((demo.nodes[peer].data_dir / "known-disks.json").read_text())
            return any(
                replica.startswith(f"{victim}@") and disk["counter"] > counter
                for replica, disk in known["disks"].items()
            )

        # By both: one that has not yet would find the original awake, and refuse the copy.
        eventually(
            lambda: taken_in("n1") and taken_in("n2"),
            timeout_s=60,
            what="the copy is taken for the node",
        )
        _signal_node(demo, victim, signal.SIGCONT)
        marker = demo.nodes[victim].data_dir / "wrong-disk"
        eventually(marker.exists, timeout_s=60, what="the original is refused when it comes back")
        assert json.loads(marker.read_text())["reason"] == "older-start"
        assert not (copy / "wrong-disk").exists()
    assert twin == demo.nodes["n4"].pid
    demo.kill("n4")
    push(demo, work, "n1")


def _signal_node(demo: Demo, name: str, number: signal.Signals) -> None:
    """All processes of a node."""
    parent = demo.nodes[name].pid
    children = Path(f"/proc/{parent}/task/{parent}/children").read_text().split()
    for pid in (parent, *map(int, children)):
        os.kill(pid, number)


def _start_beside(demo: Demo, name: str, data_dir: Path, tmp_path: Path) -> int:
    """A second node on `data_dir` with the certificate and name of `name`; its supervisor's id."""
    twin = demo.prepare("n4")
    config = Path(twin.argv[twin.argv.index("--config") + 1])
    text = config.read_text().replace(str(twin.data_dir), str(data_dir))
    text = text.replace('"n4"', f'"{name}"').replace("/secrets/n4.", f"/secrets/{name}.")
    text = re.sub(rf'\b{name} = "[^"]*", ', "", text, count=1).replace("n4 = ", f"{name} = ")
    config.write_text(text)
    demo.restart("n4")
    return demo.nodes["n4"].pid


def test_disk_of_a_newer_format_is_refused_at_start(own_cluster: Demo, work: WorkTree) -> None:
    demo = own_cluster
    work.commit("first")
    push(demo, work, "n1")
    demo.kill("n3")
    for name in ("node.json", "boots.json"):
        path = demo.nodes["n3"].data_dir / name
        content = path.read_text()
        newer = json.dumps({**json.loads(content), "format_version": 99})
        path.write_text(newer)
        demo.restart("n3")
        assert demo.process_of("n3").wait(timeout=60) == 78
        log = (demo.directory.parent / "n3.restart.log").read_text()
        assert "format version 99" in log
        assert path.read_text() == newer
        path.write_text(content)
    demo.restart("n3")
    eventually(lambda: serves(demo, "n3"), timeout_s=60, what="n3 is back with its own disk")


def test_disk_of_another_cluster_meets_nobody(own_cluster: Demo, work: WorkTree) -> None:
    demo = own_cluster
    work.commit("first")
    push(demo, work, "n1")
    demo.kill("n3")
    path = demo.nodes["n3"].data_dir / "node.json"
    content = json.loads(path.read_text())
    path.write_text(json.dumps({**content, "cluster_id": "another-cluster"}))
    demo.restart("n3")
    log = demo.directory.parent / "n3.restart.log"
    eventually(
        lambda: "belongs to cluster" in (log.read_text() if log.exists() else ""), timeout_s=60,
        what="n3 is told that it is of another cluster",
    )  # fmt: skip
    assert not serves(demo, "n3")
    push(demo, work, "n1")
    assert all(serves(demo, name) for name in ("n1", "n2"))
    demo.kill("n3")
    path.write_text(json.dumps(content))
    demo.restart("n3")
    eventually(lambda: serves(demo, "n3"), timeout_s=60, what="n3 is back with its own disk")


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_no_false_alarm_in_twenty_rolling_restarts_with_kills_under_pushes(
    own_cluster: Demo, work: WorkTree
) -> None:
    _restart_and_check(own_cluster, work, 20)


def test_no_false_alarm_when_nodes_are_killed_at_each_step_of_a_start(
    own_cluster: Demo, work: WorkTree
) -> None:
    """And after the power of all failed at once."""
    demo = own_cluster
    steps = ["boots.before_write", "boots.after_write", "known.before_save", "known.after_save"]
    work.commit("first")
    push(demo, work, "n1")
    for step in steps:
        demo.kill("n3")
        if step.startswith("known"):  # n2 dies as it hears of a start of n3
            demo.kill("n2")
            dies, comes = "n2", "n3"
        else:
            dies, comes = "n3", ""
        before = _core_deaths(demo, dies)
        demo.restart(dies, QUOREPO_FAILPOINTS=f"{step}=kill")
        if comes:
            demo.restart(comes)
        died = functools.partial(_died_again, demo, dies, before)
        eventually(died, timeout_s=60, what=f"{dies} died at {step}")
        demo.kill(dies)
        demo.restart(dies)
        for name in demo.nodes:
            eventually(functools.partial(serves, demo, name), timeout_s=60, what=f"{name} serves")
        push(demo, work, "n1")
    for name in demo.nodes:
        demo.kill(name)
    for name in demo.nodes:
        demo.restart(name)
    for name in demo.nodes:
        eventually(functools.partial(serves, demo, name), timeout_s=60, what=f"{name} serves")
    _check_no_alarm(demo)


def _is_gone(demo: Demo, name: str) -> bool:
    return not demo.nodes[name].alive()


def _core_deaths(demo: Demo, name: str) -> int:
    log = demo.directory.parent / f"{name}.restart.log"
    return log.read_text().count("process ended, restarting") if log.exists() else 0


def _died_again(demo: Demo, name: str, before: int) -> bool:
    return _core_deaths(demo, name) > before


def _restart_and_check(demo: Demo, work: WorkTree, rounds: int) -> None:
    rng = random.Random(1)
    work.commit("first")
    push(demo, work, "n1")
    pusher = Pusher(demo, work, PATH, list(demo.nodes))
    pusher.start()
    try:
        for _ in range(rounds):
            for name in rng.sample(list(demo.nodes), len(demo.nodes)):
                if rng.random() < 0.5:
                    demo.kill(name)
                else:
                    os.kill(demo.nodes[name].pid, signal.SIGTERM)
                    ended = functools.partial(_is_gone, demo, name)
                    eventually(ended, timeout_s=60, what=f"{name} ended")
                demo.restart(name)
                eventually(
                    functools.partial(serves, demo, name), timeout_s=60, what=f"{name} serves"
                )
    finally:
        pusher.finish()
    _check_no_alarm(demo)
    refs = git("ls-remote", demo.url("n1", PATH)).stdout
    assert pusher.acknowledged
    assert all(f"{oid}\t{ref}" in refs for ref, oid in pusher.acknowledged.items())


def _check_no_alarm(demo: Demo) -> None:
    for name, node in demo.nodes.items():
        assert not (node.data_dir / "wrong-disk").exists(), name
        metrics = demo.metrics(name)
        assert "quorepo_wrong_disk 0.0" in metrics
        assert "quorepo_wrong_disk_refusals_total{" not in metrics
