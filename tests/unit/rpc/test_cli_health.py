"""What `quorepo cluster health` says of each picture of a cluster, and its exit code."""

from __future__ import annotations

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest
from support.cli import Run

from quorepo.rpc.cli.health import problems, verdict

Change = Callable[[dict[str, Any]], None]


def picture(nodes: int = 3) -> dict[str, Any]:
    names = [f"n{number + 1}" for number in range(nodes)]
    return {
        "cluster_id": "c1",
        "answered_by": "n1",
        "nodes": [
            {
                "name": name, "replica_id": f"{name}@1", "reachable": True, "ready": True,
                "phase": "serving", "http": "", "grpc": f"{name}:7421", "metrics": "", "peer": "",
                "version": "1.0",
            }
            for name in names
        ],
        "groups": [
            {
                "group": 1, "leader": "n1", "term": 2, "commit_index": 5000,
                "replicas": [
                    {
                        "node": name, "replica_id": f"{name}@1", "votes": True, "connected": True,
                        "role": "voter", "applied_index": 5000, "match_index": 5000,
                    }
                    for name in names
                ],
            }
        ],
    }  # fmt: skip


def down(*positions: int) -> Change:
    def change(status: dict[str, Any]) -> None:
        for position in positions:
            status["nodes"][position].update(reachable=False, ready=False)
            status["groups"][0]["replicas"][position].update(connected=False, applied_index=0)

    return change


def leaderless(status: dict[str, Any]) -> None:
    status["groups"][0]["leader"] = None


def drained(status: dict[str, Any]) -> None:
    status["nodes"][1].update(draining=True, ready=False, phase="drained")


def catching_up(status: dict[str, Any]) -> None:
    status["nodes"][2].update(
        member="learner", ready=False, phase="catching-up", catch_up="packs", catch_up_percent=40
    )


def cut_off(status: dict[str, Any]) -> None:
    status["groups"][0]["replicas"][2]["connected"] = False


def behind(status: dict[str, Any]) -> None:
    status["groups"][0]["replicas"][2]["applied_index"] = 3000


def not_ready(status: dict[str, Any]) -> None:
    status["nodes"][1].update(ready=False, phase="catching-up")


def lacks_packs(status: dict[str, Any]) -> None:
    status["nodes"][2].update(packs_missing=3, packs_total=21, missing_bytes=5 * 2**20)


def waits_for_replace(status: dict[str, Any]) -> None:
    status.update(groups=[], cluster_id=None)
    status["nodes"][0].update(ready=False, phase="waiting to be replaced")


def two_versions(status: dict[str, Any]) -> None:
    status["nodes"][1]["version"] = "1.1"


def without_core(status: dict[str, Any]) -> None:
    status.update(groups=[], cluster_id=None)
    status["nodes"][0].update(ready=False, phase="core is not running")


@pytest.mark.parametrize(
    ("change", "expected", "words"),
    [
        (lambda status: None, "healthy", []),
        (
            down(2),
            "degraded",
            [
                "n3 does not answer at n3:7421",
                "systemctl start quorepo",
                "tolerates no further failure (3 voters, 2 reachable, majority 2)",
            ],
        ),
        (
            down(1, 2),
            "unavailable",
            ["no majority (3 voters, 1 reachable, majority 2)", "start 1 of n2, n3"],
        ),
        (leaderless, "unavailable", ["no leader", "quorepo status -W"]),
        (cut_off, "degraded", ["n1 has no connection with n3", "certificates"]),
        (behind, "degraded", ["group 1: n3 is 2000 entries behind"]),
        (not_ready, "degraded", ["n2 answers but does not serve (catching-up)"]),
        (drained, "healthy", ["n2 is drained", "quorepo node undrain n2"]),
        (catching_up, "healthy", ["n3 is a learner (packs, 40 %)", "quorepo node promote n3"]),
        (lacks_packs, "degraded", ["n3 lacks 3 of 21 packs (5.0 MiB)", "quorepo status -W"]),
        (waits_for_replace, "unavailable", ["on another node: quorepo node replace n1"]),
        (two_versions, "degraded", ["different versions (n1, n3: 1.0; n2: 1.1)"]),
        (without_core, "unavailable", ["n1 takes part in no group (core is not running)"]),
    ],
)
def test_each_thing_that_is_wrong_is_told_with_what_to_do(
    change: Change, expected: str, words: list[str]
) -> None:
    status = copy.deepcopy(picture())
    change(status)
    found = problems(status)
    assert verdict(found) == expected
    text = "\n".join(f"{problem.what}\n{problem.next_step}" for problem in found)
    for word in words:
        assert word in text
    assert all(problem.next_step for problem in found)


def test_what_several_groups_have_is_told_once() -> None:
    status = picture()
    status["groups"].append({**copy.deepcopy(status["groups"][0]), "group": 7})
    down(2)(status)
    status["groups"][1]["replicas"][2].update(connected=False, applied_index=0)
    assert [p.what for p in problems(status) if "tolerates" in p.what] == [
        "groups 1, 7: tolerates no further failure (3 voters, 2 reachable, majority 2)"
    ]


@pytest.mark.parametrize(("nodes", "told"), [(1, 0), (2, 1), (3, 0)])
def test_a_small_cluster_is_healthy_as_it_is(nodes: int, told: int) -> None:
    found = problems(picture(nodes))
    assert verdict(found) == "healthy"
    assert [problem.severity for problem in found] == ["info"] * told


def test_the_exit_code_tells(run: Run) -> None:
    result = run("cluster", "health", "-o", "json")
    document = json.loads(result.stdout)
    assert (result.exit_code, document["verdict"]) == (3, "unavailable")
    assert document["problems"][0]["severity"] == "critical"
    text = run("cluster", "health").stdout
    assert text.startswith("unavailable: ")
    assert "\n  next: " in text
    gone = run("cluster", "health", "--endpoint", "127.0.0.1:1", "--timeout", "0.3")
    assert gone.exit_code == 3
