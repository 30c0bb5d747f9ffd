"""Calls to other nodes: channels by node and address, mutual TLS, what an error means here.

Owns the gRPC options of the peer API on both sides. Must not know what the calls are for.
"""

from __future__ import annotations

import dataclasses
import logging
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

import grpc
from grpc import aio

from quorepo.cluster.peer.certificates import MEMBER_DNS_NAME, Credentials, node_dns_name
from quorepo.internal.v1 import core_pb2, peer_pb2, peer_pb2_grpc
from quorepo.storage import errors
from quorepo.storage.logs import fields

__all__ = [
    "Keepalive",
    "PeerAddress",
    "PeerClients",
    "from_rpc_error",
    "open_channel",
    "server_options",
    "tls_problem",
]

log = logging.getLogger(__name__)

# The largest message is one log entry: raft.command_bytes_max (3 MiB) and its framing.
MESSAGE_BYTES_MAX = 8 * 1024 * 1024

Option = tuple[str, int]
Options = list[Option]


class PeerAddress(NamedTuple):
    """Where a node is reached, and which node has to be there: its certificate is checked. Without
    a name any member of the cluster will do: who it is, its answer tells."""

    node: str
    address: str  # "host:port"

    def __str__(self) -> str:
        return f"{self.node} at {self.address}" if self.node else self.address


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


def open_channel(
    peer: PeerAddress, credentials: Credentials, keepalive: Keepalive, more: Sequence[Option] = ()
) -> aio.Channel:
    """A channel that carries calls only if the certificate over there is `peer.node`'s.

    `more` options win over the usual ones.
    """
    tls = grpc.ssl_channel_credentials(
        root_certificates=credentials.ca_pem,
        private_key=credentials.key_pem,
        certificate_chain=credentials.certificate_pem,
    )
    # Certificates name nodes, not hosts: addresses and ports may change.
    verified = node_dns_name(peer.node) if peer.node else MEMBER_DNS_NAME
    name = ("grpc.ssl_target_name_override", verified)
    options: dict[str, str | int] = dict([name, *_channel_options(keepalive), *more])
    return aio.secure_channel(peer.address, tls, options=list(options.items()))


def _channel_options(keepalive: Keepalive) -> Options:
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


_BY_STATUS: dict[grpc.StatusCode, type[errors.QuorepoError]] = {
    grpc.StatusCode.INVALID_ARGUMENT: errors.InvalidArgument,
    grpc.StatusCode.NOT_FOUND: errors.NotFound,
    grpc.StatusCode.RESOURCE_EXHAUSTED: errors.StorageFull,
    grpc.StatusCode.UNAUTHENTICATED: errors.Unauthenticated,
    grpc.StatusCode.PERMISSION_DENIED: errors.PermissionDenied,
}


def from_rpc_error(peer: PeerAddress, error: aio.AioRpcError) -> errors.QuorepoError:
    """The error tree's word for a failed call to `peer`; all calls may be repeated."""
    kind = _BY_STATUS.get(error.code(), errors.Unavailable)
    return kind(f"peer {peer}: {error.code().name.lower()}: {error.details()}")


_HANDSHAKE = re.compile(r"(?:Tls|Ssl) handshake failed.*?(\w+)(?::\s*([^:]+))?(?::\s*OK)?\s*$")


def tls_problem(peer: PeerAddress, details: str) -> str:
    """What is wrong between two certificates, in words; empty when gRPC's `details` tell no such.

    Only this side's verdict is told by gRPC. A peer that does not accept our certificate closes
    the connection without a word and writes why into its own log.
    """
    if "Hostname Verification Check failed" in details:
        if not peer.node:
            return (
                f"whoever listens at {peer.address} has a certificate of no member, or of an old "
                "one; renew it there with `quorepo certificate renew`"
            )
        return (
            f"whoever listens at {peer.address} has no certificate of node {peer.node!r}; "
            "correct cluster.peers or the certificate there"
        )
    if (found := _HANDSHAKE.search(details)) is not None:
        cause = found.group(2) or found.group(1)
        return (
            f"the certificate at {peer.address} is not accepted ({cause.strip()}); "
            "all nodes of a cluster need certificates of one CA"
        )
    return ""


class PeerClients:
    """One channel per peer, opened when it is first needed; used on the event loop only."""

    def __init__(self, credentials: Credentials, keepalive: Keepalive | None = None) -> None:
        self._credentials = credentials
        self._keepalive = keepalive or Keepalive()
        self._channels: dict[PeerAddress, aio.Channel] = {}
        self._told: dict[PeerAddress, str] = {}

    def stub(self, peer: PeerAddress) -> peer_pb2_grpc.PeerAsyncStub:
        """The peer API of `peer`."""
        channel = self._channels.get(peer)
        if channel is None:
            channel = open_channel(peer, self._credentials, self._keepalive)
            self._channels[peer] = channel
        return peer_pb2_grpc.PeerStub(channel)

    async def identify(
        self, peer: PeerAddress, request: peer_pb2.IdentifyRequest, timeout_s: float
    ) -> peer_pb2.IdentifyResponse:
        """Raises `grpc.aio.AioRpcError`."""
        call: Any = self.stub(peer).Identify(request, timeout=timeout_s)
        try:
            response: peer_pb2.IdentifyResponse = await call
        except aio.AioRpcError as error:
            self._note(peer, error)
            raise
        return response

    async def rejoin(
        self, peer: PeerAddress, request: peer_pb2.RejoinRequest, timeout_s: float
    ) -> peer_pb2.RejoinResponse:
        """Raises `grpc.aio.AioRpcError`."""
        call: Any = self.stub(peer).Rejoin(request, timeout=timeout_s)
        response: peer_pb2.RejoinResponse = await call
        return response

    async def status(
        self, peer: PeerAddress, request: core_pb2.CoreStatusRequest, timeout_s: float
    ) -> core_pb2.CoreStatus:
        """Raises `grpc.aio.AioRpcError`."""
        call: Any = self.stub(peer).GetStatus(request, timeout=timeout_s)
        response: core_pb2.CoreStatus = await call
        return response

    async def transfer(
        self, peer: PeerAddress, request: core_pb2.CoreTransferRequest, timeout_s: float
    ) -> core_pb2.CoreTransferResponse:
        """Raises `grpc.aio.AioRpcError`."""
        call: Any = self.stub(peer).TransferLeader(request, timeout=timeout_s)
        response: core_pb2.CoreTransferResponse = await call
        return response

    async def verify(
        self, peer: PeerAddress, request: core_pb2.CoreVerifyRequest, timeout_s: float
    ) -> core_pb2.CoreNodeVerification:
        """Raises `grpc.aio.AioRpcError`."""
        call: Any = self.stub(peer).Verify(request, timeout=timeout_s)
        response: core_pb2.CoreNodeVerification = await call
        return response

    def _note(self, peer: PeerAddress, error: aio.AioRpcError) -> None:
        """A node that forms a cluster asks again for ever: it says once why nobody answers."""
        problem = tls_problem(peer, error.details() or "")
        if problem and self._told.get(peer) != problem:
            self._told[peer] = problem
            log.warning("peer refused", extra=fields(peer=str(peer), reason=problem))

    async def close(self) -> None:
        """Closes all channels; calls under way end as cancelled."""
        channels = list(self._channels.values())
        self._channels.clear()
        for channel in channels:
            await channel.close()
