"""The `quorepo` command: its tree of subcommands and its exit codes.

Owns the names. A subcommand's module is imported when it is used, so `quorepo --help` is quick and
`quorepo serve` carries nothing that it does not need.
"""

from __future__ import annotations

import sys

import click

from quorepo import __version__
from quorepo.rpc.cli.failures import EXIT_CODES, EXIT_INTERRUPTED
from quorepo.rpc.cli.groups import LazyGroup
from quorepo.rpc.cli.options import OUTPUT_FORMATS

__all__ = ["main", "root"]

_CODES = "\n".join(f"  {code:<4} {meaning}" for code, meaning in EXIT_CODES.items())
EPILOG = f"""\b
Exit codes:
{_CODES}

\b
Environment:
  QUOREPO_CONTEXT   the context to use, when --context is not given
  QUOREPO_ENDPOINT  HOST:PORT of a node's gRPC API (several: with commas) instead of the context's
  QUOREPO_TOKEN     the access token, when --token-file is not given
  QUOREPO_CA_FILE   CA certificates (PEM) of the gRPC API, when --ca-file is not given
  QUOREPO_CONFIG    a node's configuration, when --config is not given
  QUOREPO_SECTION__KEY  overrides a value of the configuration; see docs/configuration.md
  NO_COLOR          no colours

Results go to standard output, progress and messages to standard error.
"""


_COMMANDS = {
    "demo": ("quorepo.rpc.cli.demo", "Three nodes on localhost to try things with."),
    "init": ("quorepo.rpc.cli.init", "Write the configuration and the secrets of a node."),
    "serve": ("quorepo.rpc.cli.serve", "Run one node in the foreground."),
    "status": ("quorepo.rpc.cli.status", "Nodes, groups, leaders and how far each replica is."),
    "certificate": ("quorepo.rpc.cli.certificate", "Certificates of a node: show, renew, issue."),
    "node": ("quorepo.rpc.cli.node", "The nodes of the cluster, and new ones."),
    "repo": ("quorepo.rpc.cli.repo", "Create, list, inspect and delete repositories."),
    "ref": ("quorepo.rpc.cli.ref", "List, look up, move and delete refs."),
    "file": ("quorepo.rpc.cli.file", "Read and write single files without a clone."),
    "log": ("quorepo.rpc.cli.log", "The history of a repository without a clone."),
    "diff": ("quorepo.rpc.cli.diff", "What changed between two revisions."),
    "transfer": ("quorepo.rpc.cli.transfer", "git through the API, as git's core.sshCommand."),
    "cluster": ("quorepo.rpc.cli.cluster", "The cluster as a whole: is it well?"),
    "doctor": ("quorepo.rpc.cli.doctor", "Is this machine fit, and do the nodes hear each other?"),
    "config": ("quorepo.rpc.cli.config", "Show, check and describe a node's configuration."),
    "context": ("quorepo.rpc.cli.context", "Which cluster commands talk to, by name."),
    "completion": ("quorepo.rpc.cli.completion", "Completion for bash, zsh or fish."),
    "version": ("quorepo.rpc.cli.version", "The version of this program."),
}


@click.group(
    cls=LazyGroup,
    lazy=_COMMANDS,
    epilog=EPILOG,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
)
@click.option(
    "--context", "cluster", metavar="NAME", help="A cluster by name; see quorepo context --help."
)
@click.option(
    "--endpoint",
    "endpoints",
    metavar="HOST:PORT",
    multiple=True,
    help="A node's gRPC API; may be repeated, they are tried in turn.  [default: 127.0.0.1:7421]",
)
@click.option(
    "--token-file",
    type=click.Path(dir_okay=False),
    help="File with the access token, nothing else.",
)
@click.option(
    "--ca-file",
    type=click.Path(dir_okay=False),
    help="CA certificates (PEM) of the nodes' gRPC API; connects with TLS.",
)
@click.option("-o", "--output", type=click.Choice(OUTPUT_FORMATS), help="How results are printed.")
@click.version_option(__version__, prog_name="quorepo")
@click.pass_context
def root(context: click.Context, /, **options: object) -> None:
    """Git storage that survives losing a machine.

    \b
    Try it:
      quorepo demo
    """
    context.obj = options


def main() -> None:
    """Entry point of the console script and of `python -m quorepo`."""
    try:
        code = root.main(prog_name="quorepo", standalone_mode=False)
    except click.ClickException as error:
        error.show()
        sys.exit(error.exit_code)
    except (click.Abort, KeyboardInterrupt):
        click.echo("interrupted", err=True)
        sys.exit(EXIT_INTERRUPTED)
    except BrokenPipeError:  # the reader, `head` say, has enough
        sys.stderr.close()
        sys.exit(0)
    sys.exit(code or 0)
