"""Which seeds a tree is judged by: a pure function of the code under simulation.

CI runs the schedules that begin at `base_of_tree`. The same tree has the same ones in every clone,
on every machine, at every time, so a failure that CI shows can be had here; and every change of
what is simulated has schedules that nobody has seen. Owns no schedule. Knows nothing of git, which
may be absent.
"""

from __future__ import annotations

import ast
import functools
import hashlib
from pathlib import Path

__all__ = ["ROOT", "base_of_tree", "code_under_simulation"]

ROOT = Path(__file__).parents[2]
_FIRST = "simulation.schedule"
# Where the modules of a package lie. Nothing else is simulated: no layer below imports rpc/, and
# pysyncobj is pinned by its hash in pin.py.
_FOLDERS = {
    "quorepo.cluster": ".",
    "quorepo.storage": ".",
    "quorepo.internal": ".",
    "simulation": "tests",
    "support": "tests",
}
# Seeds stay short enough to be typed.
_BASES = 10**12


def base_of_tree(root: Path = ROOT) -> int:
    """The first seed for the tree at `root`."""
    digest = hashlib.sha256()
    for name, path in sorted(code_under_simulation(root).items()):
        digest.update(f"{name} {hashlib.sha256(path.read_bytes()).hexdigest()}\n".encode())
    return int.from_bytes(digest.digest()[:8], "big") % _BASES


def code_under_simulation(root: Path = ROOT) -> dict[str, Path]:
    """The modules that a schedule imports, directly or not, and the SQL beside them, by name.

    Read from the source, not from what this process happens to have imported.
    """
    found: dict[str, Path] = {}
    waiting = [_FIRST]
    while waiting:
        name = waiting.pop()
        path = _path_of(root, name)
        if path is None or name in found:
            continue
        found[name] = path
        if path.name == "__init__.py":
            found.update({f"{name} {sql.name}": sql for sql in path.parent.glob("*.sql")})
        waiting += _imports(path.read_bytes())
        waiting.append(name.rpartition(".")[0])  # a package's own code runs first
    return found


def _path_of(root: Path, name: str) -> Path | None:
    parts = name.split(".")
    folder = _FOLDERS.get(".".join(parts[: 2 if parts[0] == "quorepo" else 1]))
    if folder is None:
        return None
    path = root / folder / name.replace(".", "/")
    for candidate in (path.with_suffix(".py"), path / "__init__.py"):
        if candidate.is_file():
            return candidate
    return None


@functools.cache
def _imports(source: bytes) -> tuple[str, ...]:
    """Every name that may be a module; the project imports absolutely."""
    names: list[str] = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom) and node.module:
            names += [node.module, *(f"{node.module}.{alias.name}" for alias in node.names)]
    return tuple(names)
