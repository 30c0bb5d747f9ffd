"""Walks, counts, ancestry: the same commits in the same order as C git's, on random histories."""

from __future__ import annotations

import itertools
import random
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.stored_histories import StoredHistory

from quorepo.storage.errors import InvalidArgument, NotFound
from quorepo.storage.history.merge_base import containing, is_ancestor, merge_bases
from quorepo.storage.history.revisions import AmbiguousObject, resolve
from quorepo.storage.history.source import History, TooMuchWork
from quorepo.storage.history.walk import LogQuery, commits_of, count_commits, count_diverging

FEW = settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck))


def hexes(oids: object) -> list[str]:
    return [oid.hex() for oid in oids]  # type: ignore[attr-defined]


@FEW
@given(seed=st.integers(0, 10_000), object_format=st.sampled_from(["sha1", "sha1", "sha256"]))
def test_random_histories_are_walked_as_git_walks_them(seed: int, object_format: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        stored = StoredHistory(Path(folder) / "r", seed, 60, object_format)
        check_walks(stored, random.Random(seed))


def check_walks(stored: StoredHistory, chance: random.Random) -> None:
    history = stored.history
    names = stored.commits
    for _ in range(6):
        tip, other = chance.choice(names), chance.choice(names)
        tips, others = (bytes.fromhex(tip),), (bytes.fromhex(other),)
        assert hexes(commits_of(history, LogQuery(tips))) == stored.lines("rev-list", tip)
        assert hexes(commits_of(history, LogQuery(tips + others))) == stored.lines(
            "rev-list", tip, other
        )
        assert hexes(commits_of(history, LogQuery(tips, topological=True))) == stored.lines(
            "rev-list", "--topo-order", tip
        )
        assert hexes(commits_of(history, LogQuery(tips, first_parent=True))) == stored.lines(
            "rev-list", "--first-parent", tip
        )
        between = LogQuery(tips, others)
        assert hexes(commits_of(history, between)) == stored.lines("rev-list", f"{other}..{tip}")
        assert count_commits(history, between) == len(stored.lines("rev-list", f"{other}..{tip}"))
        counts = stored.git("rev-list", "--left-right", "--count", f"{tip}...{other}").split()
        assert count_diverging(history, *tips, *others) == tuple(map(int, counts))
        bases = merge_bases(history, tips[0], others)
        told = stored.git_or_nothing("merge-base", "--all", tip, other).decode().split()
        assert sorted(hexes(bases)) == sorted(told)
        assert is_ancestor(history, others[0], tips[0]) == (told == [other])
        check_filters(stored, history, tip, chance)
    target = chance.choice(names)
    heads = stored.lines("for-each-ref", "--contains", target, "--format=%(objectname)")
    all_heads = [
        bytes.fromhex(oid) for oid in stored.lines("for-each-ref", "--format=%(objectname)")
    ]
    assert containing(history, bytes.fromhex(target), all_heads) == set(map(bytes.fromhex, heads))


def check_filters(stored: StoredHistory, history: History, tip: str, chance: random.Random) -> None:
    tips = (bytes.fromhex(tip),)
    for path in ("d", "file1", "moved3", "d/e"):
        assert hexes(commits_of(history, LogQuery(tips, paths=(path.encode(),)))) == stored.lines(
            "rev-list", tip, "--", path
        )
        query = LogQuery(tips, paths=(path.encode(), b"file2"), topological=True)
        assert hexes(commits_of(history, query)) == stored.lines(
            "rev-list", "--topo-order", tip, "--", path, "file2"
        )
        query = LogQuery(tips, paths=(path.encode(),), first_parent=True)
        assert hexes(commits_of(history, query)) == stored.lines(
            "rev-list", "--first-parent", tip, "--", path
        )
    query = LogQuery(tips, author=b"ANN <", ignore_case=True)
    assert hexes(commits_of(history, query)) == stored.lines(
        "rev-list", "-i", "-F", "--author=ANN <", tip
    )
    query = LogQuery(tips, message=b"fix", parents_max=1)
    assert hexes(commits_of(history, query)) == stored.lines(
        "rev-list", "-F", "--grep=fix", "--no-merges", tip
    )
    moment = 1_700_000_000 + chance.randrange(100)
    query = LogQuery(tips, since=moment, until=moment + 40)
    assert hexes(commits_of(history, query)) == stored.lines(
        "rev-list", f"--since={moment}", f"--until={moment + 40}", tip
    )


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> StoredHistory:
    return StoredHistory(tmp_path_factory.mktemp("walks") / "r", 5, 80)


def test_revisions_are_named_as_git_names_them(stored: StoredHistory) -> None:
    refs = {b"refs/heads/b0": stored.oid("b0"), b"HEAD": stored.oid("b0")}
    tip = stored.oid("b0").hex()
    by_id = (tip, tip[:9], tip.upper())
    relative = ("HEAD~3", "b0^", "b0^0~2^{tree}", "HEAD^{commit}", "HEAD^{}", "b0~~")
    for text in ("b0", "heads/b0", "HEAD", *by_id, *relative):
        found = resolve(stored.history, text.encode(), refs.get)
        assert found == stored.oid(text.lower() if len(text) == 40 else text), text


@pytest.mark.parametrize(
    ("text", "error"),
    [
        ("nothing", NotFound),
        ("HEAD~9999", NotFound),
        ("HEAD^9", NotFound),
        ("HEAD^{blob}", InvalidArgument),
        ("HEAD^{tag}", InvalidArgument),
        ("HEAD^{nonsense}", InvalidArgument),
        ("HEAD@{1}", NotFound),
        ("HEAD~x", InvalidArgument),
        ("HEAD~999999999", InvalidArgument),
        ("", InvalidArgument),
        ("^b0", NotFound),
        ("x" * 5000, InvalidArgument),
        ("0" * 40, NotFound),
        ("abc", NotFound),
    ],
)
def test_what_names_nothing_is_refused(
    stored: StoredHistory, text: str, error: type[Exception]
) -> None:
    refs = {b"HEAD": stored.oid("b0")}
    with pytest.raises(error):
        resolve(stored.history, text.encode(), refs.get)


def test_an_ambiguous_id_names_its_candidates(stored: StoredHistory) -> None:
    ids = sorted(
        stored.git("cat-file", "--batch-all-objects", "--batch-check=%(objectname)").split()
    )
    prefix = next(one[:1] for one, other in itertools.pairwise(ids) if one[:1] == other[:1])
    with pytest.raises(NotFound):  # less than four digits are no id
        resolve(stored.history, prefix, lambda name: None)
    found = stored.store.packs.packs[0].oids_beginning_with(prefix.decode() + "", 1000)
    assert [oid.hex().encode() for oid in found] == [oid for oid in ids if oid.startswith(prefix)]
    error = AmbiguousObject("abcd", ["abcd1", "abcd2"])
    assert error.candidates == ["abcd1", "abcd2"]


def test_a_question_that_needs_more_than_its_budget_says_so(stored: StoredHistory) -> None:
    history = History(stored.store.packs, budget=10)
    with pytest.raises(TooMuchWork):
        list(commits_of(history, LogQuery((stored.oid("b0"),))))
