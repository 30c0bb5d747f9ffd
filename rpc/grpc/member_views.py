"""Nodes, replicas and changes of the members in the words of quorepo.v1.

Must not know where the pictures come from.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

from quorepo.cluster.state.levels import told
from quorepo.cluster.state.members import ChangeRow, ConfigurationRow, JoinTokenRow
from quorepo.cluster.state.rows import NodeRow
from quorepo.internal.v1 import core_pb2, log_pb2
from quorepo.v1 import cluster_pb2

__all__ = [
    "catch_up",
    "change_message",
    "configuration_messages",
    "fill_in",
    "group_message",
    "join_token_message",
    "node_message",
    "verification_message",
]

# A voter this close is caught up: under writes it is never quite there.
_CAUGHT_UP_ENTRIES = 64

_KINDS: dict[int, str] = {
    log_pb2.MEMBERSHIP_KIND_ADD: "add",
    log_pb2.MEMBERSHIP_KIND_PROMOTE: "promote",
    log_pb2.MEMBERSHIP_KIND_REMOVE: "remove",
    log_pb2.MEMBERSHIP_KIND_REPLACE: "replace",
}


def node_message(row: NodeRow, ready: bool | None) -> cluster_pb2.NodeStatus:
    """Another node as it registered itself; `ready` is None when it does not answer."""
    version, level = told(row.version)
    phase = "" if ready is None else ("serving" if ready else "not serving")
    return cluster_pb2.NodeStatus(
        name=row.name,
        replica_id=row.replica_id,
        reachable=ready is not None,
        ready=bool(ready),
        phase=phase,
        http_url=row.http_url,
        grpc_address=row.grpc_address,
        metrics_url=row.metrics_url,
        peer_address=row.peer_address,
        version=version,
        level=level,
    )


def fill_in(
    nodes: list[cluster_pb2.NodeStatus],
    status: core_pb2.CoreStatus,
    draining: Iterable[str],
) -> None:
    """Adds what the groups and the nodes' own cores say, and members that are not registered."""
    known = {node.name: node for node in nodes}
    views = {view.node: view for view in status.views}
    for group in status.groups:
        for replica in group.replicas:
            if replica.node not in known:
                known[replica.node] = cluster_pb2.NodeStatus(
                    name=replica.node,
                    replica_id=replica.replica_id,
                    peer_address=replica.peer_address,
                )
                nodes.append(known[replica.node])
    drained = set(draining)
    for node in nodes:
        node.draining = node.name in drained
        node.member = _membership(node, status)
        if (view := views.get(node.name)) is not None:
            node.phase = view.phase
            node.problem = view.problem
            node.packs_missing = sum(group.packs_missing for group in view.groups)
            node.packs_total = sum(group.packs_total for group in view.groups)
            node.missing_bytes = sum(group.missing_bytes for group in view.groups)
            node.version = node.version or view.version
            node.level = node.level or view.level
        behind = [
            catch_up(group, replica)
            for group in status.groups
            for replica in group.replicas
            if replica.node == node.name
        ]
        if behind:
            node.catch_up.CopyFrom(min(behind, key=lambda c: c.percent))


def _membership(node: cluster_pb2.NodeStatus, status: core_pb2.CoreStatus) -> str:
    votes = [r.votes for g in status.groups for r in g.replicas if r.node == node.name]
    if votes:
        return "voter" if all(votes) else "learner"
    removed = {r.partition("@")[0] for g in status.groups for r in g.removed_replica_ids}
    return "removed" if node.name in removed else ""


