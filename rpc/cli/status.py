"""`quorepo status`: the cluster as the node that was asked sees it."""

from __future__ import annotations

import threading
from typing import Any

import click

from quorepo.rpc.cli.failures import Failure
from quorepo.rpc.cli.options import Settings, common_options

__all__ = ["command", "read_status", "status_document"]

_INTERVAL_S = 2.0


@click.command("status")
@click.option("-W", "--watch", is_flag=True, help="Draw it again and again until Ctrl-C.")
@click.option(
    "--interval",
    "interval_s",
    type=click.FloatRange(min=0.1),
    default=_INTERVAL_S,
    show_default=True,
    help="With --watch: seconds between two looks.",
)
@common_options
def command(watch: bool, interval_s: float, settings: Settings) -> None:
    """Nodes, groups, leaders and how far each replica is.

    Works without a leader. A node that does not answer is shown as not reachable. What is wrong is
    said on standard error, each with what to do; `quorepo cluster health` has an exit code for it.

    \b
    Examples:
      quorepo status
      quorepo status --watch --interval 1
      quorepo --endpoint 127.0.0.1:7431 status -o json
    """
    if watch:
        _watch(settings, interval_s)
        return
    document = read_status(settings)
    from quorepo.rpc.cli.output import console, emit, note

    emit(document, settings.output, lambda: console().print(_picture(document)))
    for line in _warnings(document):
        note(line)


def read_status(settings: Settings) -> dict[str, Any]:
    """Asks a node. Raises Failure."""
    from quorepo.rpc.cli.client import connected
    from quorepo.v1 import cluster_pb2

    with connected(settings) as client:
        answer = client.call(client.cluster.GetStatus, cluster_pb2.GetStatusRequest())
    return status_document(answer)


def status_document(answer: Any) -> dict[str, Any]:
    """What `-o json` prints; a leader is a node's name, or null.

    Args:
        answer: a GetStatusResponse.
    """
    return {
        "cluster_id": answer.cluster_id or None,
        "answered_by": answer.answered_by,
        "level": answer.level,
        "nodes": [
            {
                "name": node.name,
                "replica_id": node.replica_id,
                "reachable": node.reachable,
                "ready": node.ready,
                "phase": node.phase,
                "problem": node.problem or None,
                "http": node.http_url,
                "grpc": node.grpc_address,
                "metrics": node.metrics_url,
                "peer": node.peer_address,
                "version": node.version,
                "level": node.level,
                "member": node.member or None,
                "draining": node.draining,
                "catch_up": node.catch_up.doing or None,
                "catch_up_percent": node.catch_up.percent,
                "packs_missing": node.packs_missing,
                "packs_total": node.packs_total,
                "missing_bytes": node.missing_bytes,
                "serving": _serving(node.serving) if node.HasField("serving") else None,
            }
            for node in answer.nodes
        ],
        "groups": [
            {
                "group": group.group,
                "leader": group.leader or None,
                "term": group.term,
                "commit_index": group.commit_index,
                "replicas": [
                    {
                        "node": replica.node,
                        "replica_id": replica.replica_id,
                        "role": replica.role,
                        "votes": replica.votes,
                        "applied_index": replica.applied_index,
                        "match_index": replica.match_index,
                        "connected": replica.connected,
                    }
                    for replica in group.replicas
                ],
            }
            for group in answer.groups
        ],
    }


def _serving(serving: Any) -> dict[str, int]:
    return {field.name: getattr(serving, field.name) for field in serving.DESCRIPTOR.fields}


def _serving_lines(document: dict[str, Any]) -> str:
    """A line for each node that told how it serves, which is the one that was asked."""
    lines = [
        "Serving at {name}: {answers_kept} answers kept ({kept_mib:.1f} of {max_mib:.0f} MiB), "
        "{jobs_running} of {workers} workers busy, {jobs_waiting} of {jobs_waiting_max} jobs wait, "
        "{packs_to_derive} packs to derive, "
        "{imports_running} of {imports_running_max} imports run".format(
            name=node["name"],
            kept_mib=node["serving"]["answers_bytes"] / 2**20,
            max_mib=node["serving"]["answers_bytes_max"] / 2**20,
            **node["serving"],
        )
        for node in document["nodes"]
        if node.get("serving")
    ]
    return "\n".join(lines)


