"""Every failpoint of a node, killed there in a real cluster under pushes, and started again.

The steps of the journal, of vote files and of a snapshot's staging are killed one by one in
processes of their own as well (unit/raft/test_journal_crash.py, unit/cluster/test_snapshot_staging
.py), with more orders of events than a cluster shows.
"""

from __future__ import annotations

import os
import re
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.demo import Demo
from support.git import WorkTree, clone, git, refs_of
from support.membership import background
from support.waiting import eventually

from quorepo.storage.errors import FatalError
from quorepo.storage.failpoints import ENVIRONMENT_VARIABLE

pytestmark = pytest.mark.system

STORAGE = 1
ROOT = Path(__file__).parents[2]
PATH = "crash/repo"
# Logs that are cut all the time: compaction, its syncs, and snapshots are on the way of every test.
SMALL_LOGS = (
    *("--set", "raft.compaction_entries_min=8"),
    *("--set", "raft.trailing_entries=2"),
)
DIED = re.compile(r"killed by SIGKILL|worker died")
WRITTEN_OUT = re.compile(r'failpoint\(\s*f?"([a-z_.{}]+)"')

# What brings a node to a failpoint. Those of always are killed in every run of the tests, the
# others with --slow.
ALWAYS = {
    "raft.step.before_sync": "push",
    "raft.step.after_sync": "push",
    "peer.stage.between_renames": "push",
    "layout.promote.before_dir_fsync": "push",
    "state.apply.before_commit": "push",
    "state.apply.after_commit": "push",
    "raft.vote.before_reply": "vote",
    "snapshot.switch.before_install": "away",
}
SLOW = {
    "raft.append.before_reply": "push",
    "journal.sync.before_write": "push",
    "journal.sync.before_fsync": "push",
    "journal.sync.done": "push",
    "peer.stage.before_fsync": "push",
    "peer.stage.before_rename": "push",
    "peer.stage.before_folder_fsync": "push",
    "ingest.index.before_fsync": "push",
    "ingest.pack.before_fsync": "push",
    "ingest.before_rename": "push",
    "ingest.before_dir_fsync": "push",
    "layout.promote.before_rename": "push",
    "layout.store.before_rename": "push",
    "layout.store.before_dir_fsync": "push",
    "state.apply.before_promote": "push",
    "state.apply.before_store": "push",
    "state.sync.before_commit": "push",
    "layout.repository.before_rename": "create",
    "layout.repository.before_dir_fsync": "create",
    "layout.retire.before_rename": "delete",
    "layout.retire.before_dir_fsync": "delete",
    "state.apply.before_retire": "delete",
    "layout.retire_pack.before_rename": "optimize",
    "layout.retire_pack.before_dir_fsync": "optimize",
    "consolidate.index.before_fsync": "optimize",
    "consolidate.pack.before_fsync": "optimize",
    "consolidate.before_rename": "optimize",
    "consolidate.before_dir_fsync": "optimize",
    "votes.replace.before_write": "vote",
    "votes.replace.before_fsync": "vote",
    "votes.replace.before_rename": "vote",
    "votes.replace.before_dir_fsync": "vote",
    "votes.replace.done": "vote",
    "snapshot.stage.before_manifest": "away",
    "snapshot.stage.before_write": "away",
    "snapshot.stage.before_rename": "away",
    "snapshot.switch.before_record": "away",
    "snapshot.switch.after_install": "away",
    "snapshot.switch.before_promote": "away",
    "snapshot.discard.before_remove": "away",
    "journal.restart.before_sync": "away",
    "journal.restart.before_free": "away",
    "state.install.before_current": "away",
    "state.create.before_current": "emptied",
    "layout.write.before_fsync": "emptied",
    "layout.write.before_rename": "emptied",
    "layout.write.before_dir_fsync": "emptied",
    "boots.before_write": "emptied",
    "boots.after_write": "emptied",
    "known.before_save": "emptied",
    "known.after_save": "emptied",
    "repair.before_promote": "lost",
}


class Cluster:
    """A demo, the repository that all tests push to, and what was acknowledged of it."""

    def __init__(self, demo: Demo, work: WorkTree) -> None:
        self.demo = demo
        self.work = work
        self.acknowledged: dict[str, str] = {}
        self.refused: set[str] = set()
        self._number = 0

    def push(self, node: str) -> bool:
        """One new branch; remembers what is certain."""
        self._number += 1
        oid = self.work.commit(
            f"change {self._number}",
            # By turns one that travels in its log entry and one that is copied before it.
            {f"file{self._number % 7}": os.urandom(3000 if self._number % 2 else 200_000)},
        )
        ref = f"refs/heads/b{self._number}"
        url = self.demo.url(node, PATH)
        done = self.work.git("push", url, f"{oid}:{ref}", check=False)
        if done.returncode == 0:
            self.acknowledged[ref] = oid
            return True
        if "[remote rejected]" in done.stderr:
            self.refused.add(ref)
        return False

    def serves(self, node: str) -> bool:
        return git("ls-remote", self.demo.url(node, PATH), check=False).returncode == 0

    def wait_until_it_serves(self, node: str) -> None:
        eventually(lambda: self.serves(node), timeout_s=60, what=f"{node} serves")

    def check(self, folder: Path) -> None:
        """Nothing acknowledged is missing, nothing refused is there, and all nodes agree."""
        refs = [refs_of(self.demo.url(name, PATH)) for name in self.demo.nodes]
        assert all(other == refs[0] for other in refs)
        missing = {r: o for r, o in self.acknowledged.items() if refs[0].get(r) != o}
        assert not missing, f"acknowledged and missing: {missing}"
        assert not self.refused & refs[0].keys()
        for name in self.demo.nodes:
            clone(self.demo.url(name, PATH), folder / f"clone-{name}", "--mirror")


