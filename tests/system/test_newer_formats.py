"""A node that meets what a newer release wrote in its journal, votes, or state: it ends, says which
file and what to do, and leaves it alone.

The identity's and the boots' formats are in test_wrong_disk.py, a snapshot's in
unit/cluster/test_snapshot_receiver.py.
"""

from __future__ import annotations

import sqlite3
import struct
import zlib
from collections.abc import Callable
from contextlib import closing
from pathlib import Path

import pytest
from support.demo import Demo
from support.git import WorkTree, git, refs_of
from support.waiting import eventually

from quorepo.storage.errors import FatalError

pytestmark = pytest.mark.system

PATH = "newer/formats"
NEWER = 99


def newer_segment(path: Path) -> None:
    """The journal's newest file, as a release with another format would begin it."""
    data = bytearray(path.read_bytes())
    assert struct.unpack_from("<I", data, 8) == (1,)
    struct.pack_into("<I", data, 8, NEWER)
    struct.pack_into("<I", data, 48, zlib.crc32(data[:48]))
    path.write_bytes(data)


def newer_vote(path: Path) -> None:
    data = bytearray(path.read_bytes()[:-4])
    assert struct.unpack_from("<I", data, 8) == (1,)
    struct.pack_into("<I", data, 8, NEWER)
    path.write_bytes(data + struct.pack("<I", zlib.crc32(data)))


def newer_state(path: Path) -> None:
    """The version stands big-endian in the header of the file (SQLite's file format, 1.3)."""
    data = bytearray(path.read_bytes())
    struct.pack_into(">I", data, 60, NEWER)
    path.write_bytes(data)


FORMATS: list[tuple[str, Callable[[Path], None], str]] = [
    ("journal/*.segment", newer_segment, "start this node with the release that wrote it, or"),
    ("votes/*.vote", newer_vote, "start this node with the release that wrote it, or"),
    ("groups/1/state.*.sqlite3", newer_state, "start the version of quorepo that wrote it, or"),
]


def test_disk_that_a_newer_release_wrote_is_refused_and_left_alone(
    own_cluster: Demo, work: WorkTree
) -> None:
    demo = own_cluster
    victim = next(name for name in demo.nodes if name != demo.leader(1))
    others = [name for name in demo.nodes if name != victim]
    work.commit("first")
    work.git("push", "-q", demo.url("n1", PATH), "main")
    demo.kill(victim)
    folder = demo.nodes[victim].data_dir
    log = demo.directory.parent / f"{victim}.restart.log"
    for pattern, make_newer, words in FORMATS:
        path = max(folder.glob(pattern))
        if path.suffix == ".sqlite3":  # all of it in one file
            with closing(sqlite3.connect(path)) as connection:
                connection.execute("PRAGMA wal_checkpoint(TRUNCATE)")
        before = path.read_bytes()
        make_newer(path)
        written = path.read_bytes()
        told = log.stat().st_size if log.exists() else 0
        demo.restart(victim)
        # Not started again by itself: another start of the same program would not help.
        assert demo.process_of(victim).wait(timeout=90) == FatalError.EXIT_CONFIG
        said = log.read_bytes()[told:].decode()
        assert path.name in said
        assert str(NEWER) in said
        assert words in said
        assert path.read_bytes() == written
        path.write_bytes(before)
    oid = work.commit("second")
    work.git("push", "-q", demo.url(others[0], PATH), "main")
    demo.restart(victim)
    eventually(
        lambda: git("ls-remote", demo.url(victim, PATH), check=False).returncode == 0,
        timeout_s=60, what=f"{victim} is back",
    )  # fmt: skip
    assert refs_of(demo.url(victim, PATH))["refs/heads/main"] == oid
