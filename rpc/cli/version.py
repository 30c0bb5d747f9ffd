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
    """The version of this program.

    \b
    Example:
      quorepo version -o json
    """
    if output == "json":
        from quorepo.rpc.cli.output import print_json

        print_json({"quorepo": __version__, "python": platform.python_version()})
    else:
        click.echo(f"quorepo {__version__}")
