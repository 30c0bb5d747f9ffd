"""A leader killed in the middle of any step that changes the members, drains a node or hands over:
the cluster ends in the old configuration or in the new one, and the next change goes through.
"""

from __future__ import annotations

import functools
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
    restart_with_failpoint,
    start_newcomer,
    wait_for_change,
    wait_until_killed,
    wait_until_waiting,
    wipe,
)
from support.waiting import eventually

pytestmark = pytest.mark.system

PATH = "team/repo"


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[Demo]:
    with Demo(tmp_path / "demo", base_port=free_base_port(4)) as running:
        yield running


@pytest.fixture
def pushed(demo: Demo, work: WorkTree) -> dict[str, str]:
    """What was acknowledged before the fault."""
    oid = work.commit("first")
    work.git("push", "-q", demo.url("n2", PATH), "main")
    return {"refs/heads/main": oid}


def slow_but(first: str, *steps: str) -> list[object]:
    """Cases of which one is always run."""
    return [first, *(pytest.param(step, marks=pytest.mark.slow) for step in steps)]


def all_is_well(demo: Demo, work: WorkTree, pushed: dict[str, str], *names: str) -> None:
    """Exactly these vote, in both groups alike; nothing was lost, and writes go on."""

    def settled() -> bool:
        groups = configurations(demo, "n2")
        return (
            change(demo, "n2") is None
            and members(demo, "n2") == dict.fromkeys(names, "voter")
            and all(
                sorted(r.partition("@")[0] for r in group) == sorted(names) and all(group.values())
                for group in groups.values()
            )
        )

    eventually(settled, timeout_s=WAIT_S, what=f"{names} vote everywhere")
    oid = work.commit("after the fault")
    eventually(
        lambda: work.git("push", "-q", demo.url("n2", PATH), f"{oid}:refs/heads/after", check=False)
        .returncode == 0,
        timeout_s=WAIT_S, what="a push after the fault",
    )  # fmt: skip
    for name in names:
        eventually(
            functools.partial(has, demo, name, {**pushed, "refs/heads/after": oid}),
            timeout_s=WAIT_S, what=f"{name} has everything",
        )  # fmt: skip


def has(demo: Demo, name: str, wanted: dict[str, str]) -> bool:
    refs = refs_of(demo.url(name, PATH))
    return all(refs.get(ref) == oid for ref, oid in wanted.items())


@pytest.mark.parametrize(
    "step",
    slow_but("after_add", "before_remove", "after_remove", "before_add", "before_promote",
             "after_promote"),
)  # fmt: skip
def test_a_replaced_node_whose_leader_dies(
    demo: Demo, work: WorkTree, pushed: dict[str, str], step: str
) -> None:
    """n3 comes on an empty disk: its old replica goes first, the new one learns, then votes."""
    (old,) = (r for r in configurations(demo, "n2")[1] if r.startswith("n3@"))
    demo.kill("n3")
    wipe(demo, "n3")
    restart_with_failpoint(demo, "n1", f"membership.{step}=kill@1", ask="n2")
    demo.restart("n3")
    wait_until_killed(demo, "n1")
    all_is_well(demo, work, pushed, "n1", "n2", "n3")
    assert all(old not in group for group in configurations(demo, "n2").values())


@pytest.mark.slow
@pytest.mark.parametrize("step", ["after_remove", "before_remove", "before_end", "after_end"])
def test_a_newcomer_that_is_taken_back_while_the_leader_dies(
    demo: Demo, work: WorkTree, pushed: dict[str, str], step: str
) -> None:
    start_newcomer(demo, "n4", QUOREPO_FAILPOINTS="raft.append.before_reply=kill")
    wait_until_waiting(demo, "n4", "n2")
    restart_with_failpoint(demo, "n1", f"membership.{step}=kill@1", ask="n2")
    with background(demo, *add_command(demo, "n4"), node="n2") as adding:
        wait_for_change(demo, "n2", "add")
        wait_until_killed(demo, "n4")
        demo.kill("n4")
        demo.cli("node", "cancel", node="n2")
        wait_until_killed(demo, "n1")
        adding.communicate(timeout=WAIT_S)
    all_is_well(demo, work, pushed, "n1", "n2", "n3")


@pytest.mark.parametrize(
    "step",
    slow_but("before_transfer", "after_transfer", "before_mark", "after_mark"),
)
def test_a_node_that_is_drained_while_the_leader_dies(
    demo: Demo, work: WorkTree, pushed: dict[str, str], step: str
) -> None:
    """`transfer` is a step of the node that is drained, `mark` one of whoever leads."""
    restart_with_failpoint(demo, "n1", f"membership.{step}=kill@1", ask="n2")
    drained = "n1" if step.endswith("transfer") else "n3"
    demo.cli("node", "drain", drained, node="n2")
    wait_until_killed(demo, "n1")

    def is_drained() -> bool:
        nodes = {node["name"]: node for node in demo.status("n2")["nodes"]}
        return bool(nodes[drained]["phase"] == "drained")

    eventually(is_drained, timeout_s=WAIT_S, what=f"{drained} is drained")
    oid = work.commit("while it is drained")
    work.git("push", "-q", demo.url("n2", PATH), f"{oid}:refs/heads/drained")
    demo.cli("node", "undrain", drained, node="n2")
    all_is_well(demo, work, {**pushed, "refs/heads/drained": oid}, "n1", "n2", "n3")
    assert demo.cli("cluster", "transfer-leader", "--to", drained, node="n2").returncode == 0


@pytest.mark.slow
@pytest.mark.parametrize("step", ["before_promote", "after_promote", "before_end"])
def test_a_learner_that_is_promoted_while_the_leader_dies(
    demo: Demo, work: WorkTree, pushed: dict[str, str], step: str
) -> None:
    """The command is asked of the node that dies, and waits until it is back."""
    start_newcomer(demo, "n4")
    wait_until_waiting(demo, "n4", "n2")
    demo.cli(*add_command(demo, "n4", "--learner"), node="n2")
    assert members(demo, "n2")["n4"] == "learner"
    restart_with_failpoint(demo, "n1", f"membership.{step}=kill@1", ask="n2")
    with background(demo, "node", "promote", "n4", "--yes", node="n1") as promoting:
        wait_until_killed(demo, "n1")
        _, said = promoting.communicate(timeout=WAIT_S)
        assert promoting.returncode == 0 or "goes on without this command" in said, said
    all_is_well(demo, work, pushed, "n1", "n2", "n3", "n4")
