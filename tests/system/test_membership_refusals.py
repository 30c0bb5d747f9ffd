"""What may not be done to the members is refused, says why, and changes nothing; what is done says
what becomes of the majority first.
"""

from __future__ import annotations

import json
import re
import shlex
import subprocess
from pathlib import Path

import pytest
from support.demo import Demo, free_base_port
from support.membership import background, configurations, members, peer_address
from support.waiting import eventually

pytestmark = pytest.mark.system

REFUSED = 5
ARITHMETIC = (
    "group 1: 3 voters, 3 reachable, majority 2; after removal 2 voters, majority 2, tolerates 0 "
    "failures"
)


def history(demo: Demo) -> int:
    told = json.loads(demo.cli("cluster", "history", "-o", "json").stdout)
    return len(told["changes"])


def refused(demo: Demo, *command: str) -> str:
    """What a command said that ended with the code of a refusal."""
    process: subprocess.CompletedProcess[str] = demo.cli(*command, check=False)
    assert process.returncode == REFUSED, process.stdout + process.stderr
    assert "nothing was changed" in process.stderr
    assert "group 0: " in process.stderr, "the arithmetic comes first"
    assert process.stderr.index("group 0: ") < process.stderr.index("quorepo: ")
    return process.stderr


def test_what_cannot_be_done_to_the_members_is_refused(cluster: Demo) -> None:
    before, known = configurations(cluster, "n1"), history(cluster)
    address = peer_address(cluster, "n2")
    cases: list[tuple[tuple[str, ...], str]] = [
        (("node", "remove", "n9", "--yes"), "there is no node 'n9'"),
        (("node", "promote", "n9", "--yes"), "there is no node 'n9'"),
        (("node", "promote", "n2", "--yes"), "node 'n2' votes already"),
        (("node", "replace", "n9", "--yes"), "there is no node 'n9' to replace"),
        (("node", "replace", "n2", "--yes"), "there is nothing to replace"),
        (("node", "add", "n2", "--peer-address", address, "--yes"), "is a member already"),
        (("node", "add", "n9", "--yes"), "node 'n9' has not called here"),
        (("node", "add", "n9", "--peer-address", "127.0.0.1:1", "--yes"), "does not answer at"),
        # Who answers there proves another name.
        (("node", "add", "n9", "--peer-address", address, "--yes"), "n9"),
        (("node", "drain", "n9"), "there is no node 'n9'"),
        (("node", "undrain", "n9"), "there is no node 'n9'"),
        (("cluster", "transfer-leader", "--to", "n9"), "is no voter that may lead"),
    ]
    for command, words in cases:
        assert words in refused(cluster, *command), command
        # The rehearsal says what the deed would.
        rehearsed = [option for option in command if option != "--yes"]
        assert words in refused(cluster, *rehearsed, "--dry-run"), command
    for command, words in [
        (("cluster", "transfer-leader", "--group", "9"), "there is no group 9"),
        (("node", "cancel"), "of the members"),
    ]:
        process = cluster.cli(*command, check=False)
        assert process.returncode in (1, REFUSED)
        assert words in process.stderr
        assert "nothing was changed" in process.stderr
    assert configurations(cluster, "n1") == before
    assert history(cluster) == known


def test_nobody_is_removed_without_a_yes_and_a_rehearsal_changes_nothing(cluster: Demo) -> None:
    before = configurations(cluster, "n1")
    asked = refused(cluster, "node", "remove", "n3")
    assert ARITHMETIC in asked
    assert "this needs a yes, and nobody can be asked" in asked
    assert "next: quorepo node remove n3 --yes" in asked
    rehearsed = cluster.cli("node", "remove", "n3", "--dry-run", "-o", "json")
    assert ARITHMETIC in rehearsed.stderr
    document = json.loads(rehearsed.stdout)
    assert document["change"] is None
    assert [group["lost_packs"] for group in document["plan"]["groups"]] == [0, 0]
    for command in (("node", "drain", "n3"), ("node", "undrain", "n3")):
        shown = cluster.cli(*command, "--dry-run")
        assert "group 1: 3 voters, 3 reachable" in shown.stderr
        assert "nothing was changed" in shown.stdout + shown.stderr
    assert configurations(cluster, "n1") == before
    assert set(members(cluster, "n1").values()) == {"voter"}


