"""`quorepo version`."""

from __future__ import annotations

import platform

import click

from quorepo import __version__
from quorepo.rpc.cli.options import output_option

__all__ = ["command"]


@click.command("version")
@output_option
def command(output: str) -> None:
    """The version of this program; `quorepo status` shows those of the nodes.

    \b
    Example:
      quorepo version -o json
    """
    from quorepo.rpc.cli.output import emit_done

    document = {"quorepo": __version__, "python": platform.python_version()}
    emit_done(document, output, f"quorepo {__version__}")
