"""Regression: a replay after a power loss built a retired repository anew, without its packs."""

from __future__ import annotations

from pathlib import Path

import pytest

from quorepo.storage.failpoints import enabled
from quorepo.storage.layout import (
    GroupLayout,
    ensure_repository,
    new_repository_id,
    promote_pack,
    retire_repository,
)
from quorepo.storage.objectformat import ObjectFormat


@pytest.fixture
def layout(tmp_path: Path) -> GroupLayout:
    layout = GroupLayout(tmp_path, 1)
    layout.create()
    return layout


def push(layout: GroupLayout, repository_id: str, number: int) -> bytes:
    digest = bytes([number]) * 32
    for path in layout.quarantine_paths(digest):
        path.write_bytes(b"pack %d" % number)
    ensure_repository(layout, repository_id, ObjectFormat.SHA1)
    promote_pack(layout, repository_id, digest)
    return digest


def packs(folder: Path) -> list[str]:
    return sorted(path.name for path in (folder / "objects" / "pack").iterdir())


def test_replay_of_a_push_into_a_retired_repository_brings_its_packs_back(
    layout: GroupLayout,
) -> None:
    repository_id = new_repository_id()
    digests = [push(layout, repository_id, number) for number in (1, 2)]
    whole = packs(layout.repository(repository_id))
    retire_repository(layout, repository_id)
    # The state went back behind the deletion; the second push is replayed, and the deletion.
    ensure_repository(layout, repository_id, ObjectFormat.SHA1)
    promote_pack(layout, repository_id, digests[1])
    assert packs(layout.repository(repository_id)) == whole
    assert not (layout.retired / f"{repository_id}.git").exists()
    retire_repository(layout, repository_id)
    assert packs(layout.retired / f"{repository_id}.git") == whole


def test_two_halves_of_a_retired_repository_become_one(layout: GroupLayout) -> None:
    """Left by an earlier version, which built the folder anew."""
    repository_id = new_repository_id()
    push(layout, repository_id, 1)
    retire_repository(layout, repository_id)
    aside = layout.retired / "aside"
    (layout.retired / f"{repository_id}.git").rename(aside)
    push(layout, repository_id, 2)
    aside.rename(layout.retired / f"{repository_id}.git")
    retire_repository(layout, repository_id)
    assert len(packs(layout.retired / f"{repository_id}.git")) == 4


def test_a_failing_rename_back_leaves_the_packs_in_retired(layout: GroupLayout) -> None:
    repository_id = new_repository_id()
    push(layout, repository_id, 1)
    retire_repository(layout, repository_id)
    retired = layout.retired / f"{repository_id}.git"
    whole = packs(retired)
    with (
        enabled("layout.unretire.before_rename", "error"),
        pytest.raises(OSError, match="unretire"),
    ):
        ensure_repository(layout, repository_id, ObjectFormat.SHA1)
    assert packs(retired) == whole
    ensure_repository(layout, repository_id, ObjectFormat.SHA1)
    assert packs(layout.repository(repository_id)) == whole
