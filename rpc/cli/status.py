"""`quorepo status`: the cluster as the node that was asked sees it."""

from __future__ import annotations

from typing import Any

import click

from quorepo.rpc.cli.options import Settings, common_options

__all__ = ["command", "status_document"]


@click.command("status")
@common_options
def command(settings: Settings) -> None:
    """Nodes, groups, leaders and how far each replica is.

    Works without a leader. A node that does not answer is shown as not reachable.

    \b
    Examples:
      quorepo status
      quorepo --endpoint 127.0.0.1:7431 status -o json
    """
    from quorepo.rpc.cli.client import connected
    from quorepo.rpc.cli.output import print_json, print_table
    from quorepo.v1 import cluster_pb2

    with connected(settings) as client:
        answer = client.call(client.cluster.GetStatus, cluster_pb2.GetStatusRequest())
    document = status_document(answer)
    if settings.output == "json":
        print_json(document)
        return
    print_table(
        f"Cluster {answer.cluster_id or '(not formed)'}, as {answer.answered_by} sees it",
        ("node", "state", "http", "grpc", "version"),
        [
            (node["name"], _state(node), node["http"], node["grpc"], node["version"])
            for node in document["nodes"]
        ],
    )
    silent = {node["name"] for node in document["nodes"] if not node["reachable"]}
    print_table(
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
    )
    for group in document["groups"]:
        if group["leader"] is None:
            click.echo(f"group {group['group']} has no leader: writes wait for one", err=True)


def status_document(answer: Any) -> dict[str, list[dict[str, Any]]]:
    """What `-o json` prints: `nodes` and `groups`; a leader is a node's name, or null.

    Args:
        answer: a GetStatusResponse.
    """
    return {
        "nodes": [
            {
                "name": node.name,
                "replica_id": node.replica_id,
                "reachable": node.reachable,
                "ready": node.ready,
                "phase": node.phase,
                "http": node.http_url,
                "grpc": node.grpc_address,
                "metrics": node.metrics_url,
                "peer": node.peer_address,
                "version": node.version,
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


def _state(node: dict[str, Any]) -> str:
    if not node["reachable"]:
        return "not reachable"
    return "ready" if node["ready"] else f"not ready ({node['phase']})"
