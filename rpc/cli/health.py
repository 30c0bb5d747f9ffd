"""What is wrong with a cluster, read from its status, and what to do about each thing.

Owns the rules and the words. Must not know how the status was got or how problems are shown.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

__all__ = ["LAG_ENTRIES_MAX", "Problem", "problems", "verdict"]

CRITICAL, WARNING, INFO = "critical", "warning", "info"
LAG_ENTRIES_MAX = 1000  # as in deploy/prometheus: QuorepoReplicaBehind
WAITS_FOR_REPLACE = "waiting to be replaced"  # the phase that cluster/formation.py tells
_ORDER = (CRITICAL, WARNING, INFO)


@dataclasses.dataclass(frozen=True, slots=True)
class Problem:
    """One thing that an operator should know.

    `severity`: critical (something is not served), warning (somebody has to act before the next
    failure) or info.
    """

    severity: str
    what: str
    next_step: str

    def document(self) -> dict[str, str]:
        """As `-o json` shows it."""
        return dataclasses.asdict(self)


def problems(status: Mapping[str, Any]) -> list[Problem]:
    """Everything that is not as it should be, the worst first.

    Args:
        status: what `status.status_document` makes.
    """
    found = [*_of_the_cluster(status), *_of_nodes(status)]
    alike: dict[tuple[str, str, str], list[str]] = {}  # one line for what several groups have
    for group in status["groups"]:
        for severity, what, next_step in _of_group(group, status):
            alike.setdefault((severity, what, next_step), []).append(str(group["group"]))
    for (severity, what, next_step), groups in alike.items():
        where = f"group {groups[0]}" if len(groups) == 1 else f"groups {', '.join(groups)}"
        found.append(Problem(severity, f"{where}: {what}", next_step))
    return sorted(found, key=lambda problem: _ORDER.index(problem.severity))


def verdict(found: Sequence[Problem]) -> str:
    """`healthy`, `degraded` (served, but somebody should act) or `unavailable`."""
    severities = {problem.severity for problem in found}
    if CRITICAL in severities:
        return "unavailable"
    return "degraded" if WARNING in severities else "healthy"


def _of_the_cluster(status: Mapping[str, Any]) -> Iterator[Problem]:
    asked = status["answered_by"]
    refused = any(n["name"] == asked and n.get("problem") for n in status["nodes"])
    if not status["groups"] and not refused:
        phase = next((n["phase"] for n in status["nodes"] if n["name"] == asked), "")
        yield Problem(
            CRITICAL,
            f"{asked} takes part in no group ({phase or 'phase not known'}): it serves nothing",
            f"on another node: quorepo node replace {asked}"
            if phase == WAITS_FOR_REPLACE
            else f"look at the log of {asked}; quorepo doctor --config FILE on it says what is "
            "missing",
        )
    versions: dict[str, list[str]] = {}
    for node in status["nodes"]:
        if node["version"]:
            versions.setdefault(node["version"], []).append(node["name"])
    if len(versions) > 1:
        listed = "; ".join(f"{', '.join(names)}: {v}" for v, names in sorted(versions.items()))
        yield Problem(
            WARNING,
            f"nodes run different versions ({listed})",
            "finish the upgrade: the same version on every node, one node at a time",
        )


def _of_nodes(status: Mapping[str, Any]) -> Iterator[Problem]:
    for node in status["nodes"]:
        name = node["name"]
        if not node["reachable"]:
            yield Problem(
                WARNING,
                f"{name} does not answer at {node['grpc'] or 'its gRPC address'}",
                f"is it running? On {name}: systemctl status quorepo, then "
                f"systemctl start quorepo; its log says why it ended",
            )
        elif node.get("draining"):
            yield Problem(
                INFO,
                f"{name} is drained: it leads nothing and takes no pushes",
                f"quorepo node undrain {name}, once its maintenance is over",
            )
        elif node.get("member") == "learner":
            yield Problem(
                INFO,
                f"{name} is a learner ({node['catch_up'] or 'waiting'}, "
                f"{node['catch_up_percent']} %): it does not count for the majority yet",
                "it votes once it has caught up; one that was kept a learner: quorepo node "
                f"promote {name}",
            )
        elif node.get("problem"):
            yield Problem(
                CRITICAL if name == status["answered_by"] else WARNING,
                f"{name} is out of service: {node['problem'].partition('; ')[0]}",
                node["problem"].partition("; ")[2],
            )
        elif node.get("packs_missing"):
            yield Problem(
                WARNING,
                f"{name} lacks {node['packs_missing']} of {node['packs_total']} packs "
                f"({node['missing_bytes'] / 2**20:.1f} MiB): its disk lost them, and it fetches "
                "them from the other nodes",
                "quorepo status -W shows how far it is; if they stay missing: quorepo cluster "
                "verify names them",
            )
        elif not node["ready"] and status["groups"]:
            yield Problem(
                WARNING,
                f"{name} answers but does not serve ({node['phase'] or 'not ready'})",
                f"quorepo --endpoint {node['grpc']} status; it serves once every group has a "
                "leader it can reach; if it stays so, look at its log",
            )


def _of_group(
    group: Mapping[str, Any], status: Mapping[str, Any]
) -> Iterator[tuple[str, str, str]]:
    """(severity, what, next step)."""
    silent = {node["name"] for node in status["nodes"] if not node["reachable"]}
    asked = status["answered_by"]
    voters = [replica["node"] for replica in group["replicas"] if replica["votes"]]
    away = [name for name in voters if name in silent]
    majority = len(voters) // 2 + 1
    there = len(voters) - len(away)
    sums = f"{len(voters)} voters, {there} reachable, majority {majority}"
    if voters and there < majority:
        yield (
            CRITICAL,
            f"no majority ({sums}): no push, no up-to-date read",
            f"start {majority - there} of {', '.join(away)}; nothing acknowledged is lost "
            "meanwhile. Only when their disks are gone for good: quorepo cluster recover",
        )
    elif group["leader"] is None:
        yield (
            CRITICAL,
            f"no leader ({sums}): pushes wait for one",
            "an election takes seconds: quorepo status -W; if none is found, the nodes cannot "
            "reach each other: quorepo doctor --config FILE on each",
        )
    elif there == majority and len(voters) > 1:
        yield (
            WARNING if away else INFO,
            f"tolerates no further failure ({sums})",
            f"bring back {', '.join(away)}" if away else "three voters tolerate one failure",
        )
    for replica in group["replicas"]:
        name = replica["node"]
        if name in silent:
            continue
        if not replica["connected"] and name != asked:
            yield (
                WARNING,
                f"{asked} has no connection with {name}, though {name} answers",
                "is the peer port open both ways, and are the certificates of one CA? "
                "quorepo doctor --config FILE on both",
            )
        lag = group["commit_index"] - replica["applied_index"]
        if lag > LAG_ENTRIES_MAX:
            yield (
                WARNING,
                f"{name} is {lag} entries behind",
                f"it catches up by itself; when it does not (quorepo status -W), look at the disk "
                f"and the log of {name}",
            )
