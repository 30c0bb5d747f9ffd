"""The rows of `bench.serving` that read: clones and fetches of one repository."""

from __future__ import annotations

import hashlib
import itertools
import tempfile
from pathlib import Path

from support.git import git

from bench.raw_fetch import at_once, fetch_request
from bench.serving_bench import Bench, Goal, Work, lines_of, objects_of, post, tags_of

CROWD = 50
TAIL_PUSHES = 30
FETCHES = {1: Goal(wall=0.5), 100: Goal(wall=1.8), 1000: Goal(wall=2.7)}
SMALL_OBJECTS_MAX = 20_000  # below it the issue asks for less


def tips_of(source: Path) -> list[str]:
    """What branches and tags show."""
    refs = ("refs/heads", "refs/tags")
    return sorted(set(lines_of(source, "for-each-ref", "--format=%(objectname)", *refs)))


def full_clone(bench: Bench, source: Path, name: str) -> bytes:
    """The full clone; returns its request."""
    body = fetch_request(tips_of(source))
    everything = set(objects_of(source, "--branches", "--tags"))
    bench.check(name, body, source, everything, everything)
    small = len(everything) < SMALL_OBJECTS_MAX
    goal = Goal(wall=1.0) if small else Goal(wall=0.2, cpu=0.2)
    bench.row("full clone", name, itertools.repeat(post(body)), goal, repeats=4)
    return body


def crowd(bench: Bench, name: str, body: bytes) -> None:
    """Many identical clones at once: every one has to be the answer that was checked before."""
    ours = bench.targets(name)[0]
    with tempfile.TemporaryDirectory(dir=bench.root) as folder:
        names = iter(range(CROWD + 1))

        def clone() -> int:
            return ours.post(body, Path(folder) / f"{next(names)}")

        clone()
        at_once(CROWD, clone)
        answers = {hashlib.sha256(path.read_bytes()).digest() for path in Path(folder).iterdir()}
    if len(answers) != 1:
        bench.differs(f"{name}: {len(answers)} different answers to {CROWD} identical clones")
    print(f"    checked: {CROWD} answers are the one that was checked")
    work: Work = lambda target: at_once(CROWD, lambda: target.post(body))  # noqa: E731
    title = f"{CROWD} concurrent clones"
    bench.row(title, name, itertools.repeat(work), Goal(cpu=0.15), plain=False, pairs=2)


def fetches(bench: Bench, source: Path, name: str) -> None:
    """1, 100 and 1000 commits: every pair asks for others, so that ours builds anew."""
    line = lines_of(source, "rev-list", "--first-parent", "HEAD")
    for commits, goal in FETCHES.items():
        if len(line) <= commits + bench.pairs + 1:
            continue
        pairs = [
            (line[step], line[_behind(source, line, step, commits)])
            for step in range(bench.pairs + 1)
        ]
        bodies = [fetch_request([want], [have]) for want, have in pairs]
        want, have = pairs[-1]
        allowed = objects_of(source, want) | tags_of(source)
        needed = objects_of(source, want) - objects_of(source, have)
        bench.check(name, bodies[-1], source, set(needed), set(allowed))
        works = iter(map(post, bodies[:-1]))
        bench.row(f"fetch of {commits}, first time", name, works, goal)
        again = itertools.repeat(post(bodies[0]))
        bench.row(f"fetch of {commits}, cached", name, again, Goal(wall=0.15), repeats=4)


def _behind(source: Path, line: list[str], step: int, commits: int) -> int:
    """The index of a commit on the first-parent line so many commits (merged ones too) back."""
    low, high = step + 1, min(len(line) - 1, step + commits)
    while low < high:
        middle = (low + high) // 2
        count = int(lines_of(source, "rev-list", "--count", f"{line[middle]}..{line[step]}")[0])
        low, high = (low, middle) if count >= commits else (middle + 1, high)
    return low


def partial(bench: Bench, source: Path, name: str) -> None:
    """blob:none of everything, and depth 1 of one branch. Other wants in every pair, so that ours
    builds anew."""
    tips = tips_of(source)
    needed = set(objects_of(source, "--filter=blob:none", *tips))
    blobless = "filter blob:none"
    bench.check(name, fetch_request(tips, (), blobless), source, needed, needed, strict=False)
    bodies = [fetch_request(wants, (), blobless) for wants in fewer_and_fewer(bench, source)]
    works = iter(map(post, bodies))
    bench.row("blob:none clone, first time", name, works, Goal(wall=6))
    again = itertools.repeat(post(bodies[0]))
    bench.row("blob:none clone, cached", name, again, Goal(wall=0.5))

    line = lines_of(source, "rev-list", "--first-parent", "--max-count=50", "HEAD")
    steps = [line[step % len(line)] for step in range(bench.pairs + 1)]
    bodies = [fetch_request([want], (), "deepen 1") for want in steps]
    needed = set(objects_of(source, "--max-count=1", steps[-1]))
    allowed = needed | tags_of(source)
    bench.check(name, bodies[-1], source, needed, allowed, strict=False)
    works = iter(map(post, bodies[:-1]))
    bench.row("depth=1 clone, first time", name, works, Goal(wall=1.0))


def fewer_and_fewer(bench: Bench, source: Path) -> list[list[str]]:
    """What is wanted of each pair: all tips but a few, and never the same. HEAD is among them."""
    head = lines_of(source, "rev-parse", "HEAD")[0]
    others = [tip for tip in tips_of(source) if tip != head]
    return [sorted({*others[number + 1 :], head}) for number in range(bench.pairs)]


def tails(bench: Bench, source: Path, name: str) -> None:
    """30 pushes of one to five commits after the first one, then clones."""
    with tempfile.TemporaryDirectory(dir=bench.root) as folder:
        work = Path(folder) / "work"
        git("clone", "--quiet", str(source), str(work), timeout_s=600)
        branch = lines_of(work, "symbolic-ref", "--short", "HEAD")[0]
        urls = [bench.targets(name)[0].url]
        urls += [str(bench.peer_path(f"{name}{suffix}")) for suffix in ("", "-plain")]
        for push in range(TAIL_PUSHES):
            for commit in range(push % 5 + 1):
                (work / f"tail{commit}.txt").write_text(f"push {push}\n" * 50 + f"{commit}\n")
                git("add", "-A", cwd=work)
                git("commit", "--quiet", "-m", f"push {push}.{commit}", cwd=work)
            for url in urls:
                git("push", "--quiet", url, f"HEAD:refs/heads/{branch}", cwd=work)
        git("push", "--quiet", str(source), f"HEAD:refs/heads/{branch}", cwd=work)
    tips = tips_of(source)
    everything = set(objects_of(source, *tips))
    bench.check(name, fetch_request(tips), source, everything, everything)
    bench.settle()
    # Other wants every time, so that nothing comes from the cache.
    works = (post(fetch_request(wants)) for wants in fewer_and_fewer(bench, source))
    bench.row(f"clone with {TAIL_PUSHES} tail packs, not cached", name, works, Goal(wall=0.4))
