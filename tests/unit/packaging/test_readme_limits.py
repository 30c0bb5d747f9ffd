"""The README's table of limits is that of the configuration's models."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pydantic import BaseModel

from quorepo.cluster.raft.interface import RaftConfig
from quorepo.rpc.config import ProposalsSection, WorkersSection
from quorepo.rpc.imports.config import ImportsSection
from quorepo.storage.limits import StorageLimits

README = Path(__file__).parents[3] / "README.md"
MODELS: dict[str, type[BaseModel]] = {
    "imports": ImportsSection,
    "limits": StorageLimits,
    "workers": WorkersSection,
    "raft": RaftConfig,
    "proposals": ProposalsSection,
}


def rows() -> dict[str, str]:
    """Key to default, as the table says."""
    section = README.read_text(encoding="utf-8").partition("\n## Limits\n")[2].partition("\n## ")[0]
    return dict(re.findall(r"^\| `([a-z_]+\.[a-z0-9_]+)` \| ([0-9.]+) \|", section, re.MULTILINE))


@pytest.mark.parametrize("key", sorted(rows()))
def test_a_limit_of_the_table_has_that_default(key: str) -> None:
    section, _, name = key.partition(".")
    assert float(rows()[key]) == MODELS[section].model_fields[name].default


def test_no_limit_is_left_out() -> None:
    assert {f"limits.{name}" for name in StorageLimits.model_fields} <= rows().keys()
