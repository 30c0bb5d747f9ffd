"""What a wheel holds: the package under one name, its stubs and its data, and nothing else."""

from __future__ import annotations

import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
PARTS = ("quorepo", "cluster", "storage", "rpc", "protos")
FILES = ("pyproject.toml", "MANIFEST.in", "README.md", "LICENSE")


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> zipfile.ZipFile:
    source = tmp_path_factory.mktemp("source")
    ignore = shutil.ignore_patterns("__pycache__")
    for name in PARTS:
        shutil.copytree(ROOT / name, source / name, symlinks=True, ignore=ignore)
    for name in FILES:
        shutil.copy(ROOT / name, source / name)
    target = tmp_path_factory.mktemp("wheel")
    pip = [sys.executable, "-m", "pip", "wheel", "--quiet", "--disable-pip-version-check"]
    offline = ["--no-deps", "--no-build-isolation", "--no-index"]
    result = subprocess.run(
        [*pip, *offline, "--wheel-dir", str(target), str(source)],
        capture_output=True,
        text=True,
        check=False,
    )
    assert result.returncode == 0, result.stderr
    (path,) = target.glob("quorepo-*.whl")
    return zipfile.ZipFile(path)


def test_the_wheel_holds_one_package(wheel: zipfile.ZipFile) -> None:
    tops = {name.split("/")[0] for name in wheel.namelist()}
    assert {top for top in tops if not top.endswith(".dist-info")} == {"quorepo"}


def test_the_wheel_holds_every_module_and_data_file(wheel: zipfile.ZipFile) -> None:
    names = set(wheel.namelist())
    for layer in ("cluster", "storage", "rpc"):
        for path in (ROOT / layer).rglob("*.py"):
            assert f"quorepo/{path.relative_to(ROOT)}" in names
    for name in ("quorepo/py.typed", "quorepo/v1/ref_pb2.pyi", "quorepo/internal/v1/log_pb2.py"):
        assert name in names
    for path in ROOT.glob("cluster/**/*.sql"):
        assert f"quorepo/{path.relative_to(ROOT)}" in names


def test_the_wheel_carries_its_licence_and_command(wheel: zipfile.ZipFile) -> None:
    licence = next(name for name in wheel.namelist() if name.endswith("/licenses/LICENSE"))
    assert b"Apache License" in wheel.read(licence)
    points = next(name for name in wheel.namelist() if name.endswith("entry_points.txt"))
    assert b"quorepo = quorepo.rpc.cli.main:main" in wheel.read(points)
