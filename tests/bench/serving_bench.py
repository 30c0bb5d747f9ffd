"""What all rows of `bench.serving` share: the servers, how a row is measured, checked and shown."""

from __future__ import annotations

import functools
import math
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from support.demo import Demo
from support.git import git
from support.waiting import eventually

from bench.git_peer import CAREFUL
from bench.raw_fetch import (
    Sample,
    Target,
    WrongAnswer,
    anonymous_bytes,
    cpu_seconds,
    family,
    measure,
    objects_sent,
    pack_of,
)
from bench.streaming_peer import StreamingPeer
from quorepo.storage.git.derived import derived_path
from quorepo.storage.git.pack_changes import CHANGES_KIND, CHANGES_OBJECTS_MIN

BYTES_GOAL = 1.5
_DERIVED_WAIT_S = 300.0
_IDLE_LOOK_S = 0.5

Work = Callable[[Target], int]


@dataclass(frozen=True)
class Goal:
    """What the issue asks of a row, as ratios to git at its best."""

    wall: float | None = None
    cpu: float | None = None
    bytes: float | None = BYTES_GOAL

    def missed(self, ratios: tuple[float, float, float]) -> list[str]:
        """The names of what is above its goal."""
        named = zip(
            ("wall", "CPU", "bytes"), (self.wall, self.cpu, self.bytes), ratios, strict=True
        )
        return [name for name, goal, value in named if goal is not None and value > goal]

    def __str__(self) -> str:
        named = (("wall", self.wall), ("CPU", self.cpu))
        return ", ".join(f"{name} {value:g}" for name, value in named if value is not None)


@dataclass
class Results:
    """What came out so far."""

    table: list[str] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)

    def show(self) -> None:
        """The table of all rows, and what is wrong."""
        print(
            "\n| repository | job | ms | git ms | wall | CPU | bytes | wall to git without bitmaps "
            "| goal | held |\n|---|---|---|---|---|---|---|---|---|---|"
        )
        print("\n".join(self.table))
        print("".join(f"WRONG: {what}\n" for what in self.wrong), end="")


@dataclass
class Bench:
    """The servers, and where everything lies."""

    root: Path
    demo: Demo
    peer: StreamingPeer
    pairs: int
    results: Results
    peer_folder: str = "peer"

    def targets(self, name: str, plain: bool = True) -> list[Target]:
        """A repository on all servers, ours first. Without `plain`: git at its best alone."""
        node = next(iter(self.demo.nodes))
        suffixes = (("git", ""), ("git-plain", "-plain"))
        return [
            self.ours(node, name),
            *(
                Target(label, self.peer.url(f"{name}{suffix}.git"), self._git_cpu_s)
                for label, suffix in suffixes[: 2 if plain else 1]
            ),
        ]

    def ours(self, node: str, name: str, label: str = "quorepo") -> Target:
        """A repository at one of our nodes; CPU and memory are those of all of them."""
        pids = [node.pid for node in self.demo.nodes.values()]
        return Target(
            label,
            self.demo.url(node, f"bench/{name}"),
            lambda: sum(cpu_seconds(family(pid)) for pid in pids),
            lambda: sum(anonymous_bytes(family(pid)) for pid in pids),
        )

    def _git_cpu_s(self) -> float:
        return cpu_seconds([self.peer.pid], own=False)

    def publish(self, source: Path, name: str, plain: bool = True, node: str = "") -> None:
        """The same refs and objects on all servers; ours come in through `node`."""
        node = node or next(iter(self.demo.nodes))
        git(
            "push", "--quiet", self.ours(node, name).url,
            "refs/heads/*:refs/heads/*", "refs/tags/*:refs/tags/*", cwd=source, timeout_s=3600,
        )  # fmt: skip
        for suffix in ("", "-plain")[: 2 if plain else 1]:
            copy = self.peer_path(f"{name}{suffix}")
            shutil.copytree(source, copy)
            configure(copy)
        best = self.peer_path(name)
        git("repack", "-adb", "--quiet", cwd=best, timeout_s=3600)
        git("commit-graph", "write", "--reachable", cwd=best, timeout_s=3600)
        self.settle(node)

    def peer_path(self, name: str) -> Path:
        """Where a repository of git's lies."""
        return self.root / self.peer_folder / f"{name}.git"

    def settle(self, node: str = "") -> None:
        """Returns when a node (the first) has derived what it derives from large packs."""
        data_dir = self.demo.nodes[node or next(iter(self.demo.nodes))].data_dir
        eventually(lambda: not underived(data_dir), timeout_s=_DERIVED_WAIT_S, what="derived files")

    def row(
        self, title: str, name: str, works: Iterator[Work], goal: Goal | None = None,
        *, repeats: int = 1, plain: bool = True, pairs: int = 0,
    ) -> None:  # fmt: skip
        """Measures one row. `works` gives a new request for every pair."""
        samples: dict[str, list[Sample]] = {}
        for _ in range(pairs or self.pairs):
            work = next(works)
            for target in self.targets(name, plain):
                for _ in range(repeats):
                    sample = measure(target, lambda t=target, w=work: w(t))  # type: ignore[misc]
                    samples.setdefault(target.name, []).append(sample)
        self.report(title, name, samples, goal)

    def report(
        self, title: str, name: str, samples: dict[str, list[Sample]], goal: Goal | None
    ) -> None:
        """One line per server, and one for the table at the end."""
        print(f"  {title}")
        lines = {label: _middle(values) for label, values in samples.items()}
        base = lines["git"]
        ratios = {
            label: tuple(
                value / of if of else math.nan for value, of in zip(line, base, strict=True)
            )
            for label, line in lines.items()
        }
        for label, (wall, cpu, size) in lines.items():
            ratio = ratios[label]
            print(
                f"    {label:9} wall {wall * 1e3:9.1f} ms ({ratio[0]:5.2f})"
                f"  cpu {cpu * 1e3:8.1f} ms ({ratio[1]:5.2f})"
                f"  {size:>12,.0f} bytes ({ratio[2]:5.2f})",
                flush=True,
            )
        goal = goal or Goal()
        for label in lines:
            if label.startswith("git"):
                continue
            ours = ratios[label]
            missed = goal.missed((ours[0], ours[1], ours[2]))
            plain = f"{lines[label][0] / lines['git-plain'][0]:.2f}" if "git-plain" in lines else ""
            verdict = "no: " + ", ".join(missed) if missed else "yes"
            what = title if label == "quorepo" else f"{title} ({label})"
            self.results.table.append(
                f"| {name} | {what} | {lines[label][0] * 1e3:.1f} | {base[0] * 1e3:.1f} "
                f"| {ours[0]:.2f} | {ours[1]:.2f} | {ours[2]:.2f} | {plain} | {goal} | {verdict} |"
            )

    def figure(self, name: str, title: str, value: float, unit: str, goal: float) -> None:
        """A row that is not a ratio."""
        print(f"  {title}: {value:.1f} {unit}", flush=True)
        verdict = "yes" if value <= goal else f"no: {unit}"
        self.results.table.append(
            f"| {name} | {title} | {value:.1f} {unit} | | | | | | {goal:g} {unit} | {verdict} |"
        )

    def check(
        self, name: str, body: bytes, source: Path, needed: set[str], allowed: set[str],
        *, strict: bool = True, ours: Target | None = None,
    ) -> None:  # fmt: skip
        """Both answers are what was asked for: packs that git takes, with all of `needed`, nothing
        but `allowed`, and ours with no more of it than git's.
        """
        counts = {}
        for target in [ours] if ours else self.targets(name)[:2]:
            with tempfile.TemporaryDirectory(dir=self.root) as folder:
                answer = Path(folder) / "answer"
                target.post(body, answer)
                try:
                    sent = objects_sent(
                        pack_of(answer), Path(folder) / "check.git", source, strict=strict
                    )
                except WrongAnswer as error:
                    self.differs(f"{name}: {target.name}: {error}")
                    continue
            if missing := needed - sent:
                self.differs(f"{name}: {target.name} leaves {len(missing)} objects out")
            if surplus := sent - allowed:
                self.differs(f"{name}: {target.name} sends {len(surplus)} objects of no use")
            counts[target.name] = len(sent)
        how = "index-pack --strict" if strict else "index-pack --fsck-objects"
        print(f"    checked with {how}: {counts} objects of {len(needed)} needed", flush=True)
        if counts.get("quorepo", 0) > counts.get("git", 1 << 62):
            self.differs(f"{name}: more objects than git sends: {counts}")

    def differs(self, what: str) -> None:
        """Remembers a wrong answer; the command fails in the end."""
        print(f"    WRONG: {what}", flush=True)
        self.results.wrong.append(what)


