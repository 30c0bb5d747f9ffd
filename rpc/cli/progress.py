"""Progress on standard error: a bar where somebody looks, a line now and then where a log is kept.

Must not know what it is that progresses.
"""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator

import click

__all__ = ["progress"]

_LINE_INTERVAL_S = 5.0

Advance = Callable[[str, int, int], None]


@contextlib.contextmanager
def progress(title: str, *, in_bytes: bool = False) -> Iterator[Advance]:
    """Shows how far something is.

    Yields:
        A function (phase, done, total); `total` 0 when it is not known yet. It may be called as
        often as one likes.
    """
    if not sys.stderr.isatty():
        yield _lines(title)
        return
    from rich import progress as bars

    from quorepo.rpc.cli.output import console

    columns: list[bars.ProgressColumn] = [
        bars.TextColumn("{task.description}"),
        bars.BarColumn(),
        bars.DownloadColumn() if in_bytes else bars.MofNCompleteColumn(),
        bars.TimeRemainingColumn(),
    ]
    with bars.Progress(*columns, console=console(stderr=True)) as display:
        task = display.add_task(title, total=None)

        def advance(phase: str, done: int, total: int) -> None:
            display.update(
                task, description=f"{title}: {phase}", completed=done, total=total or None
            )

        yield advance


def _lines(title: str) -> Advance:
    last_phase, last_at = "", float("-inf")

    def advance(phase: str, done: int, total: int) -> None:
        nonlocal last_phase, last_at
        now = time.monotonic()
        finished = bool(total) and done >= total
        if phase == last_phase and not finished and now - last_at < _LINE_INTERVAL_S:
            return
        last_phase, last_at = phase, now
        of = f"{done} of {total} ({100 * done // total} %)" if total else str(done)
        click.echo(f"{title}: {phase}: {of}", err=True)

    return advance
