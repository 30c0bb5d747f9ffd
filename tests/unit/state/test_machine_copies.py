"""HEAD, settings, deletions taken back, forks and renames: examples, and the model with them."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import invariant, rule
from support.state_log import (
    REPOSITORY,
    Machine,
    oid,
    pack,
    replacement,
    result_of,
    transaction,
    update,
)
from support.state_model import IDS, AgainstModel, Model

from quorepo.internal.v1 import log_pb2

MAIN, OTHER = b"refs/heads/main", b"refs/heads/other"


@pytest.fixture
def machine() -> Machine:
    machine = Machine()
    machine.push(update("refs/heads/main", 1), packs=[pack(1), pack(2)])
    return machine


def head_to(branch: bytes = b"", detached: int = 0, **more: object) -> log_pb2.SetHead:
    more = more or {"any_old": True}
    return log_pb2.SetHead(
        repository_id=REPOSITORY,
        branch=branch,
        detached_oid=oid(detached) if detached else b"",
        **more,  # type: ignore[arg-type]
    )


# ---- HEAD


def test_head_is_detached_and_attached_again(machine: Machine) -> None:
    before = machine.repository()
    assert result_of(machine.apply(head_to(detached=1))).repository.revision.counter == 2
    assert machine.repository()["detached_head"] == oid(1)
    assert result_of(machine.apply(head_to(OTHER))).repository.revision.counter == 3
    after = machine.repository()
    assert (after["head"], after["detached_head"]) == (OTHER, None)
    assert after["checksum"] != before["checksum"]
    moves = machine.connection.execute(
        "SELECT counter, name, old_oid, new_oid FROM ref_changes WHERE name = ?", (b"HEAD",)
    ).fetchall()
    assert moves == [(2, b"HEAD", None, oid(1)), (3, b"HEAD", oid(1), None)]


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        (head_to(), "INVALID"),
        (head_to(MAIN, detached=1), "INVALID"),
        (head_to(b"refs/tags/v1"), "INVALID"),
        (head_to(b"refs/heads/a..b"), "INVALID"),
        (head_to(detached=1, any_old=True, prune_epoch=7), "REVERIFY"),
        (head_to(OTHER, expected_branch=OTHER), "HEAD_STALE"),
        (head_to(OTHER, expected_detached_oid=oid(1)), "HEAD_STALE"),
        (head_to(OTHER, expected_branch=MAIN), ""),
    ],
)
def test_head_is_changed_only_as_asked(
    machine: Machine, command: log_pb2.SetHead, reason: str
) -> None:
    before = machine.repository()
    found = machine.rejection(command)
    wanted = getattr(log_pb2, f"REJECTION_REASON_{reason}") if reason else 0
    assert found == wanted
    if reason:
        assert machine.repository() == before


def test_head_of_another_object_format_is_refused(machine: Machine) -> None:
    command = log_pb2.SetHead(repository_id=REPOSITORY, detached_oid=b"1" * 32, any_old=True)
    assert machine.rejection(command) == log_pb2.REJECTION_REASON_INVALID


# ---- settings


def test_read_only_repository_refuses_pushes_and_heads(machine: Machine) -> None:
    machine.apply(log_pb2.UpdateRepository(repository_id=REPOSITORY, read_only=True))
    for body in (transaction(update("refs/heads/b", 2)), head_to(OTHER)):
        assert machine.rejection(body) == log_pb2.REJECTION_REASON_READ_ONLY
    machine.apply(log_pb2.UpdateRepository(repository_id=REPOSITORY, read_only=False))
    machine.push(update("refs/heads/b", 2))


def test_settings_that_are_so_already_make_no_revision(machine: Machine) -> None:
    for wanted in (2, 2):
        body = log_pb2.UpdateRepository(repository_id=REPOSITORY, description="a forge")
        assert result_of(machine.apply(body)).repository.revision.counter == wanted
    assert machine.repository()["description"] == "a forge"
    assert machine.repository()["read_only"] == 0
    too_long = log_pb2.UpdateRepository(repository_id=REPOSITORY, description="\u00e9" * 2049)
    assert machine.rejection(too_long) == log_pb2.REJECTION_REASON_INVALID


# ---- deletions taken back


def test_deleted_repository_comes_back_as_it_was(machine: Machine) -> None:
    body = log_pb2.DeleteRepository(repository_id=REPOSITORY, path="a/b", retention_ms=1000)
    deletion = result_of(machine.apply(body)).repository
    assert deletion.purge_ms == machine.log.now_ms - 1 + 1000
    assert machine.rejection(transaction(update("refs/heads/b", 2))) == (
        log_pb2.REJECTION_REASON_REPOSITORY_DELETED
    )
    applied = machine.apply(log_pb2.UndeleteRepository(repository_id=REPOSITORY))
    answer = result_of(applied).repository
    assert (answer.path, answer.revision.counter) == ("a/b", 3)
    assert sorted(digest for _id, digest, _format in applied.promote) == sorted(
        pack(number).digest for number in (1, 2)
    )
    assert machine.refs() == {"main": 1}
    assert machine.repository()["deleted_ms"] is None
    assert machine.rejection(log_pb2.UndeleteRepository(repository_id=REPOSITORY)) == (
        log_pb2.REJECTION_REASON_NOT_DELETED
    )
    machine.push(update("refs/heads/main", 2, 1))


@pytest.mark.parametrize("retention_ms", [0, 1000])
def test_deletion_is_final_once_its_retention_is_over(machine: Machine, retention_ms: int) -> None:
    machine.apply(log_pb2.DeleteRepository(repository_id=REPOSITORY, retention_ms=retention_ms))
    machine.log.now_ms += 1000
    undelete = log_pb2.UndeleteRepository(repository_id=REPOSITORY)
    assert machine.rejection(undelete) == log_pb2.REJECTION_REASON_RETENTION_OVER


# ---- forks


def test_fork_begins_as_its_source_and_goes_its_own_way(machine: Machine) -> None:
    applied = machine.apply(log_pb2.ForkRepository(repository_id="fork", source_id=REPOSITORY))
    answer = result_of(applied).repository
    assert (answer.revision.counter, answer.source_revision.counter) == (0, 1)
    assert [each[:2] for each in applied.promote] == [
        ("fork", digest) for digest in sorted(pack(number).digest for number in (1, 2))
    ]
    machine.push(update("refs/heads/main", 5, 1), repository_id="fork", packs=[pack(3)])
    machine.apply(replacement([1, 2], [9]))
    assert machine.refs("fork") == {"main": 5}
    assert machine.refs() == {"main": 1}
    rows = machine.connection.execute("SELECT repository_id, digest FROM packs").fetchall()
    assert sorted(rows) == sorted(
        [("fork", pack(number).digest) for number in (1, 2, 3)] + [(REPOSITORY, pack(9).digest)]
    )
    assert machine.repository("fork")["forked_from"] == REPOSITORY


def test_fork_of_nothing_and_fork_over_something_are_refused(machine: Machine) -> None:
    refused = {
        ("fork", "nothing"): log_pb2.REJECTION_REASON_REPOSITORY_NOT_FOUND,
        (REPOSITORY, REPOSITORY): log_pb2.REJECTION_REASON_REPOSITORY_EXISTS,
    }
    for (fork, source), reason in refused.items():
        body = log_pb2.ForkRepository(repository_id=fork, source_id=source)
        assert machine.rejection(body) == reason
    machine.apply(log_pb2.DeleteRepository(repository_id=REPOSITORY, retention_ms=1000))
    body = log_pb2.ForkRepository(repository_id="fork", source_id=REPOSITORY)
    assert machine.rejection(body) == log_pb2.REJECTION_REASON_REPOSITORY_NOT_FOUND


# ---- what a transaction answers


def test_answer_of_a_transaction_comes_back_with_its_first_result(machine: Machine) -> None:
    body = transaction(update("refs/heads/b", 2))
    body.answer = b"first"
    assert result_of(machine.apply(body, request=7)).transaction.answer == b"first"
    body.answer = b"second"
    again = result_of(machine.apply(body, request=7)).transaction
    assert (again.answer, again.revision.counter) == (b"first", 2)
    refused = result_of(machine.apply(body, request=8)).transaction
    assert refused.answer == b""
    body.answer = b"x" * (64 * 1024 + 1)
    assert machine.rejection(body) == log_pb2.REJECTION_REASON_INVALID


# ---- renames


def test_path_is_renamed_in_one_step() -> None:
    with Machine(group=0) as machine:
        for path, repository_id in (("a", "one"), ("b", "two")):
            machine.apply(log_pb2.ReservePath(path=path, repository_id=repository_id, group=1))
        rename = log_pb2.RenamePath(path="a", new_path="c", repository_id="one")
        assert result_of(machine.apply(rename)).path.path == "c"
        rows = machine.connection.execute("SELECT path, repository_id FROM paths ORDER BY path")
        assert rows.fetchall() == [("b", "two"), ("c", "one")]
        refused = {
            ("a", "d", "one"): log_pb2.REJECTION_REASON_PATH_NOT_FOUND,
            ("c", "d", "two"): log_pb2.REJECTION_REASON_PATH_NOT_FOUND,
            ("c", "b", "one"): log_pb2.REJECTION_REASON_PATH_EXISTS,
            ("c", "c", "one"): log_pb2.REJECTION_REASON_INVALID,
            ("c", "", "one"): log_pb2.REJECTION_REASON_INVALID,
        }
        for (path, new_path, repository_id), reason in refused.items():
            body = log_pb2.RenamePath(path=path, new_path=new_path, repository_id=repository_id)
            assert machine.rejection(body) == reason


# ---- against the model


class WithCopies(AgainstModel):
    def _detached(self) -> dict[str, bytes | None]:
        found: dict[str, bytes | None] = self.__dict__.setdefault("detached", {})
        return found

    @rule(
        repository_id=st.sampled_from(IDS),
        branch=st.sampled_from([b"refs/heads/b", b"refs/heads/new"]),
        detached=st.integers(0, 2),
    )
    def set_head(self, repository_id: str, branch: bytes, detached: int) -> None:
        model = self.models.get(repository_id)
        body = log_pb2.SetHead(
            repository_id=repository_id,
            branch=b"" if detached else branch,
            detached_oid=oid(detached) if detached else b"",
            prune_epoch=model.prune_epoch if model else 0,
            any_old=True,
        )
        result = self._apply(body)
        if model is None or model.deleted:
            assert result.rejection.reason
            return
        model.counter += 1
        model.head = model.head or b"refs/heads/main" if detached else branch
        self._detached()[repository_id] = oid(detached) if detached else None
        assert result.repository.revision.counter == model.counter

    @rule(repository_id=st.sampled_from(IDS))
    def delete_for_a_while(self, repository_id: str) -> None:
        body = log_pb2.DeleteRepository(repository_id=repository_id, retention_ms=1 << 40)
        result = self._apply(body)
        model = self.models.get(repository_id)
        if model is not None and not model.deleted:
            model.deleted = True
            model.counter += 1
            assert result.repository.revision.counter == model.counter

    @rule(repository_id=st.sampled_from(IDS))
    def undelete(self, repository_id: str) -> None:
        can_be = bool(self.machine.repository(repository_id).get("purge_ms"))
        result = self._apply(log_pb2.UndeleteRepository(repository_id=repository_id))
        model = self.models.get(repository_id)
        assert (result.WhichOneof("kind") == "repository") == can_be
        if can_be:
            assert model is not None
            model.deleted = False
            model.counter += 1

    @rule(source=st.sampled_from(IDS), made=st.sampled_from([*IDS, "fork"]))
    def fork(self, source: str, made: str) -> None:
        result = self._apply(log_pb2.ForkRepository(repository_id=made, source_id=source))
        model = self.models.get(source)
        if made in self.models or model is None or model.deleted:
            assert result.rejection.reason
            return
        self.models[made] = Model(refs=dict(model.refs), packs=dict(model.packs), head=model.head)
        self._detached()[made] = self._detached().get(source)

    @invariant()
    def heads_are_the_models(self) -> None:
        for repository_id in getattr(self, "models", {}):
            row = self.machine.repository(repository_id)
            assert row["detached_head"] == self._detached().get(repository_id)


WithCopies.TestCase.settings = settings(
    max_examples=60,
    stateful_step_count=30,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow],
)
TestMachineWithCopies = WithCopies.TestCase
