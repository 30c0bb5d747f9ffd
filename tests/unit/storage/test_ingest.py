"""Honest packs: what git sends is stored complete, indexed and named, and git accepts it."""

from __future__ import annotations

import hashlib
import os
import random
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
    tag,
    tree,
)

from quorepo.storage import failpoints, resolve
from quorepo.storage.errors import CorruptPack, StorageFull
from quorepo.storage.ingest import FsckPolicy, IngestResult, check_tips, ingest_pack
from quorepo.storage.limits import StorageLimits
from quorepo.storage.objectformat import ObjectFormat
from quorepo.storage.packfile import BLOB, COMMIT, TAG, TREE

SMALL_CACHE = StorageLimits(worker_cache_bytes_max=1024 * 1024)


def tip_of(source: Path, name: str) -> bytes:
    return bytes.fromhex(git_bytes("rev-parse", name, cwd=source).decode().strip())


def pack_of(source: Path, *revisions: str, options: tuple[str, ...] = ()) -> bytes:
    return git_bytes(
        "pack-objects",
        "--revs",
        "--stdout",
        *options,
        cwd=source,
        stdin="\n".join(revisions).encode() + b"\n",
    )


@settings(max_examples=6, deadline=None)
@given(
    seed=st.integers(0, 1 << 30),
    commits=st.integers(1, 30),
    object_format=st.sampled_from(ObjectFormat),
    thin=st.booleans(),
    ofs=st.booleans(),
)
def test_random_pushes_are_stored_as_git_wants_them(
    tmp_path_factory: pytest.TempPathFactory,
    seed: int,
    commits: int,
    object_format: ObjectFormat,
    thin: bool,
    ofs: bool,
) -> None:
    folder = tmp_path_factory.mktemp("push")
    source = random_repository(folder / "source", seed, commits, object_format.value)
    store = PackStore(folder / "data", object_format)
    history = git_bytes("rev-list", "--first-parent", "b0", cwd=source).decode().split()
    stops = [*reversed(history[:: random.Random(seed).randrange(1, 8)])]
    options = (*(("--thin",) if thin else ()), *(("--delta-base-offset",) if ofs else ()))
    pushed: list[str] = []
    for stop in stops:
        pack = pack_of(source, stop, *(f"^{oid}" for oid in pushed), options=options)
        result = store.add(pack, [(b"refs/heads/main", bytes.fromhex(stop))])
        assert result.thin_bytes == len(pack) - object_format.hash_bytes
        assert result.thin_object_count == int.from_bytes(pack[8:12], "big")
        assert result.object_count >= result.thin_object_count
        pushed.append(stop)
    store.fsck(bytes.fromhex(stops[-1]))
    listed = git_bytes("rev-list", "--objects", "--no-object-names", stops[-1], cwd=source)
    assert all(bytes.fromhex(oid) in store.packs for oid in listed.decode().split())


def test_the_result_describes_the_files(tmp_path: Path) -> None:
    source = random_repository(tmp_path / "source", 7, 20)
    store = PackStore(tmp_path / "data")
    pack = pack_of(source, "b0")
    result = store.ingest(pack, [(b"refs/heads/main", tip_of(source, "b0"))])
    assert result is not None
    path, index_path = store.layout.quarantine_paths(result.digest)
    assert store.quarantined() == {path.name, index_path.name}
    assert path.read_bytes() == pack
    assert hashlib.sha256(pack).digest() == result.digest
    assert hashlib.sha256(index_path.read_bytes()).digest() == result.index_digest
    assert (path.stat().st_size, index_path.stat().st_size) == (
        result.pack_bytes,
        result.index_bytes,
    )
    assert IngestResult.from_json(result.to_json()) == result
    assert store.ingest(pack) == result


