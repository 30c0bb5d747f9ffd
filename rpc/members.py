"""Changes of the members, for whoever talks to a client: plan, refuse or record, and say how far.

Owns what has to be known before a change is recorded in the directory. Carrying it out is the
leaders' matter (cluster/membership.py); a change that was recorded goes on without this node.
"""

from __future__ import annotations

import contextlib
import dataclasses
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TypeVar

from quorepo.cluster.state.commands import COMMAND_VERSION
from quorepo.cluster.state.members import (
    ChangeRow,
    ConfigurationRow,
    Intentions,
    JoinTokenRow,
    change_by_id,
    changes,
    configurations,
    intentions,
    join_tokens,
)
from quorepo.cluster.state.reader import StateReader
from quorepo.internal.v1 import core_pb2, log_pb2
from quorepo.rpc.context import EdgeContext
from quorepo.rpc.membership_plan import (
    add_plan,
    drain_plan,
    promote_plan,
    remove_plan,
    replace_plan,
    transfer_plan,
)
from quorepo.rpc.reads import GROUP_DIRECTORY, GROUP_STORAGE
from quorepo.rpc.request_ids import made_at_ms, new_request_uuid
from quorepo.storage.errors import InvalidArgument, NotFound, Rejected, Unavailable
from quorepo.v1 import cluster_pb2

__all__ = ["Asked", "Members"]

T = TypeVar("T")

GROUPS = (GROUP_DIRECTORY, GROUP_STORAGE)
_STATUS_TIMEOUT_S = 4.0
_IDENTIFY_TIMEOUT_S = 3.0
_PROPOSE_TIMEOUT_S = 10.0
_TRANSFER_TIMEOUT_S = 5.0
_READ_TIMEOUT_S = 5.0
_TOKEN_ID_CHARS_MIN = 8


@dataclasses.dataclass(frozen=True, slots=True)
class Asked:
    """Who wants a change, and how much they insist."""

    actor: str
    request_id: bytes = b""
    dry_run: bool = False
    force: bool = False
    confirm_cluster: str = ""


