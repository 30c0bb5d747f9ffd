"""A cluster is formed exactly once, however its nodes race, and an emptied disk is noticed."""

from __future__ import annotations

import asyncio
from pathlib import Path

import grpc
import pytest

from quorepo.cluster.formation import Formation, FormationPlan, voter
from quorepo.cluster.identity import NodeIdentity
from quorepo.cluster.peer.clients import PeerAddress
from quorepo.internal.v1 import log_pb2, peer_pb2
from quorepo.storage.errors import FatalError

PEERS = {"n1": "a:1", "n2": "a:2", "n3": "a:3"}


class Network:
    """The peers as formations that answer directly; a node may be down or not exist yet."""

    def __init__(self) -> None:
        self.nodes: dict[str, Formation] = {}
        self.down: set[str] = set()
        self.rejoined: list[str] = []
        self.accept_rejoin = True
        self.members: list[log_pb2.Replica] = []  # at present, as members tell

    async def identify(
        self, peer: PeerAddress, request: peer_pb2.IdentifyRequest, timeout_s: float
    ) -> peer_pb2.IdentifyResponse:
        await asyncio.sleep(0)
        answer = self._at(peer).describe()
        answer.members.extend(self.members)
        return answer

    async def rejoin(
        self, peer: PeerAddress, request: peer_pb2.RejoinRequest, timeout_s: float
    ) -> peer_pb2.RejoinResponse:
        await asyncio.sleep(0)
        self._at(peer)
        if self.accept_rejoin:
            self.rejoined.append(request.replica_id)
        return peer_pb2.RejoinResponse(accepted=self.accept_rejoin, reason="no leader yet")

    def _at(self, peer: PeerAddress) -> Formation:
        name = peer.node
        assert PEERS[name] == peer.address
        if name in self.down or name not in self.nodes:
            raise OSError(f"{name} is down")
        return self.nodes[name]


class Node:
    def __init__(self, network: Network, root: Path, name: str, *, rejoin_empty: bool = True):
        self.data_dir = root / name
        self.data_dir.mkdir(exist_ok=True)
        self.formation = Formation(
            NodeIdentity.open(self.data_dir, name),
            self.data_dir,
            FormationPlan(peer_address=PEERS[name], peers=PEERS, rejoin_empty=rejoin_empty),
            network,
        )
        network.nodes[name] = self.formation
        self.task = asyncio.create_task(self.formation.run())


@pytest.fixture
def network() -> Network:
    return Network()


async def test_all_nodes_agree_on_one_founding_configuration(
    network: Network, tmp_path: Path
) -> None:
    nodes = [Node(network, tmp_path, name) for name in ("n3", "n2", "n1")]
    identities = await asyncio.gather(*(node.task for node in nodes))
    assert len({identity.cluster_id for identity in identities}) == 1
    assert identities[0].cluster_id
    foundings = {_ids(identity.founding) for identity in identities}
    assert foundings == {tuple(sorted(identity.replica_id for identity in identities))}


async def test_founder_waits_for_every_member(network: Network, tmp_path: Path) -> None:
    founder, second = Node(network, tmp_path, "n1"), Node(network, tmp_path, "n2")
    done, _ = await asyncio.wait({founder.task, second.task}, timeout=0.3)
    assert not done
    third = Node(network, tmp_path, "n3")
    await asyncio.gather(founder.task, second.task, third.task)


async def test_restarted_member_remembers_its_cluster(network: Network, tmp_path: Path) -> None:
    nodes = [Node(network, tmp_path, name) for name in PEERS]
    before = await asyncio.gather(*(node.task for node in nodes))
    network.down = set(PEERS)  # nobody has to be asked
    again = await Node(network, tmp_path, "n2").task
    assert (again.cluster_id, again.replica_id) == (before[1].cluster_id, before[1].replica_id)
    assert again.boot.nonce != before[1].boot.nonce
    assert again.boot.former == (before[1].boot.nonce,)


