"""The calls of RefService that name no new object: deletions, and HEAD.

Owns their translation; a part of `ref_service.RefService`. Old values are compared by apply only,
so that a repeated request gets its first answer instead of a mismatch with its own effect.
"""

from __future__ import annotations

from quorepo.internal.v1 import log_pb2
from quorepo.rpc.context import EdgeContext
from quorepo.rpc.core_client import Reverify, check_result
from quorepo.rpc.grpc.conversions import (
    open_view,
    request_uuid,
    telling_request_id,
    time_left_s,
)
from quorepo.rpc.grpc.errors import Context
from quorepo.rpc.grpc.interceptor import caller
from quorepo.rpc.objects import parse_oid
from quorepo.rpc.push_checks import Change
from quorepo.rpc.reads import RepositoryView
from quorepo.rpc.repositories import PROPOSE_TIMEOUT_S
from quorepo.rpc.transactions import Target, Transactions, Verified
from quorepo.rpc.visible_refs import check_not_hidden
from quorepo.storage.errors import InvalidArgument, LimitExceeded, NotFound, Unavailable
from quorepo.storage.git.refnames import check_ref_name
from quorepo.storage.packs import COMMIT
from quorepo.v1 import common_pb2, ref_pb2

__all__ = ["RefWrites", "branch_name", "ref_name", "revision_of"]

_ATTEMPTS_MAX = 4  # of prunes between the look at an object and apply
_BRANCHES = b"refs/heads/"


def ref_name(name: bytes, prefix: bytes, name_bytes_max: int) -> bytes:
    """A full name under `prefix`, from a full or a short one.

    Raises:
        InvalidArgument: no name that git allows.
        LimitExceeded: limits.ref_name_bytes_max.
    """
    full = name if name.startswith(b"refs/") else prefix + name
    problem = check_ref_name(full)
    if problem is None and not full.startswith(prefix):
        problem = f"it is not under {prefix.decode()}"
    if problem is not None:
        raise InvalidArgument(f"{name[:200].decode('utf-8', 'backslashreplace')!r}: {problem}")
    if len(full) > name_bytes_max:
        raise LimitExceeded(
            f"ref name has {len(full)} bytes, limits.ref_name_bytes_max is {name_bytes_max}",
            limit="limits.ref_name_bytes_max",
        )
    return full


def branch_name(name: bytes, name_bytes_max: int) -> bytes:
    """The full name of a branch. Raises as `ref_name`."""
    return ref_name(name, _BRANCHES, name_bytes_max)


def revision_of(revision: log_pb2.Revision) -> common_pb2.Revision:
    """A revision of the log in the words of the API."""
    return common_pb2.Revision(incarnation=revision.incarnation, counter=revision.counter)


class RefWrites:
    """See protos/quorepo/v1/ref.proto."""

    _edge: EdgeContext
    _transactions: Transactions

    async def DeleteRefs(
        self, request: ref_pb2.DeleteRefsRequest, context: Context
    ) -> ref_pb2.DeleteRefsResponse:
        """One transaction, whatever the refs are now."""
        identity = caller()
        self._edge.authenticator.authorize(identity, "write", request.repository)
        request_id = request_uuid(request.request_id)
        names_max = self._edge.config.limits.refs_per_push_max
        name_bytes_max = self._edge.config.limits.ref_name_bytes_max
        with telling_request_id(request_id):
            if not request.names:
                raise InvalidArgument("names must not be empty")
            if len(request.names) > names_max:
                raise LimitExceeded(
                    f"{len(request.names)} names, limits.refs_per_push_max is {names_max}",
                    limit="limits.refs_per_push_max",
                    next_step="send them in several requests",
                )
            names = dict.fromkeys(
                ref_name(name, b"refs/", name_bytes_max) for name in request.names
            )
            check_not_hidden(self._edge, identity, names)
            view = await open_view(
                self._edge, context, request.repository, common_pb2.Consistency()
            )

            async def verify(target: Target) -> Verified:
                if target.view is None:
                    raise NotFound(f"repository {target.path!r} does not exist")
                return Verified(target)

            result = await self._transactions.commit(
                await verify(Target(view.path, view, view.object_format)),
                [Change(name, None, None, any_old=True) for name in names],
                atomic=True,
                origin=self._edge.origin(identity.user, request_id.bytes),
                verify=verify,
                timeout_s=time_left_s(context, PROPOSE_TIMEOUT_S),
            )
        return ref_pb2.DeleteRefsResponse(revision=revision_of(result.revision))

    async def SetDefaultBranch(
        self, request: ref_pb2.SetDefaultBranchRequest, context: Context
    ) -> ref_pb2.SetDefaultBranchResponse:
        """HEAD points to a branch, whatever it is now."""
        head = branch_name(request.branch, self._edge.config.limits.ref_name_bytes_max)
        answer = await self.SetHead(
            ref_pb2.SetHeadRequest(
                request_id=request.request_id, repository=request.repository, branch=head
            ),
            context,
        )
        return ref_pb2.SetDefaultBranchResponse(revision=answer.revision, head=head)

    async def SetHead(
        self, request: ref_pb2.SetHeadRequest, context: Context
    ) -> ref_pb2.SetHeadResponse:
        """HEAD points to a branch or is detached."""
        identity = caller()
        self._edge.authenticator.authorize(identity, "write", request.repository)
        request_id = request_uuid(request.request_id)
        origin = self._edge.origin(identity.user, request_id.bytes)
        with telling_request_id(request_id):
            if request.WhichOneof("target") is None:
                raise InvalidArgument("SetHead needs a branch or an oid")
            for _attempt in range(_ATTEMPTS_MAX):
                view = await open_view(
                    self._edge, context, request.repository, common_pb2.Consistency()
                )
                command = origin.command()
                command.set_head.CopyFrom(await self._head(view, request))
                timeout_s = time_left_s(context, PROPOSE_TIMEOUT_S)
                try:
                    result = check_result(
                        await self._edge.core.propose(view.group, command, timeout_s)
                    )
                except Reverify:
                    continue
                return ref_pb2.SetHeadResponse(revision=revision_of(result.repository.revision))
            raise Unavailable("objects are pruned faster than they are checked")

    async def _head(self, view: RepositoryView, request: ref_pb2.SetHeadRequest) -> log_pb2.SetHead:
        command = log_pb2.SetHead(
            repository_id=view.repository_id, prune_epoch=view.row.prune_epoch
        )
        if request.WhichOneof("target") == "branch":
            limits = self._edge.config.limits
            command.branch = branch_name(request.branch, limits.ref_name_bytes_max)
            check_not_hidden(self._edge, caller(), [command.branch])
        else:
            command.detached_oid = parse_oid(view, request.oid, "oid")
            await self._edge.reads.in_thread(lambda: _check_commit(view, command.detached_oid))
        match request.WhichOneof("expectation"):
            case None:
                command.any_old = True
            case "expected_branch":
                command.expected_branch = request.expected_branch
            case "expected_oid":
                command.expected_detached_oid = parse_oid(view, request.expected_oid)
        return command


def _check_commit(view: RepositoryView, oid: bytes) -> None:
    if oid not in view.packs:
        raise NotFound(f"object {oid.hex()} is not in {view.path!r}")
    if view.packs.object_type(oid) != COMMIT:
        raise InvalidArgument(f"HEAD must point to a commit, {oid.hex()} is none")
