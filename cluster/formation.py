"""Forming a cluster exactly once, joining one, and coming back with an empty disk.

The founding members are listed in every node's configuration, by name (`peers`) or as so many
addresses (`expect`). The first of them by name is the founder: once it has heard from *all* others
that they belong to no cluster yet, it writes the founding configuration (the replica ids that it
heard) and everyone else adopts it. A node whose disk was emptied afterwards has a replica id that
stands in no configuration; it asks the members to be taken in under the new id, as a learner, and
the old id is removed for good, so a vote cast before the loss can never be cast twice. Without
`rejoin_empty` it waits until somebody asks for it (`quorepo node replace`). A node that joins asks
the same. A node that bootstraps is its own founder.

A file beside the certificates remembers the cluster: where nobody is left who stands for it,
emptied disks are told from a first start, and no second cluster is begun over them.

Why the founder waits for all: one member that already belongs to a cluster is enough to know that
this is no first start, and a member that can't be asked might be that one.
"""

from __future__ import annotations

import asyncio
import dataclasses
import hashlib
import logging
import uuid
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Protocol

import grpc

from quorepo.cluster.identity import NodeIdentity
from quorepo.cluster.peer.clients import PeerAddress
from quorepo.cluster.state.levels import LEVEL
from quorepo.internal.v1 import log_pb2, peer_pb2
from quorepo.storage.errors import FatalError
from quorepo.storage.failpoints import failpoint
from quorepo.storage.layout import write_durably
from quorepo.storage.logs import fields

__all__ = ["Formation", "FormationPlan", "PeerCalls", "remove_node", "replica_of", "voter"]

log = logging.getLogger(__name__)

_ASK_INTERVAL_S = 0.1
_CALL_TIMEOUT_S = 2.0


class PeerCalls(Protocol):
    """The two calls that forming needs; cluster/peer/clients.py makes them."""

    async def identify(
        self, peer: PeerAddress, request: peer_pb2.IdentifyRequest, timeout_s: float
    ) -> peer_pb2.IdentifyResponse: ...

    async def rejoin(
        self, peer: PeerAddress, request: peer_pb2.RejoinRequest, timeout_s: float
    ) -> peer_pb2.RejoinResponse: ...


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class FormationPlan:
    """How a node gets into its cluster, as its configuration says. One of the four ways is set."""

    peer_address: str  # of this node, as others reach it
    peers: Mapping[str, str] = dataclasses.field(default_factory=dict)  # founding members by name
    bootstrap: bool = False  # this node alone begins a cluster
    expect: int = 0  # as many nodes at `contacts` begin one together
    contacts: Sequence[str] = ()  # HOST:PORT of nodes whose names are not known yet
    rejoin_empty: bool = False
    level: int = LEVEL  # of the commands that this program knows
    # Outside the data directory: holds the id of the cluster that this node belongs to.
    marker: Path | None = None

    @property
    def digest(self) -> bytes:
        """Equal on nodes that expect the same; empty when nobody is expected."""
        if not self.expect:
            return b""
        text = "\n".join([str(self.expect), *sorted(self.contacts)])
        return hashlib.sha256(text.encode()).digest()


