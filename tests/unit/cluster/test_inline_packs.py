"""Small packs in their log entries: applied like others, whole again after a power cut, and taken
out where a member would not know them."""

from __future__ import annotations

import asyncio
import hashlib
from collections.abc import Iterator
from concurrent.futures import Future
from pathlib import Path
from typing import Any

import pytest
from support.state_log import Log, transaction, update

from quorepo.cluster.apply import DiskActions
from quorepo.cluster.gate import StagedPackGate, pack_needs
from quorepo.cluster.inline_packs import restore_packs, without_bytes
from quorepo.cluster.levels import Levels
from quorepo.cluster.peer.held import HeldPacks
from quorepo.cluster.proposals import ProposalDriver
from quorepo.cluster.raft.entries import COMMAND, encode_entry
from quorepo.cluster.raft.interface import GroupStatus, Outcome, Proposal
from quorepo.cluster.raft.journal import Journal
from quorepo.cluster.replacements import ReplacementChecks
from quorepo.cluster.state.levels import LEVEL, level_of
from quorepo.cluster.state.store import StateStore
from quorepo.internal.v1 import log_pb2
from quorepo.storage import failpoints
from quorepo.storage.errors import FatalError, Unavailable
from quorepo.storage.layout import GroupLayout, promote_pack, sync_packs
from quorepo.storage.limits import StorageLimits

GROUP = 1
REPOSITORY = transaction().repository_id
MAIN = "refs/heads/main"


def inline(number: int) -> log_pb2.PackAddition:
    pack, index = b"pack %d" % number * 500, b"index %d" % number * 200
    return log_pb2.PackAddition(
        digest=hashlib.sha256(pack).digest(),
        index_digest=hashlib.sha256(index).digest(),
        pack_bytes=len(pack),
        index_bytes=len(index),
        object_count=1,
        encoding=log_pb2.PACK_ENCODING_INLINE,
        pack=pack,
        index=index,
    )


def push(number: int) -> log_pb2.Transaction:
    return transaction(update(MAIN, number, number - 1), packs=[inline(number)])


def command(body: log_pb2.Transaction) -> log_pb2.Command:
    return log_pb2.Command(version=1, request_id=b"r" * 16, transaction=body)


class Disk:
    """A replica's journal, state and folders; the journal has more than the state."""

    def __init__(self, data_dir: Path) -> None:
        self.layout = GroupLayout(data_dir, GROUP)
        self.layout.create()
        self.log = Log()
        for number in (1, 2, 3):
            self.log.command(push(number))
        self.journal = Journal.open(data_dir / "journal")
        for entry in self.log.entries:
            data = encode_entry(COMMAND, entry.time_ms, entry.data)
            if entry.kind != "command":
                data = b"\1"
            self.journal.append(GROUP, entry.index, max(entry.term, 0), data)
        self.journal.sync()
        self.store = StateStore.open(self.layout)
        self.stored: list[bytes] = []
        self.actions = DiskActions(self.layout, lambda pack: self.stored.append(pack.digest))
        self.store.sync_files = self.actions.sync
        self.store.apply_batch(self.log.entries[:-1], self.actions)

    def close(self) -> None:
        self.store.close()
        self.journal.close()

    def paths(self, number: int) -> tuple[Path, Path]:
        return self.layout.pack_paths(REPOSITORY, inline(number).digest)


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Disk]:
    disk = Disk(tmp_path / "data")
    yield disk
    disk.close()


def test_apply_writes_the_pack_of_an_entry(disk: Disk) -> None:
    for number in (1, 2):
        pack, index = disk.paths(number)
        assert (pack.read_bytes(), index.read_bytes()) == (
            inline(number).pack, inline(number).index,
        )  # fmt: skip
    assert disk.stored == [inline(1).digest, inline(2).digest]
    assert list(disk.layout.quarantine.iterdir()) == []
    assert not disk.paths(3)[0].exists()


def test_other_bytes_than_the_named_ones_are_refused_on_every_replica(disk: Disk) -> None:
    body = push(3)
    body.packs_added[0].pack += b"x"
    disk.log.entries.pop()
    wrong = disk.log.command(body)
    (result,) = disk.store.apply_batch([wrong], disk.actions)
    assert result is not None
    assert result.rejection.reason == log_pb2.REJECTION_REASON_INVALID
    assert "other bytes" in result.rejection.message
    assert not disk.paths(3)[0].exists()


def test_bytes_in_a_replacement_are_refused(disk: Disk) -> None:
    body = log_pb2.ReplacePacks(
        repository_id=REPOSITORY, removed=[inline(1).digest], added=[inline(9)],
        object_format=log_pb2.OBJECT_FORMAT_SHA1,
    )  # fmt: skip
    disk.log.entries.pop()
    (result,) = disk.store.apply_batch([disk.log.command(body)], disk.actions)
    assert result is not None
    assert result.rejection.reason == log_pb2.REJECTION_REASON_INVALID


def test_what_a_power_cut_leaves_of_a_pack_is_made_whole_from_the_journal(disk: Disk) -> None:
    """The state may have reached the disk before the files that it names."""
    disk.paths(1)[0].write_bytes(b"")
    disk.paths(1)[1].write_bytes(bytes(len(inline(1).index)))
    for path in disk.paths(2):
        path.unlink()
    coming = restore_packs(disk.layout, disk.store, disk.journal)
    assert coming == {inline(3).digest}
    for number in (1, 2):
        pack, index = disk.paths(number)
        assert (pack.read_bytes(), index.read_bytes()) == (
            inline(number).pack, inline(number).index,
        )  # fmt: skip
    assert restore_packs(disk.layout, disk.store, disk.journal) == coming
    disk.store.apply_batch(disk.log.entries, disk.actions)  # the replay of the rest
    assert disk.paths(3)[0].read_bytes() == inline(3).pack


