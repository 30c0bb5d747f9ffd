"""The part of the core client that asks about members; the retries are those of every harmless
call (core_client.py).
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from typing import Any, Protocol, TypeVar

from quorepo.internal.v1 import core_pb2

__all__ = ["MemberCallsClient"]

_ANSWER_MARGIN_S = 0.5  # the core is given its deadline, and this much more to say how it ended

_Response = TypeVar("_Response")


class _Deadline(Protocol):
    def left_s(self) -> float: ...

    def left_ms(self) -> int: ...


class MemberCallsClient:
    """Mixed into `CoreClient`."""

    _stub: Any

    async def _until_answered(
        self,
        call: Callable[[Any], Awaitable[_Response]],
        timeout_s: float,
    ) -> _Response:
        raise NotImplementedError  # CoreClient has it

    async def identify_node(
        self, node: str, peer_address: str, timeout_s: float
    ) -> core_pb2.IdentifyNodeResponse:
        """Who waits at an address of the peer network; `problem` says when nobody does.

        Raises:
            Unavailable: no core within `timeout_s`.
        """

        async def call(deadline: _Deadline) -> core_pb2.IdentifyNodeResponse:
            answer: core_pb2.IdentifyNodeResponse = await self._stub.IdentifyNode(
                core_pb2.IdentifyNodeRequest(
                    node=node, peer_address=peer_address, timeout_ms=deadline.left_ms()
                ),
                timeout=deadline.left_s() + _ANSWER_MARGIN_S,
            )
            return answer

        return await self._until_answered(call, timeout_s)

    async def verify(self, start: bool, timeout_s: float) -> core_pb2.CoreVerifyResponse:
        """Starts every node's pass over its packs, or tells of it. Raises Unavailable."""

        async def call(deadline: _Deadline) -> core_pb2.CoreVerifyResponse:
            answer: core_pb2.CoreVerifyResponse = await self._stub.Verify(
                core_pb2.CoreVerifyRequest(start=start),
                timeout=deadline.left_s() + _ANSWER_MARGIN_S,
            )
            return answer

        return await self._until_answered(call, timeout_s)

    async def transfer_leader(
        self, group: int, to_node: str, timeout_s: float
    ) -> core_pb2.CoreTransferResponse:
        """Hands a leadership over, through whichever node leads; `problem` says when it did not
        work.

        Raises:
            Unavailable: no core within `timeout_s`.
        """

        async def call(deadline: _Deadline) -> core_pb2.CoreTransferResponse:
            answer: core_pb2.CoreTransferResponse = await self._stub.TransferLeader(
                core_pb2.CoreTransferRequest(
                    group=group, to_node=to_node, timeout_ms=deadline.left_ms()
                ),
                timeout=deadline.left_s() + _ANSWER_MARGIN_S,
            )
            return answer

        return await self._until_answered(call, timeout_s)
