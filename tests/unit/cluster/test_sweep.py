"""What the sweep removes, and above all what it never does."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from prometheus_client import CollectorRegistry
from support.state_log import (
    REPOSITORY,
    Log,
    pack,
    replacement,
    transaction,
    update,
)

import quorepo.cluster.sweep
from quorepo.cluster.apply import DiskActions
from quorepo.cluster.metrics import ClusterMetrics
from quorepo.cluster.peer.held import HeldPacks
from quorepo.cluster.raft.entries import COMMAND, NO_OP, encode_entry
from quorepo.cluster.raft.group_log import GroupLog
from quorepo.cluster.raft.interface import Entry
from quorepo.cluster.raft.journal import Journal
from quorepo.cluster.raft.replica_log import ReplicaLog
from quorepo.cluster.raft.votes import VoteFile
from quorepo.cluster.state.store import StateStore
from quorepo.cluster.sweep import Retention, Sweeper
from quorepo.internal.v1 import log_pb2
from quorepo.storage.layout import GroupLayout

GROUP = 1
RETIRED_S = 1000.0
QUARANTINE_S = 100.0


class Replica:
    """One replica's disk, state and log; stands in for the Raft host as far as the sweep asks."""

    def __init__(self, folder: Path) -> None:
        self.layout = GroupLayout(folder, GROUP)
        self.layout.create()
        self.store = StateStore.open(self.layout)
        self.log = Log(GROUP)
        self.journal = Journal.open(folder / "journal")
        votes = VoteFile(folder / "vote")
        votes.store(1, None)
        self.replica_log = ReplicaLog(GROUP, GroupLog(self.journal, GROUP, votes))
        self.raft: Any = SimpleNamespace(group=GROUP, log=self.replica_log)
        self.held = HeldPacks()
        self.wanted: frozenset[bytes] = frozenset()
        self.later_s = 0.0
        self.before_last_look: Callable[[], None] = lambda: None
        self.log.noop()  # the founding entry

    def close(self) -> None:
        self.store.close()
        self.journal.close()

    # ---- what happens to it

    def stage(self, number: int) -> bytes:
        """A pack arrives in quarantine."""
        digest = pack(number).digest
        for path in self.layout.quarantine_paths(digest):
            temporary = path.with_suffix(".new")
            temporary.write_bytes(b"pretended")
            temporary.rename(path)
        self.held.add(GROUP, digest)
        return digest

    def append(self, body: log_pb2.Transaction | Any) -> Entry:
        """An entry comes into the journal; not applied yet."""
        entry = self.log.command(body)
        data = encode_entry(COMMAND, entry.time_ms, entry.data)
        self.replica_log.append(data, entry.index, 1)
        self.journal.sync()
        return entry

    def commit(self, body: log_pb2.Transaction | Any) -> None:
        self.append(body)
        self.apply()

    def apply(self) -> None:
        done = self.store.applied_index
        self.store.apply_batch(
            [e for e in self.log.entries if e.index > done], DiskActions(self.layout)
        )

    def cut(self) -> None:
        """The log is cut behind everything so far; one entry stays."""
        entry = self.log.noop()
        self.replica_log.append(encode_entry(NO_OP, entry.time_ms, b""), entry.index, 1)
        self.journal.sync()
        self.apply()
        self.replica_log.drop_prefix(entry.index, entry.index)

    def wait(self, seconds: float) -> None:
        """Both clocks go on: the one of files, and log time."""
        self.later_s += seconds
        self.log.now_ms += int(1000 * seconds)

    # ---- sweeping

    def extent(self, group: int) -> Future[Any]:
        return self.run_on(
            group, lambda raft: SimpleNamespace(first_index=self.journal.first_index(GROUP))
        )

    def run_on(self, group: int, action: Callable[[Any], Any]) -> Future[Any]:
        done: Future[Any] = Future()
        if getattr(action, "__name__", "") == "<lambda>":
            self.before_last_look()
        done.set_result(action(self.raft))
        return done

    def sweep(self, *, on: bool = True) -> int:
        async def run() -> int:
            sweeper = Sweeper(
                host=self,  # type: ignore[arg-type]
                layouts={GROUP: self.layout},
                stores={GROUP: self.store},
                locks={GROUP: asyncio.Lock()},
                held=self.held,
                wanted=lambda group: self.wanted,
                retention=Retention(sweep=on, retired_s=RETIRED_S, quarantine_s=QUARANTINE_S),
                metrics=ClusterMetrics(CollectorRegistry()),
                clock=lambda: time.time() + self.later_s,
            )
            return await sweeper.sweep(GROUP)

        return asyncio.run(run())

    def staged(self, digest: bytes) -> bool:
        return all(path.exists() for path in self.layout.quarantine_paths(digest))

    def stored(self, digest: bytes, repository_id: str = REPOSITORY) -> bool:
        return all(path.exists() for path in self.layout.pack_paths(repository_id, digest))

    def kept_aside(self, digest: bytes) -> bool:
        return all(path.exists() for path in self.layout.retired_pack_paths(digest))


