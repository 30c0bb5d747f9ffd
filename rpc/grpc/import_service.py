"""ImportService of quorepo.v1: repositories made from a bundle or from another server.

An operation is known to the node that runs it; the others pass questions about it on to that node.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any, cast

from google.protobuf.message import Message

from quorepo.cluster.state.reader import StateReader
from quorepo.rpc.context import EdgeContext
from quorepo.rpc.grpc.byte_streams import ByteRequest
from quorepo.rpc.grpc.conversions import (
    PageKey,
    page_size,
    request_uuid,
    telling_request_id,
    time_left_s,
    timestamp,
)
from quorepo.rpc.grpc.errors import Context
from quorepo.rpc.grpc.interceptor import caller
from quorepo.rpc.grpc.peer_channels import PeerChannels, was_passed_on
from quorepo.rpc.grpc.ref_writes import revision_of
from quorepo.rpc.imports.fetching import Source
from quorepo.rpc.imports.running import Imports, Operation
from quorepo.rpc.new_repositories import Content, Made, NewRepositories, telling_the_end
from quorepo.rpc.reads import GROUP_DIRECTORY, GROUP_STORAGE
from quorepo.rpc.repositories import Origin
from quorepo.rpc.uploads import Incoming, Upload
from quorepo.storage.errors import InvalidArgument
from quorepo.storage.git.bundle_header import BundleHeaderParser
from quorepo.storage.names import normalize_path
from quorepo.v1 import import_pb2, import_pb2_grpc

__all__ = ["ImportService"]

PB = import_pb2
_PAGE_SIZE, _PAGE_SIZE_MAX = 100, 1000
_WAIT_S_MAX = 600.0
_MESSAGE_CHARACTERS_MAX = 1000
_ASK_S = 5.0  # for another node to say what it knows
_OfOperation = PB.GetOperationRequest | PB.WaitOperationRequest | PB.CancelOperationRequest
_STATES = {
    "running": PB.LongRunningOperation.STATE_RUNNING,
    "done": PB.LongRunningOperation.STATE_DONE,
    "failed": PB.LongRunningOperation.STATE_FAILED,
    "cancelled": PB.LongRunningOperation.STATE_CANCELLED,
}


class ImportService(import_pb2_grpc.ImportServiceServicer):
    """See protos/quorepo/v1/import.proto."""

    def __init__(self, edge: EdgeContext) -> None:
        self._edge = edge
        self._new = NewRepositories(edge)
        self._imports = Imports(edge, self._new)
        self._peers = PeerChannels(edge.config)
        self._directory = StateReader(edge.reads.layout(GROUP_DIRECTORY))

    async def close(self) -> None:
        """Ends the imports that run, and closes the connections."""
        await self._imports.close()
        await self._peers.close()
        self._directory.close()
        self._new.close()

    async def CreateRepositoryFromBundle(
        self, requests: AsyncIterator[PB.CreateRepositoryFromBundleRequest], context: Context
    ) -> PB.CreateRepositoryFromBundleResponse:
        """Idempotent by request id; goes on without its client once it is proposed."""
        request = ByteRequest(requests, "CreateRepositoryFromBundle")
        header = await request.header()
        identity = caller()
        with telling_request_id(request_id := request_uuid(header.request_id)):
            path = normalize_path(header.path)
            self._edge.authenticator.authorize(identity, "create", path)
            origin = self._edge.origin(identity.user, request_id.bytes)
            with telling_the_end(self._edge, "bundle", path, origin) as told:
                made = await self._new.made_before(path, origin)
                if made is None:
                    self._new.check_room()
                    on_bytes = self._edge.metrics.bytes_received.labels("bundle").inc
                    incoming = Incoming(request.chunks(), on_bytes)
                    made = await self._from_bundle(path, origin, incoming)
                    told["bytes"] = incoming.received_bytes
        return PB.CreateRepositoryFromBundleResponse(
            path=made.path, revision=revision_of(made.revision)
        )

    async def _from_bundle(self, path: str, origin: Origin, incoming: Incoming) -> Made:
        limits = self._edge.config.limits
        parser = BundleHeaderParser(
            refs_max=limits.refs_per_push_max, ref_name_bytes_max=limits.ref_name_bytes_max
        )
        while not parser.finished:
            piece = await incoming.read()
            if not piece:
                parser.close()
            incoming.push_back(parser.feed(piece))
        refs = self._new.visible(parser.refs)
        content = Content.with_head_id(parser.object_format, refs, parser.head_id)
        self._new.check_refs(content)
        async with Upload(self._edge.reads.layout(GROUP_STORAGE), self._edge.disk) as upload:
            await upload.receive(incoming, limits.push_bytes_max)
            return await self._new.make(path, content, upload.path, origin, _nobody_listens)

    async def ImportRepository(
        self, request: PB.ImportRepositoryRequest, context: Context
    ) -> PB.ImportRepositoryResponse:
        """Begins it; idempotent by request id."""
        identity = caller()
        with telling_request_id(request_id := request_uuid(request.request_id)):
            path = normalize_path(request.path)
            self._edge.authenticator.authorize(identity, "create", path)
            operation = await self._imports.start(
                path,
                Source(request.url, request.authorization),
                self._edge.origin(identity.user, request_id.bytes),
            )
        return PB.ImportRepositoryResponse(operation=_message(operation))

    async def GetOperation(
        self, request: PB.GetOperationRequest, context: Context
    ) -> PB.GetOperationResponse:
        """How far it is."""
        self._edge.authenticator.authorize(caller(), "read")
        answer, why = await self._elsewhere(
            "GetOperation", request, PB.GetOperationResponse, context, _ASK_S
        )
        if answer is not None:
            return cast(PB.GetOperationResponse, answer)
        operation = await self._imports.get(request.name, caller().user, why)
        return PB.GetOperationResponse(operation=_message(operation))

    async def ListOperations(
        self, request: PB.ListOperationsRequest, context: Context
    ) -> PB.ListOperationsResponse:
        """Those of this node."""
        self._edge.authenticator.authorize(caller(), "read")
        key = PageKey("operations")
        after = key.key(request.page_token).decode("utf-8", "replace")
        size = page_size(request.page_size, _PAGE_SIZE, _PAGE_SIZE_MAX)
        known = sorted(self._imports.all(), key=_order)
        rest = [operation for operation in known if _order(operation) > after]
        more = len(rest) > size
        return PB.ListOperationsResponse(
            operations=[_message(operation) for operation in rest[:size]],
            next_page_token=key.token(_order(rest[size - 1]).encode()) if more else "",
        )

    async def WaitOperation(
        self, request: PB.WaitOperationRequest, context: Context
    ) -> PB.WaitOperationResponse:
        """Waits for its end, within the deadline."""
        if not 0 <= request.timeout_s <= _WAIT_S_MAX:
            raise InvalidArgument(f"timeout_s must be 0 to {_WAIT_S_MAX:g}")
        self._edge.authenticator.authorize(caller(), "read")
        wait_s = time_left_s(context, request.timeout_s or _WAIT_S_MAX)
        answer, why = await self._elsewhere(
            "WaitOperation", request, PB.WaitOperationResponse, context, wait_s + _ASK_S
        )
        if answer is not None:
            return cast(PB.WaitOperationResponse, answer)
        operation = await self._imports.get(request.name, caller().user, why)
        await self._imports.wait(operation, wait_s)
        return PB.WaitOperationResponse(operation=_message(operation))

    async def CancelOperation(
        self, request: PB.CancelOperationRequest, context: Context
    ) -> PB.CancelOperationResponse:
        """Stops it, unless it is over or proposed."""
        self._edge.authenticator.authorize(caller(), "create")
        answer, why = await self._elsewhere(
            "CancelOperation", request, PB.CancelOperationResponse, context, _WAIT_S_MAX
        )
        if answer is not None:
            return cast(PB.CancelOperationResponse, answer)
        operation = await self._imports.cancel(request.name, caller().user, why)
        return PB.CancelOperationResponse(operation=_message(operation))

    async def _elsewhere(
        self, method: str, request: _OfOperation, kind: Any, context: Context, timeout_s: float
    ) -> tuple[Message | None, str]:
        """The answer of the node that runs the operation, when that is another one; else why
        there is none, to go on a sentence."""
        node = self._imports.node_of(request.name)
        if node == self._edge.config.node.name or was_passed_on(context):
            return None, ""
        rows = await self._edge.reads.in_thread(self._directory.nodes)
        address = next((row.grpc_address for row in rows if row.name == node), "")
        if not address:
            return None, f": {node} is no member"
        answer: Message | None = await self._peers.pass_on(
            address,
            f"/quorepo.v1.ImportService/{method}",
            request,
            kind,
            context,
            time_left_s(context, timeout_s),
        )
        return answer, "" if answer else f", and node {node} does not know it or does not answer"


def _order(operation: Operation) -> str:
    """The oldest first, and stable."""
    return f"{operation.start_ms:016d} {operation.name}"


def _message(operation: Operation) -> PB.LongRunningOperation:
    error = operation.error
    message = PB.LongRunningOperation(
        name=operation.name,
        state=_STATES[operation.state],
        phase=operation.phase,
        bytes_done=operation.bytes_done,
        objects=operation.objects,
        error_reason="" if error is None else error.reason,
        error_message="" if error is None else str(error)[:_MESSAGE_CHARACTERS_MAX],
        path=operation.path,
        request_id=operation.name.rpartition("/")[2],
    )
    if operation.revision is not None:
        message.revision.CopyFrom(revision_of(operation.revision))
    if operation.start_ms:
        message.start_time.CopyFrom(timestamp(operation.start_ms))
    if operation.end_ms:
        message.end_time.CopyFrom(timestamp(operation.end_ms))
    return message


def _nobody_listens(_text: str) -> None:
    """A unary answer has no room for progress."""
