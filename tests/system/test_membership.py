"""Nodes come and go under pushes, and leaders die in the middle: nothing acknowledged is lost, and
every change ends in the old configuration or the new one.
"""

from __future__ import annotations

import json
import re
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from chaos.replace_all import replace_all
from support.demo import Demo, free_base_port
from support.git import WorkTree, git
from support.waiting import eventually

pytestmark = pytest.mark.system

STORAGE = 1
DIED = re.compile(r"killed by SIGKILL|worker died")
STEPS = (
    "before_add", "after_add", "before_promote", "after_promote",
    "before_remove", "after_remove", "before_end", "after_end",
)  # fmt: skip


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[Demo]:
    with Demo(tmp_path / "demo", base_port=free_base_port(4)) as running:
        yield running


class Pusher(threading.Thread):
    """Pushes commit after commit; remembers what was acknowledged."""

    def __init__(self, demo: Demo, work: WorkTree, node: str) -> None:
        super().__init__()
        self._url = demo.url(node, "team/repo")
        self._work = work
        self.stop = threading.Event()
        self.acknowledged: list[str] = []

    def run(self) -> None:
        number = 0
        while not self.stop.is_set():
            number += 1
            self._work.commit(f"number {number}")
            ref = f"main:refs/heads/b{number}"
            if not self._work.git("push", "-q", self._url, ref, check=False).returncode:
                self.acknowledged.append(f"refs/heads/b{number}")


def members(demo: Demo, ask: str) -> dict[str, str]:
    nodes = json.loads(demo.cli("node", "list", "-o", "json", node=ask).stdout)["nodes"]
    return {node["name"]: node["member"] for node in nodes}


def test_a_node_comes_and_the_leader_goes_under_pushes(demo: Demo, work: WorkTree) -> None:
    demo.prepare("n4")
    demo.restart("n4")
    pusher = Pusher(demo, work, "n2")
    pusher.start()
    try:
        address = f"127.0.0.1:{demo.base_port + 33}"
        eventually(
            lambda: not demo.cli(
                "node", "add", "n4", "--peer-address", address, "--yes", check=False
            ).returncode,
            timeout_s=60, what="n4 added",
        )  # fmt: skip
        assert members(demo, "n2")["n4"] == "voter"
        demo.cli("cluster", "transfer-leader", "--to", "n1", node="n2")
        planned = demo.cli("node", "remove", "n1", "--dry-run", node="n2").stderr
        assert "4 voters, 4 reachable, majority 3; after removal 3 voters, majority 2" in planned
        demo.cli("node", "remove", "n1", "--yes", node="n2")
        assert members(demo, "n2").keys() == {"n2", "n3", "n4"}
    finally:
        pusher.stop.set()
        pusher.join()
    assert pusher.acknowledged
    for name in ("n2", "n4"):
        listed = git("ls-remote", demo.url(name, "team/repo")).stdout
        assert [ref for ref in pusher.acknowledged if f"{ref}\n" not in listed] == []
    told = json.loads(demo.cli("cluster", "history", "-o", "json", node="n2").stdout)
    assert [(c["kind"], c["node"], c["state"]) for c in told["changes"]] == [
        ("remove", "n1", "done"),
        ("add", "n4", "done"),
    ]


def test_a_drained_node_leads_nothing_and_takes_no_pushes(demo: Demo, work: WorkTree) -> None:
    work.commit("first")
    demo.cli("cluster", "transfer-leader", "--to", "n2")
    demo.cli("node", "drain", "n2")
    eventually(lambda: demo.leader(STORAGE, ask="n1") != "n2", what="n2 handed over")

    def refused() -> bool:
        push = work.git("push", "-q", demo.url("n2", "team/repo"), "main", check=False)
        return "is drained and takes no pushes" in push.stderr

    eventually(refused, what="n2 refuses pushes")
    work.git("push", "-q", demo.url("n1", "team/repo"), "main")
    assert git("ls-remote", demo.url("n2", "team/repo")).stdout
    demo.cli("node", "undrain", "n2")
    eventually(
        lambda: (
            not work.git(
                "push", "-q", demo.url("n2", "team/repo"), "main:other", check=False
            ).returncode
        ),
        what="n2 takes pushes again",
    )


@pytest.mark.parametrize(
    "step",
    [pytest.param(s, marks=() if s == "after_promote" else pytest.mark.slow) for s in STEPS],
)
def test_a_leader_killed_in_the_middle_of_a_step(demo: Demo, work: WorkTree, step: str) -> None:
    work.commit("first")
    work.git("push", "-q", demo.url("n2", "team/repo"), "main")
    demo.prepare("n4")
    demo.restart("n4")
    demo.kill("n1")
    demo.restart("n1", QUOREPO_FAILPOINTS=f"membership.{step}=kill@1")
    eventually(
        lambda: not demo.cli(
            "cluster", "transfer-leader", "--to", "n1", node="n2", check=False
        ).returncode,
        timeout_s=60, what="n1 leads",
    )  # fmt: skip
    address = f"127.0.0.1:{demo.base_port + 33}"
    add = ("node", "add", "n4", "--peer-address", address, "--yes")
    eventually(
        lambda: not demo.cli(*add, node="n2", check=False).returncode
        or members(demo, "n2").get("n4") == "voter",
        timeout_s=60, what="n4 added",
    )  # fmt: skip
    demo.cli("node", "remove", "n3", "--yes", node="n2")
    assert members(demo, "n2") == {"n1": "voter", "n2": "voter", "n4": "voter"}
    log = demo.directory.parent / "n1.restart.log"
    assert DIED.search(log.read_text()), "the failpoint was never reached: nothing was tested"
    work.commit("second")
    work.git("push", "-q", demo.url("n4", "team/repo"), "main")


@pytest.mark.slow
def test_every_original_node_is_replaced_under_pushes_and_clones(tmp_path: Path) -> None:
    assert replace_all(tmp_path)
