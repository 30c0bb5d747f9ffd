"""The committed stubs are what the protos generate, and the protos keep to their style."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
PROTOS = ROOT / "protos"
READS = re.compile(
    "Get|List|Read|Find|Check|Count|IsAncestor|Search|Blame|Diff|BatchGet|Fsck|CreateBundle$"
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

    from quorepo.v1 import blob_pb2, commit_pb2, diff_pb2, ref_pb2, repository_pb2

    for module in (blob_pb2, commit_pb2, diff_pb2, ref_pb2, repository_pb2):
        for service in module.DESCRIPTOR.services_by_name.values():
            for method in service.methods:
                request: Descriptor = method.input_type
                response: Descriptor = method.output_type
                assert request.name == f"{method.name}Request"
                assert response.name == f"{method.name}Response"
                reads = READS.match(method.name)
                wanted = "consistency" if reads else "request_id"
                assert wanted in request.fields_by_name, f"{request.full_name} has no {wanted}"
                if method.name in ("ListRepositories", "ListDeletedRepositories"):
                    continue  # a revision per row
                if "header" in response.fields_by_name:
                    response = response.nested_types_by_name["Header"]  # a stream's first message
                assert "revision" in response.fields_by_name, response.full_name


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
