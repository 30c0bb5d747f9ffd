"""Consolidation and prune on real processes: nothing is lost, nobody waits, nobody is believed."""

from __future__ import annotations

import asyncio
import hashlib
import json
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.demo import Demo
from support.git import WorkTree, clone, refs_of
from support.replicas import (
    STORAGE,
    check_replicas,
    objects_of,
    packs_of,
    quarantined_of,
    repository_id_of,
    retired_of,
)
from support.waiting import eventually

from quorepo.internal.v1 import log_pb2
from quorepo.rpc.core_client import CoreClient, PacksChanged
from quorepo.storage.consolidate import merge_packs
from quorepo.storage.errors import Rejected, Unavailable
from quorepo.storage.ingest import IngestResult
from quorepo.storage.layout import GroupLayout
from quorepo.storage.objectformat import ObjectFormat
from quorepo.storage.packs import PackCache

pytestmark = pytest.mark.system


def push_many(demo: Demo, work: WorkTree, path: str, count: int) -> None:
    """One push per commit, to all nodes in turn."""
    names = list(demo.nodes)
    for number in range(count):
        content = "".join(f"{n * number % 97}\n" for n in range(200))
        work.commit(f"{number}", {f"file{number % 3}": content, "dir/last": f"{number}\n"})
        url = demo.url(names[number % len(names)], path)
        work.git("push", "--quiet", url, "HEAD:refs/heads/main")


class Busy(threading.Thread):
    """Pushes new branches and clones, in turn, until told to stop; every failure is kept."""

    def __init__(self, demo: Demo, work: WorkTree, path: str, nodes: list[str], to: Path) -> None:
        super().__init__(daemon=True)
        self._demo, self._work, self._path, self._nodes, self._to = demo, work, path, nodes, to
        self._stop_requested = threading.Event()
        self.failures: list[str] = []
        self.pushed: dict[str, str] = {}
        self.push_seconds_max = 0.0
        self.clones = 0

    def run(self) -> None:
        number = 0
        while not self._stop_requested.is_set():
            number += 1
            node = self._nodes[number % len(self._nodes)]
            oid = self._work.commit(f"busy {number}", {f"busy{number % 5}": f"{number}\n"})
            ref = f"refs/heads/busy{number}"
            started = time.monotonic()
            url = self._demo.url(node, self._path)
            done = self._work.git("push", url, f"{oid}:{ref}", check=False)
            self.push_seconds_max = max(self.push_seconds_max, time.monotonic() - started)
            if done.returncode:
                self.failures.append(f"push to {node}: {done.stderr}")
                continue
            self.pushed[ref] = oid
            try:
                clone(url, self._to / f"clone{number}")
                self.clones += 1
            except AssertionError as error:
                self.failures.append(f"clone from {node}: {error}")

    def __enter__(self) -> Busy:
        self.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop_requested.set()
        self.join()


def test_all_replicas_switch_to_one_pack_of_the_same_objects(
    cluster: Demo, work: WorkTree, tmp_path: Path
) -> None:
    demo, path = cluster, "upkeep/one"
    push_many(demo, work, path, 12)
    before = check_replicas(demo, path, "n1")
    repository_id = repository_id_of(demo, path)
    old = packs_of(demo.nodes["n1"], repository_id)
    assert len(old) == 12
    refs = refs_of(demo.url("n2", path))
    for number, name in enumerate(demo.nodes):  # whichever node is asked
        if number:
            push_many(demo, work, path, 1)
            before = check_replicas(demo, path, name)
        output = demo.cli("repo", "optimize", path, node=name).stdout
        assert "became 1" in output
        assert check_replicas(demo, path, name) == before
        assert len(packs_of(demo.nodes[name], repository_id)) == 1
    for node in demo.nodes.values():
        assert set(old) <= retired_of(node)
    clone(demo.url("n3", path), tmp_path / "clone")
    assert set(refs) == set(refs_of(demo.url("n3", path)))
    assert "nothing to merge" in demo.cli("repo", "optimize", path).stdout


