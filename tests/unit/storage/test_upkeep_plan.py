"""Which packs are merged: few stay, an object is copied rarely, one run is bounded."""

from __future__ import annotations

import itertools

from hypothesis import given
from hypothesis import strategies as st

from quorepo.storage.upkeep_plan import PackSize, geometric, within_bytes


def sizes(*counts: int) -> list[PackSize]:
    return [PackSize(b"%d" % n, count, count * 10) for n, count in enumerate(counts)]


def counts(packs: list[PackSize]) -> list[int]:
    return sorted(pack.object_count for pack in packs)


def test_progressions_are_left_alone() -> None:
    assert geometric(sizes()) == []
    assert geometric(sizes(5)) == []
    assert geometric(sizes(100, 40, 20, 3)) == []


def test_tails_are_merged_and_the_base_stays() -> None:
    assert counts(geometric(sizes(1000, 3, 3, 3, 3))) == [3, 3, 3, 3]


def test_a_base_that_is_not_twice_its_tails_is_merged_too() -> None:
    assert counts(geometric(sizes(10, 3, 3, 3))) == [3, 3, 3, 10]


@given(st.lists(st.integers(1, 1000), max_size=60))
def test_what_is_left_is_a_progression(all_counts: list[int]) -> None:
    packs = sizes(*all_counts)
    merged = geometric(packs)
    assert len(merged) != 1
    left = [p.object_count for p in packs if p not in merged]
    after = sorted(left + ([sum(counts(merged))] if merged else []))
    for smaller, larger in itertools.pairwise(after):
        assert larger >= 2 * smaller


@given(st.lists(st.integers(1, 5), min_size=200, max_size=200))
def test_a_day_of_pushes_costs_few_copies(pushes: list[int]) -> None:
    packs: list[PackSize] = []
    copied = 0
    for number, count in enumerate(pushes):
        packs.append(PackSize(b"%d" % number, count, count))
        if len(packs) > 20:
            merged = geometric(packs)
            total = sum(counts(merged))
            copied += total
            packs = [p for p in packs if p not in merged] + [PackSize(b"m%d" % number, total, 1)]
        assert len(packs) <= 21
    assert copied < 6 * sum(pushes)


@given(st.lists(st.integers(1, 100), max_size=30), st.integers(1, 5000))
def test_one_run_is_bounded(all_counts: list[int], bytes_max: int) -> None:
    chosen = within_bytes(sizes(*all_counts), bytes_max)
    assert len(chosen) != 1
    assert sum(pack.pack_bytes for pack in chosen) <= bytes_max
