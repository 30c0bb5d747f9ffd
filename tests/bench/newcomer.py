"""How long a newcomer takes to catch up, next to `git clone --mirror` and a plain copy of the data.

    PYTHONPATH=tests python -m bench.newcomer [--mib 1024] [--rounds 1]

Three nodes hold one repository of so many MiB that don't compress, in packs of 64 MiB. In each
round, one after the other on the same machine and disk:

- a fourth node is added: from `quorepo node add` until it votes and lacks nothing, with state, log
  and packs, each checked against its digest and synced; then it is removed;
- `git clone --mirror` of the repository from a node (git checks and indexes what it receives);
- rsync, or `cp -a` where there is none, of a node's folder, and `sync -f`.

Prints seconds, MiB/s, and the newcomer's time over each of the others'. The newcomer is not slowed
down on purpose (raft.snapshot_bytes_per_s = 0); by default it pulls 100 MiB/s at most.
"""

from __future__ import annotations

import argparse
import functools
import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from support.demo import Demo, free_base_port
from support.git import WorkTree, git, refs_of
from support.membership import add_command, members, wait_until_waiting

PATH = "bench/large"
MIB = 1024 * 1024
_PACK_MIB = 64
_UNLIMITED = ("--set", "raft.snapshot_bytes_per_s=0")


def fill(demo: Demo, root: Path, mib: int) -> None:
    """One push for each pack."""
    work = WorkTree(root / "work")
    work.git("config", "core.compression", "0")
    left, number = mib, 0
    while left > 0:
        size, number = min(left, _PACK_MIB), number + 1
        (work.path / f"part{number}").write_bytes(os.urandom(size * MIB))
        work.git("add", "--all")
        work.git("commit", "--quiet", "--message", f"part {number}")
        work.git("push", "--quiet", demo.url("n1", PATH), "HEAD:refs/heads/main", timeout_s=1800)
        left -= size
    shutil.rmtree(work.path)


def add_newcomer(demo: Demo, name: str) -> Callable[[], None]:
    """What is measured of a node that waits to be added."""
    node = demo.prepare(name)
    config = demo.directory / "config" / f"{name}.toml"
    config.write_text(f"{config.read_text()}\n[raft]\nsnapshot_bytes_per_s = 0\n")
    demo.restart(name)
    wait_until_waiting(demo, name, "n1")

    def measured() -> None:
        process = subprocess.run(
            [sys.executable, "-m", "quorepo", "--endpoint", demo.nodes["n1"].grpc,
             *add_command(demo, name)],
            env={**os.environ, "QUOREPO_TOKEN": demo.token, "NO_COLOR": "1"},
            capture_output=True, text=True, timeout=3600, check=False,
        )  # fmt: skip
        assert process.returncode == 0, process.stderr
        assert members(demo, "n1")[name] == "voter"
        assert demo.cli("node", "info", name, "-o", "json").stdout.count('"packs_missing": 0') == 1

    assert node.data_dir != demo.nodes["n1"].data_dir
    return measured


def timed(work: Callable[[], object]) -> float:
    """Seconds."""
    started = time.perf_counter()
    work()
    return time.perf_counter() - started


def copy_of(source: Path, target: Path) -> None:
    """A plain copy, on the disk at the end."""
    tool = ["rsync", "-a"] if shutil.which("rsync") else ["cp", "-a"]
    subprocess.run([*tool, f"{source}/.", str(target)], check=True)
    subprocess.run(["sync", "-f", str(target)], check=True)


def measure(root: Path, mib: int, rounds: int) -> None:
    """Prints a line for each round, and the ratios."""
    with Demo(root / "demo", *_UNLIMITED, base_port=free_base_port(3 + rounds)) as demo:
        fill(demo, root, mib)
        tool = "rsync -a" if shutil.which("rsync") else "cp -a"
        print(f"{mib} MiB in packs of {_PACK_MIB} MiB; seconds (MiB/s)")
        for number in range(1, rounds + 1):
            name = f"n{3 + number}"
            joining = timed(add_newcomer(demo, name))
            assert refs_of(demo.url(name, PATH)) == refs_of(demo.url("n1", PATH))
            demo.cli("node", "remove", name, "--yes")
            demo.kill(name)
            shutil.rmtree(demo.nodes[name].data_dir)
            mirror, copied = root / f"mirror-{number}", root / f"copy-{number}"
            url = demo.url("n2", PATH)
            clone = ("clone", "--quiet", "--mirror", url, str(mirror))
            cloning = timed(functools.partial(git, *clone, timeout_s=3600))
            copied.mkdir()
            folder = demo.nodes["n2"].data_dir
            copying = timed(functools.partial(copy_of, folder, copied))
            for what, seconds in (
                ("newcomer", joining), ("git clone --mirror", cloning), (tool, copying),
            ):  # fmt: skip
                print(f"  {what:20} {seconds:7.1f} ({mib / seconds:6.1f})")
            print(f"  newcomer / clone {joining / cloning:.2f}, newcomer / copy "
                  f"{joining / copying:.2f}", flush=True)  # fmt: skip
            shutil.rmtree(mirror)
            shutil.rmtree(copied)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--mib", type=int, default=1024)
    parser.add_argument("--rounds", type=int, default=1, choices=range(1, 7))
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="quorepo-bench-") as name:
        measure(Path(name), arguments.mib, arguments.rounds)


if __name__ == "__main__":
    main()