def test_pushes_and_clones_go_on_during_consolidations(
    cluster: Demo, work: WorkTree, tmp_path: Path
) -> None:
    demo, path = cluster, "upkeep/busy"
    push_many(demo, work, path, 6)
    with Busy(demo, work, path, list(demo.nodes), tmp_path) as busy:
        for number in range(4):
            node = list(demo.nodes)[number % len(demo.nodes)]
            demo.cli(
                "repo", "optimize", path, *(["--incremental"] if number % 2 else []), node=node
            )
        eventually(lambda: busy.clones >= 2 or busy.failures, timeout_s=40, what="two clones")
    assert busy.failures == []
    refs = refs_of(demo.url("n1", path))
    assert {name: refs.get(name) for name in busy.pushed} == busy.pushed
    check_replicas(demo, path, "n1")


@pytest.fixture
def eager(tmp_path: Path) -> Iterator[Demo]:
    """A cluster that consolidates by itself, and soon."""
    options = ("--set", "storage.packs_max=6", "--set", "storage.consolidation_interval_s=0.3")
    with Demo(tmp_path / "demo", *options) as demo:
        yield demo


def test_leader_keeps_the_packs_few_by_itself(eager: Demo, work: WorkTree, tmp_path: Path) -> None:
    demo, path = eager, "upkeep/eager"
    push_many(demo, work, path, 20)
    repository_id = repository_id_of(demo, path)
    eventually(lambda: len(packs_of(demo.nodes["n1"], repository_id)) <= 6, what="few packs")
    check_replicas(demo, path, "n1")
    leader = demo.leader(STORAGE)
    assert 'upkeep_runs_total{kind="consolidate",result="done"}' in demo.metrics(leader)
    # The next leader goes on with it.
    demo.kill(leader)
    others = [name for name in demo.nodes if name != leader]
    second = demo.leader(STORAGE, ask=others[0])
    for number in range(10):
        work.commit(f"after {number}")
        work.git("push", "--quiet", demo.url(second, path), "HEAD:refs/heads/main")
    eventually(lambda: len(packs_of(demo.nodes[second], repository_id)) <= 6, what="few packs")
    demo.restart(leader)
    # It finds the removed packs at the others and ends with the same set.
    check_replicas(demo, path, second)


def moments(demo: Demo, path: str, asked: str, other: str) -> dict[str, Callable[[], bool]]:
    """How far a consolidation that starts after this call has come."""
    repository_id = repository_id_of(demo, path)
    before = {name: quarantined_of(demo.nodes[name]) for name in (asked, other)}
    packs = packs_of(demo.nodes[other], repository_id)
    return {
        "built": lambda: bool(quarantined_of(demo.nodes[asked]) - before[asked]),
        "staged": lambda: bool(quarantined_of(demo.nodes[other]) - before[other]),
        "switched": lambda: packs_of(demo.nodes[other], repository_id) != packs,
    }


@pytest.mark.parametrize("victim", ["leader", "follower"])
def test_kill_during_consolidation_loses_nothing(
    own_cluster: Demo, work: WorkTree, tmp_path: Path, victim: str
) -> None:
    demo, path = own_cluster, "upkeep/kill"
    push_many(demo, work, path, 8)
    before = check_replicas(demo, path, "n1")
    leader = demo.leader(STORAGE)
    killed = leader if victim == "leader" else next(n for n in demo.nodes if n != leader)
    survivors = [name for name in demo.nodes if name != killed]
    asked = killed if victim == "leader" else leader
    for moment in ("built", "staged", "switched"):
        reached = moments(demo, path, asked, survivors[0] if victim == "leader" else killed)
        running = threading.Thread(
            target=lambda: demo.cli(
                "repo", "optimize", path, "--timeout", "5", node=asked, check=False
            )
        )
        running.start()
        eventually(lambda: reached[moment]() or not running.is_alive(), what=moment)  # noqa: B023
        demo.kill(killed)
        running.join()
        work.commit(f"killed when {moment}")
        url = demo.url(survivors[0], path)

        def pushed(url: str = url) -> bool:
            return work.git("push", url, "HEAD:refs/heads/main", check=False).returncode == 0

        eventually(pushed, timeout_s=40, what="a push to the survivors")
        demo.restart(killed)
        demo.leader(STORAGE)
        after = check_replicas(demo, path, survivors[0])
        assert before <= after
        before = after

    def optimized() -> bool:
        return demo.cli("repo", "optimize", path, node=killed, check=False).returncode == 0

    eventually(optimized, timeout_s=40, what="optimized on the node that was killed")
    assert check_replicas(demo, path, killed) == before
    assert len(packs_of(demo.nodes[killed], repository_id_of(demo, path))) == 1
    clone(demo.url(killed, path), tmp_path / "clone")


