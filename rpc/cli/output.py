"""Printing results: tables for people, JSON and YAML for programs.

Results go to standard output only; what is said beside them goes to standard error. No colours
where nobody looks, or with NO_COLOR.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import click

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table

__all__ = [
    "console",
    "emit",
    "emit_done",
    "emit_one",
    "note",
    "print_json",
    "print_table",
    "print_yaml",
    "table",
]

_PIPE_WIDTH = 200  # a table that is read by a program or a log is not folded at 80 columns


def emit(document: Any, output: str, as_table: Callable[[], None]) -> None:
    """Prints a result as `-o` asks for.

    Args:
        document: of plain dicts, lists, strings, numbers, booleans and None; stable names.
        as_table: prints the same for people.
    """
    if output == "json":
        print_json(document)
    elif output == "yaml":
        print_yaml(document)
    else:
        as_table()


def emit_one(document: Mapping[str, Any], output: str) -> None:
    """Prints one thing: as a table, a line for each of its values."""

    def lines() -> None:
        width = max(map(len, document), default=0)
        for key, value in document.items():
            click.echo(f"{key.ljust(width)}  {value}".rstrip())

    emit(document, output, lines)


def emit_done(document: Mapping[str, Any], output: str, sentence: str) -> None:
    """Prints what was done: as a table, one sentence."""
    emit(document, output, lambda: click.echo(sentence))


def note(text: str) -> None:
    """Says something beside the result, on standard error."""
    click.echo(text, err=True)


def print_json(value: Any) -> None:
    """One JSON document, indented."""
    click.echo(json.dumps(value, indent=2, ensure_ascii=False))


def print_yaml(value: Any) -> None:
    """One YAML document, in the order of the value's own keys."""
    import yaml

    click.echo(yaml.safe_dump(value, sort_keys=False, allow_unicode=True), nl=False)


def console(*, stderr: bool = False) -> Console:
    """A console of rich on standard output or standard error; it honours NO_COLOR."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    return Console(stderr=stderr, width=None if stream.isatty() else _PIPE_WIDTH, highlight=False)


def print_table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """A table; columns of numbers are aligned to the right."""
    console().print(table(title, columns, rows))


def table(title: str, columns: Sequence[str], rows: Sequence[Sequence[object]]) -> Table:
    """The same as something to print with `console` later."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table
    from rich.text import Text

    made = Table(title=title or None, title_justify="left", box=SIMPLE_HEAD, pad_edge=False)
    for position, column in enumerate(columns):
        numbers = any(isinstance(row[position], int) for row in rows)
        made.add_column(column, justify="right" if numbers else "left", overflow="fold")
    for row in rows:
        made.add_row(*(Text(str(cell)) for cell in row))  # Text: names are no markup
    return made
