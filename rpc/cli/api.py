"""The client of the API as commands use it, and what its errors mean for a command line."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from datetime import datetime
from typing import TYPE_CHECKING

import click

from quorepo.rpc.cli.failures import (
    EXIT_FAILED,
    EXIT_UNAVAILABLE,
    EXIT_UNKNOWN,
    EXIT_USAGE,
    Failure,
    where_to_look,
)
from quorepo.rpc.cli.options import Settings

if TYPE_CHECKING:
    from quorepo import Client
    from quorepo.types import Signature

__all__ = ["api_client", "moment", "parse_person", "text"]


@contextlib.contextmanager
def api_client(settings: Settings) -> Iterator[Client]:
    """A client of the endpoints of the settings.

    Raises:
        Failure: in place of an error of the client.
    """
    from quorepo import Client, errors

    token = settings.token()
    try:
        with Client(
            settings.endpoints,
            token=token,
            ca_file=settings.ca_file,
            timeout_s=settings.timeout_s,
            attempt_timeout_s=settings.timeout_s,
        ) as client:
            yield client
    except errors.ApiError as error:
        raise _failure(error) from error


def _failure(error: Exception) -> Failure:
    from quorepo import errors

    assert isinstance(error, errors.ApiError)
    message, next_step = str(error), error.next_step
    if next_step:
        message = message.removesuffix(f"; {next_step}")
    if isinstance(error, errors.OutcomeUnknown):
        return Failure(
            message,
            next_step=f"repeat the same command with --request-id {error.request_id} (harmless)",
            exit_code=EXIT_UNKNOWN,
        )
    if "nothing was" not in message:
        message += "; nothing was changed"
    if "nothing was tried" in message:
        return Failure(message, next_step=next_step, exit_code=EXIT_USAGE)
    if isinstance(error, errors.Unavailable):
        step = next_step or "try another node with --endpoint HOST:PORT, or look at the nodes' logs"
        return Failure(message, next_step=step, exit_code=EXIT_UNAVAILABLE)
    if isinstance(error, errors.Unauthenticated):
        next_step = "export QUOREPO_TOKEN=… or pass --token-file FILE with a token of the node"
    if isinstance(error, errors.NotFound):
        next_step = next_step or where_to_look(message)
    return Failure(message, next_step=next_step, exit_code=EXIT_FAILED)


def moment(value: datetime) -> str:
    """A time as it is printed."""
    from google.protobuf.timestamp_pb2 import Timestamp

    message = Timestamp()
    message.FromDatetime(value)
    return message.ToJsonString()


def text(value: bytes | str) -> str:
    """A name or message as it is printed; what is not UTF-8 is escaped."""
    return value if isinstance(value, str) else value.decode("utf-8", "backslashreplace")


def parse_person(
    _context: click.Context, _parameter: click.Parameter, value: str | None
) -> Signature | None:
    """An option "Name <email>"."""
    from quorepo.types import Signature

    if value is None:
        return None
    name, separator, rest = value.partition("<")
    email, end, after = rest.partition(">")
    if not (separator and end and name.strip() and not after.strip()):
        raise click.BadParameter(f'{value!r} is not of the form "Name <email>"')
    return Signature(name.strip(), email.strip())
