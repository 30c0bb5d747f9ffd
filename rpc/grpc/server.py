"""The public gRPC server of a node: all services, health and reflection on one port.

Owns the server's options and what health says. Must not know what a service does.
"""

from __future__ import annotations

import asyncio
import contextlib
import importlib
import logging

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc
from grpc_health.v1.health import aio as health_aio
from grpc_reflection.v1alpha import reflection

from quorepo.rpc.context import EdgeContext
from quorepo.rpc.grpc.blob_service import BlobService
from quorepo.rpc.grpc.cluster_service import ClusterService
from quorepo.rpc.grpc.commit_service import CommitService
from quorepo.rpc.grpc.diff_service import DiffService
from quorepo.rpc.grpc.event_service import EventService
from quorepo.rpc.grpc.import_service import ImportService
from quorepo.rpc.grpc.interceptor import EdgeInterceptor
from quorepo.rpc.grpc.operation_service import OperationService
from quorepo.rpc.grpc.ref_service import RefService
from quorepo.rpc.grpc.repository_service import RepositoryService
from quorepo.rpc.grpc.transfer_service import TransferService
from quorepo.rpc.history import HistoryReads
from quorepo.storage.errors import ConfigError, QuorepoError
from quorepo.storage.logs import fields
from quorepo.v1 import (
    blob_pb2,
    blob_pb2_grpc,
    cluster_pb2,
    cluster_pb2_grpc,
    commit_pb2,
    commit_pb2_grpc,
    diff_pb2,
    diff_pb2_grpc,
    event_pb2,
    event_pb2_grpc,
    import_pb2,
    import_pb2_grpc,
    operation_pb2,
    operation_pb2_grpc,
    ref_pb2,
    ref_pb2_grpc,
    repository_pb2,
    repository_pb2_grpc,
    transfer_pb2,
    transfer_pb2_grpc,
)

__all__ = ["LIVENESS", "READINESS", "GrpcServer"]

log = logging.getLogger(__name__)

LIVENESS, READINESS = "liveness", "readiness"
_SERVING = health_pb2.HealthCheckResponse.SERVING
_NOT_SERVING = health_pb2.HealthCheckResponse.NOT_SERVING
_UNREADY_POLL_INTERVAL_S = 0.2  # a node that starts, or lost its leader, is seen soon
_READY_POLL_INTERVAL_S = 0.5
# Above what the core gives its peers: one that hangs says nothing of this node.
_STATUS_TIMEOUT_S = 4.0
# For pushes and fetches to end before the server closes: as long as HTTP's get (http/server.py).
_TRANSFER_GRACE_S = 10.0
_BIND_WAIT_S = 5.0
_BIND_POLL_INTERVAL_S = 0.1

_OPTIONS = [
    ("grpc.so_reuseport", 0),  # or two nodes on one port silently split the traffic
    ("grpc.max_receive_message_length", 4 * 1024 * 1024),
    ("grpc.max_send_message_length", 8 * 1024 * 1024),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    ("grpc.http2.min_recv_ping_interval_without_data_ms", 5_000),
    ("grpc.keepalive_permit_without_calls", 1),
]
_CONCURRENT_CALLS_MAX = 1000  # above it a call is refused with RESOURCE_EXHAUSTED


