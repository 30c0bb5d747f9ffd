"""`quorepo cluster`: the cluster as a whole."""

from __future__ import annotations

import click

from quorepo.rpc.cli.cluster_health import health
from quorepo.rpc.cli.cluster_recover import recover
from quorepo.rpc.cli.cluster_verify import verify
from quorepo.rpc.cli.debug_bundle import debug_bundle
from quorepo.rpc.cli.groups import CommandGroup
from quorepo.rpc.cli.node_members import CLUSTER_COMMANDS

__all__ = ["command"]


@click.group("cluster", cls=CommandGroup)
def command() -> None:
    """The cluster as a whole: is it well, and what to do when it is not.

    \b
    Examples:
      quorepo cluster health
      quorepo cluster health -o json
    """


command.add_command(health)
command.add_command(verify)
command.add_command(recover)
command.add_command(debug_bundle)
for _command in CLUSTER_COMMANDS:
    command.add_command(_command)
