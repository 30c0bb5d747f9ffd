"""`quorepo status -W` on a terminal: a pseudo terminal, a real process, keys as somebody types."""

from __future__ import annotations

import contextlib
import os
import pty
import re
import select
import subprocess
import sys
import time
from pathlib import Path

import grpc
from support.cli import TOKEN, Stub


class Screen:
    """A terminal that a command runs on; what it drew is in `text`."""

    def __init__(self, arguments: list[str], environment: dict[str, str]) -> None:
        self._master, slave = pty.openpty()
        self.text = ""
        self.process = subprocess.Popen(
            # A session of its own on this terminal: Ctrl-C is a signal to whoever has one.
            ["setsid", "--ctty", sys.executable, "-m", "quorepo", *arguments],
            stdin=slave, stdout=slave, stderr=slave,
            env={**os.environ, "TERM": "xterm", "COLUMNS": "160", "LINES": "50", **environment},
        )  # fmt: skip
        os.close(slave)

    def read_until(self, probe: str, times: int = 1, timeout_s: float = 60) -> None:
        """Reads what is drawn until `probe` was drawn so often."""
        deadline = time.monotonic() + timeout_s
        while self.text.count(probe) < times:
            assert time.monotonic() < deadline, self.text
            self._read(0.2)

    def press(self, keys: bytes) -> None:
        os.write(self._master, keys)

    def end(self) -> int:
        """The exit code, once the process has ended and all that it drew was read."""
        while self.process.poll() is None:
            self._read(0.2)
        self._read(0.2)
        os.close(self._master)
        return self.process.returncode

    def _read(self, timeout_s: float) -> None:
        ready, _, _ = select.select([self._master], [], [], timeout_s)
        if ready:
            with contextlib.suppress(OSError):  # the other side is closed
                self.text += os.read(self._master, 65536).decode(errors="replace")


def screen(stub: Stub, home: Path, **environment: str) -> Screen:
    stub.reset()
    return Screen(
        ["--endpoint", stub.address, "status", "--watch", "--interval", "0.1"],
        {"QUOREPO_TOKEN": TOKEN, "XDG_CONFIG_HOME": str(home), **environment},
    )


def test_the_picture_is_drawn_again_and_again_until_ctrl_c(stub: Stub, tmp_path: Path) -> None:
    drawn = screen(stub, tmp_path)
    drawn.read_until("Cluster c1, as n1 sees it", times=3)
    looked = len(stub.requests)
    assert looked >= 3
    assert "Ctrl-C ends" in drawn.text
    assert "n2 does not answer" in drawn.text, "what is wrong stands below"
    drawn.press(b"\x03")
    assert drawn.end() == 0
    # The alternate screen is left, and the last picture stays to be read.
    assert "\x1b[?1049h" in drawn.text
    assert "Cluster c1" in drawn.text.split("\x1b[?1049l")[-1]


def test_a_node_that_does_not_answer_is_asked_again(stub: Stub, tmp_path: Path) -> None:
    drawn = screen(stub, tmp_path)
    drawn.read_until("Cluster c1")
    stub.code = grpc.StatusCode.UNAVAILABLE
    drawn.read_until("asking again")
    stub.code = None
    before = drawn.text.count("Cluster c1")
    drawn.read_until("Cluster c1", times=before + 1)
    drawn.press(b"\x03")
    assert drawn.end() == 0


def test_no_color_draws_without_colours(stub: Stub, tmp_path: Path) -> None:
    drawn = screen(stub, tmp_path, NO_COLOR="1")
    drawn.read_until("Cluster c1", times=2)
    drawn.press(b"\x03")
    assert drawn.end() == 0
    assert not re.search(r"\x1b\[[0-9;]*3[0-7]m", drawn.text)
