"""A snapshot on its way in: resumed, verified, put into force once, and repaired after a kill."""

from __future__ import annotations

import contextlib
import hashlib
import os
import re
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from support.state_log import REPOSITORY, Log, RecordingFiles, transaction, update
from support.state_log import pack as pretended_pack

import quorepo.cluster.snapshot.staging
import quorepo.cluster.state.generations
import quorepo.storage.layout
from quorepo.cluster.raft.group_log import GroupLog
from quorepo.cluster.raft.journal import Journal
from quorepo.cluster.raft.votes import VoteFile
from quorepo.cluster.snapshot.staging import FORMAT_VERSION, StagedSnapshot, finish_interrupted
from quorepo.cluster.state.store import StateStore
from quorepo.internal.v1 import log_pb2, peer_pb2
from quorepo.storage.errors import CorruptPack, InvalidArgument
from quorepo.storage.failpoints import ENVIRONMENT_VARIABLE
from quorepo.storage.layout import GroupLayout

GROUP = 1
WRITTEN_OUT = re.compile(r'failpoint\(\s*"([a-z_.]+)"')
PACKS = [pretended_pack(number) for number in range(3)]


def source_state(tmp_path: Path) -> tuple[Path, peer_pb2.SnapshotManifest, bytes]:
    """A state with a repository of three packs; its copy, the manifest, and its export."""
    layout = GroupLayout(tmp_path / "source", GROUP)
    layout.create()
    log = Log(GROUP)
    log.noop(term=2)
    for number, pack in enumerate(PACKS, 1):
        log.command(transaction(update(f"refs/heads/b{number}", number), packs=[pack]))
    store = StateStore.open(layout)
    store.apply_batch(log.entries, RecordingFiles())
    copy = tmp_path / "copy.sqlite3"
    position = store.copy_to(copy)
    export = store.export()
    store.close()
    manifest = peer_pb2.SnapshotManifest(
        format_version=FORMAT_VERSION,
        group=GROUP,
        index=position.applied_index,
        term=position.applied_term,
        configuration=log_pb2.Configuration(),
        database_digest=hashlib.sha256(copy.read_bytes()).digest(),
        database_bytes=copy.stat().st_size,
    )
    return copy, manifest, export


def receiver(tmp_path: Path) -> GroupLayout:
    """A node with an empty state, a short log, and the packs in quarantine."""
    layout = GroupLayout(tmp_path / "receiver", GROUP)
    layout.create()
    for pack in PACKS:
        for path in layout.quarantine_paths(pack.digest):
            path.write_bytes(b"pretended")
    with Journal.open(layout.data_dir / "journal") as journal:
        votes = VoteFile(layout.data_dir / "vote")
        votes.store(2, None)
        log = GroupLog(journal, GROUP, votes)
        log.add(b"\x00" + bytes(8) + b"old", 2, 1)
        journal.sync()
    StateStore.open(layout).close()
    return layout


def take(layout: GroupLayout, manifest: peer_pb2.SnapshotManifest, copy: Path) -> StagedSnapshot:
    staged = StagedSnapshot.begin(layout, manifest)
    data = copy.read_bytes()[staged.received_bytes :]
    if not staged.complete:
        staged.write([data[:5000], data[5000:]])
        staged.verify()
    return staged


def test_database_is_resumed_where_it_stopped(tmp_path: Path) -> None:
    copy, manifest, _ = source_state(tmp_path)
    layout = receiver(tmp_path)
    StagedSnapshot.begin(layout, manifest).write([copy.read_bytes()[:7000]])
    again = StagedSnapshot.begin(layout, manifest)
    assert again.received_bytes == 7000
    take(layout, manifest, copy)
    assert {place.digest for place in again.packs()} == {pack.digest for pack in PACKS}
    assert {place.repository_id for place in again.packs()} == {REPOSITORY}
    # Another snapshot starts over.
    other = peer_pb2.SnapshotManifest.FromString(manifest.SerializeToString())
    other.log_time_ms += 1
    assert StagedSnapshot.begin(layout, other).received_bytes == 0


@pytest.mark.parametrize("damage", ["flipped", "short", "another position"])
def test_what_is_not_as_announced_is_thrown_away(tmp_path: Path, damage: str) -> None:
    copy, manifest, _ = source_state(tmp_path)
    layout = receiver(tmp_path)
    data = bytearray(copy.read_bytes())
    if damage == "flipped":
        data[len(data) // 2] ^= 1
    elif damage == "short":
        del data[-1]
    else:
        manifest.index += 1
    staged = StagedSnapshot.begin(layout, manifest)
    staged.write([bytes(data)])
    with pytest.raises(CorruptPack):
        staged.verify()
    assert not (layout.state_dir / "snapshot.tmp").exists()


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ("PRAGMA user_version=99", "newer state format 99"),
        ("UPDATE position SET group_id = 7", "holds the state of group 7"),
    ],
)
def test_state_that_this_program_does_not_know_never_comes_into_force(
    tmp_path: Path, change: str, words: str
) -> None:
    """In force it would keep the node from starting. It is not fetched again while it waits."""
    copy, manifest, _ = source_state(tmp_path)
    with contextlib.closing(sqlite3.connect(copy)) as connection, connection:
        connection.execute(change)
    manifest.database_digest = hashlib.sha256(copy.read_bytes()).digest()
    manifest.database_bytes = copy.stat().st_size
    layout = receiver(tmp_path)
    before = start_again(layout)
    with pytest.raises(InvalidArgument, match=words) as refused:
        take(layout, manifest, copy)
    assert "nothing was changed" in str(refused.value)
    assert "one version of quorepo" in refused.value.next_step
    again = StagedSnapshot.begin(layout, manifest)
    assert again.complete
    with pytest.raises(InvalidArgument, match=words):
        again.packs()
    with pytest.raises(InvalidArgument, match=words):
        again.put_into_force()
    assert start_again(layout) == before


