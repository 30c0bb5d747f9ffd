"""`quorepo repo`: repositories by path."""

from __future__ import annotations

import uuid
from typing import TYPE_CHECKING, Any

import click

from quorepo.rpc.cli.completers import complete_repository
from quorepo.rpc.cli.groups import CommandGroup
from quorepo.rpc.cli.options import Settings, common_options
from quorepo.rpc.cli.repo_moves import deleted, fork, rename, undelete
from quorepo.rpc.cli.repo_transfer import (
    archive,
    bundle,
    cancel_import,
    import_,
    imports,
    unbundle,
)
from quorepo.rpc.cli.repo_upkeep import optimize, prune

if TYPE_CHECKING:
    from quorepo.types import Repository

__all__ = ["command"]

_REQUEST_ID_HELP = "Repeat an earlier request whose outcome is not known (a UUID)."


@click.group("repo", cls=CommandGroup)
def command() -> None:
    """Create, list, inspect, rename, fork, import, optimize, delete and undelete repositories.

    \b
    Examples:
      quorepo repo create team/app
      quorepo repo list
    """


_MOVES = (deleted, fork, optimize, prune, rename, undelete)
for _part in (*_MOVES, archive, bundle, unbundle, import_, imports, cancel_import):
    command.add_command(_part)


@command.command("create")
@click.argument("path")
@click.option("--default-branch", default="", help="What HEAD points to; default: the first push.")
@click.option(
    "--object-format",
    type=click.Choice(["sha1", "sha256"]),
    default="sha1",
    show_default=True,
    help="Hash of the object ids; never changed afterwards.",
)
@click.option("--request-id", type=click.UUID, help=_REQUEST_ID_HELP)
@common_options
def create(
    path: str,
    default_branch: str,
    object_format: str,
    request_id: uuid.UUID | None,
    settings: Settings,
) -> None:
    """Creates an empty repository.

    \b
    Example:
      quorepo repo create team/app --default-branch main
    """
    from quorepo.rpc.cli.api import api_client

    with api_client(settings) as client:
        repository = client.repositories.create(
            path,
            default_branch=default_branch,
            object_format=object_format,
            request_id=str(request_id) if request_id else None,
        )
    _print_one(repository, settings, f"created {repository.path}")


@command.command("list")
@click.option("--prefix", default="", help="Only paths that start with this.")
@click.option("--contains", default="", help="Only paths with this text.")
@click.option("--read-only/--writable", default=None, help="Only those; default: both.")
@click.option("--forks/--no-forks", default=None, help="Only those; default: both.")
@common_options
def list_(
    prefix: str, contains: str, read_only: bool | None, forks: bool | None, settings: Settings
) -> None:
    """Lists repositories in order of their paths.

    \b
    Examples:
      quorepo repo list
      quorepo repo list --prefix team/ -o json
      quorepo repo list --contains app --writable
    """
    from quorepo.rpc.cli.api import api_client
    from quorepo.rpc.cli.output import emit, print_table

    with api_client(settings) as client:
        listed = client.repositories.list(
            prefix, path_contains=contains, read_only=read_only, is_fork=forks
        )
        documents = [_document(repository) for repository in listed]
    keys = ("path", "revision", "ref_count", "pack_count", "head", "create_time")
    emit(
        documents,
        settings.output,
        lambda: print_table(
            "",
            ("path", "revision", "refs", "packs", "head", "created"),
            [[document[key] for key in keys] for document in documents],
        ),
    )


@command.command("info")
@click.argument("path", shell_complete=complete_repository)
@common_options
def info(path: str, settings: Settings) -> None:
    """Shows one repository.

    \b
    Example:
      quorepo repo info team/app
    """
    from quorepo.rpc.cli.api import api_client

    with api_client(settings) as client:
        repository = client.repositories.get(path)
    _print_one(repository, settings, "")


@command.command("delete")
@click.argument("path", shell_complete=complete_repository)
@click.option("--yes", is_flag=True, help="Do not ask.")
@click.option("--request-id", type=click.UUID, help=_REQUEST_ID_HELP)
@common_options
def delete(path: str, yes: bool, request_id: uuid.UUID | None, settings: Settings) -> None:
    """Deletes a repository; for a while it can be had back, with all that it had.

    The path is free at once. How long it is kept says storage.undelete_retention_s of the node
    that is asked; `quorepo repo deleted` lists what can be had back.

    \b
    Example:
      quorepo repo delete team/app --yes
      quorepo repo undelete team/app
    """
    from quorepo.rpc.cli.api import api_client, moment
    from quorepo.rpc.cli.confirm import confirm
    from quorepo.rpc.cli.output import emit_done, note

    confirm(
        f"Delete {path!r} with all its history?",
        yes=yes,
        again=f"quorepo repo delete {path} --yes",
    )
    with api_client(settings) as client:
        deletion = client.repositories.delete(
            path, request_id=str(request_id) if request_id else None
        )
    kept_until = moment(deletion.purge_time)
    document = {
        "deleted": path, "repository_id": deletion.repository_id, "purge_time": kept_until
    }  # fmt: skip
    emit_done(document, settings.output, f"deleted {path}")
    note(f"until {kept_until} it can be had back: quorepo repo undelete {deletion.repository_id}")


def _document(repository: Repository) -> dict[str, Any]:
    from quorepo.rpc.cli.api import moment, text

    return {
        "path": repository.path,
        "repository_id": repository.repository_id,
        "revision": str(repository.revision),
        "object_format": repository.object_format,
        "head": text(repository.head),
        "create_time": moment(repository.create_time),
        "ref_count": repository.ref_count,
        "pack_count": repository.pack_count,
        "checksum": repository.checksum,
    }


def _print_one(repository: Repository, settings: Settings, headline: str) -> None:
    from quorepo.rpc.cli.output import emit_done, emit_one

    document = _document(repository)
    if headline:
        emit_done(document, settings.output, headline)
    else:
        emit_one(document, settings.output)
