"""What is refused before the pack is read; checked against git's own rules where they are known."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quorepo.rpc.push_checks import Change, early_refusals
from quorepo.storage.limits import StorageLimits
from quorepo.storage.objectformat import ObjectFormat

A, B = b"\xaa" * 20, b"\xbb" * 20
LIMITS = StorageLimits()


def refused(
    changes: list[Change], refs: dict[bytes, bytes], head: bytes | None = None
) -> dict[int, str]:
    return early_refusals(changes, refs, head, ObjectFormat.SHA1, LIMITS)


def create(name: str) -> Change:
    return Change(name.encode(), A, None)


def delete(name: str, expected: bytes | None = A) -> Change:
    return Change(name.encode(), None, expected)


def test_a_fine_change_is_not_refused() -> None:
    assert refused([create("refs/heads/main")], {}) == {}
    assert refused([Change(b"refs/heads/main", B, A)], {b"refs/heads/main": A}) == {}


def test_a_stale_old_value_is_told_with_both_values() -> None:
    reasons = refused([Change(b"refs/heads/main", B, A)], {b"refs/heads/main": B})
    assert reasons == {0: f"stale info: expected {A.hex()}, is {B.hex()}"}
    reasons = refused([create("refs/heads/main")], {b"refs/heads/main": B})
    assert reasons == {0: f"stale info: expected {'0' * 40}, is {B.hex()}"}


def test_deleting_the_current_branch_is_refused_as_git_does() -> None:
    refs = {b"refs/heads/main": A, b"refs/heads/other": A}
    reasons = refused(
        [delete("refs/heads/main"), delete("refs/heads/other")], refs, b"refs/heads/main"
    )
    assert reasons == {0: "deletion of the current branch prohibited"}


def test_deleting_what_is_not_there_is_fine() -> None:
    assert refused([delete("refs/heads/gone", None)], {}, b"refs/heads/gone") == {}


@pytest.mark.parametrize("name", ["refs/heads/a..b", "heads/main", "refs/heads/x.lock", "refs/x"])
def test_names_that_git_refuses_are_refused(name: str) -> None:
    assert refused([create(name)], {})[0].startswith("funny refname")


def test_a_ref_named_twice_is_refused_both_times() -> None:
    reasons = refused([create("refs/heads/a"), create("refs/heads/a"), create("refs/heads/b")], {})
    assert set(reasons) == {0, 1}
    assert "multiple updates for ref" in reasons[0]


def test_a_name_above_the_limit_is_refused() -> None:
    name = "refs/heads/" + "a" * LIMITS.ref_name_bytes_max
    assert "limits.ref_name_bytes_max" in refused([create(name)], {})[0]


@pytest.mark.parametrize(
    ("old", "new"), [("a", "a/b"), ("a/b", "a"), ("a/b/c", "a"), ("a", "a/b/c")]
)
def test_a_and_a_slash_b_conflict_in_both_directions(old: str, new: str) -> None:
    reasons = refused([create(f"refs/heads/{new}")], {f"refs/heads/{old}".encode(): A})
    assert reasons == {0: f"'refs/heads/{old}' exists; cannot create 'refs/heads/{new}'"}
    both = refused([create(f"refs/heads/{old}"), create(f"refs/heads/{new}")], {})
    assert set(both) == {1}


def test_a_conflict_goes_away_with_a_deletion_in_the_same_push() -> None:
    refs = {b"refs/heads/a": A}
    assert refused([create("refs/heads/a/b"), delete("refs/heads/a")], refs) == {}
    stale = refused([create("refs/heads/a/b"), delete("refs/heads/a", B)], refs)
    assert set(stale) == {0, 1}


def test_similar_names_are_no_conflict() -> None:
    assert refused([create("refs/heads/a-b"), create("refs/heads/ab")], {b"refs/heads/a": A}) == {}


names = st.lists(st.sampled_from("ab"), min_size=1, max_size=4).map(
    lambda parts: "refs/heads/" + "/".join(parts)
)


@given(st.sets(names), names)
def test_conflicts_are_found_exactly_when_one_name_is_a_folder_of_the_other(
    existing: set[str], new: str
) -> None:
    refs = {name.encode(): A for name in existing if name != new}
    conflicts = any(
        name.startswith(new + "/") or new.startswith(name + "/") for name in existing - {new}
    )
    assert bool(refused([create(new)], refs)) == conflicts
