"""What goes wrong while the members change: two at once, twice the same, newcomers that die or are
cut off, disks that are gone. Every change ends in the old configuration or in the new one.
"""

from __future__ import annotations

import contextlib
import functools
import json
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.demo import Demo, free_base_port
from support.git import WorkTree, refs_of
from support.membership import (
    WAIT_S,
    add_command,
    background,
    change,
    configurations,
    members,
    restart_log,
    start_newcomer,
    wait_until_killed,
    wait_until_waiting,
    wipe,
)
from support.waiting import eventually

pytestmark = pytest.mark.system

PATH = "team/repo"
STORAGE = 1


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[Demo]:
    with Demo(tmp_path / "demo", base_port=free_base_port(5)) as running:
        yield running


def replica(demo: Demo, name: str, ask: str) -> list[str]:
    """The replica ids of a node, in any group, as a member knows them."""
    found = {r for group in configurations(demo, ask).values() for r in group}
    return sorted(r for r in found if r.startswith(f"{name}@"))


def push(demo: Demo, work: WorkTree, node: str, ref: str) -> str:
    """One more commit, acknowledged."""
    oid = work.commit(ref)
    work.git("push", "-q", demo.url(node, PATH), f"{oid}:{ref}")
    return oid


def is_in(demo: Demo, name: str) -> bool:
    """Asks for a node to be added, unless it is a voter."""
    added = demo.cli(*add_command(demo, name), node="n1", check=False).returncode == 0
    return added or members(demo, "n1").get(name) == "voter"


def votes(demo: Demo, ask: str, *names: str) -> None:
    """Waits until exactly these nodes vote, and there is nobody else."""
    eventually(
        lambda: members(demo, ask) == dict.fromkeys(names, "voter"),
        timeout_s=WAIT_S, what=f"the members are {names}",
    )  # fmt: skip


def test_two_nodes_added_at_once_and_one_of_them_twice(demo: Demo, work: WorkTree) -> None:
    push(demo, work, "n1", "refs/heads/first")
    for name in ("n4", "n5"):
        start_newcomer(demo, name)
        wait_until_waiting(demo, name, "n1")
    # Three operators, at three nodes.
    commands = [("n1", "n4"), ("n2", "n5"), ("n3", "n4")]
    with contextlib.ExitStack() as stack:
        running = [
            stack.enter_context(background(demo, *add_command(demo, name), node=at))
            for at, name in commands
        ]
        said = [process.communicate(timeout=WAIT_S)[1] for process in running]
    won = [name for (_, name), process in zip(commands, running, strict=True)
           if process.returncode == 0]  # fmt: skip
    assert won, said
    for process, words in zip(running, said, strict=True):
        if process.returncode:
            assert process.returncode in (1, 5), words
            assert "change of the members is under way" in words or "is under way" in words \
                or "is a member already" in words, words  # fmt: skip
            assert "nothing was changed" in words
    for name in ("n4", "n5"):
        eventually(functools.partial(is_in, demo, name), timeout_s=WAIT_S, what=f"{name} is in")
    votes(demo, "n1", "n1", "n2", "n3", "n4", "n5")
    assert all(len(group) == 5 for group in configurations(demo, "n1").values())
    again = demo.cli(*add_command(demo, "n4"), node="n1", check=False)
    assert again.returncode == 5
    assert "node 'n4' is a member already" in again.stderr
    history = json.loads(demo.cli("cluster", "history", "-o", "json").stdout)["changes"]
    assert sorted((c["kind"], c["node"], c["state"]) for c in history) == [
        ("add", "n4", "done"),
        ("add", "n5", "done"),
    ]
    push(demo, work, "n5", "refs/heads/second")


@pytest.mark.slow
def test_a_newcomer_that_dies_counts_for_nothing_and_goes_on_when_it_is_back(
    demo: Demo, work: WorkTree
) -> None:
    """It is killed before its first answer to the leader; no write waits for it."""
    push(demo, work, "n1", "refs/heads/first")
    start_newcomer(demo, "n4", QUOREPO_FAILPOINTS="raft.append.before_reply=kill")
    wait_until_waiting(demo, "n4", "n1")
    with background(demo, *add_command(demo, "n4"), node="n1") as adding:
        wait_until_killed(demo, "n4")
        demo.kill("n4")
        push(demo, work, "n2", "refs/heads/without-it")
        # The two others decide without it: three voters, not four.
        demo.kill("n3")
        push(demo, work, "n2", "refs/heads/without-both")
        demo.restart("n3")
        assert members(demo, "n1")["n4"] == "learner"
        running = change(demo, "n1")
        assert running is not None
        assert (running["kind"], running["node"], running["state"]) == ("add", "n4", "running")
        demo.restart("n4")
        _, said = adding.communicate(timeout=WAIT_S)
        assert adding.returncode == 0, said
        assert "not reachable" in said, "why it waited was told"
    votes(demo, "n1", "n1", "n2", "n3", "n4")
    oid = push(demo, work, "n4", "refs/heads/with-it")
    assert refs_of(demo.url("n4", PATH))["refs/heads/with-it"] == oid


