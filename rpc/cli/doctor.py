"""`quorepo doctor`: is this machine fit to run its node, and can the nodes hear each other?"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING

import click

from quorepo.rpc.cli.failures import EXIT_FOUND
from quorepo.rpc.cli.options import config_option, output_option, resolve_settings

if TYPE_CHECKING:
    from quorepo.rpc.doctor.findings import Finding

__all__ = ["command"]


@click.command("doctor")
@config_option()
@click.option(
    "--token-file",
    type=click.Path(dir_okay=False),
    help="Token to ask the other nodes with; default: QUOREPO_TOKEN, or one of the node's own.",
)
@click.option(
    "--timeout",
    "timeout_s",
    type=click.FloatRange(min=0.1),
    default=3.0,
    show_default=True,
    help="Seconds to wait for each other node.",
)
@click.option("--strict", is_flag=True, help="Warnings count as errors do.")
@output_option
@click.pass_context
def command(
    context: click.Context,
    /,
    config: str,
    token_file: str | None,
    timeout_s: float,
    strict: bool,
    output: str,
) -> None:
    """Is this machine fit to run its node, and can the nodes hear each other?

    Run it on the node's machine, as the user that runs the node. Nothing is changed. Works on a
    stopped node too; what cannot be checked then is said to be skipped. The numbers of the checks
    stay the same in all versions. Exit code 6: an error was found (with --strict: or a warning).

    \b
    Checks:
      1 configuration           6 secret files            11 peers, from here
      2 data directory          7 peer certificate        12 this node, from the peers
      3 disk sync latency       8 listener certificates   13 clock against the peers
      4 free space              9 versions
      5 open-file limit        10 listening addresses

    \b
    Examples:
      quorepo doctor --config /etc/quorepo/n1.toml
      quorepo doctor --config /etc/quorepo/n1.toml --strict -o json
    """
    from quorepo.rpc.cli.output import emit
    from quorepo.rpc.doctor.run import examine

    token = _token(context, token_file)
    found = list(examine(Path(config).absolute(), token=token, timeout_s=timeout_s))
    severities = [finding.severity for finding in found]
    errors, warnings = severities.count("error"), severities.count("warning")
    bad = bool(errors or (strict and warnings))

    def lines() -> None:
        _print(found)
        skipped = severities.count("skipped")
        click.echo(f"{errors} error(s), {warnings} warning(s), {skipped} skipped")

    document = {
        "good": not bad,
        "errors": errors,
        "warnings": warnings,
        "findings": [finding.document() for finding in found],
    }
    emit(document, output, lines)
    context.exit(EXIT_FOUND if bad else 0)


def _token(context: click.Context, token_file: str | None) -> str:
    """Empty when none was given: then the node's own may do."""
    given = {"token_file": token_file or (context.obj or {}).get("token_file")}
    if given["token_file"] or os.environ.get("QUOREPO_TOKEN"):
        return resolve_settings(given).token()
    return ""


def _print(found: list[Finding]) -> None:
    from quorepo.rpc.cli.output import print_table
    from quorepo.rpc.doctor.findings import CHECKS

    print_table(
        "",
        ("", "check", "severity", "finding"),
        [(f.number, CHECKS[f.number], f.severity, f.what) for f in found],
    )
    for finding in found:
        if finding.next_step and finding.severity in ("error", "warning", "skipped"):
            name = CHECKS[finding.number]
            click.echo(f"next, for {finding.number} ({name}): {finding.next_step}")
