"""Merging packs, pruning them, and the check that no replica skips."""

from __future__ import annotations

import json
import os
import random
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.histories import random_repository
from support.packing import (
    PackStore,
    PackWriter,
    commit,
    copy,
    delta,
    git_bytes,
    insert,
    object_id,
    tree,
)

import quorepo.storage
from quorepo.storage.consolidate import CHAIN_DEPTH_MAX, merge_packs
from quorepo.storage.errors import CorruptPack, NotFound, QuorepoError
from quorepo.storage.ingest import IngestResult
from quorepo.storage.jobs import abandoned_files, run_job
from quorepo.storage.layout import held_packs, promote_pack, retire_pack
from quorepo.storage.limits import StorageLimits
from quorepo.storage.objectformat import ObjectFormat
from quorepo.storage.packfile import BLOB, COMMIT, OFS_DELTA, TREE
from quorepo.storage.packs import PackCache, PackSet, describe
from quorepo.storage.replacement import NewPack, check_replacement


def nothing(_: str) -> None:
    """Nobody listens."""


def ids(packs: PackSet) -> set[bytes]:
    return {oid for pack in packs.packs for oid in pack.iter_oids()}


def merge(store: PackStore, digests: list[bytes] | None = None) -> IngestResult:
    packs = store.cache.open(
        store.layout, store.repository_id, digests or store.digests, store.object_format
    )
    result = merge_packs(packs, store.layout.new_upload(), store.layout, nothing)
    assert result is not None
    return result


def check(
    store: PackStore, result: IngestResult, removed: list[bytes], *, complete: bool = True
) -> int:
    return check_replacement(
        store.layout,
        store.repository_id,
        store.object_format,
        removed,
        [NewPack(result.digest, result.index_digest)],
        StorageLimits(),
        nothing,
        complete=complete,
    )


def switch(store: PackStore, result: IngestResult, removed: list[bytes]) -> None:
    promote_pack(store.layout, store.repository_id, result.digest)
    for digest in removed:
        retire_pack(store.layout, store.repository_id, digest)
    store.digests = [d for d in store.digests if d not in removed] + [result.digest]


