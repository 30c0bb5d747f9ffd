"""kill -9 of any node: nothing acknowledged is lost, writes go on, the node comes back."""

from __future__ import annotations

import os
import shutil
import threading
import time
from pathlib import Path

import pytest
from support.demo import Demo
from support.git import WorkTree, clone, git, refs_of
from support.pusher import Pusher
from support.waiting import eventually

pytestmark = pytest.mark.system

STORAGE = 1


@pytest.mark.parametrize("victim", ["leader", "follower"])
def test_acknowledged_pushes_survive_kill_of_a_node(
    own_cluster: Demo, work: WorkTree, tmp_path: Path, victim: str
) -> None:
    demo = own_cluster
    leader = demo.leader(STORAGE)
    killed = leader if victim == "leader" else next(n for n in demo.nodes if n != leader)
    survivors = [name for name in demo.nodes if name != killed]
    pusher = Pusher(demo, work, "chaos/repo", survivors)
    pusher.start()
    pusher.wait_for(3)
    demo.kill(killed)
    pusher.wait_for(5)
    pusher.finish()
    for name in survivors:
        pusher.check(refs_of(demo.url(name, "chaos/repo")))
    clone(demo.url(survivors[0], "chaos/repo"), tmp_path / "clone", "--mirror")
    # The node, started again, catches up by itself and serves.
    demo.restart(killed)
    eventually(
        lambda: git("ls-remote", demo.url(killed, "chaos/repo"), check=False).returncode == 0,
        what=f"{killed} serves",
    )
    pusher.check(refs_of(demo.url(killed, "chaos/repo")))
    clone(demo.url(killed, "chaos/repo"), tmp_path / "again", "--mirror")


def test_pushes_through_the_api_survive_kill_of_the_leader(
    own_cluster: Demo, work: WorkTree
) -> None:
    """The leader is among those that are pushed to: a push that breaks off is neither acknowledged
    nor refused, and git is told so."""
    demo = own_cluster
    leader = demo.leader(STORAGE)
    survivors = [name for name in demo.nodes if name != leader]
    pusher = Pusher(demo, work, "chaos/api", [leader, *survivors], api=True)
    pusher.start()
    pusher.wait_for(3)
    demo.kill(leader)
    pusher.wait_for(4)
    pusher.finish()
    for name in survivors:
        pusher.check(refs_of(demo.url(name, "chaos/api")))


def test_clones_go_on_while_the_leader_dies(
    own_cluster: Demo, work: WorkTree, tmp_path: Path
) -> None:
    demo = own_cluster
    for number in range(4):
        work.commit(f"change {number}", {f"random{number}": os.urandom(2 * 1024 * 1024)})
    work.git("push", "--quiet", demo.url("n1", "clones/repo"), "main")
    leader = demo.leader(STORAGE)
    survivor = next(name for name in demo.nodes if name != leader)
    stop, failures = threading.Event(), []

    def clone_again_and_again() -> None:
        number = 0
        while not stop.is_set():
            number += 1
            target = tmp_path / f"clone{number}"
            try:
                clone(demo.url(survivor, "clones/repo"), target)
            except AssertionError as error:
                failures.append(str(error))
            shutil.rmtree(target, ignore_errors=True)
            done.set()

    done = threading.Event()
    cloner = threading.Thread(target=clone_again_and_again, daemon=True)
    cloner.start()
    assert done.wait(30)
    demo.kill(leader)
    done.clear()
    assert done.wait(30)
    done.clear()
    assert done.wait(30), "and once more with the new leader"
    stop.set()
    cloner.join(60)
    assert failures == []


