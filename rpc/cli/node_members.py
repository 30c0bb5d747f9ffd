"""`quorepo node list|info|add|promote|remove|replace|cancel|drain|undrain`, and of `quorepo
cluster`: transfer-leader, history.
"""

from __future__ import annotations

import datetime
import uuid
from collections.abc import Callable
from typing import Any

import click

from quorepo.rpc.cli.failures import EXIT_UNAVAILABLE, Failure
from quorepo.rpc.cli.options import Settings, common_options

__all__ = ["CLUSTER_COMMANDS", "NODE_COMMANDS"]

_REQUEST_ID_HELP = "Repeat an earlier request whose outcome is not known (a UUID)."


def _change_options(function: Callable[..., Any]) -> Callable[..., Any]:
    for option in (
        click.option("--dry-run", is_flag=True, help="Show the plan, change nothing."),
        click.option("--yes", is_flag=True, help="Answer the safe question with yes."),
        click.option("--force", is_flag=True, help="Do it although the plan is refused."),
        click.option("--cluster-name", help="The cluster's name, for --force without a terminal."),
        click.option("--request-id", type=click.UUID, help=_REQUEST_ID_HELP),
    ):
        function = option(function)
    return function


@click.command("list")
@common_options
def node_list(settings: Settings) -> None:
    """The members, newcomers, and a change that is under way.

    \b
    Example:
      quorepo node list
    """
    from quorepo.rpc.cli.client import connected
    from quorepo.rpc.cli.membership import change_document
    from quorepo.rpc.cli.output import emit, print_table
    from quorepo.v1 import cluster_pb2

    with connected(settings) as client:
        answer = client.call(client.cluster.ListNodes, cluster_pb2.ListNodesRequest())
    nodes = [
        {
            "name": node.name,
            "member": node.member or None,
            "reachable": node.reachable,
            "phase": node.phase,
            "draining": node.draining,
            "catch_up_percent": node.catch_up.percent,
            "packs_missing": node.packs_missing,
            "packs_total": node.packs_total,
            "missing_bytes": node.missing_bytes,
            "peer": node.peer_address,
            "version": node.version,
            "level": node.level,
        }
        for node in answer.nodes
    ]
    running = change_document(answer.running) if answer.HasField("running") else None

    def lines() -> None:
        rows = [
            (n["name"], _member(n), n["phase"] or "not reachable", n["peer"], n["version"],
             n["level"])
            for n in nodes
        ]  # fmt: skip
        print_table("", ("node", "member", "state", "peer", "version", "level"), rows)
        older = [n["name"] for n in nodes if n["level"] < max(m["level"] for m in nodes)]
        if older:
            click.echo(
                f"the cluster is at level {answer.level}: {', '.join(older)} run an older quorepo, "
                "and what they do not know is refused",
                err=True,
            )
        if running is not None:
            click.echo(f"under way: {running['kind']} {running['node']}", err=True)

    document = {"nodes": nodes, "running": running, "level": answer.level}
    emit(document, settings.output, lines)


@click.command("info")
@click.argument("node")
@common_options
def info(settings: Settings, node: str) -> None:
    """All that is known of one node: addresses, version, its part in every group, what it lacks.

    \b
    Example:
      quorepo node info n2
    """
    from quorepo.rpc.cli.client import connected
    from quorepo.rpc.cli.output import emit_one
    from quorepo.v1 import cluster_pb2

    with connected(settings) as client:
        answer = client.call(client.cluster.GetNode, cluster_pb2.GetNodeRequest(node=node))
    found = answer.node
    document: dict[str, Any] = {
        "name": found.name,
        "replica_id": found.replica_id,
        "member": found.member or None,
        "phase": found.phase or "not reachable",
        "ready": found.ready,
        "draining": found.draining,
        "version": found.version,
        "level": found.level,
        "http": found.http_url,
        "grpc": found.grpc_address,
        "metrics": found.metrics_url,
        "peer": found.peer_address,
        "packs_missing": found.packs_missing,
        "packs_total": found.packs_total,
        "missing_bytes": found.missing_bytes,
        "groups": [
            {
                "group": of.group,
                "role": of.replica.role,
                "votes": of.replica.votes,
                "may_lead": of.replica.may_lead,
                "applied_index": of.replica.applied_index,
                "entries_behind": of.replica.catch_up.entries_behind,
                "doing": of.replica.catch_up.doing,
                "percent": of.replica.catch_up.percent,
            }
            for of in answer.replicas
        ],
    }
    if settings.output != "table":
        emit_one(document, settings.output)
        return
    for group in document.pop("groups"):
        votes = "votes" if group["votes"] else "does not vote"
        document[f"group {group['group']}"] = (
            f"{group['role']}, {votes}, {group['doing']} {group['percent']} %, "
            f"{group['entries_behind']} entries behind"
        )
    emit_one(document, settings.output)


