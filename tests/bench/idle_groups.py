"""What idle Raft groups cost: CPU of each of three nodes with many groups and nothing to do.

    PYTHONPATH=tests .venv/bin/python -m bench.idle_groups [--groups 100] [--seconds 20]

The core process of the product, by thread, with two groups and with --groups; the difference is
the groups'. Per cent of one core.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.engine import EngineCluster

_SETTLE_S = 5.0


def pass_by(seconds: float) -> None:
    """Lets nothing happen for a while: that is what is measured."""
    end = time.monotonic() + seconds
    while (left := end - time.monotonic()) > 0:
        time.sleep(left)


def per_cent(groups: int, seconds: float) -> list[dict[str, float]]:
    """Of a core, by thread, of each node."""
    with (
        tempfile.TemporaryDirectory(prefix="quorepo-bench-") as name,
        EngineCluster(Path(name) / "engine", groups=groups) as cluster,
    ):
        pass_by(_SETTLE_S)
        before = [node.ask(do="usage")["cpu_s"] for node in cluster.nodes]
        started = time.monotonic()
        pass_by(seconds)
        after = [node.ask(do="usage")["cpu_s"] for node in cluster.nodes]
        elapsed = time.monotonic() - started
    return [
        {thread: 100 * (now[thread] - then.get(thread, 0.0)) / elapsed for thread in now}
        for then, now in zip(before, after, strict=True)
    ]


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--groups", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=20.0)
    arguments = parser.parse_args()
    for groups in (2, arguments.groups):
        for number, threads in enumerate(per_cent(groups, arguments.seconds), 1):
            busiest = sorted(threads.items(), key=lambda item: -item[1])[:4]
            shown = ", ".join(f"{thread} {share:.1f}" for thread, share in busiest)
            total = sum(threads.values())
            print(
                f"{groups:4} groups, node {number}: {total:5.1f} % of a core ({shown})", flush=True
            )


if __name__ == "__main__":
    main()
