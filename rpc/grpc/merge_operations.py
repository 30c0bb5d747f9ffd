"""The calls of OperationService that bring histories together; a part of `OperationService`."""

from __future__ import annotations

from typing import Any

from quorepo.rpc.grpc.conversions import open_view, revision_message
from quorepo.rpc.grpc.errors import Context, MergeConflicted
from quorepo.rpc.grpc.expectations import expected_value
from quorepo.rpc.grpc.interceptor import caller
from quorepo.rpc.grpc.operation_record import recorded
from quorepo.rpc.grpc.read_messages import read_timeout_s
from quorepo.rpc.grpc.ref_writes import revision_of
from quorepo.rpc.operations import Built, Done
from quorepo.rpc.reads import RepositoryView
from quorepo.storage.errors import InvalidArgument, NotFound
from quorepo.v1 import common_pb2, errors_pb2, operation_pb2

__all__ = ["MergeOperations"]

PB = operation_pb2
_MODES = {
    PB.MergeRequest.MODE_UNSPECIFIED: "any",
    PB.MergeRequest.MODE_FAST_FORWARD_OR_MERGE: "any",
    PB.MergeRequest.MODE_FAST_FORWARD_ONLY: "ff",
    PB.MergeRequest.MODE_MERGE_COMMIT: "commit",
    PB.MergeRequest.MODE_SQUASH: "squash",
}
_OUTCOMES = {
    "fast_forward": PB.MergeResponse.OUTCOME_FAST_FORWARD,
    "commit": PB.MergeResponse.OUTCOME_COMMIT,
}


class _UpToDate(Exception):
    def __init__(self, oid: bytes, revision: common_pb2.Revision) -> None:
        super().__init__("up to date")
        self.oid, self.revision = oid, revision


