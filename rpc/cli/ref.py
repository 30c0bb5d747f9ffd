"""`quorepo ref`: branches, tags and other refs of a repository."""

from __future__ import annotations

import uuid
from typing import Any

import click

from quorepo.rpc.cli.completers import complete_repository
from quorepo.rpc.cli.groups import CommandGroup
from quorepo.rpc.cli.options import Settings, common_options

__all__ = ["command"]

_REQUEST_ID_HELP = "Repeat an earlier request whose outcome is not known (a UUID)."


@click.group("ref", cls=CommandGroup)
def command() -> None:
    """List, look up, move and delete refs.

    \b
    Examples:
      quorepo ref list team/app
      quorepo ref get team/app refs/heads/main
    """


@command.command("list")
@click.argument("repository", shell_complete=complete_repository)
@click.option("--prefix", default="", help="Only names that start so, such as refs/tags/.")
@click.option("--containing", default="", help="Only refs whose history has this commit.")
@common_options
def list_(repository: str, prefix: str, containing: str, settings: Settings) -> None:
    """Lists refs in order of their names.

    \b
    Examples:
      quorepo ref list team/app
      quorepo ref list team/app --prefix refs/tags/ -o json
    """
    from quorepo.rpc.cli.api import api_client
    from quorepo.rpc.cli.output import emit, print_table

    with api_client(settings) as client:
        found = [
            _document(ref) for ref in client.refs.list(repository, prefix, containing=containing)
        ]
    rows = [[ref["name"], ref["oid"], ref["peeled_oid"] or ""] for ref in found]
    emit(found, settings.output, lambda: print_table("", ("name", "oid", "peeled"), rows))


@command.command("get")
@click.argument("repository", shell_complete=complete_repository)
@click.argument("name")
@common_options
def get(repository: str, name: str, settings: Settings) -> None:
    """Shows one ref by its full name, or HEAD.

    \b
    Example:
      quorepo ref get team/app refs/heads/main
    """
    from quorepo.rpc.cli.api import api_client
    from quorepo.rpc.cli.output import emit_one

    with api_client(settings) as client:
        found = client.refs.get(repository, name)
    emit_one(_document(found), settings.output)


@command.command("update")
@click.argument("repository", shell_complete=complete_repository)
@click.argument("name")
@click.argument("oid")
@click.option("--expect", metavar="OID", help="What the ref has to be now.")
@click.option("--create", is_flag=True, help="The ref must not exist.")
@click.option("--force", is_flag=True, help="Whatever the ref is now.")
@click.option("--request-id", type=click.UUID, help=_REQUEST_ID_HELP)
@common_options
def update(
    repository: str,
    name: str,
    oid: str,
    expect: str | None,
    create: bool,
    force: bool,
    request_id: uuid.UUID | None,
    settings: Settings,
) -> None:
    """Points a ref to an object that the repository has.

    Needs one of --expect, --create and --force: two who move a ref do not overwrite each other
    by mistake.

    \b
    Examples:
      quorepo ref update team/app refs/heads/stable 1d5e9… --expect 0b82c…
      quorepo ref update team/app refs/tags/v1 1d5e9… --create
    """
    from quorepo.rpc.cli.api import api_client
    from quorepo.rpc.cli.output import emit_done
    from quorepo.types import RefUpdate

    if [expect is not None, create, force].count(True) != 1:
        raise click.UsageError("one of --expect OID, --create and --force is needed")
    change = RefUpdate(name, oid, None if force else expect or "")
    with api_client(settings) as client:
        revision, _ = client.refs.update(
            repository, [change], request_id=str(request_id) if request_id else None
        )
    emit_done(
        {"name": name, "oid": oid, "revision": str(revision)}, settings.output, f"{name} is {oid}"
    )


@command.command("delete")
@click.argument("repository", shell_complete=complete_repository)
@click.argument("names", nargs=-1, required=True)
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--request-id", type=click.UUID, help=_REQUEST_ID_HELP)
@common_options
def delete(
    repository: str,
    names: tuple[str, ...],
    yes: bool,
    request_id: uuid.UUID | None,
    settings: Settings,
) -> None:
    """Deletes refs, all or none; one that does not exist is no error.

    \b
    Example:
      quorepo ref delete team/app refs/heads/old refs/heads/older --yes
    """
    from quorepo.rpc.cli.api import api_client
    from quorepo.rpc.cli.confirm import confirm
    from quorepo.rpc.cli.output import emit_done

    listed = " ".join(names)
    confirm(
        f"Delete {listed} of {repository!r}?",
        yes=yes,
        again=f"quorepo ref delete {repository} {listed} --yes",
    )
    with api_client(settings) as client:
        revision = client.refs.delete(
            repository, names, request_id=str(request_id) if request_id else None
        )
    emit_done(
        {"deleted": list(names), "revision": str(revision)}, settings.output, f"deleted {listed}"
    )


def _document(ref: Any) -> dict[str, Any]:
    from quorepo.rpc.cli.api import text

    return {
        "name": text(ref.name),
        "oid": ref.oid,
        "peeled_oid": ref.peeled_oid or None,
        "symbolic_target": text(ref.symbolic_target) or None,
    }
