"""A rolling upgrade from the release before, under pushes: what the older nodes do not know is
refused and never reaches their logs, and is taken as soon as all nodes know it.
"""

from __future__ import annotations

import functools
import json
import os
import signal
from pathlib import Path

import pytest
from support.demo import Demo, free_base_port
from support.git import WorkTree, refs_of
from support.membership import (
    WAIT_S,
    add_command,
    lead,
    restart_log,
    start_newcomer,
    wait_until_killed,
)
from support.pusher import RepeatingPusher
from support.waiting import eventually

from quorepo.cluster.state.levels import LEVEL

pytestmark = pytest.mark.system

PATH = "team/repo"
OLDER = {"QUOREPO_TEST_LEVEL": "1"}


def levels(demo: Demo, ask: str) -> tuple[int, dict[str, int]]:
    """The cluster's level and each node's, as a node tells them."""
    told = json.loads(demo.cli("node", "list", "-o", "json", node=ask).stdout)
    return told["level"], {node["name"]: node["level"] for node in told["nodes"]}


def is_ready(demo: Demo, name: str) -> bool:
    process = demo.cli("status", "-o", "json", node=name, check=False)
    nodes = [] if process.returncode else json.loads(process.stdout)["nodes"]
    return any(node["name"] == name and node["ready"] for node in nodes)


def upgrade(demo: Demo, name: str, **environment: str) -> None:
    """As an operator does it: the node ends, and starts with the other program."""
    os.kill(demo.nodes[name].pid, signal.SIGTERM)
    eventually(lambda: not demo.nodes[name].alive(), timeout_s=WAIT_S, what=f"{name} ended")
    demo.restart(name, **environment)
    eventually(functools.partial(is_ready, demo, name), timeout_s=WAIT_S, what=f"{name} serves")


def test_a_rolling_upgrade_takes_new_commands_once_all_nodes_know_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in OLDER.items():
        monkeypatch.setenv(name, value)
    with Demo(tmp_path / "demo", base_port=free_base_port(4)) as demo:
        monkeypatch.delenv("QUOREPO_TEST_LEVEL")
        work = WorkTree(tmp_path / "work")
        work.commit("first")
        work.git("push", "-q", demo.url("n1", PATH), "main")
        assert levels(demo, "n1") == (1, dict.fromkeys(("n1", "n2", "n3"), 1))
        pusher = RepeatingPusher(demo.url("n2", PATH), WorkTree(tmp_path / "pushes"), "p")
        pusher.start()
        try:
            for name in ("n1", "n3"):
                upgrade(demo, name)
                pusher.wait_for_another()
                # Asked at the new node, which knows it; the older ones would end on it.
                refused = demo.cli("node", "drain", "n3", node=name, check=False)
                assert refused.returncode == 1
                assert "needs level 2 of every member" in refused.stderr
                assert "n2 (" in refused.stderr
                assert "nothing was changed" in refused.stderr
                assert levels(demo, name)[0] == 1
            listed = demo.cli("node", "list", node="n1")
            assert "n2 run an older quorepo" in listed.stderr
            pusher.finish()  # n2 is where it pushes to
            upgrade(demo, "n2")
        finally:
            pusher.finish()
        for name in ("n1", "n2", "n3"):
            eventually(
                functools.partial(reached, demo, name), timeout_s=WAIT_S, what=f"{name} knows"
            )
        demo.cli("node", "drain", "n3", node="n1")
        demo.cli("node", "undrain", "n3", node="n1")
        assert pusher.acknowledged
        for name in ("n1", "n2", "n3"):
            refs = refs_of(demo.url(name, PATH))
            assert [r for r, oid in pusher.acknowledged.items() if refs.get(r) != oid] == []
        assert "knows level" not in demo.output()
        nobody_goes_back(demo)


@pytest.mark.slow
@pytest.mark.parametrize("step", ["before_raise", "after_raise"])
def test_a_leader_killed_while_the_level_rises(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, step: str
) -> None:
    """Whoever leads next raises it, or finds it raised."""
    for name, value in OLDER.items():
        monkeypatch.setenv(name, value)
    with Demo(tmp_path / "demo") as demo:
        monkeypatch.delenv("QUOREPO_TEST_LEVEL")
        work = WorkTree(tmp_path / "work")
        oid = work.commit("first")
        work.git("push", "-q", demo.url("n1", PATH), "main")
        upgrade(demo, "n3")
        upgrade(demo, "n1", QUOREPO_FAILPOINTS=f"membership.{step}=kill@1")
        lead(demo, "n1", ask="n3")
        demo.kill("n2")  # it leads nothing, so n1 goes on leading
        demo.restart("n2")
        wait_until_killed(demo, "n1")
        demo.kill("n1")
        demo.restart("n1")
        for name in ("n1", "n2", "n3"):
            eventually(functools.partial(is_ready, demo, name), timeout_s=WAIT_S, what=name)
            eventually(
                functools.partial(reached, demo, name), timeout_s=WAIT_S, what=f"{name} knows"
            )
            assert refs_of(demo.url(name, PATH))["refs/heads/main"] == oid
        demo.cli("node", "drain", "n3", node="n1")  # which only the higher level knows


def reached(demo: Demo, name: str) -> bool:
    return levels(demo, name) == (LEVEL, dict.fromkeys(("n1", "n2", "n3"), LEVEL))


def nobody_goes_back(demo: Demo) -> None:
    """The older program is refused from then on: on a member's disk, and on a newcomer's."""
    start_newcomer(demo, "n4", **OLDER)

    def refused() -> bool:
        said = demo.cli(*add_command(demo, "n4"), node="n1", check=False)
        return said.returncode == 5 and "runs an older quorepo (level 1)" in said.stderr

    eventually(refused, timeout_s=WAIT_S, what="n4 is refused")
    demo.process_of("n3").terminate()
    demo.process_of("n3").wait(timeout=WAIT_S)
    demo.restart("n3", **OLDER)
    assert demo.process_of("n3").wait(timeout=WAIT_S) == 78
    assert f"this cluster is at level {LEVEL}, and this program knows level 1" in restart_log(
        demo, "n3"
    )
