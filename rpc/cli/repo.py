"""`quorepo repo`: repositories by path."""

from __future__ import annotations

import uuid
from typing import Any

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
from quorepo.rpc.request_ids import new_request_uuid

__all__ = ["command"]

_PAGE_SIZE = 1000
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
    from quorepo.rpc.cli.client import connected
    from quorepo.v1 import common_pb2, repository_pb2

    formats = {
        "sha1": common_pb2.OBJECT_FORMAT_SHA1,
        "sha256": common_pb2.OBJECT_FORMAT_SHA256,
    }
    request = repository_pb2.CreateRepositoryRequest(
        request_id=str(request_id or new_request_uuid()),
        path=path,
        default_branch=default_branch.encode(),
        object_format=formats[object_format],
    )
    with connected(settings) as client:
        answer = client.call(
            client.repositories.CreateRepository, request, request_id=request.request_id
        )
    _print_one(answer.repository, settings, f"created {answer.repository.path}")


@command.command("list")
@click.option("--prefix", default="", help="Only paths that start with this.")
@common_options
def list_(prefix: str, settings: Settings) -> None:
    """Lists repositories in order of their paths.

    \b
    Examples:
      quorepo repo list
      quorepo repo list --prefix team/ -o json
    """
    from quorepo.rpc.cli.client import connected
    from quorepo.rpc.cli.output import emit, print_table
    from quorepo.v1 import repository_pb2

    found: list[Any] = []
    request = repository_pb2.ListRepositoriesRequest(path_prefix=prefix, page_size=_PAGE_SIZE)
    with connected(settings) as client:
        while True:
            answer = client.call(client.repositories.ListRepositories, request)
            found.extend(answer.repositories)
            if not answer.next_page_token:
                break
            request.page_token = answer.next_page_token
    documents = [_document(repository) for repository in found]
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
    from quorepo.rpc.cli.client import connected
    from quorepo.v1 import repository_pb2

    with connected(settings) as client:
        answer = client.call(
            client.repositories.GetRepository, repository_pb2.GetRepositoryRequest(path=path)
        )
    _print_one(answer.repository, settings, "")


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
    from quorepo.rpc.cli.client import connected
    from quorepo.rpc.cli.confirm import confirm
    from quorepo.rpc.cli.output import emit_done, note
    from quorepo.v1 import repository_pb2

    confirm(
        f"Delete {path!r} with all its history?",
        yes=yes,
        again=f"quorepo repo delete {path} --yes",
    )
    request = repository_pb2.DeleteRepositoryRequest(
        request_id=str(request_id or new_request_uuid()), path=path
    )
    with connected(settings) as client:
        answer = client.call(
            client.repositories.DeleteRepository, request, request_id=request.request_id
        )
    kept_until = answer.purge_time.ToJsonString()
    document = {
        "deleted": path, "repository_id": answer.repository_id, "purge_time": kept_until
    }  # fmt: skip
    emit_done(document, settings.output, f"deleted {path}")
    note(f"until {kept_until} it can be had back: quorepo repo undelete {answer.repository_id}")


def _document(repository: Any) -> dict[str, Any]:
    from quorepo.v1 import common_pb2

    name = common_pb2.ObjectFormat.Name(repository.object_format)
    return {
        "path": repository.path,
        "repository_id": repository.repository_id,
        "revision": f"{repository.revision.incarnation}.{repository.revision.counter}",
        "object_format": name.removeprefix("OBJECT_FORMAT_").lower(),
        "head": repository.head.decode("utf-8", "backslashreplace"),
        "create_time": repository.create_time.ToJsonString(),
        "ref_count": repository.ref_count,
        "pack_count": repository.pack_count,
        "checksum": repository.checksum,
    }


def _print_one(repository: Any, settings: Settings, headline: str) -> None:
    from quorepo.rpc.cli.output import emit_done, emit_one

    document = _document(repository)
    if headline:
        emit_done(document, settings.output, headline)
    else:
        emit_one(document, settings.output)