def _member(node: dict[str, Any]) -> str:
    if node["member"] == "learner":
        return f"learner {node['catch_up_percent']} %"
    return node["member"] or "no member"


def _run(settings: Settings, method: str, request: Any, **how: Any) -> None:
    from quorepo.rpc.cli.membership import carry_out, request_words
    from quorepo.rpc.cli.output import emit_done

    document = carry_out(settings, method, request, **how)
    what = f"{request_words(method)} {request.node}"
    sentence = f"dry run of {what}: nothing was changed" if how["dry_run"] else f"done: {what}"
    emit_done(document, settings.output, sentence)


@click.command("add")
@click.argument("node")
@click.option("--peer-address", default="", metavar="HOST:PORT", help="Where the newcomer waits.")
@click.option(
    "--wait",
    "wait_s",
    type=click.FloatRange(min=0),
    default=0,
    help="Seconds to wait for a newcomer that does not answer yet.",
)
@click.option("--learner", is_flag=True, help="Keep it a learner until `quorepo node promote`.")
@_change_options
@common_options
def add(settings: Settings, node: str, peer_address: str, learner: bool, **how: Any) -> None:
    """Takes in a node that was started and waits: a learner until it has caught up, then a voter.

    \b
    Examples:
      quorepo node add n4 --peer-address 10.0.0.4:7423
      quorepo node add n4 --peer-address 10.0.0.4:7423 --wait 60 --learner
    """
    from quorepo.v1 import cluster_pb2

    request = cluster_pb2.AddNodeRequest(node=node, peer_address=peer_address, keep_learner=learner)
    _run(settings, "AddNode", request, **how)


@click.command("promote")
@click.argument("node")
@_change_options
@common_options
def promote(settings: Settings, node: str, **how: Any) -> None:
    """Gives a learner the vote, once it has caught up.

    \b
    Example:
      quorepo node promote n4
    """
    from quorepo.v1 import cluster_pb2

    _run(settings, "PromoteNode", cluster_pb2.PromoteNodeRequest(node=node), **how)


@click.command("remove")
@click.argument("node")
@_change_options
@common_options
def remove(settings: Settings, node: str, **how: Any) -> None:
    """Removes a member for good, dead or alive; a leader hands over first.

    \b
    Example:
      quorepo node remove n3
    """
    from quorepo.v1 import cluster_pb2

    _run(settings, "RemoveNode", cluster_pb2.RemoveNodeRequest(node=node), **how)


@click.command("replace")
@click.argument("node")
@click.option("--peer-address", default="", metavar="HOST:PORT", help="If it moved.")
@_change_options
@common_options
def replace(settings: Settings, node: str, peer_address: str, **how: Any) -> None:
    """Takes a node back that runs on an empty disk; its old replica never votes again.

    \b
    Example:
      quorepo node replace n2
    """
    from quorepo.v1 import cluster_pb2

    request = cluster_pb2.ReplaceNodeRequest(node=node, peer_address=peer_address)
    _run(settings, "ReplaceNode", request, **how)


@click.command("cancel")
@click.option("--request-id", type=click.UUID, help=_REQUEST_ID_HELP)
@common_options
def cancel(settings: Settings, request_id: uuid.UUID | None) -> None:
    """Takes the running `node add` or `node replace` back.

    \b
    Example:
      quorepo node cancel
    """
    from quorepo.rpc.cli.client import connected
    from quorepo.rpc.cli.membership import change_document
    from quorepo.rpc.cli.output import emit_done
    from quorepo.rpc.request_ids import new_request_uuid
    from quorepo.v1 import cluster_pb2

    request_id = request_id or new_request_uuid()
    request = cluster_pb2.CancelMembershipChangeRequest(request_id=request_id.bytes)
    with connected(settings) as client:
        change = client.call(
            client.cluster.CancelMembershipChange, request, request_id=str(request_id)
        )
    emit_done(
        change_document(change), settings.output, f"{change.node} leaves again: quorepo node list"
    )


def _drain(settings: Settings, method: str, request: Any, request_id: uuid.UUID | None) -> None:
    from quorepo.rpc.cli.client import connected
    from quorepo.rpc.cli.membership import plan_document, refuse_impossible, show_plan
    from quorepo.rpc.cli.output import emit_done
    from quorepo.rpc.request_ids import new_request_uuid

    with connected(settings) as client:
        planned = type(request)(node=request.node, dry_run=True)
        plan = client.call(getattr(client.cluster, method), planned).plan
        show_plan(plan)
        refuse_impossible(plan)
        if not request.dry_run:
            request_id = request_id or new_request_uuid()
            request.request_id = request_id.bytes
            client.call(getattr(client.cluster, method), request, request_id=str(request_id))
    what = f"{plan.action} {request.node}"
    did = f"dry run of {what}: nothing was changed" if request.dry_run else f"done: {what}"
    emit_done(plan_document(plan), settings.output, did)


