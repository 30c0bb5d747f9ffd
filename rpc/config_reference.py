"""The reference documentation of the configuration file, made from the model itself.

Owns the form of `docs/configuration.md`; a test compares. `python -m quorepo.rpc.config_reference`
prints it.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, get_args

from pydantic import BaseModel
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from quorepo.rpc.config import NodeConfig, section_model

__all__ = ["reference"]

_INTRODUCTION = """\
# The configuration file of a node

Generated from the model in `rpc/config.py` by
`python -m quorepo.rpc.config_reference`; do not edit.

One TOML file, given to `quorepo serve --config FILE`. Relative paths are relative to the file.
Unknown sections and keys are refused, with the nearest known name. The parts are checked against
each other before anything starts; a mistake ends the node with exit code 78.

An environment variable overrides the file: `QUOREPO_STORAGE__RESERVE_BYTES=0` is `reserve_bytes` of
`[storage]`, `QUOREPO_CLUSTER__TLS__CA_FILE=/etc/quorepo/ca.pem` is `ca_file` of `[cluster.tls]`.
Lists and tables are written as in TOML. An unknown variable of this form is refused like a key.

`quorepo config show --config FILE` prints every value with where it came from, `quorepo config
validate` checks it and starts nothing, `quorepo config schema` prints a JSON schema for editors.
"""


def reference() -> str:
    """The whole document as Markdown."""
    parts = [_INTRODUCTION]
    for name, field in NodeConfig.model_fields.items():
        section = section_model(field.annotation)
        assert section is not None
        parts.append(_section(name, section))
    return "\n".join(parts)


def _section(name: str, model: type[BaseModel]) -> str:
    first_line = (model.__doc__ or "").strip().split("\n\n")[0].replace("\n", " ")
    lines = [f"## [{name}]", "", " ".join(first_line.split())]
    rows = []
    tables = []
    for key, field in model.model_fields.items():
        nested = section_model(field.annotation)
        if nested is not None:
            tables.append(_section(f"{name}.{key}", nested))
            continue
        meaning = " ".join((field.description or "").replace("|", "\\|").split())
        rows.append(f"| `{key}` | {_type(field)} | {_default(field)} | {meaning} |")
    if rows:
        lines += ["", "| key | type | default | meaning |", "|---|---|---|---|", *rows]
    return "\n".join(["\n".join(lines) + "\n", *tables])


def _type(field: FieldInfo) -> str:
    annotation: Any = field.annotation
    if getattr(annotation, "__origin__", None) is dict:
        return "table of strings"
    if getattr(annotation, "__origin__", None) is list:
        return "list of strings"
    while not isinstance(annotation, type):  # `Annotated[Path, …] | None` and the like
        annotation = get_args(annotation)[0]
    words = {bool: "boolean", int: "integer", float: "number", str: "string", Path: "path"}
    return words.get(annotation, annotation.__name__)


def _default(field: FieldInfo) -> str:
    if field.is_required():
        return "required"
    value = field.default
    if value is PydanticUndefined or value is None or value == "":
        return "–"
    return f"`{str(value).lower() if isinstance(value, bool) else value}`"


if __name__ == "__main__":
    print(reference(), end="")  # noqa: T201
