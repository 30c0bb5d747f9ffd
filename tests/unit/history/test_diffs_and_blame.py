"""Changed paths, renames, patches and blame: as C git tells them, on random histories."""

from __future__ import annotations

import random
import re
import tempfile
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from support.stored_histories import StoredHistory

from quorepo.storage.history.blame import blame, count_lines
from quorepo.storage.history.changes import Change, PathFilter, changed_paths
from quorepo.storage.history.patches import file_patch, quoted
from quorepo.storage.history.renames import RenameOptions, find_renames
from quorepo.storage.history.source import History

FEW = settings(max_examples=6, deadline=None, suppress_health_check=list(HealthCheck))
FILE_BYTES_MAX = 1 << 20


def named_status(stored: StoredHistory, *arguments: str) -> list[tuple[str, ...]]:
    fields = stored.git("diff-tree", "-r", "-z", "--raw", *arguments).split(b"\0")
    rows = []
    while len(fields) > 1:
        meta = fields.pop(0).decode().lstrip(":").split()
        paths = [fields.pop(0).decode() for _ in range(2 if meta[4][0] in "RC" else 1)]
        rows.append((*meta[:4], meta[4][0], *paths))
    return rows


def told(change: Change) -> tuple[str, ...]:
    some = change.new or change.old
    assert some is not None
    zero = "0" * 2 * len(some.oid)
    paths = [change.path.decode()]
    if change.status in "RC":
        assert change.old is not None
        paths.insert(0, change.old.path.decode())
    return (
        f"{change.old.mode:06o}" if change.old else "000000",
        f"{change.new.mode:06o}" if change.new else "000000",
        change.old.oid.hex() if change.old else zero,
        change.new.oid.hex() if change.new else zero,
        change.status,
        *paths,
    )


def patch_of(history: History, changes: list[Change], context: int) -> bytes:
    texts = [
        file_patch(history, change, context, FILE_BYTES_MAX, with_text=True).text
        for change in changes
    ]
    return b"".join(text or b"" for text in texts)


