"""Hostile packs: each ends in one clean refusal, and leaves nothing in quarantine."""

from __future__ import annotations

import hashlib
import random
import tracemalloc
import zlib
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
    seal,
    size_varint,
    tag,
    tree,
)

from quorepo.storage.errors import CorruptPack, LimitExceeded, Rejected
from quorepo.storage.limits import StorageLimits
from quorepo.storage.objectformat import ObjectFormat
from quorepo.storage.packfile import BLOB, COMMIT, TAG, TREE

MIB = 1024 * 1024
BLOB_A = object_id(BLOB, b"a")
LIMITS = StorageLimits(
    push_bytes_max=4 * MIB,
    push_objects_max=1000,
    object_bytes_max=8 * MIB,
    push_inflated_bytes_max=20 * MIB,
    delta_result_bytes_max=4 * MIB,
    delta_depth_max=50,
)


@pytest.fixture
def store(tmp_path: Path) -> PackStore:
    """Holds the blob "a" and the tree that names it."""
    store = PackStore(tmp_path)
    writer = PackWriter()
    writer.whole(BLOB, b"a")
    writer.whole(TREE, tree(("100644", b"a", BLOB_A)))
    store.add(writer.finish())
    return store


@pytest.fixture(scope="module")
def shared_store(tmp_path_factory: pytest.TempPathFactory) -> PackStore:
    return PackStore(tmp_path_factory.mktemp("shared"))


