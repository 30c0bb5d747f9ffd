"""The engine's picture of a group in the words of the API, and several nodes' pictures as one.

Must not know where the pictures come from.
"""

from __future__ import annotations

from collections.abc import Sequence

from quorepo.cluster.raft.interface import GroupStatus
from quorepo.internal.v1 import core_pb2

__all__ = ["group_status_message", "merge_peers", "node_view"]


def group_status_message(status: GroupStatus, me: str) -> core_pb2.CoreGroupStatus:
    """One group as the replica `me` sees it."""
    known = {r.replica_id: r for r in status.configuration.replicas}
    leader = status.leader or ""
    replicas = []
    for replica in status.replicas:
        role = "voter" if replica.votes else "learner"
        own = replica.replica_id == me
        member = known[replica.replica_id]
        replicas.append(
            core_pb2.CoreReplicaStatus(
                node=replica.node,
                replica_id=replica.replica_id,
                role="leader" if replica.replica_id == leader else role,
                match_index=status.last_index if own else replica.match_index,
                applied_index=status.applied_index if own else replica.applied_index,
                connected=own or replica.connected,
                reachable=own,
                may_lead=member.may_lead,
                votes=replica.votes,
                disk_low=replica.disk_low,
                peer_address=member.peer_address,
            )
        )
    return core_pb2.CoreGroupStatus(
        group=status.group,
        leader=known[leader].node if leader in known else "",
        term=status.term,
        commit_index=status.commit_index,
        applied_index=status.applied_index,
        last_index=status.last_index,
        role=status.role,
        replicas=replicas,
        disk_low=next((r.disk_low for r in status.replicas if r.replica_id == me), False),
        removed_replica_ids=status.configuration.removed_replica_ids,
    )


def node_view(status: core_pb2.CoreStatus) -> core_pb2.CoreNodeView:
    """What a node says of itself, without what it says of the others."""
    view = core_pb2.CoreNodeView(
        node=status.node,
        replica_id=status.replica_id,
        phase=status.phase,
        ready=status.ready,
        draining=status.draining,
        version=status.version,
        problem=status.problem,
        level=status.level,
    )
    for group in status.groups:
        own = view.groups.add()
        own.CopyFrom(group)
        own.ClearField("replicas")
        own.ClearField("removed_replica_ids")
    return view


def merge_peers(status: core_pb2.CoreStatus, peers: Sequence[core_pb2.CoreStatus]) -> None:
    """Fills in what each replica says of itself, and takes the newest leader's word on the rest."""
    for group in status.groups:
        views = {p.replica_id: g for p in peers for g in p.groups if g.group == group.group}
        newest = max(views.values(), key=lambda view: (view.term, bool(view.leader)), default=group)
        _take_leaders_word(group, views)
        own = next((r for r in group.replicas if r.replica_id == status.replica_id), None)
        if own is not None:
            own.reachable, own.connected = True, True
            own.match_index, own.applied_index = group.last_index, group.applied_index
            own.catch_up.CopyFrom(group.catch_up)
        for replica in group.replicas:
            view = views.get(replica.replica_id)
            if view is not None:
                replica.applied_index = view.applied_index
                replica.match_index = view.last_index
                replica.disk_low = view.disk_low
                replica.reachable = True
                replica.catch_up.CopyFrom(view.catch_up)
        if newest.term > group.term or (newest.term == group.term and not group.leader):
            group.leader = newest.leader
            group.term = newest.term
        group.commit_index = max([group.commit_index, *(v.commit_index for v in views.values())])
        for replica in group.replicas:
            if replica.votes:
                replica.role = "leader" if replica.node == group.leader else "voter"


def _take_leaders_word(
    group: core_pb2.CoreGroupStatus, views: dict[str, core_pb2.CoreGroupStatus]
) -> None:
    """The members are those that the newest leader's log has: the replica that answers here may
    have been removed, or be new."""
    leaders = [view for view in views.values() if view.role == "leader"]
    leader = max(leaders, key=lambda view: view.term, default=None)
    if leader is None or leader.term < group.term or group.role == "leader":
        return
    connected = {r.replica_id: r.connected for r in group.replicas}
    del group.replicas[:]
    group.replicas.extend(leader.replicas)
    for replica in group.replicas:
        replica.connected = connected.get(replica.replica_id, False)
        replica.reachable = False
    del group.removed_replica_ids[:]
    group.removed_replica_ids.extend(leader.removed_replica_ids)
