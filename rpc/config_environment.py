"""Environment variables that override a node's configuration file, and where each value came from.

`QUOREPO_STORAGE__RESERVE_BYTES=0` is `[storage] reserve_bytes`, `QUOREPO_CLUSTER__TLS__CA_FILE` is
`[cluster.tls] ca_file`: two underscores stand between section and key, so the variables of the
command line (QUOREPO_TOKEN) are never taken for one. Lists and tables are written as in TOML.

Owns these names and what is hidden when a configuration is shown. Must not know any section.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from pydantic import BaseModel

__all__ = ["HIDDEN", "apply_environment", "effective", "hidden_secrets"]

HIDDEN = "(hidden)"
_PREFIX, _SEPARATOR = "QUOREPO_", "__"
_SECRET_KEY = re.compile(r"(^|_)(token|secret|password|passphrase|key)$")
_USER_OF_URL = re.compile(r"(?<=://)[^/@\s]+@")


def apply_environment(data: dict[str, Any], environment: Mapping[str, str]) -> dict[str, str]:
    """Puts the values of the environment into the content of a file.

    Returns:
        The variable of each dotted key that was overridden.
    """
    variables: dict[str, str] = {}
    for variable in sorted(environment):
        if not variable.startswith(_PREFIX) or _SEPARATOR not in variable:
            continue
        location = variable.removeprefix(_PREFIX).lower().split(_SEPARATOR)
        table = data
        for name in location[:-1]:
            inner = table.get(name)
            if not isinstance(inner, dict):
                inner = table[name] = {}
            table = inner
        table[location[-1]] = _value(environment[variable])
        variables[".".join(location)] = variable
    return variables


def _value(text: str) -> object:
    """Lists and tables as in TOML; the model turns the rest from text into what it needs."""
    if text.startswith(("[", "{")):
        try:
            return tomllib.loads(f"value = {text}")["value"]
        except tomllib.TOMLDecodeError:
            return text  # an address: [::1]:7420
    return text


def effective(
    config: BaseModel, data: Mapping[str, Any], variables: Mapping[str, str]
) -> Iterator[dict[str, Any]]:
    """Every setting with the value that holds and where it came from, secrets hidden.

    Args:
        data: the content of the file, the environment's values included.
        variables: what `apply_environment` returned.

    Yields:
        `key` (dotted), `value` and `origin`: file, default, derived (from other settings), or
        environment and the variable.
    """
    yield from _effective(config, data, variables, "")


def _effective(
    model: BaseModel, data: Mapping[str, Any], variables: Mapping[str, str], prefix: str
) -> Iterator[dict[str, Any]]:
    for name, field in type(model).model_fields.items():
        key, value = f"{prefix}{name}", getattr(model, name)
        given = data.get(name)
        if isinstance(value, BaseModel):
            inner = given if isinstance(given, Mapping) else {}
            yield from _effective(value, inner, variables, f"{key}.")
            continue
        if key in variables:
            origin = f"environment {variables[key]}"
        elif name in data:
            origin = "file"
        else:
            default = field.get_default(call_default_factory=False)
            plain = field.default_factory is None or not value
            origin = "default" if plain and (value == default or not value) else "derived"
        yield {"key": key, "value": hidden_secrets(name, _plain(value)), "origin": origin}


def _plain(value: Any) -> Any:
    if isinstance(value, Path):
        return str(value)
    if isinstance(value, Mapping):
        return {str(key): _plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(inner) for inner in value]
    return value


def hidden_secrets(key: str, value: Any) -> Any:
    """The same without what must not be seen: values of secret keys, users in URLs."""
    if isinstance(value, dict):
        return {name: hidden_secrets(name, inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [hidden_secrets(key, inner) for inner in value]
    if isinstance(value, str):
        if value and _SECRET_KEY.search(key):
            return HIDDEN
        return _USER_OF_URL.sub(f"{HIDDEN}@", value)
    return value
