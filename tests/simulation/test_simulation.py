"""Schedules of the simulator in the test run, and that it is worth something.

The seeds come from the code under simulation (seeds.py): a change of it has fresh ones, the same
tree the same. The base seed is printed, and a failing one with the command
that shows it again. Schedules run in processes of their own, because PYTHONHASHSEED has to be
pinned.
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from simulation.mutations import MUTATIONS, NARROW, hunt
from simulation.regressions import REGRESSIONS
from simulation.run import environment, run_in_processes
from simulation.seeds import ROOT, base_of_tree

PROCESSES = 2
FRESH_S = 25.0  # .ci/run goes on with them, to 3,000
FRESH_MAX = 200
SLOW_SCHEDULES = 3000
# Caught within a handful of schedules: a sample in every run, the rest with --slow.
QUICK_MUTATIONS = (
    "acknowledges before the sync",
    "vote file in memory only",
    "removes what matches (S1)",
    "reads do not wait for the state",
    "a timeout counts as refused",
)


def _base_seed() -> int:
    told = os.environ.get("QUOREPO_SIMULATION_SEED")
    return int(told) if told else base_of_tree()


def _run(count: int, seconds: float) -> None:
    base = _base_seed()
    print(f"base seed {base} (QUOREPO_SIMULATION_SEED={base} repeats this run)")
    total = run_in_processes(range(base, base + count), processes=PROCESSES, seconds=seconds)
    print(total.report())
    assert not total.failed, total.report()
    assert total.schedules >= min(count, 10)
    assert total.sums["virtual_s"] >= 20 * total.schedules
    assert total.sums["proposals"] >= 200 * total.schedules
    assert total.sums["faults"] >= 3 * total.schedules
    assert total.sums["reads"] >= 5 * total.schedules


def test_fresh_schedules_break_no_promise() -> None:
    _run(FRESH_MAX, FRESH_S)


def test_seeds_that_once_found_something_pass() -> None:
    total = run_in_processes(list(REGRESSIONS), processes=PROCESSES, seconds=1e9)
    assert not total.failed, total.report()
    assert total.schedules == len(REGRESSIONS)


@pytest.mark.parametrize("seed", [5, 14])
def test_one_seed_is_one_story(seed: int) -> None:
    """In two processes, to the last verdict. 14 has its state in files."""
    stories = [_story(seed) for _ in range(2)]
    assert stories[0] == stories[1]


def test_schedules_are_the_same_however_they_are_spread_over_processes() -> None:
    """Also what came before in the same process changes nothing."""
    seeds = range(100, 108)
    runs = [run_in_processes(order, processes=n, seconds=1e9)
            for order, n in ((seeds, 1), (seeds[::-1], 2))]  # fmt: skip
    assert runs[0].stories == runs[1].stories
    assert len(runs[0].stories) == len(seeds)
    assert runs[0].stories_hash() == runs[1].stories_hash()


def test_the_seeds_of_a_tree_come_from_the_code_under_simulation_only(tmp_path: Path) -> None:
    """Not from the time, from git, or from what this process imported; each change has others."""
    assert base_of_tree() == base_of_tree(ROOT)
    copy = tmp_path / "copy"
    for name in ("cluster", "storage", "quorepo/internal", "tests/simulation", "tests/support"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("cluster", "storage"):
        (copy / "quorepo" / name).symlink_to(f"../{name}")
    base = base_of_tree(copy)
    assert base == base_of_tree()
    (copy / "tests" / "simulation" / "README.md").write_text("another text")
    (copy / "tests" / "simulation" / "run.py").write_text("")
    assert base_of_tree(copy) == base
    bases = {base}
    for name in (
        "cluster/raft/journal.py", "cluster/state/schema.sql", "storage/layout.py",
        "quorepo/internal/v1/log_pb2.py", "tests/simulation/faults.py",
    ):  # fmt: skip
        with (copy / name).open("a") as changed:
            changed.write("\n")
        bases.add(base_of_tree(copy))
    assert len(bases) == 6


def _story(seed: int) -> object:
    command = [sys.executable, "-m", "simulation.run", "--seed", str(seed)]
    done = subprocess.run(command, env=environment(), capture_output=True, text=True, check=True)
    return json.loads(done.stdout)


@pytest.mark.parametrize("name", QUICK_MUTATIONS)
def test_missing_rule_is_found_at_once(name: str) -> None:
    caught = hunt(name, first=1, seeds=20, processes=PROCESSES)
    assert caught.violation, caught


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_thousands_of_fresh_schedules_break_no_promise() -> None:
    _run(SLOW_SCHEDULES, 1e9)


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", sorted(MUTATIONS.keys() - {*QUICK_MUTATIONS, *NARROW}))
def test_missing_rule_is_found(name: str) -> None:
    caught = hunt(name, first=1, seeds=3000, processes=PROCESSES)
    assert caught.violation, caught