def install(layout: GroupLayout, manifest: peer_pb2.SnapshotManifest, copy: Path) -> None:
    """All of it, with the journal in the engine's place. What a child process does."""
    staged = take(layout, manifest, copy)
    staged.put_into_force()
    with Journal.open(layout.data_dir / "journal") as journal:
        journal.restart_at(GROUP, manifest.index, manifest.term, b"\x01" + bytes(8))
    staged.discard()


def start_again(layout: GroupLayout) -> tuple[int, int, bytes]:
    """What the start of a node does; applied index, first index of the log, export."""
    store = StateStore.open(layout)
    with Journal.open(layout.data_dir / "journal") as journal:
        finish_interrupted(layout, store, journal)
        log = GroupLog(journal, GROUP, VoteFile(layout.data_dir / "vote"))
        assert log.first_index - 1 <= store.applied_index <= log.last_index
        if log.term_at(store.applied_index) is not None and store.applied_index:
            assert log.term_at(store.applied_index) == store.applied_term
        found = store.applied_index, log.first_index, store.export()
    store.close()
    assert not (layout.state_dir / "snapshot.tmp" / "SWITCH").exists()
    return found


def test_snapshot_becomes_the_next_generation(tmp_path: Path) -> None:
    copy, manifest, export = source_state(tmp_path)
    layout = receiver(tmp_path)
    install(layout, manifest, copy)
    assert start_again(layout) == (manifest.index, manifest.index, export)
    for pack in PACKS:
        assert all(path.exists() for path in layout.pack_paths(REPOSITORY, pack.digest))
    assert not (layout.state_dir / "snapshot.tmp").exists()


def written_out(*modules: object) -> list[str]:
    text = [Path(str(module.__dict__["__file__"])).read_text() for module in modules]
    return sorted({name for source in text for name in WRITTEN_OUT.findall(source)})


# Every failpoint of a snapshot's way, found in the source: none can be forgotten here.
STEPS = [
    name
    for name in written_out(
        quorepo.cluster.snapshot.staging, quorepo.cluster.state.generations, quorepo.storage.layout
    )
    if not name.startswith(
        ("snapshot.recover.", "layout.retire", "layout.unretire", "layout.store.", "state.create.")
    )
]
REPAIRS = [n for n in written_out(quorepo.cluster.snapshot.staging) if ".recover." in n]


def run_child(tmp_path: Path, what: str, failpoints: str) -> int:
    """Runs `install` or `start_again` in a process of its own."""
    root = Path(__file__).parents[3]
    done = subprocess.run(
        [sys.executable, str(Path(__file__).with_name("snapshot_child.py")), what, str(tmp_path)],
        env={
            **os.environ,
            ENVIRONMENT_VARIABLE: failpoints,
            "PYTHONPATH": os.pathsep.join((str(root / "tests"), str(root))),
        },
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode in (0, -signal.SIGKILL), done.stderr
    return done.returncode


def prepared(tmp_path: Path) -> tuple[GroupLayout, peer_pb2.SnapshotManifest, Path, bytes]:
    copy, manifest, export = source_state(tmp_path)
    (tmp_path / "manifest").write_bytes(manifest.SerializeToString())
    return receiver(tmp_path), manifest, copy, export


def check_repaired(
    layout: GroupLayout, manifest: peer_pb2.SnapshotManifest, copy: Path, export: bytes
) -> None:
    """It starts with the old state or the new one, and comes to the new one again."""
    applied, first, found = start_again(layout)
    if applied == manifest.index:
        assert (first, found) == (manifest.index, export)
    else:
        assert (applied, first) == (0, 1)
        install(layout, manifest, copy)
        assert start_again(layout) == (manifest.index, manifest.index, export)
    for pack in PACKS:
        assert all(path.exists() for path in layout.pack_paths(REPOSITORY, pack.digest))


@pytest.mark.parametrize("name", STEPS)
def test_kill_at_every_step_leaves_the_old_state_or_the_new_one(tmp_path: Path, name: str) -> None:
    layout, manifest, copy, export = prepared(tmp_path)
    assert run_child(tmp_path, "install", f"{name}=kill") == -signal.SIGKILL, "the step was missed"
    check_repaired(layout, manifest, copy, export)


@pytest.mark.parametrize(
    ("name", "killed_at"),
    [
        ("snapshot.recover.before_forget", "snapshot.switch.before_install"),
        ("snapshot.recover.before_restart", "snapshot.switch.after_install"),
        ("snapshot.recover.before_remove", "snapshot.switch.after_install"),
    ],
)
def test_kill_while_a_kill_is_repaired(tmp_path: Path, name: str, killed_at: str) -> None:
    layout, manifest, copy, export = prepared(tmp_path)
    assert run_child(tmp_path, "install", f"{killed_at}=kill") == -signal.SIGKILL
    assert run_child(tmp_path, "start", f"{name}=kill") == -signal.SIGKILL
    check_repaired(layout, manifest, copy, export)


def test_every_repair_is_killed() -> None:
    marks: list[pytest.Mark] = test_kill_while_a_kill_is_repaired.pytestmark  # type: ignore[attr-defined]
    assert sorted(name for name, _ in marks[0].args[1]) == REPAIRS


WORK: dict[str, Callable[[Path], object]] = {
    "install": lambda folder: install(
        GroupLayout(folder / "receiver", GROUP),
        peer_pb2.SnapshotManifest.FromString((folder / "manifest").read_bytes()),
        folder / "copy.sqlite3",
    ),
    "start": lambda folder: start_again(GroupLayout(folder / "receiver", GROUP)),
}
