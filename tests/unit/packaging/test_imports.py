"""Which module may import which, and under which names the project can be imported at all."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
LAYERS = ("storage", "cluster", "rpc")  # each may import itself and what stands before it


def modules(layer: str) -> list[Path]:
    found = sorted((ROOT / layer).rglob("*.py"))
    assert found
    return found


def imported_names(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: imports are absolute"
            assert node.module is not None
            yield node.module
            if node.module == "quorepo":
                yield from (f"quorepo.{alias.name}" for alias in node.names)


@pytest.mark.parametrize("layer", LAYERS)
def test_imports_go_one_way(layer: str) -> None:
    above = LAYERS[LAYERS.index(layer) + 1 :]
    forbidden = tuple(f"quorepo.{name}" for name in above)
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in modules(layer)
        for name in imported_names(path)
        if any(name == f or name.startswith(f + ".") for f in forbidden)
    ]
    assert wrong == []


@pytest.mark.parametrize("layer", LAYERS)
def test_folders_are_imported_by_their_quorepo_name_only(layer: str) -> None:
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in modules(layer)
        for name in imported_names(path)
        if name.split(".")[0] in LAYERS
    ]
    assert wrong == []


def test_storage_knows_no_network_and_no_raft() -> None:
    forbidden = {"grpc", "aiohttp", "pysyncobj", "click", "rich", "prometheus_client"}
    wrong = [
        f"{path.relative_to(ROOT)} imports {name}"
        for path in modules("storage")
        for name in imported_names(path)
        if name.split(".")[0] in forbidden
    ]
    assert wrong == []


def run_elsewhere(folder: Path, code: str) -> subprocess.CompletedProcess[str]:
    """Runs Python where nothing of the project lies beside it."""
    return subprocess.run(
        [sys.executable, "-P", "-c", code], cwd=folder, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("layer", LAYERS)
def test_the_bare_folder_names_cannot_be_imported(tmp_path: Path, layer: str) -> None:
    result = run_elsewhere(tmp_path, f"import {layer}")
    assert result.returncode == 1
    assert f"No module named '{layer}'" in result.stderr


def test_the_project_can_be_imported_from_anywhere(tmp_path: Path) -> None:
    code = "import quorepo.cluster, quorepo.rpc, quorepo.storage, quorepo.v1.ref_pb2"
    result = run_elsewhere(tmp_path, code)
    assert result.returncode == 0, result.stderr


def test_help_imports_nothing_heavy(tmp_path: Path) -> None:
    code = """
import sys
from quorepo.rpc.cli.main import root
root.main(["--help"], standalone_mode=False)
heavy = {"grpc", "pydantic", "dulwich", "aiohttp", "rich", "google.protobuf"} & set(sys.modules)
assert not heavy, heavy
"""
    result = run_elsewhere(tmp_path, code)
    assert result.returncode == 0, result.stderr
