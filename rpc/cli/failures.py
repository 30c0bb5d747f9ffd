"""How a command fails: what happened, whether anything was changed, what to do next, which exit
code.

Owns the exit codes of client commands (docs/cli.md). Must not know any command, but those that
list what there is.
"""

from __future__ import annotations

from typing import IO, Any

import click

__all__ = [
    "EXIT_CODES",
    "EXIT_FAILED",
    "EXIT_FOUND",
    "EXIT_INTERRUPTED",
    "EXIT_REFUSED",
    "EXIT_UNAVAILABLE",
    "EXIT_UNKNOWN",
    "EXIT_USAGE",
    "Failure",
    "where_to_look",
]

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_UNAVAILABLE = 3
EXIT_UNKNOWN = 4
EXIT_REFUSED = 5
EXIT_FOUND = 6
EXIT_INTERRUPTED = 130

# What `quorepo --help` and docs/cli.md say; scripts depend on them, so they never change.
EXIT_CODES = {
    0: "done; a check: nothing found that needs you",
    EXIT_FAILED: "failed; nothing was changed",
    EXIT_USAGE: "wrong usage; nothing was tried",
    EXIT_UNAVAILABLE: "no node or no majority answers; nothing was changed, try again later",
    EXIT_UNKNOWN: "the outcome is not known; repeat with the request id it printed (harmless)",
    EXIT_REFUSED: "refused by a safety check or not confirmed; nothing was changed",
    EXIT_FOUND: "a check found something that needs you; nothing was changed",
    74: "serve: I/O error of the disk",
    75: "serve: this node runs already",
    78: "serve: wrong configuration, or a data directory that does not fit",
    EXIT_INTERRUPTED: "interrupted; what had been asked of the cluster may still be done",
}


class Failure(click.ClickException):
    """Shown on standard error; ends the command with its exit code."""

    def __init__(self, message: str, *, next_step: str = "", exit_code: int = EXIT_FAILED) -> None:
        """`message` says what happened and whether anything was changed."""
        super().__init__(message)
        self.next_step = next_step
        self.exit_code = exit_code  # type: ignore[misc] # click has one per class

    def show(self, file: IO[Any] | None = None) -> None:
        click.echo(f"quorepo: {self.message}", file=file, err=True)
        if self.next_step:
            click.echo(f"next: {self.next_step}", file=file, err=True)


def where_to_look(message: str) -> str:
    """The command that lists what there is, for a message that says what there is not."""
    if message.startswith(("ref ", "branch ", "tag ")):
        return "quorepo ref list PATH"
    return "quorepo repo list" if message.startswith("repository ") else ""
