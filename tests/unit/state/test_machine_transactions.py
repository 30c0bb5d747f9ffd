"""What a push does: verdicts per ref, refusals as a whole, revisions, packs, HEAD."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.state_log import (
    REPOSITORY,
    Machine,
    oid,
    pack,
    result_of,
    statuses,
    transaction,
    update,
)

from quorepo.internal.v1 import log_pb2
from quorepo.storage.objectformat import ObjectFormat

A, B, C = "refs/heads/a", "refs/heads/b", "refs/heads/c"


@pytest.fixture
def machine() -> Iterator[Machine]:
    with Machine() as machine:
        yield machine


@pytest.fixture
def seeded(machine: Machine) -> Machine:
    """Branches a=1, b=2, dir/x=3, dir/y=4."""
    result = machine.push(
        update(A, 1), update(B, 2), update("refs/heads/dir/x", 3), update("refs/heads/dir/y", 4)
    )
    assert statuses(result) == ["ok"] * 4
    return machine


# Updates -> verdicts, branches afterwards. `seeded` is the state before.
VERDICTS = [
    ("create", [update(C, 5)], ["ok"], {"c": 5}),
    ("update", [update(A, 5, 1)], ["ok"], {"a": 5}),
    ("delete", [update(A, 0, 1)], ["ok"], {"a": None}),
    ("unchanged", [update(A, 1, 1)], ["ok"], {}),
    ("delete of nothing", [update(C)], ["ok"], {}),
    ("any old value", [update(A, 9, any_old=True)], ["ok"], {"a": 9}),
    ("any old value, new ref", [update(C, 9, any_old=True)], ["ok"], {"c": 9}),
    ("any old value, delete", [update(A, any_old=True)], ["ok"], {"a": None}),
    ("any old value, delete of nothing", [update(C, any_old=True)], ["ok"], {}),
    ("stale", [update(A, 5, 2)], ["stale"], {}),
    ("exists already", [update(A, 5)], ["stale"], {}),
    ("is gone", [update(C, 5, 1)], ["stale"], {}),
    ("stale delete", [update(A, 0, 2)], ["stale"], {}),
    ("delete of what is gone", [update(C, 0, 1)], ["stale"], {}),
    ("one stale, one fine", [update(A, 5, 2), update(B, 6, 2)], ["stale", "ok"], {"b": 6}),
    ("invalid name", [update("refs/heads/x..y", 5)], ["invalid-name"], {}),
    ("not under refs/", [update("HEAD", 5)], ["invalid-name"], {}),
    ("child of a ref", [update("refs/heads/a/deep/er", 5)], ["name-conflict"], {}),
    ("parent of refs", [update("refs/heads/dir", 5)], ["name-conflict"], {}),
    ("neighbours", [update("refs/heads/a-b", 5), update("refs/heads/dir0", 6)], ["ok", "ok"],
     {"a-b": 5, "dir0": 6}),
    ("replace a by a/b", [update(A, 0, 1), update("refs/heads/a/b", 5)], ["ok", "ok"],
     {"a": None, "a/b": 5}),
    ("replace a by a/b, create first", [update("refs/heads/a/b", 5), update(A, 0, 1)],
     ["ok", "ok"], {"a": None, "a/b": 5}),
    ("replace dir/ by dir",
     [update("refs/heads/dir", 5), update("refs/heads/dir/x", 0, 3),
      update("refs/heads/dir/y", 0, 4)],
     ["ok", "ok", "ok"], {"dir": 5, "dir/x": None, "dir/y": None}),
    ("half of dir/ stays",
     [update("refs/heads/dir", 5), update("refs/heads/dir/x", 0, 3)],
     ["name-conflict", "ok"], {"dir/x": None}),
    ("stale delete frees no name", [update(A, 0, 2), update("refs/heads/a/b", 5)],
     ["stale", "name-conflict"], {}),
    ("two new ones, parent first", [update(C, 5), update("refs/heads/c/d", 6)],
     ["ok", "name-conflict"], {"c": 5}),
    ("two new ones, child first", [update("refs/heads/c/d/e", 6), update(C, 5)],
     ["ok", "name-conflict"], {"c/d/e": 6}),
    ("a refused one takes no name",
     [update("refs/heads/a/b", 5), update("refs/heads/c/d", 6, 1), update(C, 7)],
     ["name-conflict", "stale", "ok"], {"c": 7}),
]  # fmt: skip


@pytest.mark.parametrize(
    ("updates", "verdicts", "changed"),
    [case[1:] for case in VERDICTS],
    ids=[case[0] for case in VERDICTS],
)
def test_each_ref_has_its_own_verdict(
    seeded: Machine,
    updates: list[log_pb2.RefUpdate],
    verdicts: list[str],
    changed: dict[str, int | None],
) -> None:
    before = seeded.refs()
    result = seeded.push(*updates)
    assert statuses(result) == verdicts
    assert [ref.name for ref in result.refs] == [each.name for each in updates]
    expected = {**before, **changed}
    assert seeded.refs() == {name: value for name, value in expected.items() if value}
    assert result.revision.counter == (2 if "ok" in verdicts else 1)


@pytest.mark.parametrize(
    ("updates", "verdicts", "changed"),
    [case[1:] for case in VERDICTS],
    ids=[case[0] for case in VERDICTS],
)
def test_atomic_is_all_or_nothing(
    seeded: Machine,
    updates: list[log_pb2.RefUpdate],
    verdicts: list[str],
    changed: dict[str, int | None],
) -> None:
    before = seeded.refs()
    result = seeded.push(*updates, atomic=True, packs=[pack(1)])
    if all(verdict == "ok" for verdict in verdicts):
        assert statuses(result) == verdicts
        expected = {**before, **changed}
        assert seeded.refs() == {name: value for name, value in expected.items() if value}
        return
    assert statuses(result) == [
        "atomic-aborted" if verdict == "ok" else verdict for verdict in verdicts
    ]
    assert seeded.refs() == before
    assert result.revision.counter == 1
    assert seeded.connection.execute("SELECT count(*) FROM packs").fetchone() == (0,)


def test_stale_and_conflict_say_with_what(seeded: Machine) -> None:
    stale, gone, below, above = seeded.push(
        update(A, 5, 2),
        update(C, 5, 1),
        update("refs/heads/b/b", 5),
        update("refs/heads/dir", 5),
    ).refs
    assert stale.actual_old_oid == oid(1)
    assert gone.actual_old_oid == b""
    assert below.conflicting_name == b"refs/heads/b"
    assert above.conflicting_name == b"refs/heads/dir/x"


def test_conflicts_stay_quick_among_100k_refs(machine: Machine) -> None:
    machine.push(update(A, 1))
    machine.connection.executemany(
        "INSERT INTO refs VALUES (?, ?, ?)",
        [(REPOSITORY, b"refs/heads/many/%06d" % number, oid(1)) for number in range(100_000)],
    )
    steps = 0

    def count() -> int:
        nonlocal steps
        steps += 1
        return 0

    machine.connection.set_progress_handler(count, 100)  # called every 100 steps of SQLite's VM
    result = machine.push(
        update("refs/heads/many", 2), update("refs/heads/many/000001/x", 2), update(B, 2)
    )
    machine.connection.set_progress_handler(None, 0)
    assert statuses(result) == ["name-conflict", "name-conflict", "ok"]
    assert steps < 50


# ---- refusals as a whole

SHA256 = log_pb2.OBJECT_FORMAT_SHA256
UNSPECIFIED = log_pb2.OBJECT_FORMAT_UNSPECIFIED
FILE = log_pb2.PACK_ENCODING_FILE
LONG = log_pb2.RefUpdate(name=A.encode(), new_oid=oid(5, 32), any_old=True)
LONG_OLD = log_pb2.RefUpdate(name=A.encode(), new_oid=oid(5), expected_old_oid=oid(1, 32))
ZERO = log_pb2.RefUpdate(name=A.encode(), new_oid=bytes(20), any_old=True)
BAD_DIGEST = log_pb2.PackAddition(digest=b"short", index_digest=bytes(32), encoding=FILE)
NO_ENCODING = log_pb2.PackAddition(digest=bytes(32), index_digest=bytes(32))
HUGE = log_pb2.PackAddition(
    digest=bytes(32), index_digest=bytes(32), encoding=FILE, pack_bytes=2**64 - 1
)

REFUSALS = [
    ("no update at all", transaction(), "INVALID"),
    ("a ref twice", transaction(update(A, 5, 1), update(A, 6, 1)), "INVALID"),
    ("the zero id", transaction(ZERO), "INVALID"),
    ("another prune epoch", transaction(update(A, 5, 1), prune_epoch=7), "REVERIFY"),
    ("another object format", transaction(update(A, 5, 1), object_format=SHA256), "OBJECT_FORMAT"),
    ("a long object id", transaction(LONG), "OBJECT_FORMAT"),
    ("a long old object id", transaction(LONG_OLD), "OBJECT_FORMAT"),
    ("a pack twice", transaction(update(A, 5, 1), packs=[pack(1), pack(1)]), "INVALID"),
    ("a short digest", transaction(update(A, 5, 1), packs=[BAD_DIGEST]), "INVALID"),
    ("no encoding", transaction(update(A, 5, 1), packs=[NO_ENCODING]), "INVALID"),
    ("a huge pack", transaction(update(A, 5, 1), packs=[HUGE]), "INVALID"),
    ("unknown", transaction(update(A, 5), repository_id="x", create=False), "REPOSITORY_NOT_FOUND"),
    ("unknown format", transaction(update(A, 5), repository_id="x", object_format=UNSPECIFIED),
     "OBJECT_FORMAT"),
    ("a path for an id", transaction(update(A, 5), repository_id="../x"), "INVALID"),
    ("no id", transaction(update(A, 5), repository_id=""), "INVALID"),
    ("epoch comes before format", transaction(LONG, prune_epoch=7), "REVERIFY"),
    ("format comes before duplicates", transaction(LONG, LONG), "OBJECT_FORMAT"),
]  # fmt: skip


@pytest.mark.parametrize(
    ("body", "reason"), [case[1:] for case in REFUSALS], ids=[case[0] for case in REFUSALS]
)
def test_refused_transaction_changes_nothing(
    seeded: Machine, body: log_pb2.Transaction, reason: str
) -> None:
    before = seeded.refs(), seeded.repository()
    applied = seeded.apply(body)
    rejected = result_of(applied).rejection
    assert log_pb2.RejectionReason.Name(rejected.reason) == f"REJECTION_REASON_{reason}"
    assert rejected.message
    assert applied.promote == ()
    assert (seeded.refs(), seeded.repository()) == before
    assert seeded.connection.execute("SELECT count(*) FROM packs").fetchone() == (0,)
    assert seeded.connection.execute("SELECT count(*) FROM repositories").fetchone() == (1,)


def test_deleting_refs_needs_no_prune_epoch(seeded: Machine) -> None:
    assert statuses(seeded.push(update(A, 0, 1), prune_epoch=7)) == ["ok"]


# ---- effects


def test_push_creates_the_repository_with_its_packs(machine: Machine) -> None:
    applied = machine.apply(transaction(update(A, 1), packs=[pack(1), pack(2)]))
    result = result_of(applied).transaction
    assert result.created
    assert (result.revision.incarnation, result.revision.counter) == (1, 1)
    assert applied.promote == tuple(
        (REPOSITORY, pack(number).digest, ObjectFormat.SHA1) for number in (1, 2)
    )
    assert not machine.push(update(A, 2, 1)).created


def test_a_transaction_that_must_create_does_not_touch_what_is_there(seeded: Machine) -> None:
    """An import beside a push that made the repository a moment before."""
    before, refs = seeded.repository(), seeded.refs()
    refused = seeded.rejection(transaction(update(C, 5), must_create=True))
    assert refused == log_pb2.REJECTION_REASON_REPOSITORY_EXISTS
    assert (seeded.repository(), seeded.refs()) == (before, refs)
    made = seeded.apply(transaction(update(C, 5), repository_id="r9", must_create=True))
    assert result_of(made).transaction.created


def test_a_transaction_that_creates_may_say_where_head_points(machine: Machine) -> None:
    machine.push(update(A, 1), update(B, 2), head=B.encode())
    assert machine.repository()["head"] == B.encode()
    refused = machine.rejection(transaction(update(A, 1), repository_id="r9", head=b"refs/tags/x"))
    assert refused == log_pb2.REJECTION_REASON_INVALID


def test_sha256_repository_takes_long_ids_only(machine: Machine) -> None:
    assert machine.rejection(transaction(update(A, 1), object_format=SHA256))
    created = machine.apply(transaction(LONG, packs=[pack(1)], object_format=SHA256))
    assert result_of(created).transaction.created
    assert created.promote[0][2] is ObjectFormat.SHA256
    assert machine.rejection(transaction(update(B, 1), object_format=UNSPECIFIED))


@pytest.mark.parametrize("updates", [[update(A, 5, 1)], [update(A)], [update("refs/x", 1)]])
def test_push_that_sets_no_ref_creates_no_repository(
    machine: Machine, updates: list[log_pb2.RefUpdate]
) -> None:
    applied = machine.apply(transaction(*updates, packs=[pack(1)]))
    result = result_of(applied).transaction
    assert not result.created
    assert result.revision == log_pb2.Revision()
    assert applied.promote == ()
    assert machine.repository() == {}


def test_pack_is_added_once(seeded: Machine) -> None:
    seeded.push(update(A, 5, 1), packs=[pack(1)])
    applied = seeded.apply(transaction(update(A, 6, 5), packs=[pack(1), pack(2)]))
    # Promoting again is harmless, and empties quarantine of a second copy.
    assert [digest for _, digest, _ in applied.promote] == [pack(1).digest, pack(2).digest]
    rows = seeded.connection.execute("SELECT digest, added_counter FROM packs ORDER BY 2")
    assert rows.fetchall() == [(pack(1).digest, 2), (pack(2).digest, 3)]


def test_history_names_who_moved_what_when(seeded: Machine) -> None:
    seeded.push(update(A, 5, 1), update(B, 0, 2), update(C), update("refs/heads/dir/x", 9, 8))
    rows = seeded.connection.execute(
        "SELECT name, old_oid, new_oid FROM ref_changes WHERE counter = 2 ORDER BY position"
    ).fetchall()
    assert rows == [(A.encode(), oid(1), oid(5)), (B.encode(), oid(2), None)]
    row = seeded.connection.execute(
        "SELECT kind, log_index, time_ms, actor FROM transactions WHERE counter = 2"
    ).fetchone()
    assert row == ("update", 2, seeded.log.entries[1].time_ms, "alice")


def test_checksum_covers_every_effect(seeded: Machine) -> None:
    seen = [seeded.repository()["checksum"]]
    for updates in ([update(A, 5, 1)], [update(A, 1, 5)], [update(A, 1, 1)], [update(A, 0, 1)]):
        seeded.push(*updates)
        seen.append(seeded.repository()["checksum"])
    assert len(dict.fromkeys(seen)) == len(seen)
    seeded.push(update(A, 5, 1))  # refused
    assert seeded.repository()["checksum"] == seen[-1]


# ---- HEAD


@pytest.mark.parametrize(
    ("names", "head"),
    [
        (["refs/heads/dev", "refs/heads/master", "refs/heads/main"], "refs/heads/main"),
        (["refs/heads/dev", "refs/heads/master"], "refs/heads/master"),
        (["refs/tags/v1", "refs/heads/z", "refs/heads/b"], "refs/heads/z"),
        (["refs/tags/v1"], "refs/heads/main"),
    ],
)
def test_first_branches_decide_head(machine: Machine, names: list[str], head: str) -> None:
    machine.push(*[update(name, 1) for name in names])
    assert machine.repository()["head"] == head.encode()


def test_head_stays_once_decided(machine: Machine) -> None:
    machine.push(update("refs/tags/v1", 1))
    machine.push(update(B, 1))
    machine.push(update("refs/heads/main", 1))
    assert machine.repository()["head"] == B.encode()
    machine.push(update(B, 0, 1))  # HEAD's branch may go
    machine.push(update(C, 1))
    assert machine.repository()["head"] == B.encode()


def test_refused_branch_does_not_decide_head(machine: Machine) -> None:
    machine.push(update("refs/heads/main", 1, 9), update(B, 1))
    assert machine.repository()["head"] == B.encode()
