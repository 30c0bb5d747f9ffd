"""`quorepo config`: what a node's configuration comes to, before anything is started with it."""

from __future__ import annotations

import json
from typing import Any

import click

from quorepo.rpc.cli.failures import EXIT_FOUND, Failure
from quorepo.rpc.cli.groups import CommandGroup
from quorepo.rpc.cli.options import config_option, output_option

__all__ = ["command"]


@click.group("config", cls=CommandGroup)
def command() -> None:
    """Show, check and describe a node's configuration. Nothing is started or changed.

    \b
    Examples:
      quorepo config show --config /etc/quorepo/n1.toml
      quorepo config validate --config /etc/quorepo/n1.toml
      quorepo config schema > quorepo.schema.json
    """


@command.command("show")
@config_option()
@click.option("--changed", is_flag=True, help="Only what is not a default.")
@output_option
def show(config: str, changed: bool, output: str) -> None:
    """Every setting with the value that holds and where it came from. Secrets are hidden.

    Origins: file, environment and the variable, derived (from other settings), default.

    \b
    Examples:
      quorepo config show --config /etc/quorepo/n1.toml
      quorepo config show --config /etc/quorepo/n1.toml --changed -o yaml
    """
    from quorepo.rpc.cli.output import emit, print_table
    from quorepo.rpc.config import load_with_origins
    from quorepo.storage.errors import ConfigError

    try:
        _config, settings = load_with_origins(config)
    except ConfigError as error:
        raise Failure(error.message, next_step=error.next_step or _how(config)) from error
    shown = [entry for entry in settings if not changed or entry["origin"] != "default"]
    emit(
        {"file": config, "settings": shown},
        output,
        lambda: print_table(
            "",
            ("key", "value", "origin"),
            [(entry["key"], _text(entry["value"]), entry["origin"]) for entry in shown],
        ),
    )


@command.command("validate")
@config_option()
@click.option(
    "--files",
    is_flag=True,
    help="Read the files that it names too: tokens, certificates and keys.",
)
@output_option
@click.pass_context
def validate(context: click.Context, /, config: str, files: bool, output: str) -> None:
    """Would a node start with this configuration? Exit code 0: yes, 6: no, each reason is told.

    \b
    Examples:
      quorepo config validate --config /etc/quorepo/n1.toml
      quorepo config validate --config /etc/quorepo/n1.toml --files -o json
    """
    from quorepo.rpc.cli.output import emit

    found = _problems(config, files)

    def lines() -> None:
        for problem in found:
            click.echo(problem)
        click.echo(
            f"{config}: {len(found)} problem(s); a node would not start, nothing was changed"
            if found
            else f"{config}: good{'' if files else ' (files that it names: --files)'}"
        )

    emit({"file": config, "valid": not found, "problems": found}, output, lines)
    context.exit(EXIT_FOUND if found else 0)


@command.command("schema")
@output_option
def schema(output: str) -> None:
    """The JSON schema of the configuration file, for editors and checks (always JSON or YAML).

    \b
    Example:
      quorepo config schema > quorepo.schema.json
    """
    from quorepo.rpc.cli.output import print_json, print_yaml
    from quorepo.rpc.config import NodeConfig

    document = {
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        **NodeConfig.model_json_schema(),
        "title": "Configuration of a quorepo node",
    }
    (print_yaml if output == "yaml" else print_json)(document)


def _how(config: str) -> str:
    return f"correct it, then quorepo config validate --config {config}"


def _problems(config: str, files: bool) -> list[str]:
    from quorepo.rpc.config import load_config, load_peer_credentials, load_tokens
    from quorepo.storage.errors import ConfigError

    try:
        loaded = load_config(config)
    except ConfigError as error:
        first, *rest = str(error).splitlines()
        return [line.strip() for line in rest] or [first]
    found = []
    checks: list[Any] = [lambda: load_tokens(loaded.auth.tokens_file)]
    if loaded.cluster.peers or loaded.cluster.tls.certificate_file.exists():
        checks.append(lambda: load_peer_credentials(loaded))
    for check in checks if files else []:
        try:
            check()
        except ConfigError as error:
            found.append(str(error))
    return found


def _text(value: Any) -> str:
    if value is None or value == "":
        return "–"
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
