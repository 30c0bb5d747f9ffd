"""Style that a machine can check: sizes, docstrings, and what must not be in the code at all."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[3]
MODULE_LINES_MAX = 440  # "about 400" (style.md), and not one line more than somebody chose to bear
FUNCTION_LINES_MAX = 70
PRODUCT = ("storage", "cluster", "rpc")


def python_files(*folders: str) -> list[Path]:
    found = [path for folder in folders for path in sorted((ROOT / folder).rglob("*.py"))]
    assert found
    return found


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def tree_of(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def functions(tree: ast.Module) -> Iterator[ast.FunctionDef | ast.AsyncFunctionDef]:
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            yield node


def body_lines(function: ast.FunctionDef | ast.AsyncFunctionDef) -> int:
    """Lines of a function without its signature and its docstring."""
    first = function.body[0]
    is_docstring = isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant)
    start = (first.end_lineno or first.lineno) + 1 if is_docstring else first.lineno
    return (function.end_lineno or start) - start + 1


def test_modules_are_short() -> None:
    long = {
        name_of(path): lines
        for path in python_files(*PRODUCT)
        if (lines := path.read_text(encoding="utf-8").count("\n")) > MODULE_LINES_MAX
    }
    assert long == {}


def test_functions_are_short() -> None:
    long = {
        f"{name_of(path)}:{function.lineno} {function.name}": lines
        for path in python_files(*PRODUCT)
        for function in functions(tree_of(path))
        if (lines := body_lines(function)) > FUNCTION_LINES_MAX
    }
    assert long == {}


def test_every_module_says_what_it_owns() -> None:
    silent = [
        name_of(path)
        for path in python_files(*PRODUCT, "tests")
        if path.name != "conftest.py" and not ast.get_docstring(tree_of(path))
    ]
    assert silent == []


def imports_and_names(path: Path) -> set[str]:
    names: set[str] = set()
    for node in ast.walk(tree_of(path)):
        if isinstance(node, ast.Import):
            names.update(alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
            names.update(f"{node.module}.{alias.name}" for alias in node.names)
        elif isinstance(node, ast.Attribute):
            names.add(node.attr)
        elif isinstance(node, ast.Name):
            names.add(node.id)
    return names


def test_nothing_is_pickled() -> None:
    """A pickle runs code of its sender: neither disk, log nor wire may hold one."""
    forbidden = re.compile(r"(^|\.|_)(c?pickle|dill|marshal|shelve|cloudpickle)", re.IGNORECASE)
    wrong = [
        f"{name_of(path)}: {name}"
        for path in python_files(*PRODUCT)
        for name in imports_and_names(path)
        if forbidden.search(name)
    ]
    assert wrong == []


def is_sleep(node: ast.AST) -> bool:
    return isinstance(node, ast.Call) and ast.unparse(node.func) == "time.sleep"


@pytest.mark.parametrize("folder", [*PRODUCT, "tests"])
def test_nobody_sleeps_instead_of_waiting_for_a_condition(folder: str) -> None:
    """A pause between two looks at a condition is fine, a pause that hopes is not."""
    wrong = []
    for path in python_files(folder):
        tree = tree_of(path)
        loops = (node for node in ast.walk(tree) if isinstance(node, ast.While))
        polls = {id(node) for loop in loops for node in ast.walk(loop)}
        sleeps = (node for node in ast.walk(tree) if is_sleep(node) and id(node) not in polls)
        wrong += [f"{name_of(path)}:{getattr(node, 'lineno', 0)}" for node in sleeps]
    assert wrong == []


def is_broad(kind: ast.expr | None) -> bool:
    return kind is None or ast.unparse(kind) in ("Exception", "BaseException")


def test_no_broad_handler_swallows_an_error_silently() -> None:
    wrong = [
        f"{name_of(path)}:{node.lineno}"
        for path in python_files(*PRODUCT)
        for node in ast.walk(tree_of(path))
        if isinstance(node, ast.ExceptHandler) and is_broad(node.type)
        if node.type is None or all(isinstance(statement, ast.Pass) for statement in node.body)
    ]
    assert wrong == []


def test_nothing_is_left_for_later() -> None:
    marks = re.compile(r"\b(TODO|FIXME|XXX|HACK)\b")
    wrong = [
        f"{name_of(path)}:{number}"
        for path in python_files(*PRODUCT)
        for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1)
        if marks.search(line)
    ]
    assert wrong == []
