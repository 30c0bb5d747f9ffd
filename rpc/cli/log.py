"""`quorepo log`: the history of a repository without a clone."""

from __future__ import annotations

import itertools
from typing import Any

import click

from quorepo.rpc.cli.completers import complete_repository
from quorepo.rpc.cli.options import Settings, common_options

__all__ = ["command"]

_PAGE_SIZE_MAX = 100


@click.command("log")
@click.argument("repository", shell_complete=complete_repository)
@click.argument("revision", default="HEAD")
@click.option("--exclude", multiple=True, help="Leave out what this revision reaches.")
@click.option("--path", "paths", multiple=True, help="Only commits that changed this.")
@click.option(
    "-n", "--count", type=click.IntRange(min=1), default=20, show_default=True, help="At most."
)
@common_options
def command(
    repository: str,
    revision: str,
    exclude: tuple[str, ...],
    paths: tuple[str, ...],
    count: int,
    settings: Settings,
) -> None:
    """Lists commits as git log does, the newest first.

    \b
    Examples:
      quorepo log team/app
      quorepo log team/app v2 --exclude v1 --path src -n 100 -o json
    """
    from quorepo.rpc.cli.api import api_client
    from quorepo.rpc.cli.output import emit, print_table

    with api_client(settings) as client:
        commits = client.commits.list(
            repository,
            revision,
            exclusions=exclude,
            paths=paths,
            page_size=min(count, _PAGE_SIZE_MAX),
        )
        found = [_document(commit) for commit in itertools.islice(commits, count)]
    rows = [
        [c["oid"][:12], c["committer"]["time"], c["author"]["name"], c["message"].split("\n")[0]]
        for c in found
    ]
    emit(
        found,
        settings.output,
        lambda: print_table("", ("commit", "time", "author", "subject"), rows),
    )


def _document(commit: Any) -> dict[str, Any]:
    from quorepo.rpc.cli.api import text

    return {
        "oid": commit.oid,
        "tree_oid": commit.tree_oid,
        "parent_oids": list(commit.parent_oids),
        "author": _person(commit.author),
        "committer": _person(commit.committer),
        "message": text(commit.message),
    }


def _person(signature: Any) -> dict[str, str]:
    from datetime import UTC

    from quorepo.rpc.cli.api import text

    return {
        "name": text(signature.name),
        "email": text(signature.email),
        "time": signature.time.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ"),
    }
