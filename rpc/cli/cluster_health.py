"""`quorepo cluster health`: what is wrong, what to do, and an exit code that tells."""

from __future__ import annotations

import click

from quorepo.rpc.cli.failures import EXIT_FOUND, EXIT_UNAVAILABLE
from quorepo.rpc.cli.options import Settings, common_options

__all__ = ["health"]

_CODES = {"healthy": 0, "degraded": EXIT_FOUND, "unavailable": EXIT_UNAVAILABLE}
_SENTENCES = {
    "healthy": "healthy: everything is served, every node answers",
    "degraded": "degraded: everything is served, but act before the next failure",
    "unavailable": "unavailable: pushes or reads are not served",
}


@click.command("health")
@common_options
@click.pass_context
def health(context: click.Context, /, settings: Settings) -> None:
    """Is the cluster well? Each problem is told with what to do about it.

    Exit codes: 0 healthy, 6 degraded (served, but somebody should act), 3 unavailable (a group has
    no majority or no leader, or no node answers).

    \b
    Examples:
      quorepo cluster health
      quorepo cluster health -o json | jq -r .verdict
    """
    from quorepo.rpc.cli.health import problems, verdict
    from quorepo.rpc.cli.output import emit
    from quorepo.rpc.cli.status import read_status

    status = read_status(settings)
    found = problems(status)
    judged = verdict(found)
    document = {
        "verdict": judged,
        "cluster_id": status["cluster_id"],
        "answered_by": status["answered_by"],
        "problems": [problem.document() for problem in found],
    }

    def lines() -> None:
        click.echo(f"{_SENTENCES[judged]} (as {status['answered_by']} sees it)")
        for problem in found:
            click.echo(f"{problem.severity}: {problem.what}")
            click.echo(f"  next: {problem.next_step}")

    emit(document, settings.output, lines)
    context.exit(_CODES[judged])
