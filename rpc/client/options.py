"""What a client is made with: endpoints, TLS, token, deadlines. Never shows the token."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Sequence
from pathlib import Path

import grpc

from quorepo.rpc.client.errors import InvalidArgument
from quorepo.rpc.loopback import stays_here

__all__ = ["CHANNEL_OPTIONS", "ClientOptions", "make_options"]

CHANNEL_OPTIONS: list[tuple[str, int]] = [
    # A proxy of the environment must not get to see the token, nor keep a node out of reach.
    ("grpc.enable_http_proxy", 0),
    ("grpc.max_receive_message_length", 16 * 1024 * 1024),
    ("grpc.use_local_subchannel_pool", 1),  # what one client knows of a node is its own
    ("grpc.initial_reconnect_backoff_ms", 100),
    ("grpc.min_reconnect_backoff_ms", 1000),
    ("grpc.max_reconnect_backoff_ms", 1000),
    ("grpc.keepalive_time_ms", 30_000),
    ("grpc.keepalive_timeout_ms", 10_000),
    # Of the sync client alone: a stream is read by who iterates it, not by a thread of its own,
    # which takes longer than a small answer.
    ("SingleThreadedUnaryStream", 1),  # of grpc.experimental.ChannelOptions
]
_DEFAULT_ENDPOINT = "127.0.0.1:7421"


@dataclasses.dataclass(frozen=True, slots=True)
class ClientOptions:
    """See `make_options`."""

    endpoints: tuple[str, ...]
    ca_pem: bytes | None
    timeout_s: float
    attempt_timeout_s: float
    consistency: str
    token: str | None = dataclasses.field(default=None, repr=False)
    token_file: Path | None = None

    def metadata(self) -> tuple[tuple[str, str], ...]:
        """The credential of a call. A token file is read for each call: it may be replaced."""
        token = self.token
        if self.token_file is not None:
            try:
                token = self.token_file.read_text(encoding="ascii").strip()
            except (OSError, UnicodeDecodeError) as error:
                raise _wrong(f"cannot read the token file {str(self.token_file)!r}") from error
        return () if token is None else (("authorization", f"Bearer {token}"),)

    def credentials(self) -> grpc.ChannelCredentials | None:
        """None: without TLS, on this machine only."""
        if self.ca_pem is None:
            return None
        return grpc.ssl_channel_credentials(root_certificates=self.ca_pem)


def make_options(
    endpoints: str | Sequence[str] | None,
    token: str | None,
    token_file: str | os.PathLike[str] | None,
    ca_file: str | os.PathLike[str] | None,
    timeout_s: float,
    attempt_timeout_s: float,
    consistency: str,
) -> ClientOptions:
    """Checks what `Client` was given and fills in the environment.

    Raises:
        InvalidArgument: nothing was tried.
    """
    if endpoints is None:
        endpoints = os.environ.get("QUOREPO_ENDPOINT", "") or _DEFAULT_ENDPOINT
    listed = endpoints.split(",") if isinstance(endpoints, str) else list(endpoints)
    addresses = tuple(dict.fromkeys(entry.strip() for entry in listed if entry.strip()))
    if not addresses:
        raise _wrong("no endpoint: give HOST:PORT of at least one node")
    if token is not None and token_file is not None:
        raise _wrong("token and token_file were both given")
    if token is None and token_file is None:
        token = os.environ.get("QUOREPO_TOKEN", "").strip() or None
    if token is not None and not (token.isascii() and token.isprintable() and token.strip()):
        raise _wrong("the token is empty or holds strange characters")
    if timeout_s <= 0 or attempt_timeout_s <= 0:
        raise _wrong("timeout_s and attempt_timeout_s have to be above 0")
    if consistency not in ("session", "linearizable", "local"):
        raise _wrong(f"consistency {consistency!r} is none of session, linearizable, local")
    ca_file = ca_file or os.environ.get("QUOREPO_CA_FILE") or None
    try:
        ca_pem = None if ca_file is None else Path(ca_file).read_bytes()
    except OSError as error:
        raise _wrong(f"cannot read the CA file {str(ca_file)!r}: {error.strerror}") from error
    if ca_pem is None:
        for address in addresses:
            if not stays_here(address):
                raise _wrong(
                    f"{address} is another machine, and without TLS anyone on the way could read "
                    "the token: give ca_file"
                )
    return ClientOptions(
        endpoints=addresses,
        ca_pem=ca_pem,
        timeout_s=timeout_s,
        attempt_timeout_s=attempt_timeout_s,
        consistency=consistency,
        token=token,
        token_file=None if token_file is None else Path(token_file),
    )


def _wrong(message: str) -> InvalidArgument:
    return InvalidArgument(
        f"{message}; nothing was tried", reason="INVALID_ARGUMENT", code="INVALID_ARGUMENT"
    )
