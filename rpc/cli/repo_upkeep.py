"""`quorepo repo optimize` and `quorepo repo prune`: what stores a repository, not what is in it."""

from __future__ import annotations

import dataclasses
import uuid
from typing import TYPE_CHECKING

import click

from quorepo.rpc.cli.completers import complete_repository
from quorepo.rpc.cli.options import Settings, common_options

if TYPE_CHECKING:
    from quorepo.types import PackChange

__all__ = ["optimize", "prune"]

# Every replica reads and checks the whole new pack; a shorter --timeout would only stop waiting.
_TIMEOUT_S_MIN = 7200.0
_REQUEST_ID_HELP = "Repeat an earlier request whose outcome is not known (a UUID)."


@click.command("optimize")
@click.argument("path", shell_complete=complete_repository)
@click.option(
    "--incremental", is_flag=True, help="Merge only the small packs, as automatic runs do."
)
@click.option("--request-id", type=click.UUID, help=_REQUEST_ID_HELP)
@common_options
def optimize(
    path: str, incremental: bool, request_id: uuid.UUID | None, settings: Settings
) -> None:
    """Merges the packs of a repository into one; clones get faster, nothing else changes.

    Pushes and clones go on meanwhile. Waits until all replicas have switched.

    \b
    Examples:
      quorepo repo optimize team/app
      quorepo repo optimize team/app --incremental
    """
    from quorepo.rpc.cli.api import api_client

    with api_client(settings) as client:
        change = client.repositories.optimize(
            path,
            incremental=incremental,
            timeout_s=max(settings.timeout_s, _TIMEOUT_S_MIN),
            request_id=str(request_id) if request_id else None,
        )
    _print(change, settings, path, "merged", "nothing to merge")


@click.command("prune")
@click.argument("path", shell_complete=complete_repository)
@click.option(
    "--grace",
    "grace_s",
    type=click.FloatRange(min=0),
    metavar="SECONDS",
    help="Keep what came, or what a ref led to, in this time; default: the node's configuration.",
)
@click.option("--request-id", type=click.UUID, help=_REQUEST_ID_HELP)
@common_options
def prune(
    path: str, grace_s: float | None, request_id: uuid.UUID | None, settings: Settings
) -> None:
    """Removes objects that no ref leads to, and none has for the grace time.

    \b
    Examples:
      quorepo repo prune team/app
      quorepo repo prune team/app --grace 86400
    """
    from quorepo.rpc.cli.api import api_client

    with api_client(settings) as client:
        change = client.repositories.prune(
            path,
            grace_s=grace_s,
            timeout_s=max(settings.timeout_s, _TIMEOUT_S_MIN),
            request_id=str(request_id) if request_id else None,
        )
    _print(change, settings, path, "pruned", "nothing to prune")


def _print(change: PackChange, settings: Settings, path: str, done: str, nothing: str) -> None:
    from quorepo.rpc.cli.output import emit_done

    document = {"path": path, **dataclasses.asdict(change), "revision": str(change.revision)}
    if change.packs_removed:
        sentence = (
            f"{done} {path}: {change.packs_before} packs became {change.packs_after},"
            f" {change.bytes_removed} bytes became {change.bytes_added},"
            f" {change.objects_dropped} objects dropped"
        )
    else:
        sentence = f"{path}: {nothing} ({change.packs_before} packs)"
    emit_done(document, settings.output, sentence)
