"""The rows of `bench.serving` that write: pushes of one commit, and of whole repositories."""

from __future__ import annotations

import functools
import itertools
import shutil
import subprocess
import tempfile
from pathlib import Path

from support.demo import Demo
from support.git import ENVIRONMENT, git

from bench.raw_fetch import Sample, Target, fetch_request, measure, peak_memory
from bench.serving_bench import Bench, Goal, Results, configure, lines_of, objects_of
from bench.serving_reads import tips_of
from bench.streaming_peer import StreamingPeer

_NOBODY = "0" * 40


def one_commit_pushes(root: Path, source: Path, pushes: int, results: Results) -> None:
    """Pushes of one commit into a long history: three nodes of ours, one server of git's."""
    (root / "peer3").mkdir()
    with Demo(root / "demo3") as demo, StreamingPeer(root / "peer3") as peer:
        bench = Bench(root, demo, peer, pushes, results, peer_folder="peer3")
        leader = demo.leader(1)
        follower = next(node for node in demo.nodes if node != leader)
        name = source.stem
        bench.publish(source, name, plain=False, node=leader)
        targets = [
            bench.ours(leader, name),
            bench.ours(follower, name, "follower"),
            bench.targets(name, plain=False)[1],
        ]
        with tempfile.TemporaryDirectory(dir=root) as folder:
            work = Path(folder) / "work"
            git("clone", "--quiet", str(source), str(work), timeout_s=600)
            base = lines_of(work, "rev-parse", "HEAD")[0]
            heads = _push_in_turns(bench, work, base, targets, pushes, name)
            for node, label in itertools.product(demo.nodes, ("quorepo", "follower")):
                needed = objects_of(work, heads[label]) - objects_of(work, base)
                body = fetch_request([heads[label]], [base])
                whole = set(needed)
                bench.check(name, body, work, whole, whole, ours=bench.ours(node, name))


def _push_in_turns(
    bench: Bench, work: Path, base: str, targets: list[Target], pushes: int, name: str
) -> dict[str, str]:
    """Every target gets commits of its own on a branch of its own; returns its last ones. The first
    push of each makes the branch and is not counted."""
    samples: dict[str, list[Sample]] = {}
    heads = {target.name: base for target in targets}
    for number in range(pushes + 1):
        for target in targets:
            old = heads[target.name]
            new, pack = _commit(work, old, f"push {number} to {target.name}\n")
            ref = f"refs/heads/push-{target.name}"
            update = (old if number else _NOBODY, new, ref)
            exchange = functools.partial(_advertise_and_push, target, update, pack)
            sample = measure(target, exchange)
            heads[target.name] = new
            if number:
                samples.setdefault(target.name, []).append(sample)
    bench.report("push of one commit, 3 nodes", name, samples, Goal(wall=1.0, bytes=None))
    return heads


def _advertise_and_push(target: Target, update: tuple[str, str, str], pack: bytes) -> int:
    return target.advertisement(service="git-receive-pack") + target.push([update], pack)


def _commit(work: Path, parent: str, text: str) -> tuple[str, bytes]:
    """A commit that changes one file, and the thin pack that git would send for it."""
    git("checkout", "--quiet", "--detach", parent, cwd=work)
    (work / "pushed.txt").write_text(text * 20)
    git("add", "-A", cwd=work)
    git("commit", "--quiet", "-m", text, cwd=work)
    new = lines_of(work, "rev-parse", "HEAD")[0]
    made = subprocess.run(
        ["git", "pack-objects", "--revs", "--thin", "--stdout", "-q", "--delta-base-offset"],
        cwd=work, env=ENVIRONMENT, input=f"{new}\n^{parent}\n".encode(),
        capture_output=True, check=True,
    )  # fmt: skip
    return new, made.stdout


def ingests(bench: Bench, source: Path, goal: float, pairs: int) -> None:
    """Pushes of a whole repository into new ones, the memory of the first one and of a clone."""
    [pack] = (source / "objects" / "pack").glob("*.pack")
    refs = [line.split() for line in git("for-each-ref", "--format=%(objectname) %(refname)",
            "refs/heads", "refs/tags", cwd=source).stdout.splitlines()]  # fmt: skip
    updates = [(_NOBODY, oid, ref) for oid, ref in refs]
    everything = set(objects_of(source, "--branches", "--tags"))
    megabytes = pack.stat().st_size / 1e6
    samples: dict[str, list[Sample]] = {}
    peaks = []
    for pair in range(pairs + 1):
        name = f"{source.stem}-in-{pair}"
        peer = bench.peer_path(name)
        git("init", "--quiet", "--bare", str(peer))
        configure(peer)
        for target in bench.targets(name, plain=False):
            exchange = functools.partial(target.push, updates, pack)
            if pair:
                samples.setdefault(target.name, []).append(measure(target, exchange))
            elif target.name == "quorepo":
                peaks.append(peak_memory(target, exchange))
            bench.settle()
        count = int(lines_of(peer, "rev-list", "--objects", "--all", "--count")[0])
        if count and count != len(everything):
            bench.differs(f"{name}: git has {count} objects, not {len(everything)}")
        if pair < pairs:
            shutil.rmtree(peer)
    title = f"ingest of {megabytes:.0f} MB"
    bench.report(title, source.stem, samples, Goal(wall=goal, bytes=None))
    memory = "memory above idle during a"
    push_memory_mb = peaks[0] / 1e6
    bench.figure(source.stem, f"{memory} push of {megabytes:.0f} MB", push_memory_mb, "MB", 300)
    body = fetch_request(tips_of(source))
    ours = bench.targets(name, plain=False)[0]
    peak = peak_memory(ours, lambda: ours.post(body))
    bench.figure(source.stem, f"{memory} clone of {megabytes:.0f} MB", peak / 1e6, "MB", 100)
    bench.check(name, body, source, everything, everything)