def _picture(document: dict[str, Any]) -> Any:
    """The tables, as something to print."""
    from rich.console import Group
    from rich.text import Text

    from quorepo.rpc.cli.output import table

    silent = {node["name"] for node in document["nodes"] if not node["reachable"]}
    cluster = document["cluster_id"] or "(not formed)"
    return Group(
        table(
            f"Cluster {cluster}, as {document['answered_by']} sees it",
            ("node", "state", "member", "http", "grpc", "version"),
            [
                (
                    node["name"],
                    _state(node),
                    _member(node),
                    node["http"],
                    node["grpc"],
                    node["version"],
                )
                for node in document["nodes"]
            ],
        ),
        table(
            "Groups",
            ("group", "node", "role", "applied", "commit", "term"),
            [
                (
                    group["group"],
                    replica["node"],
                    replica["role"],
                    "?" if replica["node"] in silent else replica["applied_index"],
                    group["commit_index"],
                    group["term"],
                )
                for group in document["groups"]
                for replica in group["replicas"]
            ],
        ),
        Text(_serving_lines(document)),
    )


def _state(node: dict[str, Any]) -> str:
    if not node["reachable"]:
        return "not reachable"
    state = "ready" if node["ready"] else f"not ready ({node['phase']})"
    if node["draining"] and node["phase"] not in ("draining", "drained"):
        state += ", to be drained"
    return state


def _member(node: dict[str, Any]) -> str:
    """The part that it has in the cluster; of a newcomer, how far it is."""
    part = node["member"] or "no member"
    if node["member"] == "learner":
        part += f", {node['catch_up'] or 'waiting'} {node['catch_up_percent']} %"
    if node["packs_missing"]:
        left = node["missing_bytes"] / 2**20
        part += (
            f", {node['packs_missing']} of {node['packs_total']} packs missing, "
            f"{left:.1f} MiB to fetch"
        )
    return part


def _warnings(document: dict[str, Any]) -> list[str]:
    from quorepo.rpc.cli.health import problems

    lines = []
    for problem in problems(document):
        if problem.severity != "info":
            lines += [f"{problem.severity}: {problem.what}", f"  next: {problem.next_step}"]
    return lines


def _watch(settings: Settings, interval_s: float) -> None:
    """Until Ctrl-C, which is a clean end. A node that does not answer is asked again."""
    from rich.live import Live

    from quorepo.rpc.cli.output import console

    settings.token()  # without one, waiting is no use
    pause = threading.Event()
    screen = console()
    last: Any = None
    try:
        if settings.output != "table" or not screen.is_terminal:
            while True:
                _print_once(settings)
                pause.wait(interval_s)
        with Live(console=screen, screen=True, auto_refresh=False) as live:
            while True:
                last = _look(settings)
                live.update(last, refresh=True)
                pause.wait(interval_s)
    except KeyboardInterrupt:
        if last is not None:
            screen.print(last)


def _look(settings: Settings) -> Any:
    from rich.console import Group
    from rich.text import Text

    try:
        document = read_status(settings)
    except Failure as failure:
        next_step = f"\nnext: {failure.next_step}" if failure.next_step else ""
        return Text(f"{failure.message}{next_step}\n\nasking again …  Ctrl-C ends")
    lines = "\n".join(_warnings(document)) or "nothing is wrong"
    return Group(_picture(document), Text(f"{lines}\n\nCtrl-C ends"))


def _print_once(settings: Settings) -> None:
    """One document per look: JSON on a line of its own, YAML documents apart with ---."""
    import json

    from quorepo.rpc.cli.output import console, note, print_yaml

    try:
        document = read_status(settings)
    except Failure as failure:
        note(f"quorepo: {failure.message}")
        return
    if settings.output == "json":
        click.echo(json.dumps(document, ensure_ascii=False))
    elif settings.output == "yaml":
        click.echo("---")
        print_yaml(document)
    else:
        console().print(_picture(document))
        for line in _warnings(document):
            note(line)
