"""`quorepo serve`: one node in the foreground."""

from __future__ import annotations

import sys

import click

__all__ = ["command"]


@click.command("serve")
@click.option(
    "--config", required=True, metavar="FILE", help="The node's configuration, a TOML file."
)
def command(config: str) -> None:
    """Runs one node until it is told to stop (SIGTERM or Ctrl-C).

    \b
    Exit codes: 0 stopped as asked, 74 I/O error of the disk, 75 the node runs already,
    78 wrong configuration or a data directory that does not fit.

    \b
    Example:
      quorepo serve --config /etc/quorepo/n1.toml
    """
    from quorepo.rpc.node.serve import serve

    sys.exit(serve(config))
