"""Nodes whose clocks are an hour off, or are put right while they run: pushes and reads go on
through every node, and log time never goes back. Elections and reads know monotonic time only.

The clock is what `time.time` and `time.time_ns` say to the product's own modules, in the nodes'
processes alone, by a `sitecustomize` on their PYTHONPATH which this test writes; the product has no
such switch. gRPC and TLS go by the machine's clock, which a test can't change: gRPC makes deadlines
of one clock in two languages, and certificates are dated back by a day for clocks that are off
(unit/peer/test_peer_certificates.py).
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from support.demo import Demo
from support.git import WorkTree, refs_of
from support.waiting import eventually

pytestmark = pytest.mark.system

STORAGE = 1
PATH = "clocks/repo"
HOUR_S = 3600
SHIFTED_CLOCK = '''
import pathlib, sys, time

def _file():
    """Of the node whose configuration is on the command line: a supervisor, core or edge."""
    arguments = sys.orig_argv
    if "--config" in arguments:
        config = pathlib.Path(arguments[arguments.index("--config") + 1])
        return pathlib.Path(__file__).parent / f"{config.stem}.offset"
    return None

_path, _time, _time_ns = _file(), time.time, time.time_ns
if _path is not None:
    def _offset_s():
        if not sys._getframe(2).f_globals.get("__name__", "").startswith("quorepo."):
            return 0  # gRPC compares with the clock of its C core
        return int(_path.read_text()) if _path.exists() else 0
    time.time = lambda: _time() + _offset_s()
    time.time_ns = lambda: _time_ns() + _offset_s() * 1_000_000_000
'''


class Clocks:
    """A cluster, and the clock of each of its nodes."""

    def __init__(self, demo: Demo, folder: Path) -> None:
        self.demo = demo
        self._folder = folder
        self._log_time_ms = dict.fromkeys(demo.nodes, 0)
        self._at_index: dict[int, int] = {}

    def put(self, node: str, seconds: int) -> None:
        """At once, in all processes of the node."""
        new = self._folder / "new"
        new.write_text(str(seconds))
        new.rename(self._folder / f"{node}.offset")

    def log_time_ms(self, node: str) -> int:
        """Of the node's state; never less than it was, and the same as elsewhere at its index."""
        folder = self.demo.nodes[node].data_dir / "groups" / str(STORAGE)
        path = max(folder.glob("state.*.sqlite3"))
        with closing(sqlite3.connect(f"file:{path}?mode=ro", uri=True)) as connection:
            index, log_time_ms = connection.execute(
                "SELECT applied_index, log_time_ms FROM position"
            ).fetchone()
        assert log_time_ms >= self._log_time_ms[node], f"log time of {node} went back"
        assert self._at_index.setdefault(index, log_time_ms) == log_time_ms
        self._log_time_ms[node] = log_time_ms
        return int(log_time_ms)

    def _push(self, work: WorkTree, node: str) -> None:
        url = self.demo.url(node, PATH)
        eventually(
            lambda: work.git("push", "-q", url, "main", check=False).returncode == 0,
            timeout_s=60, what=f"a push through {node}",
        )  # fmt: skip

    def push_and_read_everywhere(self, work: WorkTree) -> None:
        for node in self.demo.nodes:
            oid = work.commit("change")
            self._push(work, node)
            for other in self.demo.nodes:
                self._wait_for(other, oid)
                self.log_time_ms(other)

    def _wait_for(self, node: str, oid: str) -> None:
        """A read at a node may be refused while nobody leads; none is ever behind."""
        url = self.demo.url(node, PATH)
        shown = eventually(lambda: refs_of(url), timeout_s=60, what=f"a read at {node}")
        assert shown["refs/heads/main"] == oid


@pytest.fixture
def clocks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Clocks]:
    folder = tmp_path / "clocks"
    folder.mkdir()
    (folder / "sitecustomize.py").write_text(SHIFTED_CLOCK)
    before = os.environ.get("PYTHONPATH")
    monkeypatch.setenv("PYTHONPATH", f"{folder}:{before}" if before else str(folder))
    with Demo(tmp_path / "demo") as demo:
        yield Clocks(demo, folder)


def test_a_clock_an_hour_off_stops_nothing_and_log_time_never_goes_back(
    clocks: Clocks, work: WorkTree
) -> None:
    demo = clocks.demo
    clocks.push_and_read_everywhere(work)
    leader = demo.leader(STORAGE)
    follower = next(name for name in demo.nodes if name != leader)

    clocks.put(follower, -HOUR_S)
    clocks.push_and_read_everywhere(work)
    clocks.put(follower, 0)
    clocks.push_and_read_everywhere(work)
    assert clocks.log_time_ms(leader) < (time.time() + HOUR_S / 2) * 1000

    leader = demo.leader(STORAGE)
    clocks.put(leader, HOUR_S)
    clocks.push_and_read_everywhere(work)
    ahead_ms = clocks.log_time_ms(leader)
    assert ahead_ms > (time.time() + HOUR_S / 2) * 1000, "the clock was never put forward"

    clocks.put(leader, 0)  # its operator has seen it
    clocks.push_and_read_everywhere(work)

    demo.kill(leader)  # whoever leads now never had another clock
    demo.restart(leader)
    eventually(
        lambda: "refs/heads/main" in refs_of(demo.url(leader, PATH)),
        timeout_s=60, what=f"{leader} is back",
    )  # fmt: skip
    clocks.push_and_read_everywhere(work)
    assert all(clocks.log_time_ms(node) >= ahead_ms for node in demo.nodes)
