"""The reserve: what is begun, what is taken over, and that both come back."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from quorepo.storage.disk_space import DiskReserve
from quorepo.storage.errors import StorageFull

RESERVE = 1000


class Disk:
    def __init__(self, free: int) -> None:
        self.free = free
        self.now = 0.0

    def statvfs(self, _: Path) -> os.statvfs_result:
        return os.statvfs_result((1, 1, 10_000, self.free, self.free, 0, 0, 0, 0, 255))

    def reserve(self, size_bytes: int = RESERVE) -> DiskReserve:
        return DiskReserve(
            Path("/data"), size_bytes, statvfs=self.statvfs, monotonic=lambda: self.now
        )

    def becomes(self, free: int) -> None:
        self.free = free
        self.now += 1.0


def test_below_the_reserve_nothing_new_begins_and_what_others_accepted_still_fits() -> None:
    disk = Disk(free=RESERVE + 200)
    space = disk.reserve()
    assert not space.low()
    space.check_new(200)
    with pytest.raises(StorageFull, match=r"storage\.reserve_bytes = 1000"):
        space.check_new(201)
    disk.becomes(RESERVE - 1)
    assert space.low()
    assert not space.full()
    with pytest.raises(StorageFull):
        space.check_new()
    space.check_taken_over(400)
    with pytest.raises(StorageFull, match=r"storage\.reserve_bytes / 2"):
        space.check_taken_over(500)


def test_below_half_of_it_nothing_is_taken_over_either() -> None:
    disk = Disk(free=RESERVE // 2 - 1)
    space = disk.reserve()
    assert space.low()
    assert space.full()
    with pytest.raises(StorageFull):
        space.check_taken_over(0)


def test_it_recovers_by_itself_a_little_above_the_mark() -> None:
    disk = Disk(free=RESERVE - 1)
    space = disk.reserve()
    assert space.low()
    disk.becomes(RESERVE + 1)
    assert space.low(), "a byte to and fro must not switch it"
    disk.becomes(RESERVE + 100)
    assert not space.low()
    space.check_new()


def test_the_disk_is_not_asked_all_the_time() -> None:
    disk = Disk(free=RESERVE + 1)
    space = disk.reserve()
    assert not space.low()
    disk.free = 0
    assert not space.low()
    disk.now += 0.3
    assert space.low()


def test_reserve_of_zero_is_none() -> None:
    space = Disk(free=0).reserve(0)
    assert not space.low()
    assert not space.full()
    space.check_new(10**12)
    space.check_taken_over(10**12)
