"""The supervisor against small fake children, real processes and real signals."""

from __future__ import annotations

import asyncio
import os
import select
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path

import pytest

from quorepo.rpc.node.supervisor import ChildSpec, RestartPolicy, Supervisor, node_children
from quorepo.storage.errors import FatalError

QUICK = RestartPolicy(backoff_s_min=0.01, backoff_s_max=0.05, stop_timeout_s=5)


def child(name: str, code: str, *arguments: str) -> ChildSpec:
    return ChildSpec(name, (sys.executable, "-c", textwrap.dedent(code), *arguments))


def waiting(at_the_end: str = "") -> str:
    """A child that leaves its first argument behind as a file, then waits for SIGTERM."""
    return f"""
    import pathlib, signal, sys
    signal.pthread_sigmask(signal.SIG_BLOCK, {{signal.SIGTERM}})
    path = pathlib.Path(sys.argv[1])
    path.touch()
    signal.sigwait({{signal.SIGTERM}})
    {at_the_end}
    """


async def until(condition: Callable[[], bool], timeout_s: float = 10) -> None:
    async with asyncio.timeout(timeout_s):
        while not condition():
            await asyncio.sleep(0.01)


def wait_gone(pid: int, timeout_s: float) -> bool:
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        return bool(select.select([descriptor], [], [], timeout_s)[0])
    finally:
        os.close(descriptor)


async def test_a_child_that_dies_is_started_again(tmp_path: Path) -> None:
    log = tmp_path / "starts"
    crash_twice = """
    import os, pathlib, signal, sys
    signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGTERM})
    path = pathlib.Path(sys.argv[1])
    with path.open("a") as file:
        file.write("x")
    if path.stat().st_size < 3:
        os.kill(os.getpid(), signal.SIGKILL)
    signal.sigwait({signal.SIGTERM})
    """
    supervisor = Supervisor([child("core", crash_twice, str(log))], QUICK)
    running = asyncio.create_task(supervisor.run())
    await until(lambda: log.exists() and log.stat().st_size == 3)
    supervisor.stop()
    assert await running == 0
    assert log.read_text() == "xxx"


@pytest.mark.parametrize("code", [FatalError.EXIT_IO_ERROR, FatalError.EXIT_CONFIG])
async def test_an_io_or_configuration_error_stops_the_node_with_its_code(
    tmp_path: Path, code: int
) -> None:
    log = tmp_path / "starts"
    gives_up = f"""
    import pathlib, sys
    with pathlib.Path(sys.argv[1]).open("a") as file:
        file.write("x")
    sys.exit({code})
    """
    other = child("edge", waiting(), str(tmp_path / "edge"))
    supervisor = Supervisor([child("core", gives_up, str(log)), other], QUICK)
    async with asyncio.timeout(20):
        assert await supervisor.run() == code
    assert log.read_text() == "x"


async def test_edge_ends_before_core_is_told_to(tmp_path: Path) -> None:
    core, edge = tmp_path / "core", tmp_path / "edge"
    look = f"path.write_text(str(pathlib.Path({str(edge)!r}).exists()))"
    first = child("core", waiting(look), str(core))
    second = child("edge", waiting("path.unlink()"), str(edge))
    supervisor = Supervisor([first, second], QUICK)
    running = asyncio.create_task(supervisor.run())
    await until(lambda: core.exists() and edge.exists())
    os.kill(os.getpid(), signal.SIGTERM)
    assert await running == 0
    assert core.read_text() == "False"


async def test_a_child_that_ignores_sigterm_is_killed_after_the_timeout(tmp_path: Path) -> None:
    deaf = """
    import pathlib, signal, sys
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    pathlib.Path(sys.argv[1]).touch()
    while True:
        signal.pause()
    """
    policy = RestartPolicy(stop_timeout_s=0.1)
    supervisor = Supervisor([child("core", deaf, str(tmp_path / "up"))], policy)
    running = asyncio.create_task(supervisor.run())
    await until((tmp_path / "up").exists)
    supervisor.stop()
    async with asyncio.timeout(5):
        assert await running == 0


async def test_a_second_signal_kills_without_waiting(tmp_path: Path) -> None:
    deaf = """
    import pathlib, signal, sys
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    pathlib.Path(sys.argv[1]).touch()
    while True:
        signal.pause()
    """
    supervisor = Supervisor([child("core", deaf, str(tmp_path / "up"))], RestartPolicy())
    running = asyncio.create_task(supervisor.run())
    await until((tmp_path / "up").exists)
    supervisor.stop()
    supervisor.stop()
    async with asyncio.timeout(5):
        assert await running == 0


def test_kill_9_of_the_supervisor_takes_every_descendant_along(tmp_path: Path) -> None:
    script = tmp_path / "node.py"
    script.write_text(
        textwrap.dedent(
            """
            import asyncio, os, pathlib, signal, subprocess, sys

            folder = pathlib.Path(sys.argv[2])

            def leave_pid(name):
                temporary = folder / (name + ".new")
                temporary.write_text(str(os.getpid()))
                temporary.rename(folder / name)

            if sys.argv[1] == "supervisor":
                from quorepo.rpc.node.supervisor import ChildSpec, Supervisor
                spec = ChildSpec("edge", (sys.executable, __file__, "edge", sys.argv[2]))
                asyncio.run(Supervisor([spec]).run())
            else:
                from quorepo.rpc.node.process import PARENT_VARIABLE, die_with_parent
                die_with_parent()
                if sys.argv[1] == "edge":
                    environment = {**os.environ, PARENT_VARIABLE: str(os.getpid())}
                    arguments = [sys.executable, __file__, "worker", sys.argv[2]]
                    subprocess.Popen(arguments, env=environment)
                leave_pid(sys.argv[1])
                while True:
                    signal.pause()
            """
        )
    )
    supervisor = subprocess.Popen(
        [sys.executable, str(script), "supervisor", str(tmp_path)],
        stderr=subprocess.DEVNULL,
        start_new_session=True,
    )
    try:
        pids = [_wait_for_pid(tmp_path / name, supervisor) for name in ("edge", "worker")]
    finally:
        supervisor.kill()
        supervisor.wait()
    for pid in pids:
        assert wait_gone(pid, 2.0), f"process {pid} outlived the supervisor"


def _wait_for_pid(path: Path, supervisor: subprocess.Popen[bytes]) -> int:
    async def wait() -> int:
        await until(lambda: path.exists() or supervisor.poll() is not None)
        return int(path.read_text())

    return asyncio.run(wait())


def test_backoff_doubles_to_its_limit_and_starts_over_after_a_healthy_run() -> None:
    policy = RestartPolicy()
    waits, previous = [], 0.0
    for _ in range(8):
        previous = policy.next_backoff_s(previous, ran_s=0.5)
        waits.append(previous)
    assert waits == [0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5.0, 5.0]
    assert policy.next_backoff_s(previous, ran_s=10) == 0.1


def test_a_node_is_core_and_edge_with_absolute_arguments(tmp_path: Path) -> None:
    core, edge = node_children(tmp_path / "node.toml", tmp_path / "run")
    assert core.argv[:4] == (sys.executable, "-P", "-m", "quorepo.rpc.node.core_main")
    assert edge.argv[3] == "quorepo.rpc.node.edge_main"
    assert edge.argv[4:] == (
        "--config",
        str(tmp_path / "node.toml"),
        "--runtime-dir",
        str(tmp_path / "run"),
    )
