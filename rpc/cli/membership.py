"""What the commands that change the members share: the plan first, a question, then the wait.

Owns how a plan and a change look. Must not know which command it is.
"""

from __future__ import annotations

import shlex
import time
from typing import Any

import click

from quorepo.rpc.cli.confirm import confirm, confirm_by_name
from quorepo.rpc.cli.failures import EXIT_REFUSED, EXIT_UNKNOWN, Failure
from quorepo.rpc.cli.options import Settings
from quorepo.rpc.request_ids import new_request_uuid

__all__ = ["carry_out", "change_document", "plan_document", "show_plan"]

_POLL_INTERVAL_S = 0.3


def plan_document(plan: Any) -> dict[str, Any]:
    """A MembershipPlan as `-o json` prints it."""
    return {
        "action": plan.action,
        "node": plan.node,
        "groups": [
            {"group": group.group, "arithmetic": group.arithmetic, "lost_packs": group.lost_packs}
            for group in plan.groups
        ],
        "steps": list(plan.steps),
        "refusals": list(plan.refusals),
        "impossible": list(plan.impossible),
        "warnings": list(plan.warnings),
    }


def change_document(change: Any) -> dict[str, Any]:
    """A MembershipChange as `-o json` prints it."""
    from quorepo.v1 import cluster_pb2

    state = cluster_pb2.MembershipChangeState.Name(change.state)
    return {
        "change_id": change.change_id,
        "kind": change.kind,
        "node": change.node,
        "replica_id": change.replica_id,
        "actor": change.actor,
        "state": state.removeprefix("MEMBERSHIP_CHANGE_STATE_").lower(),
        "started_ms": change.started_ms,
        "ended_ms": change.ended_ms or None,
    }


def show_plan(plan: Any) -> None:
    """The arithmetic and the steps, on standard error."""
    for group in plan.groups:
        click.echo(f"group {group.group}: {group.arithmetic}", err=True)
    for number, text in enumerate(plan.steps, start=1):
        click.echo(f"  {number}. {text}", err=True)
    for text in plan.warnings:
        click.echo(f"warning: {text}", err=True)


def carry_out(
    settings: Settings,
    method: str,
    request: Any,
    *,
    yes: bool,
    force: bool,
    cluster_name: str | None,
    dry_run: bool,
) -> dict[str, Any]:
    """Plans, asks, begins, waits for the end. Returns what to print.

    Raises:
        Failure
    """
    from quorepo.rpc.cli.client import connected
    from quorepo.v1 import cluster_pb2

    again = shlex.join(["quorepo", "node", request_words(method), request.node])
    with connected(settings) as client:
        request.dry_run = True
        plan = client.call(getattr(client.cluster, method), request).plan
        show_plan(plan)
        document = {"plan": plan_document(plan), "change": None}
        if plan.impossible:
            raise Failure(
                f"{'; '.join(plan.impossible)}; nothing was changed", exit_code=EXIT_REFUSED
            )
        if dry_run:
            for text in plan.refusals:
                click.echo(f"would be refused: {text}", err=True)
            return document
        if plan.refusals:
            status = client.call(client.cluster.GetStatus, cluster_pb2.GetStatusRequest())
            confirm_by_name(
                "; ".join(plan.refusals), status.cluster_id, force=force, typed=cluster_name,
                again=f"{again} --force",
            )  # fmt: skip
            request.force, request.confirm_cluster = True, status.cluster_id
        else:
            confirm(f"{plan.action} {request.node}?", yes=yes, again=f"{again} --yes")
        request.dry_run = False
        request_id = new_request_uuid()
        request.request_id = request_id.bytes
        change = client.call(
            getattr(client.cluster, method), request, request_id=str(request_id)
        ).change
        document["change"] = change_document(_wait(client, change, request.node))
    return document


def request_words(method: str) -> str:
    """AddNode: add."""
    return method.removesuffix("Node").lower()


def _wait(client: Any, change: Any, node: str) -> Any:
    """Until the change ends; an interrupt leaves it running, and says so."""
    from quorepo.rpc.cli.progress import progress
    from quorepo.v1 import cluster_pb2

    try:
        with progress(f"{change.kind} {node}") as advance:
            while not change.ended_ms:
                waits = [group.waits_for for group in change.groups if group.waits_for]
                lag = change.catch_up
                advance(waits[0] if waits else lag.doing or "under way", lag.percent, 100)
                time.sleep(_POLL_INTERVAL_S)
                change = client.call(
                    client.cluster.GetMembershipChange,
                    cluster_pb2.GetMembershipChangeRequest(change_id=change.change_id),
                )
                if change.kind == "remove" and _left(client, node):
                    break
    except KeyboardInterrupt:
        raise Failure(
            f"the change of {node} goes on without this command",
            next_step="quorepo node list; to take a newcomer back: quorepo node cancel",
            exit_code=EXIT_UNKNOWN,
        ) from None
    return change


def _left(client: Any, node: str) -> bool:
    """The node that was asked may be the one that left: it does not hear of the end."""
    from quorepo.v1 import cluster_pb2

    request = cluster_pb2.GetStatusRequest(this_node_only=True)
    status = client.call(client.cluster.GetStatus, request)
    return any(n.name == node and n.phase == "removed" for n in status.nodes)
