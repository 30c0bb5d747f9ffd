"""`quorepo cluster recover`: going on with the survivors of a lost majority. Offline."""

from __future__ import annotations

import asyncio
import contextlib
import datetime
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from quorepo.rpc.cli.confirm import confirm_by_name
from quorepo.rpc.cli.failures import EXIT_REFUSED, Failure
from quorepo.rpc.cli.options import config_option, output_option

if TYPE_CHECKING:
    from quorepo.cluster.lost_majority import GroupLook, Survivor
    from quorepo.rpc.config import NodeConfig

__all__ = ["recover"]

_LOCK_WAIT_S = 0.5


@click.command("recover")
@config_option()
@click.option(
    "--compare",
    multiple=True,
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    metavar="DIR",
    help="Data directory of another survivor, as a copy on this machine; may be repeated.",
)
@click.option("--dry-run", is_flag=True, help="Say what would be lost, and end there.")
@click.option("--force", is_flag=True, help="Go on, once the cluster's name was typed.")
@click.option("--cluster-name", help="The cluster's id, instead of being asked for it.")
@output_option
def recover(
    config: str,
    compare: tuple[Path, ...],
    dry_run: bool,
    force: bool,
    cluster_name: str | None,
    output: str,
) -> None:
    """Goes on with a survivor when the majority of a cluster is lost for good.

    Run it on the survivor's machine, its node stopped, as the user that runs the node. The
    survivor becomes the only member of a new cluster, with everything that its log holds; the old
    members are never heard again, even if they come back. What they acknowledged and this disk
    never received is lost: the command says first what is certain, what is in its log without
    being known as committed, and since when it cannot know. With --compare it goes on only if this
    disk's log is the longest.

    A majority that can still be started is no lost majority: start it instead. Nodes that are
    members of the old cluster must stay off; empty their data directories and add them again.

    \b
    Examples:
      quorepo cluster recover --config /etc/quorepo/quorepo.toml --dry-run
      quorepo cluster recover --config /etc/quorepo/quorepo.toml --force
      quorepo cluster recover --config n1.toml --compare /mnt/n2-data --dry-run -o json
    """
    from quorepo.rpc.cli.output import emit
    from quorepo.rpc.config import load_config
    from quorepo.storage.errors import FatalError, QuorepoError

    node = load_config(Path(config))
    own = node.node.data_dir
    with contextlib.ExitStack() as stack:
        for data_dir in (own, *compare):
            _lock(data_dir, stack)
        try:
            document, best = _show((own, *compare), output, dry_run=dry_run)
            if dry_run:
                return
            confirm_by_name(
                "what the lost members acknowledged and this disk never received is lost for good",
                best.cluster_id,
                force=force,
                typed=cluster_name,
                again=f"quorepo cluster recover --config {config} --force",
            )
            document["new_cluster_id"] = new_id = _recover(node)
        except FatalError as error:
            raise Failure(str(error), exit_code=EXIT_REFUSED) from error
        except QuorepoError as error:
            raise Failure(
                error.message, next_step=error.next_step, exit_code=EXIT_REFUSED
            ) from error

    def lines() -> None:
        click.echo(f"done: {best.node} is the only member of the new cluster {new_id}")
        click.echo(f"next: start {best.node}; empty the other data directories; quorepo node add")

    emit(document, output, lines)


def _show(
    data_dirs: Sequence[Path], output: str, *, dry_run: bool
) -> tuple[dict[str, Any], Survivor]:
    """Says what would be lost. Raises Failure unless the first directory's log is the longest."""
    from quorepo.cluster import lost_majority
    from quorepo.cluster.core import GROUPS
    from quorepo.rpc.cli.output import emit, note

    survivors = [asyncio.run(lost_majority.look(path, GROUPS)) for path in data_dirs]
    best = lost_majority.furthest(survivors)
    document, text = _document(best, survivors), _preview(best, survivors)
    if dry_run:
        emit(document, output, lambda: click.echo(text))
    else:
        note(text)
    if best.data_dir != data_dirs[0]:
        raise Failure(
            f"the log in {best.data_dir} (node {best.node}) goes further than the one in "
            f"{data_dirs[0]}; nothing was changed",
            next_step=f"run this on {best.node}'s machine, with its configuration",
            exit_code=EXIT_REFUSED,
        )
    if dry_run:
        note("dry run: nothing was changed")
    return document, best


