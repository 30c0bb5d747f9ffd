"""What a membership step would do to every group's quorum: the arithmetic, and why it is refused.

Pure, over a picture of the cluster (CoreStatus, every reachable node's own view in it). Whoever
carries the step out looks again (cluster/membership_steps.py): a plan is a promise about now only.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence

from quorepo.internal.v1 import core_pb2
from quorepo.v1 import cluster_pb2

__all__ = ["MemberOf", "add_plan", "drain_plan", "members_of", "promote_plan", "remove_plan",
           "replace_plan", "transfer_plan"]  # fmt: skip

# A replica whose log is this close to the committed one counts as a full copy.
_FULL_COPY_LAG_ENTRIES = 256


@dataclasses.dataclass(frozen=True, slots=True)
class MemberOf:
    """One replica of one group, as far as a plan has to know it."""

    node: str
    replica_id: str
    votes: bool
    reachable: bool
    may_lead: bool
    leads: bool = False
    full: bool = False  # holds the log, and so every pack that is not named as missing
    missing: frozenset[bytes] = frozenset()


Change = Callable[[Sequence[MemberOf]], list[MemberOf]]


def members_of(status: core_pb2.CoreStatus, group: core_pb2.CoreGroupStatus) -> list[MemberOf]:
    """The replicas of a group, in order of their nodes."""
    own = {
        view.replica_id: found
        for view in status.views
        for found in view.groups
        if found.group == group.group
    }
    members = []
    for replica in sorted(group.replicas, key=lambda r: (r.node, r.replica_id)):
        view = own.get(replica.replica_id)
        near = replica.match_index + _FULL_COPY_LAG_ENTRIES >= group.commit_index
        members.append(
            MemberOf(
                node=replica.node,
                replica_id=replica.replica_id,
                votes=replica.votes,
                reachable=replica.reachable,
                may_lead=replica.may_lead,
                leads=replica.role == "leader",
                # At most a thousand missing packs are named: who lacks more is not counted on.
                full=near and view is not None and view.packs_missing <= len(view.missing_digests),
                missing=frozenset(() if view is None else view.missing_digests),
            )
        )
    return members


def add_plan(
    status: core_pb2.CoreStatus, node: str, replica_id: str, *, keep_learner: bool
) -> cluster_pb2.MembershipPlan:
    """A newcomer: a learner first, which changes no arithmetic, then a voter."""

    def come(members: Sequence[MemberOf]) -> list[MemberOf]:
        newcomer = MemberOf(
            node, replica_id, votes=not keep_learner, reachable=True, may_lead=not keep_learner
        )
        return [*members, newcomer]

    plan = _plan(status, "add", node, come)
    if _replicas(status, node):
        plan.impossible.append(
            f"node {node!r} is a member already; a node that comes back on an empty disk: "
            f"quorepo node replace {node}"
        )
    plan.steps.append(f"{node} becomes a learner in every group: it counts for no majority")
    plan.steps.append("it receives the state, the packs and the log")
    if keep_learner:
        plan.steps.append(f"it stays a learner until: quorepo node promote {node}")
    else:
        plan.steps.append("once it has caught up it votes, group by group")
    return plan


def promote_plan(status: core_pb2.CoreStatus, node: str) -> cluster_pb2.MembershipPlan:
    """A learner gets the vote."""

    def promote(members: Sequence[MemberOf]) -> list[MemberOf]:
        return [
            dataclasses.replace(m, votes=True, may_lead=True) if m.node == node else m
            for m in members
        ]

    plan = _plan(status, "promote", node, promote)
    replicas = _replicas(status, node)
    if not replicas:
        plan.impossible.append(f"there is no node {node!r}; see: quorepo node list")
    elif all(replica.votes for replica in replicas):
        plan.impossible.append(f"node {node!r} votes already")
    plan.steps.append(f"once {node} has caught up it votes, group by group")
    return plan


def remove_plan(status: core_pb2.CoreStatus, node: str) -> cluster_pb2.MembershipPlan:
    """A node goes for good."""

    def go(members: Sequence[MemberOf]) -> list[MemberOf]:
        return [m for m in members if m.node != node]

    plan = _plan(status, "remove", node, go)
    replicas = _replicas(status, node)
    if not replicas:
        plan.impossible.append(f"there is no node {node!r}; see: quorepo node list")
    if any(replica.role == "leader" for replica in replicas):
        plan.steps.append(f"{node} hands over what it leads")
    plan.steps.append(f"{node} leaves every group; its replica id is never taken in again")
    return plan


def replace_plan(
    status: core_pb2.CoreStatus, node: str, replica_id: str
) -> cluster_pb2.MembershipPlan:
    """The old replica goes, a new one of the same node comes. Refused by what lies in between."""

    def go(members: Sequence[MemberOf]) -> list[MemberOf]:
        return [m for m in members if m.node != node]

    plan = _plan(status, "replace", node, go)
    replicas = _replicas(status, node)
    if not replicas:
        plan.impossible.append(
            f"there is no node {node!r} to replace; see: quorepo node list; to take in a new one: "
            f"quorepo node add {node}"
        )
    old = sorted({replica.replica_id for replica in replicas})
    if replica_id in old:
        plan.impossible.append(
            f"node {node!r} runs as replica {replica_id!r}, which is the member: there is nothing "
            f"to replace; empty its data directory and start it, or: quorepo node remove {node}"
        )
    for group in plan.groups:
        group.arithmetic += " until the new replica has caught up"
    plan.steps.append(f"{', '.join(old)} leaves every group and never votes again")
    newcomer = replica_id or f"a new replica of {node}"
    plan.steps.append(f"{newcomer} becomes a learner in every group and catches up")
    plan.steps.append("once it has caught up it votes, group by group")
    return plan


def drain_plan(
    status: core_pb2.CoreStatus, node: str, *, draining: bool
) -> cluster_pb2.MembershipPlan:
    """A node leads nothing and takes no pushes, or does again."""

    def mark(members: Sequence[MemberOf]) -> list[MemberOf]:
        return [
            dataclasses.replace(m, may_lead=m.votes and not draining) if m.node == node else m
            for m in members
        ]

    plan = _plan(status, "drain" if draining else "undrain", node, mark)
    if not _replicas(status, node):
        plan.impossible.append(f"there is no node {node!r}; see: quorepo node list")
    if draining:
        for group in plan.groups:
            if not group.after.may_lead:
                plan.impossible.append(
                    f"group {group.group}: no other node that can be reached may lead; bring one "
                    "back or undrain one first"
                )
        plan.steps.append(f"{node} hands over what it leads, and is not elected")
        plan.steps.append("it takes no pushes, ends the running ones, and is not ready")
    else:
        plan.steps.append(f"{node} may lead, takes pushes, and is ready")
    return plan


def transfer_plan(
    status: core_pb2.CoreStatus, groups: Iterable[int], to_node: str
) -> cluster_pb2.MembershipPlan:
    """Another replica leads; nobody comes or goes."""
    plan = _plan(status, "transfer", to_node, list)
    wanted = set(groups)
    kept = [group for group in plan.groups if group.group in wanted]
    del plan.groups[:]
    plan.groups.extend(kept)
    for group in status.groups:
        if group.group not in wanted:
            continue
        able = {r.node for r in group.replicas if r.votes and r.may_lead and r.reachable}
        if to_node and to_node not in able:
            plan.impossible.append(
                f"group {group.group}: node {to_node!r} is no voter that may lead and can be "
                "reached"
            )
        elif not to_node and not able - {group.leader}:
            plan.impossible.append(f"group {group.group}: nobody else can lead")
        plan.steps.append(
            f"group {group.group}: {group.leader or 'nobody'} hands over to "
            f"{to_node or 'the voter that is furthest'}"
        )
    return plan


def _plan(
    status: core_pb2.CoreStatus, action: str, node: str, change: Change
) -> cluster_pb2.MembershipPlan:
    plan = cluster_pb2.MembershipPlan(action=action, node=node)
    for group in status.groups:
        members = members_of(status, group)
        after = change(members)
        plan.groups.append(_group_plan(action, group.group, members, after))
        _judge(plan, plan.groups[-1], action)
    return plan


def _group_plan(
    action: str, group: int, before: Sequence[MemberOf], after: Sequence[MemberOf]
) -> cluster_pb2.GroupPlan:
    gone = {m.replica_id for m in before} - {m.replica_id for m in after}
    plan = cluster_pb2.GroupPlan(
        group=group,
        before=_quorum(before),
        after=_quorum(after),
        lost_packs=len(_lost(before, after)) if gone else 0,
    )
    words = {"remove": "removal", "add": "promotion", "promote": "promotion"}
    plan.arithmetic = _arithmetic(plan, words.get(action, "that"))
    return plan


def _quorum(members: Sequence[MemberOf]) -> cluster_pb2.QuorumState:
    voters = [m for m in members if m.votes]
    reachable = sum(m.reachable for m in voters)
    majority = len(voters) // 2 + 1
    return cluster_pb2.QuorumState(
        voters=len(voters),
        reachable=reachable,
        majority=majority,
        tolerates=reachable - majority,
        may_lead=sum(m.may_lead and m.reachable for m in voters),
    )


def _lost(before: Sequence[MemberOf], after: Sequence[MemberOf]) -> frozenset[bytes]:
    """Packs that nobody who stays is known to hold. Unreachable replicas are not counted on."""
    staying = {m.replica_id for m in after}
    full = [m for m in before if m.replica_id in staying and m.reachable and m.full]
    named = frozenset(digest for m in before for digest in m.missing)
    return frozenset(digest for digest in named if all(digest in m.missing for m in full))


def _judge(plan: cluster_pb2.MembershipPlan, group: cluster_pb2.GroupPlan, action: str) -> None:
    before, after, number = group.before, group.after, group.group
    if before.tolerates < 0:
        plan.impossible.append(
            f"group {number} has no majority now ({before.reachable} of {before.voters} voters "
            f"reachable, majority {before.majority}): bring a node back first"
        )
        return
    if action in ("drain", "undrain", "transfer"):
        return
    if not after.voters:
        plan.impossible.append(f"group {number}: nobody would be left")
        return
    if after.tolerates < 0:
        plan.refusals.append(
            f"group {number} would lose its majority: {after.reachable} of {after.voters} voters "
            f"reachable, majority {after.majority}"
        )
    if not after.may_lead:
        plan.refusals.append(f"group {number}: nobody would be left who may lead")
    if group.lost_packs:
        plan.refusals.append(
            f"group {number}: the last full copy of {group.lost_packs} packs would go"
        )
    if after.tolerates == 0 and after.tolerates < before.tolerates:
        plan.warnings.append(f"group {number} would tolerate no failure")


def _arithmetic(plan: cluster_pb2.GroupPlan, after_what: str) -> str:
    before, after = plan.before, plan.after
    return (
        f"{before.voters} voters, {before.reachable} reachable, majority {before.majority}; after "
        f"{after_what} {after.voters} voters, majority {after.majority}, "
        + (
            f"tolerates {after.tolerates} failures"
            if after.tolerates >= 0
            else f"only {after.reachable} reachable: no majority"
        )
    )


def _replicas(status: core_pb2.CoreStatus, node: str) -> list[core_pb2.CoreReplicaStatus]:
    return [r for group in status.groups for r in group.replicas if r.node == node]
