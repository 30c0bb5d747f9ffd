"""Memory over a long run: resident bytes of three core processes, every so many commits.

    PYTHONPATH=tests .venv/bin/python -m bench.memory [--quick] [--commits 1000000] [--every 100000]
        [--kind refs|put] [--clients 256]

`refs` moves refs of one repository through the product's state machine, `put` is the engine alone.
The log is cut on the way by the product's own limits, so entries, segments and state go through
everything that a year of use would; --quick: 20,000 commits. A million takes about ten minutes.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from bench.engine import EngineCluster

_SLICE_S = 5.0
_MIB = 1024 * 1024


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--commits", type=int, default=1_000_000)
    parser.add_argument("--every", type=int, default=100_000)
    parser.add_argument("--kind", choices=["refs", "put"], default="refs")
    parser.add_argument("--clients", type=int, default=256)
    parser.add_argument("--quick", action="store_true", help="20,000 commits, shown every 4,000")
    arguments = parser.parse_args()
    if arguments.quick:
        arguments.commits, arguments.every = 20_000, 4_000
    with (
        tempfile.TemporaryDirectory(prefix="quorepo-bench-") as name,
        EngineCluster(Path(name) / "engine", groups=3) as cluster,
    ):
        started = time.monotonic()
        done = shown = 0
        while done < arguments.commits:
            figures = cluster.load(arguments.kind, arguments.clients, _SLICE_S)
            done += figures["calls"]
            if done < shown + arguments.every:
                continue
            shown = done
            group = 2 if arguments.kind == "put" else 1
            entries = [node.ask(do="status", group=group)["entries"] for node in cluster.nodes]
            rss = [node.ask(do="usage")["rss_bytes"] / _MIB for node in cluster.nodes]
            print(
                f"{done:8} commits, {time.monotonic() - started:5.0f} s: resident MiB "
                + ", ".join(f"{size:.0f}" for size in rss)
                + "; log entries "
                + ", ".join(map(str, entries)),
                flush=True,
            )


if __name__ == "__main__":
    main()
