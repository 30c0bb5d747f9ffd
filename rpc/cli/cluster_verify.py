"""`quorepo cluster verify`: every node re-reads its packs, and heals what is damaged."""

from __future__ import annotations

import time
from typing import Any

import click

from quorepo.rpc.cli.failures import EXIT_FOUND, EXIT_UNAVAILABLE
from quorepo.rpc.cli.options import Settings, common_options

__all__ = ["verify"]

_POLL_S = 0.5


@click.command("verify")
@click.option("--no-wait", is_flag=True, help="Start it, and show how far it is.")
@click.option("--show", is_flag=True, help="Start nothing: show the running pass, or the last.")
@common_options
@click.pass_context
def verify(context: click.Context, /, settings: Settings, no_wait: bool, show: bool) -> None:
    """Re-reads all packs of all nodes against their SHA-256; a bad one is replaced by a good copy.

    It also compares the repositories of all nodes, revision by revision. One that is not as on a
    majority has diverged: its node goes out of service, and has to be emptied and replaced.

    The nodes do it by themselves too (storage.scrub_interval_s, scrub_bytes_per_s). An interrupted
    command does not end the pass.

    Exit codes: 0 all is right or was healed, 6 some packs are still damaged or missing, 3 a member
    did not answer.

    \b
    Examples:
      quorepo cluster verify
      quorepo cluster verify --show -o json
    """
    from quorepo.rpc.cli.client import connected
    from quorepo.rpc.cli.output import emit, print_table
    from quorepo.rpc.cli.progress import progress
    from quorepo.v1 import cluster_pb2

    with connected(settings) as client, progress("verify", in_bytes=True) as advance:
        request = cluster_pb2.VerifyRequest(start=not show)
        answer = client.call(client.cluster.Verify, request)
        while not (show or no_wait) and any(node.running for node in answer.nodes):
            done = sum(node.bytes_checked for node in answer.nodes)
            advance("reading", done, sum(node.bytes_total for node in answer.nodes))
            time.sleep(_POLL_S)
            answer = client.call(client.cluster.Verify, cluster_pb2.VerifyRequest())
    document = {
        "nodes": [_document(node) for node in answer.nodes],
        "unreachable": list(answer.unreachable),
    }
    faults = [(node["node"], fault) for node in document["nodes"] for fault in node["faults"]]

    def lines() -> None:
        columns = ["node", "packs", "bytes", "running", "finished", "faults", "healed"]
        rows = [
            [n["node"], n["packs_checked"], n["bytes_checked"], "yes" if n["running"] else "no",
             n["finished"] or "", len(n["faults"]), sum(f["healed"] for f in n["faults"])]
            for n in document["nodes"]
        ]  # fmt: skip
        print_table("", columns, rows)
        for name, fault in faults:
            end = "healed" if fault["healed"] else f"NOT healed: {fault['problem'] or 'missing'}"
            where = f"repository {fault['repository_id']} of group {fault['group']}"
            if fault["kind"] == "diverged":
                click.echo(f"{name}: {where} DIVERGED: {fault['problem']}; {name} stops serving")
                continue
            click.echo(f"{name}: pack {fault['digest']} of {where} was {fault['kind']}; {end}")
        for name in document["unreachable"]:
            click.echo(f"{name}: does not answer; its packs were not looked at")

    emit(document, settings.output, lines)
    if any(not fault["healed"] for _, fault in faults):
        context.exit(EXIT_FOUND)
    context.exit(EXIT_UNAVAILABLE if document["unreachable"] else 0)


def _document(node: Any) -> dict[str, Any]:
    finished = node.finished_time.ToJsonString() if node.HasField("finished_time") else None
    return {
        "node": node.node,
        "running": node.running,
        "passes": node.passes,
        "packs_checked": node.packs_checked,
        "packs_total": node.packs_total,
        "bytes_checked": node.bytes_checked,
        "bytes_total": node.bytes_total,
        "finished": finished,
        "faults": [
            {
                "group": fault.group,
                "repository_id": fault.repository_id,
                "digest": fault.digest.hex(),
                "kind": fault.kind,
                "healed": fault.healed,
                "problem": fault.problem or None,
            }
            for fault in node.faults
        ],
    }