def test_a_thin_pack_is_completed_and_git_agrees(tmp_path: Path) -> None:
    source = random_repository(tmp_path / "source", 8, 40)
    store = PackStore(tmp_path / "data")
    store.add(pack_of(source, "b0~3"))
    thin = pack_of(source, "b0", "^b0~3", options=("--thin",))
    result = store.add(thin, [(b"refs/heads/main", tip_of(source, "b0"))])
    assert result.object_count > result.thin_object_count, (
        "the test needs a pack with missing bases"
    )
    path, _ = store.layout.pack_paths(store.repository_id, result.digest)
    stored = path.read_bytes()
    assert stored[12 : result.thin_bytes] == thin[12:-20]
    said = git_bytes(
        "index-pack", "--strict", "-o", str(tmp_path / "x.idx"), str(path), cwd=store.path
    )
    assert said.strip() == stored[-20:].hex().encode()
    store.fsck(tip_of(source, "b0"))


def test_deltas_that_do_not_fit_the_cache_are_resolved_all_the_same(tmp_path: Path) -> None:
    store = PackStore(tmp_path)
    chance = random.Random(1)
    content = chance.randbytes(300_000)
    writer = PackWriter()
    contents = [content]
    offsets = [writer.whole(BLOB, content)]
    for number in range(1, 40):
        # A tree of deltas, deeper and wider than what the cache holds.
        base = chance.randrange(max(0, number - 12), number)
        kept = chance.randrange(200_000, len(contents[base]))
        content = contents[base][:kept] + b"%d" % number * 100
        instructions = [copy(0, kept), insert(content[kept:])]
        offsets.append(
            writer.ofs_delta(offsets[base], delta(len(contents[base]), len(content), *instructions))
        )
        contents.append(content)
    store.add(writer.finish(), limits=SMALL_CACHE)
    for content in contents:
        assert store.packs.get(object_id(BLOB, content)) == (BLOB, content)


@pytest.mark.parametrize("reverse", [False, True])
def test_ref_deltas_in_any_order_are_resolved(tmp_path: Path, reverse: bool) -> None:
    store = PackStore(tmp_path)
    contents = [b"start" * 50]
    deltas = []
    for number in range(1, 30):
        base = contents[-1]
        contents.append(base[: 200 - number] + b"%03d" % number)
        instructions = (copy(0, 200 - number), insert(b"%03d" % number))
        deltas.append((object_id(BLOB, base), delta(len(base), len(contents[-1]), *instructions)))
    writer = PackWriter()
    if not reverse:
        writer.whole(BLOB, contents[0])
    for base_oid, instructions_ in reversed(deltas) if reverse else deltas:
        writer.ref_delta(base_oid, instructions_)
    if reverse:
        writer.whole(BLOB, contents[0])
    store.add(writer.finish())
    store.fsck()
    for content in contents:
        assert store.packs.get(object_id(BLOB, content)) == (BLOB, content)


def test_a_base_that_is_stored_and_sent_is_not_appended(tmp_path: Path) -> None:
    store = PackStore(tmp_path)
    base, target = b"b" * 300, b"b" * 200
    first = PackWriter()
    first.whole(BLOB, base)
    store.add(first.finish())
    second = PackWriter()
    second.ref_delta(object_id(BLOB, base), delta(300, 200, copy(0, 200)))
    second.whole(BLOB, base)
    result = store.add(second.finish())
    assert (result.object_count, result.thin_object_count) == (2, 2)
    store.fsck()
    assert store.packs.get(object_id(BLOB, target)) == (BLOB, target)


def test_an_empty_pack_is_legal(tmp_path: Path) -> None:
    store = PackStore(tmp_path)
    assert store.ingest(PackWriter().finish()) is None
    assert store.quarantined() == set()
    with pytest.raises(CorruptPack, match="missing necessary objects: refs/heads/main"):
        store.ingest(PackWriter().finish(), [(b"refs/heads/main", bytes(range(20)))])


def test_version_3_is_read(tmp_path: Path) -> None:
    writer = PackWriter()
    writer.whole(BLOB, b"x")
    body = bytearray(writer.finish()[:-20])
    body[7] = 3
    result = PackStore(tmp_path).ingest(bytes(body) + hashlib.sha1(body).digest())
    assert result is not None