class MergeOperations:
    """See protos/quorepo/v1/operation.proto."""

    _edge: Any
    _operations: Any
    _branch: Any
    _person: Any
    _people: Any
    _commit: Any
    _change: Any

    @recorded
    async def Merge(self, request: PB.MergeRequest, context: Context) -> PB.MergeResponse:
        """One commit, a moved branch, or nothing to do."""
        branch = self._branch(request.branch)
        mode = _MODES.get(request.mode)
        if mode is None:
            raise InvalidArgument(f"mode {request.mode} is unknown")
        author = committer = b""
        if request.author.ByteSize():
            author, committer = self._people(request.author, request.committer)
        short = branch.removeprefix(b"refs/heads/")
        message = request.message or b"Merge %b into %b" % (request.source, short)

        async def build(view: RepositoryView) -> Built:
            theirs = await self._commit(view, request.source)
            spec = {
                "theirs": theirs.hex(),
                "mode": mode,
                "author": author.hex(),
                "committer": committer.hex(),
                "message": (message if message.endswith(b"\n") else message + b"\n").hex(),
            }
            return await self._build(view, branch, "merge", spec, request.expected)

        try:
            done = await self._change(request, branch, build, context, request.expected)
        except _UpToDate as found:
            return PB.MergeResponse(
                outcome=PB.MergeResponse.OUTCOME_UP_TO_DATE,
                commit_oid=found.oid.hex(),
                revision=found.revision,
            )
        return PB.MergeResponse(
            outcome=_OUTCOMES[done.answer["outcome"]],
            commit_oid=done.answer["commit"],
            revision=revision_of(done.result.revision),
        )

    @recorded
    async def MergeCheck(
        self, request: PB.MergeCheckRequest, context: Context
    ) -> PB.MergeCheckResponse:
        """Reads only."""
        self._edge.authenticator.authorize(caller(), "read", request.repository)
        view = await open_view(self._edge, context, request.repository, request.consistency)
        spec = {
            "ours": (await self._commit(view, request.target)).hex(),
            "theirs": (await self._commit(view, request.source)).hex(),
        }
        timeout_s = read_timeout_s(self._edge, context)
        answer = await self._operations.try_out(view, "check", spec, timeout_s)
        response = PB.MergeCheckResponse(revision=revision_message(view))
        if "conflicts" in answer:
            detail = _detail(answer)
            response.conflicts.extend(detail.conflicts)
            response.conflict_count = detail.conflict_count
            return response
        response.clean = True
        response.up_to_date = answer["up_to_date"]
        response.fast_forward = answer["fast_forward"]
        response.tree_oid = answer["tree"]
        response.merge_base_oids.extend(answer["bases"])
        return response

    @recorded
    async def CherryPick(
        self, request: PB.CherryPickRequest, context: Context
    ) -> PB.CherryPickResponse:
        """The author stays."""
        committer = self._person(request.committer, "committer")
        done = await self._pick(request, context, b"", committer, revert=False)
        return PB.CherryPickResponse(
            commit_oid=done.answer["commit"],
            tree_oid=done.answer["tree"],
            revision=revision_of(done.result.revision),
        )

    @recorded
    async def Revert(self, request: PB.RevertRequest, context: Context) -> PB.RevertResponse:
        """The opposite of a cherry-pick."""
        author, committer = self._people(request.author, request.committer)
        done = await self._pick(request, context, author, committer, revert=True)
        return PB.RevertResponse(
            commit_oid=done.answer["commit"],
            tree_oid=done.answer["tree"],
            revision=revision_of(done.result.revision),
        )

    async def _pick(
        self, request: Any, context: Context, author: bytes, committer: bytes, *, revert: bool
    ) -> Done:
        branch = self._branch(request.branch)

        async def build(view: RepositoryView) -> Built:
            spec = {
                "commit": (await self._commit(view, request.commit)).hex(),
                "mainline": request.mainline,
                "revert": revert,
                "author": author.hex(),
                "committer": committer.hex(),
                "message": request.message.hex(),
                "allow_empty": request.allow_empty,
            }
            return await self._build(view, branch, "pick", spec, request.expected)

        done: Done = await self._change(request, branch, build, context, request.expected)
        return done

    @recorded
    async def Rebase(self, request: PB.RebaseRequest, context: Context) -> PB.RebaseResponse:
        """Moves the branch to the replayed commits."""
        branch = self._branch(request.branch)
        committer = self._person(request.committer, "committer")

        async def build(view: RepositoryView) -> Built:
            onto = await self._commit(view, request.onto)
            upstream = await self._commit(view, request.upstream) if request.upstream else onto
            spec = {
                "onto": onto.hex(),
                "upstream": upstream.hex(),
                "committer": committer.hex(),
                "commits_max": self._edge.config.api.rebase_commits_max,
            }
            return await self._build(view, branch, "rebase", spec, request.expected)

        try:
            done = await self._change(request, branch, build, context, request.expected)
        except _UpToDate as found:
            return PB.RebaseResponse(commit_oid=found.oid.hex(), revision=found.revision)
        return PB.RebaseResponse(
            commit_oid=done.answer["commit"],
            commits_replayed=done.answer["replayed"],
            commits_dropped=done.answer["dropped"],
            revision=revision_of(done.result.revision),
        )

    async def _build(
        self, view: RepositoryView, branch: bytes, kind: str, spec: dict[str, Any],
        expected: PB.BranchExpectation,
    ) -> Built:  # fmt: skip
        ours = view.refs.get(branch)
        if ours is None:
            raise NotFound(f"branch {branch.decode(errors='backslashreplace')!r} does not exist")
        wanted = expected_value(view, branch, ours, expected)
        spec["ours"] = ours.hex()
        new, answer, packs = await self._operations.make(view, branch, kind, spec)
        if "conflicts" in answer:
            raise MergeConflicted(_detail(answer))
        if new == ours:
            raise _UpToDate(ours, revision_message(view))
        return Built(new, wanted, answer, packs)


def _detail(answer: dict[str, Any]) -> errors_pb2.MergeConflict:
    detail = errors_pb2.MergeConflict(conflict_count=answer["count"], commit_oid=answer["commit"])
    for path, ancestor, ours, theirs in answer["conflicts"]:
        detail.conflicts.add(
            path=bytes.fromhex(path), ancestor_oid=ancestor, our_oid=ours, their_oid=theirs
        )
    return detail
