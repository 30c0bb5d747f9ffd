"""A kill or a failing disk at any durability edge loses nothing that was acknowledged."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

import quorepo.cluster.raft.journal
import quorepo.cluster.raft.segment_writer
from quorepo.cluster.raft.durable import REPLACE_EDGES
from quorepo.cluster.raft.journal import Journal
from quorepo.cluster.raft.recovery import CREATE, RECOVER, ROLL
from quorepo.cluster.raft.votes import REPLACE, VoteFile
from quorepo.storage.errors import FatalError
from quorepo.storage.failpoints import ENVIRONMENT_VARIABLE

CHILD = Path(__file__).with_name("journal_child.py")
STEPS = 14
# A memory file system where there is one: a kill takes nothing from either that was written.
FAST_DIRECTORY = "/dev/shm" if Path("/dev/shm").is_dir() else None
WRITTEN_OUT = re.compile(r'failpoint\("([a-z_.]+)"\)')


def written_out(module: object) -> list[str]:
    return WRITTEN_OUT.findall(Path(str(module.__dict__["__file__"])).read_text())


# Every failpoint of the journal and of vote files, found in the source: none can be forgotten here.
NAMES = [
    *written_out(quorepo.cluster.raft.segment_writer),
    *written_out(quorepo.cluster.raft.journal),
    *(f"{prefix}.{edge}" for prefix in (CREATE, RECOVER, ROLL, REPLACE) for edge in REPLACE_EDGES),
]


@pytest.fixture
def directory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir=FAST_DIRECTORY) as name:
        yield Path(name)


def run(directory: Path, failpoints: str = "") -> tuple[int, int, int, str]:
    """Runs the child; returns exit status, last acknowledged index, last term, and stderr."""
    done = subprocess.run(
        [sys.executable, str(CHILD), str(directory), str(STEPS)],
        env={**os.environ, ENVIRONMENT_VARIABLE: failpoints},
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    said = [line.split() for line in done.stdout.splitlines()]
    acked = max((int(number) for word, number in said if word == "acked"), default=0)
    voted = max((int(number) for word, number in said if word == "voted"), default=0)
    return done.returncode, acked, voted, done.stderr


def check(directory: Path, acked: int, voted: int) -> None:
    votes = VoteFile(directory / "group-1.vote")
    assert votes.term in (voted, voted + 1)
    assert votes.voted_for == (f"replica-{votes.term}" if votes.term else None)
    with Journal.open(directory / "journal") as journal:
        assert acked <= journal.last_index(1) <= acked + 2
        first = max(1, journal.first_index(1))
        for data, index, _ in journal.read(1, first, journal.last_index(1) + 1, 1 << 30):
            assert data == b"%d" % index + bytes(60)
        newest = journal.read(2, max(1, journal.first_index(2)), journal.last_index(2) + 1, 1 << 20)
        assert [data for data, _, _ in newest[:1]] in ([], [b"anew"], [b"overtaken"])
        if acked:
            assert [data for data, _, _ in journal.read(0, 1, 2, 100)] == [b"quiet"]


def test_names_are_found_in_the_source() -> None:
    assert "journal.sync.before_fsync" in NAMES
    assert "journal.free.before_dir_fsync" in NAMES


@pytest.mark.parametrize("name", NAMES)
def test_kill_at_every_edge_loses_nothing_that_was_acknowledged(directory: Path, name: str) -> None:
    if name.startswith(RECOVER):
        assert run(directory)[0] == 0
    # At the second time, so that there is something to lose; these two happen once per start.
    hit = "" if name.startswith((CREATE, RECOVER)) else "@2"
    status, acked, voted, errors = run(directory, f"{name}=kill{hit}")
    assert status == -signal.SIGKILL, errors
    if name.startswith(RECOVER):
        acked, voted = 2 * STEPS, STEPS
    check(directory, acked, voted)
    status, acked_later, voted_later, errors = run(directory)  # and it goes on
    assert status == 0, errors
    assert acked_later >= acked + 2 * STEPS
    check(directory, acked_later, voted_later)


@pytest.mark.parametrize("name", NAMES)
def test_io_error_at_every_edge_ends_the_process(directory: Path, name: str) -> None:
    if name.startswith(RECOVER):
        assert run(directory)[0] == 0
    status, acked, voted, errors = run(directory, f"{name}=error")
    assert status == 1
    assert re.search(r"FatalError: cannot \w+ '.*': failpoint .* \(EIO\)", errors), errors
    if not name.startswith(RECOVER):
        check(directory, acked, voted)
    assert run(directory)[0] == 0


def test_fatal_error_is_no_exception_that_a_broad_handler_swallows() -> None:
    assert not issubclass(FatalError, Exception)
