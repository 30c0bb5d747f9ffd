"""One-commit pushes into three replicated nodes next to git's own server on one, in the same run.

    PYTHONPATH=tests python -m bench.push_latency [--pushes 100] [--repository PATH]

Both are driven by the same git client, alternating, so that noise hits both. Every push is checked:
afterwards `git ls-remote` has to show the last commit on every node.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from support.demo import Demo
from support.git import WorkTree, git, refs_of

from bench.git_peer import GitPeer


def percentile(values: list[float], fraction: float) -> float:
    """The value below which `fraction` of the sorted values lie."""
    return sorted(values)[min(len(values) - 1, int(fraction * len(values)))]


def measure(pushes: int, repository: Path | None) -> None:
    """Prints p50 and p99 of both, in ms, and their ratios."""
    with tempfile.TemporaryDirectory(prefix="quorepo-bench-") as name:
        root = Path(name)
        work = prepare(root / "work", repository)
        with Demo(root / "demo") as demo, GitPeer(root / "peer") as peer:
            leader = demo.leader(1)
            follower = next(node for node in demo.nodes if node != leader)
            targets = {
                "leader": demo.url(leader, "bench/repo"),
                "follower": demo.url(follower, "bench/repo"),
                "git": peer.create("bench.git"),
            }
            work.git("push", "--quiet", targets["leader"], "HEAD:refs/heads/main", timeout_s=1800)
            work.git("push", "--quiet", targets["git"], "HEAD:refs/heads/main", timeout_s=1800)
            seconds = push_in_turns(work, targets, pushes)
            for node in demo.nodes:
                shown = refs_of(demo.url(node, "bench/repo"))
                assert shown["refs/heads/leader"] == shown["refs/heads/follower"] == work.head()
    report(seconds)


def prepare(path: Path, repository: Path | None) -> WorkTree:
    """A work tree with a history of its own, or a clone of the given repository."""
    if repository is not None:
        git("clone", "--quiet", str(repository), str(path), timeout_s=1800)
        work = WorkTree(path)
    else:
        work = WorkTree(path)
        for number in range(50):
            work.commit(f"base {number}", {f"d{number % 7}/f{number}.txt": f"{number}\n" * 200})
    return work


def push_in_turns(work: WorkTree, targets: dict[str, str], pushes: int) -> dict[str, list[float]]:
    """Seconds of each push, by target; the first round only warms up."""
    seconds: dict[str, list[float]] = {target: [] for target in targets}
    for number in range(pushes + 1):
        work.commit(f"change {number}", {"changing.txt": f"line {number}\n" * 20})
        for target, url in targets.items():
            started = time.perf_counter()
            work.git("push", "--quiet", url, f"HEAD:refs/heads/{target}")
            if number:
                seconds[target].append(time.perf_counter() - started)
    return seconds


def report(seconds: dict[str, list[float]]) -> None:
    """One line per target."""
    base = statistics.median(seconds["git"])
    print("one-commit push, whole `git push` command, ms")
    for target, values in seconds.items():
        middle, tail = statistics.median(values), percentile(values, 0.99)
        print(
            f"  {target:9} p50 {middle * 1e3:7.1f}  p99 {tail * 1e3:7.1f}  "
            f"ratio to git {middle / base:5.2f}  (n={len(values)})"
        )


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pushes", type=int, default=100)
    parser.add_argument("--repository", type=Path, help="a repository with a longer history")
    arguments = parser.parse_args()
    measure(arguments.pushes, arguments.repository)


if __name__ == "__main__":
    main()
