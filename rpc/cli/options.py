"""Options that stand before or after a subcommand, and what they resolve to.

`quorepo --endpoint E status` and `quorepo status --endpoint E` are the same; the one nearer to the
end wins, then the environment, then the context, then the default. A context's token goes to the
endpoints of that context only, unless it was named with --context.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from quorepo.rpc.cli.failures import EXIT_USAGE, Failure

__all__ = [
    "DEFAULT_ENDPOINT",
    "OUTPUT_FORMATS",
    "Settings",
    "common_options",
    "config_option",
    "output_option",
    "resolve_settings",
]

DEFAULT_ENDPOINT = "127.0.0.1:7421"
OUTPUT_FORMATS = ("table", "json", "yaml")
_NO_TOKEN = "no access token"  # noqa: S105 - a message, not a token
_DEFAULT_TIMEOUT_S = 15.0


@dataclasses.dataclass(frozen=True, slots=True)
class Settings:
    """What a client command needs to know. Never holds the token itself."""

    endpoints: tuple[str, ...]  # HOST:PORT, tried in turn
    token_file: str | None
    ca_file: str | None
    output: str  # one of OUTPUT_FORMATS
    timeout_s: float
    cluster: str = ""  # name of the context in use; empty: none

    @property
    def endpoint(self) -> str:
        """The endpoints as messages name them."""
        return ", ".join(self.endpoints)

    def token(self) -> str:
        """The access token.

        Raises:
            Failure: there is none, or its file can't be read.
        """
        if self.token_file is not None:
            try:
                token = Path(self.token_file).read_text(encoding="utf-8").strip()
            except (OSError, UnicodeDecodeError) as error:
                raise Failure(
                    f"cannot read the token file {self.token_file!r}: {error}; nothing was tried",
                    next_step="pass --token-file FILE, or correct the context: quorepo context add",
                    exit_code=EXIT_USAGE,
                ) from error
        else:
            token = os.environ.get("QUOREPO_TOKEN", "").strip()
        if not token or not token.isascii() or not token.isprintable():
            raise Failure(
                f"{_NO_TOKEN if not token else 'the access token holds strange characters'}; "
                "nothing was tried",
                next_step="export QUOREPO_TOKEN=…, pass --token-file FILE, or name a cluster with "
                "--context (quorepo context list)",
                exit_code=EXIT_USAGE,
            )
        return token

    def ca_pem(self) -> bytes | None:
        """The CA certificates to connect with; None: without TLS.

        Raises:
            Failure: the file can't be read.
        """
        if self.ca_file is None:
            return None
        try:
            return Path(self.ca_file).read_bytes()
        except OSError as error:
            raise Failure(
                f"cannot read the CA file {self.ca_file!r}: {error.strerror}; nothing was tried",
                next_step="pass --ca-file FILE, or correct the context: quorepo context add",
                exit_code=EXIT_USAGE,
            ) from error


def config_option(*, required: bool = True) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """`--config` of a command that reads a node's configuration; the function gets `config`."""
    return click.option(
        "--config",
        metavar="FILE",
        required=required,
        envvar="QUOREPO_CONFIG",
        help="The node's configuration, a TOML file; or QUOREPO_CONFIG.",
    )


def output_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """`-o` after the subcommand; the function gets `output`."""

    @click.option(
        "-o",
        "--output",
        type=click.Choice(OUTPUT_FORMATS),
        help="How results are printed.  [default: table]",
    )
    @click.pass_context
    @functools.wraps(function)
    def wrapper(context: click.Context, /, *args: Any, output: str | None, **kwargs: Any) -> Any:
        before = context.obj or {}
        return function(*args, output=output or before.get("output") or "table", **kwargs)

    return wrapper


def common_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """All options of a client command; the function gets `settings`."""

    @click.option("--context", "cluster", metavar="NAME", help="A cluster by name.")
    @click.option(
        "--endpoint",
        "endpoints",
        metavar="HOST:PORT",
        multiple=True,
        help="A node's gRPC API; may be repeated, they are tried in turn.",
    )
    @click.option("--token-file", type=click.Path(dir_okay=False), help="File with the token.")
    @click.option("--ca-file", type=click.Path(dir_okay=False), help="CA certificates: use TLS.")
    @click.option(
        "--timeout",
        "timeout_s",
        type=click.FloatRange(min=0.1),
        default=_DEFAULT_TIMEOUT_S,
        show_default=True,
        help="Seconds to wait for an answer.",
    )
    @output_option
    @click.pass_context
    @functools.wraps(function)
    def wrapper(
        context: click.Context,
        /,
        *args: Any,
        cluster: str | None,
        endpoints: tuple[str, ...],
        token_file: str | None,
        ca_file: str | None,
        timeout_s: float,
        output: str,
        **kwargs: Any,
    ) -> Any:
        given = {
            "cluster": cluster,
            "endpoints": endpoints,
            "token_file": token_file,
            "ca_file": ca_file,
        }
        merged = {key: given[key] or (context.obj or {}).get(key) for key in given}
        settings = resolve_settings(merged, output=output, timeout_s=timeout_s)
        return function(*args, settings=settings, **kwargs)

    return wrapper


def resolve_settings(
    given: dict[str, Any], *, output: str = "table", timeout_s: float = _DEFAULT_TIMEOUT_S
) -> Settings:
    """What options, environment, context and defaults come to, in this order.

    Args:
        given: `cluster`, `endpoints`, `token_file` and `ca_file` of the command line, or nothing.

    Raises:
        Failure: the context that was named is not there, or the file of contexts is not usable.
    """
    from quorepo.rpc.cli.contexts import Context, load_contexts

    named = given.get("cluster")
    wanted = named or os.environ.get("QUOREPO_CONTEXT") or ""
    endpoints = tuple(given.get("endpoints") or ())
    if not endpoints and not named:
        listed = os.environ.get("QUOREPO_ENDPOINT", "").split(",")
        endpoints = tuple(entry.strip() for entry in listed if entry.strip())
    context: Context | None = None
    if wanted or not endpoints or not _has_credentials(given):
        contexts = load_contexts()
        context = contexts.get(wanted) if wanted else contexts.current_context()
    if context is not None and not named and not set(endpoints) <= set(context.endpoints):
        context = None  # its token is for its own nodes
    own_token = None if context is None else context.token_file
    if not named and os.environ.get("QUOREPO_TOKEN"):
        own_token = None
    own_ca = None if context is None else context.ca_file
    return Settings(
        endpoints=endpoints or (context.endpoints if context else (DEFAULT_ENDPOINT,)),
        token_file=given.get("token_file") or own_token,
        ca_file=given.get("ca_file") or os.environ.get("QUOREPO_CA_FILE") or own_ca,
        output=output,
        timeout_s=timeout_s,
        cluster=context.name if context else "",
    )


def _has_credentials(given: dict[str, Any]) -> bool:
    return bool(given.get("token_file") or os.environ.get("QUOREPO_TOKEN"))