def small_history(store: PackStore) -> tuple[bytes, bytes, bytes]:
    """Ids of a commit, its tree and a tag of it."""
    writer = PackWriter()
    root = tree(("100644", b"a", object_id(BLOB, b"a")), ("160000", b"sub", bytes(range(20))))
    first = commit(object_id(TREE, root))
    note = tag(object_id(COMMIT, first))
    for type_num, content in ((BLOB, b"a"), (TREE, root), (COMMIT, first), (TAG, note)):
        writer.whole(type_num, content)
    store.add(writer.finish())
    return object_id(COMMIT, first), object_id(TREE, root), object_id(TAG, note)


def test_tips_must_exist_and_branches_be_commits(tmp_path: Path) -> None:
    store = PackStore(tmp_path)
    commit_oid, tree_oid, tag_oid = small_history(store)
    check_tips(store.packs, [(b"refs/heads/main", commit_oid)])
    for oid in (commit_oid, tree_oid, tag_oid):
        check_tips(store.packs, [(b"refs/tags/any", oid), (b"refs/notes/x", oid)])
    for oid in (tree_oid, tag_oid):
        with pytest.raises(CorruptPack, match="trying to write non-commit object") as caught:
            check_tips(store.packs, [(b"refs/heads/main", oid)])
        assert caught.value.metadata["ref"] == "refs/heads/main"
    with pytest.raises(CorruptPack, match="missing necessary objects"):
        check_tips(store.packs, [(b"refs/tags/any", bytes(20))])


def test_objects_may_refer_to_what_is_stored(tmp_path: Path) -> None:
    store = PackStore(tmp_path)
    commit_oid, tree_oid, _ = small_history(store)
    writer = PackWriter()
    second = commit(tree_oid, [commit_oid])
    writer.whole(COMMIT, second)
    store.add(writer.finish(), [(b"refs/heads/main", object_id(COMMIT, second))])
    store.fsck(object_id(COMMIT, second))


def test_warnings_reach_the_client(tmp_path: Path) -> None:
    writer = PackWriter()
    writer.whole(BLOB, b"a")
    content = tree(("100664", b"a", object_id(BLOB, b"a")))
    writer.whole(TREE, content)
    result = PackStore(tmp_path).ingest(writer.finish())
    assert result is not None
    (warning,) = result.warnings
    assert "badFilemode" in warning


def test_a_policy_reaches_the_checks(tmp_path: Path) -> None:
    writer = PackWriter()
    writer.whole(BLOB, b"a")
    writer.whole(TREE, tree(("0100644", b"a", object_id(BLOB, b"a"))))
    store = PackStore(tmp_path)
    with pytest.raises(CorruptPack, match="zeroPaddedFilemode"):
        store.ingest(writer.finish())
    assert store.ingest(writer.finish(), fsck=FsckPolicy({"zeroPaddedFilemode": "ignore"}))


EDGES = [
    "ingest.index.before_fsync",
    "ingest.pack.before_fsync",
    "ingest.before_rename",
]


@pytest.mark.parametrize("edge", EDGES)
def test_a_failing_disk_leaves_nothing(tmp_path: Path, edge: str) -> None:
    store = PackStore(tmp_path)
    writer = PackWriter()
    writer.whole(BLOB, b"a")
    with failpoints.enabled(edge, "error"), pytest.raises(OSError, match="failpoint"):
        store.ingest(writer.finish())
    assert store.quarantined() == set()
    assert store.ingest(writer.finish()) is not None


def test_a_full_disk_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_room(_: int) -> None:
        raise OSError(28, os.strerror(28))

    store = PackStore(tmp_path)
    writer = PackWriter()
    writer.whole(BLOB, b"a")
    monkeypatch.setattr(os, "fsync", no_room)
    with pytest.raises(StorageFull):
        store.ingest(writer.finish())
    assert store.quarantined() == set()


def test_progress_is_told_in_gits_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(resolve, "_PROGRESS_EVERY_S", 0.0)
    told: list[str] = []
    source = random_repository(tmp_path / "source", 9, 10)
    store = PackStore(tmp_path / "data")
    ingest_pack(
        store.upload(pack_of(source, "b0")),
        store.layout,
        store.packs,
        [],
        ObjectFormat.SHA1,
        StorageLimits(),
        FsckPolicy(),
        told.append,
    )
    assert told
    assert told[0].startswith("Indexing objects:   0% (0/")
