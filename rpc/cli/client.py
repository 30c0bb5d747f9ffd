"""One connection of the CLI to one node, and what each way it fails means.

Owns the mapping of gRPC statuses to failures. A call that changes something is only made once the
connection stands, so "cannot reach" is certain; one that breaks afterwards is unknown.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import grpc
from google.rpc import error_details_pb2, status_pb2

from quorepo.rpc.cli.failures import EXIT_FAILED, EXIT_UNAVAILABLE, EXIT_UNKNOWN, Failure
from quorepo.rpc.cli.options import Settings
from quorepo.v1 import cluster_pb2_grpc, repository_pb2_grpc

__all__ = ["Client", "connected"]

_STATUS_KEY = "grpc-status-details-bin"
_CONNECT_TIMEOUT_S_MAX = 5.0


class Client:
    """Stubs of the services that the CLI uses; `call` makes one call."""

    def __init__(self, channel: grpc.Channel, settings: Settings) -> None:
        self.repositories = repository_pb2_grpc.RepositoryServiceStub(channel)
        self.cluster = cluster_pb2_grpc.ClusterServiceStub(channel)
        self._settings = settings
        self._metadata = (("authorization", f"Bearer {settings.token()}"),)

    def call(self, method: Any, request: Any, *, request_id: str = "") -> Any:
        """Calls a unary method.

        Args:
            request_id: given by a command that changes something; it is named when the outcome is
                not known.

        Raises:
            Failure
        """
        try:
            return method(request, timeout=self._settings.timeout_s, metadata=self._metadata)
        except grpc.RpcError as error:
            raise _failure(error, self._settings, request_id) from error


@contextlib.contextmanager
def connected(settings: Settings) -> Iterator[Client]:
    """A client whose connection stands.

    Raises:
        Failure: nobody answers there; nothing was changed.
    """
    # A proxy of the environment must not get to see the token, nor keep a node out of reach.
    options = [("grpc.enable_http_proxy", 0)]
    with grpc.insecure_channel(settings.endpoint, options=options) as channel:
        client = Client(channel, settings)
        timeout_s = min(settings.timeout_s, _CONNECT_TIMEOUT_S_MAX)
        try:
            grpc.channel_ready_future(channel).result(timeout=timeout_s)
        except grpc.FutureTimeoutError:
            raise Failure(
                f"no node answers at {settings.endpoint}; nothing was changed",
                next_step="try another node with --endpoint HOST:PORT, or look at the node's log",
                exit_code=EXIT_UNAVAILABLE,
            ) from None
        yield client


def _failure(error: grpc.RpcError, settings: Settings, request_id: str) -> Failure:
    call: Any = error  # what a stub raises is a grpc.Call too
    code, text = call.code(), call.details() or ""
    info = _error_info(call)
    if info is not None:
        next_step = info.metadata.get("next_step", "")
        message = text.removesuffix(f"; {next_step}") if next_step else text
        if info.metadata.get("conclusion") == "unknown" and request_id:
            return _unknown(message, request_id)
        if code == grpc.StatusCode.UNAVAILABLE:
            return Failure(
                f"{message}; nothing was changed", next_step=next_step, exit_code=EXIT_UNAVAILABLE
            )
        if code == grpc.StatusCode.UNAUTHENTICATED:
            next_step = "export QUOREPO_TOKEN=… or pass --token-file FILE with a token of the node"
        changed = "" if "nothing was changed" in message else "; nothing was changed"
        return Failure(f"{message}{changed}", next_step=next_step, exit_code=EXIT_FAILED)
    message = f"{settings.endpoint} broke off ({code.name}: {text})"
    if request_id:
        return _unknown(message, request_id)
    return Failure(
        f"{message}; nothing was changed",
        next_step="try again, or another node with --endpoint HOST:PORT",
        exit_code=EXIT_UNAVAILABLE,
    )


def _unknown(message: str, request_id: str) -> Failure:
    return Failure(
        f"{message}; it may have been done or may be done yet",
        next_step=f"repeat the same command with --request-id {request_id} (harmless)",
        exit_code=EXIT_UNKNOWN,
    )


def _error_info(call: Any) -> error_details_pb2.ErrorInfo | None:
    """The ErrorInfo that quorepo sends with every error; None for an error of the transport."""
    for key, value in call.trailing_metadata() or ():
        if key == _STATUS_KEY:
            for detail in status_pb2.Status.FromString(value).details:
                info = error_details_pb2.ErrorInfo()
                if detail.Unpack(info):
                    return info
    return None
