"""Reads of the gRPC API next to the same questions asked of C git.

    PYTHONPATH=tests .venv/bin/python -m bench.api_reads [--quick] [--repository DIR] [--calls N]

Three nodes as real processes, one client, one call after the other, all at one node that leads
nothing. Every question is asked N times of the API (consistency `local`, where not said
otherwise), of a `git` process per call, and, where that can answer it, of one `git cat-file
--batch` that stays open: in turn, so that what disturbs one disturbs all. git has a commit-graph.
Printed are p50 and p99 in milliseconds and calls per second, the ratio of medians, the target that
issue 5 sets, and whether it was met. `--quick` is for a look: a tenth of the calls.

No row asks about the same commit, or the same commit and path, twice, so nothing is answered that
was answered before; what a node keeps of the repository (objects, parsed trees, what differs
between two versions of a file) it keeps from one question to the next. Blame has a row for files
that were never blamed before. The client is grpcio's, with the channel options of `quorepo.Client`.
"""

from __future__ import annotations

import argparse
import dataclasses
import os
import random
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import grpc
from support.demo import Demo
from support.git import ENVIRONMENT
from support.waiting import eventually

from bench.generated import COMMITS, generate
from quorepo.rpc.client.options import CHANNEL_OPTIONS
from quorepo.v1 import (
    blob_pb2,
    blob_pb2_grpc,
    commit_pb2,
    commit_pb2_grpc,
    common_pb2,
    diff_pb2,
    diff_pb2_grpc,
)

CONSISTENCIES = {
    "local": common_pb2.Consistency(local=common_pb2.Consistency.Local()),
    "linearizable": common_pb2.Consistency(linearizable=common_pb2.Consistency.Linearizable()),
}
PATH = "bench/reads"
BATCH = 500
LARGE_FILES, LARGE_BYTES = 8, 64 * 1024
WARM_UP = 5
LOCAL_TARGET, LINEARIZABLE_TARGET, BATCH_TARGET = 0.6, 2.0, 3.0

Ask = Callable[[str, str], Any]


@dataclasses.dataclass
class Question:
    """One row: the same question three times; each function takes a commit and a path."""

    name: str
    api: Ask
    git: Ask
    open_git: Ask | None = None
    target: float | None = LOCAL_TARGET
    share: float = 1.0  # of the calls
    paths_once: bool = False  # as many calls as there are files, each about another one
    per: int = 1  # things in one call


