"""Starts the nodes of a demo, waits until they serve, watches them, and stops all of them.

Owns the life of the demo. Every node is a session of its own, so that a Ctrl-C reaches the demo
alone, which then stops the nodes in order. A node that ends is reported and never started again:
killing one is what the demo is for. One that a user started again by hand is found by its pid
file and stopped too.
"""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import os
import signal
import socket
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import grpc
import grpc.aio
from grpc_health.v1 import health_pb2, health_pb2_grpc

from quorepo.rpc.config import split_address
from quorepo.rpc.demo.guide import guide
from quorepo.rpc.demo.layout import DemoLayout, DemoNode
from quorepo.rpc.node.pid_file import RunningNode, find_running
from quorepo.storage.errors import ConfigError, Unavailable
from quorepo.v1 import cluster_pb2, cluster_pb2_grpc

__all__ = ["READY_WAIT_S", "check_startable", "run_demo"]

READY_WAIT_S = 60.0  # a bound for loaded machines; a few seconds are normal
_STOP_WAIT_S = 40.0  # two processes of a node may take 15 s each
_POLL_INTERVAL_S = 0.1
_LOG_TAIL_LINES = 15
_LOG_LINE_CHARACTERS_MAX = 500  # a traceback is one line
_STORAGE_GROUP = 1
_NO_PROXY = [("grpc.enable_http_proxy", 0)]
_STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)

Say = Callable[[str], None]


def run_demo(layout: DemoLayout, say: Say) -> int:
    """Runs the demo in the foreground until it is told to stop.

    Returns:
        0 when it was told to stop.

    Raises:
        ConfigError: ports are taken, or the demo or a node of it runs already; nothing was started.
        Unavailable: the nodes did not become ready; all were stopped again.
    """
    with _lock(layout.root):
        check_startable(layout.nodes)
        layout.json_path.unlink(missing_ok=True)
        try:
            asyncio.run(_Demo(layout, say).run())
        finally:
            layout.json_path.unlink(missing_ok=True)  # its process ids mean nothing any more
            if layout.ephemeral:
                layout.remove_data()
    return 0


def check_startable(nodes: Sequence[DemoNode]) -> None:
    """Refuses to start beside a running node of this demo, or on a taken port.

    Raises:
        ConfigError
    """
    running = [(node, found) for node in nodes if (found := find_running(node.pid_file))]
    if running:
        who = ", ".join(f"{node.name} (process {found.pid})" for node, found in running)
        pids = " ".join(str(found.pid) for _node, found in running)
        raise ConfigError(
            f"nodes of this demo are running already: {who}; nothing was started",
            next_step=f"kill {pids}",
        )
    taken = [
        f"{address} ({what} of {node.name})"
        for node in nodes
        for what, address in node.addresses
        if _is_taken(address)
    ]
    if taken:
        raise ConfigError(
            f"taken already: {', '.join(taken)}; nothing was started",
            next_step="stop what listens there, or choose another --base-port and --data-dir",
        )


def _is_taken(address: str) -> bool:
    with socket.socket() as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind(split_address(address))
        except OSError:
            return True
    return False


@contextlib.contextmanager
def _lock(root: Path) -> Iterator[None]:
    descriptor = os.open(root / "run" / "demo.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ConfigError(
                f"another demo runs on {str(root)!r}; nothing was started",
                next_step="stop it or choose another --data-dir and --base-port",
            ) from None
        yield
    finally:
        os.close(descriptor)


