"""A disk that was given up turns up again: its votes and its state must not count any more."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from support.demo import Demo
from support.git import WorkTree, git
from support.waiting import eventually

pytestmark = pytest.mark.system

STORAGE = 1


def serves(demo: Demo, name: str) -> bool:
    return git("ls-remote", demo.url(name, "kept/repo"), check=False).returncode == 0


def test_replica_that_was_replaced_is_refused_by_name(
    own_cluster: Demo, work: WorkTree, tmp_path: Path
) -> None:
    demo = own_cluster
    work.commit("first")
    work.git("push", "--quiet", demo.url("n1", "kept/repo"), "main")
    leader = demo.leader(STORAGE)
    lost = next(name for name in demo.nodes if name != leader)
    data_dir = demo.nodes[lost].data_dir
    demo.kill(lost)
    shutil.move(data_dir, tmp_path / "old-disk")
    demo.restart(lost)
    eventually(lambda: serves(demo, lost), timeout_s=40, what=f"{lost} serves with an empty disk")
    demo.kill(lost)
    shutil.rmtree(data_dir)
    shutil.move(tmp_path / "old-disk", data_dir)
    demo.restart(lost)

    log = tmp_path / f"{lost}.restart.log"
    others = [name for name in demo.nodes if name != lost]
    eventually(
        lambda: log.read_text().count("was removed from this cluster and never comes back") >= 2,
        timeout_s=40, what=f"{lost} is told why by both others",
    )  # fmt: skip
    for name in others:
        assert "was removed from this cluster" in (demo.directory / f"logs/{name}.log").read_text()
    assert not serves(demo, lost)
    work.commit("without the old disk")
    work.git("push", "--quiet", demo.url(others[0], "kept/repo"), "main")
