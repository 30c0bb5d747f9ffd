"""Reading packs: what git says about every object, from every kind of pack."""

from __future__ import annotations

import gc
import io
import itertools
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from dulwich.pack import load_pack_index, write_pack_index_v2
from hypothesis import given, settings
from hypothesis import strategies as st
from support.histories import random_repository
from support.packing import (
    PackStore,
    PackWriter,
    copy,
    delta,
    git_bytes,
    insert,
    object_id,
)

from quorepo.storage.errors import DamagedPack, InvalidArgument, NotFound
from quorepo.storage.objectformat import ObjectFormat
from quorepo.storage.packfile import BLOB, TYPE_NAMES, inflate
from quorepo.storage.packindex import write_index
from quorepo.storage.packs import ObjectCache, PackCache, PackSet, describe

TYPE_NUMBERS = {name: number for number, name in TYPE_NAMES.items()}


def all_objects(repository: Path) -> dict[bytes, tuple[int, bytes]]:
    """Every reachable object as `git cat-file` shows it."""
    listed = git_bytes("rev-list", "--objects", "--no-object-names", "--all", cwd=repository)
    output = git_bytes("cat-file", "--batch", cwd=repository, stdin=listed)
    objects = {}
    while output:
        header, _, output = output.partition(b"\n")
        oid, kind, size = header.split()
        objects[bytes.fromhex(oid.decode())] = (TYPE_NUMBERS[kind], output[: int(size)])
        output = output[int(size) + 1 :]
    return objects


@pytest.mark.parametrize("object_format", list(ObjectFormat))
def test_a_random_repository_reads_as_git_reads_it(
    tmp_path: Path, object_format: ObjectFormat
) -> None:
    source = random_repository(tmp_path / "source", 1, 60, object_format.value)
    store = PackStore(tmp_path / "data", object_format)
    tags = git_bytes("tag", cwd=source).decode().split()
    assert tags
    for wants in (["b0"], ["b1", "b2", "--not", "b0"], [*tags, "--not", "b0", "b1", "b2"]):
        pack = git_bytes(
            "pack-objects",
            "--revs",
            "--stdout",
            "--delta-base-offset",
            cwd=source,
            stdin="\n".join(wants).encode() + b"\n",
        )
        store.add(pack)
    expected = all_objects(source)
    packs = store.packs
    assert set(itertools.chain(*(pack.iter_oids() for pack in packs.packs))) == set(expected)
    assert sum(pack.object_count for pack in packs.packs) == len(expected)
    for oid, (type_num, content) in expected.items():
        assert oid in packs
        assert packs.get(oid) == (type_num, content)
        assert packs.object_type(oid) == type_num
        assert packs.object_size(oid) == len(content)
    store.fsck()
    for missing in (object_format.zero, b"\xff" * object_format.hash_bytes):
        assert missing not in packs
        with pytest.raises(NotFound):
            packs.get(missing)


def test_entries_are_copied_verbatim_and_end_where_git_says(tmp_path: Path) -> None:
    source = random_repository(tmp_path / "source", 2, 50)
    store = PackStore(tmp_path / "data")
    store.add(git_bytes("pack-objects", "--all", "--stdout", "--delta-base-offset", cwd=source))
    (pack,) = store.packs.packs
    file = pack.path.read_bytes()
    lines = git_bytes("verify-pack", "-v", str(pack.path), cwd=source).splitlines()
    seen = 0
    for line in lines:
        words = line.decode().split()
        if len(words) < 5 or len(words[0]) != 40:
            continue
        oid, (size, stored_bytes, offset) = bytes.fromhex(words[0]), map(int, words[2:5])
        seen += 1
        assert pack.find(oid) == offset
        assert pack.oid_at(offset) == oid
        assert pack.end_of(offset) == offset + stored_bytes
        entry = pack.read_entry(offset)
        assert entry.size == size
        assert file[offset : offset + stored_bytes].endswith(entry.compressed)
        assert inflate(entry.compressed, 0, len(entry.compressed), size)[1] == len(entry.compressed)
        if len(words) == 7:
            assert entry.base_offset is not None
            assert pack.oid_at(entry.base_offset).hex() == words[6]
        else:
            assert entry.type_num == TYPE_NUMBERS[words[1].encode()]
    assert seen == pack.object_count
    with pytest.raises(KeyError):
        pack.oid_at(13)


def test_ref_deltas_are_resolved_within_their_pack(tmp_path: Path) -> None:
    store = PackStore(tmp_path)
    base, target = b"base content\n" * 20, b"base content\n" * 10 + b"new"
    pack = PackWriter()
    pack.ref_delta(
        object_id(BLOB, base), delta(len(base), len(target), copy(0, 130), insert(b"new"))
    )
    pack.whole(BLOB, base)
    store.add(pack.finish())
    oid = object_id(BLOB, target)
    assert store.packs.get(oid) == (BLOB, target)
    assert store.packs.object_size(oid) == len(target)
    located = store.packs.locate(oid)
    assert located is not None
    assert located[0].read_entry(located[1]).base_oid == object_id(BLOB, base)


def test_only_the_given_packs_exist(tmp_path: Path) -> None:
    store = PackStore(tmp_path)
    oids = []
    for content in (b"one", b"two"):
        pack = PackWriter()
        pack.whole(BLOB, content)
        store.add(pack.finish())
        oids.append(object_id(BLOB, content))
    assert all(oid in store.packs for oid in oids)
    store.digests.pop()
    assert oids[0] in store.packs
    assert oids[1] not in store.packs
    assert oids[0] not in PackSet((), ObjectFormat.SHA1)


