"""Repositories as a whole, the directory, and how entries follow one another."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import pytest
from support.state_log import REPOSITORY, Machine, command, pack, result_of, transaction, update

from quorepo.cluster.state.commands import check_command
from quorepo.cluster.state.machine import Position, load_position
from quorepo.internal.v1 import log_pb2
from quorepo.storage.errors import FatalError, InvalidArgument

SHA1 = log_pb2.OBJECT_FORMAT_SHA1
MAIN = "refs/heads/main"


@pytest.fixture
def machine() -> Iterator[Machine]:
    with Machine() as machine:
        yield machine


@pytest.fixture
def directory() -> Iterator[Machine]:
    with Machine(group=0) as machine:
        yield machine


def create(branch: bytes = b"", object_format: int = SHA1) -> log_pb2.CreateRepository:
    return log_pb2.CreateRepository(
        repository_id=REPOSITORY,
        object_format=object_format,  # type: ignore[arg-type]
        default_branch=branch,
    )


DELETE = log_pb2.DeleteRepository(repository_id=REPOSITORY)


# ---- create, delete


def test_created_repository_is_at_revision_zero_with_head_main(machine: Machine) -> None:
    result = result_of(machine.apply(create())).repository
    assert result.repository_id == REPOSITORY
    assert (result.revision.incarnation, result.revision.counter) == (1, 0)
    assert machine.repository()["head"] == b"refs/heads/main"
    assert machine.rejection(create()) == log_pb2.REJECTION_REASON_REPOSITORY_EXISTS


def test_head_follows_first_push_unless_a_branch_was_named(machine: Machine) -> None:
    machine.apply(create())
    machine.push(update("refs/heads/dev", 1))
    assert machine.repository()["head"] == b"refs/heads/dev"
    with Machine() as other:
        other.apply(create(b"refs/heads/trunk"))
        other.push(update("refs/heads/dev", 1))
        assert other.repository()["head"] == b"refs/heads/trunk"


@pytest.mark.parametrize("branch", [b"main", b"refs/tags/v1", b"refs/heads/a..b"])
def test_default_branch_has_to_be_a_branch(machine: Machine, branch: bytes) -> None:
    assert machine.rejection(create(branch)) == log_pb2.REJECTION_REASON_INVALID
    assert machine.repository() == {}


@pytest.mark.parametrize("object_format", [0, 3])
def test_unknown_object_format_is_refused(machine: Machine, object_format: int) -> None:
    refused = machine.rejection(create(object_format=object_format))
    assert refused == log_pb2.REJECTION_REASON_OBJECT_FORMAT


def test_deleted_repository_stays_deleted(machine: Machine) -> None:
    assert machine.rejection(DELETE) == log_pb2.REJECTION_REASON_REPOSITORY_NOT_FOUND
    machine.push(update(MAIN, 1), packs=[pack(1)])
    applied = machine.apply(DELETE)
    assert applied.retire == (REPOSITORY,)
    assert result_of(applied).repository.revision.counter == 2
    for body in (create(), DELETE, transaction(update(MAIN, 2, 1))):
        refused = machine.apply(body)
        reason = result_of(refused).rejection.reason
        assert reason == log_pb2.REJECTION_REASON_REPOSITORY_DELETED
        assert (refused.promote, refused.retire) == ((), ())
    assert machine.repository()["counter"] == 2


# ---- the directory


def reserve(path: str, repository_id: str = "a1", group: int = 1) -> log_pb2.ReservePath:
    return log_pb2.ReservePath(path=path, repository_id=repository_id, group=group)


def test_path_belongs_to_who_came_first(directory: Machine) -> None:
    first = result_of(directory.apply(reserve("team/app", "a1"))).path
    second = result_of(directory.apply(reserve("team/app", "b2", group=2))).path
    assert (first.created, first.repository_id, first.group) == (True, "a1", 1)
    assert (second.created, second.repository_id, second.group) == (False, "a1", 1)
    assert result_of(directory.apply(reserve("team", "c3"))).path.created


def test_path_is_released_by_its_repository_only(directory: Machine) -> None:
    def release(repository_id: str) -> log_pb2.ReleasePath:
        return log_pb2.ReleasePath(path="app", repository_id=repository_id)

    missing = log_pb2.REJECTION_REASON_PATH_NOT_FOUND
    assert directory.rejection(release("a1")) == missing
    directory.apply(reserve("app", "a1"))
    assert directory.rejection(release("b2")) == missing
    assert result_of(directory.apply(release("a1"))).path.repository_id == "a1"
    assert directory.rejection(release("a1")) == missing
    assert result_of(directory.apply(reserve("app", "b2"))).path.created


@pytest.mark.parametrize("body", [reserve(""), reserve("a", ""), reserve("a", group=0)])
def test_incomplete_reservation_is_refused(directory: Machine, body: log_pb2.ReservePath) -> None:
    assert directory.rejection(body) == log_pb2.REJECTION_REASON_INVALID


def test_newest_registration_of_a_node_stands(directory: Machine) -> None:
    for url in ("http://127.0.0.1:1", "http://127.0.0.1:2"):
        body = log_pb2.RegisterNode(name="n1", replica_id="n1@d", http_url=url)
        assert result_of(directory.apply(body)).node.name == "n1"
    rows = directory.connection.execute("SELECT name, http_url FROM nodes").fetchall()
    assert rows == [("n1", "http://127.0.0.1:2")]
    nameless = log_pb2.RegisterNode(replica_id="n1@d")
    assert directory.rejection(nameless) == log_pb2.REJECTION_REASON_INVALID


def test_commands_of_the_other_kind_of_group_are_refused(
    machine: Machine, directory: Machine
) -> None:
    assert machine.rejection(reserve("a")) == log_pb2.REJECTION_REASON_INVALID
    assert directory.rejection(create()) == log_pb2.REJECTION_REASON_INVALID


# ---- entries


def test_position_follows_the_log(machine: Machine) -> None:
    configuration = log_pb2.Configuration(
        replicas=[log_pb2.Replica(replica_id="n1@d", node="n1", votes=True)]
    )
    machine.apply_entry(machine.log.noop())
    machine.apply_entry(machine.log.configuration(configuration))
    entry = machine.log.noop(term=4)
    machine.apply_entry(entry)
    assert load_position(machine.connection) == Position(
        group=1,
        applied_index=3,
        applied_term=4,
        log_time_ms=entry.time_ms,
        configuration=configuration.SerializeToString(),
        configuration_index=2,
    )


def test_log_time_never_goes_back(machine: Machine) -> None:
    late = machine.log.noop()
    machine.apply_entry(late)
    machine.log.now_ms -= 60_000
    machine.push(update(MAIN, 1))
    assert load_position(machine.connection).log_time_ms == late.time_ms
    assert machine.repository()["created_ms"] == late.time_ms


def test_applied_entries_are_skipped(machine: Machine) -> None:
    machine.push(update(MAIN, 1))
    machine.push(update(MAIN, 2, 1))
    before = machine.export()
    for entry in machine.log.entries:
        assert machine.apply_entry(entry).result is None
    assert machine.export() == before


def test_entry_that_cannot_follow_is_fatal(machine: Machine) -> None:
    machine.apply_entry(machine.log.noop(term=3))
    entry = machine.log.noop()
    for wrong, words in (
        (dataclasses.replace(entry, index=3), "gap"),
        (dataclasses.replace(entry, term=2), "terms never go back"),
        (dataclasses.replace(entry, group=2), "group 1"),
        (dataclasses.replace(entry, index=1, term=4), "differs"),
        (dataclasses.replace(entry, kind="unheard"), "kind"),  # type: ignore[arg-type]
        (dataclasses.replace(entry, kind="configuration", data=b"\xff"), "no configuration"),
    ):
        with pytest.raises(FatalError, match=words):
            machine.apply_entry(wrong)
        machine.connection.execute("ROLLBACK")
    assert load_position(machine.connection).applied_index == 1


UNKNOWN = {
    "no protobuf": b"\xff\xff",
    "empty": b"",
    "newer version": command(DELETE, 1, first_seen_ms=0, version=2).SerializeToString(),
    "no version": command(DELETE, 1, first_seen_ms=0, version=0).SerializeToString(),
    "no kind": log_pb2.Command(version=1, request_id=bytes(16)).SerializeToString(),
}


@pytest.mark.parametrize("data", UNKNOWN.values(), ids=UNKNOWN.keys())
def test_replica_does_not_guess_at_unknown_commands(machine: Machine, data: bytes) -> None:
    with pytest.raises(FatalError):
        machine.apply_entry(machine.log.raw(data))
    with pytest.raises(InvalidArgument):
        check_command(data, 1)


def test_proposer_checks_what_no_state_would_accept() -> None:
    good = command(DELETE, 1, first_seen_ms=0)
    check_command(good.SerializeToString(), 1)
    with pytest.raises(InvalidArgument, match="group 0"):
        check_command(good.SerializeToString(), 0)
    for bad in (
        log_pb2.Command(version=1, request_id=b"short", delete_repository=DELETE),
        log_pb2.Command(
            version=1,
            request_id=bytes(16),
            delete_repository=log_pb2.DeleteRepository(repository_id="a/b"),
        ),
        log_pb2.Command(
            version=1,
            request_id=bytes(16),
            delete_repository=log_pb2.DeleteRepository(repository_id="a" * 65),
        ),
    ):
        with pytest.raises(InvalidArgument):
            check_command(bad.SerializeToString(), 1)
