"""Nodes with one configuration form one cluster exactly once, however they race and die."""

from __future__ import annotations

import asyncio
import contextlib
import random
from pathlib import Path

import pytest

from quorepo.cluster.formation import Formation, FormationPlan
from quorepo.cluster.identity import NodeIdentity
from quorepo.cluster.peer.clients import PeerAddress
from quorepo.internal.v1 import peer_pb2
from quorepo.storage import failpoints
from quorepo.storage.errors import FatalError

ADDRESSES = {"n1": "a:1", "n2": "b:1", "n3": "c:1"}
STEPS = [
    "formation.before_founding",
    "layout.write.before_rename",
    "layout.write.before_dir_fsync",
    "formation.before_marker",
    "formation.after_founding",
    "formation.before_adopting",
    "formation.after_adopting",
]


class Machines:
    """Three machines: disks that stay, and processes that answer by address."""

    def __init__(self, root: Path, rng: random.Random) -> None:
        self.root = root
        self.rng = rng
        self.running: dict[str, Formation] = {}
        self.tasks: dict[str, asyncio.Task[NodeIdentity]] = {}
        self.members: set[str] = set()  # replica ids that were taken in
        self.contacts = tuple(ADDRESSES.values())

    async def identify(
        self, peer: PeerAddress, request: peer_pb2.IdentifyRequest, timeout_s: float
    ) -> peer_pb2.IdentifyResponse:
        for _ in range(self.rng.randrange(3)):
            await asyncio.sleep(0)
        return self._at(peer).describe()

    async def rejoin(
        self, peer: PeerAddress, request: peer_pb2.RejoinRequest, timeout_s: float
    ) -> peer_pb2.RejoinResponse:
        await asyncio.sleep(0)
        if not self._at(peer).identity.formed:
            return peer_pb2.RejoinResponse(reason="not formed")
        self.members.add(request.replica_id)
        return peer_pb2.RejoinResponse(accepted=True)

    def _at(self, peer: PeerAddress) -> Formation:
        for name, formation in self.running.items():
            if ADDRESSES.get(name, "x:1") == peer.address:
                return formation
        raise OSError(f"nobody listens at {peer.address}")

    def start(self, name: str, **changes: object) -> asyncio.Task[NodeIdentity]:
        data_dir = self.root / name / "data"
        data_dir.mkdir(parents=True, exist_ok=True)
        options: dict[str, object] = {"expect": 3, "contacts": self.contacts, **changes}
        plan = FormationPlan(
            peer_address=ADDRESSES.get(name, "x:1"),
            marker=self.root / name / "node.cluster",
            **options,  # type: ignore[arg-type]
        )
        formation = Formation(NodeIdentity.open(data_dir, name), data_dir, plan, self)
        self.running[name] = formation
        self.tasks[name] = asyncio.create_task(formation.run())
        return self.tasks[name]

    async def stop(self, name: str) -> None:
        self.running.pop(name)
        task = self.tasks.pop(name)
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError, OSError, FatalError):
            await task

    def wipe(self, name: str) -> None:
        (self.root / name / "data" / "node.json").unlink()


@pytest.fixture
def machines(tmp_path: Path) -> Machines:
    return Machines(tmp_path, random.Random(7))


async def test_identical_nodes_form_one_cluster(machines: Machines) -> None:
    identities = await asyncio.gather(*(machines.start(name) for name in ("n3", "n1", "n2")))
    assert len({identity.cluster_id for identity in identities}) == 1
    founding = identities[0].founding
    assert founding is not None
    assert {r.node: r.peer_address for r in founding.replicas} == ADDRESSES


async def test_nobody_begins_before_all_are_heard(machines: Machines) -> None:
    tasks = [machines.start("n1"), machines.start("n3")]
    done, _ = await asyncio.wait(tasks, timeout=0.3)
    assert not done
    await asyncio.gather(*tasks, machines.start("n2"))


@pytest.mark.parametrize("step", STEPS)
async def test_a_death_at_any_step_leaves_one_cluster(tmp_path: Path, step: str) -> None:
    """Whoever gets there first dies there; it starts again, and one cluster comes of it."""
    machines = Machines(tmp_path, random.Random(1))
    for name in ADDRESSES:
        NodeIdentity.open(_made(tmp_path / name / "data"), name)
    tasks = {machines.start(name): name for name in ADDRESSES}
    with failpoints.enabled(step, "error"):
        done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_EXCEPTION, timeout=10)
    dead = [tasks[task] for task in done if task.exception() is not None]
    assert dead, f"nobody came to {step}"
    for name in dead:
        await machines.stop(name)
    identities = await asyncio.gather(
        *(machines.start(name) if name in dead else machines.tasks[name] for name in ADDRESSES)
    )
    assert len({identity.cluster_id for identity in identities}) == 1


