"""Clones and fetches: one quorepo node next to git at its best, over HTTP, in the same run.

    PYTHONPATH=tests python -m bench.serving [PATH]   PATH: any repository, not generated ones
        --sizes 5k,40k[,180k]  --pairs 5  --rows clone,fetch,…  --refs 10000

The peer is `git http-backend` on the same objects, `repack -adb` with bitmaps and a commit-graph;
`git-plain` is it without either. A raw client sends the same request bytes to both and drains the
answers, in turns, so that noise hits both; wall is the whole exchange, CPU that of all processes of
the server, bytes the answer's. Medians; ratios are to `git`. Before a row is measured both answers
are checked: `git index-pack --strict` takes them, the counts of their objects are printed.
"""

from __future__ import annotations

import argparse
import itertools
import shutil
import statistics
import sys
import tempfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from support.demo import Demo
from support.git import git

from bench.generated import COMMITS, generate
from bench.raw_fetch import (
    Sample,
    Target,
    anonymous_bytes,
    at_once,
    cpu_seconds,
    family,
    fetch_request,
    measure,
    pack_of,
    packet,
    peak_memory,
    v2_request,
    verify,
)
from bench.streaming_peer import StreamingPeer

ROWS = ("clone", "crowd", "fetch", "partial", "tails", "refs", "memory")
Work = Callable[[Target], int]


@dataclass
class Bench:
    """The two servers, and where everything lies."""

    root: Path
    demo: Demo
    peer: StreamingPeer
    pairs: int

    def targets(self, name: str) -> list[Target]:
        """A repository on all servers, ours first."""
        node = next(iter(self.demo.nodes))
        ours = self.demo.process.pid
        return [
            Target(
                "quorepo",
                self.demo.url(node, f"bench/{name}"),
                lambda: cpu_seconds(family(ours)),
                lambda: anonymous_bytes(family(ours)),
            ),
            *(
                Target(label, self.peer.url(f"{name}{suffix}.git"), self._git_cpu_s)
                for label, suffix in (("git", ""), ("git-plain", "-plain"))
            ),
        ]

    def _git_cpu_s(self) -> float:
        return cpu_seconds([self.peer.pid], own=False)

    def publish(self, source: Path, name: str) -> None:
        """The same refs and objects on all servers."""
        git(
            "push", "--quiet", self.targets(name)[0].url,
            "refs/heads/*:refs/heads/*", "refs/tags/*:refs/tags/*", cwd=source, timeout_s=3600,
        )  # fmt: skip
        for suffix in ("", "-plain"):
            copy = self.root / "peer" / f"{name}{suffix}.git"
            shutil.copytree(source, copy)
            git("config", "gc.auto", "0", cwd=copy)
            git("config", "uploadpack.allowFilter", "true", cwd=copy)
        best = self.root / "peer" / f"{name}.git"
        git("repack", "-adb", "--quiet", cwd=best, timeout_s=3600)
        git("commit-graph", "write", "--reachable", cwd=best, timeout_s=3600)

    def row(self, title: str, name: str, works: Iterator[Work], repeats: int = 1) -> None:
        """Measures one row. `works` gives a new request for every pair."""
        samples: dict[str, list[Sample]] = {}
        for _ in range(self.pairs):
            work = next(works)
            for target in self.targets(name):
                for _ in range(repeats):
                    sample = measure(target, lambda t=target, w=work: w(t))  # type: ignore[misc]
                    samples.setdefault(target.name, []).append(sample)
        report(title, samples)

    def check(self, name: str, body: bytes, had: str = "", strict: bool = True) -> None:
        """Both answers are packs that git takes; prints how many objects they hold."""
        counts = {}
        for target in self.targets(name)[:2]:
            with tempfile.TemporaryDirectory(dir=self.root) as folder:
                answer = Path(folder) / "answer"
                target.post(body, answer)
                source = self.root / "peer" / f"{name}.git"
                counts[target.name] = verify(
                    pack_of(answer), Path(folder) / "check.git", source, had, strict=strict
                )
        same = "equal" if len(set(counts.values())) == 1 else "DIFFERENT"
        how = "index-pack --strict" if strict else "index-pack"
        print(f"    checked with {how}: {counts} objects, {same}")


def report(title: str, samples: dict[str, list[Sample]]) -> None:
    """One line per server."""
    print(f"  {title}")
    lines = {
        name: (
            statistics.median(sample.wall_s for sample in values),
            statistics.fmean(sample.cpu_s for sample in values),
            statistics.median(sample.bytes for sample in values),
        )
        for name, values in samples.items()
    }
    base = lines["git"]
    for name, (wall, cpu, size) in lines.items():
        print(
            f"    {name:9} wall {wall * 1e3:9.1f} ms ({_ratio(wall, base[0])})"
            f"  cpu {cpu * 1e3:8.1f} ms ({_ratio(cpu, base[1])})"
            f"  {size:>12,.0f} bytes ({_ratio(size, base[2])})",
            flush=True,
        )


