"""`client.imports`: repositories made from a bundle or from another git server."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TypeVar

from google.protobuf.message import Message

from quorepo.rpc.client import codecs
from quorepo.rpc.client.asynchronous.transport import Transport
from quorepo.rpc.client.errors import NotFound
from quorepo.rpc.client.session import Session
from quorepo.rpc.client.types import LongRunningOperation, Revision
from quorepo.v1 import import_pb2 as pb

__all__ = ["Imports"]

_Answer = TypeVar("_Answer", bound=Message)

_CHUNK_BYTES = 256 * 1024
_BUNDLE_TIMEOUT_S = 3600.0
_WAIT_S = 20.0  # one WaitOperation; then the next one
_WAIT_MARGIN_S = 10.0


class Imports:
    """Calls of ImportService. All raise `quorepo.errors.ApiError`."""

    def __init__(self, transport: Transport, session: Session) -> None:
        self._transport = transport
        self._session = session

    async def from_bundle(
        self,
        path: str,
        bundle: bytes | os.PathLike[str],
        *,
        timeout_s: float = _BUNDLE_TIMEOUT_S,
        request_id: str | None = None,
    ) -> Revision:
        """Makes a repository from a git bundle: its bytes, or the file that it is in.

        Raises:
            AlreadyExists, InvalidArgument, LimitExceeded
        """
        header = pb.CreateRepositoryFromBundleRequest.Header(
            request_id=codecs.request_uuid(request_id), path=path
        )
        answer = await self._transport.upload(
            pb.CreateRepositoryFromBundleResponse,
            "ImportService/CreateRepositoryFromBundle",
            header,
            lambda: _messages(header, bundle),
            timeout_s=timeout_s,
        )
        self._session.moved(path, answer.path)
        return codecs.revision(answer.revision)

    async def start(
        self, path: str, url: str, *, authorization: str = "", request_id: str | None = None
    ) -> LongRunningOperation:
        """Begins to import a repository from another git server; then look with `wait` or `get`.

        Args:
            url: https://…, without user, password and query.
            authorization: value of the Authorization header for it.

        Raises:
            AlreadyExists, InvalidArgument, SourceNotAllowed
        """
        request = pb.ImportRepositoryRequest(
            request_id=codecs.request_uuid(request_id),
            path=path,
            url=url,
            authorization=authorization,
        )
        answer = await self._transport.unary(
            pb.ImportRepositoryResponse, "ImportService/ImportRepository", request
        )
        self._session.moved(path)
        return codecs.long_running_operation(answer.operation)

    async def get(self, name: str) -> LongRunningOperation:
        """How far an operation is; every endpoint is asked until one knows it.

        Raises:
            NotFound: none does; nothing was made.
        """
        answer = await self._ask(
            pb.GetOperationResponse,
            "ImportService/GetOperation",
            pb.GetOperationRequest(name=name),
        )
        return codecs.long_running_operation(answer.operation)

    async def wait(self, name: str) -> LongRunningOperation:
        """The operation when it is over; asks again until then.

        Raises:
            NotFound: the node that ran it is gone, and nothing was made.
        """
        request = pb.WaitOperationRequest(name=name, timeout_s=_WAIT_S)
        while True:
            answer = await self._ask(
                pb.WaitOperationResponse, "ImportService/WaitOperation", request
            )
            operation = codecs.long_running_operation(answer.operation)
            if operation.state != "running":
                return operation

    async def list(self) -> list[LongRunningOperation]:
        """The operations that one node, the next in turn, knows."""
        request = pb.ListOperationsRequest()
        found: list[LongRunningOperation] = []
        while True:
            answer = await self._transport.unary(
                pb.ListOperationsResponse, "ImportService/ListOperations", request
            )
            found += [codecs.long_running_operation(one) for one in answer.operations]
            if not answer.next_page_token:
                return found
            request.page_token = answer.next_page_token

    async def cancel(self, name: str) -> LongRunningOperation:
        """Stops an operation, unless a majority is agreeing on it already; what became of it.

        Raises:
            NotFound
        """
        answer = await self._ask(
            pb.CancelOperationResponse,
            "ImportService/CancelOperation",
            pb.CancelOperationRequest(name=name),
        )
        return codecs.long_running_operation(answer.operation)

    async def _ask(self, kind: type[_Answer], method: str, request: Any) -> _Answer:
        """An operation is known to one node: the endpoints are asked in turn."""
        for left in range(self._transport.endpoint_count - 1, -1, -1):
            try:
                return await self._transport.unary(
                    kind, method, request, timeout_s=_WAIT_S + _WAIT_MARGIN_S, patient=True
                )
            except NotFound:
                if not left:
                    raise
        raise AssertionError("a client has at least one endpoint")


def _messages(
    header: pb.CreateRepositoryFromBundleRequest.Header, bundle: bytes | os.PathLike[str]
) -> Iterator[Message]:
    """The stream of one attempt."""
    kind = pb.CreateRepositoryFromBundleRequest
    digest = hashlib.sha256()
    yield kind(header=header)
    for piece in _pieces(bundle):
        digest.update(piece)
        yield kind(chunk=piece)
    yield kind(sha256=digest.digest())


def _pieces(bundle: bytes | os.PathLike[str]) -> Iterator[bytes]:
    if isinstance(bundle, bytes):
        for start in range(0, len(bundle), _CHUNK_BYTES):
            yield bundle[start : start + _CHUNK_BYTES]
        return
    with Path(bundle).open("rb") as file:
        while piece := file.read(_CHUNK_BYTES):
            yield piece
