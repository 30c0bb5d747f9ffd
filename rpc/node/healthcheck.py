"""Does the node of this configuration serve? For containers: exit code 0 when it does, else 1.

`python -m quorepo.rpc.node.healthcheck --config F` asks the node's own gRPC listener on this
machine. Must not need a token.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import grpc
from grpc_health.v1 import health_pb2, health_pb2_grpc

from quorepo.rpc.config import NodeConfig, load_config
from quorepo.rpc.config_types import is_wildcard, split_address
from quorepo.rpc.tls import trusted_by
from quorepo.storage.errors import QuorepoError

__all__ = ["main", "serves"]

_TIMEOUT_S = 4.0


def serves(config: NodeConfig) -> bool:
    """Asks the node. False when it does not answer, or answers that it is not ready."""
    host, port = split_address(config.listen.grpc)
    address = f"127.0.0.1:{port}" if is_wildcard(host) else config.listen.grpc
    options: list[tuple[str, str | int]] = [("grpc.enable_http_proxy", 0)]
    tls = config.grpc.tls
    if tls is None:
        channel = grpc.insecure_channel(address, options=options)
    else:
        # Whatever name the certificate is for: the address is that of this very machine.
        name = split_address(config.advertise.grpc_address)[0]
        options.append(("grpc.ssl_target_name_override", name))
        credentials = grpc.ssl_channel_credentials(trusted_by(tls, config.cluster.tls))
        channel = grpc.secure_channel(address, credentials, options=options)
    with channel:
        request = health_pb2.HealthCheckRequest(service="readiness")
        try:
            answer = health_pb2_grpc.HealthStub(channel).Check(request, timeout=_TIMEOUT_S)
        except grpc.RpcError:
            return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def main() -> int:
    """The exit code."""
    parser = argparse.ArgumentParser(prog="quorepo healthcheck")
    parser.add_argument("--config", type=Path, required=True)
    try:
        return 0 if serves(load_config(parser.parse_args().config)) else 1
    except (QuorepoError, OSError) as error:
        print(f"quorepo healthcheck: {error}", file=sys.stderr)  # noqa: T201
        return 1


if __name__ == "__main__":
    sys.exit(main())