class GrpcServer:
    """Serves quorepo.v1 on one address, in the running event loop."""

    def __init__(
        self, edge: EdgeContext, address: str, tls: grpc.ServerCredentials | None = None
    ) -> None:
        """`address` is HOST:PORT; without `tls` a loopback one (rpc/listener_config.py)."""
        self._edge = edge
        self._address = address
        self._tls = tls
        self._health = health_aio.HealthServicer()
        self._cluster = ClusterService(edge)
        self._repositories = RepositoryService(edge, history := HistoryReads(edge))
        self._operations = OperationService(edge, history)
        self._events = EventService(edge)
        self._transfers = TransferService(edge)
        self._imports = ImportService(edge)
        self._watcher: asyncio.Task[None] | None = None
        self._server = grpc.aio.server(
            interceptors=[EdgeInterceptor(edge)],
            options=_OPTIONS,
            maximum_concurrent_rpcs=_CONCURRENT_CALLS_MAX,
        )
        self._add_services(history)

    async def start(self) -> None:
        """Listens, and from then on tells health what the core says.

        Raises:
            ConfigError: the address is taken.
        """
        await self._bind()
        for service in ("", READINESS):
            await self._health.set(service, _NOT_SERVING)
        await self._health.set(LIVENESS, _SERVING)
        await self._server.start()
        self._watcher = asyncio.create_task(self._watch_readiness(), name="grpc readiness")
        log.info("grpc serving", extra=fields(address=self._address))

    async def stop(self, grace_s: float) -> None:
        """Tells health at once, lets running calls end within `grace_s`, then closes.

        Pushes and fetches get longer, unless `grace_s` is 0.
        """
        if self._watcher is not None:
            self._watcher.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._watcher
        for service in ("", READINESS):
            await self._health.set(service, _NOT_SERVING)
        if grace_s:
            await self._transfers.finish(_TRANSFER_GRACE_S)
        await self._server.stop(grace_s)
        await self._cluster.close()
        self._repositories.close()
        self._operations.close()
        self._events.close()
        await self._imports.close()

    async def _bind(self) -> None:
        """Waits a little for a predecessor whose end the kernel has not completed yet."""
        deadline = asyncio.get_running_loop().time() + _BIND_WAIT_S
        while True:
            try:
                if self._add_port():
                    return
                problem = "no port was bound"
            except RuntimeError as error:
                problem = str(error)
            if asyncio.get_running_loop().time() > deadline:
                raise ConfigError(
                    f"listen.grpc {self._address!r} cannot be bound: {problem}",
                    next_step="stop what listens there or choose another port",
                )
            await asyncio.sleep(_BIND_POLL_INTERVAL_S)

    def _add_port(self) -> int:
        if self._tls is None:
            return self._server.add_insecure_port(self._address)
        return self._server.add_secure_port(self._address, self._tls)

    async def _watch_readiness(self) -> None:
        """`readiness` and the whole server (``""``) follow the core: formed, and leaders known."""
        known: bool | None = None
        while True:
            ready = await self._is_ready()
            if ready != known:
                log.info("readiness", extra=fields(ready=ready))
                known = ready
                for service in ("", READINESS):
                    await self._health.set(service, _SERVING if ready else _NOT_SERVING)
            await asyncio.sleep(_READY_POLL_INTERVAL_S if ready else _UNREADY_POLL_INTERVAL_S)

    async def _is_ready(self) -> bool:
        if self._edge.stopping:
            return False
        try:
            status = await self._edge.core.status(_STATUS_TIMEOUT_S, this_node_only=True)
        except QuorepoError:
            return False
        self._edge.push_slots.drained = status.draining
        return status.ready

    def _add_services(self, history: HistoryReads) -> None:
        edge, server = self._edge, self._server
        refs, commits = RefService(edge, history), CommitService(edge, history)
        blobs, diffs = BlobService(edge, history), DiffService(edge, history)
        repository_pb2_grpc.add_RepositoryServiceServicer_to_server(self._repositories, server)
        ref_pb2_grpc.add_RefServiceServicer_to_server(refs, server)
        commit_pb2_grpc.add_CommitServiceServicer_to_server(commits, server)
        blob_pb2_grpc.add_BlobServiceServicer_to_server(blobs, server)
        diff_pb2_grpc.add_DiffServiceServicer_to_server(diffs, server)
        operation_pb2_grpc.add_OperationServiceServicer_to_server(self._operations, server)
        event_pb2_grpc.add_EventServiceServicer_to_server(self._events, server)
        import_pb2_grpc.add_ImportServiceServicer_to_server(self._imports, server)
        transfer_pb2_grpc.add_TransferServiceServicer_to_server(self._transfers, server)
        cluster_pb2_grpc.add_ClusterServiceServicer_to_server(self._cluster, server)
        health_pb2_grpc.add_HealthServicer_to_server(self._health, server)
        names = [
            module.DESCRIPTOR.services_by_name[name].full_name
            for module, name in (
                (repository_pb2, "RepositoryService"),
                (ref_pb2, "RefService"),
                (commit_pb2, "CommitService"),
                (blob_pb2, "BlobService"),
                (diff_pb2, "DiffService"),
                (operation_pb2, "OperationService"),
                (event_pb2, "EventService"),
                (transfer_pb2, "TransferService"),
                (import_pb2, "ImportService"),
                (cluster_pb2, "ClusterService"),
                (health_pb2, "Health"),
            )
        ]
        if self._edge.config.api.channelz:  # behind authentication, as every service but health
            channelz = importlib.import_module("grpc_channelz.v1.channelz")
            channelz.add_channelz_servicer(server)
        if self._tls is None:  # it asks for no token: on this machine only
            reflection.enable_server_reflection([*names, reflection.SERVICE_NAME], server)
