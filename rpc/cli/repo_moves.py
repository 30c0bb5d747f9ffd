"""`quorepo repo rename|fork|deleted|undelete`: repositories that move, are copied, or come back."""

from __future__ import annotations

import re
import uuid
from typing import Any

import click

from quorepo.rpc.cli.completers import complete_repository
from quorepo.rpc.cli.options import Settings, common_options
from quorepo.rpc.request_ids import new_request_uuid

__all__ = ["deleted", "fork", "rename", "undelete"]

_PAGE_SIZE = 1000
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
    from quorepo.rpc.cli.client import connected
    from quorepo.rpc.cli.output import emit_done
    from quorepo.v1 import repository_pb2

    request = repository_pb2.RenameRepositoryRequest(
        request_id=str(request_id or new_request_uuid()), path=path, new_path=new_path
    )
    with connected(settings) as client:
        answer = client.call(
            client.repositories.RenameRepository, request, request_id=request.request_id
        )
    document = {"repository_id": answer.repository_id, "path": answer.path}
    emit_done(document, settings.output, f"renamed {path} to {answer.path}")


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
    from quorepo.rpc.cli.client import connected
    from quorepo.rpc.cli.output import emit_done
    from quorepo.v1 import repository_pb2

    request = repository_pb2.ForkRepositoryRequest(
        request_id=str(request_id or new_request_uuid()), path=path, new_path=new_path
    )
    with connected(settings) as client:
        answer = client.call(
            client.repositories.ForkRepository, request, request_id=request.request_id
        )
    document = {
        "repository_id": answer.repository_id,
        "path": answer.path,
        "forked_from": path,
        "source_revision": _revision(answer.source_revision),
    }
    emit_done(document, settings.output, f"forked {path} to {answer.path}")


@click.command("deleted")
@common_options
def deleted(settings: Settings) -> None:
    """Lists deleted repositories that can still be had back.

    \b
    Example:
      quorepo repo deleted
    """
    from quorepo.rpc.cli.client import connected
    from quorepo.rpc.cli.output import emit, print_table

    with connected(settings) as client:
        documents = [_document(repository) for repository in _all_deleted(client)]
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
    from quorepo.rpc.cli.client import connected
    from quorepo.rpc.cli.output import emit_done
    from quorepo.v1 import repository_pb2

    with connected(settings) as client:
        is_id = _REPOSITORY_ID.fullmatch(repository) is not None
        request = repository_pb2.UndeleteRepositoryRequest(
            request_id=str(request_id or new_request_uuid()),
            repository_id=repository if is_id else _id_of(client, repository),
            path=path,
        )
        answer = client.call(
            client.repositories.UndeleteRepository, request, request_id=request.request_id
        )
    document = {"repository_id": request.repository_id, "path": answer.path}
    emit_done(document, settings.output, f"{answer.path} is back")


def _id_of(client: Any, path: str) -> str:
    from quorepo.rpc.cli.failures import Failure

    found = [repository for repository in _all_deleted(client) if repository.path == path]
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
    repository_id: str = found[0].repository_id
    return repository_id


def _all_deleted(client: Any) -> list[Any]:
    from quorepo.v1 import repository_pb2

    found: list[Any] = []
    request = repository_pb2.ListDeletedRepositoriesRequest(page_size=_PAGE_SIZE)
    while True:
        answer = client.call(client.repositories.ListDeletedRepositories, request)
        found.extend(answer.repositories)
        if not answer.next_page_token:
            return found
        request.page_token = answer.next_page_token


def _document(repository: Any) -> dict[str, str]:
    return {
        "path": repository.path,
        "repository_id": repository.repository_id,
        "delete_time": repository.delete_time.ToJsonString(),
        "purge_time": repository.purge_time.ToJsonString(),
        "revision": _revision(repository.revision),
    }


def _revision(revision: Any) -> str:
    return f"{revision.incarnation}.{revision.counter}"