@pytest.mark.parametrize("wiped", ["n1", "n3"])
async def test_emptied_disk_rejoins_under_a_new_replica_id(
    network: Network, tmp_path: Path, wiped: str
) -> None:
    nodes = {name: Node(network, tmp_path, name) for name in PEERS}
    await asyncio.gather(*(node.task for node in nodes.values()))
    old = nodes[wiped].formation.identity
    (tmp_path / wiped / "node.json").unlink()
    newcomer = await Node(network, tmp_path, wiped).task
    assert newcomer.replica_id != old.replica_id
    assert newcomer.cluster_id == old.cluster_id
    assert network.rejoined == [newcomer.replica_id]


async def test_emptied_founder_never_founds_a_second_cluster(
    network: Network, tmp_path: Path
) -> None:
    nodes = {name: Node(network, tmp_path, name) for name in PEERS}
    await asyncio.gather(*(node.task for node in nodes.values()))
    network.accept_rejoin = False
    (tmp_path / "n1" / "node.json").unlink()
    founder = Node(network, tmp_path, "n1")
    done, _ = await asyncio.wait({founder.task}, timeout=0.3)
    assert not done
    assert not founder.formation.identity.formed
    founder.task.cancel()


async def test_emptied_disk_waits_until_somebody_asks_for_it_unless_configured(
    network: Network, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    nodes = [Node(network, tmp_path, name) for name in PEERS]
    await asyncio.gather(*(node.task for node in nodes))
    (tmp_path / "n2" / "node.json").unlink()
    emptied = Node(network, tmp_path, "n2", rejoin_empty=False)
    done, _ = await asyncio.wait({emptied.task}, timeout=0.3)
    assert not done
    assert emptied.formation.phase == "waiting to be replaced"
    assert network.rejoined == []
    assert "quorepo node replace n2" in caplog.text
    network.members = [voter("n2", emptied.formation.identity.replica_id, PEERS["n2"])]
    await emptied.task
    assert network.rejoined == [emptied.formation.identity.replica_id]


async def test_unreachable_peer_is_waited_for_not_guessed(network: Network, tmp_path: Path) -> None:
    class Refusing(Network):
        async def identify(
            self, peer: PeerAddress, request: peer_pb2.IdentifyRequest, timeout_s: float
        ) -> peer_pb2.IdentifyResponse:
            raise grpc.RpcError

    node = Node(Refusing(), tmp_path, "n1")
    done, _ = await asyncio.wait({node.task}, timeout=0.3)
    assert not done
    node.task.cancel()


def test_directory_of_another_node_is_refused(tmp_path: Path) -> None:
    NodeIdentity.open(tmp_path, "n1")
    with pytest.raises(FatalError, match="belongs to node 'n1'"):
        NodeIdentity.open(tmp_path, "n2")


def test_journal_without_identity_is_refused(tmp_path: Path) -> None:
    (tmp_path / "journal").mkdir()
    (tmp_path / "journal" / "segment").write_bytes(b"x")
    with pytest.raises(FatalError, match="nothing was changed"):
        NodeIdentity.open(tmp_path, "n1")


@pytest.mark.parametrize("content", ["", "{", "{}", '{"format_version": "x"}', "[]"])
def test_damaged_identity_is_refused(tmp_path: Path, content: str) -> None:
    (tmp_path / "node.json").write_text(content)
    with pytest.raises(FatalError, match="damaged"):
        NodeIdentity.open(tmp_path, "n1")


def test_newer_format_is_refused(tmp_path: Path) -> None:
    NodeIdentity.open(tmp_path, "n1")
    path = tmp_path / "node.json"
    path.write_text(path.read_text().replace('"format_version": 1', '"format_version": 99'))
    with pytest.raises(FatalError, match="format version 99"):
        NodeIdentity.open(tmp_path, "n1")


def _ids(configuration: log_pb2.Configuration | None) -> tuple[str, ...]:
    assert configuration is not None
    return tuple(sorted(replica.replica_id for replica in configuration.replicas))