def test_what_would_cost_the_majority_needs_force_and_the_typed_name(own_cluster: Demo) -> None:
    """With n3 dead, n2 is one of the two that decide."""
    demo = own_cluster
    demo.kill("n3")
    cluster_id = demo.status("n1")["cluster_id"]
    before = configurations(demo, "n1")
    arithmetic = (
        "3 voters, 2 reachable, majority 2; after removal 2 voters, majority 2, only 1 reachable: "
        "no majority"
    )
    remove = ("node", "remove", "n2")
    for options, words in (
        (("--yes",), "would lose its majority: 1 of 2 voters reachable"),
        (("--force",), f"next: quorepo node remove n2 --force --cluster-name {cluster_id}"),
        (("--force", "--yes"), "that needs the cluster's name, and nobody can be asked"),
        (("--force", "--cluster-name", "another"), "'another' is not the name of this cluster"),
    ):
        said = refused(demo, *remove, *options)
        assert words in said, options
        assert f"group 1: {arithmetic}" in said
    rehearsed = demo.cli(*remove, "--dry-run")
    assert "would be refused: group 1 would lose its majority" in rehearsed.stderr
    assert configurations(demo, "n1") == before
    # By force it goes on until the majority is lost, as was said, and ends once n3 is back.
    with background(demo, *remove, "--force", "--cluster-name", cluster_id, node="n1") as forced:
        eventually(
            lambda: not any(r.startswith("n2@") for r in configurations(demo, "n1")[1]),
            timeout_s=60, what="n2 leaves group 1",
        )  # fmt: skip
        demo.restart("n3")
        _, said = forced.communicate(timeout=60)
    assert forced.returncode == 0, said
    assert members(demo, "n1") == {"n1": "voter", "n3": "voter"}


def test_a_dead_node_may_go_without_force(own_cluster: Demo) -> None:
    demo = own_cluster
    demo.kill("n3")
    done = demo.cli("node", "remove", "n3", "--yes")
    assert "3 voters, 2 reachable, majority 2; after removal 2 voters, majority 2" in done.stderr
    assert members(demo, "n1") == {"n1": "voter", "n2": "voter"}


def test_a_node_tells_all_about_itself(cluster: Demo) -> None:
    told = json.loads(cluster.cli("node", "info", "n2", "-o", "json", node="n1").stdout)
    assert (told["name"], told["member"], told["ready"]) == ("n2", "voter", True)
    assert [(g["group"], g["votes"], g["percent"]) for g in told["groups"]] == [
        (0, True, 100),
        (1, True, 100),
    ]
    assert "group 1" in cluster.cli("node", "info", "n2").stdout
    nobody = cluster.cli("node", "info", "n9", check=False)
    assert nobody.returncode == 1
    assert "next: quorepo node list" in nobody.stderr


def test_a_node_is_added_to_the_demo_as_it_says(tmp_path: Path) -> None:
    """The lines that the demo prints, in a shell."""
    with Demo(tmp_path / "demo", base_port=free_base_port(5)) as demo:
        (section,) = re.findall(r"Add nodes.*?:\n(.*?)\n\n", demo.output(), re.DOTALL)
        serve, add, *_, listed = (line.strip() for line in section.splitlines())
        assert serve.endswith(" &")
        with (tmp_path / "n4.log").open("wb") as log:
            node = subprocess.Popen(
                shlex.split(serve.removesuffix(" &")), stdout=log, stderr=log, cwd="/"
            )
        try:
            for line in (add, listed):
                done = subprocess.run(
                    shlex.split(line), capture_output=True, text=True, timeout=120, check=False
                )
                assert done.returncode == 0, done.stderr
            assert members(demo, "n1") == dict.fromkeys(("n1", "n2", "n3", "n4"), "voter")
        finally:
            node.terminate()
            node.wait(timeout=60)
