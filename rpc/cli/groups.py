"""Groups of commands that suggest the nearest name for an unknown one, and import lazily.

Must not know any command.
"""

from __future__ import annotations

import difflib
import importlib

import click

__all__ = ["CommandGroup", "LazyGroup"]


class CommandGroup(click.Group):
    """A group of commands; give it as `cls` to every `click.group`."""

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        name = args[0]
        if (
            self.get_command(ctx, name) is None
            and not name.startswith("-")
            and not ctx.resilient_parsing
        ):
            known = self.list_commands(ctx)
            nearest = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
            hint = f"did you mean {ctx.command_path} {nearest[0]}?" if nearest else ""
            hint = hint or f"known are {', '.join(known)}"
            raise click.UsageError(f"no command {name!r}, nothing was tried; {hint}", ctx)
        return super().resolve_command(ctx, args)


class LazyGroup(CommandGroup):
    """A group whose commands are imported when used; their one-line help stands here."""

    def __init__(self, *args: object, lazy: dict[str, tuple[str, str]], **kwargs: object) -> None:
        """`lazy` maps a command's name to (module, one line of help); the function is `command`."""
        super().__init__(*args, **kwargs)  # type: ignore[arg-type]
        self._lazy = lazy

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(self._lazy)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in self._lazy:
            return None
        module = importlib.import_module(self._lazy[cmd_name][0])
        command: click.Command = module.command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        rows = [(name, text) for name, (_module, text) in self._lazy.items()]
        with formatter.section("Commands"):
            formatter.write_dl(rows)