@click.command("drain")
@click.argument("node")
@click.option("--dry-run", is_flag=True, help="Show the plan, change nothing.")
@click.option("--request-id", type=click.UUID, help=_REQUEST_ID_HELP)
@common_options
def drain(settings: Settings, node: str, dry_run: bool, request_id: uuid.UUID | None) -> None:
    """The node hands over what it leads and takes no pushes; it stays a member.

    \b
    Example:
      quorepo node drain n2
    """
    from quorepo.v1 import cluster_pb2

    request = cluster_pb2.DrainNodeRequest(node=node, dry_run=dry_run)
    _drain(settings, "DrainNode", request, request_id)


@click.command("undrain")
@click.argument("node")
@click.option("--dry-run", is_flag=True, help="Show the plan, change nothing.")
@click.option("--request-id", type=click.UUID, help=_REQUEST_ID_HELP)
@common_options
def undrain(settings: Settings, node: str, dry_run: bool, request_id: uuid.UUID | None) -> None:
    """The node may lead and takes pushes again.

    \b
    Example:
      quorepo node undrain n2
    """
    from quorepo.v1 import cluster_pb2

    request = cluster_pb2.UndrainNodeRequest(node=node, dry_run=dry_run)
    _drain(settings, "UndrainNode", request, request_id)


@click.command("transfer-leader")
@click.option("--group", type=click.IntRange(min=0), help="One group; default: all.")
@click.option("--to", "to_node", default="", metavar="NODE", help="Default: who is furthest.")
@click.option("--dry-run", is_flag=True, help="Show the plan, change nothing.")
@common_options
def transfer_leader(settings: Settings, group: int | None, to_node: str, dry_run: bool) -> None:
    """Hands the leadership over.

    \b
    Example:
      quorepo cluster transfer-leader --to n2
    """
    from quorepo.rpc.cli.client import connected
    from quorepo.rpc.cli.membership import refuse_impossible, show_plan
    from quorepo.rpc.cli.output import emit
    from quorepo.v1 import cluster_pb2

    request = cluster_pb2.TransferLeaderRequest(group=group, to_node=to_node, dry_run=True)
    with connected(settings) as client:
        answer = client.call(client.cluster.TransferLeader, request)
        show_plan(answer.plan)
        refuse_impossible(answer.plan)
        if not dry_run:
            request.dry_run = False
            answer = client.call(client.cluster.TransferLeader, request)
    transfers = [
        {"group": t.group, "from": t.from_node, "to": t.to_node, "problem": t.problem or None}
        for t in answer.transfers
    ]

    def lines() -> None:
        for transfer in answer.transfers:
            end = transfer.problem or f"{transfer.from_node} -> {transfer.to_node}"
            click.echo(f"group {transfer.group}: {end}")

    emit({"transfers": transfers}, settings.output, lines)
    if any(transfer.problem for transfer in answer.transfers):
        raise Failure(
            "a leadership was not handed over", next_step="quorepo status",
            exit_code=EXIT_UNAVAILABLE,
        )  # fmt: skip


@click.command("history")
@click.option("--limit", type=click.IntRange(1, 1000), default=100, show_default=True)
@common_options
def history(settings: Settings, limit: int) -> None:
    """The configurations of every group: when they came, by whom, and what changed.

    \b
    Example:
      quorepo cluster history
    """
    from quorepo.rpc.cli.client import connected
    from quorepo.rpc.cli.membership import change_document
    from quorepo.rpc.cli.output import emit, print_table
    from quorepo.v1 import cluster_pb2

    request = cluster_pb2.ListMembershipChangesRequest(limit=limit)
    with connected(settings) as client:
        answer = client.call(client.cluster.ListMembershipChanges, request)
    rows = [
        {
            "time": datetime.datetime.fromtimestamp(c.time_ms / 1000, datetime.UTC).isoformat(),
            "group": c.group,
            "actor": c.actor,
            "description": c.description,
            "voters": list(c.voters),
            "learners": list(c.learners),
            "change_id": c.change_id or None,
            "log_index": c.log_index,
        }
        for c in answer.configurations
    ]
    document = {
        "configurations": rows,
        "changes": [change_document(change) for change in answer.changes],
    }
    columns = ("time", "group", "actor", "description", "voters")
    emit(
        document,
        settings.output,
        lambda: print_table(
            "", columns, [[_cell(row[column]) for column in columns] for row in rows]
        ),
    )


def _cell(value: Any) -> Any:
    return ", ".join(value) if isinstance(value, list) else value


NODE_COMMANDS = (node_list, info, add, promote, remove, replace, cancel, drain, undrain)
CLUSTER_COMMANDS = (transfer_leader, history)
