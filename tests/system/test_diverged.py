"""A state that something else than the log has changed: found, named, taken out of service."""

from __future__ import annotations

import json
import shutil
import sqlite3

import pytest
from support.demo import Demo
from support.git import WorkTree, git
from support.waiting import eventually

pytestmark = pytest.mark.system

PATH = "kept/repo"


def serves(demo: Demo, name: str) -> bool:
    return git("ls-remote", demo.url(name, PATH), check=False).returncode == 0


def test_edited_row_is_found_and_the_replica_stops_serving(
    own_cluster: Demo, work: WorkTree
) -> None:
    demo = own_cluster
    work.commit("first")
    work.git("push", "--quiet", demo.url("n1", PATH), "main")
    eventually(lambda: serves(demo, "n3"), timeout_s=60, what="n3 has it")
    assert demo.cli("cluster", "verify", node="n1").returncode == 0  # no false alarm
    demo.kill("n3")
    group = demo.nodes["n3"].data_dir / "groups" / "1"
    (state,) = group.glob("state.*.sqlite3")
    with sqlite3.connect(state) as connection:
        connection.execute("UPDATE refs SET name = x'726566732f68656164732f6576696c'")
        connection.execute("UPDATE repositories SET checksum = zeroblob(32)")
    connection.close()
    demo.restart("n3")
    eventually(lambda: serves(demo, "n3"), timeout_s=60, what="n3 serves what is wrong")
    found = demo.cli("cluster", "verify", "-o", "json", node="n1", check=False)
    assert found.returncode == 6
    faults = {n["node"]: n["faults"] for n in json.loads(found.stdout)["nodes"]}
    assert [fault["kind"] for fault in faults["n3"]] == ["diverged"], found.stdout
    assert not faults["n1"]
    assert not faults["n2"]
    marker = demo.nodes["n3"].data_dir / "wrong-disk"
    eventually(marker.exists, timeout_s=60, what="n3 is out of service")
    assert json.loads(marker.read_text())["reason"] == "diverged"
    assert not serves(demo, "n3")
    assert all(serves(demo, name) for name in ("n1", "n2"))
    work.commit("second")
    work.git("push", "--quiet", demo.url("n1", PATH), "main")
    demo.kill("n3")
    shutil.rmtree(demo.nodes["n3"].data_dir)
    demo.restart("n3")
    eventually(lambda: serves(demo, "n3"), timeout_s=60, what="n3 was built anew")
