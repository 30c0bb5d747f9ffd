"""A demo cluster of real processes, started by the command and driven through its files."""

from __future__ import annotations

import contextlib
import datetime
import json
import os
import random
import signal
import socket
import subprocess
import sys
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Self
from urllib.parse import urlsplit

from quorepo.rpc.demo import layout as rpc_layout
from quorepo.rpc.demo.certificates import provide_certificates
from support.waiting import eventually

_PORTS_PER_NODE = 10


@dataclass
class DemoNode:
    """One node as `demo.json` describes it; `pid` follows restarts."""

    name: str
    pid: int
    argv: list[str]
    http: str
    grpc: str
    metrics: str
    data_dir: Path

    def alive(self) -> bool:
        try:
            os.kill(self.pid, 0)
        except ProcessLookupError:
            return False
        stat = Path(f"/proc/{self.pid}/stat").read_text()
        return stat.rpartition(")")[2].split()[0] != "Z"


class Demo:
    """`quorepo demo` in a subprocess. Use as a context manager."""

    def __init__(
        self, directory: Path, *options: str, nodes: int = 3, base_port: int | None = None
    ) -> None:
        self.directory = directory
        self._count = nodes
        self._options = options
        self._restarted: dict[str, subprocess.Popen[bytes]] = {}
        self._prepared: set[str] = set()
        self.base_port = base_port or free_base_port(nodes)
        self.nodes: dict[str, DemoNode] = {}
        self.token = ""
        self.wrapper: list[str] = []  # a command that runs the demo as its last arguments

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def start(self) -> None:
        self.log = (self.directory.parent / f"{self.directory.name}.out").open("ab")
        self.process = subprocess.Popen(
            [*self.wrapper, sys.executable, "-m", "quorepo", "demo", "--nodes", str(self._count),
             "--data-dir", str(self.directory), "--base-port", str(self.base_port), *self._options],
            stdout=self.log, stderr=subprocess.STDOUT, start_new_session=True,
        )  # fmt: skip
        description = self.directory / "demo.json"
        stale = description.stat().st_mtime_ns if description.exists() else 0

        def ready() -> bool:
            assert self.process.poll() is None, self.output()
            return description.exists() and description.stat().st_mtime_ns != stale

        eventually(ready, timeout_s=60, what="demo.json")
        content = json.loads(description.read_text())
        self.token = content["admin_token"]
        self.nodes = {
            node["name"]: DemoNode(**{**node, "data_dir": Path(node["data_dir"])})
            for node in content["nodes"]
        }

    def stop(self) -> None:
        """Ctrl-C; everything must be gone afterwards, restarted nodes too."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        self.process.wait(timeout=40)
        for name in self._prepared & self._restarted.keys():  # the demo does not know of them
            self._restarted[name].terminate()
        for process in self._restarted.values():
            process.wait(timeout=20)
        self.log.close()
        eventually(lambda: not any(n.alive() for n in self.nodes.values()), what="all nodes ended")

    def output(self) -> str:
        return Path(self.log.name).read_text()

    def kill(self, name: str) -> None:
        """kill -9 of the node's supervisor; returns once the process is gone."""
        node = self.nodes[name]
        restarted = self._restarted.get(name)
        if restarted is None or restarted.poll() is None:  # else it ended by itself
            os.kill(node.pid, signal.SIGKILL)
        if restarted is not None:
            self._restarted.pop(name).wait()
        eventually(lambda: not node.alive(), what=f"{name} ended")

    def restart(self, name: str, **environment: str) -> None:
        """Starts a killed node again by its argv, with these variables besides its environment."""
        node = self.nodes[name]
        former = self._restarted.pop(name, None)  # ended by itself, or by a signal
        if former is not None:
            former.wait(timeout=60)
        with (self.directory.parent / f"{name}.restart.log").open("ab") as log:
            process = subprocess.Popen(
                node.argv, stdout=log, stderr=subprocess.STDOUT, start_new_session=True, cwd="/",
                env={**os.environ, **environment},
            )  # fmt: skip
        self._restarted[name] = process
        node.pid = process.pid

    def prepare(self, name: str) -> DemoNode:
        """One more node, with a certificate of the demo's CA: `restart` starts it, and it waits to
        be added. Needs ports: give the demo a `base_port` of `free_base_port` for all of them."""
        layout = rpc_layout.prepare(self.directory, self._count, self.base_port)
        first_port = self.base_port + (int(name[1:]) - 1) * _PORTS_PER_NODE
        extra = rpc_layout.DemoNode(name, layout.root, first_port)
        self._prepared.add(name)
        names = [node.name for node in (*layout.nodes, extra)]
        now = datetime.datetime.now(datetime.UTC)
        provide_certificates(layout.root / "secrets", names, now)
        text = rpc_layout._node_toml(extra, (*layout.nodes, extra), create_on_push=True)
        extra.config.write_text(text)
        self.nodes[name] = DemoNode(
            name, 0, extra.argv, f"http://{extra.http}", extra.grpc,
            f"http://{extra.metrics}/metrics", extra.data_dir,
        )  # fmt: skip
        return self.nodes[name]

    def process_of(self, name: str) -> subprocess.Popen[bytes]:
        """The supervisor of a node that this test has started again."""
        return self._restarted[name]

    def url(self, name: str, path: str) -> str:
        parts = urlsplit(self.nodes[name].http)
        return f"http://admin:{self.token}@{parts.netloc}/{path}"

    def cli(
        self, *arguments: str, node: str | None = None, check: bool = True
    ) -> subprocess.CompletedProcess[str]:
        """Runs the `quorepo` command against a node."""
        endpoint = next(iter(self.nodes.values())) if node is None else self.nodes[node]
        process = subprocess.run(
            [sys.executable, "-m", "quorepo", "--endpoint", endpoint.grpc, *arguments],
            env={**os.environ, "QUOREPO_TOKEN": self.token, "NO_COLOR": "1"},
            capture_output=True, text=True, timeout=120, check=False,
        )  # fmt: skip
        assert not check or process.returncode == 0, process.stdout + process.stderr
        return process

    def status(self, node: str | None = None) -> dict[str, Any]:
        status: dict[str, Any] = json.loads(self.cli("status", "-o", "json", node=node).stdout)
        return status

    def leader(self, group: int, ask: str | None = None) -> str:
        """The leader of a group as some living node knows it."""

        def probe() -> str:
            for name in [ask] if ask else list(self.nodes):
                if not self.nodes[name].alive():
                    continue
                process = self.cli("status", "-o", "json", node=name, check=False)
                if process.returncode:
                    continue
                groups = json.loads(process.stdout)["groups"]
                leader: str = next((g["leader"] for g in groups if g["group"] == group), "")
                if leader and self.nodes[leader].alive():
                    return leader
            return ""

        return eventually(probe, what=f"leader of group {group}")

    def metrics(self, name: str) -> str:
        with urllib.request.urlopen(self.nodes[name].metrics, timeout=10) as response:
            return str(response.read().decode())


def free_base_port(nodes: int) -> int:
    """A base port whose whole range nobody listens on, below the ephemeral range."""
    for _ in range(200):
        base = random.randrange(10_000, 30_000, _PORTS_PER_NODE)
        with contextlib.ExitStack() as stack:
            try:
                for port in range(base, base + nodes * _PORTS_PER_NODE):
                    listener = stack.enter_context(socket.socket())
                    listener.bind(("127.0.0.1", port))
            except OSError:
                continue
            return base
    raise AssertionError("no free range of ports")