def test_a_journal_of_nothing_restores_nothing(tmp_path: Path) -> None:
    layout = GroupLayout(tmp_path, GROUP)
    layout.create()
    store = StateStore.open(layout)
    with Journal.open(tmp_path / "journal") as journal:
        assert restore_packs(layout, store, journal) == set()
    store.close()


def test_files_are_durable_before_the_state_says_how_far_the_journal_may_be_cut(
    disk: Disk,
) -> None:
    with failpoints.enabled("layout.store.before_dir_fsync", "count"):
        with (
            failpoints.enabled("state.sync.before_commit", "error"),
            pytest.raises(FatalError, match="syncing"),
        ):
            disk.store.sync()
        assert failpoints.hit_count("layout.store.before_dir_fsync") == 1


def test_a_file_that_was_moved_away_does_not_fail_the_sync(disk: Disk) -> None:
    for path in disk.paths(1):
        path.unlink()
    sync_packs(disk.layout, [(REPOSITORY, inline(n).digest) for n in (1, 2)])


def test_the_same_pack_for_another_repository_is_linked_durably(disk: Disk) -> None:
    (disk.layout.repository("other") / "objects" / "pack").mkdir(parents=True)
    promote_pack(disk.layout, "other", inline(1).digest)
    pack, _ = disk.layout.pack_paths("other", inline(1).digest)
    assert pack.samefile(disk.paths(1)[0])


async def test_the_gate_lets_it_pass_and_a_replacement_waits_until_it_is_applied(
    disk: Disk,
) -> None:
    held = HeldPacks()
    fetcher: Any = None
    gate = StagedPackGate(held, fetcher, asyncio.get_running_loop(), lambda *_: [])
    assert gate.missing(GROUP, command(push(3)).SerializeToString()) == []
    assert held.is_expected(GROUP, inline(3).digest)
    assert not held.has(GROUP, inline(3).digest)
    observer: Any = None
    observer = type("Observer", (), {"replacement_checked": lambda *_: None})()
    checks = ReplacementChecks({GROUP: disk.layout}, held, StorageLimits(), observer)
    body = log_pb2.ReplacePacks(
        repository_id=REPOSITORY, removed=[inline(3).digest],
        object_format=log_pb2.OBJECT_FORMAT_SHA1,
    )  # fmt: skip
    with pytest.raises(Unavailable, match="not applied here yet"):
        await checks.check(GROUP, body)
    held.add(GROUP, inline(3).digest)
    assert not held.is_expected(GROUP, inline(3).digest)
    await checks.close()
    await gate.close()


def test_it_needs_a_level_of_its_own() -> None:
    assert level_of(command(push(1))) == 3 <= LEVEL
    plain, taken = without_bytes(command(push(1)))
    assert level_of(plain) == 1
    assert pack_needs(command(push(1))) == []
    (need,) = pack_needs(plain)
    assert taken == {need.digest: inline(1).pack + inline(1).index}


class Host:
    """Takes everything; the leader is this replica, alone."""

    def __init__(self) -> None:
        self.proposed: list[log_pb2.Command] = []

    def propose(self, group: int, payload: bytes, timeout_s: float) -> Future[Proposal]:
        self.proposed.append(log_pb2.Command.FromString(payload))
        future: Future[Proposal] = Future()
        future.set_result(Proposal(Outcome.APPLIED, 1, 1, log_pb2.Result()))
        return future

    def status(self, group: int) -> GroupStatus:
        replica = log_pb2.Replica(replica_id="n1@a", node="n1", votes=True, stores_packs=True)
        configuration = log_pb2.Configuration(replicas=[replica])
        return GroupStatus(group, "leader", "n1@a", 1, 1, 1, 1, configuration, ())


class Stager:
    def __init__(self, error: Unavailable | None = None) -> None:
        self.kept: list[bytes] = []
        self._error = error

    async def keep(self, header: Any, data: bytes) -> None:
        if self._error is not None:
            raise self._error
        self.kept.append(data)

    async def stage(self, peer: Any, header: Any) -> None:
        raise AssertionError("there is nobody else")


class Ignored:
    def proposed(self, group: int, outcome: str, seconds: float) -> None:
        pass


@pytest.mark.parametrize(
    ("reached", "bytes_max", "stays_inside"),
    [(LEVEL, 1 << 20, True), (2, 1 << 20, False), (LEVEL, 1000, False)],
)
async def test_a_pack_leaves_a_command_that_must_not_hold_it(
    reached: int, bytes_max: int, stays_inside: bool
) -> None:
    host: Any = Host()
    stager = Stager()
    levels = Levels()
    levels.cluster = reached
    driver = ProposalDriver(host, stager, "n1@a", Ignored(), levels, bytes_max)
    answer = await driver.propose(GROUP, command(push(1)), 10.0)
    assert answer.outcome is Outcome.APPLIED
    (proposed,) = host.proposed
    (pack,) = proposed.transaction.packs_added
    assert pack.digest == inline(1).digest
    assert bool(pack.pack) is stays_inside
    assert stager.kept == ([] if stays_inside else [inline(1).pack + inline(1).index])


async def test_a_pack_that_could_not_be_taken_out_was_certainly_not_applied() -> None:
    host: Any = Host()
    levels = Levels()
    driver = ProposalDriver(host, Stager(Unavailable("disk")), "n1@a", Ignored(), levels)
    answer = await driver.propose(GROUP, command(push(1)), 10.0)
    assert (answer.outcome, answer.reason, host.proposed) == (Outcome.NOT_APPLIED, "disk", [])
