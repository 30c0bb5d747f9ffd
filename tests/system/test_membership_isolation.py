"""A newcomer whose disk is too small, and networks that are cut in the middle of its promotion."""

from __future__ import annotations

import json
import os
import shutil
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.demo import Demo, free_base_port
from support.git import WorkTree, refs_of
from support.machines import QUOREPO, STATE, Machines, can_make_machines
from support.membership import (
    WAIT_S,
    add_command,
    background,
    members,
    wait_until_waiting,
)
from support.small_disks import can_mount, on_small_disk, resize
from support.waiting import eventually

pytestmark = pytest.mark.system

MIB = 1024 * 1024
PATH = "team/repo"
NAMES = ["n1", "n2", "n3"]


@pytest.mark.skipif(not can_mount(), reason="no mount namespaces here (unshare --mount)")
def test_a_newcomer_without_room_is_not_promoted_and_is_once_it_has_room(
    tmp_path: Path, work: WorkTree
) -> None:
    with Demo(tmp_path / "demo", base_port=free_base_port(4)) as demo:
        work.commit("large", {"data": os.urandom(10 * MIB).hex()})
        work.git("push", "-q", demo.url("n1", PATH), "main")
        node = demo.prepare("n4")
        config = demo.directory / "config" / "n4.toml"
        config.write_text(f"{config.read_text()}\n[storage]\nreserve_bytes = {2 * MIB}\n")
        on_small_disk(node, 8 * MIB)
        demo.restart("n4")
        wait_until_waiting(demo, "n4", "n1")
        with background(demo, *add_command(demo, "n4"), node="n1") as adding:
            eventually(
                lambda: catching_up(demo) == "disk full",
                timeout_s=WAIT_S, what="that n4 has no room is told",
            )  # fmt: skip
            # The others do not wait for it, and it does not count.
            oid = work.commit("small")
            work.git("push", "-q", demo.url("n2", PATH), f"{oid}:refs/heads/small")
            assert members(demo, "n1")["n4"] == "learner"
            assert adding.poll() is None
            assert demo.process_of("n4").poll() is None, "it waits, it does not die"
            resize(node, 256 * MIB)
            _, said = adding.communicate(timeout=WAIT_S)
            assert adding.returncode == 0, said
        assert members(demo, "n1")["n4"] == "voter"
        eventually(
            lambda: refs_of(demo.url("n4", PATH)).get("refs/heads/small") == oid,
            timeout_s=WAIT_S, what="n4 has everything",
        )  # fmt: skip


def catching_up(demo: Demo) -> str:
    nodes = demo.status("n1")["nodes"]
    return next((str(n["catch_up"]) for n in nodes if n["name"] == "n4"), "")


@pytest.fixture
def machines(tmp_path: Path) -> Iterator[Machines]:
    """Three members that serve, and a fourth machine that was not started."""
    if not can_make_machines():
        pytest.skip("needs root and namespaces")
    with Machines(tmp_path / "m", [*NAMES, "n4"]) as made, made.told_on_failure():
        joins = [word for name in NAMES for word in ("--join", f"{name}:7423")]
        made.run_on("n1", [str(QUOREPO), "init", STATE, "--bootstrap-expect", "3", *joins])
        for name in NAMES[1:]:
            shutil.copytree(made.folder("n1"), made.folder(name), dirs_exist_ok=True)
        made.serve("n2", "n3")
        made.serve("n1", failpoint="membership.before_promote=stop@1")
        made.wait_ready(*NAMES)
        made.run_on("n4", [str(QUOREPO), "init", STATE, *joins])
        token = made.folder("n4") / "secrets" / "join-token"
        made.cli("n1", "node", "token", "--file", str(token))
        made.cli("n2", "repo", "create", PATH)
        lead(made, "n1")
        yield made


def lead(machines: Machines, name: str) -> None:
    eventually(
        lambda: machines.cli(
            "n2", "cluster", "transfer-leader", "--to", name, check=False
        ).returncode == 0,
        timeout_s=WAIT_S, what=f"{name} leads",
    )  # fmt: skip


def stands_still(pid: int) -> bool:
    stat = Path(f"/proc/{pid}/stat").read_text()
    return stat.rpartition(")")[2].split()[0] in "Tt"


def voters(machines: Machines, ask: str) -> list[set[str]]:
    """The voters of each group, as a node tells them."""
    answer = machines.cli(ask, "status", "-o", "json", check=False)
    if answer.returncode:
        return []
    groups = json.loads(answer.stdout)["groups"]
    return [{r["node"] for r in group["replicas"] if r["votes"]} for group in groups]


def push(machines: Machines, tmp_path: Path, at: str, ref: str) -> str:
    """One commit, acknowledged by the node."""
    work = tmp_path / f"work-{ref}"
    machines.git("init", "-q", "-b", "main", str(work))
    machines.git("-C", str(work), "commit", "-q", "--allow-empty", "-m", ref)
    url = machines.url(at, PATH)
    eventually(
        lambda: machines.git(
            "-C", str(work), "push", "-q", url, f"main:refs/heads/{ref}", check=False
        ).returncode == 0,
        timeout_s=WAIT_S, what=f"{at} takes {ref}",
    )  # fmt: skip
    return machines.git("-C", str(work), "rev-parse", "HEAD").stdout.strip()


def everywhere(machines: Machines, ref: str, oid: str) -> None:
    for name in machines.names:
        eventually(
            lambda name=name: f"{oid}\trefs/heads/{ref}\n"  # type: ignore[misc]
            in machines.git("ls-remote", machines.url(name, PATH), check=False).stdout,
            timeout_s=WAIT_S, what=f"{name} has {ref}",
        )  # fmt: skip


@pytest.mark.parametrize("cut", ["n1", pytest.param("n4", marks=pytest.mark.slow)])
def test_the_network_is_cut_in_the_middle_of_a_promotion(
    machines: Machines, tmp_path: Path, cut: str
) -> None:
    """The leader stands still right before it gives n4 the vote; then it, or n4, is cut off and the
    leader goes on. Cut off itself, it must not give the vote alone; the others do."""
    core = machines.core_of("n1")
    machines.serve("n4")
    eventually(lambda: stands_still(core), timeout_s=WAIT_S, what="n1 is about to promote n4")
    machines.cut(cut)
    os.kill(core, signal.SIGCONT)
    left = [name for name in machines.names if name != cut]
    oid = push(machines, tmp_path, "n2", "during")
    if cut == "n1":  # the others elect one of them, and promote n4
        eventually(
            lambda: voters(machines, "n3") == [{"n1", "n2", "n3", "n4"}] * 2,
            timeout_s=WAIT_S, what="n4 votes without n1",
        )  # fmt: skip
    for name in left:
        assert machines.processes[name].poll() is None
    machines.join(cut)
    for name in machines.names:
        eventually(
            lambda name=name: voters(machines, name) == [{"n1", "n2", "n3", "n4"}] * 2,  # type: ignore[misc]
            timeout_s=WAIT_S, what=f"{name} has the new configuration",
        )  # fmt: skip
    everywhere(machines, "during", oid)
    everywhere(machines, "after", push(machines, tmp_path, cut, "after"))
