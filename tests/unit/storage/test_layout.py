"""The data directory on disk: durable writes, repositories, promotion, retirement."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from support.packing import git_bytes

from quorepo.storage import failpoints
from quorepo.storage.layout import (
    GroupLayout,
    ensure_repository,
    held_packs,
    new_repository_id,
    promote_pack,
    retire_repository,
    write_durably,
)
from quorepo.storage.objectformat import ObjectFormat

DIGEST = bytes(range(32))


@pytest.fixture
def layout(tmp_path: Path) -> GroupLayout:
    layout = GroupLayout(tmp_path / "data", 1)
    layout.create()
    return layout


def stage(layout: GroupLayout, digest: bytes = DIGEST) -> None:
    for path in layout.quarantine_paths(digest):
        path.write_bytes(path.suffix.encode())


def new_repository(layout: GroupLayout) -> str:
    repository_id = new_repository_id()
    ensure_repository(layout, repository_id, ObjectFormat.SHA1)
    return repository_id


@pytest.mark.parametrize("object_format", list(ObjectFormat))
def test_git_opens_the_repository(layout: GroupLayout, object_format: ObjectFormat) -> None:
    repository_id = new_repository_id()
    ensure_repository(layout, repository_id, object_format)
    ensure_repository(layout, repository_id, object_format)
    path = layout.repository(repository_id)
    assert git_bytes("rev-parse", "--is-bare-repository", cwd=path) == b"true\n"
    shown = git_bytes("rev-parse", "--show-object-format", cwd=path)
    assert shown == object_format.name_bytes + b"\n"
    git_bytes("fsck", "--strict", cwd=path)


def test_a_half_built_repository_is_built_again(layout: GroupLayout) -> None:
    repository_id = new_repository_id()
    with (
        failpoints.enabled("layout.repository.before_rename", "error"),
        pytest.raises(OSError, match="failpoint"),
    ):
        ensure_repository(layout, repository_id, ObjectFormat.SHA1)
    assert not layout.repository(repository_id).exists()
    ensure_repository(layout, repository_id, ObjectFormat.SHA1)
    assert git_bytes("rev-parse", "--git-dir", cwd=layout.repository(repository_id)) == b".\n"


def test_a_repository_id_never_points_elsewhere(layout: GroupLayout) -> None:
    for name in ("", "..", "a/b", "a.b", "ä"):
        with pytest.raises(ValueError, match="alphanumeric"):
            layout.repository(name)


def test_a_promoted_pack_is_only_in_its_repository(layout: GroupLayout) -> None:
    repository_id = new_repository(layout)
    stage(layout)
    promote_pack(layout, repository_id, DIGEST)
    promote_pack(layout, repository_id, DIGEST)
    assert [p.read_bytes() for p in layout.pack_paths(repository_id, DIGEST)] == [b".pack", b".idx"]
    assert os.listdir(layout.quarantine) == []


def test_a_promotion_that_died_between_the_files_is_finished(layout: GroupLayout) -> None:
    repository_id = new_repository(layout)
    stage(layout)
    with (
        failpoints.enabled("layout.promote.before_rename", "error", first_hit=2),
        pytest.raises(OSError, match="failpoint"),
    ):
        promote_pack(layout, repository_id, DIGEST)
    assert DIGEST not in held_packs(layout)
    promote_pack(layout, repository_id, DIGEST)
    assert held_packs(layout) == {DIGEST}
    assert all(path.exists() for path in layout.pack_paths(repository_id, DIGEST))


def test_one_staged_pack_serves_two_repositories(layout: GroupLayout) -> None:
    first, second, third = (new_repository(layout) for _ in range(3))
    stage(layout)
    for repository_id in (first, second):
        promote_pack(layout, repository_id, DIGEST)
    retire_repository(layout, first)
    retire_repository(layout, second)
    promote_pack(layout, third, DIGEST)
    assert [p.read_bytes() for p in layout.pack_paths(third, DIGEST)] == [b".pack", b".idx"]


def test_a_pack_staged_again_leaves_quarantine(layout: GroupLayout) -> None:
    repository_id = new_repository(layout)
    stage(layout)
    promote_pack(layout, repository_id, DIGEST)
    stage(layout)
    promote_pack(layout, repository_id, DIGEST)
    assert os.listdir(layout.quarantine) == []


def test_promoting_what_is_nowhere_fails(layout: GroupLayout) -> None:
    with pytest.raises(FileNotFoundError):
        promote_pack(layout, new_repository(layout), DIGEST)


def test_a_retired_repository_is_gone_and_its_packs_are_not_held(layout: GroupLayout) -> None:
    repository_id = new_repository(layout)
    stage(layout)
    promote_pack(layout, repository_id, DIGEST)
    retire_repository(layout, repository_id)
    retire_repository(layout, repository_id)
    assert not layout.repository(repository_id).exists()
    assert (layout.retired / f"{repository_id}.git").is_dir()
    assert held_packs(layout) == set()


def test_only_complete_pairs_are_held(layout: GroupLayout) -> None:
    other = bytes(32)
    stage(layout)
    stage(layout, other)
    layout.quarantine_paths(other)[1].unlink()
    (layout.quarantine / "upload-1.tmp").touch()
    (layout.quarantine / f"{'x' * 64}.pack").touch()
    (layout.quarantine / f"{'x' * 64}.idx").touch()
    assert held_packs(layout) == {DIGEST}


def test_a_failed_write_keeps_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file"
    write_durably(path, b"old")
    with (
        failpoints.enabled("layout.write.before_rename", "error"),
        pytest.raises(OSError, match="failpoint"),
    ):
        write_durably(path, b"new")
    assert path.read_bytes() == b"old"
    assert os.listdir(tmp_path) == ["file"]
    write_durably(path, b"new")
    assert path.read_bytes() == b"new"