def catch_up(
    group: core_pb2.CoreGroupStatus, replica: core_pb2.CoreReplicaStatus
) -> cluster_pb2.CatchUp:
    """How far a replica is from what its group has committed."""
    own = replica.catch_up
    behind = max(0, group.commit_index - replica.match_index)
    message = cluster_pb2.CatchUp(
        entries_behind=behind,
        bytes_done=own.bytes_done,
        bytes_total=own.bytes_total,
        packs_done=own.packs_done,
        packs_total=own.packs_total,
    )
    if not replica.reachable:
        message.doing = "not reachable"
    elif replica.disk_low:
        message.doing = "disk full"
    elif own.doing:
        message.doing = own.doing
    elif not replica.match_index:
        message.doing = "waiting"
    else:
        # One entry may name a pack of gigabytes: a learner has everything or has not caught up.
        near = _CAUGHT_UP_ENTRIES if replica.votes else 0
        message.doing = "log" if behind > near else "caught up"
    if message.doing == "caught up":
        message.percent = 100
    elif own.bytes_total:
        message.percent = min(99, own.bytes_done * 100 // own.bytes_total)
    elif group.commit_index:
        message.percent = min(99, replica.match_index * 100 // group.commit_index)
    return message


def group_message(status: core_pb2.CoreGroupStatus) -> cluster_pb2.GroupStatus:
    """One group with its replicas, in order of their nodes."""
    return cluster_pb2.GroupStatus(
        group=status.group,
        leader=status.leader,
        term=status.term,
        commit_index=status.commit_index,
        replicas=[
            cluster_pb2.ReplicaStatus(
                node=replica.node,
                replica_id=replica.replica_id,
                role=replica.role,
                applied_index=replica.applied_index,
                match_index=replica.match_index,
                votes=replica.votes,
                connected=replica.connected,
                reachable=replica.reachable,
                may_lead=replica.may_lead,
                catch_up=catch_up(status, replica),
            )
            for replica in sorted(status.replicas, key=lambda replica: replica.node)
        ],
    )


def change_message(
    row: ChangeRow, status: core_pb2.CoreStatus | None = None
) -> cluster_pb2.MembershipChange:
    """A change; with how far it is when it runs and a picture of the groups is given."""
    message = cluster_pb2.MembershipChange(
        change_id=row.change_id.hex(),
        kind=_KINDS.get(row.kind, ""),
        node=row.node,
        replica_id=row.replica_id,
        peer_address=row.peer_address,
        actor=row.actor,
        state=cluster_pb2.MembershipChangeState.ValueType(row.state),
        started_ms=row.started_ms,
        ended_ms=row.ended_ms,
        forced=bool(row.forced),
    )
    if row.ended or status is None:
        return message
    goes = row.cancelling or row.kind == log_pb2.MEMBERSHIP_KIND_REMOVE
    behind = []
    for group in status.groups:
        found = next((r for r in group.replicas if r.replica_id == row.replica_id), None)
        progress = message.groups.add(group=group.group, waits_for=_waits_for(status, group.group))
        if goes:
            progress.done = found is None
            progress.step = "gone" if found is None else "leaves the group"
            continue
        former = [r for r in group.replicas if r.replica_id == row.former_replica_id]
        if found is None:
            progress.step = "the old replica leaves" if former else "joins as a learner"
            continue
        progress.done = found.votes or bool(row.keep_learner)
        lag = catch_up(group, found)
        behind.append(lag)
        progress.step = "votes" if found.votes else f"learner, {lag.doing}"
    if behind:
        message.catch_up.CopyFrom(min(behind, key=lambda lag: lag.percent))
    return message


def _waits_for(status: core_pb2.CoreStatus, group: int) -> str:
    """The word of the node that leads the group."""
    for view in status.views:
        for found in view.groups:
            if found.group == group and found.role == "leader":
                return found.waits_for
    return ""


def configuration_messages(
    groups: Mapping[int, Sequence[ConfigurationRow]],
) -> list[cluster_pb2.ConfigurationChange]:
    """Each configuration beside the one before it, the newest first."""
    messages = []
    for group, rows in groups.items():
        for position, row in enumerate(rows):
            before = rows[position + 1].configuration if position + 1 < len(rows) else None
            messages.append(_configuration_message(group, row, before))
    return sorted(messages, key=lambda m: (-m.time_ms, m.group, -m.log_index))


def _configuration_message(
    group: int, row: ConfigurationRow, before: log_pb2.Configuration | None
) -> cluster_pb2.ConfigurationChange:
    now = row.configuration
    return cluster_pb2.ConfigurationChange(
        group=group,
        log_index=row.log_index,
        time_ms=row.time_ms,
        actor=now.actor,
        change_id=now.change_id.hex(),
        description="" if before is None else _describe(before, now),
        voters=sorted(r.node for r in now.replicas if r.votes),
        learners=sorted(r.node for r in now.replicas if not r.votes),
    )


def _describe(before: log_pb2.Configuration, now: log_pb2.Configuration) -> str:
    old = {r.replica_id: r for r in before.replicas}
    new = {r.replica_id: r for r in now.replicas}
    words = [f"{r.node} removed" for i, r in sorted(old.items()) if i not in new]
    for replica_id, replica in sorted(new.items()):
        was = old.get(replica_id)
        if was is None:
            words.append(f"{replica.node} added as {'voter' if replica.votes else 'learner'}")
        elif replica.votes and not was.votes:
            words.append(f"{replica.node} votes")
        elif replica.may_lead != was.may_lead:
            words.append(f"{replica.node} {'may lead' if replica.may_lead else 'must not lead'}")
        elif replica != was:
            words.append(f"{replica.node} changed")
    return ", ".join(words)


def join_token_message(row: JoinTokenRow, now_ms: int) -> cluster_pb2.JoinToken:
    """A join token as the directory knows it."""
    state = "used" if row.used_by else "expired" if now_ms >= row.expires_ms else "open"
    message = cluster_pb2.JoinToken(
        id=row.token_digest.hex()[:16],
        node=row.node,
        actor=row.actor,
        used_by=row.used_by,
        state=state,
    )
    message.create_time.FromMilliseconds(row.created_ms)
    message.expire_time.FromMilliseconds(row.expires_ms)
    if row.used_ms:
        message.use_time.FromMilliseconds(row.used_ms)
    return message


def verification_message(answer: core_pb2.CoreVerifyResponse) -> cluster_pb2.VerifyResponse:
    """Every node's pass over its packs."""
    response = cluster_pb2.VerifyResponse(unreachable=sorted(answer.unreachable))
    for node in sorted(answer.nodes, key=lambda n: n.node):
        view = response.nodes.add(
            node=node.node,
            running=node.running,
            passes=node.passes,
            packs_checked=node.packs_checked,
            packs_total=node.packs_total,
            bytes_checked=node.bytes_checked,
            bytes_total=node.bytes_total,
        )
        if node.finished_ms:
            view.finished_time.FromMilliseconds(node.finished_ms)
        for fault in node.faults:
            view.faults.add(
                group=fault.group,
                repository_id=fault.repository_id,
                digest=fault.digest,
                kind=fault.kind,
                healed=fault.healed,
                problem=fault.problem,
            )
    return response
