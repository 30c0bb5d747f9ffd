"""Calls to other nodes: channels by address, the cluster's secret, what an error means here.

Owns the gRPC options of the peer API on both sides. Must not know what the calls are for.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import grpc
from grpc import aio

from quorepo.internal.v1 import core_pb2, peer_pb2, peer_pb2_grpc
from quorepo.storage import errors

__all__ = [
    "Keepalive",
    "PeerClients",
    "bearer_metadata",
    "channel_options",
    "from_rpc_error",
    "server_options",
]

# The largest message is one log entry: raft.command_bytes_max (3 MiB) and its framing.
MESSAGE_BYTES_MAX = 8 * 1024 * 1024

Options = list[tuple[str, int]]
Metadata = tuple[tuple[str, str], ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Keepalive:
    """HTTP/2 pings: a silent peer is given up after `interval_s + timeout_s`."""

    interval_s: float = 2.0
    timeout_s: float = 2.0

    def options(self) -> Options:
        return [
            ("grpc.keepalive_time_ms", int(self.interval_s * 1000)),
            ("grpc.keepalive_timeout_ms", int(self.timeout_s * 1000)),
            ("grpc.keepalive_permit_without_calls", 1),
            # The one that works: up to core 1.85 the keepalive timeout's own timer is never armed
            # (chttp2 writing.cc starts it only where it already runs), and a ping waits 60 s.
            ("grpc.http2.ping_timeout_ms", int(self.timeout_s * 1000)),
            ("grpc.http2.max_pings_without_data", 0),
        ]


def channel_options(keepalive: Keepalive) -> Options:
    """Options of a channel to a peer."""
    return [
        ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
        ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
        # Subchannels are shared per process by default, and with them a failed peer's long backoff.
        ("grpc.use_local_subchannel_pool", 1),
        ("grpc.initial_reconnect_backoff_ms", 100),
        ("grpc.min_reconnect_backoff_ms", 2000),  # also the time one connection attempt may take
        ("grpc.max_reconnect_backoff_ms", 2000),
        ("grpc.dns_min_time_between_resolutions_ms", 1000),
        # Peers are reached directly, whatever http_proxy says.
        ("grpc.enable_http_proxy", 0),
        ("grpc.enable_retries", 0),
        *keepalive.options(),
    ]


def server_options(keepalive: Keepalive) -> Options:
    """Options of the server that peers call."""
    return [
        ("grpc.max_send_message_length", MESSAGE_BYTES_MAX),
        ("grpc.max_receive_message_length", MESSAGE_BYTES_MAX),
        # On by default: two nodes on one port would silently share the traffic.
        ("grpc.so_reuseport", 0),
        # Peers ping every few seconds; the default answers that with GOAWAY.
        ("grpc.http2.min_ping_interval_without_data_ms", 100),
        ("grpc.http2.max_ping_strikes", 0),
        *keepalive.options(),
    ]


def bearer_metadata(secret: str) -> Metadata:
    """The metadata that proves membership of the cluster."""
    return (("authorization", f"Bearer {secret}"),)


_BY_STATUS: dict[grpc.StatusCode, type[errors.QuorepoError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: errors.InvalidArgument,
    grpc.StatusCode.NOT_FOUND: errors.NotFound,
    grpc.StatusCode.RESOURCE_EXHAUSTED: errors.StorageFull,
    grpc.StatusCode.UNAUTHENTICATED: errors.Unauthenticated,
    grpc.StatusCode.PERMISSION_DENIED: errors.PermissionDenied,
}


def from_rpc_error(peer: str, error: aio.AioRpcError) -> errors.QuorepoError:
    """The error tree's word for a failed call to `peer` (an address); all calls may be repeated."""
    kind = _BY_STATUS.get(error.code(), errors.Unavailable)
    return kind(f"peer {peer}: {error.code().name.lower()}: {error.details()}")


class PeerClients:
    """One channel per address, opened when it is first needed; used on the event loop only."""

    def __init__(self, secret: str, keepalive: Keepalive | None = None) -> None:
        self.metadata = bearer_metadata(secret)
        self._options = channel_options(keepalive or Keepalive())
        self._channels: dict[str, aio.Channel] = {}

    def stub(self, address: str) -> peer_pb2_grpc.PeerAsyncStub:
        """The peer API at `address`; pass `metadata=self.metadata` with every call."""
        channel = self._channels.get(address)
        if channel is None:
            channel = aio.insecure_channel(address, options=self._options)
            self._channels[address] = channel
        return peer_pb2_grpc.PeerStub(channel)

    async def identify(
        self, address: str, request: peer_pb2.IdentifyRequest, timeout_s: float
    ) -> peer_pb2.IdentifyResponse:
        """Raises `grpc.aio.AioRpcError`."""
        call: Any = self.stub(address).Identify(request, timeout=timeout_s, metadata=self.metadata)
        response: peer_pb2.IdentifyResponse = await call
        return response

    async def rejoin(
        self, address: str, request: peer_pb2.RejoinRequest, timeout_s: float
    ) -> peer_pb2.RejoinResponse:
        """Raises `grpc.aio.AioRpcError`."""
        call: Any = self.stub(address).Rejoin(request, timeout=timeout_s, metadata=self.metadata)
        response: peer_pb2.RejoinResponse = await call
        return response

    async def status(
        self, address: str, request: core_pb2.CoreStatusRequest, timeout_s: float
    ) -> core_pb2.CoreStatus:
        """Raises `grpc.aio.AioRpcError`."""
        call: Any = self.stub(address).GetStatus(request, timeout=timeout_s, metadata=self.metadata)
        response: core_pb2.CoreStatus = await call
        return response

    async def close(self) -> None:
        """Closes all channels; calls under way end as cancelled."""
        channels = list(self._channels.values())
        self._channels.clear()
        for channel in channels:
            await channel.close()
