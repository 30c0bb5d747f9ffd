"""`quorepo node replace`: a dead node's disk is empty, and nobody takes it back by itself."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from chaos import lost_majority, replace_dead
from support.demo import Demo
from support.git import WorkTree, git
from support.membership import WAIT_S, configurations, members, restart_log, wipe
from support.waiting import eventually

pytestmark = pytest.mark.system

PATH = "team/repo"
REFUSED = 5
# What `quorepo init` writes; a demo lets an emptied node come back by itself.
WAITS = {"QUOREPO_CLUSTER__REJOIN_EMPTY": "false"}


def replica(demo: Demo, name: str, ask: str) -> set[str]:
    """The replica ids of a node, in any group, as a member knows them."""
    found = {r for group in configurations(demo, ask).values() for r in group}
    return {r for r in found if r.startswith(f"{name}@")}


def push(demo: Demo, work: WorkTree, node: str, ref: str) -> str:
    """One more commit, acknowledged; repeated while a leader is looked for."""
    oid = work.commit(ref)
    url = demo.url(node, PATH)
    eventually(
        lambda: work.git("push", "-q", url, f"{oid}:{ref}", check=False).returncode == 0,
        timeout_s=WAIT_S, what=f"a push of {ref} to {node}",
    )  # fmt: skip
    return oid


def refs(demo: Demo, node: str) -> str:
    """Its refs, as `git ls-remote` shows them; nothing while it does not serve."""
    return git("ls-remote", demo.url(node, PATH), check=False).stdout


def phase(demo: Demo, name: str) -> str:
    """What the node says of itself."""
    asked = demo.cli("status", "-o", "json", node=name, check=False)
    nodes = json.loads(asked.stdout)["nodes"] if asked.returncode == 0 else []
    return next((str(node["phase"]) for node in nodes if node["name"] == name), "")


def replace(demo: Demo, *options: str, node: str = "n3") -> tuple[int, str]:
    done = demo.cli("node", "replace", node, *options, node="n1", check=False)
    return done.returncode, done.stdout + done.stderr


def test_an_emptied_node_waits_and_is_replaced_by_command(
    own_cluster: Demo, work: WorkTree, tmp_path: Path
) -> None:
    demo = own_cluster
    push(demo, work, "n1", "refs/heads/first")
    (old,) = replica(demo, "n3", "n1")
    data_dir = demo.nodes["n3"].data_dir
    demo.kill("n3")
    shutil.copytree(data_dir, tmp_path / "old-disk")
    wipe(demo, "n3")
    missed = push(demo, work, "n1", "refs/heads/second")

    code, said = replace(demo, "--yes")
    assert code == REFUSED
    assert "start it first: quorepo serve on that machine; nothing was changed" in said
    assert "2. a new replica of n3 becomes a learner in every group" in said

    demo.restart("n3", **WAITS)
    eventually(
        lambda: phase(demo, "n3") == "waiting to be replaced", timeout_s=WAIT_S, what="n3 waits"
    )
    health = demo.cli("cluster", "health", node="n3", check=False)
    assert "quorepo node replace n3" in health.stdout + health.stderr
    assert "quorepo node replace n3" in restart_log(demo, "n3")
    check_refusals(demo, old)

    code, said = replace(demo, "--yes")
    assert code == 0, said
    assert "done: replace n3" in said
    (new,) = replica(demo, "n3", "n1")
    assert new != old
    assert members(demo, "n1") == dict.fromkeys(("n1", "n2", "n3"), "voter")
    history = json.loads(demo.cli("cluster", "history", "-o", "json").stdout)["changes"]
    assert [(c["kind"], c["node"], c["state"]) for c in history] == [("replace", "n3", "done")]
    eventually(
        lambda: f"{missed}\trefs/heads/second" in refs(demo, "n3"),
        timeout_s=WAIT_S, what="n3 serves what it missed",
    )  # fmt: skip
    code, said = replace(demo, "--yes")
    assert code == REFUSED
    assert "there is nothing to replace" in said

    demo.kill("n2")  # the new replica's vote is needed
    push(demo, work, "n3", "refs/heads/third")
    demo.restart("n2")
    check_the_old_disk_is_out(demo, work, tmp_path / "old-disk", old, new)


def check_refusals(demo: Demo, old: str) -> None:
    """What is not done while the node waits: nothing by itself, and nothing without a yes."""
    for node, options, words in (
        ("n3", (), "this needs a yes, and nobody can be asked"),
        ("n2", ("--yes",), "there is nothing to replace"),
        ("n9", ("--yes",), "there is no node 'n9' to replace"),
    ):
        code, said = replace(demo, *options, node=node)
        assert code == REFUSED
        assert words in said
        assert "nothing was changed" in said
    code, said = replace(demo, "--dry-run")
    assert code == 0
    assert "3 voters, 2 reachable, majority 2" in said
    assert f"{old} leaves every group and never votes again" in said
    assert "dry run of replace n3: nothing was changed" in said
    assert replica(demo, "n3", "n1") == {old}


def check_the_old_disk_is_out(demo: Demo, work: WorkTree, disk: Path, old: str, new: str) -> None:
    """The old replica turns up again: it has no vote, whatever is missing."""
    demo.kill("n3")
    data_dir = demo.nodes["n3"].data_dir
    shutil.rmtree(data_dir)
    shutil.move(disk, data_dir)
    push(demo, work, "n2", "refs/heads/fourth")  # n2 is back
    demo.restart("n3")
    eventually(
        lambda: f"replica {old!r} was removed from this cluster" in restart_log(demo, "n3"),
        timeout_s=WAIT_S, what="the old disk is told",
    )  # fmt: skip
    assert replica(demo, "n3", "n1") == {new}
    demo.kill("n2")
    oid = work.commit("fifth")
    alone = work.git("push", "-q", demo.url("n1", PATH), f"{oid}:refs/heads/fifth", check=False)
    assert alone.returncode != 0, "nobody but n1 has a vote"
    demo.restart("n2")
    push(demo, work, "n2", "refs/heads/sixth")


@pytest.mark.slow
@pytest.mark.parametrize("transcript", [replace_dead.main, lost_majority.main])
def test_the_transcripts_in_the_manual_can_be_made_again(transcript: Callable[[], int]) -> None:
    """docs/operations.md: each command in them ends as it is shown there."""
    assert transcript() == 0
