"""Readers: pages, prefixes, one committed moment per call, also beside a busy writer."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import pytest
from support.state_log import (
    REPOSITORY,
    Log,
    RecordingFiles,
    oid,
    pack,
    request_id,
    transaction,
    update,
)

from quorepo.cluster.state.reader import StateReader
from quorepo.cluster.state.rows import RefRow
from quorepo.cluster.state.store import StateStore
from quorepo.internal.v1 import log_pb2
from quorepo.storage.errors import FatalError, NotFound, Unavailable
from quorepo.storage.layout import GroupLayout
from quorepo.storage.objectformat import ObjectFormat

MAIN = "refs/heads/main"


class Writer:
    """A store and its log."""

    def __init__(self, store: StateStore) -> None:
        self.store = store
        self.log = Log(store.group)

    def apply(self, *bodies: object, **arguments: int) -> None:
        entries = [self.log.command(body, **arguments) for body in bodies]  # type: ignore[arg-type]
        self.store.apply_batch(entries, RecordingFiles())


@pytest.fixture
def writer(store: StateStore) -> Writer:
    return Writer(store)


@pytest.fixture
def directory(layout: GroupLayout) -> Iterator[tuple[Writer, StateReader]]:
    layout = GroupLayout(layout.data_dir, 0)
    layout.create()
    store = StateStore.open(layout)
    reader = StateReader(layout)
    yield Writer(store), reader
    reader.close()
    store.close()


def test_no_state_yet_is_unavailable(layout: GroupLayout, reader: StateReader) -> None:
    with pytest.raises(Unavailable, match="no state of group 1"):
        reader.applied_index()


def test_repository_is_read_with_all_it_has(writer: Writer, reader: StateReader) -> None:
    writer.apply(
        transaction(update(MAIN, 1), update("refs/tags/v1", 2), packs=[pack(1)]),
        transaction(update(MAIN, 3, 1), packs=[pack(2)]),
    )
    row = reader.repository(REPOSITORY)
    assert row is not None
    assert (row.revision, row.object_format, row.head) == ((1, 2), ObjectFormat.SHA1, MAIN.encode())
    assert (row.prune_epoch, len(row.checksum), row.deleted) == (0, 32, False)
    snapshot = reader.snapshot(REPOSITORY)
    assert snapshot.repository == row
    assert snapshot.refs == [RefRow(MAIN.encode(), oid(3)), RefRow(b"refs/tags/v1", oid(2))]
    assert snapshot.refs == reader.refs(REPOSITORY)
    assert [each.digest for each in snapshot.packs] == [pack(1).digest, pack(2).digest]
    assert snapshot.packs == reader.packs(REPOSITORY)
    first = snapshot.packs[0]
    wanted = pack(1)
    assert (first.index_digest, first.pack_bytes, first.index_bytes, first.object_count) == (
        wanted.index_digest,
        wanted.pack_bytes,
        wanted.index_bytes,
        wanted.object_count,
    )
    assert (first.thin_bytes, first.thin_object_count, first.added_counter) == (500, 2, 1)
    assert (snapshot.generation, snapshot.applied_index) == (1, 2) == reader.applied()
    assert reader.ref(REPOSITORY, MAIN.encode()) == RefRow(MAIN.encode(), oid(3))
    assert reader.ref(REPOSITORY, b"refs/heads/none") is None


def test_unknown_and_deleted_repositories(writer: Writer, reader: StateReader) -> None:
    writer.apply(
        transaction(update(MAIN, 1), packs=[pack(1)]),
        log_pb2.DeleteRepository(repository_id=REPOSITORY),
    )
    row = reader.repository(REPOSITORY)
    assert row is not None
    assert row.deleted
    assert reader.repository("unknown") is None
    for repository_id in (REPOSITORY, "unknown"):
        with pytest.raises(NotFound):
            reader.snapshot(repository_id)
        assert reader.refs(repository_id) == []
        assert reader.packs(repository_id) == []
        assert reader.ref(repository_id, MAIN.encode()) is None
    assert [change.new_oid for change in reader.ref_changes(REPOSITORY)] == [oid(1)]


def test_ref_changes_tell_who_and_when(writer: Writer, reader: StateReader) -> None:
    writer.apply(transaction(update(MAIN, 1)), transaction(update(MAIN, 0, 1)))
    first, second = reader.ref_changes(REPOSITORY)
    assert (first.counter, first.log_index, first.actor) == (1, 1, "alice")
    assert (first.old_oid, first.new_oid) == (None, oid(1))
    assert (second.old_oid, second.new_oid) == (oid(1), None)
    assert second.time_ms == writer.log.entries[1].time_ms
    assert reader.ref_changes(REPOSITORY, after_counter=1) == [second]


def test_pages_are_stable_under_writes(writer: Writer, reader: StateReader) -> None:
    names = [f"refs/heads/{number:03}" for number in range(50)]
    writer.apply(transaction(*[update(name, 1) for name in names]))
    seen: list[bytes] = []
    after = b""
    while page := reader.refs(REPOSITORY, after=after, limit=7):
        seen += [ref.name for ref in page]
        after = page[-1].name
        # Behind and before the cursor something comes and goes.
        number = len(seen)
        writer.apply(
            transaction(update(f"refs/heads/000-{number}", 1)),
            transaction(update(f"refs/heads/zzz-{number}", 1), update(MAIN, number, any_old=True)),
        )
        if number > 300:
            break
    old = [name for name in seen if name.decode() in names]
    assert old == [name.encode() for name in names]
    assert seen == sorted(dict.fromkeys(seen))


def test_prefix_and_after_bound_the_list(writer: Writer, reader: StateReader) -> None:
    names = ["refs/heads/a", "refs/heads/b/x", "refs/heads/b/y", "refs/heads/b0", "refs/tags/b"]
    writer.apply(transaction(*[update(name, 1) for name in names]))

    def listed(prefix: bytes = b"", after: bytes = b"", limit: int | None = None) -> list[str]:
        return [ref.name.decode() for ref in reader.refs(REPOSITORY, prefix, after, limit)]

    assert listed() == names
    assert listed(b"refs/heads/b/") == names[1:3]
    assert listed(b"refs/heads/b") == names[1:4]
    assert listed(b"refs/heads/b", b"refs/heads/b/x") == names[2:4]
    assert listed(b"refs/heads/b", b"refs/a") == names[1:4]
    assert listed(b"refs/heads/b", b"refs/z") == []
    assert listed(b"refs/", limit=2) == names[:2]
    assert listed(b"", b"refs/heads/b0") == names[4:]
    assert listed(b"\xff\xff") == []
    assert listed(limit=0) == []


def test_repositories_page_by_id(writer: Writer, reader: StateReader) -> None:
    for repository_id in ("a", "b", "c"):
        writer.apply(transaction(update(MAIN, 1), repository_id=repository_id))
    writer.apply(log_pb2.DeleteRepository(repository_id="b"))
    rows = reader.repositories(limit=2)
    assert [(row.repository_id, row.deleted) for row in rows] == [("a", False), ("b", True)]
    assert [row.repository_id for row in reader.repositories(after="b")] == ["c"]


def test_answers_are_found_by_request_id(writer: Writer, reader: StateReader) -> None:
    writer.apply(transaction(update(MAIN, 1)), request=7)
    found = reader.result_of(request_id(7))
    assert found is not None
    assert found.transaction.created
    assert reader.result_of(request_id(7), REPOSITORY) == found
    assert reader.result_of(request_id(7), "other") is None
    assert reader.result_of(request_id(8)) is None


def test_configuration_is_the_newest_applied_one(writer: Writer, reader: StateReader) -> None:
    writer.apply(transaction(update(MAIN, 1)))
    assert reader.configuration() is None
    configuration = log_pb2.Configuration(replicas=[log_pb2.Replica(replica_id="n1@d")])
    entry = writer.log.configuration(configuration)
    writer.store.apply_batch([entry], RecordingFiles())
    assert reader.configuration() == configuration


# ---- the directory


def test_paths_by_prefix_in_byte_order(directory: tuple[Writer, StateReader]) -> None:
    writer, reader = directory
    paths = ["a", "team", "team/app", "team/zoo", "team\U0010ffff/x", "teams", "é"]
    for number, path in enumerate(paths):
        writer.apply(log_pb2.ReservePath(path=path, repository_id=f"id{number}", group=1))
    ordered = sorted(paths, key=str.encode)
    assert [row.path for row in reader.paths()] == ordered
    assert [row.path for row in reader.paths(prefix="team/")] == ["team/app", "team/zoo"]
    assert [row.path for row in reader.paths(prefix="team")] == [
        path for path in ordered if path.startswith("team")
    ]
    assert [row.path for row in reader.paths(after="team", limit=2)] == ["team/app", "team/zoo"]
    assert [row.path for row in reader.paths(after="team/app", prefix="team/")] == ["team/zoo"]
    row = reader.path("team/app")
    assert row is not None
    assert (row.repository_id, row.group) == ("id2", 1)
    assert reader.path("team/none") is None
    assert reader.paths_of("id2") == [row]


def test_nodes_by_name(directory: tuple[Writer, StateReader]) -> None:
    writer, reader = directory
    for name in ("n2", "n1"):
        writer.apply(
            log_pb2.RegisterNode(
                name=name,
                replica_id=f"{name}@d",
                peer_address="127.0.0.1:1",
                http_url="http://127.0.0.1:2",
                grpc_address="127.0.0.1:3",
                metrics_url="http://127.0.0.1:4/metrics",
                version="0.1.0",
            )
        )
    first, second = reader.nodes()
    assert (first.name, second.name) == ("n1", "n2")
    assert first.replica_id == "n1@d"
    assert (first.peer_address, first.grpc_address) == ("127.0.0.1:1", "127.0.0.1:3")
    assert (first.http_url, first.metrics_url) == (
        "http://127.0.0.1:2",
        "http://127.0.0.1:4/metrics",
    )
    assert (first.version, first.registered_ms) == ("0.1.0", writer.log.entries[1].time_ms)


# ---- beside a writer


def test_readers_see_committed_batches_only(writer: Writer, reader: StateReader) -> None:
    """Each batch moves two refs together and adds a pack; a reader never sees half of one."""
    done = threading.Event()
    failures: list[str] = []
    reads = 0

    def read() -> None:
        nonlocal reads
        last = 0
        while not done.is_set():
            try:
                snapshot = reader.snapshot(REPOSITORY)
            except NotFound:
                continue
            values = [ref.oid for ref in snapshot.refs]
            counter = snapshot.repository.counter
            if values[0] != values[1] or len(snapshot.packs) != counter or counter % 3:
                failures.append(f"half a batch at {counter}: {values}, {len(snapshot.packs)}")
            if snapshot.applied_index < last:
                failures.append(f"index went back from {last} to {snapshot.applied_index}")
            last = snapshot.applied_index
            reads += 1

    threads = [threading.Thread(target=read) for _ in range(3)]
    for thread in threads:
        thread.start()
    try:
        for number in range(1, 120, 3):
            writer.apply(
                *[
                    transaction(
                        update("refs/heads/a", number + step, any_old=True),
                        update("refs/heads/b", number + step, any_old=True),
                        packs=[pack(number + step)],
                    )
                    for step in range(3)
                ]
            )
    finally:
        done.set()
        for thread in threads:
            thread.join()
    assert failures == []
    assert reads > 0


def test_reader_holds_nothing_between_calls(writer: Writer, reader: StateReader) -> None:
    """A held read transaction would keep the write-ahead log from being reset."""
    writer.apply(transaction(update(MAIN, 1)))
    rows = reader.refs(REPOSITORY)
    busy, _, _ = writer.store._connection.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchone()
    assert busy == 0
    assert rows


def test_reader_cannot_write(writer: Writer, reader: StateReader) -> None:
    writer.apply(transaction(update(MAIN, 1)))
    with pytest.raises(FatalError, match="readonly"), reader._reading() as (_, connection):
        connection.execute("DELETE FROM refs")


def test_reader_goes_on_after_its_writer_is_gone(writer: Writer, reader: StateReader) -> None:
    writer.apply(transaction(update(MAIN, 1)))
    assert reader.applied_index() == 1
    writer.store.close()
    assert [ref.oid for ref in reader.refs(REPOSITORY)] == [oid(1)]


def test_ten_thousand_refs_are_listed_quickly(writer: Writer, reader: StateReader) -> None:
    writer.apply(transaction(*[update(f"refs/heads/{n:05}", n + 1) for n in range(10_000)]))
    best = min(_seconds(reader) for _ in range(5))
    assert best < 0.2  # about 0.01 on an idle core; dulwich's loose refs took 2.7


def _seconds(reader: StateReader) -> float:
    started = time.perf_counter()
    assert len(reader.refs(REPOSITORY)) == 10_000
    return time.perf_counter() - started


def test_use_of_packs_is_counted_for_living_repositories(
    writer: Writer, reader: StateReader
) -> None:
    for repository_id, count in (("a" * 32, 3), ("b" * 32, 1), ("c" * 32, 2), ("d" * 32, 2)):
        for number in range(count):
            updates = update(f"refs/heads/{number}", 1)
            writer.apply(transaction(updates, repository_id=repository_id, packs=[pack(number)]))
    writer.apply(log_pb2.DeleteRepository(repository_id="c" * 32))
    found = reader.pack_use()
    assert [(use.repository_id[0], use.pack_count) for use in found] == [("a", 3), ("d", 2)]
    assert found[0].pack_bytes == 1000 + 1001 + 1002
    assert found[0].repeated_bytes == 3 * (500 - 32) + 3
    assert reader.pack_use(packs_min=3) == found[:1]
    assert reader.pack_use(after="a" * 32) == found[1:]
    assert reader.pack_use(limit=1) == found[:1]


def test_roots_of_a_prune_are_those_of_one_moment(writer: Writer, reader: StateReader) -> None:
    assert reader.prune_roots(REPOSITORY, 0) is None
    writer.apply(transaction(update(MAIN, 1), packs=[pack(1)]))
    writer.log.now_ms += 1000
    writer.apply(transaction(update(MAIN, 2, 1), packs=[pack(2)]))
    middle_ms = reader.log_time_ms()
    writer.log.now_ms += 1000
    writer.apply(transaction(update(MAIN, 3, 2), update("refs/heads/b", 3)))
    roots = reader.prune_roots(REPOSITORY, 0)
    assert roots is not None
    assert (roots.counter, roots.deleted) == (3, False)
    assert (roots.tips, roots.recent) == ((oid(3),), (oid(1), oid(2)))
    assert roots.packs == (pack(1).digest, pack(2).digest)
    for since_ms, recent in ((middle_ms, (oid(1), oid(2))), (middle_ms + 1, (oid(2),))):
        roots = reader.prune_roots(REPOSITORY, since_ms)
        assert roots is not None
        assert roots.recent == recent
    writer.apply(log_pb2.DeleteRepository(repository_id=REPOSITORY))
    roots = reader.prune_roots(REPOSITORY, 0)
    assert roots is not None
    assert roots.deleted


def test_changes_are_those_since_a_revision_of_the_same_state(
    writer: Writer, reader: StateReader
) -> None:
    writer.apply(
        transaction(update(MAIN, 1), update("refs/tags/v1", 2), packs=[pack(1)]),
        transaction(update(MAIN, 3, 1), packs=[pack(2)]),
        transaction(update("refs/tags/v1", 0, 2), update("refs/heads/new", 3)),
    )
    generation = reader.snapshot(REPOSITORY).generation
    since = reader.changes_since(REPOSITORY, (1, 1), generation, 3)
    assert since is not None
    assert since.refs == {MAIN.encode(): oid(3), b"refs/tags/v1": None, b"refs/heads/new": oid(3)}
    assert since.repository == reader.repository(REPOSITORY)
    assert since.packs == reader.packs(REPOSITORY)
    nothing = reader.changes_since(REPOSITORY, (1, 3), generation, 3)
    assert nothing is not None
    assert nothing.refs == {}
    for revision, other_generation, changes_max in (
        ((1, 1), generation, 2),  # too many
        ((1, 4), generation, 3),  # newer than this state
        ((2, 1), generation, 3),  # another incarnation
        ((1, 1), generation + 1, 3),  # another state file
    ):
        assert reader.changes_since(REPOSITORY, revision, other_generation, changes_max) is None
    assert reader.changes_since("unknown", (1, 1), generation, 3) is None
    writer.apply(log_pb2.DeleteRepository(repository_id=REPOSITORY))
    assert reader.changes_since(REPOSITORY, (1, 1), generation, 3) is None
