"""The write gap after kill -9 of the leader: from the kill to the next acknowledged push.

    PYTHONPATH=tests python -m bench.failover [--runs 10]

A client pushes one commit after another to the two survivors in turn; the gap is the time from the
kill to the end of the first push that was started after it. Every run checks that nothing
acknowledged is missing.
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
from support.waiting import eventually


def one_run(demo: Demo, work: WorkTree, number: int) -> float:
    """Kills the storage group's leader, measures the gap in seconds, brings the node back."""
    leader = demo.leader(1)
    survivors = [name for name in demo.nodes if name != leader]
    acknowledged: dict[str, str] = {}
    attempts = 0

    def push() -> bool:
        nonlocal attempts
        attempts += 1
        oid = work.commit(f"run {number} attempt {attempts}")
        ref = f"refs/heads/r{number}-{attempts}"
        url = demo.url(survivors[attempts % 2], "bench/failover")
        done = work.git("push", url, f"{oid}:{ref}", check=False).returncode == 0
        if done:
            acknowledged[ref] = oid
        return done

    for _ in range(3):
        assert push()
    killed_at = time.monotonic()
    demo.kill(leader)
    while not push():
        assert time.monotonic() - killed_at < 60, "no push was acknowledged for a minute"
    gap_s = time.monotonic() - killed_at
    demo.restart(leader)
    eventually(
        lambda: git("ls-remote", demo.url(leader, "bench/failover"), check=False).returncode == 0,
        timeout_s=40,
        what=f"{leader} serves again",
    )
    refs = refs_of(demo.url(leader, "bench/failover"))
    missing = [ref for ref, oid in acknowledged.items() if refs.get(ref) != oid]
    assert not missing, f"acknowledged and lost: {missing}"
    return gap_s


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, default=10)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="quorepo-bench-") as name:
        root = Path(name)
        work = WorkTree(root / "work")
        with Demo(root / "demo") as demo:
            gaps = [one_run(demo, work, number) for number in range(arguments.runs)]
    print("kill -9 of the leader to the next acknowledged push, s")
    print("  " + " ".join(f"{gap:.2f}" for gap in gaps))
    print(f"  p50 {statistics.median(gaps):.2f}  worst {max(gaps):.2f}  (n={len(gaps)}), 0 lost")


if __name__ == "__main__":
    main()
