"""How a command fails: what happened, whether anything was changed, what to do next, which exit
code.

Owns the exit codes of client commands. Must not know any command.
"""

from __future__ import annotations

from typing import IO, Any

import click

__all__ = [
    "EXIT_FAILED",
    "EXIT_UNAVAILABLE",
    "EXIT_UNKNOWN",
    "EXIT_USAGE",
    "Failure",
]

EXIT_FAILED = 1
EXIT_USAGE = 2
EXIT_UNAVAILABLE = 3
EXIT_UNKNOWN = 4


class Failure(click.ClickException):
    """Shown on standard error; ends the command with its exit code."""

    def __init__(self, message: str, *, next_step: str = "", exit_code: int = EXIT_FAILED) -> None:
        super().__init__(message)
        self.next_step = next_step
        self.exit_code = exit_code  # type: ignore[misc] # click has one per class

    def show(self, file: IO[Any] | None = None) -> None:
        click.echo(f"quorepo: {self.message}", file=file, err=True)
        if self.next_step:
            click.echo(f"next: {self.next_step}", file=file, err=True)
