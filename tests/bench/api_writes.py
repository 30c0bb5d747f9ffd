"""CommitFiles on three nodes next to the same commit made by C git on one, durably.

    PYTHONPATH=tests .venv/bin/python -m bench.api_writes [--repository DIR] [--calls N]

A demo of three nodes (real processes, Raft, fsync) and one client, one call after the other: a file
of 1 KiB is written to a path that the repository has. The peer does the same in a bare repository
with `core.fsync=all`: `hash-object -w`, `write-tree`, `commit-tree`, `update-ref`, a process each
(its index is kept up to date outside of the time). Calls alternate between the two, so that what
else the machine does meets both. Printed are p50 and p99 in milliseconds, calls per second of one
client, and the ratio of medians; then calls per second of four clients on branches of their own.
"""

from __future__ import annotations

import argparse
import hashlib
import os
import random
import statistics
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grpc
from support.demo import Demo
from support.git import ENVIRONMENT

from bench.generated import COMMITS, generate
from quorepo.v1 import commit_pb2, operation_pb2, operation_pb2_grpc

PATH = "bench/writes"
CONTENT_BYTES = 1024
CLIENTS = 4
ADA = commit_pb2.Signature(name=b"Ada", email=b"ada@example.org")
REQUEST = operation_pb2.CommitFilesRequest


class Git:
    """A process per step in a bare repository that is as careful about the disk as we are."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._environment = {**ENVIRONMENT, "GIT_INDEX_FILE": str(folder / "bench-index")}
        for key, value in (("core.fsync", "all"), ("gc.auto", "0")):
            self.run("config", key, value)
        self.run("read-tree", "main")
        self.run("write-tree")

    def run(self, *arguments: str, data: bytes = b"") -> str:
        done = subprocess.run(
            ["git", *arguments], cwd=self._folder, env=self._environment, input=data,
            capture_output=True, check=True,
        )  # fmt: skip
        return done.stdout.decode().strip()

    def commit(self, path: str, content: bytes) -> float:
        """Milliseconds that the four steps took."""
        started = time.perf_counter()
        blob = self.run("hash-object", "-w", "--stdin", data=content)
        first = time.perf_counter() - started
        self.run("update-index", "--add", "--cacheinfo", f"100644,{blob},{path}")
        started = time.perf_counter()
        tree = self.run("write-tree")
        commit = self.run("commit-tree", tree, "-p", "main", "-m", "bench")
        self.run("update-ref", "refs/heads/main", commit)
        return (first + time.perf_counter() - started) * 1000


class Api:
    """A client of one node."""

    def __init__(self, demo: Demo, node: str) -> None:
        self._stub = operation_pb2_grpc.OperationServiceStub(
            grpc.insecure_channel(demo.nodes[node].grpc)
        )
        self._metadata = (("authorization", f"Bearer {demo.token}"),)

    def commit(self, path: str, content: bytes, branch: str = "main") -> float:
        """Milliseconds of one call."""
        started = time.perf_counter()
        self._stub.CommitFiles(_messages(path, content, branch), metadata=self._metadata)
        return (time.perf_counter() - started) * 1000


def _messages(path: str, content: bytes, branch: str) -> Iterator[REQUEST]:
    yield REQUEST(
        header=REQUEST.Header(
            repository=PATH, branch=branch.encode(), message=b"bench", author=ADA, start=b"main"
        )
    )
    action = REQUEST.Action(kind=REQUEST.KIND_WRITE, path=path.encode(), content=content)
    yield REQUEST(action=action)
    yield REQUEST(sha256=hashlib.sha256(content).digest())


def told(values: list[float]) -> str:
    p50, p99 = statistics.median(values), sorted(values)[int(len(values) * 0.99)]
    return f"{p50:8.2f} {p99:8.2f} {1000 / statistics.mean(values):8.0f}"


def side_by_side(demo: Demo, git: Git, files: list[str], calls: int) -> None:
    chance = random.Random(1)
    leader = demo.leader(1)
    follower = next(name for name in demo.nodes if name != leader)
    print(f"{'ms':24}      p50      p99  calls/s")
    for name, node in (("leader", leader), ("follower", follower)):
        api, ours, theirs = Api(demo, node), [], []
        for number in range(calls + 5):
            path, content = chance.choice(files), os.urandom(CONTENT_BYTES)
            one, other = api.commit(path, content), git.commit(path, content)
            if number >= 5:
                ours.append(one)
                theirs.append(other)
        ratio = statistics.median(ours) / statistics.median(theirs)
        print(f"{'CommitFiles at ' + name:24} {told(ours)}")
        print(f"{'git':24} {told(theirs)}   ratio {ratio:.2f}", flush=True)


def together(demo: Demo, files: list[str], calls: int) -> None:
    nodes = list(demo.nodes)

    def work(number: int) -> None:
        api, chance = Api(demo, nodes[number % len(nodes)]), random.Random(number)
        for _ in range(calls):
            api.commit(chance.choice(files), os.urandom(CONTENT_BYTES), f"client-{number}")

    threads = [threading.Thread(target=work, args=[number]) for number in range(CLIENTS)]
    started = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    rate = CLIENTS * calls / (time.perf_counter() - started)
    print(f"{CLIENTS} clients on all nodes: {rate:.0f} calls/s")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repository", type=Path, help="a bare one; default: 5k objects made here")
    parser.add_argument("--calls", type=int, default=100)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="quorepo-bench-") as name:
        folder = Path(name)
        source = arguments.repository
        if source is None:
            source = folder / "source"
            generate(source, COMMITS["5k"], 1)
        peer = folder / "git"
        quiet: dict[str, Any] = {"check": True, "capture_output": True}
        subprocess.run(["git", "clone", "-q", "--bare", str(source), str(peer)], **quiet)
        branch = subprocess.check_output(["git", "symbolic-ref", "HEAD"], cwd=peer, text=True)
        subprocess.run(["git", "update-ref", "refs/heads/main", branch.strip()], cwd=peer, **quiet)
        with Demo(folder / "demo") as demo:
            subprocess.run(
                ["git", "push", "-q", demo.url("n1", PATH), "refs/heads/main"], cwd=peer, **quiet
            )
            git = Git(peer)
            files = git.run("ls-tree", "-r", "--name-only", "main").splitlines()
            side_by_side(demo, git, files, arguments.calls)
            together(demo, files, arguments.calls)


if __name__ == "__main__":
    main()
