"""CommitService of quorepo.v1: commits, the trees under them, and their history."""

from __future__ import annotations

from quorepo.rpc.context import EdgeContext
from quorepo.rpc.grpc.commit_trees import TreeMethods
from quorepo.rpc.grpc.commit_walks import WalkMethods, commit_named
from quorepo.rpc.grpc.conversions import open_view, revision_message
from quorepo.rpc.grpc.errors import Context
from quorepo.rpc.grpc.interceptor import caller
from quorepo.rpc.grpc.read_messages import commit_message
from quorepo.rpc.history import HistoryReads
from quorepo.storage.history.source import History
from quorepo.v1 import commit_pb2, commit_pb2_grpc

__all__ = ["CommitService"]


class CommitService(TreeMethods, WalkMethods, commit_pb2_grpc.CommitServiceServicer):
    """See protos/quorepo/v1/commit.proto."""

    def __init__(self, edge: EdgeContext, history: HistoryReads) -> None:
        self._edge = edge
        self._history = history

    async def GetCommit(
        self, request: commit_pb2.GetCommitRequest, context: Context
    ) -> commit_pb2.GetCommitResponse:
        """One commit."""
        self._edge.authenticator.authorize(caller(), "read", request.repository)
        view = await open_view(self._edge, context, request.repository, request.consistency)

        def read(history: History) -> commit_pb2.GetCommitResponse:
            oid = commit_named(history, view, request.commit)
            commit = commit_message(view, oid)
            return commit_pb2.GetCommitResponse(commit=commit, revision=revision_message(view))

        return await self._history.read(view, read, small=True)
