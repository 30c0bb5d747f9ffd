"""Request ids: a repeat gets the first answer, whatever happened since, until the window ends."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.state_log import (
    START_MS,
    Machine,
    pack,
    result_of,
    statuses,
    transaction,
    update,
)

from quorepo.cluster.state.machine import FIRST_SEEN_AHEAD_MS_MAX, REQUEST_WINDOW_MS
from quorepo.internal.v1 import log_pb2

MAIN = "refs/heads/main"
EXPIRED = log_pb2.REJECTION_REASON_REQUEST_EXPIRED
HOUR_MS = 3_600_000


@pytest.fixture
def machine() -> Iterator[Machine]:
    with Machine() as machine:
        machine.apply_entry(machine.log.noop())
        yield machine


def kept(machine: Machine) -> int:
    count: int = machine.connection.execute("SELECT count(*) FROM requests").fetchone()[0]
    return count


def test_window_is_at_least_an_hour_and_survives_a_clock_an_hour_off(machine: Machine) -> None:
    assert REQUEST_WINDOW_MS >= HOUR_MS
    for number, skew_ms in enumerate((-HOUR_MS, HOUR_MS)):
        result = machine.push(update(f"refs/heads/{number}", 1))
        assert statuses(result) == ["ok"]
        body = transaction(update(f"refs/heads/skew{number}", 1))
        assert machine.rejection(body, first_seen_ms=machine.log.now_ms + skew_ms) == 0


def test_repeat_gets_the_first_answer_and_changes_nothing(machine: Machine) -> None:
    body = transaction(update(MAIN, 1), packs=[pack(1)])
    first = machine.apply(body, request=7, first_seen_ms=START_MS)
    machine.push(update(MAIN, 2, 1))
    before = machine.refs(), machine.repository()
    repeat = machine.apply(body, request=7, first_seen_ms=START_MS)
    assert repeat.result == first.result
    assert (repeat.promote, repeat.retire) == ((), ())
    assert (machine.refs(), machine.repository()) == before


def test_refusals_are_repeated_too(machine: Machine) -> None:
    missing = transaction(update(MAIN, 1), create=False)
    first = machine.apply(missing, request=7, first_seen_ms=START_MS)
    machine.push(update(MAIN, 1))
    assert machine.apply(missing, request=7, first_seen_ms=START_MS).result == first.result


def test_request_ids_belong_to_a_repository(machine: Machine) -> None:
    for repository_id in ("a", "b"):
        body = transaction(update(MAIN, 1), repository_id=repository_id)
        assert result_of(machine.apply(body, request=7)).transaction.created


def test_verified_again_may_be_proposed_again(machine: Machine) -> None:
    machine.push(update(MAIN, 1))
    machine.connection.execute("UPDATE repositories SET prune_epoch = 3")
    old = transaction(update(MAIN, 2, 1), prune_epoch=0)
    new = transaction(update(MAIN, 2, 1), prune_epoch=3)
    reverify = log_pb2.REJECTION_REASON_REVERIFY
    assert machine.rejection(old, request=7, first_seen_ms=START_MS) == reverify
    done = machine.apply(new, request=7, first_seen_ms=START_MS)
    assert statuses(result_of(done).transaction) == ["ok"]
    # A late duplicate of the first attempt learns what became of the request.
    late = machine.apply(old, request=7, first_seen_ms=START_MS)
    assert late.result == done.result


def test_unknown_request_from_before_the_window_is_unknown(machine: Machine) -> None:
    body = transaction(update(MAIN, 1))
    edge = machine.log.now_ms - REQUEST_WINDOW_MS
    assert machine.rejection(body, request=7, first_seen_ms=edge - 1) == EXPIRED
    assert machine.repository() == {}
    machine.log.now_ms = edge + REQUEST_WINDOW_MS
    assert machine.rejection(body, request=8, first_seen_ms=edge) == 0


def test_request_from_the_far_future_is_unknown(machine: Machine) -> None:
    body = transaction(update(MAIN, 1))
    limit = machine.log.now_ms + FIRST_SEEN_AHEAD_MS_MAX
    assert machine.rejection(body, request=7, first_seen_ms=limit + 1) == EXPIRED
    assert kept(machine) == 0


@pytest.mark.parametrize("ahead_ms", [0, HOUR_MS, FIRST_SEEN_AHEAD_MS_MAX])
def test_answer_is_kept_until_a_repeat_would_be_expired(machine: Machine, ahead_ms: int) -> None:
    """Also when the clock of the node that saw the request first is ahead of log time."""
    first_seen_ms = machine.log.now_ms + ahead_ms
    body = transaction(update(MAIN, 1))
    first = machine.apply(body, request=7, first_seen_ms=first_seen_ms)
    machine.log.now_ms = first_seen_ms + REQUEST_WINDOW_MS
    machine.apply_entry(machine.log.noop())  # forgets what it may
    machine.log.now_ms = first_seen_ms + REQUEST_WINDOW_MS
    assert machine.apply(body, request=7, first_seen_ms=first_seen_ms).result == first.result
    machine.log.now_ms += 1
    machine.apply_entry(machine.log.noop())
    assert kept(machine) == 0
    assert machine.rejection(body, request=7, first_seen_ms=first_seen_ms) == EXPIRED


def test_answer_is_kept_for_a_window_after_it_was_given(machine: Machine) -> None:
    """Also when the clock of the node that saw the request first is behind log time."""
    first_seen_ms = machine.log.now_ms - HOUR_MS
    body = transaction(update(MAIN, 1))
    applied_ms = machine.log.now_ms
    first = machine.apply(body, request=7, first_seen_ms=first_seen_ms)
    for _ in range(2):
        machine.log.now_ms = applied_ms + REQUEST_WINDOW_MS
        machine.apply_entry(machine.log.noop())
    machine.log.now_ms = applied_ms + REQUEST_WINDOW_MS
    assert machine.apply(body, request=7, first_seen_ms=first_seen_ms).result == first.result


def test_old_answers_go_a_few_per_entry(machine: Machine) -> None:
    for number in range(50):
        machine.push(update(f"refs/heads/{number}", 1))
    machine.log.now_ms += REQUEST_WINDOW_MS + 1
    counts = [kept(machine)]
    while counts[-1]:
        machine.apply_entry(machine.log.noop())
        counts.append(kept(machine))
    assert counts == [50, 42, 34, 26, 18, 10, 2, 0]


def test_directory_remembers_requests_of_all_paths_together() -> None:
    with Machine(group=0) as directory:
        body = log_pb2.ReservePath(path="app", repository_id="a1", group=1)
        first = directory.apply(body, request=7, first_seen_ms=START_MS)
        assert result_of(first).path.created
        repeat = directory.apply(body, request=7, first_seen_ms=START_MS)
        assert repeat.result == first.result
