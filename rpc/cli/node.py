"""`quorepo node`: the nodes of the cluster, and new ones."""

from __future__ import annotations

import click

from quorepo.rpc.cli.groups import CommandGroup
from quorepo.rpc.cli.node_members import NODE_COMMANDS
from quorepo.rpc.cli.node_token import token

__all__ = ["command"]


@click.group("node", cls=CommandGroup)
def command() -> None:
    """The nodes of the cluster, and new ones.

    \b
    Example:
      quorepo node token --file join-token
    """


command.add_command(token)
for _command in NODE_COMMANDS:
    command.add_command(_command)
