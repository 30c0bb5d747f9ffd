"""One connection of the CLI to one node, and what each way it fails means.

Owns the choice among several endpoints and the mapping of gRPC statuses to failures. A call that
changes something is only made once the connection stands, so "cannot reach" is certain; one that
breaks afterwards is unknown.
"""

from __future__ import annotations

import contextlib
import queue
import time
from collections.abc import Iterator
from typing import Any

import grpc
from google.rpc import error_details_pb2, status_pb2
from grpc_health.v1 import health_pb2, health_pb2_grpc

from quorepo.rpc.cli.failures import (
    EXIT_FAILED,
    EXIT_UNAVAILABLE,
    EXIT_UNKNOWN,
    EXIT_USAGE,
    Failure,
    where_to_look,
)
from quorepo.rpc.cli.options import Settings
from quorepo.rpc.loopback import stays_here
from quorepo.v1 import cluster_pb2_grpc, repository_pb2_grpc

__all__ = ["Client", "connected"]

_STATUS_KEY = "grpc-status-details-bin"
_CONNECT_TIMEOUT_S_MAX = 5.0
_CONNECT_TIMEOUT_S_EACH = 2.0  # with several endpoints: the next one may be well
_HEALTH_TIMEOUT_S = 1.0
_OPTIONS = [
    # A proxy of the environment must not get to see the token, nor keep a node out of reach.
    ("grpc.enable_http_proxy", 0),
    ("grpc.max_receive_message_length", 16 * 1024 * 1024),
]


class Client:
    """Stubs of the services that the CLI uses; `call` makes one call."""

    def __init__(self, channel: grpc.Channel, settings: Settings, endpoint: str) -> None:
        self.channel = channel
        self.endpoint = endpoint  # the one that answered
        self.repositories = repository_pb2_grpc.RepositoryServiceStub(channel)
        self.cluster = cluster_pb2_grpc.ClusterServiceStub(channel)
        self._settings = settings
        self.metadata = (("authorization", f"Bearer {settings.token()}"),)

    def call(self, method: Any, request: Any, *, request_id: str = "") -> Any:
        """Calls a unary method.

        Args:
            request_id: given by a command that changes something; it is named when the outcome is
                not known.

        Raises:
            Failure
        """
        try:
            return method(request, timeout=self._settings.timeout_s, metadata=self.metadata)
        except grpc.RpcError as error:
            raise self.failure(error, request_id) from error

    def failure(self, error: grpc.RpcError, request_id: str = "") -> Failure:
        """What an error of a call that was made without `call` (a stream) means."""
        return _failure(error, self.endpoint, request_id)

    @staticmethod
    def is_told(error: grpc.RpcError) -> bool:
        """Whether a node said this, and so knows what became of the call."""
        return _error_info(error) is not None


@contextlib.contextmanager
def connected(settings: Settings) -> Iterator[Client]:
    """A client whose connection stands.

    Of several endpoints, the first that answers and serves; else the first that answers.

    Raises:
        Failure: nobody answers there; nothing was changed.
    """
    settings.token()  # what is missing is told before anything is tried
    credentials = _credentials(settings)
    alone = len(settings.endpoints) == 1
    timeout_s = min(
        settings.timeout_s, _CONNECT_TIMEOUT_S_MAX if alone else _CONNECT_TIMEOUT_S_EACH
    )
    with contextlib.ExitStack() as stack:
        answering: list[tuple[str, grpc.Channel]] = []
        for endpoint in settings.endpoints:
            channel = stack.enter_context(_channel(endpoint, credentials))
            if not _stands(channel, timeout_s, patient=alone):
                continue
            if alone or _serves(channel):
                yield Client(channel, settings, endpoint)
                return
            answering.append((endpoint, channel))
        if not answering:
            raise _nobody(settings)
        endpoint, channel = answering[0]
        yield Client(channel, settings, endpoint)


def _channel(endpoint: str, credentials: grpc.ChannelCredentials | None) -> grpc.Channel:
    if credentials is None:
        return grpc.insecure_channel(endpoint, options=_OPTIONS)
    return grpc.secure_channel(endpoint, credentials, options=_OPTIONS)


def _credentials(settings: Settings) -> grpc.ChannelCredentials | None:
    """None: without TLS, and then a token goes to this very machine only."""
    ca_pem = settings.ca_pem()
    if ca_pem is not None:
        return grpc.ssl_channel_credentials(root_certificates=ca_pem)
    for endpoint in settings.endpoints:
        if not stays_here(endpoint):
            raise Failure(
                f"{endpoint} is another machine, and without TLS anyone on the way could read the "
                "access token; nothing was tried",
                next_step="pass --ca-file FILE with the CA certificates of the cluster",
                exit_code=EXIT_USAGE,
            )
    return None


def _stands(channel: grpc.Channel, timeout_s: float, *, patient: bool) -> bool:
    """Waits for the connection; who is not `patient` takes the first refusal for an answer."""
    states: queue.SimpleQueue[grpc.ChannelConnectivity] = queue.SimpleQueue()
    channel.subscribe(states.put, try_to_connect=True)
    deadline = time.monotonic() + timeout_s
    try:
        while True:
            state = states.get(timeout=max(0.0, deadline - time.monotonic()))
            if state is grpc.ChannelConnectivity.READY:
                return True
            if state is grpc.ChannelConnectivity.TRANSIENT_FAILURE and not patient:
                return False
    except queue.Empty:
        return False
    finally:
        channel.unsubscribe(states.put)


def _serves(channel: grpc.Channel) -> bool:
    request = health_pb2.HealthCheckRequest(service="readiness")
    try:
        answer = health_pb2_grpc.HealthStub(channel).Check(request, timeout=_HEALTH_TIMEOUT_S)
    except grpc.RpcError:
        return False
    return bool(answer.status == health_pb2.HealthCheckResponse.SERVING)


def _nobody(settings: Settings) -> Failure:
    tls = " (over TLS)" if settings.ca_file else ""
    steps = "try another node with --endpoint HOST:PORT, or look at the node's log"
    if settings.ca_file:
        steps += "; if it runs, is the CA file that of its certificate?"
    return Failure(
        f"no node answers at {settings.endpoint}{tls}; nothing was changed",
        next_step=steps,
        exit_code=EXIT_UNAVAILABLE,
    )


def _failure(error: grpc.RpcError, endpoint: str, request_id: str) -> Failure:
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
        if code == grpc.StatusCode.NOT_FOUND and not next_step:
            next_step = where_to_look(message)
        changed = "" if "nothing was changed" in message else "; nothing was changed"
        return Failure(f"{message}{changed}", next_step=next_step, exit_code=EXIT_FAILED)
    message = f"{endpoint} broke off ({code.name}: {text})"
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
