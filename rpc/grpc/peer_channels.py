"""Channels to the other nodes' public API: their health, and calls that one of them can answer.

Owns how they are trusted, and when a caller's token may travel on them. Must not know what a call
means.
"""

from __future__ import annotations

from typing import Any

import grpc
import grpc.aio
from google.protobuf.message import Message
from grpc_health.v1 import health_pb2, health_pb2_grpc

from quorepo.rpc.config import NodeConfig
from quorepo.rpc.grpc.errors import Context
from quorepo.rpc.loopback import stays_here
from quorepo.rpc.tls import trusted_by

__all__ = ["PASSED_ON", "PeerChannels", "was_passed_on"]

PASSED_ON = "quorepo-passed-on"  # metadata of a call that came from another node
_OPTIONS = [
    ("grpc.enable_http_proxy", 0),
    ("grpc.initial_reconnect_backoff_ms", 50),
    ("grpc.min_reconnect_backoff_ms", 50),
    ("grpc.max_reconnect_backoff_ms", 500),
]


class PeerChannels:
    """Kept open by address. Over TLS when this node has it: what one of a cluster has, all have."""

    def __init__(self, config: NodeConfig) -> None:
        self._credentials = None if config.grpc.tls is None else _credentials(config)
        self._channels: dict[str, grpc.aio.Channel] = {}

    async def health(self, address: str, timeout_s: float) -> bool | None:
        """Does the node serve? None when it does not answer in time."""
        stub = health_pb2_grpc.HealthStub(self._channel(address))
        try:
            answer = await stub.Check(
                health_pb2.HealthCheckRequest(service="readiness"), timeout=timeout_s
            )
        except grpc.aio.AioRpcError:
            return None
        return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)

    async def pass_on(
        self,
        address: str,
        method: str,
        request: Message,
        kind: Any,
        context: Context,
        timeout_s: float,
    ) -> Any:
        """The answer of another node to the same caller; None: it has none, whatever the reason.

        The caller's token goes along. It never leaves the machine without TLS, and a call that was
        passed on is not passed on again.
        """
        if self._credentials is None and not stays_here(address):
            return None
        metadata: list[tuple[str, str | bytes]] = [(PASSED_ON, "1")]
        for key, value in context.invocation_metadata() or ():
            if key == "authorization":
                metadata.append((key, value))
        call: Any = self._channel(address).unary_unary(
            method,
            request_serializer=type(request).SerializeToString,
            response_deserializer=kind.FromString,
        )
        try:
            return await call(request, timeout=timeout_s, metadata=metadata)
        except grpc.aio.AioRpcError:
            return None

    async def close(self) -> None:
        """Closes all channels."""
        for channel in self._channels.values():
            await channel.close()

    def _channel(self, address: str) -> grpc.aio.Channel:
        if address not in self._channels:
            self._channels[address] = (
                grpc.aio.insecure_channel(address, options=_OPTIONS)
                if self._credentials is None
                else grpc.aio.secure_channel(address, self._credentials, options=_OPTIONS)
            )
        return self._channels[address]


def was_passed_on(context: Context) -> bool:
    """Did another node ask, for its caller?"""
    return any(key == PASSED_ON for key, _ in context.invocation_metadata() or ())


def _credentials(config: NodeConfig) -> grpc.ChannelCredentials:
    assert config.grpc.tls is not None
    tls = config.cluster.tls
    return grpc.ssl_channel_credentials(
        trusted_by(config.grpc.tls, tls),
        # Shown where a listener asks for one (client_ca_file).
        private_key=tls.key_file.read_bytes(),
        certificate_chain=tls.certificate_file.read_bytes(),
    )
