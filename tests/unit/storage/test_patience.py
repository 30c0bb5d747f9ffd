"""What a thread that others wait for does not read."""

from __future__ import annotations

import functools
import threading
from pathlib import Path

import pytest
from support.packing import PackStore, PackWriter, copy, delta

from quorepo.storage.git.commit_graph import commit_graphs
from quorepo.storage.objectformat import ObjectFormat
from quorepo.storage.packfile import BLOB
from quorepo.storage.packs import PackSet
from quorepo.storage.patience import Patience, TooMuchWork, at_once, charge, give_up, is_limited

SMALL = b"small" * 200
LARGE = bytes(100_000)
GROWN = SMALL * 200


@pytest.fixture
def objects(tmp_path: Path) -> PackSet:
    """A small blob, a large one, and one that a short delta makes of the small one."""
    store = PackStore(tmp_path, ObjectFormat.SHA1)
    writer = PackWriter()
    base = writer.whole(BLOB, SMALL)
    writer.whole(BLOB, LARGE)
    writer.ofs_delta(base, delta(len(SMALL), len(GROWN), *[copy(0, len(SMALL))] * 200))
    store.add(writer.finish())
    return store.packs


def oid_of(content: bytes) -> bytes:
    return ObjectFormat.SHA1.object_id(b"blob", content)


def test_only_the_thread_that_asked_is_limited() -> None:
    def elsewhere() -> None:
        seen.append(is_limited())
        charge(1 << 40)
        give_up()

    def work() -> None:
        assert is_limited()
        thread = threading.Thread(target=elsewhere)
        thread.start()
        thread.join()

    seen: list[bool] = []
    at_once(work, Patience(1, 1))
    assert seen == [False]
    assert not is_limited()
    elsewhere()


def test_what_has_to_be_opened_first_is_left_to_a_thread(objects: PackSet) -> None:
    with pytest.raises(TooMuchWork):
        at_once(lambda: objects.get(oid_of(SMALL)), Patience(10, 1 << 20))
    with pytest.raises(TooMuchWork):
        at_once(lambda: commit_graphs(objects), Patience(10, 1 << 20))
    objects.get(oid_of(SMALL))
    commit_graphs(objects)
    assert at_once(lambda: objects.get(oid_of(SMALL)), Patience(10, 1 << 20)) == (BLOB, SMALL)
    at_once(lambda: commit_graphs(objects), Patience(10, 1 << 20))


def test_large_objects_and_many_objects_are_left_to_a_thread(objects: PackSet) -> None:
    large, grown = oid_of(LARGE), oid_of(GROWN)
    objects.get(oid_of(SMALL))
    for name in (large, grown):
        with pytest.raises(TooMuchWork):
            at_once(functools.partial(objects.get, name), Patience(10, 99_999))
    assert at_once(lambda: objects.get(large), Patience(10, 300_000))[1] == LARGE
    assert objects.get(grown)[1] == GROWN
    with pytest.raises(TooMuchWork):  # also when they are at hand: whoever gets them reads them
        at_once(lambda: objects.get(large), Patience(10, 99_999))

    def many() -> None:
        for _ in range(4):
            objects.get(oid_of(SMALL))

    at_once(many, Patience(4, 10_000))
    with pytest.raises(TooMuchWork):
        at_once(many, Patience(3, 10_000))
