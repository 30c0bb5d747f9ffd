"""ReplacePacks and Prune: what they are refused for, what they leave, what files they move."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from support.state_log import (
    REPOSITORY,
    Log,
    Machine,
    RecordingFiles,
    pack,
    pruning,
    replacement,
    result_of,
    transaction,
    update,
)

from quorepo.cluster.apply import DiskActions
from quorepo.cluster.gate import pack_needs
from quorepo.cluster.raft.interface import Entry
from quorepo.cluster.state.store import StateStore
from quorepo.internal.v1 import log_pb2
from quorepo.storage import failpoints
from quorepo.storage.errors import FatalError
from quorepo.storage.layout import GroupLayout, held_packs, repository_packs, retired_packs

MAIN = "refs/heads/main"
CHANGED = log_pb2.REJECTION_REASON_PACKS_CHANGED
INVALID = log_pb2.REJECTION_REASON_INVALID


def pushed(machine: Machine, count: int) -> None:
    for number in range(1, count + 1):
        machine.push(update(MAIN, number, number - 1), packs=[pack(number)])


def digests(machine: Machine) -> list[bytes]:
    rows = machine.connection.execute("SELECT digest FROM packs ORDER BY added_counter, digest")
    return [digest for (digest,) in rows]


def test_replacement_changes_packs_and_the_revision_and_nothing_else() -> None:
    with Machine() as machine:
        pushed(machine, 3)
        before = machine.repository()
        applied = machine.apply(replacement([1, 2], [9]))
        assert result_of(applied).repository.revision.counter == 4
        assert digests(machine) == [pack(3).digest, pack(9).digest]
        assert machine.refs() == {"main": 3}
        after = machine.repository()
        assert after["checksum"] != before["checksum"]
        assert after["prune_epoch"] == before["prune_epoch"]
        assert [digest for _, digest, _ in applied.promote] == [pack(9).digest]
        assert applied.retire_packs == tuple((REPOSITORY, pack(n).digest) for n in (1, 2))


def test_stale_replacement_is_refused_as_a_whole() -> None:
    with Machine() as machine:
        pushed(machine, 3)
        machine.apply(replacement([1, 2], [9]))
        before = machine.export().split(b'["requests"')[0].split(b"\n", 1)[1]
        applied = machine.apply(replacement([3, 2], [10]))
        assert result_of(applied).rejection.reason == CHANGED
        assert (applied.promote, applied.retire_packs) == ((), ())
        assert machine.export().split(b'["requests"')[0].split(b"\n", 1)[1] == before


def test_pack_that_is_removed_and_added_stays() -> None:
    with Machine() as machine:
        pushed(machine, 3)
        applied = machine.apply(replacement([1, 2, 3], [2]))
        assert digests(machine) == [pack(2).digest]
        assert applied.retire_packs == tuple((REPOSITORY, pack(n).digest) for n in (1, 3))


def test_push_beside_a_replacement_keeps_its_pack() -> None:
    with Machine() as machine:
        pushed(machine, 2)
        machine.push(update(MAIN, 3, 2), packs=[pack(3)])
        machine.apply(replacement([1, 2], [9]))
        assert digests(machine) == [pack(3).digest, pack(9).digest]


def test_objects_keep_the_age_of_the_youngest_push_through_consolidations() -> None:
    with Machine() as machine:
        pushed(machine, 2)
        arrived = machine.connection.execute("SELECT max(arrived_ms) FROM packs").fetchone()[0]
        machine.log.now_ms += 60_000
        machine.apply(replacement([1, 2], [9]))
        machine.log.now_ms += 60_000
        machine.apply(replacement([9], [10]))
        rows = machine.connection.execute("SELECT digest, arrived_ms FROM packs").fetchall()
        assert rows == [(pack(10).digest, arrived)]


@pytest.mark.parametrize(
    "body",
    [
        replacement([], [9]),
        replacement([1], []),
        replacement([1, 1], [9]),
        replacement([1], [1]),
        replacement([1], [9, 9]),
        pruning([], [9], computed_from=2, before_ms=0),
        pruning([1], [9], computed_from=2, before_ms=0),  # younger than that
        pruning([1], [9], computed_from=2, before_ms=1 << 60),  # the future
    ],
)
def test_commands_that_contradict_themselves_are_refused(
    body: log_pb2.ReplacePacks | log_pb2.Prune,
) -> None:
    with Machine() as machine:
        pushed(machine, 2)
        assert machine.rejection(body) == INVALID


def test_prune_ends_the_epoch_and_pushes_verify_again() -> None:
    with Machine() as machine:
        pushed(machine, 2)
        machine.log.now_ms += 10
        now = machine.log.now_ms
        result = result_of(machine.apply(pruning([1, 2], [9], computed_from=2, before_ms=now)))
        assert result.repository.revision.counter == 3
        assert machine.repository()["prune_epoch"] == 1
        old = transaction(update(MAIN, 5, 2), packs=[pack(5)])
        assert machine.rejection(old) == log_pb2.REJECTION_REASON_REVERIFY
        machine.push(update(MAIN, 5, 2), packs=[pack(5)], prune_epoch=1)


def test_prune_is_refused_after_any_transaction_since_its_revision() -> None:
    with Machine() as machine:
        pushed(machine, 2)
        machine.log.now_ms += 10
        now = machine.log.now_ms
        machine.push(update("refs/heads/b", 1))
        assert machine.rejection(pruning([1], [9], computed_from=2, before_ms=now)) == CHANGED


def test_replacement_of_another_epoch_is_refused() -> None:
    with Machine() as machine:
        pushed(machine, 3)
        machine.log.now_ms += 10
        machine.apply(pruning([1], [9], computed_from=3, before_ms=machine.log.now_ms))
        assert machine.rejection(replacement([2, 3], [10])) == CHANGED
        assert machine.rejection(replacement([2, 3], [10], prune_epoch=1)) == 0


def test_unknown_deleted_and_other_format_are_told_apart() -> None:
    with Machine() as machine:
        body = replacement([1], [9])
        assert machine.rejection(body) == log_pb2.REJECTION_REASON_REPOSITORY_NOT_FOUND
        pushed(machine, 1)
        other = replacement([1], [9], object_format=log_pb2.OBJECT_FORMAT_SHA256)
        assert machine.rejection(other) == log_pb2.REJECTION_REASON_OBJECT_FORMAT
        machine.apply(log_pb2.DeleteRepository(repository_id=REPOSITORY))
        assert machine.rejection(body) == log_pb2.REJECTION_REASON_REPOSITORY_DELETED


# ---- files


def test_pack_that_the_same_batch_adds_again_stays(store: StateStore) -> None:
    log = Log()
    log.command(transaction(update(MAIN, 1), packs=[pack(1)]))
    log.command(replacement([1], [9]))
    log.command(transaction(update(MAIN, 2, 1), packs=[pack(1)]))
    files = RecordingFiles()
    store.apply_batch(log.entries, files)
    assert files.retired_packs == []
    log.command(replacement([1], [10]))
    store.apply_batch(log.entries, files)
    assert files.retired_packs == [(REPOSITORY, pack(1).digest)]


def stage(layout: GroupLayout, number: int) -> bytes:
    digest = pack(number).digest
    for path in layout.quarantine_paths(digest):
        path.write_bytes(b"%d" % number)
    return digest


def test_removed_pack_moves_to_retired_and_can_come_back(
    layout: GroupLayout, store: StateStore
) -> None:
    files = DiskActions(layout)
    first, merged, again = stage(layout, 1), stage(layout, 9), pack(10).digest
    log = Log()
    log.command(transaction(update(MAIN, 1), packs=[pack(1)]))
    log.command(replacement([1], [9]))
    store.apply_batch(log.entries, files)
    assert repository_packs(layout) == [(REPOSITORY, merged)]
    assert retired_packs(layout) == {first}
    assert held_packs(layout) == {first, merged}
    # The same bytes are pushed again: nothing was staged, the removed file serves.
    log.command(transaction(update(MAIN, 2, 1), packs=[pack(1)]))
    store.apply_batch(log.entries, files)
    assert (REPOSITORY, first) in repository_packs(layout)
    stage(layout, 10)
    log.command(replacement([1], [10]))
    store.apply_batch(log.entries, files)
    assert repository_packs(layout) == sorted([(REPOSITORY, merged), (REPOSITORY, again)])
    assert retired_packs(layout) == {first}


@pytest.mark.parametrize("failures", [1, 2, 3])
def test_crash_between_commit_and_retirement_is_repaired_by_the_next_start(
    layout: GroupLayout, store: StateStore, failures: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = DiskActions(layout)
    first, second, merged = stage(layout, 1), stage(layout, 2), stage(layout, 9)
    log = Log()
    log.command(transaction(update(MAIN, 1), packs=[pack(1), pack(2)]))
    log.command(replacement([1, 2], [9]))
    seen = 0

    def fail(name: str) -> None:
        nonlocal seen
        seen += name == "layout.retire_pack.before_rename"
        if seen == failures:
            raise KeyboardInterrupt

    monkeypatch.setattr("quorepo.storage.layout.failpoint", fail)
    with pytest.raises(KeyboardInterrupt):
        store.apply_batch(log.entries, files)
    monkeypatch.setattr("quorepo.storage.layout.failpoint", failpoints.failpoint)
    store.close()
    reopened = StateStore.open(layout)
    try:
        files.retire_removed(reopened.removed_packs())
    finally:
        reopened.close()
    assert repository_packs(layout) == [(REPOSITORY, merged)]
    assert retired_packs(layout) == {first, second}


def test_pack_of_two_repositories_leaves_only_the_one(
    layout: GroupLayout, store: StateStore
) -> None:
    files = DiskActions(layout)
    first, merged = stage(layout, 1), stage(layout, 9)
    log = Log()
    log.command(transaction(update(MAIN, 1), packs=[pack(1)]))
    log.command(transaction(update(MAIN, 1), packs=[pack(1)], repository_id="other"))
    log.command(replacement([1], [9]))
    store.apply_batch(log.entries, files)
    assert repository_packs(layout) == [("other", first), (REPOSITORY, merged)]
    log.command(replacement([1], [9], repository_id="other"))
    store.apply_batch(log.entries, files)
    assert repository_packs(layout) == [("other", merged), (REPOSITORY, merged)]
    assert retired_packs(layout) == {first}


def test_layout_of_an_older_version_gets_its_folder(layout: GroupLayout, store: StateStore) -> None:
    Path(layout.retired_pack_folder).rmdir()
    assert retired_packs(layout) == set()
    stage(layout, 1)
    stage(layout, 9)
    log = Log()
    log.command(transaction(update(MAIN, 1), packs=[pack(1)]))
    log.command(replacement([1], [9]))
    store.apply_batch(log.entries, DiskActions(layout))
    assert retired_packs(layout) == {pack(1).digest}


class Dies(Exception):
    """Stands for kill -9 at a failpoint."""


steps = st.lists(
    st.one_of(
        st.tuples(st.just("push"), st.integers(1, 6), st.integers(1, 6)),
        st.tuples(st.just("replace"), st.integers(1, 12), st.integers(7, 12)),
    ),
    min_size=1,
    max_size=12,
)


@settings(max_examples=20, deadline=None)
@given(planned=steps, batch=st.integers(1, 4), deaths=st.lists(st.integers(1, 40), max_size=4))
def test_folder_is_what_the_table_says_after_any_deaths(
    planned: list[tuple[str, int, int]], batch: int, deaths: list[int]
) -> None:
    """Entries in batches, dying at the nth failpoint again and again, replayed from where the
    state is: every pack of the table lies in the folder, every removed one in retired."""
    log = Log()
    for kind, first, second in planned:
        if kind == "push":
            packs = [pack(number) for number in sorted({first, second})]
            log.command(transaction(update(MAIN, first, any_old=True), packs=packs))
        else:
            log.command(replacement(sorted({first, second}), [second]))
    left = list(deaths)
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patches:
        layout = GroupLayout(Path(folder), 1)
        layout.create()
        countdown = 0

        def maybe_die(name: str) -> None:
            nonlocal countdown
            countdown -= 1
            if countdown == 0:
                raise Dies(name)

        patches.setattr("quorepo.storage.layout.failpoint", maybe_die)
        patches.setattr("quorepo.cluster.state.store.failpoint", maybe_die)
        while True:
            countdown = 0
            store = StateStore.open(layout)
            countdown = left.pop() if left else 0
            files = DiskActions(layout)
            try:
                files.retire_removed(store.removed_packs())
                while rest := log.entries[store.applied_index :]:
                    for entry in rest[:batch]:  # whoever has the log has the packs
                        for digest in added_by(entry) - held_packs(layout):
                            for path in layout.quarantine_paths(digest):
                                path.write_bytes(digest)
                    store.apply_batch(rest[:batch], files)
                break
            except (Dies, FatalError):
                continue  # the process is gone; the next one opens what it left
            finally:
                store.close()
        countdown = 0
        reopened = StateStore.open(layout)
        try:
            table = sorted(reopened.pack_digests())
            removed = set(reopened.removed_packs())
        finally:
            reopened.close()
        assert [digest for _, digest in repository_packs(layout)] == table
        assert removed <= retired_packs(layout)
        assert set(table) | removed <= held_packs(layout)


def added_by(entry: Entry) -> set[bytes]:
    return {need.digest for need in pack_needs(log_pb2.Command.FromString(entry.data))}
