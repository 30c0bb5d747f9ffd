"""The virtual disk forgets exactly what a disk may forget."""

from __future__ import annotations

import errno
import os
import random

import pytest

from simulation.disk import VirtualDisk, VirtualPath
from simulation.events import SimulatedCrash
from simulation.virtual_os import VirtualOs


class Files:
    """A disk and the calls on it."""

    def __init__(self, seed: int = 0) -> None:
        self.disk = VirtualDisk(random.Random(seed))
        self.os = VirtualOs()
        self.folder = self.disk.root / "journal"

    def create(self, name: str, data: bytes, *, sync: bool, sync_folder: bool) -> VirtualPath:
        path = self.folder / name
        descriptor = self.os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
        self.os.write(descriptor, data)
        if sync:
            self.os.fsync(descriptor)
        self.os.close(descriptor)
        if sync_folder:
            self.sync_folder()
        return path

    def sync_folder(self) -> None:
        descriptor = self.os.open(self.folder, os.O_RDONLY | os.O_DIRECTORY)
        self.os.fsync(descriptor)
        self.os.close(descriptor)


@pytest.mark.parametrize("seed", range(20))
def test_what_was_synced_survives_a_power_cut(seed: int) -> None:
    files = Files(seed)
    path = files.create("a", b"data" * 500, sync=True, sync_folder=True)
    descriptor = files.os.open(path, os.O_WRONLY | os.O_APPEND)
    files.os.write(descriptor, b"more" * 500)
    files.disk.lose_power()
    assert path.read_bytes().startswith(b"data" * 500)


def test_all_that_can_happen_to_unsynced_data_happens() -> None:
    seen = set()
    for seed in range(200):
        files = Files(seed)
        path = files.create("a", b"x" * 2000, sync=False, sync_folder=True)
        files.disk.lose_power()
        data = path.read_bytes()
        assert set(data) <= {0, ord("x")}
        kind = "holes" if b"\0" in data else len(data) if len(data) in (0, 2000) else "prefix"
        seen.add(kind)
    assert seen == {0, 2000, "prefix", "holes"}


def test_a_rename_may_be_lost_until_its_folder_is_synced() -> None:
    outcomes = set()
    for seed in range(50):
        files = Files(seed)
        files.create("a", b"old", sync=True, sync_folder=True)
        new = files.create("b", b"new", sync=True, sync_folder=False)
        files.os.rename(new, files.folder / "a")
        files.disk.lose_power()
        outcomes.add((files.folder / "a").read_bytes())
    assert outcomes == {b"old", b"new"}


def test_a_kill_keeps_the_page_cache() -> None:
    files = Files()
    path = files.create("a", b"unsynced", sync=False, sync_folder=False)
    files.os.forget_all()
    assert path.read_bytes() == b"unsynced"


def test_what_a_failed_sync_lost_reads_well_and_is_gone_after_a_power_cut() -> None:
    files = Files(3)
    path = files.create("a", b"kept", sync=True, sync_folder=True)
    descriptor = files.os.open(path, os.O_WRONLY | os.O_APPEND)
    files.os.write(descriptor, b" lost")
    files.disk.fail_syncs = True
    with pytest.raises(OSError) as failure:
        files.os.fdatasync(descriptor)
    assert failure.value.errno == errno.EIO
    files.disk.repair()
    files.os.fdatasync(descriptor)  # succeeds, and has written nothing
    assert path.read_bytes() == b"kept lost"
    assert not files.disk.all_synced("/data/journal")
    files.disk.lose_power()
    assert path.read_bytes() == b"kept"


def test_a_full_disk_takes_a_part_and_then_nothing() -> None:
    files = Files()
    path = files.create("a", b"", sync=True, sync_folder=True)
    files.disk.space_bytes = 3
    descriptor = files.os.open(path, os.O_WRONLY | os.O_APPEND)
    assert files.os.write(descriptor, b"12345") == 3
    with pytest.raises(OSError) as failure:
        files.os.write(descriptor, b"45")
    assert failure.value.errno == errno.ENOSPC


def test_a_crash_comes_at_the_operation_that_was_chosen() -> None:
    files = Files()
    path = files.create("a", b"", sync=False, sync_folder=False)
    descriptor = files.os.open(path, os.O_WRONLY | os.O_APPEND)
    files.disk.crash_soon(2, power=True)
    files.os.fsync(descriptor)
    with pytest.raises(SimulatedCrash) as crash:
        files.os.fsync(descriptor)
    assert crash.value.power
