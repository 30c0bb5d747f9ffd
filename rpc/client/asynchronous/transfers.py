"""`client.transfers`: git's own protocol through the API, for applications that speak it."""

from __future__ import annotations

import hashlib
import os
from collections.abc import AsyncIterator, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from quorepo.rpc.client.asynchronous.transport import Transport
from quorepo.rpc.client.errors import ApiError, CutStream, OutcomeUnknown
from quorepo.rpc.client.session import Session
from quorepo.v1 import transfer_pb2 as pb

__all__ = ["Transfers"]

_CHUNK_BYTES = 256 * 1024
_PUSH_AGAIN = "push again (harmless)"


class _Service(NamedTuple):
    """A method and its messages."""

    method: str
    request: Any
    response: Any


_UPLOAD_PACK = _Service("TransferService/UploadPack", pb.UploadPackRequest, pb.UploadPackResponse)
_RECEIVE_PACK = _Service(
    "TransferService/ReceivePack", pb.ReceivePackRequest, pb.ReceivePackResponse
)


class Transfers:
    """Calls of TransferService. All raise `quorepo.errors.ApiError`.

    Each is one request of git's stateless protocol, as over smart HTTP. A body is bytes, the path
    of a file, or an iterator of pieces of any size; one that is an iterator is sent once only.
    """

    def __init__(self, transport: Transport, session: Session) -> None:
        self._transport = transport
        self._session = session

    async def upload_pack_refs(
        self, repository: str, *, git_protocol: str = "version=2", timeout_s: float | None = None
    ) -> bytes:
        """What a fetch begins with: the capabilities of protocol 2, or the refs of 0 and 1.

        Raises:
            NotFound, InvalidArgument, Unavailable
            CutStream: it came damaged or in part.
        """
        header = pb.TransferHeader(repository=repository, advertise=True, git_protocol=git_protocol)
        return await self._refs(_UPLOAD_PACK, header, timeout_s)

    async def upload_pack(
        self,
        repository: str,
        body: bytes | os.PathLike[str] | AsyncIterator[bytes],
        *,
        git_protocol: str = "version=2",
        timeout_s: float | None = None,
    ) -> AsyncIterator[bytes]:
        """The answer to one request of a fetch, in chunks as they come.

        What git's protocol has words for is part of the answer: a want that is not there.

        Raises:
            NotFound, InvalidArgument, LimitExceeded, Unavailable
            CutStream: it came damaged or in part: fetch again.
        """
        header = pb.TransferHeader(repository=repository, git_protocol=git_protocol)
        async for chunk in self._exchange(_UPLOAD_PACK, header, body, timeout_s):
            yield chunk

    async def receive_pack_refs(self, repository: str, *, timeout_s: float | None = None) -> bytes:
        """What a push begins with: the refs and what the server can do.

        Raises:
            NotFound, PermissionDenied, Unavailable
            CutStream: it came damaged or in part.
        """
        header = pb.TransferHeader(repository=repository, advertise=True)
        return await self._refs(_RECEIVE_PACK, header, timeout_s)

    async def receive_pack(
        self,
        repository: str,
        body: bytes | os.PathLike[str] | AsyncIterator[bytes],
        *,
        timeout_s: float | None = None,
    ) -> AsyncIterator[bytes]:
        """The answer to a push, in chunks: git's report, when the capabilities ask for one.

        A refused ref and a bad pack are part of the report. A ref without a line in it has an
        outcome that is not known. Nothing is pushed before the first chunk is asked for. Reads of
        this client are linearizable for the repository from then on.

        Raises:
            PermissionDenied, InvalidArgument, Unavailable: nothing was changed.
            OutcomeUnknown: the push may have been done or may be done yet; push again (harmless:
                a ref that moved is refused).
        """
        header = pb.TransferHeader(repository=repository)
        self._session.moved(repository)
        answer = self._exchange(_RECEIVE_PACK, header, body, timeout_s)
        try:
            async for chunk in answer:
                yield chunk
        except ApiError as error:
            if error.reason not in ("TRANSPORT", "CUT_STREAM"):
                raise
            raise _unknown(error) from error

    async def _refs(
        self, service: _Service, header: pb.TransferHeader, timeout_s: float | None
    ) -> bytes:
        told = bytearray()
        async for chunk in self._exchange(service, header, b"", timeout_s):
            told += chunk
        return bytes(told)

    async def _exchange(
        self,
        service: _Service,
        header: pb.TransferHeader,
        body: bytes | os.PathLike[str] | AsyncIterator[bytes],
        timeout_s: float | None,
    ) -> AsyncIterator[bytes]:
        """One call: the chunks of its answer, whose digest is checked."""
        request = _Body(service.request, header, body)
        pushes = service is _RECEIVE_PACK and not header.advertise
        digest = hashlib.sha256()
        told: bytes | None = None

        def may_repeat(error: ApiError) -> bool:
            """A push of which nobody said that it changed nothing has no second attempt."""
            return request.repeatable and not (pushes and error.reason == "TRANSPORT")

        try:
            async for message in self._transport.stream(
                service.response,
                service.method,
                header,
                messages=request.messages,
                may_repeat=may_repeat,
                timeout_s=timeout_s,
            ):
                if message.WhichOneof("part") == "trailer":
                    told = message.trailer.sha256
                else:
                    digest.update(message.chunk)
                    yield message.chunk
        except ApiError:
            if request.failure is not None:
                raise request.failure from None
            raise
        if request.failure is not None:
            raise request.failure
        if told != digest.digest():
            raise CutStream("the answer came damaged or in part", reason="CUT_STREAM")


class _Body:
    """A request as the stream of messages of each attempt."""

    def __init__(
        self,
        kind: Any,
        header: pb.TransferHeader,
        body: bytes | os.PathLike[str] | AsyncIterator[bytes],
    ) -> None:
        self._kind = kind
        self._header = header
        self._body = body
        self.repeatable = isinstance(body, bytes | os.PathLike)
        self.failure: Exception | None = None  # of the caller's own iterator or file

    async def messages(self) -> AsyncIterator[Any]:
        """Header, chunks, digest; a header alone when it asks for refs."""
        yield self._kind(header=self._header)
        if self._header.advertise:
            return
        digest = hashlib.sha256()
        try:
            async for piece in self._pieces():
                digest.update(piece)
                for start in range(0, len(piece), _CHUNK_BYTES):
                    yield self._kind(chunk=piece[start : start + _CHUNK_BYTES])
        except Exception as error:  # noqa: BLE001  raised to the caller in `_exchange`
            # Without its digest the node does not act upon the stream.
            self.failure = error
            return
        yield self._kind(sha256=digest.digest())

    async def _pieces(self) -> AsyncIterator[bytes]:
        if isinstance(self._body, bytes):
            yield self._body
        elif isinstance(self._body, os.PathLike):
            for read in _file_pieces(self._body):
                yield read
        else:
            async for piece in self._body:
                yield piece


def _file_pieces(path: os.PathLike[str]) -> Iterator[bytes]:
    with Path(path).open("rb") as file:
        while piece := file.read(_CHUNK_BYTES):
            yield piece


def _unknown(cause: ApiError) -> OutcomeUnknown:
    return OutcomeUnknown(
        f"{cause}; the push may have been done or may be done yet: {_PUSH_AGAIN}",
        reason="OUTCOME_UNKNOWN",
        code=cause.code,
        conclusion="unknown",
        metadata={**cause.metadata, "next_step": _PUSH_AGAIN},
    )