@pytest.fixture
def replica(tmp_path: Path) -> Iterator[Replica]:
    replica = Replica(tmp_path / "node")
    yield replica
    replica.close()


def push(replica: Replica, number: int, *, old: int = 0) -> bytes:
    """A pack that comes with a move of refs/heads/main."""
    digest = replica.stage(number)
    replica.commit(transaction(update("refs/heads/main", number, old), packs=[pack(number)]))
    return digest


def test_a_staged_pack_whose_transaction_never_came_goes_after_its_retention(
    replica: Replica,
) -> None:
    digest = replica.stage(1)
    replica.wait(QUARANTINE_S / 2)
    assert replica.sweep() == 0
    replica.wait(QUARANTINE_S)
    assert replica.sweep() == 2
    assert not replica.staged(digest)
    assert not replica.held.has(GROUP, digest)
    assert list(replica.layout.quarantine.iterdir()) == []


def test_half_a_pack_goes_too(replica: Replica) -> None:
    digest = replica.stage(1)
    replica.layout.quarantine_paths(digest)[1].unlink()
    replica.wait(2 * QUARANTINE_S)
    assert replica.sweep() == 1


def test_nothing_goes_while_it_is_switched_off(replica: Replica) -> None:
    digest = replica.stage(1)
    replica.wait(2 * QUARANTINE_S)
    assert replica.sweep(on=False) == 0
    assert replica.staged(digest)


def test_what_an_entry_of_the_journal_names_stays(replica: Replica) -> None:
    digest = replica.stage(1)
    replica.append(transaction(update("refs/heads/main", 1), packs=[pack(1)]))
    replica.wait(2 * QUARANTINE_S)
    assert replica.sweep() == 0
    replica.apply()
    assert replica.stored(digest)


def test_a_refused_push_is_kept_as_long_as_its_entry_is_in_the_journal(replica: Replica) -> None:
    push(replica, 1)
    refused = replica.stage(2)
    replica.commit(transaction(update("refs/heads/main", 2, old=9), packs=[pack(2)]))
    replica.wait(2 * QUARANTINE_S)
    assert replica.sweep() == 0, "a follower may ask for the entry, and with it for the pack"
    replica.cut()
    assert replica.sweep() == 2
    assert not replica.staged(refused)


def test_what_a_snapshot_waits_for_stays(replica: Replica) -> None:
    digest = replica.stage(1)
    replica.wanted = frozenset({digest})
    replica.wait(2 * QUARANTINE_S)
    assert replica.sweep() == 0
    assert replica.staged(digest)


def test_an_entry_that_comes_before_the_last_look_saves_its_pack(replica: Replica) -> None:
    digest = replica.stage(1)
    replica.wait(2 * QUARANTINE_S)
    body = transaction(update("refs/heads/main", 1), packs=[pack(1)])

    def append_once() -> None:
        if len(replica.log.entries) == 1:
            replica.append(body)

    replica.before_last_look = append_once
    assert replica.sweep() == 0
    assert replica.staged(digest)
    assert replica.held.has(GROUP, digest)


def test_a_pack_that_is_staged_again_meanwhile_is_another_file_and_stays(
    replica: Replica, monkeypatch: pytest.MonkeyPatch
) -> None:
    digest = replica.stage(1)
    replica.wait(2 * QUARANTINE_S)
    remove = quorepo.cluster.sweep._remove_files

    def staged_again(files: Sequence[tuple[Path, int]]) -> int:
        replica.stage(1)
        return remove(files)

    monkeypatch.setattr(quorepo.cluster.sweep, "_remove_files", staged_again)
    assert replica.sweep() == 0
    assert replica.staged(digest)
    assert replica.held.has(GROUP, digest)


