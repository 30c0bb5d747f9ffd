"""A look that never waits: it sees what a reader sees, and tells when nothing changed."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.state_log import REPOSITORY, Log, RecordingFiles, transaction, update

from quorepo.cluster.state.generations import install, state_path
from quorepo.cluster.state.glance import Glance
from quorepo.cluster.state.reader import StateReader
from quorepo.cluster.state.store import StateStore
from quorepo.cluster.wrong_disk import record_wrong_disk
from quorepo.internal.v1 import log_pb2
from quorepo.rpc.glances import Found, Glances
from quorepo.storage.layout import GroupLayout

MAIN = "refs/heads/main"


class Writer:
    """A store and its log."""

    def __init__(self, layout: GroupLayout) -> None:
        self.store = StateStore.open(layout)
        self._log = Log(self.store.group)

    def apply(self, body: object) -> None:
        self.store.apply_batch([self._log.command(body)], RecordingFiles())  # type: ignore[arg-type]


@pytest.fixture
def glance(layout: GroupLayout) -> Iterator[Glance]:
    glance = Glance(layout)
    yield glance
    glance.close()


@pytest.fixture
def writer(layout: GroupLayout) -> Iterator[Writer]:
    writer = Writer(layout)
    yield writer
    writer.store.close()


def reserve(path: str, repository: str = REPOSITORY) -> log_pb2.ReservePath:
    return log_pb2.ReservePath(path=path, repository_id=repository, group=1)


def test_no_state_yet_cannot_be_said(glance: Glance) -> None:
    assert glance.moment() is None
    assert glance.repository(REPOSITORY) is None


def test_the_moment_stays_while_nothing_changes_and_every_commit_ends_it(
    writer: Writer, glance: Glance, reader: StateReader
) -> None:
    writer.apply(transaction(update(MAIN, 1)))
    seen = []
    for number in range(2, 6):
        moment = glance.moment()
        assert moment is not None
        assert glance.moment() == moment
        assert glance.repository(REPOSITORY) == reader.repository(REPOSITORY)
        seen.append(moment)
        writer.apply(transaction(update(MAIN, number, number - 1)))
    assert len(set(seen)) == len(seen)
    assert glance.moment() not in seen


def test_another_generation_is_followed(
    writer: Writer, glance: Glance, layout: GroupLayout
) -> None:
    writer.apply(transaction(update(MAIN, 1)))
    copy = layout.state_dir / "copy.sqlite3"
    writer.store.copy_to(copy)
    writer.apply(transaction(update(MAIN, 2, 1)))
    before, old = glance.moment(), glance.repository(REPOSITORY)
    assert old is not None
    assert old.counter == 2
    assert install(layout, 1, copy) == 2
    assert glance.moment() not in (None, before)
    new = glance.repository(REPOSITORY)
    assert new is not None
    assert new.counter == 1


def test_what_is_in_the_way_is_left_to_a_reader(
    writer: Writer, glance: Glance, layout: GroupLayout
) -> None:
    writer.apply(transaction(update(MAIN, 1)))
    assert glance.moment() is not None
    (layout.state_dir / "CURRENT").write_bytes(b"rubbish\n")
    assert glance.moment() is None
    (layout.state_dir / "CURRENT").write_bytes(b"state.7.sqlite3\n")
    assert glance.moment() is None
    assert not state_path(layout, 7).exists()
    (layout.state_dir / "CURRENT").write_bytes(b"state.1.sqlite3\n")
    moment = glance.moment()
    assert moment is not None
    record_wrong_disk(layout.data_dir, "older-start", "an old copy", "n2")
    assert glance.moment() is None


def test_a_path_names_what_both_groups_say_now(layout: GroupLayout, writer: Writer) -> None:
    directory_layout = GroupLayout(layout.data_dir, 0)
    directory_layout.create()
    directory = Writer(directory_layout)
    glances = Glances({0: Glance(directory_layout), 1: Glance(layout)}, directory=0)
    assert glances.look("a/b") is None
    directory.apply(reserve("a/b"))
    assert glances.look("a/b") is None  # reserved, and no repository yet
    writer.apply(transaction(update(MAIN, 1)))
    first = glances.look("a/b")
    assert isinstance(first, Found)
    assert glances.look("a/b") is first
    directory.apply(reserve("other", "another"))  # changes nothing here
    again = glances.look("a/b")
    assert again is not None
    assert again.row is first.row
    writer.apply(transaction(update(MAIN, 2, 1)))
    moved = glances.look("a/b")
    assert moved is not None
    assert moved.row.counter == 2
    writer.apply(log_pb2.DeleteRepository(repository_id=REPOSITORY))
    assert glances.look("a/b") is None
    directory.apply(log_pb2.ReleasePath(path="a/b", repository_id=REPOSITORY))
    assert glances.look("a/b") is None
    glances.close()
    directory.store.close()