def _ratio(value: float, base: float) -> str:
    return f"{value / base:5.2f}" if base else "    -"


def lines_of(source: Path, *arguments: str) -> list[str]:
    """The lines of a git command's output."""
    return git(*arguments, cwd=source, timeout_s=600).stdout.split()


def post(body: bytes) -> Work:
    """The exchange of one request."""
    return lambda target: target.post(body)


def clones(bench: Bench, source: Path, name: str) -> bytes:
    """The full clone; returns its request."""
    tips = lines_of(source, "for-each-ref", "--format=%(objectname)", "refs/heads", "refs/tags")
    body = fetch_request(sorted(set(tips)))
    bench.check(name, body)
    return body


def fetches(bench: Bench, source: Path, name: str) -> None:
    """1, 100 and 1000 commits: every pair asks for others, so that ours builds anew."""
    line = lines_of(source, "rev-list", "--first-parent", "HEAD")
    for commits in (1, 100, 1000):
        if len(line) <= commits + bench.pairs + 1:
            continue
        pairs = [(line[step], line[_behind(source, line, step, commits)]) for step in
                 range(bench.pairs + 1)]  # fmt: skip
        bodies = [fetch_request([want], [have]) for want, have in pairs]
        bench.check(name, bodies[-1], pairs[-1][1])
        bench.row(f"fetch of {commits}, first time", name, iter(map(post, bodies[:-1])))
        bench.row("the same from the cache", name, itertools.repeat(post(bodies[0])))


def _behind(source: Path, line: list[str], step: int, commits: int) -> int:
    """The index of a commit on the first-parent line so many commits (merged ones too) back."""
    low, high = step + 1, min(len(line) - 1, step + commits)
    while low < high:
        middle = (low + high) // 2
        count = int(lines_of(source, "rev-list", "--count", f"{line[middle]}..{line[step]}")[0])
        low, high = (low, middle) if count >= commits else (middle + 1, high)
    return low


def partial(bench: Bench, source: Path, name: str) -> None:
    """blob:none and depth 1."""
    head = lines_of(source, "rev-parse", "HEAD")[0]
    for title, option in (("blob:none clone", "filter blob:none"), ("depth=1 clone", "deepen 1")):
        body = fetch_request([head], (), option)
        first = measure(bench.targets(name)[0], lambda b=body: bench.targets(name)[0].post(b))  # type: ignore[misc]
        print(
            f"  {title}: quorepo's first {first.wall_s * 1e3:.1f} ms, cpu {first.cpu_s * 1e3:.0f}"
        )
        bench.row(f"{title} from the cache", name, itertools.repeat(post(body)))


def tails(bench: Bench, source: Path, name: str) -> None:
    """30 pushes of one to five commits after the first one, then clones."""
    with tempfile.TemporaryDirectory(dir=bench.root) as folder:
        work = Path(folder) / "work"
        git("clone", "--quiet", str(source), str(work), timeout_s=600)
        urls = [bench.targets(name)[0].url]
        urls += [str(bench.root / "peer" / f"{name}{suffix}.git") for suffix in ("", "-plain")]
        for path in urls[1:]:
            git("config", "receive.unpackLimit", "1", cwd=Path(path))
        for push in range(30):
            for commit in range(push % 5 + 1):
                (work / f"tail{commit}.txt").write_text(f"push {push}\n" * 50 + f"{commit}\n")
                git("add", "-A", cwd=work)
                git("commit", "--quiet", "-m", f"push {push}.{commit}", cwd=work)
            for url in urls:
                git("push", "--quiet", url, "HEAD:refs/heads/main", cwd=work)
        head = lines_of(work, "rev-parse", "HEAD")[0]
    tips = lines_of(source, "for-each-ref", "--format=%(objectname)", "refs/heads", "refs/tags")
    body = fetch_request(sorted({*tips, head}))
    bench.check(name, body)
    first = measure(bench.targets(name)[0], lambda: bench.targets(name)[0].post(body))
    print(f"  clone with 30 tail packs: quorepo's second {first.wall_s * 1e3:.1f} ms")
    # Other wants every time, so that nothing comes from the cache.
    bodies = [fetch_request(sorted({*tips[number:], head})) for number in range(bench.pairs)]
    bench.row("clone with 30 tail packs, not from the cache", name, iter(map(post, bodies)))


