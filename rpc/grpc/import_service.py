"""ImportService of quorepo.v1: repositories made from a bundle or from another server."""

from __future__ import annotations

from collections.abc import AsyncIterator

from quorepo.rpc.context import EdgeContext
from quorepo.rpc.grpc.byte_streams import ByteRequest
from quorepo.rpc.grpc.conversions import request_uuid, telling_request_id
from quorepo.rpc.grpc.errors import Context
from quorepo.rpc.grpc.interceptor import caller
from quorepo.rpc.grpc.ref_writes import revision_of
from quorepo.rpc.new_repositories import Content, Made, NewRepositories, telling_the_end
from quorepo.rpc.reads import GROUP_STORAGE
from quorepo.rpc.repositories import Origin
from quorepo.rpc.uploads import Incoming, Upload
from quorepo.storage.git.bundle_header import BundleHeaderParser
from quorepo.storage.names import normalize_path
from quorepo.v1 import import_pb2, import_pb2_grpc

__all__ = ["ImportService"]

PB = import_pb2


class ImportService(import_pb2_grpc.ImportServiceServicer):
    """See protos/quorepo/v1/import.proto."""

    def __init__(self, edge: EdgeContext) -> None:
        self._edge = edge
        self._new = NewRepositories(edge)

    def close(self) -> None:
        """Closes the connection to the state."""
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


def _nobody_listens(_text: str) -> None:
    """A unary answer has no room for progress."""
