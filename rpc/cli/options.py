"""Options that stand before or after a subcommand, and what they resolve to.

`quorepo --endpoint E status` and `quorepo status --endpoint E` are the same; the one nearer to the
end wins, then the environment, then the default.
"""

from __future__ import annotations

import dataclasses
import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import click

from quorepo.rpc.cli.failures import Failure

__all__ = ["DEFAULT_ENDPOINT", "Settings", "common_options", "output_option"]

DEFAULT_ENDPOINT = "127.0.0.1:7421"
_NO_TOKEN = "no access token"  # noqa: S105 - a message, not a token


@dataclasses.dataclass(frozen=True, slots=True)
class Settings:
    """What a client command needs to know."""

    endpoint: str
    token_file: str | None
    output: str  # table or json
    timeout_s: float

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
                    f"cannot read the token file {self.token_file!r}: {error}", exit_code=2
                ) from error
        else:
            token = os.environ.get("QUOREPO_TOKEN", "").strip()
        if not token or not token.isascii() or not token.isprintable():
            raise Failure(
                f"{_NO_TOKEN if not token else 'the access token holds strange characters'}; "
                "nothing was tried",
                next_step="export QUOREPO_TOKEN=… or pass --token-file FILE",
                exit_code=2,
            )
        return token


def output_option(function: Callable[..., Any]) -> Callable[..., Any]:
    """`-o` after the subcommand; the function gets `output`."""

    @click.option(
        "-o", "--output", type=click.Choice(["table", "json"]), help="How results are printed."
    )
    @click.pass_context
    @functools.wraps(function)
    def wrapper(context: click.Context, /, *args: Any, output: str | None, **kwargs: Any) -> Any:
        before = context.obj or {}
        return function(*args, output=output or before.get("output") or "table", **kwargs)

    return wrapper


def common_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """All options of a client command; the function gets `settings`."""

    @click.option("--endpoint", metavar="HOST:PORT", help="A node's gRPC API.")
    @click.option("--token-file", type=click.Path(dir_okay=False), help="File with the token.")
    @click.option(
        "--timeout",
        "timeout_s",
        type=click.FloatRange(min=0.1),
        default=15.0,
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
        endpoint: str | None,
        token_file: str | None,
        timeout_s: float,
        output: str,
        **kwargs: Any,
    ) -> Any:
        before = context.obj or {}
        settings = Settings(
            endpoint=(
                endpoint
                or before.get("endpoint")
                or os.environ.get("QUOREPO_ENDPOINT")
                or DEFAULT_ENDPOINT
            ),
            token_file=token_file or before.get("token_file"),
            output=output,
            timeout_s=timeout_s,
        )
        return function(*args, settings=settings, **kwargs)

    return wrapper