def test_death_between_the_switch_and_the_move_of_files_is_repaired(
    own_cluster: Demo, work: WorkTree, monkeypatch: pytest.MonkeyPatch
) -> None:
    demo, path = own_cluster, "upkeep/torn"
    push_many(demo, work, path, 5)
    before = check_replicas(demo, path, "n1")
    victim = next(name for name in demo.nodes if name != demo.leader(STORAGE))
    demo.kill(victim)
    monkeypatch.setenv("QUOREPO_FAILPOINTS", "state.apply.before_retire=kill")
    demo.restart(victim)
    monkeypatch.delenv("QUOREPO_FAILPOINTS")
    other = next(name for name in demo.nodes if name != victim)
    demo.leader(STORAGE)
    demo.cli("repo", "optimize", path, node=other)
    # Its core dies in apply, the supervisor starts it again, and it tidies up.
    assert check_replicas(demo, path, other) == before
    assert len(retired_of(demo.nodes[victim])) == 5


def test_node_that_was_away_gets_removed_packs_from_the_others(
    own_cluster: Demo, work: WorkTree
) -> None:
    demo, path = own_cluster, "upkeep/away"
    push_many(demo, work, path, 2)
    away = next(name for name in demo.nodes if name != demo.leader(STORAGE))
    asked = next(name for name in demo.nodes if name != away)
    demo.kill(away)
    for number in range(4):
        work.commit(f"away {number}")
        work.git("push", "--quiet", demo.url(asked, path), "HEAD:refs/heads/main")
    demo.cli("repo", "optimize", path, node=asked)
    demo.restart(away)
    objects = check_replicas(demo, path, asked)
    assert objects == objects_of(demo.nodes[away], repository_id_of(demo, path))
    # The node may still be starting, or its log may not have come to the entry yet.
    eventually(
        lambda: 'replacement_checks_total{outcome="passed"} 1.0' in demo.metrics(away),
        what=f"{away} checked the replacement",
    )


def test_prune_removes_unreachable_objects_from_every_replica(
    cluster: Demo, work: WorkTree, tmp_path: Path
) -> None:
    demo, path = cluster, "upkeep/prune"
    push_many(demo, work, path, 4)
    gone = work.head()
    work.git("checkout", "--quiet", "--orphan", "other")
    work.git("rm", "--quiet", "-r", "--cached", ".")
    head = work.commit("kept", {"kept": "kept\n"})
    work.git("push", "--quiet", "--force", demo.url("n1", path), "HEAD:refs/heads/main")
    assert "nothing to prune" in demo.cli("repo", "prune", path).stdout
    work.git("push", "--quiet", demo.url("n2", path), "HEAD:refs/heads/second")
    document = json.loads(demo.cli("repo", "prune", path, "--grace", "0", "-o", "json").stdout)
    assert document["objects_dropped"] > 10
    after = check_replicas(demo, path, "n3")
    assert any(line.startswith(head) for line in after)
    assert not any(line.startswith(gone) for line in after)
    clone(demo.url("n3", path), tmp_path / "clone")


def test_prune_of_everything_leaves_no_pack_and_pushes_go_on(
    cluster: Demo, work: WorkTree, tmp_path: Path
) -> None:
    demo, path = cluster, "upkeep/empty"
    work.commit("only tags")
    for node, ref in (("n1", "refs/tags/a"), ("n2", "refs/tags/b")):
        work.git("push", "--quiet", demo.url(node, path), f"HEAD:{ref}")
        work.git("push", "--quiet", demo.url(node, path), f":{ref}")
    push_many(demo, work, "upkeep/clock", 1)  # log time goes on with any write
    document = json.loads(demo.cli("repo", "prune", path, "--grace", "0", "-o", "json").stdout)
    assert (document["packs_after"], document["objects"]) == (0, 0)
    repository_id = repository_id_of(demo, path)
    for node_ in demo.nodes.values():
        eventually(lambda n=node_: packs_of(n, repository_id) == [], what="no pack")  # type: ignore[misc]
    work.git("push", "--quiet", demo.url("n2", path), "HEAD:refs/heads/main")
    clone(demo.url("n3", path), tmp_path / "again")


