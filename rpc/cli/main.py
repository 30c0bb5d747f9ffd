"""The `quorepo` command: its tree of subcommands and its exit codes.

Owns the names. A subcommand's module is imported when it is used, so `quorepo --help` is quick and
`quorepo serve` carries nothing that it does not need.
"""

from __future__ import annotations

import importlib
import sys

import click

from quorepo import __version__

__all__ = ["main", "root"]

EPILOG = """\b
Exit codes:
  0   done
  1   failed; nothing was changed
  2   wrong usage; nothing was tried
  3   not available now; nothing was changed, the same command may succeed later
  4   the outcome is not known; repeating it with the request id it printed is harmless
  74  serve: I/O error of the disk     75  serve: runs already     78  serve: wrong configuration
  130 interrupted

\b
Environment:
  QUOREPO_ENDPOINT  HOST:PORT of a node's gRPC API, when --endpoint is not given
  QUOREPO_TOKEN     the access token, when --token-file is not given
  NO_COLOR          no colours
"""


class LazyGroup(click.Group):
    """A group whose commands are imported when used; their one-line help stands here."""

    def __init__(self, *args: object, lazy: dict[str, tuple[str, str]], **kwargs: object) -> None:
        """`lazy` maps a command's name to (module, one line of help); the function is `command`."""
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]
        self._lazy = lazy

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self._lazy)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self._lazy:
            return None
        module = importlib.import_module(self._lazy[cmd_name][0])
        command: click.Command = module.command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows = [(name, text) for name, (_module, text) in self._lazy.items()]
        with formatter.section("Commands"):
            formatter.write_dl(rows)


_COMMANDS = {
    "demo": ("quorepo.rpc.cli.demo", "Three nodes on localhost to try things with."),
    "serve": ("quorepo.rpc.cli.serve", "Run one node in the foreground."),
    "status": ("quorepo.rpc.cli.status", "Nodes, groups, leaders and how far each replica is."),
    "repo": ("quorepo.rpc.cli.repo", "Create, list, inspect and delete repositories."),
    "version": ("quorepo.rpc.cli.version", "The version of this program."),
}


@click.group(
    cls=LazyGroup,
    lazy=_COMMANDS,
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option("--endpoint", metavar="HOST:PORT", help="A node's gRPC API; default 127.0.0.1:7421.")
@click.option(
    "--token-file",
    type=click.Path(dir_okay=False),
    help="File with the access token, nothing else.",
)
@click.option(
    "-o", "--output", type=click.Choice(["table", "json"]), help="How results are printed."
)
@click.version_option(__version__, prog_name="quorepo")
@click.pass_context
def root(
    context: click.Context, endpoint: str | None, token_file: str | None, output: str | None
) -> None:
    """Git storage that survives losing a machine.

    \b
    Try it:
      quorepo demo
    """
    context.obj = {"endpoint": endpoint, "token_file": token_file, "output": output}


def main() -> None:
    """Entry point of the console script and of `python -m quorepo`."""
    try:
        code = root.main(prog_name="quorepo", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        sys.exit(130)
    sys.exit(code or 0)
