"""Three core processes on loopback, each with a load inside (engine_node.py): the engine alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from support.demo import free_base_port

from bench.etcd import Figures
from quorepo.rpc.demo.layout import prepare

__all__ = ["EngineCluster"]

_STORAGE = 1
_READY_TIMEOUT_S = 60.0


class _Node:
    """One process, and the way to tell it what to do."""

    def __init__(self, config: Path, runtime: Path, groups: int, log: Path) -> None:
        runtime.mkdir()
        tests = str(Path(__file__).resolve().parents[1])
        with log.open("wb") as errors:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "bench.engine_node", str(config), str(runtime), str(groups)],
                env={**os.environ, "PYTHONPATH": tests},
                stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=errors, text=True,
            )  # fmt: skip

    def send(self, **command: Any) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(json.dumps(command) + "\n")
        self.process.stdin.flush()

    def answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the node ended with {self.process.wait()}")
        answer: dict[str, Any] = json.loads(line)
        if "error" in answer:
            raise RuntimeError(answer["error"])
        return answer

    def ask(self, **command: Any) -> dict[str, Any]:
        self.send(**command)
        return self.answer()


class EngineCluster:
    """A context manager; `overrides` are `section.key=value` of the configuration."""

    def __init__(
        self, directory: Path, *, groups: int = 3, overrides: tuple[str, ...] = ()
    ) -> None:
        self._layout = prepare(directory, 3, free_base_port(3), overrides=overrides)
        self._groups = groups
        self._runtime = tempfile.TemporaryDirectory(prefix="qb-", dir="/tmp")  # a short socket path
        self.nodes: list[_Node] = []

    def __enter__(self) -> EngineCluster:
        for node in self._layout.nodes:
            runtime = Path(self._runtime.name) / node.name
            self.nodes.append(_Node(node.config, runtime, self._groups, node.log))
        try:
            for group in range(self._groups):
                self.node(leads=True, group=group)
        except BaseException:
            self.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    def stop(self) -> None:
        for node in self.nodes:
            node.process.terminate()
        for node in self.nodes:
            node.process.wait(timeout=30)
        self._runtime.cleanup()

    @property
    def pids(self) -> list[int]:
        return [node.process.pid for node in self.nodes]

    def node(self, *, leads: bool, group: int = _STORAGE) -> _Node:
        """A group's leader, or a node that follows it."""
        wanted = "leader" if leads else "follower"
        deadline = time.monotonic() + _READY_TIMEOUT_S
        while time.monotonic() < deadline:
            found = [node.ask(do="status", group=group) for node in self.nodes]
            if all(status["leader"] for status in found):
                for node, status in zip(self.nodes, found, strict=True):
                    if status["role"] == wanted:
                        return node
            time.sleep(0.1)
        raise RuntimeError(f"no {wanted}; see {self._layout.root / 'logs'}")

    def load(self, kind: str, clients: int, seconds: float, *, leads: bool = True) -> Figures:
        """`put`, `refs` or `read` at the leader or at a follower; see engine_node.py."""
        group = self._groups - 1 if kind == "put" else _STORAGE
        return self.node(leads=leads, group=group).ask(do=kind, clients=clients, seconds=seconds)
