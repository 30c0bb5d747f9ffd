"""RefService of quorepo.v1: refs at one revision, and their changes through the log."""

from __future__ import annotations

from quorepo.rpc.context import EdgeContext
from quorepo.rpc.grpc.conversions import time_left_s
from quorepo.rpc.grpc.errors import Context
from quorepo.rpc.grpc.interceptor import caller
from quorepo.rpc.grpc.ref_reads import RefReadMethods
from quorepo.rpc.grpc.ref_updates import RefUpdates
from quorepo.rpc.grpc.ref_writes import RefWrites
from quorepo.rpc.history import HistoryReads
from quorepo.rpc.repositories import PROPOSE_TIMEOUT_S
from quorepo.rpc.transactions import Transactions
from quorepo.storage.errors import QuorepoError
from quorepo.v1 import ref_pb2, ref_pb2_grpc

__all__ = ["RefService"]


class RefService(RefReadMethods, RefWrites, ref_pb2_grpc.RefServiceServicer):
    """See protos/quorepo/v1/ref.proto."""

    def __init__(self, edge: EdgeContext, history: HistoryReads) -> None:
        self._edge = edge
        self._history = history
        self._transactions = Transactions(
            edge.core, edge.reads, edge.repositories, edge.config.limits
        )
        self._updates = RefUpdates(edge, self._transactions)

    async def UpdateRefs(
        self, request: ref_pb2.UpdateRefsRequest, context: Context
    ) -> ref_pb2.UpdateRefsResponse:
        """One transaction."""
        timeout_s = time_left_s(context, PROPOSE_TIMEOUT_S)
        (outcome,) = await self._updates.run([request], caller(), timeout_s)
        if isinstance(outcome.answer, QuorepoError):
            raise outcome.answer
        return outcome.answer

    async def BatchUpdateRefs(
        self, request: ref_pb2.BatchUpdateRefsRequest, context: Context
    ) -> ref_pb2.BatchUpdateRefsResponse:
        """Many transactions, each with an answer of its own."""
        timeout_s = time_left_s(context, PROPOSE_TIMEOUT_S)
        return await self._updates.batch(request, caller(), timeout_s)
