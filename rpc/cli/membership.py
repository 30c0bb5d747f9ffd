"""What the commands that change the members share: the plan first, a question, then the wait.

Owns how a plan and a change look. Must not know which command it is.
"""

from __future__ import annotations

import contextlib
import shlex
import time
import uuid
from typing import Any

import click

from quorepo.rpc.cli.confirm import confirm, confirm_by_name
from quorepo.rpc.cli.failures import EXIT_REFUSED, EXIT_UNAVAILABLE, EXIT_UNKNOWN, Failure
from quorepo.rpc.cli.options import Settings
from quorepo.rpc.request_ids import new_request_uuid

__all__ = ["carry_out", "change_document", "plan_document", "refuse_impossible", "show_plan"]

_POLL_INTERVAL_S = 0.3
_CHANGES_ASKED = 100  # among which a repeated request looks for what it began


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


def refuse_impossible(plan: Any) -> None:
    """Raises Failure for what can't be done, not even with --force."""
    if plan.impossible:
        raise Failure(f"{'; '.join(plan.impossible)}; nothing was changed", exit_code=EXIT_REFUSED)


def carry_out(
    settings: Settings,
    method: str,
    request: Any,
    *,
    yes: bool,
    force: bool,
    cluster_name: str | None,
    dry_run: bool,
    request_id: uuid.UUID | None,
    wait_s: float = 0,
) -> dict[str, Any]:
    """Plans, asks, begins, waits for the end. Returns what to print.

    Args:
        wait_s: for a newcomer that does not answer yet.
        request_id: of an earlier attempt whose outcome was not known; what it began is waited for.

    Raises:
        Failure
    """
    from quorepo.rpc.cli.client import connected
    from quorepo.v1 import cluster_pb2

    again = shlex.join(["quorepo", "node", request_words(method), request.node])
    with connected(settings) as client:
        begun = _begun_before(client, request_id)
        if begun is not None:
            done = _wait(settings, client, begun)
            return {"plan": None, "change": change_document(done)}
        request.dry_run = True
        plan = client.call(getattr(client.cluster, method), request).plan
        deadline = time.monotonic() + wait_s
        while plan.newcomer_silent and time.monotonic() < deadline:
            time.sleep(_POLL_INTERVAL_S)
            plan = client.call(getattr(client.cluster, method), request).plan
        show_plan(plan)
        document = {"plan": plan_document(plan), "change": None}
        refuse_impossible(plan)
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
        request_id = request_id or new_request_uuid()
        request.request_id = request_id.bytes
        change = client.call(
            getattr(client.cluster, method), request, request_id=str(request_id)
        ).change
        document["change"] = change_document(_wait(settings, client, change))
    return document


def request_words(method: str) -> str:
    """AddNode: add."""
    return method.removesuffix("Node").lower()


def _begun_before(client: Any, request_id: uuid.UUID | None) -> Any:
    """The change that a request began, if it did: a change is called by its request's id."""
    from quorepo.v1 import cluster_pb2

    if request_id is None:
        return None
    request = cluster_pb2.ListMembershipChangesRequest(limit=_CHANGES_ASKED)
    answer = client.call(client.cluster.ListMembershipChanges, request)
    return next((c for c in answer.changes if c.change_id == request_id.hex), None)


def _wait(settings: Settings, client: Any, change: Any) -> Any:
    """Until the change ends. An interrupt leaves it running, and says so; a node that dies
    meanwhile is waited for, and the others are asked."""
    from quorepo.rpc.cli.progress import progress

    heard_at = time.monotonic()
    try:
        with progress(f"{change.kind} {change.node}") as advance:
            while not change.ended_ms:
                waits = [group.waits_for for group in change.groups if group.waits_for]
                lag = change.catch_up
                advance(waits[0] if waits else lag.doing or "under way", lag.percent, 100)
                time.sleep(_POLL_INTERVAL_S)
                asked = _ask(settings, client, change)
                if asked is not None:
                    change, heard_at = asked, time.monotonic()
                elif time.monotonic() > heard_at + settings.timeout_s:
                    raise _goes_on(change, f"no node answers at {settings.endpoint} any more")
                if change.kind == "remove" and _left(client, change.node):
                    break
    except KeyboardInterrupt:
        raise _goes_on(change, "interrupted") from None
    return change


def _goes_on(change: Any, why: str) -> Failure:
    return Failure(
        f"{why}; the change of {change.node} was recorded and goes on without this command",
        next_step="quorepo node list; to wait for it: the same command with --request-id "
        f"{uuid.UUID(hex=change.change_id)}; to take a newcomer back: quorepo node cancel",
        exit_code=EXIT_UNKNOWN,
    )


def _ask(settings: Settings, client: Any, change: Any) -> Any:
    """The change as it is now; None: nobody answers."""
    from quorepo.rpc.cli.client import connected
    from quorepo.v1 import cluster_pb2

    request = cluster_pb2.GetMembershipChangeRequest(change_id=change.change_id)
    try:
        return client.call(client.cluster.GetMembershipChange, request)
    except Failure as failure:
        if failure.exit_code != EXIT_UNAVAILABLE:
            raise
    # Another endpoint perhaps, or the same once it is back; it may not have heard of the change.
    with contextlib.suppress(Failure), connected(settings) as other:
        return other.call(other.cluster.GetMembershipChange, request)
    return None


def _left(client: Any, node: str) -> bool:
    """The node that was asked may be the one that left: it does not hear of the end."""
    from quorepo.v1 import cluster_pb2

    request = cluster_pb2.GetStatusRequest(this_node_only=True)
    with contextlib.suppress(Failure):  # it does not answer at all; see _ask
        status = client.call(client.cluster.GetStatus, request)
        return any(n.name == node and n.phase == "removed" for n in status.nodes)
    return False