class Formation:
    """Takes a node from an unformed identity to a member of the one cluster."""

    def __init__(
        self,
        identity: NodeIdentity,
        data_dir: Path,
        plan: FormationPlan,
        calls: PeerCalls,
    ) -> None:
        self.identity = identity
        self.phase = "forming"
        self._data_dir = data_dir
        self._plan = plan
        self._calls = calls
        self._told: object = None
        self._former = self._read_marker()
        if identity.formed:
            self._refuse_disk_of_another_cluster()
            self._write_marker()  # a crash may have come between the two

    def describe(self) -> peer_pb2.IdentifyResponse:
        """What this node answers to Identify."""
        formed = self.identity.formed
        return peer_pb2.IdentifyResponse(
            node=self.identity.node,
            replica_id=self.identity.replica_id,
            cluster_id=self.identity.cluster_id,
            configuration=self.identity.founding,
            peer_address=self._plan.peer_address,
            level=self._plan.level,
            former_cluster_id="" if formed else self._former,
            founding_digest=b"" if formed else self._plan.digest,
            boot_nonce=self.identity.boot.nonce,
        )

    async def run(self) -> NodeIdentity:
        """Returns once this node belongs to a cluster; waits for the other members for ever."""
        while not self.identity.formed:
            if self._plan.bootstrap:
                self._refuse_to_begin_anew([self.describe()])
                self._found({})
                break
            answers = await self._ask_all()
            member = next((answer for answer in answers.values() if answer.cluster_id), None)
            if member is not None:
                await self._adopt_or_rejoin(member, answers.values())
            elif not self._found_when_all_are_heard(answers):
                await asyncio.sleep(_ASK_INTERVAL_S)
        return self.identity

    def _found_when_all_are_heard(
        self, answers: Mapping[PeerAddress, peer_pb2.IdentifyResponse]
    ) -> bool:
        silent = sorted(set(self._others()) - answers.keys())
        by_name = {self.identity.node: self.describe()}
        for peer, answer in answers.items():
            if answer.replica_id == self.identity.replica_id:
                continue  # this node itself, by another of its addresses
            if answer.node in by_name:
                raise FatalError(
                    f"the node at {peer.address} has the name {answer.node!r}, as another node "
                    "has; nothing was changed; give each node a node.name of its own",
                    exit_code=FatalError.EXIT_CONFIG,
                )
            by_name[answer.node] = answer
        if silent or not (self._plan.peers or self._plan.expect):
            self._tell("waiting for members", silent=",".join(peer.address for peer in silent))
            return False
        different = [n for n, a in by_name.items() if a.founding_digest != self._plan.digest]
        if different or (self._plan.expect and len(by_name) != self._plan.expect):
            self._tell(
                "waiting for members that expect the same: cluster.join and "
                "cluster.bootstrap_expect must be alike on all of them, and name them all",
                nodes=",".join(sorted(by_name)),
                different=",".join(sorted(different)),
            )
            return False
        self._refuse_to_begin_anew(by_name.values())
        if self.identity.node != min(by_name):
            self._tell("waiting for the founder", founder=min(by_name))
            return False
        self._found(by_name)
        return True

    def _refuse_disk_of_another_cluster(self) -> None:
        """The file beside the certificates names the cluster of this machine."""
        if self._former and self._former != self.identity.cluster_id:
            raise FatalError(
                f"{self._data_dir} is of cluster {self.identity.cluster_id}, but this node belongs "
                f"to cluster {self._former} ({self._plan.marker} says so); nothing was changed; "
                "put the right disk in, or empty the data directory to come back as a new replica "
                f"(on another node: quorepo node replace {self.identity.node})",
                exit_code=FatalError.EXIT_CONFIG,
            )

    def _tell(self, message: str, *, level: int = logging.INFO, **details: str) -> None:
        """Logs what is waited for, once as long as it is the same."""
        if (message, details) != self._told:
            self._told = (message, details)
            log.log(level, message, extra=fields(**details))

    def _refuse_to_begin_anew(self, answers: Iterable[peer_pb2.IdentifyResponse]) -> None:
        """Nobody stands for the cluster that these nodes belonged to: that is a loss, no start."""
        for answer in answers:
            if answer.former_cluster_id:
                raise FatalError(
                    f"the disk of node {answer.node!r} is empty, but it belonged to cluster "
                    f"{answer.former_cluster_id}; no other cluster is begun over it, nothing was "
                    "changed; restore the data directory, or join a member that has its disk "
                    "([cluster] join, rejoin_empty = true). To give up everything that was stored, "
                    f"remove the file {self._plan.marker} on every node",
                    exit_code=FatalError.EXIT_CONFIG,
                )

    def _others(self) -> list[PeerAddress]:
        plan = self._plan
        if plan.peers:
            own = self.identity.node
            return [PeerAddress(n, a) for n, a in sorted(plan.peers.items()) if n != own]
        # Who listens there is not known yet: any member of the cluster will do.
        return [PeerAddress("", a) for a in plan.contacts if a != plan.peer_address]

    async def _ask_all(self) -> dict[PeerAddress, peer_pb2.IdentifyResponse]:
        request = peer_pb2.IdentifyRequest(
            node=self.identity.node, replica_id=self.identity.replica_id
        )
        others = self._others()
        results = await asyncio.gather(
            *(self._calls.identify(peer, request, _CALL_TIMEOUT_S) for peer in others),
            return_exceptions=True,
        )
        answers: dict[PeerAddress, peer_pb2.IdentifyResponse] = {}
        for peer, result in zip(others, results, strict=True):
            if isinstance(result, grpc.RpcError | OSError | TimeoutError):
                continue  # not up yet; asked again
            if isinstance(result, BaseException):
                raise result
            if peer.node and result.node != peer.node:
                raise FatalError(
                    f"cluster.peers says {peer.address} is {peer.node!r}, but it is "
                    f"{result.node!r}; nothing was changed; correct cluster.peers",
                    exit_code=FatalError.EXIT_CONFIG,
                )
            answers[peer] = result
        return answers

    def _found(self, answers: Mapping[str, peer_pb2.IdentifyResponse]) -> None:
        members = {self.identity.node: self.describe(), **answers}
        addresses = {name: answer.peer_address for name, answer in members.items()}
        addresses.update(self._plan.peers)  # what all nodes were told wins
        founding = log_pb2.Configuration(
            replicas=[
                voter(name, members[name].replica_id, addresses[name]) for name in sorted(members)
            ]
        )
        failpoint("formation.before_founding")
        self._join(str(uuid.uuid4()), founding)
        failpoint("formation.after_founding")
        log.info("cluster founded", extra=fields(cluster=self.identity.cluster_id))

    async def _adopt_or_rejoin(
        self, member: peer_pb2.IdentifyResponse, answers: Iterable[peer_pb2.IdentifyResponse]
    ) -> None:
        founding = member.configuration
        if any(r.replica_id == self.identity.replica_id for r in founding.replicas):
            failpoint("formation.before_adopting")
            self._join(member.cluster_id, founding)
            failpoint("formation.after_adopting")
            log.info("cluster joined", extra=fields(cluster=member.cluster_id))
            return
        plan = self._plan
        new_here = bool(plan.contacts) and not plan.expect and not self._former
        own = self.identity.replica_id
        asked_for = any(r.replica_id == own for answer in answers for r in answer.members)
        if not (new_here or plan.rejoin_empty or asked_for):
            self.phase = "waiting to be replaced"
            self._tell(
                "the disk is empty, but the cluster knows this node under another replica id: this "
                "node waits, and takes part in nothing. Restore the data directory; or, to come "
                "back as a new replica, on another node: quorepo node replace "
                f"{self.identity.node}",
                level=logging.WARNING,
                cluster=member.cluster_id,
                replica=own,
            )
            await asyncio.sleep(_ASK_INTERVAL_S)
            return
        phase = "joining" if new_here else "rejoining"
        if self.phase != phase:
            self.phase = phase
            what = "asking to be taken in" if new_here else "disk is empty, rejoining"
            level = logging.INFO if new_here else logging.WARNING
            log.log(level, what, extra=fields(replica=self.identity.replica_id))
        await self._ask_to_be_taken_in(member.cluster_id, founding)

    async def _ask_to_be_taken_in(self, cluster_id: str, founding: log_pb2.Configuration) -> None:
        request = peer_pb2.RejoinRequest(
            node=self.identity.node,
            replica_id=self.identity.replica_id,
            peer_address=self._plan.peer_address,
            level=self._plan.level,
        )
        failpoint("formation.before_rejoining")
        for peer in await self._members():
            try:
                answer = await self._calls.rejoin(peer, request, 10.0)
            except (grpc.RpcError, OSError, TimeoutError) as error:
                log.info(
                    "rejoin not answered", extra=fields(peer=str(peer), error=str(error)[:200])
                )
                continue
            if answer.accepted:
                failpoint("formation.after_rejoining")
                self._join(cluster_id, founding)
                log.info("cluster rejoined", extra=fields(replica=self.identity.replica_id))
                return
            self._tell("not taken in yet", peer=str(peer), reason=answer.reason)
        await asyncio.sleep(_ASK_INTERVAL_S)

    async def _members(self) -> list[PeerAddress]:
        """Whom to ask: whoever is configured, and whom one of those knows at present."""
        known = self._others()
        listed = {peer.address for peer in known}
        for answer in (await self._ask_all()).values():
            for replica in [*answer.members, *answer.configuration.replicas]:
                if replica.node == self.identity.node or replica.peer_address in listed:
                    continue
                listed.add(replica.peer_address)
                known.append(PeerAddress(replica.node, replica.peer_address))
        return known

    def _join(self, cluster_id: str, founding: log_pb2.Configuration) -> None:
        joined = self.identity.joined(cluster_id, founding)
        joined.save(self._data_dir)  # durable before anyone may count on it
        self.identity = joined
        failpoint("formation.before_marker")
        self._write_marker()

    def _read_marker(self) -> str:
        if self._plan.marker is None:
            return ""
        try:
            return self._plan.marker.read_text(encoding="utf-8").strip()
        except FileNotFoundError:
            return ""

    def _write_marker(self) -> None:
        marker = self._plan.marker
        if marker is not None and self._former != self.identity.cluster_id:
            self._former = self.identity.cluster_id
            write_durably(marker, f"{self._former}\n".encode())


def voter(node: str, replica_id: str, peer_address: str) -> log_pb2.Replica:
    """A full member: votes, stores packs, may lead."""
    return log_pb2.Replica(
        replica_id=replica_id,
        node=node,
        peer_address=peer_address,
        votes=True,
        stores_packs=True,
        may_lead=True,
    )


def replica_of(configuration: log_pb2.Configuration, replica_id: str) -> log_pb2.Replica | None:
    """The replica with this id, if the configuration has it."""
    return next((r for r in configuration.replicas if r.replica_id == replica_id), None)


def remove_node(
    configuration: log_pb2.Configuration, node: str, keep: str
) -> log_pb2.Configuration | None:
    """The configuration without one replica of `node` other than `keep`; None when there is none.

    One replica at a time, because a group changes by one replica at a time.
    """
    for replica in configuration.replicas:
        if replica.node == node and replica.replica_id != keep:
            rest = [r for r in configuration.replicas if r.replica_id != replica.replica_id]
            return log_pb2.Configuration(
                replicas=rest,
                removed_replica_ids=[*configuration.removed_replica_ids, replica.replica_id],
            )
    return None
