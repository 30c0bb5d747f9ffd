"""A client that pushes one branch after another, and knows what was promised to it."""

from __future__ import annotations

import dataclasses
import itertools
import subprocess
import threading
import time
from collections.abc import Iterable

from support.demo import Demo
from support.git import WorkTree, through_the_api
from support.waiting import eventually

__all__ = ["Failure", "Pusher", "RepeatingPusher", "longest_gap_s"]


class Pusher(threading.Thread):
    """Pushes one new branch after another to the given nodes in turn; remembers each verdict.

    `api`: through the gRPC API instead of HTTP.
    """

    def __init__(
        self, demo: Demo, work: WorkTree, path: str, nodes: list[str], *, api: bool = False
    ) -> None:
        super().__init__(daemon=True)
        self._api = api
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
            process = self._push(node, f"{oid}:{ref}")
            if process.returncode == 0:
                self.acknowledged[ref] = oid
                self.acknowledged_at.append(time.monotonic())
            elif "[remote rejected]" in process.stderr:
                self.refused[ref] = oid
            else:
                self.unknown[ref] = oid

    def _push(self, node: str, change: str) -> subprocess.CompletedProcess[str]:
        url, environment = self._demo.url(node, self._path), {}
        if self._api:
            url = f"cluster:{self._path}"
            environment = through_the_api(self._demo.nodes[node].grpc, self._demo.token)
        return self._work.git("push", url, change, check=False, environment=environment)

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


@dataclasses.dataclass(frozen=True)
class Failure:
    """One push that did not succeed; the times are of the monotonic clock, in seconds."""

    ref: str
    started: float
    ended: float
    stderr: str


class RepeatingPusher(threading.Thread):
    """Pushes to one node; what fails is pushed again, the same, until it succeeds."""

    def __init__(self, url: str, work: WorkTree, prefix: str) -> None:
        super().__init__(daemon=True)
        self._url, self._work, self._prefix = url, work, prefix
        self._stop_requested = threading.Event()
        self.acknowledged: dict[str, str] = {}
        self.acknowledged_at: list[float] = []
        self.failures: list[Failure] = []
        self.open = ""  # a ref whose push has not succeeded yet

    def run(self) -> None:
        for number in itertools.count(1):
            if self._stop_requested.is_set():
                return
            oid = self._work.commit(f"{self._prefix} {number}")
            self.open = f"refs/heads/{self._prefix}-{number}"
            while not self._push(self.open, oid):
                if self._stop_requested.wait(0.05):
                    return
            self.open = ""

    def _push(self, ref: str, oid: str) -> bool:
        started = time.monotonic()
        process = self._work.git("push", self._url, f"{oid}:{ref}", check=False)
        ended = time.monotonic()
        if process.returncode:
            self.failures.append(Failure(ref, started, ended, process.stderr))
            return False
        self.acknowledged[ref] = oid
        self.acknowledged_at.append(ended)
        return True

    def wait_for_another(self, timeout_s: float = 60) -> None:
        """Returns once a push that ended after this call was acknowledged."""
        goal = len(self.acknowledged) + 1
        eventually(
            lambda: len(self.acknowledged) >= goal,
            timeout_s=timeout_s,
            what=f"a push acknowledged to {self._prefix}",
        )

    def finish(self) -> None:
        self._stop_requested.set()
        self.join()


def longest_gap_s(pushers: Iterable[RepeatingPusher]) -> float:
    """The longest time in which none of them was acknowledged anything, in seconds."""
    times = sorted(at for pusher in pushers for at in pusher.acknowledged_at)
    return max((after - before for before, after in itertools.pairwise(times)), default=0.0)
