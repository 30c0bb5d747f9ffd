"""The reference documentation of the command line, made from the --help texts.

Owns the form of `docs/cli.md`; a test compares. `python -m quorepo.rpc.cli.reference` prints it.
"""

from __future__ import annotations

from collections.abc import Iterator

import click

from quorepo.rpc.cli.failures import EXIT_CODES

__all__ = ["reference"]

_WIDTH = 100
_INTRODUCTION = """\
# The command line

Generated from the `--help` texts by `python -m quorepo.rpc.cli.reference`; do not edit.

## What holds for every command

- **Results** go to standard output, and nothing else does. Progress, warnings and errors go to
  standard error.
- **`-o table|json|yaml`**, before or after the command. JSON and YAML are the same document.
  Names in it stay: later versions may add some, so ignore what you do not know. Times are RFC
  3339 in UTC, sizes are bytes, what is not known is `null`. `table` is for people and may change.
- **An error** says what happened, whether anything was changed, and after `next:` the command to
  try.
- **Questions** are asked only where somebody can answer; elsewhere the command ends with code 5
  and nothing was changed. `--yes` answers those that lose nothing but what was named. What may
  lose the quorum or data needs `--force` and the cluster's name, typed or with `--cluster-name`.
- **A change whose outcome is not known** (code 4) prints a request id; the same command with
  `--request-id` is harmless: it is applied once, or found to be applied.
- **Which node**: `--endpoint` (may be repeated), else `QUOREPO_ENDPOINT` (with commas), else the
  context. Of several, the first that answers and serves is used. Nodes on other machines are
  asked over TLS only (`--ca-file`).
- **Which token**: `--token-file`, else `QUOREPO_TOKEN`, else the context's file. A token is never
  an argument. That of a context goes to the nodes of that context only.
- **Colours and bars** appear on a terminal only, and not with `NO_COLOR`.

## Exit codes

| code | meaning |
|---|---|
"""


def reference() -> str:
    """The whole document as Markdown."""
    from quorepo.rpc.cli.main import root

    codes = "".join(f"| {code} | {meaning} |\n" for code, meaning in EXIT_CODES.items())
    return _INTRODUCTION + codes + "".join(_sections(root, None, "quorepo"))


def _sections(command: click.Command, parent: click.Context | None, name: str) -> Iterator[str]:
    settings = {**command.context_settings, "terminal_width": _WIDTH, "max_content_width": _WIDTH}
    context = click.Context(command, info_name=name, parent=parent, **settings)
    lines = (line.rstrip() for line in command.get_help(context).splitlines())
    text = "\n".join(lines)
    yield f"\n## `{context.command_path}`\n\n```text\n{text}\n```\n"
    if isinstance(command, click.Group):
        for child in command.list_commands(context):
            found = command.get_command(context, child)
            assert found is not None
            yield from _sections(found, context, child)


if __name__ == "__main__":
    print(reference(), end="")
