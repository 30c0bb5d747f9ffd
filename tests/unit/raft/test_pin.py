"""Only the pysyncobj that the overrides were written against runs."""

from __future__ import annotations

import ast
import inspect
import shutil
from pathlib import Path

import pysyncobj.syncobj
import pytest

from quorepo.cluster.raft import engine
from quorepo.cluster.raft.pin import PINNED_VERSION, check_installed, check_source
from quorepo.storage.errors import FatalError

SOURCE = Path(pysyncobj.syncobj.__file__).parent


def test_installed_pysyncobj_is_the_pinned_one() -> None:
    check_installed()


def test_another_version_is_refused() -> None:
    expected = r"version 0\.3\.18 is installed; run: pip install"
    with pytest.raises(FatalError, match=expected) as refused:
        check_source(SOURCE, "0.3.18")
    assert refused.value.exit_code == FatalError.EXIT_CONFIG


def test_one_changed_byte_is_refused(tmp_path: Path) -> None:
    copy = tmp_path / "pysyncobj"
    shutil.copytree(SOURCE, copy)
    with (copy / "syncobj.py").open("ab") as file:
        file.write(b"\n")
    with pytest.raises(FatalError, match=r"syncobj\.py' has sha256"):
        check_source(copy, PINNED_VERSION)
    (copy / "node.py").unlink()
    (copy / "syncobj.py").write_bytes((SOURCE / "syncobj.py").read_bytes())
    with pytest.raises(FatalError, match="cannot be read"):
        check_source(copy, PINNED_VERSION)


def test_every_override_replaces_something() -> None:
    """A misspelt name would leave pysyncobj's unsafe method in place."""
    names = [
        node.name
        for node in ast.walk(ast.parse(inspect.getsource(engine.Engine)))
        if isinstance(node, ast.FunctionDef) and node.name.startswith("_SyncObj__")
    ]
    names += [name for name, value in vars(engine.Engine).items() if value is engine.Engine._refuse]
    names.remove("_refuse")
    assert len(names) > 25
    for name in names:
        assert hasattr(pysyncobj.syncobj.SyncObj, name), name


@pytest.mark.parametrize("name", ["loads", "load", "dumps", "dump", "to_bytes"])
def test_engine_never_pickles(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """X1, X2: a whole story with pysyncobj's pickle taken away."""
    from support.raft_schedule import run_schedule

    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("pickle was used")

    monkeypatch.setattr(pysyncobj.syncobj.pickle, name, refuse, raising=False)
    run_schedule(3, membership=True, seconds=2.0)
