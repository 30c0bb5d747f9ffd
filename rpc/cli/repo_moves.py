"""`quorepo repo rename|fork|deleted|undelete`: repositories that move, are copied, or come back."""

from __future__ import annotations

import re
import uuid
from typing import TYPE_CHECKING

import click

from quorepo.rpc.cli.completers import complete_repository
from quorepo.rpc.cli.options import Settings, common_options

if TYPE_CHECKING:
    from quorepo import Client
    from quorepo.types import DeletedRepository

__all__ = ["deleted", "fork", "rename", "undelete"]

_REQUEST_ID_HELP = "Repeat an earlier request whose outcome is not known (a UUID)."
_REPOSITORY_ID = re.compile(r"[0-9a-f]{32}")


@click.command("rename")
@click.argument("path", shell_complete=complete_repository)
@click.argument("new_path")
@click.option("--request-id", type=click.UUID, help=_REQUEST_ID_HELP)
@common_options
def rename(path: str, new_path: str, request_id: uuid.UUID | None, settings: Settings) -> None:
    """Moves a repository to another path; its id and its history stay.

    The old path is free at once: clients that use it find nothing there.

    \b
    Example:
      quorepo repo rename team/app team/application
    """
    from quorepo.rpc.cli.api import api_client
    from quorepo.rpc.cli.output import emit_done

    with api_client(settings) as client:
        renamed = client.repositories.rename(
            path, new_path, request_id=str(request_id) if request_id else None
        )
    document = {"repository_id": renamed.repository_id, "path": renamed.path}
    emit_done(document, settings.output, f"renamed {path} to {renamed.path}")


@click.command("fork")
@click.argument("path", shell_complete=complete_repository)
@click.argument("new_path")
@click.option("--request-id", type=click.UUID, help=_REQUEST_ID_HELP)
@common_options
def fork(path: str, new_path: str, request_id: uuid.UUID | None, settings: Settings) -> None:
    """Copies a repository; the copy shares the files of packs until either side consolidates.

    \b
    Example:
      quorepo repo fork team/app alice/app
    """
    from quorepo.rpc.cli.api import api_client
    from quorepo.rpc.cli.output import emit_done

    with api_client(settings) as client:
        forked = client.repositories.fork(
            path, new_path, request_id=str(request_id) if request_id else None
        )
    document = {
        "repository_id": forked.repository_id,
        "path": forked.path,
        "forked_from": path,
        "source_revision": str(forked.source_revision),
    }
    emit_done(document, settings.output, f"forked {path} to {forked.path}")


@click.command("deleted")
@common_options
def deleted(settings: Settings) -> None:
    """Lists deleted repositories that can still be had back.

    \b
    Example:
      quorepo repo deleted
    """
    from quorepo.rpc.cli.api import api_client
    from quorepo.rpc.cli.output import emit, print_table

    with api_client(settings) as client:
        documents = [_document(repository) for repository in client.repositories.list_deleted()]
    keys = ("path", "repository_id", "delete_time", "purge_time")
    emit(
        documents,
        settings.output,
        lambda: print_table(
            "",
            ("path", "repository id", "deleted", "kept until"),
            [[document[key] for key in keys] for document in documents],
        ),
    )


@click.command("undelete")
@click.argument("repository", metavar="PATH|REPOSITORY_ID")
@click.option("--to", "path", default="", help="Another path than the one it was deleted at.")
@click.option("--request-id", type=click.UUID, help=_REQUEST_ID_HELP)
@common_options
def undelete(repository: str, path: str, request_id: uuid.UUID | None, settings: Settings) -> None:
    """Brings a deleted repository back, with all that it had.

    A path will do where one deleted repository had it; `quorepo repo deleted` lists ids.

    \b
    Examples:
      quorepo repo undelete team/app
      quorepo repo undelete team/app --to team/app-of-yesterday
    """
    from quorepo.rpc.cli.api import api_client
    from quorepo.rpc.cli.output import emit_done

    with api_client(settings) as client:
        is_id = _REPOSITORY_ID.fullmatch(repository) is not None
        repository_id = repository if is_id else _id_of(client, repository)
        back = client.repositories.undelete(
            repository_id, path, request_id=str(request_id) if request_id else None
        )
    document = {"repository_id": repository_id, "path": back}
    emit_done(document, settings.output, f"{back} is back")


def _id_of(client: Client, path: str) -> str:
    from quorepo.rpc.cli.failures import Failure

    found = [
        repository for repository in client.repositories.list_deleted() if repository.path == path
    ]
    if not found:
        raise Failure(
            f"no deleted repository of the path {path!r} is kept; nothing was changed",
            next_step="quorepo repo deleted",
        )
    if len(found) > 1:
        ids = ", ".join(repository.repository_id for repository in found)
        raise Failure(
            f"several repositories were deleted at {path!r} ({ids}); nothing was changed",
            next_step="quorepo repo undelete REPOSITORY_ID",
        )
    return found[0].repository_id


def _document(repository: DeletedRepository) -> dict[str, str]:
    from quorepo.rpc.cli.api import moment

    return {
        "path": repository.path,
        "repository_id": repository.repository_id,
        "delete_time": moment(repository.delete_time),
        "purge_time": moment(repository.purge_time),
        "revision": str(repository.revision),
    }
