"""New deltas: any two contents round-trip through dulwich's reader, small changes stay small."""

from __future__ import annotations

import random

from dulwich.pack import apply_delta
from hypothesis import given
from hypothesis import strategies as st

from quorepo.storage.git.commits import tree_entry_pattern
from quorepo.storage.git.deltas import make_delta

ENTRIES = tree_entry_pattern(20)
LINES = st.lists(st.sampled_from([b"one\n", b"two\n", b"three\r\n", b"", b"\n", b"four " * 40]))
TEXTS = st.one_of(st.binary(max_size=300), LINES.map(b"".join))


@given(base=TEXTS, target=TEXTS, as_trees=st.booleans())
def test_any_two_contents_round_trip(base: bytes, target: bytes, as_trees: bool) -> None:
    delta = make_delta(base, target, ENTRIES if as_trees else None)
    assert b"".join(apply_delta(base, delta)) == target


@given(seed=st.integers(0, 1 << 30))
def test_edited_texts_round_trip(seed: int) -> None:
    chance = random.Random(seed)
    base = b"".join(b"line %d\n" % chance.randrange(99) for _ in range(chance.randrange(600)))
    target = bytearray(base)
    for _ in range(chance.randrange(6)):
        place = chance.randrange(len(target) + 1)
        target[place : place + chance.randrange(90)] = b"edit\n" * chance.randrange(60)
    assert b"".join(apply_delta(base, make_delta(base, bytes(target)))) == target


def test_two_edits_far_apart_cost_two_edits() -> None:
    lines = [b"line %d of a long text\n" % number for number in range(20_000)]
    base = b"".join(lines)
    lines[17], lines[19_900] = b"changed\n", b"changed too\n"
    assert len(make_delta(base, b"".join(lines))) < 100


def test_one_entry_of_a_large_tree_costs_one_entry() -> None:
    entries = [b"100644 file-%04d\0" % number + bytes([number % 251]) * 20 for number in range(900)]
    base = b"".join(entries)
    entries[3] = entries[3][:-20] + b"x" * 20
    entries[700] = entries[700][:-20] + b"y" * 20
    delta = make_delta(base, b"".join(entries), ENTRIES)
    assert b"".join(apply_delta(base, delta)) == b"".join(entries)
    assert len(delta) < 120
