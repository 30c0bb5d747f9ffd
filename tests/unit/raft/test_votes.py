"""Term and vote are durable before anybody hears of them; damage is never taken for no vote."""

from __future__ import annotations

import errno
import os
import random
import struct
import zlib
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from simulation.disk import VirtualDisk
from simulation.virtual_os import VirtualOs

from quorepo.cluster.raft import durable
from quorepo.cluster.raft.durable import REPLACE_EDGES
from quorepo.cluster.raft.votes import REPLACE, VoteFile
from quorepo.storage.errors import FatalError
from quorepo.storage.failpoints import enabled


def test_no_file_is_term_0_without_a_vote(tmp_path: Path) -> None:
    votes = VoteFile(tmp_path / "vote")
    assert (votes.exists, votes.term, votes.voted_for) == (False, 0, None)


@pytest.mark.parametrize("vote", [None, "", "replica-1", "Ä" * 100])
def test_term_and_vote_are_there_after_reopening(tmp_path: Path, vote: str | None) -> None:
    VoteFile(tmp_path / "vote").store(2**40, vote)
    votes = VoteFile(tmp_path / "vote")
    assert (votes.exists, votes.term, votes.voted_for) == (True, 2**40, vote)


def test_file_then_folder_are_synced_before_store_returns(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    did: list[str] = []
    real_fsync, real_rename = os.fsync, os.rename

    def fsync(descriptor: int) -> None:
        did.append("sync " + os.path.basename(os.readlink(f"/proc/self/fd/{descriptor}")))
        real_fsync(descriptor)

    def rename(source: Path, target: Path) -> None:
        did.append(f"rename {target.name}")
        real_rename(source, target)

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "rename", rename)
    VoteFile(tmp_path / "vote").store(1, "a")
    assert did == ["sync vote.tmp", "rename vote", f"sync {tmp_path.name}"]


@pytest.mark.parametrize("seed", range(10))
def test_a_vote_that_a_killed_process_left_unsynced_is_durable_before_it_is_believed(
    seed: int,
) -> None:
    """Simulator, seed 1795541846116: killed behind the rename and started again, a node took
    entries of a term that a power cut took back. It could have voted twice in it."""
    disk, system = VirtualDisk(random.Random(seed)), VirtualOs()
    path: Any = disk.root / "votes" / "vote"
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(durable, "os", system)
        VoteFile(path).store(1, "a")
        with enabled("votes.replace.before_dir_fsync", "error"), pytest.raises(FatalError):
            VoteFile(path).store(2, "b")
        assert VoteFile(path).term == 2, "what the next process reads"
        disk.lose_power()
        votes = VoteFile(path)
    assert (votes.term, votes.voted_for) == (2, "b")


def test_storing_what_is_stored_writes_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    votes = VoteFile(tmp_path / "vote")
    votes.store(1, "a")
    monkeypatch.setattr(os, "fsync", None)
    votes.store(1, "a")


def test_a_term_never_falls(tmp_path: Path) -> None:
    votes = VoteFile(tmp_path / "vote")
    votes.store(5, None)
    with pytest.raises(FatalError, match="term 4 is older than term 5"):
        votes.store(4, None)


@pytest.mark.parametrize("second", ["b", None])
def test_nobody_gets_a_second_vote_in_a_term(tmp_path: Path, second: str | None) -> None:
    votes = VoteFile(tmp_path / "vote")
    votes.store(5, None)
    votes.store(5, "a")
    with pytest.raises(FatalError, match="'a' has it"):
        votes.store(5, second)
    assert VoteFile(tmp_path / "vote").voted_for == "a"


@given(where=st.floats(0, 1), bit=st.integers(0, 7), cut=st.booleans())
def test_any_damage_is_refused(
    tmp_path_factory: pytest.TempPathFactory, where: float, bit: int, cut: bool
) -> None:
    path = tmp_path_factory.mktemp("votes") / "vote"
    VoteFile(path).store(3, "replica")
    data = bytearray(path.read_bytes())
    offset = min(int(where * len(data)), len(data) - 1)
    if cut:
        del data[offset:]
    else:
        data[offset] ^= 1 << bit
    path.write_bytes(data)
    with pytest.raises(FatalError, match="is damaged") as error:
        VoteFile(path)
    assert error.value.exit_code == FatalError.EXIT_IO_ERROR
    assert "vote twice" in str(error.value)


def test_a_newer_format_version_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "vote"
    VoteFile(path).store(3, "replica")
    body = bytearray(path.read_bytes()[:-4])
    struct.pack_into("<I", body, 8, 2)
    path.write_bytes(bytes(body) + struct.pack("<I", zlib.crc32(body)))
    with pytest.raises(FatalError, match="format version 2") as error:
        VoteFile(path)
    assert error.value.exit_code == FatalError.EXIT_CONFIG


@pytest.mark.parametrize("edge", REPLACE_EDGES)
def test_a_failed_store_leaves_the_old_or_the_new_vote(tmp_path: Path, edge: str) -> None:
    votes = VoteFile(tmp_path / "vote")
    votes.store(1, "a")
    with enabled(f"{REPLACE}.{edge}", "error"), pytest.raises(FatalError) as error:
        votes.store(2, "b")
    assert error.value.exit_code == FatalError.EXIT_IO_ERROR
    assert (votes.term, votes.voted_for) == (1, "a")
    again = VoteFile(tmp_path / "vote")
    assert (again.term, again.voted_for) in ((1, "a"), (2, "b"))


def test_an_unreadable_file_is_fatal(tmp_path: Path) -> None:
    (tmp_path / "vote").mkdir()
    with pytest.raises(FatalError, match=errno.errorcode[errno.EISDIR]):
        VoteFile(tmp_path / "vote")
