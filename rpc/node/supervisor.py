"""The parent of a node's processes: starts core and edge, restarts what dies, stops them in order.

Owns when a process is started, restarted or given up, and the node's exit code. Must not know
Raft, git or sockets; it imports nothing heavy and touches no data, so that it has no reason to
die itself.

If it is killed nevertheless, the kernel kills its children at once (`process.die_with_parent`);
it never asks for the same from its own parent: a node outlives the shell or the demo that started
it.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import os
import signal
import sys
from collections.abc import Sequence
from pathlib import Path

from quorepo.rpc.node.process import EXIT_OK, PARENT_VARIABLE
from quorepo.storage.errors import FatalError
from quorepo.storage.logs import fields

__all__ = ["ChildSpec", "RestartPolicy", "Supervisor", "node_children"]

log = logging.getLogger(__name__)

_NEVER_RESTARTED = frozenset({FatalError.EXIT_IO_ERROR, FatalError.EXIT_CONFIG})
_STOP_SIGNALS = (signal.SIGTERM, signal.SIGINT, signal.SIGHUP)


@dataclasses.dataclass(frozen=True, slots=True)
class ChildSpec:
    """A process to keep running."""

    name: str
    argv: tuple[str, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class RestartPolicy:
    """How long to wait: before a restart, and for an orderly end."""

    backoff_s_min: float = 0.1
    backoff_s_max: float = 5.0
    healthy_after_s: float = (
        10.0  # a process that ran this long starts again with the smallest wait
    )
    stop_timeout_s: float = 15.0  # for one process to end after SIGTERM, then SIGKILL

    def next_backoff_s(self, previous_s: float, ran_s: float) -> float:
        """The wait before the next start, after one that ran for `ran_s`; 0 previously means
        none."""
        if ran_s >= self.healthy_after_s or previous_s == 0:
            return self.backoff_s_min
        return min(previous_s * 2, self.backoff_s_max)


def node_children(config: Path, runtime_dir: Path) -> tuple[ChildSpec, ...]:
    """The processes of one node, in the order in which they start; they stop in reverse."""
    arguments = ("--config", str(config), "--runtime-dir", str(runtime_dir))

    def child(name: str) -> ChildSpec:
        # -P: nothing in the working directory may shadow a module.
        module = f"quorepo.rpc.node.{name}_main"
        return ChildSpec(name, (sys.executable, "-P", "-m", module, *arguments))

    return (child("core"), child("edge"))


class Supervisor:
    """Keeps a node's processes running until it is told to stop or one of them must not run
    again."""

    def __init__(self, children: Sequence[ChildSpec], policy: RestartPolicy | None = None) -> None:
        self._children = tuple(children)
        self._policy = policy or RestartPolicy()
        self._processes: dict[str, asyncio.subprocess.Process] = {}
        self._stopping = asyncio.Event()
        self._kill_now = asyncio.Event()
        self._exit_code = EXIT_OK

    async def run(self) -> int:
        """Starts everything and returns the node's exit code once everything has ended.

        Must run on the main thread: the kernel ties a child's life to the thread that started it.
        """
        loop = asyncio.get_running_loop()
        for number in _STOP_SIGNALS:
            loop.add_signal_handler(number, self.stop)
        keepers = {spec.name: asyncio.create_task(self._keep(spec)) for spec in self._children}
        try:
            stopping = asyncio.create_task(self._stopping.wait())
            await asyncio.wait((stopping, *keepers.values()), return_when=asyncio.FIRST_COMPLETED)
            self._stopping.set()
            for spec in reversed(self._children):
                await self._end(spec.name)
                await keepers[spec.name]
        finally:
            self._kill_all()
            for number in _STOP_SIGNALS:
                loop.remove_signal_handler(number)
        return self._exit_code

    def stop(self) -> None:
        """Begins an orderly stop; asked a second time, kills."""
        if self._stopping.is_set():
            self._kill_now.set()
        self._stopping.set()

    async def _keep(self, spec: ChildSpec) -> None:
        loop = asyncio.get_running_loop()
        backoff_s = 0.0
        while not self._stopping.is_set():
            started = loop.time()
            process = await self._start(spec)
            if self._stopping.is_set():  # told to stop while the process was being started
                await self._end(spec.name)
            code = await process.wait()
            if self._stopping.is_set():
                return
            if code in _NEVER_RESTARTED:
                log.error("process gave up", extra=fields(child=spec.name, exit_code=code))
                self._exit_code = code
                self._stopping.set()
                return
            backoff_s = self._policy.next_backoff_s(backoff_s, loop.time() - started)
            log.warning(
                "process ended, restarting",
                extra=fields(child=spec.name, ended=_describe(code), backoff_s=backoff_s),
            )
            with contextlib.suppress(TimeoutError):
                await asyncio.wait_for(self._stopping.wait(), backoff_s)

    async def _start(self, spec: ChildSpec) -> asyncio.subprocess.Process:
        environment = {**os.environ, PARENT_VARIABLE: str(os.getpid())}
        process = await asyncio.create_subprocess_exec(
            *spec.argv, stdin=asyncio.subprocess.DEVNULL, env=environment
        )
        self._processes[spec.name] = process
        log.info("process started", extra=fields(child=spec.name, pid=process.pid))
        return process

    async def _end(self, name: str) -> None:
        process = self._processes.get(name)
        if process is None or process.returncode is not None:
            return
        with contextlib.suppress(ProcessLookupError):
            process.terminate()
        ended = asyncio.create_task(process.wait())
        hurry = asyncio.create_task(self._kill_now.wait())
        await asyncio.wait(
            (ended, hurry),
            timeout=self._policy.stop_timeout_s,
            return_when=asyncio.FIRST_COMPLETED,
        )
        hurry.cancel()
        if not ended.done():
            log.warning("process did not end in time, killing", extra=fields(child=name))
            with contextlib.suppress(ProcessLookupError):
                process.kill()
        await ended

    def _kill_all(self) -> None:
        for process in self._processes.values():
            if process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.kill()


def _describe(code: int) -> str:
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    return f"exit code {code}"
