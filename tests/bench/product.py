"""The whole product for a load from outside: a demo of three nodes with a small repository."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from support.demo import Demo
from support.git import WorkTree

from bench.load import drive

__all__ = ["Product"]

_PATH = "bench/commits"
_STORAGE = 1


class Product:
    """A context manager: `load` drives one of its nodes."""

    def __init__(self, directory: Path) -> None:
        self._directory = directory
        self.demo = Demo(directory / "demo")
        self._oids: list[str] = []

    def __enter__(self) -> Product:
        self._directory.mkdir(parents=True)
        self.demo.start()
        try:
            work = WorkTree(self._directory / "work")
            self._oids = [work.commit("first"), work.commit("second")]
            url = self.demo.url(self.demo.leader(_STORAGE), _PATH)
            work.git("push", "--quiet", url, "HEAD:refs/heads/main")
        except BaseException:
            self.demo.stop()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        self.demo.stop()

    def load(
        self, operation: str, clients: int, seconds: float, *, leads: bool = True
    ) -> dict[str, Any]:
        """`put` (UpdateRefs) or `get` (GetRef, linearizable)."""
        leader = self.demo.leader(_STORAGE)
        node = leader if leads else next(name for name in self.demo.nodes if name != leader)
        return drive(
            server="quorepo",
            endpoint=self.demo.nodes[node].grpc,
            operation=operation,
            clients=clients,
            seconds=seconds,
            token=self.demo.token,
            repository=_PATH,
            oids=self._oids,
        )
