"""`client.refs`: refs read at one revision, changed by compare-and-swap."""

from __future__ import annotations

from collections.abc import AsyncIterator, Sequence

from quorepo.rpc.client import codecs
from quorepo.rpc.client.asynchronous.transport import Transport
from quorepo.rpc.client.errors import ApiError, from_status
from quorepo.rpc.client.session import Session
from quorepo.rpc.client.types import (
    DefaultBranch,
    Ref,
    RefTransaction,
    RefTransactionOutcome,
    RefUpdate,
    RefUpdateResult,
    Revision,
)
from quorepo.v1 import ref_pb2 as pb

__all__ = ["Refs"]

_ORDERS = {"name": pb.REF_ORDER_NAME, "date": pb.REF_ORDER_COMMITTER_DATE}


class Refs:
    """Calls of RefService. All raise `quorepo.errors.ApiError`."""

    def __init__(self, transport: Transport, session: Session) -> None:
        self._transport = transport
        self._session = session

    async def list(
        self,
        repository: str,
        prefix: str | bytes = b"",
        *,
        pointing_at: str | bytes = b"",
        containing: str | bytes = b"",
        order: str = "name",
        descending: bool = False,
        page_size: int = 1000,
        consistency: str | None = None,
    ) -> AsyncIterator[Ref]:
        """Refs in order, page by page as they are looked at.

        Args:
            pointing_at: only refs that have, or whose tag leads to, what this revision names.
            containing: only refs whose history has this commit.
            order: "name", or "date" of the commit that the ref leads to.
        """
        request = pb.ListRefsRequest(
            repository=repository,
            prefix=codecs.to_bytes(prefix),
            pointing_at=codecs.to_bytes(pointing_at),
            containing=codecs.to_bytes(containing),
            order=codecs.choice("order", _ORDERS, order),
            descending=descending,
            page_size=page_size,
            consistency=self._session.wanted(repository, consistency),
        )
        while True:
            answer = await self._transport.unary(
                pb.ListRefsResponse, "RefService/ListRefs", request
            )
            self._session.saw(repository, answer.revision)
            for message in answer.refs:
                yield codecs.ref(message)
            if not answer.next_page_token:
                return
            request.page_token = answer.next_page_token

    async def get(
        self, repository: str, name: str | bytes, *, consistency: str | None = None
    ) -> Ref:
        """`HEAD` or a ref by its full name.

        Raises:
            NotFound
        """
        request = pb.GetRefRequest(
            repository=repository,
            name=codecs.to_bytes(name),
            consistency=self._session.wanted(repository, consistency),
        )
        answer = await self._transport.unary(pb.GetRefResponse, "RefService/GetRef", request)
        self._session.saw(repository, answer.revision)
        return codecs.ref(answer.ref)

    async def exists(
        self, repository: str, name: str | bytes, *, consistency: str | None = None
    ) -> bool:
        """Whether there is a ref of this full name, or `HEAD` leads to something."""
        request = pb.CheckRefExistsRequest(
            repository=repository,
            name=codecs.to_bytes(name),
            consistency=self._session.wanted(repository, consistency),
        )
        answer = await self._transport.unary(
            pb.CheckRefExistsResponse, "RefService/CheckRefExists", request
        )
        self._session.saw(repository, answer.revision)
        return answer.exists

    async def default_branch(
        self, repository: str, *, consistency: str | None = None
    ) -> DefaultBranch:
        """What HEAD points to."""
        request = pb.GetDefaultBranchRequest(
            repository=repository, consistency=self._session.wanted(repository, consistency)
        )
        answer = await self._transport.unary(
            pb.GetDefaultBranchResponse, "RefService/GetDefaultBranch", request
        )
        self._session.saw(repository, answer.revision)
        return DefaultBranch(answer.name, answer.oid)

    async def containing(
        self,
        repository: str,
        commit: str | bytes,
        prefix: str | bytes = b"",
        *,
        page_size: int = 1000,
        consistency: str | None = None,
    ) -> AsyncIterator[Ref]:
        """The refs whose history has a commit, in order of their names, page by page."""
        request = pb.ListRefsContainingRequest(
            repository=repository,
            commit=codecs.to_bytes(commit),
            prefix=codecs.to_bytes(prefix),
            page_size=page_size,
            consistency=self._session.wanted(repository, consistency),
        )
        while True:
            answer = await self._transport.unary(
                pb.ListRefsContainingResponse, "RefService/ListRefsContaining", request
            )
            self._session.saw(repository, answer.revision)
            for message in answer.refs:
                yield codecs.ref(message)
            if not answer.next_page_token:
                return
            request.page_token = answer.next_page_token

    async def update(
        self,
        repository: str,
        updates: Sequence[RefUpdate],
        *,
        allow_partial: bool = False,
        request_id: str | None = None,
    ) -> tuple[Revision, tuple[RefUpdateResult, ...]]:
        """Creates, moves and deletes refs to objects that the repository has, in one transaction.

        Args:
            allow_partial: each ref by itself; look at the results.

        Raises:
            ReferenceMismatch, NameConflict: and nothing was changed.
        """
        request = pb.UpdateRefsRequest(
            request_id=codecs.request_uuid(request_id),
            repository=repository,
            updates=[codecs.ref_update(update) for update in updates],
            allow_partial=allow_partial,
        )
        answer = await self._transport.unary(
            pb.UpdateRefsResponse, "RefService/UpdateRefs", request
        )
        self._session.saw(repository, answer.revision)
        results = tuple(codecs.ref_update_result(result) for result in answer.results)
        return codecs.revision(answer.revision), results

    async def update_many(
        self, transactions: Sequence[RefTransaction]
    ) -> tuple[RefTransactionOutcome, ...]:
        """Many transactions of `update` in one call, of one or several repositories.

        Each one stands for itself, and no order is promised between them. One that was refused, or
        whose outcome is not known, raises nothing: look at `error` of its outcome.

        Raises:
            InvalidArgument, LimitExceeded, Unavailable: and nothing was changed.
        """
        requests = [
            pb.UpdateRefsRequest(
                request_id=codecs.request_uuid(transaction.request_id),
                repository=transaction.repository,
                updates=[codecs.ref_update(update) for update in transaction.updates],
                allow_partial=transaction.allow_partial,
            )
            for transaction in transactions
        ]
        try:
            answer = await self._transport.unary(
                pb.BatchUpdateRefsResponse,
                "RefService/BatchUpdateRefs",
                pb.BatchUpdateRefsRequest(requests=requests),
                request_id=requests[0].request_id if requests else "",
            )
        except ApiError as error:
            if error.conclusion != "unknown":
                raise
            return tuple(
                RefTransactionOutcome(request.request_id, error.of_request(request.request_id))
                for request in requests
            )
        return tuple(
            self._outcome(request.repository, item)
            for request, item in zip(requests, answer.items, strict=True)
        )

    def _outcome(self, repository: str, item: pb.BatchUpdateRefsItem) -> RefTransactionOutcome:
        if item.WhichOneof("outcome") == "error":
            status = codecs.status(item.error)
            return RefTransactionOutcome(item.request_id, from_status(status, item.request_id))
        self._session.saw(repository, item.response.revision)
        return RefTransactionOutcome(
            item.request_id,
            None,
            codecs.revision(item.response.revision),
            tuple(codecs.ref_update_result(result) for result in item.response.results),
        )

    async def delete(
        self, repository: str, names: Sequence[str | bytes], *, request_id: str | None = None
    ) -> Revision:
        """Deletes refs in one transaction; one that does not exist is no error."""
        request = pb.DeleteRefsRequest(
            request_id=codecs.request_uuid(request_id),
            repository=repository,
            names=[codecs.to_bytes(name) for name in names],
        )
        answer = await self._transport.unary(
            pb.DeleteRefsResponse, "RefService/DeleteRefs", request
        )
        self._session.saw(repository, answer.revision)
        return codecs.revision(answer.revision)

    async def set_default_branch(
        self, repository: str, branch: str | bytes, *, request_id: str | None = None
    ) -> Revision:
        """Makes HEAD point to a branch, which need not exist yet."""
        request = pb.SetDefaultBranchRequest(
            request_id=codecs.request_uuid(request_id),
            repository=repository,
            branch=codecs.to_bytes(branch),
        )
        answer = await self._transport.unary(
            pb.SetDefaultBranchResponse, "RefService/SetDefaultBranch", request
        )
        self._session.saw(repository, answer.revision)
        return codecs.revision(answer.revision)

    async def set_head(
        self,
        repository: str,
        *,
        branch: str | bytes | None = None,
        oid: str | None = None,
        expected_branch: str | bytes | None = None,
        expected_oid: str | None = None,
        request_id: str | None = None,
    ) -> Revision:
        """Points HEAD to a branch, or detaches it at a commit: `branch` or `oid`.

        Args:
            expected_branch: or `expected_oid`: what HEAD has to be before; neither: anything.

        Raises:
            HeadMismatch: and nothing was changed.
        """
        request = pb.SetHeadRequest(
            request_id=codecs.request_uuid(request_id),
            repository=repository,
        )
        if branch is not None:
            request.branch = codecs.to_bytes(branch)
        if oid is not None:
            request.oid = oid
        if expected_branch is not None:
            request.expected_branch = codecs.to_bytes(expected_branch)
        if expected_oid is not None:
            request.expected_oid = expected_oid
        answer = await self._transport.unary(pb.SetHeadResponse, "RefService/SetHead", request)
        self._session.saw(repository, answer.revision)
        return codecs.revision(answer.revision)

    async def merge_bases(
        self, repository: str, commits: Sequence[str | bytes], *, consistency: str | None = None
    ) -> tuple[str, ...]:
        """The best common ancestors of two or more commits; none: no common history."""
        request = pb.FindMergeBaseRequest(
            repository=repository,
            commits=[codecs.to_bytes(commit) for commit in commits],
            consistency=self._session.wanted(repository, consistency),
        )
        answer = await self._transport.unary(
            pb.FindMergeBaseResponse, "RefService/FindMergeBase", request
        )
        self._session.saw(repository, answer.revision)
        return tuple(answer.oids)