def test_node_with_an_emptied_disk_comes_back(
    own_cluster: Demo, work: WorkTree, tmp_path: Path
) -> None:
    demo = own_cluster
    for number in range(5):
        work.commit(f"change {number}")
        work.git("push", "--quiet", demo.url("n1", "kept/repo"), "main")
    killed = demo.leader(STORAGE)
    demo.kill(killed)
    shutil.rmtree(demo.nodes[killed].data_dir)
    demo.restart(killed)
    eventually(
        lambda: git("ls-remote", demo.url(killed, "kept/repo"), check=False).returncode == 0,
        timeout_s=40, what=f"{killed} serves again",
    )  # fmt: skip
    target = clone(demo.url(killed, "kept/repo"), tmp_path / "clone")
    assert git("rev-parse", "HEAD", cwd=target).stdout.strip() == work.head()
    # It votes again: the cluster survives the loss of another node.

    def all_vote() -> bool:
        groups = demo.status(killed)["groups"]
        return all(
            len(group["replicas"]) == 3
            and all(replica["role"] in ("leader", "voter") for replica in group["replicas"])
            for group in groups
        )

    eventually(all_vote, timeout_s=40, what="three voters in every group")
    other = next(name for name in demo.nodes if name != killed)
    demo.kill(other)
    work.commit("with the newcomer's vote")
    url = demo.url(killed, "kept/repo")
    eventually(
        lambda: work.git("push", url, "main", check=False).returncode == 0,
        timeout_s=40, what="push through the newcomer",
    )  # fmt: skip


def test_minority_refuses_and_changes_nothing(own_cluster: Demo, work: WorkTree) -> None:
    demo = own_cluster
    first = work.commit("first")
    work.git("push", "--quiet", demo.url("n1", "minority/repo"), "main")
    demo.kill("n2")
    demo.kill("n3")
    work.commit("never acknowledged")
    started = time.monotonic()
    refused = work.git("push", demo.url("n1", "minority/repo"), "main", check=False)
    assert refused.returncode != 0
    assert "no leader" in refused.stderr
    assert time.monotonic() - started < 30
    read = git("ls-remote", demo.url("n1", "minority/repo"), check=False)
    assert read.returncode != 0
    assert "no leader" in read.stderr
    demo.restart("n2")
    demo.restart("n3")
    refs = eventually(
        lambda: _refs_or_nothing(demo.url("n2", "minority/repo")), timeout_s=40, what="n2 serves"
    )
    assert refs["refs/heads/main"] == first


def _refs_or_nothing(url: str) -> dict[str, str]:
    process = git("ls-remote", url, check=False)
    return {} if process.returncode else refs_of(url)


def test_killed_supervisor_takes_its_children_along(own_cluster: Demo) -> None:
    demo = own_cluster
    node = demo.nodes["n2"]
    children = _descendants(node.pid)
    assert len(children) >= 2
    demo.kill("n2")
    eventually(
        lambda: not any(Path(f"/proc/{pid}").exists() for pid in children),
        timeout_s=5, what="children ended",
    )  # fmt: skip
    assert demo.process.poll() is None, "the demo goes on without the node"


def _descendants(pid: int) -> list[int]:
    found = []
    for task in Path(f"/proc/{pid}/task").iterdir():
        for child in (task / "children").read_text().split():
            found += [int(child), *_descendants(int(child))]
    return found


def test_demo_started_again_finds_the_same_repositories(tmp_path: Path, work: WorkTree) -> None:
    oid = work.commit("first")
    with Demo(tmp_path / "demo") as demo:
        work.git("push", "--quiet", demo.url("n1", "again/repo"), "main")
        token = demo.token
    with Demo(tmp_path / "demo", base_port=demo.base_port) as demo:
        assert demo.token == token
        for name in demo.nodes:
            assert refs_of(demo.url(name, "again/repo"))["refs/heads/main"] == oid


def test_ephemeral_demo_leaves_no_data(tmp_path: Path, work: WorkTree) -> None:
    work.commit("first")
    with Demo(tmp_path / "demo", "--ephemeral") as demo:
        work.git("push", "--quiet", demo.url("n1", "gone/repo"), "main")
    assert not any((tmp_path / "demo" / name).exists() for name in ("n1", "n2", "n3"))
