"""A core without Raft: one node, real state stores, and the failures that a test asks for."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path

from quorepo.cluster.apply import DiskActions
from quorepo.cluster.raft.interface import Entry
from quorepo.cluster.state.store import StateStore
from quorepo.internal.v1 import core_pb2, log_pb2
from quorepo.rpc.core_client import Position, check_result
from quorepo.storage.errors import OutcomeUnknown, Unavailable
from quorepo.storage.layout import GroupLayout

__all__ = ["FakeCore"]


class FakeCore:
    """Implements `quorepo.rpc.core_client.Core`; every command is applied at once, in order.

    `has_leader`: False makes everything but status certainly fail.
    `draining`: an operator wants no more pushes on this node.
    `answers_lost`: so many of the next transactions are applied, but their outcome is not told.
    `transactions_lost`: so many of the next ones are not applied, and their outcome is not told.
    `results`: given instead of applying the next transactions.
    `hold`: while set, transactions wait before they are applied.
    `before_replacement`: awaited before a pack that is to replace others is copied.
    `newcomers`: nodes that wait to be added, by name.
    `ahead_ms`: how far the leader's clock, and so log time, is ahead of this machine's.
    """

    def __init__(self, data_dir: Path) -> None:
        self.has_leader = True
        self.draining = False
        self.answers_lost = 0
        self.transactions_lost = 0
        self.results: list[log_pb2.Result] = []
        self.hold: asyncio.Event | None = None
        self.holding = asyncio.Event()
        self.before_replacement: Callable[[], Awaitable[None]] | None = None
        self.ahead_ms = 0
        self.newcomers: dict[str, core_pb2.IdentifyNodeResponse] = {}
        self.read_indexes = 0
        self.commands: list[log_pb2.Command] = []
        self.replicated: list[log_pb2.PackAddition] = []
        self._layouts = {group: GroupLayout(data_dir, group) for group in (0, 1)}
        for layout in self._layouts.values():
            layout.create()
        self._stores = {g: StateStore.open(layout) for g, layout in self._layouts.items()}

    def close(self) -> None:
        for store in self._stores.values():
            store.close()

    async def propose(
        self, group: int, command: log_pb2.Command, timeout_s: float
    ) -> log_pb2.Result:
        if not self.has_leader:
            raise Unavailable("no leader", next_step="try again")
        self.commands.append(command)
        is_transaction = command.WhichOneof("kind") == "transaction"
        if is_transaction and self.results:
            return check_result(self.results.pop(0))
        if is_transaction and self.hold is not None:
            self.holding.set()
            await self.hold.wait()
        if is_transaction and self.transactions_lost:
            self.transactions_lost -= 1
            raise OutcomeUnknown("the outcome is not known: leader-changed")
        result = self.apply(group, command)
        if is_transaction and self.answers_lost:
            self.answers_lost -= 1
            raise OutcomeUnknown("the outcome is not known: leader-changed")
        return check_result(result)

    def apply(self, group: int, command: log_pb2.Command) -> log_pb2.Result:
        store = self._stores[group]
        entry = Entry(
            group=group,
            index=store.applied_index + 1,
            term=1,
            time_ms=time.time_ns() // 1_000_000 + self.ahead_ms,
            kind="command",
            data=command.SerializeToString(deterministic=True),
        )
        (result,) = store.apply_batch([entry], DiskActions(self._layouts[group]))
        assert result is not None
        return result

    async def read_index(self, groups: Sequence[int], timeout_s: float) -> Mapping[int, Position]:
        self.read_indexes += 1
        if not self.has_leader:
            raise Unavailable("group 0 has no leader that a majority confirms")
        return {g: Position(g, s.generation, s.applied_index) for g, s in self._stores.items()}

    async def identify_node(
        self, node: str, peer_address: str, timeout_s: float
    ) -> core_pb2.IdentifyNodeResponse:
        return self.newcomers.get(
            node, core_pb2.IdentifyNodeResponse(node=node, problem="does not answer")
        )

    async def verify(self, start: bool, timeout_s: float) -> core_pb2.CoreVerifyResponse:
        return core_pb2.CoreVerifyResponse()

    async def transfer_leader(
        self, group: int, to_node: str, timeout_s: float
    ) -> core_pb2.CoreTransferResponse:
        return core_pb2.CoreTransferResponse(problem="this core has no other")

    async def replicate_pack(
        self,
        group: int,
        repository_id: str,
        pack: log_pb2.PackAddition,
        timeout_s: float,
        replacement: log_pb2.Command | None = None,
    ) -> Sequence[str]:
        if not self.has_leader:
            raise Unavailable("the pack is on 1 of 3 replicas and no leader is known")
        if replacement is not None and self.before_replacement is not None:
            await self.before_replacement()
        self.replicated.append(pack)
        return ("n1",)

    async def status(
        self, timeout_s: float = 5.0, *, this_node_only: bool = False
    ) -> core_pb2.CoreStatus:
        role = "leader" if self.has_leader else "follower"
        groups = [core_pb2.CoreGroupStatus(group=group, role=role) for group in self._stores]
        return core_pb2.CoreStatus(
            node="n1",
            ready=self.has_leader,
            phase="serving",
            groups=groups,
            draining=self.draining,
        )

    async def create_join_token(
        self, node: str, lifetime_s: float, actor: str, timeout_s: float
    ) -> core_pb2.CoreJoinTokenResponse:
        return core_pb2.CoreJoinTokenResponse(
            token=f"quorepo-join-1:for-{node or 'any'}-by-{actor}",
            expires_ms=int((time.time() + (lifetime_s or 3600)) * 1000),
            ca_fingerprint="00" * 32,
            peer_addresses=["n1.example:7423"],
        )

    async def metrics(self, timeout_s: float = 2.0) -> bytes:
        if not self.has_leader:
            raise Unavailable("this node's core is not running")
        return b"quorepo_fake_core 1\n"
