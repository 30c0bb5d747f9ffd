"""All nodes restarted one after the other, as an operator upgrades them: a push to a node that is
not restarting never fails, and one that failed at the restarting node succeeds when repeated.
"""

from __future__ import annotations

import functools
import json
import os
import signal
import time
from pathlib import Path

import pytest
from support.demo import Demo
from support.git import WorkTree, refs_of
from support.pusher import RepeatingPusher, longest_gap_s
from support.waiting import eventually

pytestmark = pytest.mark.system

PATH = "team/repo"


def is_ready(demo: Demo, name: str) -> bool:
    """Whether the node says of itself that it serves."""
    process = demo.cli("status", "-o", "json", node=name, check=False)
    nodes = [] if process.returncode else json.loads(process.stdout)["nodes"]
    return any(node["name"] == name and node["ready"] for node in nodes)


def restart_gently(demo: Demo, name: str) -> None:
    """As systemd does it: SIGTERM, and the next start once the process is gone."""
    os.kill(demo.nodes[name].pid, signal.SIGTERM)
    eventually(lambda: not demo.nodes[name].alive(), timeout_s=60, what=f"{name} ended")
    demo.restart(name)


def test_every_node_restarted_in_turn_under_pushes(own_cluster: Demo, tmp_path: Path) -> None:
    demo = own_cluster
    names = list(demo.nodes)
    first = WorkTree(tmp_path / "first")
    first.commit("first")
    first.git("push", "-q", demo.url("n1", PATH), "main")
    pushers = {
        name: RepeatingPusher(demo.url(name, PATH), WorkTree(tmp_path / f"work-{name}"), name)
        for name in names
    }
    restarting: dict[str, tuple[float, float]] = {}
    for pusher in pushers.values():
        pusher.start()
    try:
        for name in names:
            pushers[name].wait_for_another()
            began = time.monotonic()
            restart_gently(demo, name)
            eventually(
                functools.partial(is_ready, demo, name), timeout_s=60, what=f"{name} serves again"
            )
            restarting[name] = (began, time.monotonic())
            # The node that was away takes pushes; so do the others.
            for pusher in pushers.values():
                pusher.wait_for_another()
    finally:
        for pusher in pushers.values():
            pusher.finish()
    for name, pusher in pushers.items():
        began, ended = restarting[name]
        elsewhere = [f for f in pusher.failures if f.ended < began or f.started > ended]
        assert elsewhere == [], f"a push to {name} failed while {name} was not restarting"
        assert not pusher.open, "repeated, and still not acknowledged"
    for name in names:
        refs = refs_of(demo.url(name, PATH))
        lost = {
            ref: oid
            for pusher in pushers.values()
            for ref, oid in pusher.acknowledged.items()
            if refs.get(ref) != oid
        }
        assert lost == {}, f"acknowledged, and not on {name}"
    failed = {name: len(pusher.failures) for name, pusher in pushers.items()}
    print(
        f"{sum(len(p.acknowledged) for p in pushers.values())} pushes acknowledged, 0 lost; "
        f"failed at the restarting node and repeated: {failed}; "
        f"longest write gap {longest_gap_s(pushers.values()):.2f} s"
    )
