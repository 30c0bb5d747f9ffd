"""How a node's process ends: exit codes, and the last line that says why."""

from __future__ import annotations

import errno
import os
import subprocess
import sys

import pytest

from quorepo.rpc.node.process import PARENT_VARIABLE, run_process
from quorepo.storage.errors import ConfigError, FatalError


def raising(error: BaseException) -> int:
    def main() -> int:
        raise error

    return run_process("quorepo test", main)


def test_each_end_has_its_exit_code(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_process("quorepo test", lambda: None) == 0
    assert run_process("quorepo test", lambda: 5) == 5
    assert raising(ConfigError("wrong", next_step="correct it")) == 78
    assert raising(FatalError("disk gone", exit_code=FatalError.EXIT_IO_ERROR)) == 74
    assert raising(OSError(errno.EADDRINUSE, "address in use")) == 78
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "quorepo test: wrong; correct it"
    assert lines[1] == "quorepo test: disk gone"
    assert "stop what listens there" in lines[2]


def test_a_bug_keeps_its_traceback() -> None:
    with pytest.raises(OSError, match="unexpected"):
        raising(OSError(errno.EBADF, "unexpected"))


def test_a_child_whose_parent_is_gone_before_it_asks_ends_at_once() -> None:
    code = "from quorepo.rpc.node.process import die_with_parent as d; d(); print('alive')"
    for parent, expected in ((str(os.getpid()), "alive\n"), ("1", "")):
        result = subprocess.run(
            [sys.executable, "-c", code],
            env={**os.environ, PARENT_VARIABLE: parent},
            capture_output=True,
            text=True,
            check=True,
        )
        assert result.stdout == expected