class _Demo:
    def __init__(self, layout: DemoLayout, say: Say) -> None:
        self._layout = layout
        self._say = say
        self._stop = asyncio.Event()
        self._processes: dict[str, asyncio.subprocess.Process] = {}
        self._watchers: list[asyncio.Task[None]] = []

    async def run(self) -> None:
        loop = asyncio.get_running_loop()
        for number in _STOP_SIGNALS:
            loop.add_signal_handler(number, self._told_to_stop)
        started = time.monotonic()
        try:
            for node in self._layout.nodes:
                await self._start(node)
            problem = await self._wait_ready()
            if problem is None:
                return
            if problem:
                raise Unavailable(f"node {problem}")
            pids = [self._processes[node.name].pid for node in self._layout.nodes]
            leader = await self._leader()
            self._layout.write_json(pids)
            self._say(guide(self._layout, pids, leader, time.monotonic() - started))
            self._watchers = [
                asyncio.create_task(self._report_end(node)) for node in self._layout.nodes
            ]
            await self._stop.wait()
        finally:
            for watcher in self._watchers:
                watcher.cancel()
            await self._stop_nodes()

    def _told_to_stop(self) -> None:
        """The first signal stops the nodes in order, the next one kills them."""
        if self._stop.is_set():
            for process in self._processes.values():
                if process.returncode is None:
                    with contextlib.suppress(ProcessLookupError):
                        process.kill()
        self._stop.set()

    async def _start(self, node: DemoNode) -> None:
        with node.log.open("ab") as log:
            self._processes[node.name] = await asyncio.create_subprocess_exec(
                *node.argv,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                start_new_session=True,
            )

    async def _wait_ready(self) -> str | None:
        """Empty once every node is ready, else what went wrong; None when told to stop before."""
        self._say(f"quorepo demo: starting {len(self._layout.nodes)} node(s) …")
        waits = {asyncio.create_task(self._until_ready(node)): node for node in self._layout.nodes}
        stop = asyncio.create_task(self._stop.wait())
        deadline = time.monotonic() + READY_WAIT_S
        waiting: set[asyncio.Task[str]] = set(waits)
        try:
            while waiting:
                done, _pending = await asyncio.wait(
                    (stop, *waiting),
                    timeout=max(0.0, deadline - time.monotonic()),
                    return_when=asyncio.FIRST_COMPLETED,
                )
                if stop in done:
                    return None
                for task in waiting & done:
                    if problem := task.result():
                        return problem
                if not done:
                    late = waits[next(iter(waiting))]
                    return f"{late.name!r} was not ready after {READY_WAIT_S:g} s{_tail(late)}"
                waiting -= done
            return ""
        finally:
            for unfinished in (stop, *waits):
                unfinished.cancel()
            await asyncio.gather(stop, *waits, return_exceptions=True)

    async def _until_ready(self, node: DemoNode) -> str:
        """Empty once the node is ready, else why it never will be."""
        process = self._processes[node.name]
        request = health_pb2.HealthCheckRequest(service="readiness")
        options = [
            *_NO_PROXY,
            ("grpc.max_reconnect_backoff_ms", 200),
            ("grpc.initial_reconnect_backoff_ms", 50),
        ]
        async with grpc.aio.insecure_channel(node.grpc, options=options) as channel:
            stub = health_pb2_grpc.HealthStub(channel)
            while process.returncode is None:
                with contextlib.suppress(grpc.aio.AioRpcError):
                    answer = await stub.Check(request, timeout=1.0)
                    if answer.status == health_pb2.HealthCheckResponse.SERVING:
                        return ""
                await asyncio.sleep(_POLL_INTERVAL_S)
        how = _how(process.returncode)
        return f"{node.name!r} ended with {how} before it was ready{_tail(node)}"

    async def _leader(self) -> str:
        """Name of the node that leads the storage group; empty when nobody says."""
        metadata = (("authorization", f"Bearer {self._layout.admin_token}"),)
        address = self._layout.nodes[0].grpc
        async with grpc.aio.insecure_channel(address, options=_NO_PROXY) as channel:
            stub = cluster_pb2_grpc.ClusterServiceStub(channel)
            with contextlib.suppress(grpc.aio.AioRpcError):
                status = await stub.GetStatus(
                    cluster_pb2.GetStatusRequest(), timeout=5.0, metadata=metadata
                )
                return next((g.leader for g in status.groups if g.group == _STORAGE_GROUP), "")
        return ""

    async def _report_end(self, node: DemoNode) -> None:
        process = self._processes[node.name]
        code = await process.wait()
        self._say(
            f"quorepo demo: node {node.name} (process {process.pid}) ended with {_how(code)}; "
            f"its log: {node.log}"
        )

    async def _stop_nodes(self) -> None:
        if not self._processes:
            return
        self._say("quorepo demo: stopping …")
        ends = []
        for node in self._layout.nodes:
            process = self._processes.get(node.name)
            if process is not None and process.returncode is None:
                with contextlib.suppress(ProcessLookupError):
                    process.terminate()
                ends.append(asyncio.create_task(_end_of_child(process)))
            elif (again := find_running(node.pid_file)) is not None:
                again.send(signal.SIGTERM)
                ends.append(asyncio.create_task(_end_of(again)))
        if ends:
            await asyncio.wait(ends)
        self._say("quorepo demo: all nodes stopped")


async def _end_of_child(process: asyncio.subprocess.Process) -> None:
    try:
        async with asyncio.timeout(_STOP_WAIT_S):
            await process.wait()
    except TimeoutError:
        with contextlib.suppress(ProcessLookupError):
            process.kill()
        await process.wait()


async def _end_of(node: RunningNode) -> None:
    """Waits for a process that is not our child."""
    deadline = time.monotonic() + _STOP_WAIT_S
    while node.is_alive():
        if time.monotonic() > deadline:
            node.send(signal.SIGKILL)
        await asyncio.sleep(_POLL_INTERVAL_S)


def _how(code: int) -> str:
    return signal.Signals(-code).name if code < 0 else f"exit code {code}"


def _tail(node: DemoNode) -> str:
    lines = node.log.read_text(encoding="utf-8", errors="replace").splitlines()
    tail = "\n".join(f"  {line[:_LOG_LINE_CHARACTERS_MAX]}" for line in lines[-_LOG_TAIL_LINES:])
    return f"; all nodes were stopped; {node.log} ends with:\n{tail}"