def core_socket(demo: Demo, name: str) -> Path:
    """The private socket of a node's core, found by its command line."""
    config = f"{name}.toml"
    for command in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            words = command.read_bytes().decode().split("\0")
        except OSError:
            continue
        mine = any(w.endswith(f"/{config}") and str(demo.directory) in w for w in words)
        if mine and "--runtime-dir" in words:
            return Path(words[words.index("--runtime-dir") + 1]) / "core.sock"
    raise AssertionError(f"no core of {name}")


def forged(demo: Demo, node: str, path: str) -> tuple[log_pb2.Command, log_pb2.PackAddition]:
    """A replacement of all packs by one that lacks the objects of the newest, in quarantine."""
    layout = GroupLayout(demo.nodes[node].data_dir, STORAGE)
    repository_id = repository_id_of(demo, path)
    digests = [bytes.fromhex(d) for d in packs_of(demo.nodes[node], repository_id)]
    packs = PackCache().open(layout, repository_id, digests[:-1], ObjectFormat.SHA1)
    result: IngestResult | None = merge_packs(packs, layout.new_upload(), layout, lambda _: None)
    assert result is not None
    addition = log_pb2.PackAddition(
        digest=result.digest,
        index_digest=result.index_digest,
        pack_bytes=result.pack_bytes,
        index_bytes=result.index_bytes,
        object_count=result.object_count,
        encoding=log_pb2.PACK_ENCODING_FILE,
    )
    command = log_pb2.Command(
        version=1,
        request_id=hashlib.sha256(path.encode()).digest()[:16],
        first_seen_ms=time.time_ns() // 1_000_000,
        actor="mallory",
        replace_packs=log_pb2.ReplacePacks(
            repository_id=repository_id,
            object_format=log_pb2.OBJECT_FORMAT_SHA1,
            removed=digests,
            added=[addition],
        ),
    )
    return command, addition


def test_wrong_replacement_is_refused_by_every_replica(cluster: Demo, work: WorkTree) -> None:
    demo, path = cluster, "upkeep/forged"
    push_many(demo, work, path, 3)
    before = check_replicas(demo, path, "n1")
    leader = demo.leader(STORAGE)
    node = next(name for name in demo.nodes if name != leader)
    command, addition = forged(demo, node, path)
    repository_id = command.replace_packs.repository_id

    async def attack() -> None:
        core = CoreClient(core_socket(demo, node))
        try:
            with pytest.raises(Rejected, match="lacks object"):
                await core.replicate_pack(STORAGE, repository_id, addition, 20.0, command)
            # As an ordinary pack it is copied; its entry then stops at the leader's own check.
            await core.replicate_pack(STORAGE, repository_id, addition, 20.0)
            with pytest.raises(Unavailable):
                await core.propose(STORAGE, command, 4.0)
        finally:
            await core.close()

    asyncio.run(attack())
    refused = 'replacement_checks_total{outcome="refused"}'
    assert refused in demo.metrics(node)
    assert refused in demo.metrics(leader)
    push_many(demo, work, path, 1)  # the log goes on
    assert before < check_replicas(demo, path, node)


def test_stale_replacement_is_a_typed_refusal(cluster: Demo, work: WorkTree) -> None:
    demo, path = cluster, "upkeep/stale"
    push_many(demo, work, path, 3)
    leader = demo.leader(STORAGE)
    command, addition = forged(demo, leader, path)
    del command.replace_packs.removed[-1]  # now it is right
    demo.cli("repo", "optimize", path)

    async def propose() -> None:
        core = CoreClient(core_socket(demo, leader))
        try:
            repository_id = command.replace_packs.repository_id
            await core.replicate_pack(STORAGE, repository_id, addition, 20.0, command)
            with pytest.raises(PacksChanged):
                await core.propose(STORAGE, command, 20.0)
        finally:
            await core.close()

    asyncio.run(propose())
    check_replicas(demo, path, leader)