@pytest.fixture(scope="module")
def cluster(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Cluster]:
    folder = tmp_path_factory.mktemp("crash")
    with Demo(folder / "demo", *SMALL_LOGS) as demo:
        cluster = Cluster(demo, WorkTree(folder / "work"))
        assert cluster.push("n1")
        yield cluster


def raft_metric(demo: Demo, node: str, name: str) -> float:
    """A number of the storage group's replica on a node."""
    found = re.search(
        rf'^quorepo_raft_{name}{{group="{STORAGE}"}} (\S+)$', demo.metrics(node), re.M
    )
    assert found, name
    return float(found[1])


class Victim:
    """A node that is going to die at a failpoint."""

    def __init__(self, cluster: Cluster, name: str, failpoint: str) -> None:
        self.cluster = cluster
        self.name = name
        self.others = [node for node in cluster.demo.nodes if node != name]
        self._failpoint = failpoint
        self._log = cluster.demo.directory.parent / f"{name}.restart.log"
        self._logged = 0

    def start(self) -> None:
        """Starts the node, so that it dies at the failpoint."""
        self._logged = self._log.stat().st_size if self._log.exists() else 0
        self.cluster.demo.restart(self.name, **{ENVIRONMENT_VARIABLE: f"{self._failpoint}=kill"})

    def died(self) -> bool:
        with self._log.open("rb") as log:
            log.seek(self._logged)
            return DIED.search(log.read().decode(errors="replace")) is not None

    def drive(self, step: Callable[[], object], what: str) -> None:
        """Repeats `step` until the node died at its failpoint."""
        deadline = time.monotonic() + 90
        while not self.died():
            assert time.monotonic() < deadline, f"{what} never came to {self._failpoint}"
            step()


def _push(victim: Victim) -> None:
    cluster = victim.cluster
    victim.start()
    nodes = [victim.name, *victim.others]
    turn = iter(range(1_000_000))
    victim.drive(lambda: cluster.push(nodes[next(turn) % 3]), "a push")


def _create(victim: Victim) -> None:
    cluster = victim.cluster
    victim.start()

    def create() -> None:  # by a push: a repository without packs has no folder
        url = cluster.demo.url(victim.others[0], f"created/{time.monotonic_ns()}")
        cluster.work.git("push", "--quiet", url, "HEAD:refs/heads/main", check=False)

    victim.drive(create, "the creation of a repository")


def _delete(victim: Victim) -> None:
    cluster = victim.cluster
    victim.start()

    def create_and_delete() -> None:
        node, path = victim.others[0], f"deleted/{time.monotonic_ns()}"
        cluster.demo.cli("repo", "create", path, node=node, check=False)
        cluster.demo.cli("repo", "delete", path, "--yes", node=node, check=False)

    victim.drive(create_and_delete, "the deletion of a repository")


def _optimize(victim: Victim) -> None:
    cluster = victim.cluster
    for _ in range(2):
        cluster.push(victim.others[0])
    victim.start()
    cluster.wait_until_it_serves(victim.name)

    def optimize() -> None:
        cluster.push(victim.others[1])
        # Not waited for: as long as its worker dies, the command asks again.
        with background(cluster.demo, "repo", "optimize", PATH, node=victim.name) as command:
            eventually(
                lambda: victim.died() or command.poll() is not None,
                timeout_s=60, what="the consolidation ended, or died",
            )  # fmt: skip

    victim.drive(optimize, "consolidation")


def _vote(victim: Victim) -> None:
    """The leader is killed, and the others have to vote."""
    demo = victim.cluster.demo
    victim.start()

    def elect() -> None:
        leader = demo.leader(STORAGE, ask=victim.others[0])
        if leader == victim.name:
            # Nobody asks a leader for its vote: it hands over, and is asked by who takes over.
            arguments = ("transfer-leader", "--group", str(STORAGE), "--to", victim.others[0])
            demo.cli("cluster", *arguments, node=victim.others[0], check=False)
            return
        demo.kill(leader)
        demo.restart(leader)
        eventually(
            lambda: victim.died() or victim.cluster.serves(leader),
            timeout_s=60, what=f"{leader} is back or {victim.name} died",
        )  # fmt: skip

    victim.drive(elect, "an election")


