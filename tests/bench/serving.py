"""Clones, fetches and pushes: quorepo next to git at its best, over HTTP, in the same run.

    PYTHONPATH=tests python -m bench.serving [PATH]   all rows, half an hour; PATH: any repository
        --quick           all rows on small repositories, a few minutes
        --rows clone,…    some of them
        --cache DIR       keeps the generated repositories for the next run

The peer is `git http-backend` on the same objects, as careful as we are (core.fsync=all,
receive.fsckObjects, unpackLimit=1), `repack -adb` with bitmaps and a commit-graph; `git-plain` is
it without either. A raw client sends the same request bytes to both and drains the answers, in
turns, so that noise hits both; wall is the whole exchange, CPU that of all processes of the server,
bytes the answer's. Medians (CPU: means); ratios are to `git`.

Every row checks what it measured: git takes the answers (`index-pack --strict`, or --fsck-objects
where objects are left out on purpose), they hold all that was asked for and nothing else, and ours
no more objects than git's. If not, the command exits with 1. A missed goal is shown in the table.
"""

from __future__ import annotations

import argparse
import signal
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from support.demo import Demo
from support.git import git

from bench.generated import COMMITS, generated
from bench.serving_bench import Bench, Results, lines_of
from bench.serving_reads import crowd, fetches, full_clone, partial, tails
from bench.serving_refs import many_refs
from bench.serving_writes import ingests, one_commit_pushes
from bench.streaming_peer import StreamingPeer

_READING = {"clone", "crowd", "fetch", "partial", "tails"}
ROWS = ("clone", "crowd", "fetch", "partial", "tails", "refs", "push", "ingest")
# The ingest of larger repositories may take so much longer (the two rows).
_INGEST_GOALS = {"2MB": 1.5, "20MB": 1.5, "170MB": 2.0}
_LARGE_PACK_BYTES = 100_000_000
_CROWD_OBJECTS_MIN = 20_000


@dataclass(frozen=True)
class Plan:
    """How much is measured."""

    sizes: tuple[str, ...]
    refs: tuple[int, ...]
    bulky: tuple[str, ...]
    push_into: str
    pairs: int
    pushes: int


FULL = Plan(("5k", "40k", "180k"), (10_000, 100_000), ("20MB", "170MB"), "180k", 5, 40)
QUICK = Plan(("5k", "40k"), (10_000,), ("20MB",), "40k", 3, 10)


def repository(bench: Bench, source: Path, name: str, rows: set[str]) -> None:
    """All reading rows on one repository."""
    objects = int(lines_of(source, "rev-list", "--objects", "--all", "--count")[0])
    print(f"{name}: {objects} objects", flush=True)
    bench.publish(source, name)
    body = full_clone(bench, source, name)
    if "crowd" in rows and objects >= _CROWD_OBJECTS_MIN:
        crowd(bench, name, body)
    if "fetch" in rows:
        fetches(bench, source, name)
    if "partial" in rows:
        partial(bench, source, name)
    if "tails" in rows:
        tails(bench, source, name)


def writes(bench: Bench, sources: dict[str, Path], pairs: int) -> None:
    """Whole repositories pushed into new ones, then cloned."""
    for kind, source in sources.items():
        print(f"{source.stem}: pushed whole", flush=True)
        size = sum(pack.stat().st_size for pack in source.glob("objects/pack/*.pack"))
        goal = _INGEST_GOALS.get(kind, 2.0 if size > _LARGE_PACK_BYTES else 1.5)
        ingests(bench, source, goal, pairs)


@dataclass(frozen=True)
class Sources:
    """The repositories that are measured."""

    reads: dict[str, Path]
    pushed: dict[str, Path]
    history: Path  # what one-commit pushes go into

    @classmethod
    def generated(cls, plan: Plan, kinds: str, rows: set[str], cache: Path) -> Sources:
        """What the plan names, or these kinds instead; only what the rows need."""
        reads = kinds.split(",") if kinds else plan.sizes
        pushed = plan.bulky if "ingest" in rows else ()
        return cls(
            {f"generated-{kind}": generated(kind, cache) for kind in reads},
            {kind: generated(kind, cache) for kind in pushed},
            generated(plan.push_into, cache) if "push" in rows else Path(),
        )

    @classmethod
    def given(cls, path: Path, root: Path) -> Sources:
        """One repository for everything."""
        copy = root / "given.git"
        git("clone", "--quiet", "--bare", str(path), str(copy), timeout_s=1800)
        git("repack", "-adq", cwd=copy, timeout_s=1800)
        return cls({"given": copy}, {"given": copy}, copy)


def run(root: Path, arguments: argparse.Namespace) -> int:
    """All rows; returns the command's exit code."""
    plan: Plan = QUICK if arguments.quick else FULL
    rows = set(arguments.rows.split(","))
    cache = arguments.cache or root / "generated"
    cache.mkdir(exist_ok=True)
    (root / "peer").mkdir()
    pairs = arguments.pairs or plan.pairs
    if arguments.path is not None:
        sources = Sources.given(arguments.path, root)
    else:
        sources = Sources.generated(plan, arguments.sizes, rows, cache)
    results = Results()
    with StreamingPeer(root / "peer") as peer:
        with Demo(root / "demo", nodes=1) as demo:
            bench = Bench(root, demo, peer, pairs, results)
            if rows & _READING:
                for name, source in sources.reads.items():
                    copy = root / f"{name}-source.git"  # the tails are pushed into it too
                    git("clone", "--quiet", "--mirror", str(source), str(copy), timeout_s=600)
                    repository(bench, copy, name, rows)
            for count in plan.refs if "refs" in rows else ():
                many_refs(bench, next(iter(sources.reads.values())), count)
        if "ingest" in rows:
            with Demo(root / "demo-in", nodes=1) as demo:  # of which nothing is warm
                writes(Bench(root, demo, peer, pairs, results), sources.pushed, min(pairs, 3))
    if "push" in rows:
        one_commit_pushes(root, sources.history, plan.pushes, results)
    results.show()
    return 1 if results.wrong else 0


def main() -> int:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("path", type=Path, nargs="?", help="a repository, not generated ones")
    parser.add_argument("--quick", action="store_true", help="small repositories, few repetitions")
    parser.add_argument("--sizes", default="", help=f"of {', '.join(COMMITS)}, instead of all")
    parser.add_argument("--pairs", type=int, default=0, help="repetitions of a row")
    parser.add_argument("--rows", default=",".join(ROWS), help=f"of {', '.join(ROWS)}")
    parser.add_argument("--cache", type=Path, help="where generated repositories are kept")
    arguments = parser.parse_args()
    if unknown := set(arguments.rows.split(",")) - set(ROWS):
        parser.error(f"unknown rows: {', '.join(sorted(unknown))}")
    # So that the servers and the folder are gone however this ends.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    with tempfile.TemporaryDirectory(prefix="quorepo-bench-") as folder:
        return run(Path(folder), arguments)


if __name__ == "__main__":
    sys.exit(main())
