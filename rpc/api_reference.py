"""The reference of the gRPC API, made from the comments of the protos.

Owns the form of `docs/api-reference.md`; a test compares. `python -m quorepo.rpc.api_reference`
prints it, in a checkout: it needs `protos/` and grpcio-tools.
"""

from __future__ import annotations

import re
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

from google.protobuf import descriptor_pb2

__all__ = ["reference"]

_PROTOS = Path(__file__).resolve().parents[1] / "protos"
_PACKAGE = ".quorepo.v1."
_INTRODUCTION = """\
# The gRPC API

Generated from `protos/quorepo/v1` by `python -m quorepo.rpc.api_reference`; do not edit. What the
calls have in common: [api-writes.md](api-writes.md), [api-errors.md](api-errors.md). The client for
Python: [client.md](client.md).
"""
# Numbers of fields in descriptor.proto, as paths of source locations name them.
_MESSAGES, _ENUMS, _SERVICES = 4, 5, 6
_METHODS, _FIELDS, _NESTED, _NESTED_ENUMS, _VALUES = 2, 2, 3, 4, 2

_Path = tuple[int, ...]
_Field = descriptor_pb2.FieldDescriptorProto


def reference() -> str:
    """The whole document."""
    files = [file for file in _descriptors().file if file.name.startswith("quorepo/v1/")]
    parts = [_INTRODUCTION]
    for file in sorted(files, key=lambda file: file.name):
        parts.extend(_File(file).lines())
    return "\n".join(parts).rstrip("\n") + "\n"


def _descriptors() -> descriptor_pb2.FileDescriptorSet:
    names = sorted(str(path.relative_to(_PROTOS)) for path in _PROTOS.glob("quorepo/v1/*.proto"))
    with tempfile.NamedTemporaryFile(suffix=".pb") as output:
        subprocess.run(
            [
                *(sys.executable, "-m", "grpc_tools.protoc", "-I", str(_PROTOS)),
                *("--include_source_info", "--include_imports"),
                f"--descriptor_set_out={output.name}",
                *names,
            ],
            check=True,
        )
        return descriptor_pb2.FileDescriptorSet.FromString(Path(output.name).read_bytes())


class _File:
    """One proto: its services, then its messages and enums."""

    def __init__(self, file: descriptor_pb2.FileDescriptorProto) -> None:
        self._file = file
        self._comments: dict[_Path, str] = {}
        self._opening = ""
        for location in file.source_code_info.location:
            comment = location.leading_comments or location.trailing_comments
            self._comments[tuple(location.path)] = comment.strip()
            if tuple(location.path) == (12,):  # the `syntax` line
                self._opening = comment.strip()

    def lines(self) -> Iterator[str]:
        yield f"## {self._file.name.rpartition('/')[2]}\n"
        if self._opening:
            yield f"{_prose(self._opening)}\n"
        for number, service in enumerate(self._file.service):
            yield from self._service(service, (_SERVICES, number))
        for number, message in enumerate(self._file.message_type):
            yield from self._message(message, (_MESSAGES, number), "")
        for number, enum in enumerate(self._file.enum_type):
            yield from self._enum(enum, (_ENUMS, number), "")

    def _service(
        self, service: descriptor_pb2.ServiceDescriptorProto, path: _Path
    ) -> Iterator[str]:
        yield f"### service {service.name}\n"
        yield from self._comment(path)
        for number, method in enumerate(service.method):
            asked, answered = _type_name(method.input_type), _type_name(method.output_type)
            asked = f"stream {asked}" if method.client_streaming else asked
            answered = f"stream {answered}" if method.server_streaming else answered
            yield f"#### {method.name}\n"
            yield f"`{service.name}/{method.name}({asked}) returns ({answered})`\n"
            yield from self._comment((*path, _METHODS, number))

    def _message(
        self, message: descriptor_pb2.DescriptorProto, path: _Path, outer: str
    ) -> Iterator[str]:
        name = f"{outer}{message.name}"
        yield f"### {name}\n"
        yield from self._comment(path)
        if message.field:
            yield "| field | type | |"
            yield "|---|---|---|"
            for number, field in enumerate(message.field):
                said = self._comments.get((*path, _FIELDS, number), "")
                yield f"| `{field.name}` | {_field_type(field, message)} | {_cell(said)} |"
            yield ""
        for number, nested in enumerate(message.nested_type):
            yield from self._message(nested, (*path, _NESTED, number), f"{name}.")
        for number, enum in enumerate(message.enum_type):
            yield from self._enum(enum, (*path, _NESTED_ENUMS, number), f"{name}.")

    def _enum(
        self, enum: descriptor_pb2.EnumDescriptorProto, path: _Path, outer: str
    ) -> Iterator[str]:
        yield f"### enum {outer}{enum.name}\n"
        yield from self._comment(path)
        yield "| value | number | |"
        yield "|---|---|---|"
        for number, value in enumerate(enum.value):
            said = self._comments.get((*path, _VALUES, number), "")
            yield f"| `{value.name}` | {value.number} | {_cell(said)} |"
        yield ""

    def _comment(self, path: _Path) -> Iterator[str]:
        said = self._comments.get(path, "")
        if said:
            yield f"{_prose(said)}\n"


def _field_type(field: _Field, message: descriptor_pb2.DescriptorProto) -> str:
    if field.type_name:
        name = _type_name(field.type_name)
    else:
        name = _Field.Type.Name(field.type).removeprefix("TYPE_").lower()
    if field.label == _Field.LABEL_REPEATED:
        return f"repeated {name}"
    if field.proto3_optional:
        return f"optional {name}"
    if field.HasField("oneof_index"):
        return f"{name} (one of `{message.oneof_decl[field.oneof_index].name}`)"
    return name


def _type_name(full: str) -> str:
    return full.removeprefix(_PACKAGE).removeprefix(".")


def _prose(comment: str) -> str:
    return re.sub(r"\n ", "\n", comment)


def _cell(comment: str) -> str:
    return " ".join(comment.split()).replace("|", "\\|")


if __name__ == "__main__":
    sys.stdout.write(reference())
