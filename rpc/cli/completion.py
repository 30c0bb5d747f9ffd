"""`quorepo completion`: the script that teaches a shell the commands."""

from __future__ import annotations

import click

from quorepo.rpc.cli.groups import CommandGroup

__all__ = ["command"]


@click.group("completion", cls=CommandGroup)
def command() -> None:
    """Completion of commands, options, contexts, repositories and nodes in your shell.

    \b
    Examples:
      eval "$(quorepo completion bash)"
      quorepo completion fish > ~/.config/fish/completions/quorepo.fish
    """


def _print(shell: str) -> None:
    from click.shell_completion import get_completion_class

    from quorepo.rpc.cli.main import root

    completion = get_completion_class(shell)
    assert completion is not None
    source = completion(root, {}, "quorepo", "_QUOREPO_COMPLETE")
    # Not .source(): it starts bash to warn of versions before 4.4, which nobody has any more.
    click.echo(source.source_template % source.source_vars())


@command.command("bash")
def bash() -> None:
    """For bash 4.4 or newer.

    \b
    Example:
      echo 'eval "$(quorepo completion bash)"' >> ~/.bashrc
    """
    _print("bash")


@command.command("zsh")
def zsh() -> None:
    """For zsh.

    \b
    Example:
      echo 'eval "$(quorepo completion zsh)"' >> ~/.zshrc
    """
    _print("zsh")


@command.command("fish")
def fish() -> None:
    """For fish.

    \b
    Example:
      quorepo completion fish > ~/.config/fish/completions/quorepo.fish
    """
    _print("fish")