class Git:
    """A process per call, and one that stays open."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.batch = subprocess.Popen(
            ["git", "cat-file", "--batch"],
            cwd=folder,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
        )

    def run(self, *arguments: str) -> bytes:
        return subprocess.run(
            ["git", *arguments], cwd=self.folder, env=ENVIRONMENT, capture_output=True, check=True
        ).stdout

    def object(self, name: str) -> bytes:
        assert self.batch.stdin is not None
        assert self.batch.stdout is not None
        self.batch.stdin.write(name.encode() + b"\n")
        self.batch.stdin.flush()
        size = int(self.batch.stdout.readline().split()[2])
        return self.batch.stdout.read(size + 1)[:-1]

    def close(self) -> None:
        assert self.batch.stdin is not None
        self.batch.stdin.close()
        self.batch.wait()


class Repository:
    """What there is to ask about: commits, and the paths that they have, large files left out."""

    def __init__(self, git: Git) -> None:
        self._git = git
        self.commits = git.run("rev-list", "--no-merges", "main").decode().split()[1:]
        self.paths = self.paths_of("main")

    def paths_of(self, commit: str) -> list[str]:
        paths = self._git.run("ls-tree", "-r", "--name-only", commit).decode().splitlines()
        return [path for path in paths if not path.startswith("large/")]


class Node:
    """The calls of one node."""

    def __init__(self, channel: grpc.Channel, token: str) -> None:
        self.commits = commit_pb2_grpc.CommitServiceStub(channel)
        self.blobs = blob_pb2_grpc.BlobServiceStub(channel)
        self.diffs = diff_pb2_grpc.DiffServiceStub(channel)
        self._metadata = (("authorization", f"Bearer {token}"),)

    def ask(self, method: Any, request: Any, consistency: str = "local") -> Any:
        request.repository = PATH
        request.consistency.CopyFrom(CONSISTENCIES[consistency])
        return method(request, metadata=self._metadata, timeout=60)

    def commit(self, commit: str, consistency: str = "local") -> Any:
        request = commit_pb2.GetCommitRequest(commit=commit.encode())
        return self.ask(self.commits.GetCommit, request, consistency)

    def entry(self, commit: str, path: str) -> Any:
        request = commit_pb2.GetTreeEntryRequest(
            commit=commit.encode(), path=path.encode(), data_bytes_max=1 << 20
        )
        answer = self.ask(self.commits.GetTreeEntry, request)
        assert answer.data
        return answer

    def tree(self, commit: str) -> Any:
        request = commit_pb2.ListTreeRequest(commit=commit.encode())
        return self.ask(self.commits.ListTree, request)

    def is_ancestor(self, commit: str) -> Any:
        request = commit_pb2.IsAncestorRequest(ancestor=commit.encode(), descendant=b"main")
        return self.ask(self.commits.IsAncestor, request)

    def log(self, commit: str) -> Any:
        request = commit_pb2.ListCommitsRequest(revisions=[commit.encode()])
        return self.ask(self.commits.ListCommits, request)

    def diff(self, commit: str) -> Any:
        request = diff_pb2.DiffRequest(
            range=diff_pb2.DiffRange(head=commit.encode()),
            format=diff_pb2.DIFF_FORMAT_PATCH,
            grouped=True,
        )
        return list(self.ask(self.diffs.Diff, request))

    def blame(self, commit: str, path: str) -> Any:
        request = commit_pb2.BlameRequest(commit=commit.encode(), path=path.encode(), grouped=True)
        return list(self.ask(self.commits.Blame, request))

    def batch(self, oids: Sequence[str]) -> Any:
        items = [blob_pb2.BatchGetBlobsRequest.Item(oid=oid) for oid in oids]
        request = blob_pb2.BatchGetBlobsRequest(items=items, grouped=True)
        return list(self.ask(self.blobs.BatchGetBlobs, request))


def questions(node: Node, git: Git, chance: random.Random) -> list[Question]:
    ids = git.run("ls-tree", "-r", "--format=%(objectname)", "main").decode().split()
    oids = [chance.choice(ids) for _ in range(BATCH)]

    def large(_path: str) -> str:
        return f"large/{chance.randrange(LARGE_FILES)}"

    return [
        Question(
            "GetCommit / git cat-file",
            lambda c, p: node.commit(c),
            lambda c, p: git.run("cat-file", "commit", c),
            lambda c, p: git.object(c),
        ),
        Question(
            "GetCommit, linearizable, follower",
            lambda c, p: node.commit(c, "linearizable"),
            lambda c, p: git.run("cat-file", "commit", c),
            lambda c, p: git.object(c),
            target=LINEARIZABLE_TARGET,
        ),
        Question(
            "GetTreeEntry / git cat-file",
            lambda c, p: node.entry(c, p),
            lambda c, p: git.run("cat-file", "blob", f"{c}:{p}"),
            lambda c, p: git.object(f"{c}:{p}"),
        ),
        Question(
            "GetTreeEntry, blob of 64 KiB",
            lambda c, p: node.entry("main", large(p)),
            lambda c, p: git.run("cat-file", "blob", f"main:{large(p)}"),
            lambda c, p: git.object(f"main:{large(p)}"),
        ),
        Question(
            "ListTree / git ls-tree",
            lambda c, p: node.tree(c),
            lambda c, p: git.run("ls-tree", c),
            lambda c, p: git.object(f"{c}^{{tree}}"),
        ),
        Question(
            "IsAncestor / git merge-base",
            lambda c, p: node.is_ancestor(c),
            lambda c, p: git.run("merge-base", "--is-ancestor", c, "main"),
        ),
        Question(
            "ListCommits, 100 / git log",
            lambda c, p: node.log(c),
            lambda c, p: git.run("log", "-100", "--format=raw", c),
            target=None,
        ),
        Question(
            "Diff, patch / git diff-tree -p -M",
            lambda c, p: node.diff(c),
            lambda c, p: git.run("diff-tree", "-p", "-M", c),
        ),
        Question(
            "Blame / git blame, new files",
            lambda c, p: node.blame("main", p),
            lambda c, p: git.run("blame", "--porcelain", "main", "--", p),
            paths_once=True,
        ),
        Question(
            "Blame / git blame, other commits",
            lambda c, p: node.blame(c, p),
            lambda c, p: git.run("blame", "--porcelain", c, "--", p),
            share=0.5,
        ),
        Question(
            f"BatchGetBlobs, {BATCH}, each",
            lambda c, p: node.batch(oids),
            lambda c, p: subprocess.run(
                ["git", "cat-file", "--batch"],
                cwd=git.folder,
                input="\n".join(oids).encode(),
                capture_output=True,
                check=True,
            ),
            lambda c, p: [git.object(oid) for oid in oids],
            target=BATCH_TARGET,
            share=0.1,
            per=BATCH,
        ),
    ]


def subjects(question: Question, repository: Repository, calls: int) -> list[tuple[str, str]]:
    """What a row asks about: a commit, and a path that it has. No pair twice, and no commit."""
    chance = random.Random(question.name)
    if question.paths_once:
        paths = chance.sample(repository.paths, len(repository.paths))
        return [("main", path) for path in paths]
    count = max(10, round(calls * question.share)) + WARM_UP
    commits = chance.sample(repository.commits, min(count, len(repository.commits)))
    return [(commit, chance.choice(repository.paths_of(commit))) for commit in commits]


def measure(question: Question, repository: Repository, calls: int) -> bool:
    """Prints a row; False when its target was missed."""
    asks = [ask for ask in (question.api, question.git, question.open_git) if ask is not None]
    taken: list[list[float]] = [[] for _ in asks]
    for number, (commit, path) in enumerate(subjects(question, repository, calls)):
        for ask, times in zip(asks, taken, strict=True):
            started = time.perf_counter()
            ask(commit, path)
            if number >= WARM_UP:
                times.append((time.perf_counter() - started) * 1000 / question.per)
    medians = [statistics.median(times) for times in taken]
    cells = [
        f"{median:7.3f} {sorted(times)[int(len(times) * 0.99)]:7.3f} {1000 / median:6.0f}"
        for median, times in zip(medians, taken, strict=True)
    ]
    ratio = medians[0] / medians[1]
    against_open = medians[0] / medians[2] if len(medians) > 2 else None
    counted = against_open if question.per > 1 else ratio
    verdict = ""
    is_met = question.target is None or (counted is not None and counted <= question.target)
    if question.target is not None:
        verdict = f"{question.target:.1f} {'met' if is_met else 'MISSED'}"
    cells += [" " * 22] * (3 - len(cells))
    cells += [f"{ratio:5.2f}", " " * 6 if against_open is None else f"{against_open:6.2f}"]
    print(f"{question.name:34} {'  '.join(cells)}  {verdict}".rstrip(), flush=True)
    return is_met


def prepare(source: Path, peer: Path) -> None:
    """A bare copy with large files on `main`, packed, with a commit-graph."""
    run: dict[str, Any] = {"check": True, "capture_output": True}
    subprocess.run(["git", "clone", "-q", "--bare", str(source), str(peer)], **run)
    branch = subprocess.check_output(["git", "symbolic-ref", "HEAD"], cwd=peer, text=True).strip()
    stream = bytearray(
        b"commit refs/heads/main\ncommitter B <b@example.org> 1700000000 +0000\ndata 6\nlarge\n\n"
    )
    stream += b"from %s^0\n" % branch.encode()
    chance = random.Random(2)
    for number in range(LARGE_FILES):
        text = b"".join(b"%063d\n" % chance.randrange(1 << 60) for _ in range(LARGE_BYTES // 64))
        stream += b"M 644 inline large/%d\ndata %d\n%s\n" % (number, len(text), text)
    subprocess.run(["git", "fast-import", "--quiet"], cwd=peer, input=bytes(stream), **run)
    subprocess.run(["git", "repack", "-adq"], cwd=peer, **run)
    subprocess.run(["git", "commit-graph", "write", "--reachable"], cwd=peer, **run)


def follower(demo: Demo) -> str:
    """A node that leads as little as there is; best nothing."""
    leaders = [demo.leader(0), demo.leader(1)]
    return min(demo.nodes, key=leaders.count)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repository", type=Path, help="a bare one; default: 5k objects made here")
    parser.add_argument("--calls", type=int, default=300)
    parser.add_argument("--quick", action="store_true", help="a tenth of the calls")
    arguments = parser.parse_args()
    calls = arguments.calls // 10 if arguments.quick else arguments.calls
    with tempfile.TemporaryDirectory(prefix="quorepo-bench-") as name:
        folder = Path(name)
        source = arguments.repository
        if source is None:
            source = folder / "source"
            generate(source, COMMITS["5k"], 1)
        peer = folder / "git"
        prepare(source, peer)
        with Demo(folder / "demo") as demo:
            asked = follower(demo)
            push = ["git", "push", "-q", demo.url(asked, PATH), "refs/heads/main"]
            subprocess.run(push, cwd=peer, check=True, capture_output=True)
            git = Git(peer)
            with grpc.insecure_channel(demo.nodes[asked].grpc, CHANNEL_OPTIONS) as channel:
                node = Node(channel, demo.token)
                eventually(lambda: node.commit("main"), what="the push is on the follower")
                missed = table(node, git, calls)
            git.close()
    print(f"{os.cpu_count()} cores, load {os.getloadavg()[0]:.1f}; {missed} targets missed")


def table(node: Node, git: Git, calls: int) -> int:
    """Prints all rows; how many targets were missed."""
    repository = Repository(git)
    columns = "p50     p99    c/s"
    print(f"{'ms':34} {'API':^22}  {'git process per call':^22}  {'open cat-file':^22}   ratio to")
    print(f"{'':34} {columns:>22}  {columns:>22}  {columns:>22}  proc   open  target")
    asked = questions(node, git, random.Random(3))
    return sum(not measure(question, repository, calls) for question in asked)


if __name__ == "__main__":
    main()
