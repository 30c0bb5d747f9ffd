"""Runs seeds from the command line. `python -m simulation.run --help`, with tests/ on PYTHONPATH.

Owns: seeds, processes, time limits, what is printed. One schedule is schedule.py's.
"""

from __future__ import annotations

import argparse
import collections
import dataclasses
import gc
import json
import logging
import os
import sqlite3
import subprocess
import sys
import threading
import time
import zlib
from collections.abc import Iterator, Sequence

from google.protobuf import __version__ as protobuf_version

from simulation.schedule import Story, run_schedule
from simulation.seeds import base_of_tree

__all__ = ["Total", "environment", "main", "run_in_processes"]

_HASH_SEED = "0"
_PROGRESS_EVERY = 500


@dataclasses.dataclass(slots=True)
class Total:
    """What many schedules did."""

    schedules: int = 0
    seconds: float = 0.0
    failed: dict[int, str] = dataclasses.field(default_factory=dict)
    sums: collections.Counter[str] = dataclasses.field(default_factory=collections.Counter)
    stories: dict[int, int] = dataclasses.field(default_factory=dict)  # a hash of each, by seed

    def add(self, line: str) -> None:
        """Takes in a line of a worker process."""
        told = json.loads(line)
        self.schedules += 1
        self.stories[told["seed"]] = zlib.crc32(line.encode())
        if told["violation"]:
            self.failed[told["seed"]] = told["violation"]
        for name in (
            "virtual_s",
            "proposals",
            "faults",
            "acknowledged",
            "reads",
            "terms",
            "frames",
        ):
            self.sums[name] += told[name]
        self.sums.update(told["counts"])

    def report(self) -> str:
        rate = self.schedules / self.seconds if self.seconds else 0.0
        lines = [
            f"{self.schedules} schedules in {self.seconds:.1f} s ({rate:.2f}/s), "
            f"{len(self.failed)} with a violation"
        ]
        lines += [f"{int(value):>12}  {name}" for name, value in sorted(self.sums.items())]
        lines += [
            f"FAILED seed {seed}: {what}\n  again: {_again(seed)}"
            for seed, what in sorted(self.failed.items())
        ]
        return "\n".join(lines)

    def stories_hash(self) -> str:
        """Equal in two runs of the same seeds that saw the same events, whoever ran them."""
        return f"{zlib.crc32(json.dumps(sorted(self.stories.items())).encode()):08x}"

    def summary(self, base: int, wanted: int) -> str:
        """One line for whoever reads the end of a log."""
        short = f", {wanted - self.schedules} not begun in time" if self.schedules < wanted else ""
        return (
            f"simulation: {self.schedules} schedules{short}, {self.sums['faults']} faults, "
            f"{len(self.failed)} violations, {self.seconds:.0f} s, stories "
            f"{self.stories_hash()}; the same again: "
            f'make simulate SIMULATE_ARGS="--base {base} --count {wanted}"'
        )


def _again(seed: int) -> str:
    return f"PYTHONPATH=tests .venv/bin/python -m simulation.run --seed {seed} --trace"


def environment() -> dict[str, str]:
    """Of every process that runs schedules: this source tree, and the order of sets pinned."""
    tests = os.path.dirname(os.path.dirname(os.path.abspath(__file__)))
    return {
        **os.environ,
        "PYTHONHASHSEED": _HASH_SEED,
        "PYTHONPATH": os.pathsep.join((os.path.dirname(tests), tests)),
    }


def run_in_processes(
    seeds: Sequence[int], *, processes: int, seconds: float, mutation: str = ""
) -> Total:
    """Runs seeds, spread over processes, until all are done or `seconds` are over."""
    started = time.monotonic()
    total = Total()
    workers = []
    for number in range(processes):
        share = seeds[number::processes]
        if not share:
            continue
        arguments = [sys.executable, "-m", "simulation.run", "--worker", f"--seconds={seconds}"]
        arguments += [f"--mutation={mutation}"] if mutation else []
        worker = subprocess.Popen(
            arguments,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env=environment(),
            text=True,
        )
        assert worker.stdin is not None
        worker.stdin.write(json.dumps(list(share)))
        worker.stdin.close()
        workers.append(worker)
    _collect(workers, total, started)
    for worker in workers:
        if worker.wait() != 0:
            total.failed[-1] = f"a worker process ended with {worker.returncode}"
    total.seconds = time.monotonic() - started
    return total


