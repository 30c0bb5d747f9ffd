"""What a group's leader has to do next for the members that the directory wants. Pure.

Every step changes one replica or hands the leadership over, so that a leader killed between two of
them leaves a configuration that is good by itself; the next leader begins here again. Owns that
order. Must not know how steps are carried out, nor where the intentions come from.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Sequence
from typing import Literal

from quorepo.cluster.raft.interface import GroupStatus, ReplicaStatus
from quorepo.cluster.state.members import ChangeRow, Intentions
from quorepo.internal.v1 import log_pb2

__all__ = [
    "PROMOTION_LAG_ENTRIES",
    "Step",
    "is_done",
    "majority_of",
    "next_step",
    "replica_of",
    "without",
]

StepKind = Literal["add", "promote", "remove", "mark", "transfer", "wait"]

# A learner this many entries behind the leader's log is close enough to be counted.
PROMOTION_LAG_ENTRIES = 64


@dataclasses.dataclass(frozen=True, slots=True)
class Step:
    """One step. `wait` has a reason; `transfer` a target; all others a configuration."""

    kind: StepKind
    node: str
    configuration: log_pb2.Configuration | None = None
    target: str = ""  # replica id
    reason: str = ""
    change_id: bytes = b""
    actor: str = ""


def majority_of(voters: int) -> int:
    """How many of so many voters decide."""
    return voters // 2 + 1


def replica_of(configuration: log_pb2.Configuration, replica_id: str) -> log_pb2.Replica | None:
    """The replica with this id, if the configuration has it."""
    return next((r for r in configuration.replicas if r.replica_id == replica_id), None)


def without(configuration: log_pb2.Configuration, replica_id: str) -> log_pb2.Configuration:
    """The configuration without a replica, whose id is on record from then on."""
    return log_pb2.Configuration(
        replicas=[r for r in configuration.replicas if r.replica_id != replica_id],
        removed_replica_ids=[*configuration.removed_replica_ids, replica_id],
    )


def is_done(change: ChangeRow, configuration: log_pb2.Configuration) -> bool:
    """Whether a group with this committed configuration has nothing left to do for the change."""
    replica = replica_of(configuration, change.replica_id)
    if change.cancelling or change.kind == log_pb2.MEMBERSHIP_KIND_REMOVE:
        return replica is None
    if replica is None or replica_of(configuration, change.former_replica_id) is not None:
        return False
    return replica.votes or bool(change.keep_learner)


def next_step(
    status: GroupStatus,
    wanted: Intentions,
    me: str,
    *,
    others_done: bool,
    caught_up: frozenset[str],
) -> Step | None:
    """What the leader `me` of a group does next; None when everything is as it should be.

    Args:
        others_done: every other group is through with the running change. The directory lets a
            replica go as the last group: whoever leads another group learns there what to do.
        caught_up: the learners that took all that the log held a moment ago, with its packs.
    """
    change = wanted.running
    if change is not None and not is_done(change, status.configuration):
        step = _step_of_change(status, wanted, change, me, others_done, caught_up)
        if step is not None:
            return dataclasses.replace(step, change_id=change.change_id, actor=change.actor)
    return _mark_drained(status, wanted, me) or _promote_waiting(status, wanted, me, caught_up)


def _step_of_change(
    status: GroupStatus,
    wanted: Intentions,
    change: ChangeRow,
    me: str,
    others_done: bool,
    caught_up: frozenset[str],
) -> Step | None:
    if change.cancelling or change.kind == log_pb2.MEMBERSHIP_KIND_REMOVE:
        # The one that goes hands over at once: it does not hear when the other groups let it go.
        if not others_done and change.replica_id != me:
            return Step("wait", change.node, reason="the other groups go first")
        # A newcomer that is taken back was never needed for the majority, or not for long.
        forced = bool(change.forced) or change.cancelling
        return _remove(status, wanted, change.replica_id, change.node, me, forced=forced)
    if replica_of(status.configuration, change.former_replica_id) is not None:
        forced = bool(change.forced)
        return _remove(status, wanted, change.former_replica_id, change.node, me, forced=forced)
    replica = replica_of(status.configuration, change.replica_id)
    if replica is None:
        if change.replica_id in status.configuration.removed_replica_ids:
            return Step(
                "wait", change.node, reason=f"replica {change.replica_id!r} was removed for good"
            )
        if change.kind == log_pb2.MEMBERSHIP_KIND_PROMOTE:
            return Step("wait", change.node, reason="it is no replica of this group")
        return _add(status, change)
    return _promote(status, change.replica_id, caught_up, forced=bool(change.forced))


def _add(status: GroupStatus, change: ChangeRow) -> Step:
    changed = _copy(status.configuration)
    changed.replicas.add(
        replica_id=change.replica_id,
        node=change.node,
        peer_address=change.peer_address,
        votes=False,
        stores_packs=True,
        may_lead=False,
    )
    return Step("add", change.node, changed)


def _remove(
    status: GroupStatus, wanted: Intentions, replica_id: str, node: str, me: str, *, forced: bool
) -> Step:
    if replica_id == me:
        return _hand_over(status, wanted, me)
    changed = without(status.configuration, replica_id)
    if not forced and (why := _why_held_back(status, changed)):
        return Step("wait", node, reason=why)
    return Step("remove", node, changed)


def _promote(
    status: GroupStatus, replica_id: str, caught_up: frozenset[str], *, forced: bool
) -> Step:
    seen = next(r for r in status.replicas if r.replica_id == replica_id)
    if not seen.connected:
        return Step("wait", seen.node, reason="it is not reachable")
    if seen.disk_low:
        return Step("wait", seen.node, reason="its disk has no room (storage.reserve_bytes)")
    if not seen.match_index or seen.installs_snapshot:
        return Step("wait", seen.node, reason="it receives a snapshot or has not answered yet")
    behind = status.last_index - seen.match_index
    if behind > PROMOTION_LAG_ENTRIES:
        return Step("wait", seen.node, reason=f"it is {behind} entries behind")
    if replica_id not in caught_up:
        return Step("wait", seen.node, reason="it fetches the packs that the log names")
    changed = _copy(status.configuration)
    for member in changed.replicas:
        if member.replica_id == replica_id:
            member.votes = True
            member.may_lead = True
    if not forced and (why := _why_held_back(status, changed)):
        return Step("wait", seen.node, reason=why)
    return Step("promote", seen.node, changed)


def _mark_drained(status: GroupStatus, wanted: Intentions, me: str) -> Step | None:
    """A drained replica must not be elected; one that is not drained any more may be again."""
    for replica in status.configuration.replicas:
        may_lead = replica.node not in wanted.draining
        if not replica.votes or replica.may_lead == may_lead:
            continue
        if replica.replica_id == me:
            return _hand_over(status, wanted, me)
        changed = _copy(status.configuration)
        for member in changed.replicas:
            if member.replica_id == replica.replica_id:
                member.may_lead = may_lead
        return Step("mark", replica.node, changed)
    return None


def _promote_waiting(
    status: GroupStatus, wanted: Intentions, me: str, caught_up: frozenset[str]
) -> Step | None:
    """Learners that came back by themselves, with an emptied disk."""
    running = wanted.running.replica_id if wanted.running is not None else ""
    for replica in status.configuration.replicas:
        if replica.votes or replica.replica_id in (me, running, *sorted(wanted.kept_learners)):
            continue
        step = _promote(status, replica.replica_id, caught_up, forced=False)
        if step.kind != "wait":
            return step
    return None


def _hand_over(status: GroupStatus, wanted: Intentions, me: str) -> Step:
    may_lead = {r.replica_id for r in status.configuration.replicas if r.votes and r.may_lead}
    able = [
        r
        for r in status.replicas
        if r.replica_id in may_lead and r.replica_id != me and r.connected
        and r.node not in wanted.draining and not r.disk_low
    ]  # fmt: skip
    own = next((r.node for r in status.replicas if r.replica_id == me), "")
    if not able:
        return Step("wait", own, reason="it leads, and no other replica can take over")
    target = max(able, key=lambda replica: (replica.match_index, replica.replica_id))
    return Step("transfer", own, target=target.replica_id)


def _why_held_back(status: GroupStatus, changed: log_pb2.Configuration) -> str:
    """Why the change would cost the majority right now; empty when it would not."""
    voters = [r.replica_id for r in changed.replicas if r.votes]
    reachable = len(_connected(status.replicas, voters))
    majority = majority_of(len(voters))
    if reachable >= majority:
        return ""
    return (
        f"{len(voters)} voters would be left, majority {majority}, but only {reachable} can be "
        "reached"
    )


def _connected(replicas: Sequence[ReplicaStatus], ids: Iterable[str]) -> set[str]:
    return {r.replica_id for r in replicas if r.connected} & set(ids)


def _copy(configuration: log_pb2.Configuration) -> log_pb2.Configuration:
    copied = log_pb2.Configuration()
    copied.CopyFrom(configuration)
    copied.ClearField("change_id")
    copied.ClearField("actor")
    return copied