class Members:
    """The edge's side of membership. Its errors are those of the tree."""

    def __init__(self, edge: EdgeContext) -> None:
        self._edge = edge
        self._readers = {group: StateReader(edge.reads.layout(group)) for group in GROUPS}

    def close(self) -> None:
        """Closes the readers."""
        for reader in self._readers.values():
            reader.close()

    # ---- what there is

    async def status(self) -> core_pb2.CoreStatus:
        """Every reachable node's picture, as one. Raises Unavailable."""
        return await self._edge.core.status(_STATUS_TIMEOUT_S)

    async def intentions(self) -> Intentions:
        """What the directory of this node wants of the members."""
        return await self._read(GROUP_DIRECTORY, intentions)

    async def change(self, change_id: bytes) -> ChangeRow:
        """A change by its id; without one, the running change or the newest. Raises NotFound."""
        row: ChangeRow | None
        if change_id:
            row = await self._read(GROUP_DIRECTORY, lambda c: change_by_id(c, change_id))
        else:
            newest = await self._read(GROUP_DIRECTORY, lambda c: changes(c, 1))
            row = newest[0] if newest else None
        if row is None:
            which = f"no change {change_id.hex()}" if change_id else "no change"
            raise NotFound(f"there was {which} of the members", next_step="quorepo cluster history")
        return row

    async def history(
        self, limit: int
    ) -> tuple[list[ChangeRow], dict[int, list[ConfigurationRow]]]:
        """The newest changes, and the newest configurations of each group."""
        await self._confirm()
        rows = await self._read(GROUP_DIRECTORY, lambda c: changes(c, limit))
        found = {g: await self._read(g, lambda c: configurations(c, limit)) for g in GROUPS}
        return rows, found

    # ---- join tokens

    async def join_tokens(self) -> list[JoinTokenRow]:
        """The tokens that the directory knows, the newest first."""
        await self._confirm()
        return await self._read(GROUP_DIRECTORY, join_tokens)

    async def revoke(self, token_id: str, asked: Asked) -> JoinTokenRow:
        """Makes a token that nobody used worthless. Raises NotFound, Rejected."""
        found = [r for r in await self.join_tokens() if r.token_digest.hex().startswith(token_id)]
        if len(found) != 1 or len(token_id) < _TOKEN_ID_CHARS_MIN:
            raise NotFound(
                f"{token_id[:80]!r} is not the id of one join token; nothing was changed",
                next_step="quorepo node token list",
            )
        if found[0].used_by:
            node = found[0].used_by.partition("@")[0]
            raise Rejected(
                f"the join token was used by {found[0].used_by!r}; nothing was changed",
                next_step=f"if that node must not be a member: quorepo node remove {node}",
            )
        revoke = log_pb2.RevokeJoinToken(token_digest=found[0].token_digest)
        await self._propose(asked, revoke_join_token=revoke)
        return found[0]

    # ---- changes

    async def add(
        self, node: str, peer_address: str, keep_learner: bool, asked: Asked
    ) -> tuple[cluster_pb2.MembershipPlan, ChangeRow | None]:
        """A new node. Raises Rejected when it can't be."""
        _check_name(node)
        if (known := await self._repeated(asked)) is not None:
            return cluster_pb2.MembershipPlan(action="add", node=node), known
        status = await self._confirmed_status()
        found = await self._edge.core.identify_node(node, peer_address, _IDENTIFY_TIMEOUT_S)
        plan = add_plan(status, node, found.replica_id, keep_learner=keep_learner)
        if not plan.impossible:
            plan.impossible.extend(_newcomer_problems(status, found))
            plan.newcomer_silent = bool(found.problem)
        begin = log_pb2.BeginMembershipChange(
            kind=log_pb2.MEMBERSHIP_KIND_ADD,
            node=node,
            replica_id=found.replica_id,
            peer_address=found.peer_address,
            keep_learner=keep_learner,
            level=found.level,
        )
        return await self._begin(status, plan, begin, asked)

    async def promote(
        self, node: str, asked: Asked
    ) -> tuple[cluster_pb2.MembershipPlan, ChangeRow | None]:
        """A learner that was kept one."""
        _check_name(node)
        if (known := await self._repeated(asked)) is not None:
            return cluster_pb2.MembershipPlan(action="promote", node=node), known
        status = await self._confirmed_status()
        plan = promote_plan(status, node)
        begin = log_pb2.BeginMembershipChange(
            kind=log_pb2.MEMBERSHIP_KIND_PROMOTE, node=node, replica_id=_replica_id(status, node)
        )
        return await self._begin(status, plan, begin, asked)

    async def remove(
        self, node: str, asked: Asked
    ) -> tuple[cluster_pb2.MembershipPlan, ChangeRow | None]:
        """A member, dead or alive."""
        _check_name(node)
        if (known := await self._repeated(asked)) is not None:
            return cluster_pb2.MembershipPlan(action="remove", node=node), known
        status = await self._confirmed_status()
        plan = remove_plan(status, node)
        begin = log_pb2.BeginMembershipChange(
            kind=log_pb2.MEMBERSHIP_KIND_REMOVE, node=node, replica_id=_replica_id(status, node)
        )
        return await self._begin(status, plan, begin, asked)

    async def replace(
        self, node: str, peer_address: str, asked: Asked
    ) -> tuple[cluster_pb2.MembershipPlan, ChangeRow | None]:
        """A member that comes back on an empty disk."""
        _check_name(node)
        if (known := await self._repeated(asked)) is not None:
            return cluster_pb2.MembershipPlan(action="replace", node=node), known
        status = await self._confirmed_status()
        address = peer_address or _peer_address(status, node)
        found = await self._edge.core.identify_node(node, address, _IDENTIFY_TIMEOUT_S)
        plan = replace_plan(status, node, found.replica_id)
        if not plan.impossible:
            plan.impossible.extend(_newcomer_problems(status, found))
            plan.newcomer_silent = bool(found.problem)
        begin = log_pb2.BeginMembershipChange(
            kind=log_pb2.MEMBERSHIP_KIND_REPLACE,
            node=node,
            replica_id=found.replica_id,
            former_replica_id=_replica_id(status, node),
            peer_address=found.peer_address,
            level=found.level,
        )
        return await self._begin(status, plan, begin, asked)

    async def cancel(self, change_id: bytes, asked: Asked) -> ChangeRow:
        """Takes a running change back. Raises NotFound, Rejected."""
        await self._confirm()
        row = await self.change(change_id)
        if row.ended:
            raise Rejected(
                f"the change of node {row.node!r} has ended already; nothing was changed",
                next_step=f"quorepo node remove {row.node}",
            )
        end = log_pb2.EndMembershipChange(
            change_id=row.change_id, end=log_pb2.MEMBERSHIP_END_CANCEL
        )
        await self._propose(asked, end_membership_change=end)
        return await self.change(row.change_id)

    async def drain(self, node: str, draining: bool, asked: Asked) -> cluster_pb2.MembershipPlan:
        """Marks a node to be drained, or takes the mark back."""
        _check_name(node)
        plan = drain_plan(await self._confirmed_status(), node, draining=draining)
        if asked.dry_run:
            return plan
        _refuse(plan, asked, "")
        mark = log_pb2.SetNodeDraining(node=node, draining=draining)
        await self._propose(asked, set_node_draining=mark)
        return plan

    async def transfer(
        self, groups: Sequence[int], to_node: str, asked: Asked
    ) -> tuple[cluster_pb2.MembershipPlan, list[cluster_pb2.LeaderTransfer]]:
        """Hands leaderships over."""
        unknown = [group for group in groups if group not in GROUPS]
        if unknown:
            raise NotFound(f"there is no group {unknown[0]}", next_step="quorepo status")
        plan = transfer_plan(await self.status(), groups or GROUPS, to_node)
        if asked.dry_run:
            return plan, []
        _refuse(plan, asked, "")
        transfers = []
        for group in groups or GROUPS:
            answer = await self._edge.core.transfer_leader(group, to_node, _TRANSFER_TIMEOUT_S)
            transfers.append(
                cluster_pb2.LeaderTransfer(
                    group=group,
                    from_node=answer.from_node,
                    to_node=answer.to_node,
                    problem=answer.problem,
                )
            )
        return plan, transfers

    # ---- within

    async def _begin(
        self,
        status: core_pb2.CoreStatus,
        plan: cluster_pb2.MembershipPlan,
        begin: log_pb2.BeginMembershipChange,
        asked: Asked,
    ) -> tuple[cluster_pb2.MembershipPlan, ChangeRow | None]:
        running = (await self.intentions()).running
        if running is not None:
            plan.impossible.append(
                f"another change is under way: node {running.node!r} (change "
                f"{running.change_id.hex()}); wait for it, or: quorepo node cancel"
            )
        if asked.dry_run:
            return plan, None
        _refuse(plan, asked, status.cluster_id)
        begin.forced = asked.force
        result = await self._propose(asked, begin_membership_change=begin)
        return plan, await self.change(result.membership.change_id)

    async def _repeated(self, asked: Asked) -> ChangeRow | None:
        """The change that this very request began before."""
        if not asked.request_id or asked.dry_run:
            return None
        await self._confirm()
        return await self._read(GROUP_DIRECTORY, lambda c: change_by_id(c, asked.request_id))

    async def _propose(self, asked: Asked, **kind: object) -> log_pb2.Result:
        request_id = asked.request_id or new_request_uuid().bytes
        if len(request_id) != 16:
            raise InvalidArgument(f"a request id has 16 bytes, not {len(request_id)}")
        command = log_pb2.Command(
            version=COMMAND_VERSION,
            request_id=request_id,
            first_seen_ms=made_at_ms(request_id) or time.time_ns() // 1_000_000,
            actor=asked.actor,
            **kind,  # type: ignore[arg-type]
        )
        return await self._edge.core.propose(GROUP_DIRECTORY, command, _PROPOSE_TIMEOUT_S)

    async def _confirm(self) -> None:
        await self._edge.core.read_index(GROUPS, _READ_TIMEOUT_S)

    async def _confirmed_status(self) -> core_pb2.CoreStatus:
        """A plan must not be made on what a node that is cut off remembers. Without a majority it
        is made all the same, and says so."""
        with contextlib.suppress(Unavailable):  # the arithmetic shows it
            await self._confirm()
        return await self.status()

    async def _read(self, group: int, function: Callable[..., T]) -> T:
        return await self._edge.reads.in_thread(lambda: self._readers[group].read(function))


