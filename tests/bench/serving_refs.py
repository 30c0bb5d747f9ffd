"""The rows of `bench.serving` about many refs: advertisements and ls-refs."""

from __future__ import annotations

import functools
import itertools
import shutil
import tempfile
from pathlib import Path

from support.git import git

from bench.raw_fetch import Sample, Target, measure, v2_request
from bench.serving_bench import Bench, Goal, Work, configure, lines_of, post

_BATCH = 5_000
_PREFIXES = ("ref-prefix HEAD", "ref-prefix refs/heads/", "ref-prefix refs/tags/")
LS_REFS = v2_request("ls-refs", ["peel", "symrefs", *_PREFIXES])


def many_refs(bench: Bench, source: Path, count: int) -> None:
    """What a client is told first, when a ref was just pushed, and repeatedly."""
    name = f"{count // 1000}k refs"
    print(f"{name}", flush=True)
    name = name.replace(" ", "-")
    commits = _create(bench, source, name, count)
    works: dict[str, Work] = {
        "advertisement (v0)": Target.advertisement,
        "ls-refs (v2)": post(LS_REFS),
    }
    numbers = itertools.count()
    for title, work in works.items():
        samples: dict[str, list[Sample]] = {}
        for _ in range(bench.pairs):
            number = next(numbers)
            ref, oid = f"refs/heads/new-{number}", commits[number % len(commits)]
            bench.targets(name)[0].create_refs({ref: oid})
            for suffix in ("", "-plain"):
                path = bench.peer_path(f"{name}{suffix}")
                git("update-ref", ref, oid, cwd=path)
                git("pack-refs", "--all", cwd=path, timeout_s=600)
            for target in bench.targets(name):
                sample = measure(target, functools.partial(work, target))
                samples.setdefault(target.name, []).append(sample)
        _check(bench, name, work is Target.advertisement)
        bench.report(f"{title}, first", name, samples, Goal(wall=1.0))
        goal = Goal(wall=0.6)
        bench.row(f"{title}, repeated", name, itertools.repeat(work), goal, repeats=3)


def _create(bench: Bench, source: Path, name: str, count: int) -> list[str]:
    """The repository on all servers; returns some commits of it."""
    copy = bench.root / f"{name}.git"
    git("init", "--quiet", "--bare", "--initial-branch=main", str(copy))
    source_refs = ("--no-tags", str(source), "HEAD:refs/heads/main")
    git("fetch", "--quiet", *source_refs, cwd=copy, timeout_s=600)
    commits = lines_of(copy, "rev-list", "--max-count=500", "main")
    refs = [f"refs/heads/team-{n % 50}/work-{n}" for n in range(count)]
    _write_packed_refs(copy, {n: commits[i % len(commits)] for i, n in enumerate(refs)})
    ours = bench.targets(name)[0]
    git("push", "--quiet", ours.url, "main", cwd=copy, timeout_s=600)
    for start in range(0, count, _BATCH):
        numbers = range(start, min(count, start + _BATCH))
        ours.create_refs({refs[n]: commits[n % len(commits)] for n in numbers})
    for suffix in ("", "-plain"):
        path = bench.peer_path(f"{name}{suffix}")
        shutil.copytree(copy, path)
        configure(path)
    bench.settle()
    return commits


def _write_packed_refs(repository: Path, refs: dict[str, str]) -> None:
    """As `git pack-refs` writes them: git makes a file for each ref first, which takes minutes."""
    main = lines_of(repository, "rev-parse", "main")[0]
    lines = [f"{oid} {name}\n" for name, oid in sorted({**refs, "refs/heads/main": main}.items())]
    head = "# pack-refs with: peeled fully-peeled sorted \n"
    (repository / "packed-refs").write_text(head + "".join(lines))


def _check(bench: Bench, name: str, is_v0: bool) -> None:
    """Ours tells the same refs as git."""
    told = {}
    for target in bench.targets(name)[:2]:
        with tempfile.TemporaryDirectory(dir=bench.root) as folder:
            answer = Path(folder) / "answer"
            if is_v0:
                target.advertisement(answer)
            else:
                target.post(LS_REFS, answer)
            told[target.name] = _refs(answer.read_bytes())
    ours, peers = told["quorepo"], told["git"]
    if ours != peers:
        bench.differs(f"{name}: {len(ours)} refs, git tells {len(peers)}, others among them")
    print(f"    checked: {len(ours)} refs, as git's {len(peers)}", flush=True)


def _refs(answer: bytes) -> list[bytes]:
    """The lines without capabilities, in their order."""
    lines, position = [], 0
    while position < len(answer):
        size = int(answer[position : position + 4], 16)
        if size > 4:
            line = answer[position + 4 : position + size].partition(b"\0")[0].rstrip(b"\n")
            if not line.startswith(b"# service"):
                lines.append(line)
        position += max(4, size)
    return lines