def _away(victim: Victim) -> None:
    """The others go on without it, and cut their logs: it needs a snapshot."""
    cluster = victim.cluster
    leader = cluster.demo.leader(STORAGE, ask=victim.others[0])
    has = raft_metric(cluster.demo, leader, "commit_index")

    def cut() -> bool:
        cluster.push(victim.others[0])
        return all(raft_metric(cluster.demo, n, "first_index") > has for n in victim.others)

    eventually(cut, timeout_s=60, what="the others cut their logs behind it")
    victim.start()
    eventually(victim.died, timeout_s=60, what=f"{victim.name} died at its failpoint")


def _emptied(victim: Victim) -> None:
    shutil.rmtree(victim.cluster.demo.nodes[victim.name].data_dir)
    victim.start()
    eventually(victim.died, timeout_s=60, what=f"{victim.name} died at its failpoint")


def _lost(victim: Victim) -> None:
    """Its disk has lost a pack, which it fetches from another node."""
    stored = victim.cluster.demo.nodes[victim.name].data_dir / "groups" / str(STORAGE)
    pack = min(stored.glob("repositories/*.git/objects/pack/*.pack"))
    pack.unlink()
    victim.start()
    eventually(victim.died, timeout_s=60, what=f"{victim.name} died at its failpoint")


WAYS: dict[str, Callable[[Victim], None]] = {
    "push": _push,
    "create": _create,
    "delete": _delete,
    "optimize": _optimize,
    "vote": _vote,
    "away": _away,
    "emptied": _emptied,
    "lost": _lost,
}
POINTS = [(name, way, ()) for name, way in ALWAYS.items()]
POINTS_SLOW = [(name, way, (pytest.mark.slow,)) for name, way in SLOW.items()]


@pytest.mark.parametrize(
    ("name", "way"),
    [pytest.param(name, way, marks=marks) for name, way, marks in (*POINTS, *POINTS_SLOW)],
)
def test_killed_there_and_started_again_nothing_is_lost(
    cluster: Cluster, tmp_path: Path, name: str, way: str
) -> None:
    demo = cluster.demo
    leader = demo.leader(STORAGE)
    # Leaders die at every second point; what only followers do is for followers.
    wants_follower = way in ("away", "vote", "emptied", "lost") or name.startswith(
        ("peer.", "raft.append")
    )
    is_leader = not wants_follower and sorted((*ALWAYS, *SLOW)).index(name) % 2 == 0
    victim = leader if is_leader else next(node for node in demo.nodes if node != leader)
    demo.kill(victim)
    WAYS[way](Victim(cluster, victim, name))
    demo.kill(victim)
    demo.restart(victim)
    for node in demo.nodes:
        cluster.wait_until_it_serves(node)
    for node in demo.nodes:
        assert cluster.push(node), f"{node} takes no push"
    cluster.check(tmp_path)


@pytest.mark.parametrize("name", ["journal.sync.before_fsync", "state.apply.before_commit"])
def test_a_disk_error_ends_the_node_and_it_is_not_started_by_itself_again(
    cluster: Cluster, tmp_path: Path, name: str
) -> None:
    demo = cluster.demo
    victim = next(node for node in demo.nodes if node != demo.leader(STORAGE))
    others = [node for node in demo.nodes if node != victim]
    demo.kill(victim)
    log = demo.directory.parent / f"{victim}.restart.log"
    before = log.stat().st_size if log.exists() else 0
    demo.restart(victim, **{ENVIRONMENT_VARIABLE: f"{name}=error"})
    process = demo.process_of(victim)
    deadline = time.monotonic() + 60
    while process.poll() is None:
        assert time.monotonic() < deadline, f"{victim} goes on after an error of its disk"
        cluster.push(others[0])
    assert process.returncode == FatalError.EXIT_IO_ERROR
    words = log.read_bytes()[before:].decode()
    assert "process gave up" in words
    assert "EIO" in words or "Input/output error" in words
    assert cluster.push(others[1]), "the others go on"
    demo.kill(victim)
    demo.restart(victim)
    for node in demo.nodes:
        cluster.wait_until_it_serves(node)
    cluster.check(tmp_path)


def test_every_failpoint_is_killed_somewhere() -> None:
    """A new failpoint fails here until a test names it, or a module whose list is made by itself
    does."""
    named = "\n".join(path.read_text() for path in sorted((ROOT / "tests").rglob("*.py")))
    # test_journal_crash.py finds them itself; test_membership.py, test_membership_kills.py and
    # test_mixed_versions.py have the last words of those of membership.
    listed = ("journal.", "votes.", "{failpoint_prefix}", "membership.")
    missing = {
        name
        for folder in ("storage", "cluster", "rpc")
        for path in (ROOT / folder).rglob("*.py")
        if path.name != "failpoints.py"
        for name in WRITTEN_OUT.findall(path.read_text())
        if f'"{name}' not in named and not name.startswith(listed)
    }
    assert not missing
