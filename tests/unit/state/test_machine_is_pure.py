"""Reads the machine's source: what every replica computes may depend on state and entry alone."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

import quorepo.cluster.state

FOLDER = Path(quorepo.cluster.state.__file__).parent
MODULES = [
    *sorted(FOLDER.glob("machine*.py")),
    FOLDER / "commands.py",
    FOLDER / "effects.py",
    FOLDER / "export.py",
    FOLDER / "levels.py",
]
IMPORTS = {
    "__future__",
    "collections",
    "dataclasses",
    "google",
    "hashlib",
    "json",
    "quorepo",
    "sqlite3",
    "typing",
}
QUOREPO_IMPORTS = {
    "quorepo.cluster.raft.interface",
    "quorepo.cluster.state",
    "quorepo.cluster.state.commands",
    "quorepo.cluster.state.effects",
    "quorepo.cluster.state.machine_batch",
    "quorepo.cluster.state.machine_level",
    "quorepo.cluster.state.machine_packs",
    "quorepo.cluster.state.machine_refs",
    "quorepo.cluster.state.machine_repositories",
    "quorepo.internal.v1",
    "quorepo.storage.errors",
    "quorepo.storage.git.refnames",
    "quorepo.storage.objectformat",
}
# `hash` and `id` differ between processes; `repr` of a str depends on Python's Unicode tables.
CALLS = {"set", "frozenset", "hash", "id", "repr", "open", "input", "globals", "vars", "print"}
SQL_WORDS = ("current_time", "current_date", "datetime(", "strftime(", "random(", "randomblob(")
PURE_MODULES_ELSEWHERE = [FOLDER.parent.parent / "storage" / "git" / "refnames.py"]


def problems(source: str) -> list[str]:
    found = []
    for node in ast.walk(ast.parse(source)):
        where = f"line {getattr(node, 'lineno', 0)}"
        match node:
            case ast.Import(names=names):
                found += [f"{where}: import {n.name}" for n in names if n.name not in IMPORTS]
            case ast.ImportFrom(module=str(module)):
                top = module.split(".")[0]
                if top not in IMPORTS or (top == "quorepo" and module not in QUOREPO_IMPORTS):
                    found.append(f"{where}: import from {module}")
            case ast.Set() | ast.SetComp():
                found.append(f"{where}: a set, whose order differs between processes")
            case ast.Call(func=ast.Name(id=name)) if name in CALLS:
                found.append(f"{where}: call of {name}()")
            case ast.FormattedValue(conversion=conversion, value=value) if conversion == ord("r"):
                # repr of bytes is the same everywhere; the names below are bytes or local enums.
                if ast.unparse(value) not in ("update.name", "branch", "entry.kind"):
                    found.append(f"{where}: repr of {ast.unparse(value)}")
            case ast.Global() | ast.Nonlocal():
                found.append(f"{where}: state of the process")
            case ast.Constant(value=str(text)) if any(w in text.lower() for w in SQL_WORDS):
                found.append(f"{where}: SQL that is not deterministic: {text!r}")
            case ast.Constant(value=float()):
                found.append(f"{where}: a float")
    return found


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.name)
def test_machine_uses_nothing_but_state_and_entry(path: Path) -> None:
    assert problems(path.read_text("utf-8")) == []


def test_the_check_sees_what_it_forbids() -> None:
    for line in (
        "import time",
        "import random",
        "import os",
        "from os import environ",
        "from quorepo.cluster.state.store import x",
        "{1, 2}",
        "{x for x in y}",
        "set(y)",
        "frozenset(y)",
        "f'{path!r}'",
        "hash(x)",
        "def f():\n    global x",
        "'SELECT random()'",
        "'VALUES (CURRENT_TIMESTAMP)'",
        "1.5",
    ):
        assert problems(line), line


def test_names_are_checked_without_state() -> None:
    """refnames.py decides verdicts too: it may import `re` and nothing else."""
    for path in PURE_MODULES_ELSEWHERE:
        for node in ast.walk(ast.parse(path.read_text("utf-8"))):
            assert not isinstance(node, ast.Import) or [n.name for n in node.names] == ["re"]
            assert not isinstance(node, ast.ImportFrom) or node.module == "__future__"


def test_schema_has_no_defaults_that_depend_on_the_clock() -> None:
    schema = (FOLDER / "schema.sql").read_text("utf-8").lower()
    assert "default" not in schema
    assert not any(word in schema for word in SQL_WORDS)
