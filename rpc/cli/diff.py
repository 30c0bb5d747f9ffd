"""`quorepo diff`: what changed between two revisions, without a clone."""

from __future__ import annotations

import sys
from typing import Any

import click

from quorepo.rpc.cli.completers import complete_repository
from quorepo.rpc.cli.options import Settings, common_options

__all__ = ["command"]


@click.command("diff")
@click.argument("repository", shell_complete=complete_repository)
@click.argument("base")
@click.argument("head")
@click.option("--path", "paths", multiple=True, help="Only what is at or below this.")
@click.option("--merge-base", is_flag=True, help="From where both parted, as git diff BASE...HEAD.")
@click.option("--name-status", is_flag=True, help="Only the paths, and what became of them.")
@common_options
def command(
    repository: str,
    base: str,
    head: str,
    paths: tuple[str, ...],
    merge_base: bool,
    name_status: bool,
    settings: Settings,
) -> None:
    """Prints a patch as git diff does; as JSON or YAML the changed files with their figures.

    \b
    Examples:
      quorepo diff team/app v1 v2
      quorepo diff team/app main topic --merge-base --name-status
    """
    from quorepo.rpc.cli.api import api_client
    from quorepo.rpc.cli.output import emit, print_table

    as_patch = settings.output == "table" and not name_status
    found: list[dict[str, Any]] = []
    with api_client(settings) as client:
        for file in client.diffs.patches(
            repository, base, head, paths=paths, from_merge_base=merge_base
        ):
            if as_patch:
                sys.stdout.buffer.write(file.patch)
            found.append(_document(file.change))
    if as_patch:
        sys.stdout.buffer.flush()
        return
    rows = [[change["status"], change["new_path"] or change["old_path"]] for change in found]
    emit(found, settings.output, lambda: print_table("", ("status", "path"), rows))


def _document(change: Any) -> dict[str, Any]:
    from quorepo.rpc.cli.api import text

    return {
        "status": change.status,
        "old_path": text(change.old_path) or None,
        "new_path": text(change.new_path) or None,
        "old_oid": change.old_oid or None,
        "new_oid": change.new_oid or None,
        "additions": change.additions,
        "deletions": change.deletions,
        "binary": change.binary,
    }