def many_refs(bench: Bench, source: Path, count: int) -> None:
    """Advertisement and ls-refs of many refs, first at a revision and repeated."""
    name = f"refs{count}"
    copy = bench.root / f"{name}.git"
    git("init", "--quiet", "--bare", "--initial-branch=main", str(copy))
    git("fetch", "--quiet", str(source), "HEAD:refs/heads/main", cwd=copy)
    commits = lines_of(copy, "rev-list", "--max-count=500", "main")
    refs = [f"refs/heads/team-{n % 50}/work-{n}" for n in range(count)]
    updates = [f"create {ref} {commits[n % len(commits)]}\n" for n, ref in enumerate(refs)]
    git("update-ref", "--stdin", cwd=copy, stdin="".join(updates).encode(), timeout_s=600)
    git("pack-refs", "--all", cwd=copy)
    url = bench.targets(name)[0].url
    git("push", "--quiet", url, "main", cwd=copy)
    ours = bench.targets(name)[0]
    for start in range(0, count, 5000):
        numbers = range(start, min(count, start + 5000))
        ours.create_refs({refs[n]: commits[n % len(commits)] for n in numbers})
    for suffix in ("", "-plain"):
        shutil.copytree(copy, bench.root / "peer" / f"{name}{suffix}.git")
    prefixes = ["ref-prefix HEAD", "ref-prefix refs/heads/", "ref-prefix refs/tags/"]
    body = v2_request("ls-refs", ["peel", "symrefs", *prefixes])
    works = {
        "advertisement (v0)": Target.advertisement,
        "ls-refs (v2, as git clone asks)": post(body),
    }
    names = (f"new-{number}" for number in itertools.count())
    for title, work in works.items():
        firsts = []
        for number in range(bench.pairs):
            ours.create_refs({f"refs/heads/{next(names)}": commits[number]})
            firsts.append(measure(ours, lambda o=ours, w=work: w(o)))  # type: ignore[misc]
        wall = statistics.median(sample.wall_s for sample in firsts)
        print(f"  {title} of {count} refs: quorepo's first at a revision {wall * 1e3:.1f} ms")
        bench.row(f"{title} of {count} refs, repeated", name, itertools.repeat(work), 3)


def repository(bench: Bench, source: Path, name: str, rows: list[str]) -> None:
    """All rows on one repository."""
    objects = lines_of(source, "rev-list", "--objects", "--all", "--count")[0]
    print(f"{name}: {objects} objects", flush=True)
    bench.publish(source, name)
    body = clones(bench, source, name)
    if "memory" in rows:
        ours = bench.targets(name)[0]
        peak = peak_memory(ours, lambda: ours.post(body))
        print(f"  memory above idle during a clone: {peak / 1e6:.1f} MB")
    if "clone" in rows:
        bench.row("full clone", name, itertools.repeat(post(body)))
    if "crowd" in rows:
        pairs, bench.pairs = bench.pairs, 1
        crowd: Work = lambda target: at_once(50, lambda: target.post(body))  # noqa: E731
        bench.row("50 concurrent clones", name, itertools.repeat(crowd))
        bench.pairs = pairs
    if "fetch" in rows:
        fetches(bench, source, name)
    if "partial" in rows:
        partial(bench, source, name)
    if "tails" in rows:
        tails(bench, source, name)


def main() -> None:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "path", type=Path, nargs="?", help="a repository, instead of generated ones"
    )
    parser.add_argument("--sizes", default="5k,40k", help=f"of {', '.join(COMMITS)}")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--rows", default=",".join(ROWS))
    parser.add_argument("--refs", default="10000", help="numbers of refs, separated by commas")
    arguments = parser.parse_args()
    rows = arguments.rows.split(",")
    assert packet("x") == b"0006x\n"
    with tempfile.TemporaryDirectory(prefix="quorepo-bench-") as folder:
        root = Path(folder)
        (root / "peer").mkdir()
        sources = {}
        if arguments.path is not None:
            sources["given"] = root / "given.git"
            git("clone", "--quiet", "--bare", str(arguments.path), str(sources["given"]))
        else:
            for size in arguments.sizes.split(","):
                sources[f"generated-{size}"] = root / f"{size}.git"
                generate(root / f"{size}.git", COMMITS[size], seed=7)
        with Demo(root / "demo", nodes=1) as demo, StreamingPeer(root / "peer") as peer:
            bench = Bench(root, demo, peer, arguments.pairs)
            for name, source in sources.items():
                repository(bench, source, name, rows)
            if "refs" in rows:
                for count in arguments.refs.split(","):
                    many_refs(bench, next(iter(sources.values())), int(count))


if __name__ == "__main__":
    main()
