"""`quorepo context`: the clusters that this user knows, by name."""

from __future__ import annotations

from pathlib import Path

import click

from quorepo.rpc.cli.completers import complete_context
from quorepo.rpc.cli.failures import EXIT_USAGE, Failure
from quorepo.rpc.cli.groups import CommandGroup
from quorepo.rpc.cli.options import output_option

__all__ = ["command"]


@click.group("context", cls=CommandGroup)
def command() -> None:
    """Which cluster commands talk to, by name.

    A context is a cluster's endpoints, the file of the access token and the file of the CA. They
    stand in $XDG_CONFIG_HOME/quorepo/contexts.json (~/.config when not set), for this user only;
    the token itself is not copied there.

    \b
    Examples:
      quorepo context add prod --endpoint git1:7421 --endpoint git2:7421 \\
          --token-file ~/.config/quorepo/prod.token --ca-file /etc/quorepo/ca.pem
      quorepo context use prod
      quorepo --context test status
    """


@command.command("list")
@output_option
def list_(output: str) -> None:
    """Lists the contexts; * marks the one in use.

    \b
    Example:
      quorepo context list
    """
    from quorepo.rpc.cli.contexts import load_contexts
    from quorepo.rpc.cli.output import emit, note, print_table

    contexts = load_contexts()
    documents = [
        {"name": name, "current": name == contexts.current, **entry.document()}
        for name, entry in sorted(contexts.contexts.items())
    ]

    def table() -> None:
        if not documents:
            note("no contexts yet; next: quorepo context add NAME --endpoint HOST:PORT …")
            return
        print_table(
            "",
            ("", "name", "endpoints", "token file", "CA file"),
            [
                (
                    "*" if name == contexts.current else "",
                    name,
                    "\n".join(entry.endpoints),
                    entry.token_file or "",
                    entry.ca_file or "",
                )
                for name, entry in sorted(contexts.contexts.items())
            ],
        )

    emit(documents, output, table)


@command.command("add")
@click.argument("name")
@click.option(
    "--endpoint",
    "endpoints",
    metavar="HOST:PORT",
    multiple=True,
    required=True,
    help="A node's gRPC API; may be repeated, they are tried in turn.",
)
@click.option(
    "--token-file", type=click.Path(dir_okay=False), help="File with the access token, mode 0600."
)
@click.option("--ca-file", type=click.Path(dir_okay=False), help="CA certificates of the nodes.")
@click.option("--use", is_flag=True, help="Use it from now on; the first one is used anyway.")
@output_option
def add(
    name: str,
    endpoints: tuple[str, ...],
    token_file: str | None,
    ca_file: str | None,
    use: bool,
    output: str,
) -> None:
    """Adds a context, or replaces the one of this name. Nothing is connected to.

    \b
    Example:
      quorepo context add demo --endpoint 127.0.0.1:7421 --endpoint 127.0.0.1:7431 \\
          --token-file demo-data/secrets/admin-token
    """
    from quorepo.rpc.cli.contexts import Context, load_contexts
    from quorepo.rpc.cli.output import emit_done

    for endpoint in endpoints:
        _check_endpoint(endpoint)
    contexts = load_contexts()
    replaced = name in contexts.contexts
    entry = Context(name, endpoints, _absolute(token_file), _absolute(ca_file))
    contexts = contexts.with_context(entry, use=use)
    contexts.save()
    in_use = ", in use" if contexts.current == name else ""
    emit_done(
        {"name": name, "current": contexts.current == name, **entry.document()},
        output,
        f"{'replaced' if replaced else 'added'} context {name}{in_use}",
    )


@command.command("use")
@click.argument("name", shell_complete=complete_context)
@output_option
def use(name: str, output: str) -> None:
    """Makes commands talk to this cluster from now on.

    \b
    Example:
      quorepo context use prod
    """
    from quorepo.rpc.cli.contexts import load_contexts
    from quorepo.rpc.cli.output import emit_done

    contexts = load_contexts()
    entry = contexts.get(name)
    contexts.with_context(entry, use=True).save()
    emit_done({"name": name, "current": True, **entry.document()}, output, f"using context {name}")


@command.command("remove")
@click.argument("name", shell_complete=complete_context)
@output_option
def remove(name: str, output: str) -> None:
    """Forgets a context. The cluster and the files that it names are left alone.

    \b
    Example:
      quorepo context remove test
    """
    from quorepo.rpc.cli.contexts import load_contexts
    from quorepo.rpc.cli.output import emit_done, note

    contexts = load_contexts().without(name)
    contexts.save()
    emit_done({"removed": name, "current": contexts.current}, output, f"removed context {name}")
    if not contexts.current and contexts.contexts:
        note("no context is in use now; next: quorepo context use NAME")


def _absolute(path: str | None) -> str | None:
    if path is None:
        return None
    absolute = Path(path).expanduser().absolute()
    if not absolute.is_file():
        raise Failure(
            f"{str(absolute)!r} is not a file; nothing was changed",
            next_step="write the token (or the CA) into a file first, readable by you only",
            exit_code=EXIT_USAGE,
        )
    return str(absolute)


def _check_endpoint(endpoint: str) -> None:
    host, separator, port = endpoint.rpartition(":")
    if not separator or not host or not port.isdecimal() or not 1 <= int(port) <= 65535:
        raise Failure(
            f"{endpoint!r} is no HOST:PORT; nothing was changed",
            next_step="the port is that of listen.grpc in the node's configuration, as in "
            "git1.example.net:7421",
            exit_code=EXIT_USAGE,
        )