@FEW
@given(seed=st.integers(0, 10_000), object_format=st.sampled_from(["sha1", "sha1", "sha256"]))
def test_random_commits_differ_as_git_says(seed: int, object_format: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        stored = StoredHistory(Path(folder) / "r", seed, 40, object_format)
        chance = random.Random(seed)
        history = stored.history
        for _ in range(12):
            old, new = chance.choice(stored.commits), chance.choice(stored.commits)
            check_diff(stored, history, old, new)


def test_an_empty_file_that_is_deleted_has_an_index_line(tmp_path: Path) -> None:
    """Found by seed 1 of the test above."""
    stored = StoredHistory(tmp_path / "r", 1, 40)
    history = stored.history
    for old in stored.commits[::7]:
        check_diff(stored, history, old, stored.commits[0])


def check_diff(stored: StoredHistory, history: History, old: str, new: str) -> None:
    changes = changed_paths(history, stored.tree(old), stored.tree(new))
    assert [told(change) for change in changes] == named_status(stored, old, new)
    only = changed_paths(history, stored.tree(old), stored.tree(new), PathFilter([b"d", b"file2"]))
    assert [told(change) for change in only] == named_status(stored, old, new, "--", "d", "file2")
    renamed, gave_up = find_renames(history, changes, RenameOptions())
    assert not gave_up
    assert [told(change) for change in renamed] == named_status(stored, "-M", old, new)
    copied, _ = find_renames(history, changes, RenameOptions(copies=True))
    assert [told(change) for change in copied] == named_status(stored, "-C", old, new)
    exact, _ = find_renames(history, changes, RenameOptions(similarity=100))
    assert [told(change) for change in exact] == named_status(stored, "-M100%", old, new)
    for context in (3, 0):
        expected = stored.git(
            *("diff-tree", "-r", "-p", "-M", "--full-index", f"-U{context}", old, new)
        )
        # git's similarity counts chunks whose hashes collide, too.
        similar = re.compile(rb"similarity index \d+%")
        ours = patch_of(history, renamed, context)
        assert similar.sub(b"", ours) == similar.sub(b"", expected)
    numbers = stored.git("diff-tree", "-r", "-z", "--no-renames", "--numstat", old, new)
    assert numstat(history, changes) == numbers


def numstat(history: History, changes: list[Change]) -> bytes:
    rows = []
    for change in changes:
        patch = file_patch(history, change, 3, FILE_BYTES_MAX, with_text=False)
        counts = (b"-", b"-") if patch.is_binary else (patch.additions, patch.deletions)
        added, deleted = (n if isinstance(n, bytes) else b"%d" % n for n in counts)
        rows.append(b"%s\t%s\t%s\0" % (added, deleted, change.path))
    return b"".join(rows)


@FEW
@given(seed=st.integers(0, 10_000), object_format=st.sampled_from(["sha1", "sha1", "sha256"]))
def test_random_files_are_blamed_as_git_blames_them(seed: int, object_format: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        stored = StoredHistory(Path(folder) / "r", seed, 60, object_format)
        chance = random.Random(seed)
        history = stored.history
        for _ in range(4):
            commit = chance.choice(stored.commits)
            names = stored.git("ls-tree", "-r", "-z", commit).split(b"\0")[:-1]
            files = [name.partition(b"\t")[2] for name in names if b" blob " in name]
            for path in chance.sample(files, min(3, len(files))):
                assert our_blame(history, commit, path) == git_blame(stored, commit, path)


def our_blame(history: History, commit: str, path: bytes) -> list[tuple[str, int, bytes]]:
    oid = bytes.fromhex(commit)
    entry = history.entry(history.commit(oid).tree, path.split(b"/"))
    assert entry is not None
    lines = count_lines(history.blob(entry[1]))
    result: list[tuple[str, int, bytes]] = []
    for part in blame(history, oid, path, 1, lines, FILE_BYTES_MAX):
        assert part.first_line == len(result) + 1
        for number in range(part.line_count):
            original = part.original_first_line + number
            result.append((part.commit.hex(), original, part.original_path))
    return result


def git_blame(stored: StoredHistory, commit: str, path: bytes) -> list[tuple[str, int, bytes]]:
    output = stored.git("blame", "--line-porcelain", commit, "--", path.decode())
    result: list[tuple[str, int, bytes]] = []
    for line in output.split(b"\n"):
        header = re.fullmatch(rb"([0-9a-f]{40,64}) (\d+) \d+(?: \d+)?", line)
        if header:
            current = (header[1].decode(), int(header[2]))
        elif line.startswith(b"filename "):
            result.append((*current, line.removeprefix(b"filename ").strip(b'"')))
    return result


@pytest.fixture(scope="module")
def stored(tmp_path_factory: pytest.TempPathFactory) -> StoredHistory:
    return StoredHistory(tmp_path_factory.mktemp("diffs") / "r", 11, 60)


def test_a_part_of_a_file_is_blamed_as_in_the_whole(stored: StoredHistory) -> None:
    history = stored.history
    names = stored.git("ls-tree", "-r", "--name-only", "b0").decode().split("\n")
    path = next(name for name in names if "file" in name).encode()
    tip = stored.oid("b0")
    whole = our_blame(history, tip.hex(), path)
    part = blame(history, tip, path, 2, 3, FILE_BYTES_MAX)
    assert [p.commit.hex() for p in part for _ in range(p.line_count)] == [
        commit for commit, _, _ in whole[1:3]
    ]


def test_what_is_too_large_is_left_out_of_a_patch_and_said_to_be(stored: StoredHistory) -> None:
    changes = changed_paths(stored.history, None, stored.tree("b0"))
    patches = [file_patch(stored.history, c, 3, 10, with_text=True) for c in changes]
    assert any(patch.is_left_out and patch.text is None for patch in patches)


@pytest.mark.parametrize(
    ("path", "shown"),
    [(b"a b", b"a b"), (b'a"b', b'"a\\"b"'), (b"\xc3\xa4", b'"\\303\\244"'), (b"a\tb", b'"a\\tb"')],
)
def test_unusual_paths_are_quoted_as_git_quotes_them(path: bytes, shown: bytes) -> None:
    assert quoted(path) == shown
