"""A client that pushes one branch after another, and knows what was promised to it."""

from __future__ import annotations

import threading
import time

from support.demo import Demo
from support.git import WorkTree
from support.waiting import eventually

__all__ = ["Pusher"]


class Pusher(threading.Thread):
    """Pushes one new branch after another to the given nodes in turn; remembers each verdict."""

    def __init__(self, demo: Demo, work: WorkTree, path: str, nodes: list[str]) -> None:
        super().__init__(daemon=True)
        self._demo, self._work, self._path, self._nodes = demo, work, path, nodes
        self._stop_requested = threading.Event()
        self.acknowledged: dict[str, str] = {}
        self.refused: dict[str, str] = {}
        self.unknown: dict[str, str] = {}
        self.acknowledged_at: list[float] = []

    def run(self) -> None:
        number = 0
        while not self._stop_requested.is_set():
            number += 1
            node = self._nodes[number % len(self._nodes)]
            oid = self._work.commit(f"change {number}", {f"file{number % 7}": f"{number}\n"})
            ref = f"refs/heads/b{number}"
            url = self._demo.url(node, self._path)
            process = self._work.git("push", url, f"{oid}:{ref}", check=False)
            if process.returncode == 0:
                self.acknowledged[ref] = oid
                self.acknowledged_at.append(time.monotonic())
            elif "[remote rejected]" in process.stderr:
                self.refused[ref] = oid
            else:
                self.unknown[ref] = oid

    def finish(self) -> None:
        self._stop_requested.set()
        self.join()

    def wait_for(self, acknowledged: int) -> None:
        goal = len(self.acknowledged) + acknowledged
        eventually(
            lambda: len(self.acknowledged) >= goal, timeout_s=40, what=f"{goal} acknowledged pushes"
        )

    def check(self, refs: dict[str, str]) -> None:
        for ref, oid in self.acknowledged.items():
            assert refs.get(ref) == oid, f"acknowledged {ref} is missing"
        for ref in self.refused:
            assert ref not in refs, f"refused {ref} appeared"