def _refuse(plan: cluster_pb2.MembershipPlan, asked: Asked, cluster_id: str) -> None:
    """Raises Rejected for a plan that must not be carried out."""
    arithmetic = "; ".join(f"group {g.group}: {g.arithmetic}" for g in plan.groups)
    if plan.impossible:
        raise Rejected(f"{'; '.join(plan.impossible)}; nothing was changed", next_step="")
    if not plan.refusals:
        return
    if not asked.force:
        raise Rejected(
            f"{'; '.join(plan.refusals)} ({arithmetic}); nothing was changed",
            next_step="bring the other nodes back first; or, to do it all the same, --force",
        )
    if asked.confirm_cluster != cluster_id or not cluster_id:
        raise Rejected(
            f"--force needs the cluster's name, which is {cluster_id}; nothing was changed",
            next_step="repeat it and type the cluster's name",
        )


def _check_name(node: str) -> None:
    if not node or len(node) > 63 or not node.isascii():
        raise InvalidArgument(f"{node[:80]!r} is no name of a node", next_step="quorepo node list")


def _newcomer_problems(
    status: core_pb2.CoreStatus, found: core_pb2.IdentifyNodeResponse
) -> Iterable[str]:
    removed = {r for group in status.groups for r in group.removed_replica_ids}
    if not found.problem and found.level < status.cluster_level:
        yield (
            f"node {found.node!r} runs an older quorepo (level {found.level}), and this cluster is "
            f"at level {status.cluster_level}: install the newer one there first"
        )
    if found.problem:
        yield f"{found.problem}; start it first: quorepo serve on that machine"
    elif found.replica_id in removed:
        yield (
            f"replica {found.replica_id!r} was removed from this cluster for good; stop the node, "
            "empty its data directory and start it again"
        )
    elif found.cluster_id and found.cluster_id != status.cluster_id:
        yield (
            f"node {found.node!r} belongs to cluster {found.cluster_id}; stop it, empty its data "
            "directory and start it again"
        )


def _replica_id(status: core_pb2.CoreStatus, node: str) -> str:
    return next((r.replica_id for g in status.groups for r in g.replicas if r.node == node), "")


def _peer_address(status: core_pb2.CoreStatus, node: str) -> str:
    return next((r.peer_address for g in status.groups for r in g.replicas if r.node == node), "")