def _recover(node: NodeConfig) -> str:
    from quorepo.cluster import lost_majority
    from quorepo.cluster.core import GROUPS

    address = node.advertise.peer_address
    return asyncio.run(lost_majority.recover(node.node.data_dir, GROUPS, address, _marker(node)))


def _marker(node: NodeConfig) -> Path | None:
    """As rpc/node/core_main.py has it."""
    if node.cluster.peers:
        return None
    return node.cluster.tls.certificate_file.with_suffix(".cluster")


def _lock(data_dir: Path, stack: contextlib.ExitStack) -> None:
    from quorepo.cluster.raft.durable import DirectoryLock
    from quorepo.storage.errors import Unavailable

    if not data_dir.is_dir():
        raise Failure(
            f"{data_dir} is not there; nothing was changed",
            next_step="run this on a survivor's machine, with its configuration",
            exit_code=EXIT_REFUSED,
        )
    try:
        lock = DirectoryLock(data_dir / "lock", _LOCK_WAIT_S)
    except Unavailable as error:
        raise Failure(
            f"a node runs on {data_dir}; nothing was changed",
            next_step="stop it first; if it still finds a majority, nothing needs recovering",
            exit_code=EXIT_REFUSED,
        ) from error
    stack.callback(lock.release)


def _time(time_ms: int) -> str:
    if not time_ms:
        return "its beginning"
    moment = datetime.datetime.fromtimestamp(time_ms / 1000, datetime.UTC)
    return moment.isoformat(timespec="milliseconds")


def _preview(best: Survivor, survivors: Sequence[Survivor]) -> str:
    lines = [f"cluster {best.cluster_id}"]
    for survivor in survivors:
        ends = ", ".join(
            f"group {g.group} entry {g.last_index} of term {g.last_term}" for g in survivor.groups
        )
        chosen = "goes on" if survivor is best else "is given up"
        lines.append(
            f"survivor {survivor.node} ({survivor.data_dir}): log ends at {ends}; {chosen}"
        )
    for group in best.groups:
        lines += _group_lines(group, best.node)
    lines.append(
        "what the lost members had beyond this, in any repository, is lost. "
        f"This disk has {len(best.repositories)} repositories:"
    )
    lines += [f"  {path} at revision {counter}" for path, counter in best.repositories]
    return "\n".join(lines)


def _group_lines(group: GroupLook, node: str) -> list[str]:
    others = [name for name in group.voters if name != node]
    lines = [
        f"group {group.group}: {len(group.voters)} voters ({', '.join(group.voters)}); "
        f"{', '.join(others) or 'nobody'} will be removed",
        f"  certain: everything up to entry {group.applied_index} is committed and stays",
        f"  not certain: {len(group.pending)} later entries in the log; they stay, though the "
        "clients may have been told that the outcome is unknown",
    ]
    for entry in group.pending:
        refs = f" {' '.join(entry.refs)}" if entry.refs else ""
        lines.append(
            f"    entry {entry.index} of term {entry.term}, {_time(entry.time_ms)}: {entry.what} "
            f"{entry.repository}{refs} (request {entry.request_id or '-'})"
        )
    lines.append(
        f"  not known: anything after {_time(group.last_time_ms)} (entry {group.last_index}), the "
        "last that this disk has of any leader"
    )
    return lines


def _document(best: Survivor, survivors: Sequence[Survivor]) -> dict[str, Any]:
    return {
        "cluster_id": best.cluster_id,
        "goes_on": best.node,
        "survivors": [
            {"node": s.node, "data_dir": str(s.data_dir), "reach": [list(r) for r in s.reach]}
            for s in survivors
        ],
        "groups": [
            {
                "group": g.group,
                "voters": list(g.voters),
                "certain_up_to": g.applied_index,
                "log_ends_at": g.last_index,
                "not_known_after_ms": g.last_time_ms,
                "not_certain": [
                    {
                        "index": e.index,
                        "term": e.term,
                        "time_ms": e.time_ms,
                        "what": e.what,
                        "repository": e.repository or None,
                        "refs": list(e.refs),
                        "request_id": e.request_id or None,
                    }
                    for e in g.pending
                ],
            }
            for g in best.groups
        ],
        "repositories": [{"path": p, "revision": c} for p, c in best.repositories],
        "new_cluster_id": None,
    }