def test_packs_in_force_never_go(replica: Replica) -> None:
    first, second = push(replica, 1), push(replica, 2, old=1)
    replica.wait(10 * RETIRED_S)
    replica.cut()
    assert replica.sweep() == 0
    assert replica.stored(first)
    assert replica.stored(second)


def test_a_second_copy_in_quarantine_goes_and_the_stored_one_stays(replica: Replica) -> None:
    digest = push(replica, 1)
    replica.stage(1)
    replica.cut()
    replica.wait(2 * QUARANTINE_S)
    assert replica.sweep() == 2
    assert replica.stored(digest)
    assert replica.held.has(GROUP, digest)


def test_a_replaced_pack_goes_after_retention_and_once_its_entry_is_cut(replica: Replica) -> None:
    first, second = push(replica, 1), push(replica, 2, old=1)
    replica.stage(3)
    replica.commit(replacement([1, 2], [3]))
    assert replica.kept_aside(first)
    replica.cut()
    replica.wait(RETIRED_S / 2)
    replica.commit(transaction(update("refs/heads/b", 1)))
    assert replica.sweep() == 0, "retention is not over"
    replica.wait(RETIRED_S)
    replica.commit(transaction(update("refs/heads/c", 1)))
    assert replica.sweep() == 4
    for digest in (first, second):
        assert not replica.kept_aside(digest)
        assert not replica.held.has(GROUP, digest)
    assert replica.stored(pack(3).digest)


def test_a_replaced_pack_stays_while_the_journal_has_the_entry(replica: Replica) -> None:
    push(replica, 1)
    push(replica, 2, old=1)
    replica.stage(3)
    replica.commit(replacement([1, 2], [3]))
    replica.wait(2 * RETIRED_S)
    replica.commit(transaction(update("refs/heads/b", 1)))
    assert replica.sweep() == 0
    assert replica.kept_aside(pack(1).digest)


def test_a_replaced_pack_that_another_repository_has_stays_there(replica: Replica) -> None:
    other = "s" * 32
    push(replica, 1)
    replica.stage(1)
    replica.commit(transaction(update("refs/heads/main", 1), packs=[pack(1)], repository_id=other))
    push(replica, 2, old=1)
    replica.stage(3)
    replica.commit(replacement([1, 2], [3]))
    replica.cut()
    replica.wait(2 * RETIRED_S)
    replica.commit(transaction(update("refs/heads/b", 1)))
    replica.sweep()
    assert replica.stored(pack(1).digest, other)
    assert replica.held.has(GROUP, pack(1).digest)


def test_a_deleted_repository_goes_after_retention_and_once_its_entry_is_cut(
    replica: Replica,
) -> None:
    digest = push(replica, 1)
    replica.commit(log_pb2.DeleteRepository(repository_id=REPOSITORY))
    folder = replica.layout.retired / f"{REPOSITORY}.git"
    assert folder.is_dir()
    replica.wait(2 * RETIRED_S)
    replica.commit(transaction(update("refs/heads/main", 5), repository_id="t" * 32))
    assert replica.sweep() == 0, "the journal still has the deletion"
    replica.cut()
    assert replica.sweep() == 1
    assert not folder.exists()
    assert not replica.held.has(GROUP, digest)


def test_what_a_killed_sweep_left_is_finished_by_the_next(replica: Replica) -> None:
    (replica.layout.retired / "abandoned.git.swept.tmp" / "objects").mkdir(parents=True)
    half = replica.layout.retired_pack_folder / "pack-00.pack.swept.tmp"
    half.write_bytes(b"half")
    replica.sweep()
    assert not half.exists()
    assert not (replica.layout.retired / "abandoned.git.swept.tmp").exists()


def test_old_uploads_go_and_young_ones_stay(replica: Replica) -> None:
    old, young = (replica.layout.quarantine / f"upload-{name}.tmp" for name in ("old", "young"))
    for path in (old, young):
        path.write_bytes(b"half")
    os.utime(old, (1, 1))
    replica.sweep()
    assert not old.exists()
    assert young.exists()