@pytest.mark.parametrize("seed", range(30))
async def test_starts_and_deaths_in_any_order_leave_one_cluster(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)
    machines = Machines(tmp_path, rng)
    seen: set[str] = set()
    for _ in range(30):
        name = rng.choice(list(ADDRESSES))
        if name in machines.running:
            if rng.random() < 0.4:
                seen.add(machines.running[name].identity.cluster_id)
                await machines.stop(name)
        else:
            machines.start(name)
        for _ in range(rng.randrange(8)):
            await asyncio.sleep(0)
    identities = await asyncio.gather(
        *(machines.tasks.get(name) or machines.start(name) for name in ADDRESSES)
    )
    assert len({identity.cluster_id for identity in identities} | seen - {""}) == 1


async def test_nodes_that_expect_different_members_wait(
    machines: Machines, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level("INFO")
    tasks = [machines.start("n1"), machines.start("n2")]
    machines.contacts = (*ADDRESSES.values(), "d:1")
    tasks.append(machines.start("n3", expect=4))
    done, _ = await asyncio.wait(tasks, timeout=0.3)
    assert not done
    assert "cluster.join and cluster.bootstrap_expect must be alike" in caplog.text


async def test_two_nodes_of_one_name_are_told_so(machines: Machines) -> None:
    machines.start("n1")
    machines.start("n2")
    data_dir = _made(machines.root / "other" / "data")
    plan = FormationPlan(peer_address="c:1", expect=3, contacts=machines.contacts)
    twin = Formation(NodeIdentity.open(data_dir, "n1"), data_dir, plan, machines)
    machines.running["n3"] = twin
    with pytest.raises(FatalError, match="has the name 'n1', as another node"):
        await machines.tasks["n1"]


async def test_an_emptied_disk_rejoins_or_waits(machines: Machines) -> None:
    identities = await asyncio.gather(*(machines.start(name) for name in ADDRESSES))
    await machines.stop("n1")
    machines.wipe("n1")
    done, _ = await asyncio.wait({machines.start("n1")}, timeout=0.3)
    assert not done
    assert machines.running["n1"].phase == "waiting to be replaced"
    assert machines.members == set()
    await machines.stop("n1")
    again = await machines.start("n1", rejoin_empty=True)
    assert again.cluster_id == identities[0].cluster_id
    assert machines.members == {again.replica_id}


async def test_no_second_cluster_begins_over_emptied_disks(machines: Machines) -> None:
    """All disks are gone, the files beside the certificates are not: that is no first start."""
    await asyncio.gather(*(machines.start(name) for name in ADDRESSES))
    for name in ADDRESSES:
        await machines.stop(name)
        machines.wipe(name)
    (machines.root / "n1" / "node.cluster").unlink()  # one of them was set up anew altogether
    tasks = [machines.start(name) for name in ADDRESSES]
    results = await asyncio.gather(*tasks, return_exceptions=True)
    assert all(isinstance(result, FatalError) for result in results)
    assert not any(formation.identity.formed for formation in machines.running.values())


async def test_a_node_bootstraps_once(machines: Machines) -> None:
    first = await machines.start("n1", expect=0, contacts=(), bootstrap=True)
    await machines.stop("n1")
    again = await machines.start("n1", expect=0, contacts=(), bootstrap=True)
    assert (again.cluster_id, again.replica_id) == (first.cluster_id, first.replica_id)
    await machines.stop("n1")
    machines.wipe("n1")
    with pytest.raises(FatalError, match=f"belonged to cluster {first.cluster_id}"):
        await machines.start("n1", expect=0, contacts=(), bootstrap=True)


async def test_a_node_joins_a_member(machines: Machines) -> None:
    founder = await machines.start("n1", expect=0, contacts=(), bootstrap=True)
    joiner = machines.start("n4", expect=0, contacts=(ADDRESSES["n1"], "nowhere:1"))
    identity = await joiner
    assert identity.cluster_id == founder.cluster_id
    assert machines.members == {identity.replica_id}
    assert identity.founding == founder.founding


def _made(path: Path) -> Path:
    path.mkdir(parents=True)
    return path
