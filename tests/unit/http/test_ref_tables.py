"""Refs are listed as they are now, from whatever older table the answer was made."""

from __future__ import annotations

from pathlib import Path
from unittest import mock

import pytest
from support.edge import EdgeUnderTest, edge_config, running_edge
from support.git import WorkTree, git

from quorepo.rpc import ref_tables


@pytest.fixture(autouse=True)
def _small_ones_are_patched_and_stored() -> object:
    with mock.patch.multiple(
        ref_tables, _PATCHED_REFS_MIN=1, _STORED_REFS_MIN=1, _STORED_CHANGES_MAX=3
    ):
        yield


def listed(server: EdgeUnderTest, path: str, version: int) -> str:
    return git("-c", f"protocol.version={version}", "ls-remote", server.url(path)).stdout


def expected(bare: Path) -> str:
    return git("ls-remote", str(bare)).stdout


def test_listed_refs_are_the_newest_ones_after_pushes_and_restarts(
    tmp_path: Path, work: WorkTree
) -> None:
    data = tmp_path / "node" / "data"
    data.parent.mkdir()
    bare = tmp_path / "bare.git"
    git("init", "--quiet", "--bare", "--initial-branch=main", str(bare))
    for restart in range(3):
        with running_edge(edge_config(data)) as server:
            for step in range(4):
                oid = work.commit(f"{restart} {step}")
                work.git("tag", "--annotate", "--message=t", f"v{restart}.{step}")
                refs = ["HEAD:refs/heads/main", f"HEAD:refs/heads/b{restart}{step}", "--tags"]
                if step == 2:
                    refs += [f":refs/heads/b{restart}1", f":refs/tags/v{restart}.0"]
                    work.git("tag", "--delete", f"v{restart}.0")
                for url in (server.url("team/app"), str(bare)):
                    work.git("push", "--quiet", "--force", url, *refs)
                for version in (0, 2):
                    assert listed(server, "team/app", version) == expected(bare)
                view = server.do(server.edge.reads.open("team/app"))
                assert view.refs[b"refs/heads/main"].hex() == oid
                if restart:
                    # Nothing but the changes was read.
                    assert view.stored is not None
                    assert view.stored.unsaved < 3 + len(refs)
            [file] = data.glob("groups/1/repositories/*/refs-table")
            assert file.stat().st_mode & 0o777 == 0o600


def test_a_table_of_another_repository_or_state_is_not_believed(
    tmp_path: Path, work: WorkTree
) -> None:
    data = tmp_path / "node" / "data"
    data.parent.mkdir()
    with running_edge(edge_config(data)) as server:
        for name in ("one", "two"):
            work.commit(name)
            work.git("push", "--quiet", server.url(f"team/{name}"), f"HEAD:refs/heads/{name}")
            for n in range(3):
                work.git("push", "--quiet", server.url(f"team/{name}"), f"HEAD:refs/heads/{n}")
            shown = listed(server, f"team/{name}", 2)
            assert f"refs/heads/{name}" in shown
    one, two = data.glob("groups/1/repositories/*/refs-table")
    content = one.read_bytes()
    one.write_bytes(two.read_bytes())
    two.write_bytes(content)
    with running_edge(edge_config(data)) as server:
        for name in ("one", "two"):
            assert f"refs/heads/{name}" in listed(server, f"team/{name}", 2)
