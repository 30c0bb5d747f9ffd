"""Two versions in one cluster: what is held back, until when, and what may pass."""

from __future__ import annotations

import pytest

from quorepo.cluster.levels import Levels
from quorepo.cluster.state.levels import LEVEL, SINCE, level_of, registered_version, told
from quorepo.cluster.state.members import Intentions
from quorepo.internal.v1 import log_pb2

OLD = log_pb2.Command(transaction=log_pb2.Transaction())
NEW = log_pb2.Command(set_head=log_pb2.SetHead())


def registered(name: str, level: int | None = LEVEL) -> tuple[str, str, str]:
    version = "0.1.0" if level is None else registered_version("0.1.0", level)
    return name, f"{name}@a", version


def levels(
    *rows: tuple[str, str, str], members: tuple[str, ...] = ("n1", "n2", "n3"), reached: int = 1
) -> Levels:
    found = Levels()
    configuration = log_pb2.Configuration(
        replicas=[log_pb2.Replica(replica_id=f"{n}@a", node=n) for n in members]
    )
    wanted = Intentions(None, frozenset(), frozenset(), reached, rows)
    found.update(wanted, [configuration])
    return found


def test_every_kind_of_command_has_a_level() -> None:
    kinds = [field.name for field in log_pb2.Command.DESCRIPTOR.oneofs_by_name["kind"].fields]
    assert sorted(SINCE) == sorted(kinds)
    assert max(SINCE.values()) <= LEVEL


def test_a_field_that_an_older_program_does_not_read_needs_a_level_too() -> None:
    at_once = log_pb2.Command(delete_repository=log_pb2.DeleteRepository(repository_id="a"))
    later = log_pb2.Command(delete_repository=log_pb2.DeleteRepository(retention_ms=1))
    assert (level_of(at_once), level_of(later)) == (1, 2)
    imported = log_pb2.Command(transaction=log_pb2.Transaction(must_create=True))
    assert (level_of(OLD), level_of(imported)) == (1, 2)
    push = log_pb2.Command(transaction=log_pb2.Transaction(create_if_missing=True))
    assert level_of(push) == 1
    for creation in (log_pb2.Transaction(must_create=True), log_pb2.Transaction(head=b"x")):
        assert level_of(log_pb2.Command(transaction=creation)) == 2


def test_what_a_node_registers_says_its_level() -> None:
    assert told(registered_version("0.2.0", 3)) == ("0.2.0", 3)
    for text in ("0.1.0", "", "0.1.0+level.", "0.1.0+level.x"):
        assert told(text) == (text, 1)


def test_nothing_is_held_back_once_the_cluster_is_there() -> None:
    there = levels(registered("n1"), reached=LEVEL, members=("n1", "n2"))
    assert there.held_back(NEW) is None
    # It never falls: what was reached stays, whatever a later look says.
    there.update(Intentions(None, frozenset(), frozenset(), 1, ()), [])
    assert there.held_back(NEW) is None


def test_an_older_member_holds_back_what_it_does_not_know_and_is_named() -> None:
    mixed = levels(registered("n1"), registered("n2", None), registered("n3"))
    assert mixed.held_back(OLD) is None
    held = mixed.held_back(NEW)
    assert held is not None
    assert not held.passes
    assert "needs level 2 of every member, and n2 (0.1.0) run an older quorepo" in held.reason
    assert mixed.may_rise_to() == 0


def test_members_that_have_not_told_yet_are_waited_for() -> None:
    for found in (levels(registered("n1")), Levels()):
        held = found.held_back(NEW)
        assert held is not None
        assert held.passes
        assert found.may_rise_to() == 0


def test_the_level_rises_once_every_member_has_it() -> None:
    ready = levels(registered("n1"), registered("n2"), registered("n3"))
    assert ready.may_rise_to() == LEVEL
    held = ready.held_back(NEW)
    assert held is not None
    assert held.passes
    assert ready.held_back(log_pb2.Command(raise_level=log_pb2.RaiseLevel(level=2))) is None


def test_a_node_that_is_there_under_another_disk_has_not_told_yet() -> None:
    """Its old disk's registration says nothing of the program that runs now."""
    found = levels(registered("n1"), ("n2", "n2@old", registered_version("0.1.0", LEVEL)),
                   members=("n1", "n2"))  # fmt: skip
    assert found.may_rise_to() == 0


@pytest.mark.parametrize("kind", [log_pb2.MEMBERSHIP_KIND_REMOVE, log_pb2.MEMBERSHIP_KIND_REPLACE])
def test_the_node_that_holds_the_level_down_can_be_got_rid_of(
    kind: log_pb2.MembershipKind.ValueType,
) -> None:
    """A dead node that can't be upgraded any more must not keep all others back for good."""
    begin = log_pb2.Command(
        begin_membership_change=log_pb2.BeginMembershipChange(kind=kind, node="n3")
    )
    for third in ((registered("n3", None),), ()):
        found = levels(registered("n1"), registered("n2"), *third)
        assert found.held_back(begin) is None
        assert found.held_back(NEW) is not None
    other = levels(registered("n1"), registered("n2", None), registered("n3", None))
    assert other.held_back(begin) is not None
