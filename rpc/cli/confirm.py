"""Asking before something is done.

Two kinds of questions. A safe one (what is asked for is what happens, and nothing more is lost) is
answered by --yes. A dangerous one (quorum or data may be lost) is answered by typing the cluster's
name, or by --force with --cluster-name NAME; --yes never answers it. Where nobody can be asked,
nothing is assumed.
"""

from __future__ import annotations

import sys

import click

from quorepo.rpc.cli.failures import EXIT_REFUSED, Failure

__all__ = ["confirm", "confirm_by_name"]


def confirm(question: str, *, yes: bool, again: str) -> None:
    """Asks a safe question on standard error.

    Args:
        question: what is going to happen, as a question.
        yes: --yes was given.
        again: the command that does it without asking, for those who can't be asked.

    Raises:
        Failure: the answer is no, or nobody can be asked; nothing was changed.
    """
    if yes:
        return
    if not sys.stdin.isatty():
        raise Failure(
            f"this needs a yes, and nobody can be asked ({question}); nothing was changed",
            next_step=again,
            exit_code=EXIT_REFUSED,
        )
    if not click.confirm(question, err=True):
        raise Failure("not confirmed; nothing was changed", exit_code=EXIT_REFUSED)


def confirm_by_name(
    danger: str, cluster_name: str, *, force: bool, typed: str | None, again: str
) -> None:
    """Asks for the name of the cluster before something that may lose data or the quorum.

    Args:
        danger: what may be lost, as a sentence.
        cluster_name: what has to be typed.
        force: --force was given; without it nothing is even asked.
        typed: the value of --cluster-name, None when it is to be asked for.
        again: the command that does it in spite of the danger.

    Raises:
        Failure: refused; nothing was changed.
    """
    if not force:
        raise Failure(
            f"refused: {danger}; nothing was changed", next_step=again, exit_code=EXIT_REFUSED
        )
    if typed is None:
        if not sys.stdin.isatty():
            raise Failure(
                f"{danger}; that needs the cluster's name, and nobody can be asked; "
                "nothing was changed",
                next_step=f"{again} --cluster-name {cluster_name}",
                exit_code=EXIT_REFUSED,
            )
        click.echo(f"DANGER: {danger}.", err=True)
        typed = click.prompt("Type the name of the cluster to go on", err=True, default="")
    if typed.strip() != cluster_name:
        raise Failure(
            f"{typed.strip()!r} is not the name of this cluster; nothing was changed",
            next_step="quorepo status shows the name",
            exit_code=EXIT_REFUSED,
        )
