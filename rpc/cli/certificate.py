"""`quorepo certificate`: what a node shows, until when, and new ones. Works on files alone."""

from __future__ import annotations

import datetime
from pathlib import Path
from typing import Any

import click

from quorepo.rpc.cli.failures import EXIT_FOUND, EXIT_USAGE, Failure
from quorepo.rpc.cli.groups import CommandGroup
from quorepo.rpc.cli.options import output_option

__all__ = ["command"]

_CONFIG = click.option(
    "--config", required=True, metavar="FILE", help="The configuration of a node, a TOML file."
)


@click.group("certificate", cls=CommandGroup)
def command() -> None:
    """What a node shows to other nodes and to clients, until when, and new ones.

    Run it on the node's machine, as the user that the node runs as: it reads and writes files.

    \b
    Examples:
      quorepo certificate show --config /var/lib/quorepo/quorepo.toml
      quorepo certificate renew --config /var/lib/quorepo/quorepo.toml
    """


@command.command("show")
@_CONFIG
@output_option
@click.pass_context
def show(context: click.Context, /, config: str, output: str) -> None:
    """Shows the certificates of a node. Exit code 6 when one ends within 30 days.

    \b
    Example:
      quorepo certificate show --config /var/lib/quorepo/quorepo.toml -o json
    """
    from quorepo.rpc.cli.output import emit, print_table
    from quorepo.rpc.node.certificate_files import described_certificates

    with _told():
        found = described_certificates(_loaded(config), _now())
    documents: list[dict[str, Any]] = [
        {
            "use": one.use,
            "file": one.file or None,
            "names": list(one.names),
            "issuer": one.issuer or None,
            "expires": None if one.expires_at is None else f"{one.expires_at:%Y-%m-%dT%H:%M:%SZ}",
            "days_left": one.days_left,
            "fingerprint": one.fingerprint or None,
        }
        for one in found
    ]
    columns = ("use", "names", "expires", "days_left", "file")
    emit(
        documents,
        output,
        lambda: print_table(
            "",
            ("use", "names", "expires", "days", "file"),
            [[_cell(document[key]) for key in columns] for document in documents],
        ),
    )
    ends = [one for one in found if one.ends_soon]
    if ends:
        uses = ", ".join(one.use for one in ends)
        click.echo(f"ends within 30 days: {uses}", err=True)
        if any(one.use == "node" for one in ends):
            click.echo(f"next: quorepo certificate renew --config {config}", err=True)
        context.exit(EXIT_FOUND)


def _cell(value: Any) -> Any:
    if isinstance(value, list):
        return ", ".join(value)
    return "" if value is None else value


@command.command("renew")
@_CONFIG
@output_option
def renew(config: str, output: str) -> None:
    """Signs another certificate for the node, with the key that it has.

    Needs the CA's key on this machine (cluster.tls.ca_key_file). A node does it by itself when
    it starts within the last 30 days. Certificates of listeners that the CA signs need nothing.

    \b
    Example:
      quorepo certificate renew --config /var/lib/quorepo/quorepo.toml
    """
    from quorepo.cluster.enrolment import renew as sign_again
    from quorepo.rpc.cli.output import emit_done
    from quorepo.rpc.node.certificate_files import described_certificates
    from quorepo.rpc.node.enrol import tls_files

    with _told():
        loaded = _loaded(config)
        sign_again(tls_files(loaded), _now())
        mine = next(one for one in described_certificates(loaded, _now()) if one.use == "node")
    document = {"file": mine.file, "expires": f"{mine.expires_at:%Y-%m-%dT%H:%M:%SZ}"}
    emit_done(
        document,
        output,
        f"wrote {mine.file}, valid until {document['expires']}\n"
        "next: restart the node, one node after the other",
    )


@command.command("issue")
@_CONFIG
@click.option("--node", metavar="NAME", help="For a node of this name, with a key of its own.")
@click.option(
    "--host",
    "hosts",
    multiple=True,
    metavar="NAME",
    help="For a listener of clients: host name or IP address; may be repeated.",
)
@click.option("--days", type=click.IntRange(1, 825), help="How long it is valid.")
@click.option(
    "--out",
    required=True,
    type=click.Path(file_okay=False, path_type=Path),
    help="Folder for the certificate, its key (mode 0600) and ca.pem.",
)
@output_option
def issue(
    config: str,
    node: str | None,
    hosts: tuple[str, ...],
    days: int | None,
    out: Path,
    output: str,
) -> None:
    """Signs a certificate with the cluster's CA, for files that are carried elsewhere.

    For a node that has no join token, or a listener whose node has no CA key. Nothing is
    overwritten.

    \b
    Examples:
      quorepo certificate issue --config quorepo.toml --node n4 --out n4
      quorepo certificate issue --config quorepo.toml --host git.example.com --out web
    """
    from quorepo.rpc.cli.output import emit_done
    from quorepo.rpc.node.certificate_files import issue_files

    if bool(node) == bool(hosts):
        raise Failure(
            "say whom it is for: --node NAME, or --host NAME; nothing was tried",
            next_step="quorepo certificate issue --help",
            exit_code=EXIT_USAGE,
        )
    lifetime = None if days is None else datetime.timedelta(days=days)
    with _told():
        written = issue_files(_loaded(config), node or "", hosts, lifetime, out, _now())
    text = "\n".join(f"wrote {path}" for path in written)
    section = "cluster.tls" if node else "[http.tls] or [grpc.tls]"
    step = f"next: carry them to the machine and name them in {section}; the key stays private"
    emit_done({"files": [str(path) for path in written]}, output, f"{text}\n{step}")


def _now() -> datetime.datetime:
    return datetime.datetime.now(datetime.UTC)


def _loaded(config: str) -> Any:
    from quorepo.rpc.config import load_config

    return load_config(config)


class _told:
    """Turns what is wrong with files into a failure of the command."""

    def __enter__(self) -> None:
        pass

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        from quorepo.storage.errors import ConfigError

        if isinstance(error, ConfigError):
            raise Failure(error.message, next_step=error.next_step) from error
        if isinstance(error, OSError):
            raise Failure(f"{error}; run it as the user that the node runs as") from error