def pushed_in_steps(
    folder: Path, seed: int, steps: int, object_format: ObjectFormat = ObjectFormat.SHA1
) -> tuple[PackStore, Path]:
    """A repository that came in `steps` thin pushes of all its branches."""
    source = random_repository(folder / "source", seed, 40, object_format.value)
    store = PackStore(folder / "data", object_format)
    commits = git_bytes("rev-list", "--reverse", "--topo-order", "--all", cwd=source).split()
    edges = [commits[(len(commits) - 1) * step // steps] for step in range(1, steps + 1)]
    before: list[bytes] = []
    for edge in edges:
        wants = b"\n".join([edge, *(b"^" + oid for oid in before)]) + b"\n"
        pack = git_bytes(
            "pack-objects", "--revs", "--stdout", "--thin", "--delta-base-offset",
            cwd=source, stdin=wants,
        )  # fmt: skip
        if pack[8:12] != bytes(4):
            store.add(pack)
        before.append(edge)
    rest = b"\n".join(b"^" + oid for oid in before) + b"\n"
    pack = git_bytes(
        "pack-objects", "--revs", "--all", "--stdout", "--thin", cwd=source, stdin=rest
    )
    if pack[8:12] != bytes(4):
        store.add(pack)
    return store, source


def tips_of(source: Path) -> list[bytes]:
    lines = git_bytes("for-each-ref", "--format=%(objectname)", "refs/heads", cwd=source).split()
    return [bytes.fromhex(line.decode()) for line in lines]


@pytest.mark.parametrize("object_format", list(ObjectFormat))
@pytest.mark.parametrize("seed", range(4))
def test_merged_pack_holds_the_same_objects_and_git_accepts_it(
    tmp_path: Path, seed: int, object_format: ObjectFormat
) -> None:
    store, source = pushed_in_steps(tmp_path, seed, 12, object_format)
    before = store.packs
    expected = {oid: before.get(oid) for oid in ids(before)}
    removed = list(store.digests)
    result = merge(store)
    assert result.object_count == len(expected)
    assert check(store, result, removed) == len(expected)
    switch(store, result, removed)
    after = store.packs
    assert [pack.digest for pack in after.packs] == [result.digest]
    assert {oid: after.get(oid) for oid in ids(after)} == expected
    store.fsck(*tips_of(source))
    # What was open before goes on reading; what was chosen before and not opened finds its files.
    assert all(before.get(oid) == found for oid, found in expected.items())
    late = PackCache().open(store.layout, store.repository_id, removed, object_format)
    assert all(late.get(oid) == found for oid, found in expected.items())


@settings(max_examples=15, deadline=None)
@given(seed=st.integers(0, 1000), steps=st.integers(1, 25), data=st.data())
def test_any_part_of_the_packs_merges(seed: int, steps: int, data: st.DataObject) -> None:
    import tempfile

    with tempfile.TemporaryDirectory() as folder:
        store, source = pushed_in_steps(Path(folder), seed, steps)
        expected = ids(store.packs)
        for _ in range(3):
            chosen = data.draw(st.lists(st.sampled_from(store.digests), min_size=1, unique=True))
            result = merge(store, chosen)
            check(store, result, chosen)
            if result.digest in chosen:
                continue
            switch(store, result, chosen)
            assert ids(store.packs) == expected
        store.fsck(*tips_of(source))


def test_compressed_bytes_are_copied_and_duplicates_dropped(tmp_path: Path) -> None:
    store, _ = pushed_in_steps(tmp_path, 3, 12)
    before = store.packs
    compressed = {
        pack.read_entry(offset).compressed
        for pack in before.packs
        for offset in pack.iter_offsets()
    }
    assert sum(pack.object_count for pack in before.packs) > len(ids(before))  # completed thin ones
    result = merge(store)
    switch(store, result, list(store.digests))
    (merged,) = store.packs.packs
    for offset in merged.iter_offsets():
        entry = merged.read_entry(offset)
        assert entry.compressed in compressed
        assert entry.base_oid is None
    assert result.pack_bytes < sum(pack.pack_bytes for pack in before.packs)


def test_two_packs_with_deltas_of_each_other_make_no_circle(tmp_path: Path) -> None:
    one, two = b"a" * 200 + b"one", b"a" * 200 + b"two"
    store = PackStore(tmp_path / "data")
    for first, second in ((one, two), (two, one)):
        writer = PackWriter()
        base = writer.whole(BLOB, first)
        writer.ofs_delta(base, delta(203, 203, copy(0, 200), insert(second[200:])))
        store.add(writer.finish())
    removed = list(store.digests)
    result = merge(store)
    assert result.object_count == 2
    check(store, result, removed)
    switch(store, result, removed)
    assert store.packs.get(object_id(BLOB, one)) == (BLOB, one)
    assert store.packs.get(object_id(BLOB, two)) == (BLOB, two)
    store.fsck()


def test_chains_do_not_grow_for_ever(tmp_path: Path) -> None:
    """Every push sends the file as a thin delta of what the push before sent."""
    store = PackStore(tmp_path / "data")
    text = random.Random(1).randbytes(400)
    writer = PackWriter()
    writer.whole(BLOB, text)
    store.add(writer.finish())
    for number in range(2 * CHAIN_DEPTH_MAX + 20):
        changed = text + b"%d" % number
        writer = PackWriter()
        writer.ref_delta(
            object_id(BLOB, text),
            delta(len(text), len(changed), copy(0, len(text)), insert(changed[len(text) :])),
        )
        store.add(writer.finish())
        text = changed
        if number % 7 == 0:
            removed = list(store.digests)
            result = merge(store)
            check(store, result, removed)
            switch(store, result, removed)
    removed = list(store.digests)
    switch(store, merge(store), removed)
    (pack,) = store.packs.packs
    depths: dict[int, int] = {}
    for offset in pack.iter_offsets():
        header = pack.header(offset)
        is_delta = header.type_num == OFS_DELTA
        depths[offset] = depths[header.base_offset or 0] + 1 if is_delta else 0
    assert 10 < max(depths.values()) <= CHAIN_DEPTH_MAX
    assert store.packs.get(object_id(BLOB, text))[1] == text


def test_failure_leaves_nothing_behind(tmp_path: Path) -> None:
    store, _ = pushed_in_steps(tmp_path, 2, 5)
    path, _ = store.layout.pack_paths(store.repository_id, store.digests[1])
    damaged = bytearray(path.read_bytes())
    damaged[12:14] = b"\x7f\xff"
    path.chmod(0o600)
    path.write_bytes(damaged)
    store.cache = PackCache()
    before = store.quarantined()
    with pytest.raises(QuorepoError):
        check(store, merge(store), list(store.digests))
    left = store.quarantined() - before
    assert not any(name.endswith(".tmp") for name in left)


def test_killed_job_leaves_files_that_are_known(tmp_path: Path) -> None:
    upload = tmp_path / "upload-1.tmp"
    names = abandoned_files("consolidate", {"upload": str(upload)})
    assert names == [upload, tmp_path / "upload-1.idx.tmp"]


# ---- the check


def damaged_pack(store: PackStore, result: IngestResult) -> tuple[Path, Path]:
    return store.layout.quarantine_paths(result.digest)


def test_replacement_that_lacks_an_object_is_refused(tmp_path: Path) -> None:
    store, _ = pushed_in_steps(tmp_path, 1, 6)
    result = merge(store, store.digests[:-1])
    with pytest.raises(CorruptPack, match="lacks object"):
        check(store, result, list(store.digests))


def test_replacement_that_holds_more_is_refused(tmp_path: Path) -> None:
    store, _ = pushed_in_steps(tmp_path, 1, 6)
    result = merge(store)
    with pytest.raises(CorruptPack, match="that it does not replace"):
        check(store, result, store.digests[:-1])
    check(store, result, store.digests[:-1], complete=False)


def test_replacement_that_is_not_here_is_told(tmp_path: Path) -> None:
    store, _ = pushed_in_steps(tmp_path, 1, 3)
    gone = IngestResult(bytes(32), bytes(32), 1, 1, 1, 1, 1)
    with pytest.raises(NotFound):
        check(store, gone, list(store.digests))


@pytest.mark.parametrize("part", [0, 1])
def test_flipped_bits_are_found(tmp_path: Path, part: int) -> None:
    store, _ = pushed_in_steps(tmp_path, 1, 6)
    result = merge(store)
    path = store.layout.quarantine_paths(result.digest)[part]
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    with pytest.raises(CorruptPack, match="SHA-256"):
        check(store, result, list(store.digests))


def test_index_with_other_objects_than_its_pack_is_refused(tmp_path: Path) -> None:
    """Digests are right, and the pack is; only its index names what the old packs had."""
    from quorepo.storage.packindex import write_index

    store = PackStore(tmp_path / "data")
    writer = PackWriter()
    writer.whole(BLOB, b"wanted")
    store.add(writer.finish())
    other = PackWriter()
    offset = other.whole(BLOB, b"other!")
    pack = other.finish()
    hostile = store.ingest(pack)
    assert hostile is not None
    _, index_path = store.layout.quarantine_paths(hostile.digest)
    with index_path.open("wb") as file:
        _, index_digest = write_index(
            file, {object_id(BLOB, b"wanted"): 0}, [offset], [0], pack[-20:], ObjectFormat.SHA1
        )
    forged = IngestResult(hostile.digest, index_digest, 1, 1, 1, 1, 1)
    with pytest.raises(CorruptPack, match="not that of its bytes"):
        check(store, forged, list(store.digests))


def test_pack_with_junk_is_refused(tmp_path: Path) -> None:
    store, _ = pushed_in_steps(tmp_path, 1, 3)
    result = merge(store)
    pack_path, index_path = store.layout.quarantine_paths(result.digest)
    import hashlib

    body = pack_path.read_bytes()[:-20] + b"junk"
    content = body + hashlib.sha1(body, usedforsecurity=False).digest()
    digest = hashlib.sha256(content).digest()
    for path, data in zip(
        store.layout.quarantine_paths(digest), (content, index_path.read_bytes()), strict=True
    ):
        path.write_bytes(data)
    forged = IngestResult(digest, result.index_digest, 1, 1, 1, 1, 1)
    with pytest.raises(CorruptPack, match="junk"):
        check(store, forged, list(store.digests))


# ---- prune


def prune_arguments(store: PackStore, tips: list[bytes], recent: list[bytes]) -> dict[str, object]:
    return {
        "repository": describe(
            store.layout, store.repository_id, store.digests, store.object_format
        ),
        "merge": [digest.hex() for digest in store.digests],
        "tips": [tip.hex() for tip in tips],
        "recent": [tip.hex() for tip in recent],
        "upload": str(store.layout.new_upload()),
    }


def three_commits(store: PackStore) -> list[bytes]:
    """Commits that do not know each other, each in a push of its own."""
    found = []
    for number in range(3):
        writer = PackWriter()
        blob = b"content %d" % number
        writer.whole(BLOB, blob)
        root = tree(("100644", b"file", object_id(BLOB, blob)))
        writer.whole(TREE, root)
        head = commit(object_id(TREE, root))
        writer.whole(COMMIT, head)
        store.add(writer.finish())
        found.append(object_id(COMMIT, head))
    return found


def test_prune_drops_what_no_ref_reaches_and_the_check_agrees(tmp_path: Path) -> None:
    store = PackStore(tmp_path / "data")
    first, second, third = three_commits(store)
    missing = bytes(20)
    arguments = prune_arguments(store, [first], [second, missing])
    answer = run_job("prune", arguments, StorageLimits(), nothing)
    result = IngestResult.from_json(answer["result"])
    assert (result.object_count, answer["dropped"]) == (6, 3)
    added = [[result.digest.hex(), result.index_digest.hex()]]
    retain = {"tips": arguments["tips"], "recent": arguments["recent"]}
    question = {**arguments, "added": added, "complete": True, "retain": retain}
    assert run_job("check_replacement", question, StorageLimits(), nothing) == {"objects": 6}
    cases: list[tuple[list[bytes], list[bytes], str]] = [
        ([first], [], "keeps object"),
        ([first, second, third], [], "lacks object"),
    ]
    for tips, recent, message in cases:
        retain = {"tips": [t.hex() for t in tips], "recent": [r.hex() for r in recent]}
        with pytest.raises(CorruptPack, match=message):
            run_job("check_replacement", {**question, "retain": retain}, StorageLimits(), nothing)


def test_prune_keeps_what_a_young_pack_refers_to(tmp_path: Path) -> None:
    store = PackStore(tmp_path / "data")
    first, second, _third = three_commits(store)
    writer = PackWriter()
    head = commit(object_id(TREE, tree(("100644", b"file", object_id(BLOB, b"content 1")))))
    writer.whole(COMMIT, head + b"younger\n")
    store.add(writer.finish())
    arguments = prune_arguments(store, [first], [])
    arguments["merge"] = [digest.hex() for digest in store.digests[:3]]
    answer = run_job("prune", arguments, StorageLimits(), nothing)
    # The tree and the blob of the second commit stay, the commit itself goes.
    assert answer["dropped"] == 4
    result = IngestResult.from_json(answer["result"])
    kept = PackCache().open(store.layout, store.repository_id, [result.digest], store.object_format)
    assert second not in kept
    assert object_id(BLOB, b"content 1") in kept
    question = {
        **arguments,
        "added": [[result.digest.hex(), result.index_digest.hex()]],
        "complete": True,
        "retain": {"tips": arguments["tips"], "recent": []},
    }
    assert run_job("check_replacement", question, StorageLimits(), nothing) == {"objects": 5}


def test_prune_of_everything_leaves_no_pack(tmp_path: Path) -> None:
    store = PackStore(tmp_path / "data")
    three_commits(store)
    answer = run_job("prune", prune_arguments(store, [], []), StorageLimits(), nothing)
    assert answer == {"result": None, "dropped": 9}
    assert store.quarantined() == set(os.listdir(store.layout.quarantine)) == set()


# ---- deaths

FOLDER = Path(quorepo.storage.__file__).parent
POINTS = sorted(
    re.findall(r'failpoint\("([^"]+)"\)', (FOLDER / "consolidate.py").read_text("utf-8"))
    + re.findall(
        r'failpoint\("(layout.retire_pack[^"]+)"\)', (FOLDER / "layout.py").read_text("utf-8")
    )
)
CHILD = """
import json, sys
from pathlib import Path
from quorepo.storage.jobs import run_job
from quorepo.storage.layout import GroupLayout, promote_pack, retire_pack
from quorepo.storage.limits import StorageLimits
arguments = json.loads(sys.stdin.read())
answer = run_job("consolidate", arguments, StorageLimits(), print)
repository = arguments["repository"]
layout = GroupLayout(Path(repository["data_dir"]), repository["group"])
promote_pack(layout, repository["repository_id"], bytes.fromhex(answer["result"]["digest"]))
for digest in arguments["merge"]:
    retire_pack(layout, repository["repository_id"], bytes.fromhex(digest))
"""


@pytest.mark.parametrize("point", POINTS)
def test_kill_at_every_step_leaves_all_objects_readable(tmp_path: Path, point: str) -> None:
    assert len(POINTS) == 6
    store = PackStore(tmp_path / "data")
    heads = three_commits(store)
    expected = ids(store.packs)
    arguments = prune_arguments(store, heads, [])
    died = subprocess.run(
        [sys.executable, "-c", CHILD],
        input=json.dumps(arguments),
        env={**os.environ, "QUOREPO_FAILPOINTS": f"{point}=kill"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert died.returncode == -signal.SIGKILL, died.stderr
    digests = set(store.digests) | held_packs(store.layout)
    old = PackCache().open(store.layout, store.repository_id, store.digests, store.object_format)
    assert ids(old) == expected
    assert all(old.get(oid) for oid in expected)
    for digest in digests - set(store.digests):
        merged = PackCache().open(store.layout, store.repository_id, [digest], store.object_format)
        assert ids(merged) == expected
    # Whoever comes next does it all again.
    arguments["upload"] = str(store.layout.new_upload())
    again = subprocess.run(
        [sys.executable, "-c", CHILD], input=json.dumps(arguments), capture_output=True,
        text=True, check=False,
    )  # fmt: skip
    assert again.returncode == 0, again.stderr
    assert len(held_packs(store.layout)) == 4
    store.fsck(*heads)
