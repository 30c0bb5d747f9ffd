"""Failpoints do nothing until a test asks, and then exactly what it asked for."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
from collections.abc import Iterator

import pytest

from quorepo.storage.failpoints import (
    ENVIRONMENT_VARIABLE,
    disable_all,
    enable,
    enabled,
    failpoint,
    hit_count,
)


@pytest.fixture(autouse=True)
def clean() -> Iterator[None]:
    disable_all()
    yield
    disable_all()


def run(specification: str, passes: int = 3) -> subprocess.CompletedProcess[str]:
    code = (
        "from quorepo.storage.failpoints import failpoint\n"
        f"for number in range(1, {passes} + 1):\n"
        "    failpoint('a.b')\n"
        "    print(number, flush=True)\n"
    )
    return subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, ENVIRONMENT_VARIABLE: specification},
        capture_output=True,
        text=True,
        check=False,
    )


def test_nothing_happens_at_a_failpoint_that_is_not_enabled() -> None:
    failpoint("a.b")
    assert hit_count("a.b") == 0


def test_count_counts() -> None:
    enable("a.b", "count")
    for _ in range(3):
        failpoint("a.b")
    failpoint("a.c")
    assert (hit_count("a.b"), hit_count("a.c")) == (3, 0)


def test_error_is_an_io_error_from_the_given_hit_on() -> None:
    with enabled("a.b", "error", first_hit=2):
        failpoint("a.b")
        for _ in range(2):
            with pytest.raises(OSError, match=r"a\.b") as error:
                failpoint("a.b")
            assert error.value.errno == errno.EIO
    failpoint("a.b")


def test_kill_ends_the_process_without_a_word() -> None:
    done = run("x.y=count, a.b=kill@2")
    assert (done.returncode, done.stdout, done.stderr) == (-signal.SIGKILL, "1\n", "")


def test_an_empty_environment_enables_nothing() -> None:
    assert run("").stdout == "1\n2\n3\n"


@pytest.mark.parametrize(
    "wrong", ["a.b", "a.b=", "a.b=explode", "a.b=kill@0", "a.b=kill@x", "=kill"]
)
def test_a_wrong_specification_ends_the_process(wrong: str) -> None:
    done = run(wrong)
    assert done.returncode == 1
    assert f"{ENVIRONMENT_VARIABLE} has {wrong!r}" in done.stderr


@pytest.mark.parametrize(("action", "first_hit"), [("explode", 1), ("kill", 0)])
def test_wrong_arguments_are_refused(action: str, first_hit: int) -> None:
    with pytest.raises(ValueError, match=r"failpoint 'a\.b'"):
        enable("a.b", action, first_hit=first_hit)  # type: ignore[arg-type]