def test_a_newcomer_that_never_comes_back_is_taken_back_and_leaves_nothing(
    demo: Demo, work: WorkTree
) -> None:
    push(demo, work, "n1", "refs/heads/first")
    start_newcomer(demo, "n4", QUOREPO_FAILPOINTS="raft.append.before_reply=kill")
    wait_until_waiting(demo, "n4", "n1")
    with background(demo, *add_command(demo, "n4"), node="n1") as adding:
        wait_until_killed(demo, "n4")
        demo.kill("n4")
        eventually(lambda: replica(demo, "n4", "n1"), timeout_s=WAIT_S, what="n4 is a learner")
        (old,) = replica(demo, "n4", "n1")
        refused = demo.cli("node", "drain", "n4", node="n2", check=False)
        assert refused.returncode in (1, 5)
        demo.cli("node", "cancel", node="n2")
        adding.communicate(timeout=WAIT_S)
    eventually(lambda: change(demo, "n1") is None, timeout_s=WAIT_S, what="it was taken back")
    for ask in ("n1", "n2", "n3"):
        votes(demo, ask, "n1", "n2", "n3")
        assert replica(demo, "n4", ask) == []
    push(demo, work, "n3", "refs/heads/second")
    # What it was can't come back; on an empty disk the machine is somebody else.
    demo.restart("n4")
    refused = demo.cli(*add_command(demo, "n4"), node="n1", check=False)
    eventually(
        lambda: f"{old!r} was removed from this cluster for good"
        in demo.cli(*add_command(demo, "n4"), node="n1", check=False).stderr,
        timeout_s=WAIT_S, what="the old replica is refused",
    )  # fmt: skip
    demo.kill("n4")
    wipe(demo, "n4")
    demo.restart("n4")
    eventually(
        lambda: demo.cli(*add_command(demo, "n4"), node="n1", check=False).returncode == 0,
        timeout_s=WAIT_S, what="n4 is added anew",
    )  # fmt: skip
    votes(demo, "n1", "n1", "n2", "n3", "n4")
    assert replica(demo, "n4", "n1") != [old]


@pytest.mark.slow
def test_a_dead_node_is_replaced_and_its_old_disk_never_votes_again(
    demo: Demo, work: WorkTree
) -> None:
    """n3's machine is gone; another one takes its name. Then the old disk turns up again."""
    push(demo, work, "n1", "refs/heads/first")
    (old,) = replica(demo, "n3", "n1")
    demo.kill("n3")
    data = demo.nodes["n3"].data_dir
    aside = data.rename(data.with_name("n3.old"))
    oid = push(demo, work, "n1", "refs/heads/second")
    demo.restart("n3")
    votes(demo, "n1", "n1", "n2", "n3")
    eventually(
        lambda: replica(demo, "n3", "n1") not in ([], [old]), timeout_s=WAIT_S, what="a new id"
    )
    (new,) = replica(demo, "n3", "n1")
    eventually(
        lambda: refs_of(demo.url("n3", PATH)).get("refs/heads/second") == oid,
        timeout_s=WAIT_S, what="n3 serves what it missed",
    )  # fmt: skip
    demo.kill("n3")
    wipe(demo, "n3")
    data.rmdir()
    aside.rename(data)
    demo.restart("n3")
    eventually(
        lambda: f"replica {old!r} was removed from this cluster" in restart_log(demo, "n3"),
        timeout_s=WAIT_S, what="the old disk is told",
    )  # fmt: skip
    assert replica(demo, "n3", "n1") == [new]
    # It takes no pushes and gives no votes: with n2 gone too there is no majority.
    demo.kill("n2")
    work.commit("third")
    assert work.git("push", "-q", demo.url("n1", PATH), "main", check=False).returncode != 0

    nodes = demo.status("n1")["nodes"]
    assert not any(node["ready"] for node in nodes if node["name"] in ("n2", "n3"))
