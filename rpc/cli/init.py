"""`quorepo init`: the folder that a node starts from."""

from __future__ import annotations

from pathlib import Path

import click

from quorepo.rpc.cli.failures import EXIT_USAGE, Failure
from quorepo.rpc.cli.options import output_option

__all__ = ["command"]


@click.command("init")
@click.argument("folder", type=click.Path(file_okay=False, path_type=Path))
@click.option("--bootstrap", is_flag=True, help="This node begins a new cluster; others join it.")
@click.option(
    "--bootstrap-expect",
    "expect",
    type=click.IntRange(1, 9),
    help="So many nodes, those at --join, begin a new cluster together.",
)
@click.option(
    "--join",
    multiple=True,
    metavar="HOST:PORT",
    help="Peer address of a member, or of a founding node; may be repeated.",
)
@click.option("--name", help="Name of the node.  [default: host name of the machine]")
@click.option(
    "--advertise", metavar="HOST", help="How others reach it.  [default: host name of the machine]"
)
@click.option(
    "--base-port",
    type=click.IntRange(1, 65532),
    default=7420,
    show_default=True,
    help="git over HTTP; +1 gRPC, +2 metrics, +3 peers.",
)
@output_option
def command(
    folder: Path,
    bootstrap: bool,
    expect: int | None,
    join: tuple[str, ...],
    name: str | None,
    advertise: str | None,
    base_port: int,
    output: str,
) -> None:
    """Writes FOLDER/quorepo.toml, with comments, and what a node keeps secret (mode 0600).

    The node keeps everything in FOLDER: secrets/ is given to it, tls/ and data/ it makes. Nothing
    that is there is overwritten. Without --name and --advertise the folder, as it is before the
    first start, can be copied to every founding node.

    \b
    Examples:
      quorepo init /var/lib/quorepo --bootstrap
      quorepo init /var/lib/quorepo --join git1.example.com:7423
      quorepo init cluster --bootstrap-expect 3 --join n1:7423 --join n2:7423 --join n3:7423
    """
    from quorepo.rpc.cli.output import emit_done
    from quorepo.rpc.node.init import InitPlan, initialize
    from quorepo.storage.errors import ConfigError

    plan = InitPlan(
        bootstrap=bootstrap,
        expect=expect,
        join=join,
        name=name,
        advertise=advertise,
        base_port=base_port,
    )
    try:
        written = initialize(folder, plan)
    except ConfigError as error:
        raise Failure(error.message, next_step=error.next_step, exit_code=EXIT_USAGE) from error
    document = {
        "config": str(written.config),
        "files": [str(path) for path in written.files],
        "next": written.next_steps,
    }
    lines = [f"wrote {path}" for path in written.files]
    lines += ["next:", *(f"  {step}" for step in written.next_steps)]
    emit_done(document, output, "\n".join(lines))