def test_a_description_travels_as_json(tmp_path: Path) -> None:
    store = PackStore(tmp_path)
    pack = PackWriter()
    pack.whole(BLOB, b"x")
    store.add(pack.finish())
    description = describe(store.layout, store.repository_id, store.digests, ObjectFormat.SHA1)
    opened = PackSet.from_description(description, PackCache())
    assert opened.get(object_id(BLOB, b"x")) == (BLOB, b"x")
    for key in description:
        with pytest.raises(InvalidArgument):
            PackSet.from_description({k: v for k, v in description.items() if k != key})


def test_the_cache_closes_what_nobody_uses_and_nothing_else(tmp_path: Path) -> None:
    store = PackStore(tmp_path)
    store.cache = PackCache(max_open_packs=3)
    for number in range(8):
        pack = PackWriter()
        pack.whole(BLOB, b"%d" % number * 20_000)
        store.add(pack.finish())
    living = store.packs
    assert store.cache.open_packs == 8
    for number in range(8):
        living.get(object_id(BLOB, b"%d" % number * 20_000))
    del living
    gc.collect()
    assert store.cache.open_packs == 3


def test_a_set_outlives_the_files(tmp_path: Path) -> None:
    store = PackStore(tmp_path)
    content = bytes(range(256)) * 400
    pack = PackWriter()
    pack.whole(BLOB, content)
    result = store.add(pack.finish())
    packs = store.packs
    assert object_id(BLOB, content) in packs
    packs.object_type(object_id(BLOB, content))
    for path in store.layout.pack_paths(store.repository_id, result.digest):
        path.unlink()
    assert packs.get(object_id(BLOB, content)) == (BLOB, content)


def test_a_missing_file_is_a_damaged_pack(tmp_path: Path) -> None:
    store = PackStore(tmp_path)
    store.digests = [bytes(32)]
    with pytest.raises(DamagedPack, match="not on this node"):
        store.packs.get(bytes(20))


def test_damage_on_disk_is_reported_as_such(tmp_path: Path) -> None:
    store = PackStore(tmp_path)
    pack = PackWriter()
    base = bytes(range(256)) * 4
    offset = pack.whole(BLOB, base)
    pack.ofs_delta(offset, delta(len(base), 2000, copy(0, 1000), copy(0, 1000)))
    result = store.add(pack.finish())
    path, index_path = store.layout.pack_paths(store.repository_id, result.digest)
    intact = path.read_bytes()
    for position in range(12, len(intact) - 20):
        damaged = bytearray(intact)
        damaged[position] ^= 0x55
        path.write_bytes(damaged)
        store.cache = PackCache()
        for oid in (object_id(BLOB, base), object_id(BLOB, base[:1000] * 2)):
            try:
                store.packs.get(oid)
                store.packs.object_size(oid)
                store.packs.object_type(oid)
            except DamagedPack as error:
                assert "damaged" in error.message  # noqa: PT017
    index_path.write_bytes(b"\xfftOc\0\0\0\2" + b"\xff" * 1024)
    store.cache = PackCache()
    with pytest.raises(DamagedPack, match="shorter than"):
        store.packs.get(bytes(20))


def test_many_threads_read_one_set(tmp_path: Path) -> None:
    source = random_repository(tmp_path / "source", 3, 40)
    store = PackStore(tmp_path / "data")
    store.add(git_bytes("pack-objects", "--all", "--stdout", "--delta-base-offset", cwd=source))
    expected = all_objects(source)
    store.cache = PackCache(cache_bytes_max=20_000)
    packs = store.packs
    gate = threading.Barrier(4)

    def read_all(_: int) -> bool:
        gate.wait()
        return all(packs.get(oid) == value for oid, value in expected.items())

    with ThreadPoolExecutor(4) as threads:
        assert all(threads.map(read_all, range(4)))


@given(st.lists(st.tuples(st.integers(0, 20), st.integers(0, 300)), max_size=60))
def test_the_object_cache_keeps_its_bound(puts: list[tuple[int, int]]) -> None:
    cache = ObjectCache(1000)
    contents = {key: bytes(size) for key, size in reversed(puts)}
    for key, _ in puts:
        cache.put((0, key), BLOB, contents[key])
        assert cache.get((0, key)) == (BLOB, contents[key])
        assert cache.bytes_held <= 1000


@settings(max_examples=40)
@given(
    st.dictionaries(
        st.binary(min_size=20, max_size=20),
        st.tuples(st.integers(12, 1 << 40), st.integers(0, (1 << 32) - 1)),
        max_size=40,
    )
)
def test_an_index_is_written_as_dulwich_writes_it(entries: dict[bytes, tuple[int, int]]) -> None:
    trailer = b"t" * 20
    theirs, ours = io.BytesIO(), io.BytesIO()
    write_pack_index_v2(theirs, [(oid, *entries[oid]) for oid in sorted(entries)], trailer)
    size, digest = write_index(
        ours,
        {oid: number for number, oid in enumerate(entries)},
        [offset for offset, _ in entries.values()],
        [crc32 for _, crc32 in entries.values()],
        trailer,
        ObjectFormat.SHA1,
    )
    assert ours.getvalue() == theirs.getvalue()
    assert size == len(ours.getvalue())
    assert len(digest) == 32


def test_the_index_is_what_git_writes(tmp_path: Path) -> None:
    source = random_repository(tmp_path / "source", 4, 30)
    store = PackStore(tmp_path / "data")
    result = store.add(git_bytes("pack-objects", "--all", "--stdout", cwd=source))
    path, index_path = store.layout.pack_paths(store.repository_id, result.digest)
    git_bytes("index-pack", "-o", str(tmp_path / "git.idx"), str(path), cwd=source)
    assert index_path.read_bytes() == (tmp_path / "git.idx").read_bytes()
    index = load_pack_index(index_path, ObjectFormat.SHA1.dulwich)
    index.check()
    index.close()
