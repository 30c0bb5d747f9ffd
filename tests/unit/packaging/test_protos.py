"""The committed stubs are what the protos generate, and the protos keep to their style."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
PROTOS = ROOT / "protos"
SERVICES = (
    *("blob", "commit", "diff", "event", "import", "operation", "ref", "repository", "transfer"),
)
READS = re.compile(
    "Get|List|Read|Find|Check|Count|IsAncestor|Search|Blame|Diff|BatchGet|Fsck|CreateBundle$"
    "|MergeCheck|RangeDiff"
)
# A stream of events, things in the background, and git's own protocol, which has neither field.
OF_NO_REPOSITORY = re.compile("Watch$|[A-Z][a-z]+Operations?$|UploadPack$|ReceivePack$")
WITHOUT_A_REVISION = (
    *("ListRepositories", "ListDeletedRepositories"),  # each row has its own
    "ImportRepository",  # the operation has it once it is done
)


def proto_files() -> list[Path]:
    return sorted(PROTOS.rglob("*.proto"))


def test_committed_stubs_are_what_the_protos_generate(tmp_path: Path) -> None:
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"}
    subprocess.run(
        [
            *(sys.executable, "-m", "grpc_tools.protoc", "-I", str(PROTOS)),
            *(
                f"--{kind}_out={tmp_path}"
                for kind in ("python", "mypy", "grpc_python", "mypy_grpc")
            ),
            *(str(path.relative_to(PROTOS)) for path in proto_files()),
        ],
        cwd=PROTOS,
        env=environment,
        check=True,
        capture_output=True,
    )
    generated = {p.relative_to(tmp_path) for p in tmp_path.rglob("*_pb2*.py*")}
    committed = {p.relative_to(ROOT) for p in (ROOT / "quorepo").glob("**/v1/*_pb2*.py*")}
    assert generated == {p for p in committed if "__pycache__" not in p.parts}
    different = [
        str(path)
        for path in sorted(generated)
        if (tmp_path / path).read_bytes() != (ROOT / path).read_bytes()
    ]
    assert different == [], "run `make protos` and commit the result"


def test_the_reference_of_the_api_is_current() -> None:
    from quorepo.rpc.api_reference import reference

    committed = (ROOT / "docs/api-reference.md").read_text(encoding="utf-8")
    assert committed == reference(), "run `make protos` and commit the result"


def test_every_mutating_request_has_a_request_id_and_every_response_a_revision() -> None:
    from google.protobuf.descriptor import Descriptor

    import quorepo.v1

    def first(message: Descriptor) -> Descriptor:
        """What a stream begins with; any other message itself."""
        header = message.fields_by_name.get("header")
        return message if header is None else header.message_type or message

    checked = 0
    for name in SERVICES:
        module = importlib.import_module(f"{quorepo.v1.__name__}.{name}_pb2")
        for service in module.DESCRIPTOR.services_by_name.values():
            for method in service.methods:
                request, response = first(method.input_type), first(method.output_type)
                assert method.input_type.name == f"{method.name}Request"
                assert method.output_type.name == f"{method.name}Response"
                checked += 1
                if method.name == "BatchUpdateRefs":
                    continue  # one of each per item
                if OF_NO_REPOSITORY.match(method.name):
                    continue
                wanted = "consistency" if READS.match(method.name) else "request_id"
                assert wanted in request.fields_by_name, f"{request.full_name} has no {wanted}"
                if method.name not in WITHOUT_A_REVISION:
                    assert "revision" in response.fields_by_name, response.full_name
    assert checked > 60


def test_the_style_is_that_of_buf() -> None:
    buf = Path(sys.executable).parent / "buf"
    if not buf.exists():
        pytest.skip("buf is not there: install the development dependencies again")
    done = subprocess.run([buf, "lint"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr


def test_messages_have_packages_that_follow_their_folder() -> None:
    for path in proto_files():
        folder = path.parent.relative_to(PROTOS)
        assert f"package {'.'.join(folder.parts)};" in path.read_text(encoding="utf-8")


def test_enums_start_with_an_unspecified_value_and_carry_their_name() -> None:
    for path in proto_files():
        text = path.read_text(encoding="utf-8")
        for name, body in re.findall(r"^enum (\w+) \{(.*?)^\}", text, re.MULTILINE | re.DOTALL):
            prefix = re.sub(r"(?<=[a-z])(?=[A-Z])", "_", name).upper()
            values = re.findall(r"^\s+([A-Z0-9_]+) = (\d+);", body, re.MULTILINE)
            assert values[0] == (f"{prefix}_UNSPECIFIED", "0"), f"{path.name}: {name}"
            assert all(value.startswith(f"{prefix}_") for value, _number in values), name