def _middle(values: list[Sample]) -> tuple[float, float, float]:
    """Wall s, CPU s, bytes. Means of CPU: the kernel counts it in steps of 10 ms."""
    return (
        statistics.median(sample.wall_s for sample in values),
        statistics.fmean(sample.cpu_s for sample in values),
        statistics.median(sample.bytes for sample in values),
    )


def configure(repository: Path) -> None:
    """git as careful as we are."""
    for key, value in {**CAREFUL, "uploadpack.allowFilter": "true"}.items():
        git("config", key, value, cwd=repository)


class Idleness:
    """Becomes true when a node used less than a fifth of a core for half a second."""

    def __init__(self, pid: int) -> None:
        self._pid = pid
        self._begin()

    def _begin(self) -> None:
        self._since_s, self._cpu_s = time.monotonic(), cpu_seconds(family(self._pid))

    def __call__(self) -> bool:
        elapsed_s = time.monotonic() - self._since_s
        if elapsed_s < _IDLE_LOOK_S:
            return False
        used_s = cpu_seconds(family(self._pid)) - self._cpu_s
        self._begin()
        return used_s < elapsed_s / 5


def underived(data_dir: Path) -> list[Path]:
    """The large packs of a node whose table of changes is not there yet."""
    found = []
    for pack in data_dir.glob("groups/*/repositories/*/objects/pack/*.pack"):
        with pack.open("rb") as file:
            count = int.from_bytes(file.read(12)[8:12], "big")
        digest = bytes.fromhex(pack.stem.removeprefix("pack-"))
        if count >= CHANGES_OBJECTS_MIN and not derived_path(pack, digest, CHANGES_KIND).exists():
            found.append(pack)
    return found


def lines_of(source: Path, *arguments: str) -> list[str]:
    """The words of a git command's output."""
    return git(*arguments, cwd=source, timeout_s=600).stdout.split()


@functools.lru_cache(maxsize=8)
def objects_of(source: Path, *revisions: str) -> frozenset[str]:
    """All that these revisions lead to; options of rev-list may be among them."""
    return frozenset(lines_of(source, "rev-list", "--objects", "--no-object-names", *revisions))


def tags_of(source: Path) -> set[str]:
    """Annotated tags, which a fetch may bring along."""
    return set(lines_of(source, "for-each-ref", "--format=%(objectname)", "refs/tags"))


def post(body: bytes) -> Work:
    """The exchange of one request."""
    return lambda target: target.post(body)
