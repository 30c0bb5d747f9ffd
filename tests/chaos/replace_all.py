"""3 -> 5 -> 3 nodes, every original node replaced, under constant pushes and clones.

    PYTHONPATH=tests python -m chaos.replace_all

n4 and n5 are added (five nodes), n1 (made the leader before) and n2 removed and stopped (three),
n6 added, n3 removed and stopped: the three at the end share no disk with the first three. A client
pushes to a node that is not about to go, and repeats what failed; another clones from n4. At the
end every node that is left must have every acknowledged ref. Exit status 1 when one is missing, or
a clone failed.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
import threading
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from support.demo import Demo, free_base_port
from support.git import WorkTree, git, refs_of
from support.pusher import RepeatingPusher, longest_gap_s
from support.waiting import eventually

PATH = "chaos/repo"
_STEP_TIMEOUT_S = 120
_CLONES_FROM = "n4"  # a member from the first step to the last


class Cloner(threading.Thread):
    """Clones again and again; remembers what failed."""

    def __init__(self, url: str, directory: Path) -> None:
        super().__init__(daemon=True)
        self._url, self._directory = url, directory
        self.stop_requested = threading.Event()
        self.done = 0
        self.failures: list[str] = []

    def run(self) -> None:
        while not self.stop_requested.is_set():
            target = self._directory / f"clone-{self.done + len(self.failures)}.git"
            process = git("clone", "--quiet", "--bare", self._url, str(target), check=False)
            if process.returncode:
                self.failures.append(process.stderr)
            else:
                self.done += 1


class Replacement:
    """The steps, on a demo that runs."""

    def __init__(self, demo: Demo, root: Path) -> None:
        self._demo, self._root = demo, root
        self._started = time.monotonic()
        self.pushers: list[RepeatingPusher] = []

    def say(self, what: str) -> None:
        print(f"{time.monotonic() - self._started:7.1f} s  {what}", flush=True)

    def members(self, ask: str) -> dict[str, str]:
        """Each node's part in the cluster: voter, learner or not yet a member."""
        told = json.loads(self._demo.cli("node", "list", "-o", "json", node=ask).stdout)
        return {node["name"]: node["member"] for node in told["nodes"]}

    def push_to(self, name: str) -> None:
        """From now on pushes go to this node; what is under way at the former one ends first."""
        if self.pushers:
            self.pushers[-1].finish()
        number = len(self.pushers)
        work = WorkTree(self._root / f"work-{number}")
        pusher = RepeatingPusher(self._demo.url(name, PATH), work, f"p{number}")
        self.pushers.append(pusher)
        pusher.start()
        pusher.wait_for_another()

    def add(self, name: str, ask: str) -> None:
        demo = self._demo
        demo.prepare(name)
        demo.restart(name)
        address = f"127.0.0.1:{demo.base_port + (int(name[1:]) - 1) * 10 + 3}"
        command = ("node", "add", name, "--peer-address", address, "--yes")
        eventually(
            lambda: (
                not demo.cli(*command, node=ask, check=False).returncode
                or self.members(ask).get(name) == "voter"
            ),
            timeout_s=_STEP_TIMEOUT_S,
            what=f"{name} added",
        )
        self._show(f"added {name}", ask)

    def remove(self, name: str, ask: str) -> None:
        was_leader = self._demo.leader(1, ask=ask) == name
        self._demo.cli("node", "remove", name, "--yes", node=ask)
        self._demo.kill(name)
        self._show(f"removed {name}{' (the leader)' if was_leader else ''} and stopped it", ask)

    def _show(self, what: str, ask: str) -> None:
        self.pushers[-1].wait_for_another()
        members = ", ".join(f"{n} {part}" for n, part in sorted(self.members(ask).items()))
        self.say(f"{what}: {members}")


def lost(demo: Demo, names: list[str], acknowledged: dict[str, str]) -> list[str]:
    """What was acknowledged and is not there, as node:ref."""
    missing = []
    for name in names:
        refs = refs_of(demo.url(name, PATH))
        missing += [f"{name}:{ref}" for ref, oid in acknowledged.items() if refs.get(ref) != oid]
    return missing


def replace_all(root: Path) -> bool:
    """Whether everything that was promised held; prints what happened."""
    demo = Demo(root / "demo", base_port=free_base_port(6))
    with demo:
        seed = WorkTree(root / "seed")
        seed.commit("first")
        seed.git("push", "--quiet", demo.url("n1", PATH), "main")
        replacement = Replacement(demo, root)
        cloner: Cloner | None = None
        try:
            replacement.push_to("n2")
            replacement.say("three nodes: n1, n2, n3; pushes go to n2")
            replacement.add("n4", ask="n2")
            cloner = Cloner(demo.url(_CLONES_FROM, PATH), root)
            cloner.start()
            replacement.add("n5", ask="n2")
            replacement.push_to("n4")
            replacement.say("pushes go to n4")
            demo.cli("cluster", "transfer-leader", "--to", "n1", node="n4")
            replacement.remove("n1", ask="n4")
            replacement.remove("n2", ask="n4")
            replacement.add("n6", ask="n4")
            replacement.remove("n3", ask="n4")
        finally:
            for pusher in replacement.pushers:
                pusher.finish()
            if cloner is not None:
                cloner.stop_requested.set()
                cloner.join()
        pushers = replacement.pushers
        acknowledged = {ref: oid for p in pushers for ref, oid in p.acknowledged.items()}
        members = replacement.members("n4")
        missing = lost(demo, sorted(members), acknowledged)
        repeated = sum(len(pusher.failures) for pusher in pushers)
        print(f"members at the end: {', '.join(sorted(members))}")
        print(f"pushes: {len(acknowledged)} acknowledged, {len(missing)} lost, {repeated} repeated")
        print(f"clones: {cloner.done} done, {len(cloner.failures)} failed")
        print(f"longest write gap: {longest_gap_s(pushers):.2f} s")
        for text in [*missing, *cloner.failures, *(f.stderr for p in pushers for f in p.failures)]:
            print(f"  {text.strip()}")
        return not missing and not cloner.failures and members.keys() == {"n4", "n5", "n6"}


def main() -> int:
    """The command line."""
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    with tempfile.TemporaryDirectory(prefix="quorepo-chaos-") as name:
        return 0 if replace_all(Path(name)) else 1


if __name__ == "__main__":
    sys.exit(main())
