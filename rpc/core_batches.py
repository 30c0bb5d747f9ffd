"""Proposals that an edge makes in the same moment travel to the core in one call.

Owns which commands may share a call, and how large one gets. Each keeps its own answer: whoever
proposes sees no difference to a call of its own. A call that breaks breaks for all commands in it,
and each of its proposers draws the conclusion that it would draw alone. Must not know what may be
concluded.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import grpc

from quorepo.internal.v1 import core_pb2, log_pb2
from quorepo.rpc.proposals_config import ProposalsSection
from quorepo.storage.errors import InvalidArgument

__all__ = ["ProposalBatches", "beside_the_log"]

_Answer = asyncio.Future[core_pb2.ProposeResponse]
_Waiting = tuple[core_pb2.ProposeRequest, float, _Answer]


def beside_the_log(packs: Sequence[log_pb2.PackAddition]) -> list[log_pb2.PackAddition]:
    """The packs that have to be on a majority before the command that adds them is proposed."""
    return [pack for pack in packs if pack.encoding != log_pb2.PACK_ENCODING_INLINE]


class ProposalBatches:
    """Lives in one event loop."""

    def __init__(self, stub: Any, limits: ProposalsSection) -> None:
        """`stub` is that of the Core service."""
        self._stub = stub
        self._limits = limits
        self._waiting: list[_Waiting] = []
        self._tasks: set[asyncio.Task[None]] = set()

    def may_share(self, request: core_pb2.ProposeRequest) -> bool:
        """Whether a command is small and waits for nothing but the log: one with packs beside it
        may wait for them, and would hold up the others' answers."""
        command = request.command
        return (
            command.WhichOneof("kind") == "transaction"
            and not beside_the_log(command.transaction.packs_added)
            and request.ByteSize() <= self._limits.shared_command_bytes_max
        )

    async def propose(
        self, request: core_pb2.ProposeRequest, timeout_s: float
    ) -> core_pb2.ProposeResponse:
        """The answer to one command, which `may_share` a call.

        Raises:
            InvalidArgument: it must not get into a log.
            AioRpcError: the call that carried it broke.
        """
        loop = asyncio.get_running_loop()
        answer: _Answer = loop.create_future()
        if not self._waiting:
            loop.call_soon(self._send)  # behind everything that is ready to run now
        self._waiting.append((request, timeout_s, answer))
        try:
            async with asyncio.timeout(timeout_s):  # others of the call may have more patience
                return await answer
        except TimeoutError:
            return core_pb2.ProposeResponse(outcome=core_pb2.OUTCOME_UNKNOWN, reason="timeout")

    def _send(self) -> None:
        waiting, self._waiting = self._waiting, []
        batch: list[_Waiting] = []
        size = 0
        limits = self._limits
        for one in waiting:
            size += one[0].ByteSize()
            full = len(batch) == limits.call_commands_max or size > limits.call_bytes_max
            if batch and full:
                self._begin(batch)
                batch, size = [], one[0].ByteSize()
            batch.append(one)
        self._begin(batch)

    def _begin(self, batch: list[_Waiting]) -> None:
        task = asyncio.get_running_loop().create_task(self._call(batch), name="propose")
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _call(self, batch: list[_Waiting]) -> None:
        try:
            # The core ends each at its own deadline; the call waits for the most patient one.
            timeout_s = max(one[1] for one in batch)
            if len(batch) == 1:
                response = await self._stub.Propose(batch[0][0], timeout=timeout_s)
                _tell(batch[0][2], response)
                return
            many = core_pb2.ProposeManyRequest(requests=[request for request, _, _ in batch])
            answers = (await self._stub.ProposeMany(many, timeout=timeout_s)).answers
            for (_, _, answer), told in zip(batch, answers, strict=True):
                _tell(answer, InvalidArgument(told.invalid) if told.invalid else told.response)
        except grpc.aio.AioRpcError as error:
            for _, _, answer in batch:
                _tell(answer, error)
        finally:
            for _, _, answer in batch:
                if not answer.done():
                    answer.cancel()


def _tell(answer: _Answer, told: core_pb2.ProposeResponse | Exception) -> None:
    """Whoever asked may have gone."""
    if answer.done():
        return
    if isinstance(told, Exception):
        answer.set_exception(told)
    else:
        answer.set_result(told)