def _collect(workers: Sequence[subprocess.Popen[str]], total: Total, started: float) -> None:
    """Takes in what all workers tell as it comes: one whose pipe is full would stand still."""
    lock = threading.Lock()

    def read(worker: subprocess.Popen[str]) -> None:
        assert worker.stdout is not None
        with worker.stdout:
            for line in worker.stdout:
                with lock:
                    failed = len(total.failed)
                    total.add(line)
                    if len(total.failed) > failed or total.schedules % _PROGRESS_EVERY == 0:
                        seconds = time.monotonic() - started
                        print(
                            f"{total.schedules} schedules, {len(total.failed)} with a violation "
                            f"{sorted(total.failed)[:5]}, {seconds:.0f} s",
                            file=sys.stderr,
                            flush=True,
                        )

    readers = [threading.Thread(target=read, args=(worker,)) for worker in workers]
    for reader in readers:
        reader.start()
    for reader in readers:
        reader.join()


def _work(seeds: Sequence[int], seconds: float, *, stop_at_violation: bool) -> None:
    """A worker process: one line of JSON for each schedule."""
    end = time.monotonic() + seconds
    gc.disable()  # a schedule is short, and what it leaves is collected between two
    for number, seed in enumerate(seeds):
        if number % 4 == 0:
            gc.collect()
        if time.monotonic() >= end:
            return
        story = run_schedule(seed)
        told = dataclasses.asdict(story)
        del told["trace"]
        print(json.dumps(told), flush=True)
        if story.violation and stop_at_violation:
            return


def _show(seed: int, *, trace: bool) -> Story:
    story = run_schedule(seed, keep_trace=trace)
    for line in story.trace:
        print(line)
    told = dataclasses.asdict(story)
    del told["trace"]
    print(json.dumps(told, indent=1))
    return story


def _ranges(text: str) -> Iterator[int]:
    first, _, stop = text.partition("-")
    return iter(range(int(first), int(stop)))


def _surroundings() -> str:
    """What else a story depends on: SQLite decides how long files are, Python what chance is."""
    python = ".".join(str(part) for part in sys.version_info[:3])
    return f"Python {python}, SQLite {sqlite3.sqlite_version}, protobuf {protobuf_version}"


def _base(text: str) -> int:
    return base_of_tree() if text == "tree" else int(text)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seed", type=int, help="run this one and show what it did")
    parser.add_argument("--trace", action="store_true", help="with --seed: every event noted")
    parser.add_argument("--seeds", help="FIRST-STOP instead of fresh ones")
    parser.add_argument("--count", type=int, default=3000, help="fresh schedules")
    parser.add_argument(
        "--base",
        type=_base,
        help="their first seed, or `tree`: from the code under simulation, as in CI; "
        "from the clock without",
    )
    parser.add_argument("--seconds", type=float, default=1e9, help="no new schedule after these")
    parser.add_argument("--processes", type=int, default=2)
    parser.add_argument("--mutation", default="", help="with this safety rule removed")
    parser.add_argument("--worker", action="store_true", help="internal: seeds come on stdin")
    arguments = parser.parse_args()
    if os.environ.get("PYTHONHASHSEED") != _HASH_SEED:
        os.execve(
            sys.executable,
            [sys.executable, "-m", "simulation.run", *sys.argv[1:]],
            {**os.environ, "PYTHONHASHSEED": _HASH_SEED},
        )
    logging.disable(logging.CRITICAL)
    if arguments.mutation and (arguments.worker or arguments.seed is not None):
        from simulation.mutations import apply_mutation

        apply_mutation(arguments.mutation)
    if arguments.worker:
        seeds = json.load(sys.stdin)
        _work(seeds, arguments.seconds, stop_at_violation=bool(arguments.mutation))
        return 0
    if arguments.seed is not None:
        return 1 if _show(arguments.seed, trace=arguments.trace).violation else 0
    if arguments.seeds:
        chosen = list(_ranges(arguments.seeds))
    else:
        base = arguments.base if arguments.base is not None else time.time_ns() // 1_000_000
        print(f"base seed {base}, {_surroundings()}", flush=True)
        chosen = list(range(base, base + arguments.count))
    total = run_in_processes(
        chosen,
        processes=arguments.processes,
        seconds=arguments.seconds,
        mutation=arguments.mutation,
    )
    print(total.report())
    print(total.summary(chosen[0], len(chosen)))
    return 1 if total.failed or total.schedules < len(chosen) else 0


if __name__ == "__main__":
    sys.exit(main())
