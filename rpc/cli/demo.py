"""`quorepo demo`: a cluster on localhost to try things with."""

from __future__ import annotations

import tempfile
from pathlib import Path

import click

from quorepo.rpc.cli.failures import EXIT_FAILED, EXIT_UNAVAILABLE, Failure

__all__ = ["command"]

_DEFAULT_DATA_DIR = "demo-data"


@click.command("demo")
@click.option(
    "--nodes",
    type=click.IntRange(1, 9),
    help="How many nodes; never changes for a data directory.  [default: 3]",
)
@click.option(
    "--data-dir",
    type=click.Path(file_okay=False, path_type=Path),
    help=f"Where everything is kept.  [default: ./{_DEFAULT_DATA_DIR}]",
)
@click.option(
    "--base-port",
    type=click.IntRange(1024, 65532),
    help="Node i listens on P+10*(i-1) (http), +1 (grpc), +2 (metrics), +3 (peers); never changes "
    "for a data directory.  [default: 7420]",
)
@click.option("--ephemeral", is_flag=True, help="Remove the data at the end.")
@click.option(
    "--create-on-push/--no-create-on-push",
    default=True,
    show_default=True,
    help="Does a push to an unknown path create the repository?",
)
@click.option(
    "--set",
    "overrides",
    multiple=True,
    metavar="SECTION.KEY=VALUE",
    help="A value for every node's configuration file, until the next start; may be repeated.",
)
def command(
    nodes: int | None,
    data_dir: Path | None,
    base_port: int | None,
    ephemeral: bool,
    create_on_push: bool,
    overrides: tuple[str, ...],
) -> None:
    """Runs a cluster on localhost, each node with real processes and a directory of its own.

    Prints the clone URLs and things to try once every node is ready, and writes demo.json. Ctrl-C
    stops every node. The data stays (unless --ephemeral), and the next start finds the same
    repositories. A node that is killed is not started again by the demo.

    \b
    Examples:
      quorepo demo
      quorepo demo --nodes 5 --data-dir /tmp/five --base-port 9000 --ephemeral
    """
    from quorepo.rpc.demo.layout import prepare
    from quorepo.rpc.demo.run import run_demo
    from quorepo.storage.errors import ConfigError, Unavailable

    if data_dir is None:
        # A demo of its own place: --ephemeral must never remove what an earlier demo kept.
        data_dir = (
            Path(tempfile.mkdtemp(prefix="quorepo-demo-")) if ephemeral else Path(_DEFAULT_DATA_DIR)
        )
    try:
        layout = prepare(
            data_dir,
            nodes,
            base_port,
            ephemeral=ephemeral,
            create_on_push=create_on_push,
            overrides=overrides,
        )
        run_demo(layout, click.echo)
    except ConfigError as error:
        raise Failure(error.message, next_step=error.next_step, exit_code=EXIT_FAILED) from error
    except Unavailable as error:
        raise Failure(
            error.message, next_step=error.next_step, exit_code=EXIT_UNAVAILABLE
        ) from error
