"""`quorepo file`: one file of a repository, read and written without a clone."""

from __future__ import annotations

import base64
import sys
import uuid
from typing import TYPE_CHECKING, BinaryIO

import click

from quorepo.rpc.cli.api import parse_person
from quorepo.rpc.cli.completers import complete_repository
from quorepo.rpc.cli.groups import CommandGroup
from quorepo.rpc.cli.options import Settings, common_options

if TYPE_CHECKING:
    from quorepo.types import Signature

__all__ = ["command"]


@click.group("file", cls=CommandGroup)
def command() -> None:
    """Read and write single files without a clone.

    \b
    Example:
      quorepo file get team/app README.md
    """


@command.command("get")
@click.argument("repository", shell_complete=complete_repository)
@click.argument("path")
@click.option("--revision", default="HEAD", show_default=True, help="A branch, tag or commit.")
@common_options
def get(repository: str, path: str, revision: str, settings: Settings) -> None:
    """Writes a file to standard output; as JSON or YAML its content is in base64.

    \b
    Examples:
      quorepo file get team/app README.md
      quorepo file get team/app src/main.py --revision v1 > main.py
    """
    from quorepo.rpc.cli.api import api_client
    from quorepo.rpc.cli.output import emit

    with api_client(settings) as client:
        blob = client.blobs.file(repository, path, revision)
    document = {
        "path": path,
        "oid": blob.oid,
        "size": blob.size,
        "content": base64.b64encode(blob.data).decode(),
    }
    emit(document, settings.output, lambda: _write(blob.data))


@command.command("put")
@click.argument("repository", shell_complete=complete_repository)
@click.argument("path")
@click.argument("source", type=click.File("rb"))
@click.option("--branch", default="main", show_default=True, help="Made when it does not exist.")
@click.option("--message", help="Of the commit.  [default: Write PATH]")
@click.option(
    "--author",
    required=True,
    envvar="QUOREPO_AUTHOR",
    callback=parse_person,
    metavar='"NAME <EMAIL>"',
    help="Of the commit; or QUOREPO_AUTHOR.",
)
@click.option("--executable", is_flag=True, help="With mode 0755.")
@click.option("--expect", metavar="OID", help="The commit that the branch has to be at.")
@click.option(
    "--request-id",
    type=click.UUID,
    help="Repeat an earlier request whose outcome is not known (a UUID).",
)
@common_options
def put(
    repository: str,
    path: str,
    source: BinaryIO,
    branch: str,
    message: str | None,
    author: Signature,
    executable: bool,
    expect: str | None,
    request_id: uuid.UUID | None,
    settings: Settings,
) -> None:
    """Commits a file to a branch: SOURCE, or standard input when it is -.

    \b
    Example:
      quorepo file put team/app README.md ./README.md --author "Ada <ada@example.org>"
    """
    from quorepo.rpc.cli.api import api_client
    from quorepo.rpc.cli.output import emit_done
    from quorepo.types import FileAction

    mode = 0o100755 if executable else 0
    with api_client(settings) as client:
        result = client.operations.commit_files(
            repository,
            branch,
            [FileAction("write", path, source.read(), mode=mode)],
            message=message or f"Write {path}\n",
            author=author,
            expected_oid=expect,
            request_id=str(request_id) if request_id else None,
        )
    emit_done(
        {
            "commit_oid": result.commit_oid,
            "branch": branch,
            "branch_created": result.branch_created,
            "revision": str(result.revision),
        },
        settings.output,
        f"{branch} is {result.commit_oid}",
    )


def _write(data: bytes) -> None:
    sys.stdout.flush()
    sys.stdout.buffer.write(data)
    sys.stdout.buffer.flush()