@pytest.fixture(scope="module")
def real_pack(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    source = random_repository(tmp_path_factory.mktemp("real") / "source", 5, 12)
    return git_bytes("pack-objects", "--all", "--stdout", "--delta-base-offset", cwd=source)


def refused(store: PackStore, pack: bytes, *, limits: StorageLimits = LIMITS) -> Rejected:
    """The error of a push that is refused and leaves nothing behind."""
    before = set(store.layout.state_dir.rglob("*"))
    with pytest.raises(Rejected) as caught:
        store.ingest(pack, limits=limits)
    assert set(store.layout.state_dir.rglob("*")) == before
    assert store.quarantined() == set()
    return caught.value


def written(*objects: tuple[int, bytes]) -> bytes:
    writer = PackWriter()
    for type_num, content in objects:
        writer.whole(type_num, content)
    return writer.finish()


# ---- the frame


def test_no_pack_at_all(store: PackStore) -> None:
    for garbage in (b"", b"PACK", b"hello world, this is no pack", b"PACK" + bytes(28)):
        assert isinstance(refused(store, garbage), CorruptPack)


def test_every_cut_of_a_pack(store: PackStore) -> None:
    pack = written((BLOB, b"some content"), (BLOB, b"other content"))
    for size in range(len(pack)):
        assert isinstance(refused(store, pack[:size]), CorruptPack)


def test_cut_but_sealed_again(store: PackStore) -> None:
    pack = written((BLOB, b"some content"), (BLOB, b"other content"))
    for size in range(12, len(pack) - 20):
        assert isinstance(refused(store, seal(pack[:size])), CorruptPack)


def test_a_flipped_bit_anywhere(store: PackStore) -> None:
    pack = written((BLOB, b"some content"), (TREE, tree(("100644", b"a", BLOB_A))))
    for position in range(len(pack)):
        damaged = bytearray(pack)
        damaged[position] ^= 1 << position % 8
        assert isinstance(refused(store, bytes(damaged)), CorruptPack | LimitExceeded)


@pytest.mark.parametrize("count", [0, 1, 3, 999])
def test_a_count_that_lies(store: PackStore, count: int) -> None:
    writer = PackWriter()
    writer.whole(BLOB, b"x")
    writer.whole(BLOB, b"y")
    assert isinstance(refused(store, writer.finish(count=count)), CorruptPack)


def test_junk_behind_the_objects(store: PackStore) -> None:
    pack = written((BLOB, b"x"))
    assert "junk" in refused(store, seal(pack[:-20] + b"junk")).message


@pytest.mark.parametrize("version", [0, 1, 4, 0x02000000])
def test_an_unknown_version(store: PackStore, version: int) -> None:
    body = b"PACK" + version.to_bytes(4, "big") + written((BLOB, b"x"))[8:-20]
    assert "version" in refused(store, seal(body)).message


def test_another_object_format(store: PackStore) -> None:
    writer = PackWriter(ObjectFormat.SHA256)
    writer.whole(BLOB, b"x")
    assert isinstance(refused(store, writer.finish()), CorruptPack)


@pytest.mark.parametrize("type_num", [0, 5])
def test_a_type_that_does_not_exist(store: PackStore, type_num: int) -> None:
    assert "unknown object type" in refused(store, written((type_num, b"x"))).message


def test_a_header_that_never_ends(store: PackStore) -> None:
    writer = PackWriter()
    writer.raw(b"\xb0" + b"\xff" * 40 + b"\x01" + zlib.compress(b""))
    assert isinstance(refused(store, writer.finish()), CorruptPack)


# ---- limits: each is checked before what it limits is allocated


def limited(store: PackStore, pack: bytes, key: str, limits: StorageLimits = LIMITS) -> None:
    tracemalloc.start()
    try:
        error = refused(store, pack, limits=limits)
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert isinstance(error, LimitExceeded), error
    assert error.limit == f"limits.{key}"
    assert str(getattr(limits, key)) in error.message
    assert peak_bytes < 64 * MIB


def test_a_pack_of_too_many_bytes(store: PackStore) -> None:
    limited(store, written((BLOB, random.Random(1).randbytes(4 * MIB))), "push_bytes_max")


def test_a_pack_of_too_many_objects(store: PackStore) -> None:
    limited(store, written(*((BLOB, b"%d" % number) for number in range(1001))), "push_objects_max")


def test_a_count_too_high_is_refused_before_anything_is_read(store: PackStore) -> None:
    limited(store, PackWriter().finish(count=0xFFFFFFFF), "push_objects_max")


def test_an_object_that_declares_too_much(store: PackStore) -> None:
    writer = PackWriter()
    writer.whole(BLOB, b"x", declared_size=1 << 40)
    limited(store, writer.finish(), "object_bytes_max")


def test_a_bomb_within_the_object_limit(store: PackStore) -> None:
    # A megabyte on the wire that inflates to a gigabyte.
    writer = PackWriter()
    for number in range(8):
        writer.whole(BLOB, bytes([number]) * (7 * MIB))
    pack = writer.finish()
    assert len(pack) < MIB
    limited(store, pack, "push_inflated_bytes_max")


def test_a_stream_that_inflates_beyond_its_size(store: PackStore) -> None:
    writer = PackWriter()
    writer.whole(BLOB, bytes(64 * MIB), declared_size=10)
    tracemalloc.start()
    try:
        error = refused(store, writer.finish())
        peak_bytes = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert "longer than declared" in error.message
    assert peak_bytes < 8 * MIB


def test_a_stream_that_is_shorter_than_declared(store: PackStore) -> None:
    writer = PackWriter()
    writer.whole(BLOB, b"x" * 10, declared_size=11)
    assert isinstance(refused(store, writer.finish()), CorruptPack)


def test_a_delta_bomb(store: PackStore) -> None:
    # 4 KB that make 4 GB: the declared size decides, nothing is allocated.
    base = bytes(0xFFFFFF)[: 4 * MIB]
    writer = PackWriter()
    offset = writer.whole(BLOB, base)
    result_bytes = 4 << 30
    instructions = [copy(0, 4 * MIB)] * (result_bytes // (4 * MIB))
    writer.ofs_delta(offset, delta(len(base), result_bytes, *instructions))
    limited(store, writer.finish(), "delta_result_bytes_max")


def test_a_delta_that_declares_the_largest_number(store: PackStore) -> None:
    writer = PackWriter()
    offset = writer.whole(BLOB, b"base")
    writer.ofs_delta(offset, size_varint(4) + size_varint((1 << 63) - 1) + copy(0, 4))
    limited(store, writer.finish(), "delta_result_bytes_max")


def test_many_deltas_that_are_large_together(store: PackStore) -> None:
    writer = PackWriter()
    base = bytes(4 * MIB - 100)
    offset = writer.whole(BLOB, base)
    for number in range(8):
        writer.ofs_delta(
            offset, delta(len(base), len(base) + 1, copy(0, len(base)), insert(bytes([number])))
        )
    limited(store, writer.finish(), "push_inflated_bytes_max")


@pytest.mark.parametrize("by_id", [False, True])
def test_a_chain_that_is_too_deep(store: PackStore, by_id: bool) -> None:
    def chain(depth: int) -> bytes:
        writer = PackWriter()
        content = b"0000"
        offset = writer.whole(BLOB, content)
        for number in range(1, depth + 1):
            changed = b"%04d" % number
            instructions = delta(4, 4, insert(changed))
            if by_id:
                offset = writer.ref_delta(object_id(BLOB, content), instructions)
            else:
                offset = writer.ofs_delta(offset, instructions)
            content = changed
        return writer.finish()

    limited(store, chain(51), "delta_depth_max")
    assert store.ingest(chain(50), limits=LIMITS) is not None


def test_a_chain_of_fifty_thousand_needs_no_stack(store: PackStore) -> None:
    limits = StorageLimits(delta_depth_max=65_000)
    writer = PackWriter()
    offset = writer.whole(BLOB, b"00000")
    for number in range(1, 50_001):
        offset = writer.ofs_delta(offset, delta(5, 5, insert(b"%05d" % number)))
    store.add(writer.finish(), limits=limits)
    assert store.packs.get(object_id(BLOB, b"50000")) == (BLOB, b"50000")
    assert store.packs.object_type(object_id(BLOB, b"49999")) == BLOB


# ---- deltas


DELTAS = {
    "empty": b"",
    "only a size": b"\x04",
    "sizes that never end": b"\xff" * 30,
    "base size": delta(5, 4, copy(0, 4)),
    "copy behind the base": delta(4, 4, copy(2, 4)),
    "copy far behind the base": delta(4, 4, copy(0xFFFFFFFF, 4)),
    "too little": delta(4, 5, copy(0, 4)),
    "too much": delta(4, 3, copy(0, 4)),
    "reserved instruction": delta(4, 4, copy(0, 4), b"\0"),
    "cut copy": delta(4, 4, b"\x91"),
    "cut insert": delta(4, 4, b"\x04ab"),
    "size zero means 64 KiB": delta(4, 4, b"\x80"),
}


@pytest.mark.parametrize("content", DELTAS.values(), ids=DELTAS.keys())
def test_a_bad_delta(store: PackStore, content: bytes) -> None:
    writer = PackWriter()
    writer.ofs_delta(writer.whole(BLOB, b"base"), content)
    assert isinstance(refused(store, writer.finish()), CorruptPack)
    writer = PackWriter()
    writer.ref_delta(object_id(BLOB, b"base"), content)
    writer.whole(BLOB, b"base")
    assert isinstance(refused(store, writer.finish()), CorruptPack)


@settings(max_examples=150, deadline=None)
@given(st.binary(max_size=30), st.booleans())
def test_any_bytes_as_a_delta(shared_store: PackStore, content: bytes, framed: bool) -> None:
    store = shared_store
    writer = PackWriter()
    base = writer.whole(BLOB, b"base content")
    writer.ofs_delta(base, (delta(12, 12) if framed else b"") + content)
    before = store.quarantined()
    try:
        store.ingest(writer.finish(), limits=LIMITS)
    except (CorruptPack, LimitExceeded):
        assert store.quarantined() == before


def test_a_base_that_is_nowhere(store: PackStore) -> None:
    writer = PackWriter()
    writer.ref_delta(bytes(range(20)), delta(4, 4, copy(0, 4)))
    assert "1 unresolved" in refused(store, writer.finish()).message


@pytest.mark.parametrize("distance", [0, 1, 5, 13, 1 << 20, 1 << 62])
def test_a_base_offset_into_nowhere(store: PackStore, distance: int) -> None:
    writer = PackWriter()
    start = writer.whole(BLOB, b"base")
    here = start + 13
    writer.ofs_delta(here - distance if distance else here, delta(4, 4, copy(0, 4)))
    assert isinstance(refused(store, writer.finish()), CorruptPack)


def test_deltas_in_a_circle(store: PackStore) -> None:
    one, two = b"1" * 40, b"1" * 39
    writer = PackWriter()
    writer.ref_delta(object_id(BLOB, two), delta(39, 40, copy(0, 39), insert(b"1")))
    writer.ref_delta(object_id(BLOB, one), delta(40, 39, copy(0, 39)))
    assert "2 unresolved" in refused(store, writer.finish()).message


def test_deltas_in_a_circle_that_the_store_opens(store: PackStore) -> None:
    # Each base is stored, so both resolve; but in the pack alone they would have no ground.
    one, two = b"1" * 40, b"1" * 39
    store.add(written((BLOB, one), (BLOB, two)))
    writer = PackWriter()
    writer.ref_delta(object_id(BLOB, two), delta(39, 40, copy(0, 39), insert(b"1")))
    writer.ref_delta(object_id(BLOB, one), delta(40, 39, copy(0, 39)))
    assert "delta cycle" in refused(store, writer.finish()).message


def test_chains_joined_through_the_store_are_counted_whole(store: PackStore) -> None:
    contents = [b"%04d" % number for number in range(60)]
    store.add(written(*((BLOB, content) for content in contents)))
    writer = PackWriter()
    # Last first: every base is found in the store, and arrives in the pack later.
    for number in range(59, 0, -1):
        base = object_id(BLOB, contents[number - 1])
        writer.ref_delta(base, delta(4, 4, insert(contents[number])))
    limited(store, writer.finish(), "delta_depth_max")


# ---- objects


def test_the_same_object_twice(store: PackStore) -> None:
    assert "appears twice" in refused(store, written((BLOB, b"x"), (BLOB, b"x"))).message


def test_the_same_object_whole_and_as_a_delta(store: PackStore) -> None:
    writer = PackWriter()
    writer.ofs_delta(writer.whole(BLOB, b"base"), delta(4, 4, copy(0, 4)))
    assert "appears twice" in refused(store, writer.finish()).message


TREES = {
    "hasDotdot": tree(("40000", b"..", BLOB_A)),
    "hasDot": tree(("40000", b".", BLOB_A)),
    "hasDotgit": tree(("40000", b".GIT", BLOB_A)),
    "treeNotSorted": tree(("100644", b"b", BLOB_A), ("100644", b"a", BLOB_A)),
    "duplicateEntries": tree(("100644", b"a", BLOB_A), ("100644", b"a", BLOB_A)),
    "fullPathname": tree(("100644", b"a/b", BLOB_A)),
    "nullSha1": tree(("160000", b"a", bytes(20))),
    "badTree": b"rubbish",
}


@pytest.mark.parametrize(("message_id", "content"), TREES.items())
@pytest.mark.parametrize("as_delta", [False, True])
def test_a_bad_tree(store: PackStore, message_id: str, content: bytes, as_delta: bool) -> None:
    writer = PackWriter()
    if as_delta:
        base = tree(("100644", b"a", BLOB_A))
        writer.ref_delta(object_id(TREE, base), delta(len(base), len(content), insert(content)))
    else:
        writer.whole(TREE, content)
    oid = object_id(TREE, content).hex()
    assert refused(store, writer.finish()).message.startswith(f"fsck error: {oid}: {message_id}: ")


def test_a_bad_commit_and_a_bad_tag(store: PackStore) -> None:
    bad = commit(object_id(TREE, b""), author=b"nobody")
    assert "missingEmail" in refused(store, written((TREE, b""), (COMMIT, bad))).message
    bad = tag(BLOB_A, b"blub")
    assert "badType" in refused(store, written((TAG, bad))).message


@pytest.mark.parametrize("blob_first", [True, False])
@pytest.mark.parametrize("is_stored", [True, False])
def test_a_dangerous_gitmodules(store: PackStore, blob_first: bool, is_stored: bool) -> None:
    modules = b'[submodule "a"]\n\turl = -u./payload\n'
    folder = tree(("100644", b".gitmodules", object_id(BLOB, modules)))
    if is_stored:
        store.add(written((BLOB, modules)))
        pack = written((TREE, folder))
    elif blob_first:
        pack = written((BLOB, modules), (TREE, folder))
    else:
        pack = written((TREE, folder), (BLOB, modules))
    assert "gitmodulesUrl" in refused(store, pack).message


# ---- references


MISSING = bytes(range(20))
INCOMPLETE = {
    "a tree's blob": (TREE, tree(("100644", b"x", MISSING))),
    "a tree's folder": (TREE, tree(("40000", b"x", MISSING))),
    "a commit's tree": (COMMIT, commit(MISSING)),
    "a commit's parent": (COMMIT, commit(object_id(TREE, b""), [MISSING])),
    "a tag's target": (TAG, tag(MISSING)),
}


@pytest.mark.parametrize(("type_num", "content"), INCOMPLETE.values(), ids=INCOMPLETE.keys())
def test_a_reference_to_nothing(store: PackStore, type_num: int, content: bytes) -> None:
    error = refused(store, written((TREE, b""), (type_num, content)))
    assert error.message.startswith(f"did not receive expected object {MISSING.hex()}")


STORED_TREE = object_id(TREE, tree(("100644", b"a", BLOB_A)))
MISTAKEN = {
    "a folder that is a blob": (TREE, tree(("40000", b"x", BLOB_A))),
    "a file that is a tree": (TREE, tree(("100644", b"x", STORED_TREE))),
    "a commit of a blob": (COMMIT, commit(BLOB_A)),
    "a parent that is a tree": (COMMIT, commit(STORED_TREE, [STORED_TREE])),
    "a tag that lies": (TAG, tag(BLOB_A, b"commit")),
}


@pytest.mark.parametrize(("type_num", "content"), MISTAKEN.values(), ids=MISTAKEN.keys())
@pytest.mark.parametrize("order", ["stored", "before", "after"])
def test_a_reference_to_another_type(
    store: PackStore, tmp_path: Path, type_num: int, content: bytes, order: str
) -> None:
    targets = [(BLOB, b"a"), (TREE, tree(("100644", b"a", BLOB_A)))]
    if order == "stored":
        pack = written((type_num, content))
    else:
        store = PackStore(tmp_path / "empty")
        objects = [*targets, (type_num, content)]
        pack = written(*(objects if order == "before" else reversed(objects)))
    assert ", not a " in refused(store, pack).message


def test_a_gitlink_is_not_followed(store: PackStore) -> None:
    assert store.ingest(written((TREE, tree(("160000", b"x", MISSING)))), limits=LIMITS)


def test_another_content_under_a_stored_id(
    store: PackStore, monkeypatch: pytest.MonkeyPatch
) -> None:
    # A real collision is expensive; a stored pack whose content reads differently is the same.
    packs = type(store.packs)
    monkeypatch.setattr(packs, "get_at", lambda *_: (BLOB, b"forged"))
    assert "COLLISION" in refused(store, written((BLOB, b"a"))).message


# ---- everything at once


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_a_damaged_real_pack_is_refused_or_harmless(
    tmp_path_factory: pytest.TempPathFactory, real_pack: bytes, data: st.DataObject
) -> None:
    pack = bytearray(real_pack)
    for _ in range(data.draw(st.integers(1, 3))):
        position = data.draw(st.integers(12, len(pack) - 21))
        pack[position] = data.draw(st.integers(0, 255))
    sealed = bytes(pack[:-20]) + hashlib.sha1(pack[:-20]).digest()
    store = PackStore(tmp_path_factory.mktemp("damaged"))
    try:
        store.add(sealed)
    except (CorruptPack, LimitExceeded):
        assert store.quarantined() == set()
    else:
        store.fsck()
