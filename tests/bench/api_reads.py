"""Reads of the gRPC API next to the same questions asked of C git.

    PYTHONPATH=tests .venv/bin/python -m bench.api_reads [--repository DIR] [--calls N]

The edge runs over a core without Raft (so: `consistency` local), and the client in the same
process, one call after the other. Every question is asked N times of the API and of a `git` process
per call, alternately; blobs also of one open `git cat-file --batch`. git gets a commit-graph.
Printed are p50 and p99 in milliseconds, calls per second of one client, and the ratio of medians.
"""

from __future__ import annotations

import argparse
import random
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from support.edge import TOKEN
from support.git import ENVIRONMENT
from support.grpc_api import Api, serving_api

from bench.generated import COMMITS, generate
from quorepo.v1 import blob_pb2, commit_pb2, common_pb2, diff_pb2

LOCAL = common_pb2.Consistency(local=common_pb2.Consistency.Local())
PATH = "bench/reads"
BATCH = 500


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


def timed(function: Callable[..., Any], *arguments: str) -> float:
    started = time.perf_counter()
    function(*arguments)
    return (time.perf_counter() - started) * 1000


def row(name: str, ours: list[float], theirs: list[float], per: int = 1) -> None:
    def told(values: list[float]) -> str:
        p99 = sorted(values)[int(len(values) * 0.99)]
        p50 = statistics.median(values)
        return f"{p50 / per:8.3f} {p99 / per:8.3f} {1000 * per / p50:8.0f}"

    ratio = statistics.median(ours) / statistics.median(theirs)
    print(f"{name:34} {told(ours)}   {told(theirs)}   {ratio:6.2f}", flush=True)


def measure(api: Api, git: Git, calls: int) -> None:
    chance = random.Random(1)
    commits = git.run("rev-list", "--no-merges", "refs/heads/main").decode().split()
    if len(commits) > 300:
        commits = commits[:300]
    files = git.run("ls-tree", "-r", "--name-only", "main").decode().splitlines()
    metadata = (("authorization", f"Bearer {TOKEN}"),)

    def ask(method: Any, request: Any) -> Any:
        request.repository = PATH
        request.consistency.CopyFrom(LOCAL)
        return method(request, metadata=metadata)

    def pair(name: str, ours: Callable[[str, str], Any], theirs: Callable[[str, str], Any]) -> None:
        api_ms, git_ms = [], []
        for number in range(calls + 5):
            commit, path = chance.choice(commits), chance.choice(files)
            one, other = timed(ours, commit, path), timed(theirs, commit, path)
            if number >= 5:
                api_ms.append(one)
                git_ms.append(other)
        row(name, api_ms, git_ms)

    def named(request: Any, commit: str) -> Any:
        request.commit = commit.encode()
        return request

    def entry(commit: str, path: str) -> Any:
        request = commit_pb2.GetTreeEntryRequest(path=path.encode(), data_bytes_max=1 << 20)
        return ask(api.commits.GetTreeEntry, named(request, "main"))

    pair(
        "GetCommit / git cat-file",
        lambda c, p: ask(api.commits.GetCommit, named(commit_pb2.GetCommitRequest(), c)),
        lambda c, p: git.run("cat-file", "commit", c),
    )
    pair(
        "GetTreeEntry / git cat-file", entry, lambda c, p: git.run("cat-file", "blob", f"main:{p}")
    )
    pair("GetTreeEntry / open cat-file", entry, lambda c, p: git.object(f"main:{p}"))
    pair(
        "ListTree / git ls-tree",
        lambda c, p: ask(api.commits.ListTree, named(commit_pb2.ListTreeRequest(), c)),
        lambda c, p: git.run("ls-tree", c),
    )
    pair(
        "IsAncestor / git merge-base",
        lambda c, p: ask(
            api.commits.IsAncestor,
            commit_pb2.IsAncestorRequest(ancestor=c.encode(), descendant=b"main"),
        ),
        lambda c, p: git.run("merge-base", "--is-ancestor", c, "main"),
    )
    pair(
        "ListCommits 100 / git log -100",
        lambda c, p: ask(
            api.commits.ListCommits, commit_pb2.ListCommitsRequest(revisions=[c.encode()])
        ),
        lambda c, p: git.run("log", "-100", "--format=raw", c),
    )
    pair(
        "Diff patch / git diff-tree -p -M",
        lambda c, p: list(
            ask(
                api.diffs.Diff,
                diff_pb2.DiffRequest(
                    range=diff_pb2.DiffRange(head=c.encode()), format=diff_pb2.DIFF_FORMAT_PATCH
                ),
            )
        ),
        lambda c, p: git.run("diff-tree", "-p", "-M", c),
    )
    calls = max(5, calls // 10)
    pair(
        "Blame / git blame",
        lambda c, p: list(
            ask(api.commits.Blame, named(commit_pb2.BlameRequest(path=p.encode()), "main"))
        ),
        lambda c, p: git.run("blame", "--porcelain", "main", "--", p),
    )
    ids = git.run("ls-tree", "-r", "--format=%(objectname)", "main").decode().split()
    batch = [chance.choice(ids) for _ in range(BATCH)]
    items = [blob_pb2.BatchGetBlobsRequest.Item(oid=oid) for oid in batch]
    many, each = [], []
    for _ in range(calls):
        request = blob_pb2.BatchGetBlobsRequest(items=items)
        many.append(timed(lambda: list(ask(api.blobs.BatchGetBlobs, request))))  # noqa: B023
        each.append(timed(lambda: [git.object(oid) for oid in batch]))
    row("BatchGetBlobs / open cat-file, each", many, each, BATCH)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repository", type=Path, help="a bare one; default: 5k objects made here")
    parser.add_argument("--calls", type=int, default=200)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="quorepo-bench-") as name:
        folder = Path(name)
        source = arguments.repository
        if source is None:
            source = folder / "source"
            generate(source, COMMITS["5k"], 1)
        peer = folder / "git"
        run: dict[str, Any] = {"check": True, "capture_output": True}
        subprocess.run(["git", "clone", "-q", "--bare", str(source), str(peer)], **run)
        branch = subprocess.check_output(["git", "symbolic-ref", "HEAD"], cwd=peer, text=True)
        subprocess.run(["git", "update-ref", "refs/heads/main", branch.strip()], cwd=peer, **run)
        subprocess.run(["git", "commit-graph", "write", "--reachable"], cwd=peer, **run)
        with serving_api(folder / "data") as api:
            url = api.under_test.url(PATH)
            subprocess.run(["git", "push", "-q", url, "refs/heads/main"], cwd=peer, **run)
            columns = "     p50      p99  calls/s"
            print(f"{'':34} {'API':^26}   {'git':^26}")
            print(f"{'ms':34} {columns}   {columns}    ratio")
            measure(api, Git(peer), arguments.calls)


if __name__ == "__main__":
    main()
