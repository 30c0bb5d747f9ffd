"""The commit graph: derived, checked, thrown away at will, and right about skewed clocks."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
from support.git import git
from support.git_http import StoredRepository

from quorepo.storage.git import commit_graph
from quorepo.storage.git.commit_graph import Commit, commit_graphs
from quorepo.storage.git.commits import CommitReader
from quorepo.storage.git.walk import ancestors, commits_between
from quorepo.storage.packs import PackCache, PackSet


@pytest.fixture
def skewed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> StoredRepository:
    """300 commits with merges, whose dates say nothing, in two packs."""
    monkeypatch.setattr(commit_graph, "_STORED_OBJECTS_MIN", 1)
    chance = random.Random(5)
    source = tmp_path / "source.git"
    git("init", "--quiet", "--bare", "--initial-branch=main", str(source))
    for numbers in (range(200), range(300)):
        chance.seed(5)
        stream = []
        for number in numbers:
            date = chance.randrange(1_000_000)
            parents = chance.sample(range(max(0, number - 9), number), min(number, 2))
            stream.append(f"commit refs/heads/b{number}\nmark :{number + 1}\n")
            stream.append(f"committer C <c@x> {date} +0000\ndata 1\nc\n")
            for place, parent in enumerate(parents):
                stream.append(f"{'merge' if place else 'from'} :{parent + 1}\n")
            stream.append(f"M 644 inline f\ndata 4\n{number:04}\n")
        git(
            "-c", "fastimport.unpackLimit=0", "fast-import", "--quiet", "--force",
            cwd=source, stdin="".join(stream).encode(),
        )  # fmt: skip
    return StoredRepository(source, tmp_path / "data")


def fresh(stored: StoredRepository) -> PackSet:
    """As another process sees it."""
    return PackSet.from_description(stored.description(), PackCache())


def files(stored: StoredRepository) -> list[Path]:
    return sorted(stored.out_folder.glob("groups/1/repositories/*/objects/info/*.commits"))


def test_generations_grow_from_parent_to_child(skewed: StoredRepository) -> None:
    reader = CommitReader(skewed.objects())
    walked = list(ancestors(reader, skewed.view().tips()))
    assert len(walked) == 300
    for oid in walked:
        commit = reader.get(oid)
        assert commit.generation >= commit.date
        assert all(reader.get(parent).generation < commit.generation for parent in commit.parents)
    reader = CommitReader(fresh(skewed))
    assert [reader.get(oid) for oid in walked] == [
        CommitReader(skewed.objects()).get(oid) for oid in walked
    ]


def test_ranges_are_exact_whatever_the_clocks_say(skewed: StoredRepository) -> None:
    reader = CommitReader(skewed.objects())
    chance = random.Random(7)
    tips = skewed.view().tips()
    for _ in range(40):
        wants, haves = chance.sample(tips, 2), chance.sample(tips, 2)
        found = commits_between(reader, wants, haves).new
        # With wants and haves in one command git goes by the dates, and lists too many.
        assert {oid.hex() for oid in found} == reached(skewed, wants) - reached(skewed, haves)


def reached(stored: StoredRepository, tips: list[bytes]) -> set[str]:
    return set(git("rev-list", *(tip.hex() for tip in tips), cwd=stored.source).stdout.split())


def test_stored_graphs_are_used(skewed: StoredRepository, monkeypatch: pytest.MonkeyPatch) -> None:
    reader = CommitReader(fresh(skewed))
    expected = {oid: reader.get(oid) for oid in ancestors(reader, skewed.view().tips())}
    assert len(files(skewed)) == 2
    monkeypatch.setattr(commit_graph, "_scan", None)
    reader = CommitReader(fresh(skewed))
    assert {oid: reader.get(oid) for oid in expected} == expected
    assert all(graph.get(b"\xff" * 20) is None for graph in commit_graphs(fresh(skewed)))


def test_a_damaged_graph_is_made_anew(skewed: StoredRepository) -> None:
    expected = [graph.count for graph in commit_graphs(fresh(skewed))]
    path, other = files(skewed)
    intact, foreign = path.read_bytes(), other.read_bytes()
    flipped = bytes([*intact[:900], intact[900] ^ 1, *intact[901:]])
    for content in (b"", intact[:40], intact[:-1], intact + b"\0", flipped, foreign):
        path.write_bytes(content)
        assert [graph.count for graph in commit_graphs(fresh(skewed))] == expected
        assert path.read_bytes() == intact


def test_a_history_of_any_length_is_no_recursion() -> None:
    oids = [number.to_bytes(20, "big") for number in range(50_000)]
    chain = {oid: Commit(b"", (oids[n - 1],) if n else (), 0) for n, oid in enumerate(oids)}
    commits = dict(reversed(chain.items()))
    commit_graph._assign_generations([commits], [])
    assert commits[oids[-1]].generation == 49_999


def test_without_room_for_it_it_lives_in_memory(skewed: StoredRepository) -> None:
    info = skewed.objects().packs[0].path.parent.parent / "info"
    for path in info.glob("*"):
        path.unlink()
    info.rmdir() if info.exists() else None
    info.write_bytes(b"in the way")
    assert sum(graph.count for graph in commit_graphs(fresh(skewed))) == 300


def test_files_of_packs_that_are_gone_are_removed(skewed: StoredRepository) -> None:
    commit_graphs(fresh(skewed))
    kept = files(skewed)
    old = kept[0].with_name(f"quorepo-{'ab' * 32}.roots")
    unfinished = kept[0].with_name(f"{kept[0].name}.1234.tmp")
    abandoned = kept[0].with_name(f"{kept[0].name}.5678.tmp")
    foreign = kept[0].with_name("packs")
    for path in (old, unfinished, abandoned, foreign):
        path.write_bytes(b"content")
    os.utime(abandoned, (0, 0))
    kept[0].unlink()
    commit_graphs(fresh(skewed))
    assert files(skewed) == kept
    assert [path.exists() for path in (old, unfinished, abandoned, foreign)] == [0, 1, 0, 1]
