"""Forming a cluster exactly once, and coming back with an empty disk.

The founding members are listed in every node's configuration. The first of them by name is the
founder: once it has heard from *all* others that they belong to no cluster yet, it writes the
founding configuration (the replica ids that it heard) and everyone else adopts it. A node whose
disk was emptied afterwards has a replica id that stands in no configuration; it asks the members to
be taken in under the new id, as a learner, and the old id is removed for good, so a vote cast
before the loss can never be cast twice.

Why the founder waits for all: one member that already belongs to a cluster is enough to know that
this is no first start, and a member that can't be asked might be that one.
"""

from __future__ import annotations

import asyncio
import logging
import uuid
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import grpc

from quorepo.cluster.identity import NodeIdentity
from quorepo.cluster.peer.clients import PeerAddress
from quorepo.internal.v1 import log_pb2, peer_pb2
from quorepo.storage.errors import FatalError
from quorepo.storage.logs import fields

__all__ = ["Formation", "PeerCalls", "remove_node", "replica_of"]

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


class Formation:
    """Takes a node from an unformed identity to a member of the one cluster."""

    def __init__(
        self,
        identity: NodeIdentity,
        data_dir: Path,
        peers: Mapping[str, str],
        calls: PeerCalls,
        *,
        rejoin_empty: bool,
    ) -> None:
        self.identity = identity
        self.phase = "forming"
        self._data_dir = data_dir
        self._peers = dict(sorted(peers.items()))
        self._calls = calls
        self._rejoin_empty = rejoin_empty

    def describe(self) -> peer_pb2.IdentifyResponse:
        """What this node answers to Identify."""
        return peer_pb2.IdentifyResponse(
            node=self.identity.node,
            replica_id=self.identity.replica_id,
            cluster_id=self.identity.cluster_id,
            configuration=self.identity.founding,
            peer_address=self._peers[self.identity.node],
        )

    async def run(self) -> NodeIdentity:
        """Returns once this node belongs to a cluster; waits for the other members for ever."""
        waiting_for: frozenset[str] | None = None
        while not self.identity.formed:
            answers = await self._ask_all()
            formed = [answer for answer in answers.values() if answer.cluster_id]
            silent = frozenset(self._peers) - answers.keys() - {self.identity.node}
            if formed:
                await self._adopt_or_rejoin(formed[0])
            elif not silent and self.identity.node == next(iter(self._peers)):
                self._found(answers)
            else:
                if silent != waiting_for:
                    waiting_for = silent
                    log.info("waiting for members", extra=fields(silent=",".join(sorted(silent))))
                await asyncio.sleep(_ASK_INTERVAL_S)
        return self.identity

    async def _ask_all(self) -> dict[str, peer_pb2.IdentifyResponse]:
        request = peer_pb2.IdentifyRequest(
            node=self.identity.node, replica_id=self.identity.replica_id
        )
        others = [name for name in self._peers if name != self.identity.node]
        results = await asyncio.gather(
            *(self._calls.identify(self._peer(n), request, _CALL_TIMEOUT_S) for n in others),
            return_exceptions=True,
        )
        answers: dict[str, peer_pb2.IdentifyResponse] = {}
        for name, result in zip(others, results, strict=True):
            if isinstance(result, grpc.RpcError | OSError | TimeoutError):
                continue  # not up yet; asked again
            if isinstance(result, BaseException):
                raise result
            if result.node != name:
                raise FatalError(
                    f"cluster.peers says {self._peers[name]} is {name!r}, but it is "
                    f"{result.node!r}; nothing was changed; correct cluster.peers",
                    exit_code=FatalError.EXIT_CONFIG,
                )
            answers[name] = result
        return answers

    def _peer(self, name: str) -> PeerAddress:
        return PeerAddress(name, self._peers[name])

    def _found(self, answers: Mapping[str, peer_pb2.IdentifyResponse]) -> None:
        ids = {name: answer.replica_id for name, answer in answers.items()}
        ids[self.identity.node] = self.identity.replica_id
        founding = log_pb2.Configuration(
            replicas=[voter(name, ids[name], self._peers[name]) for name in self._peers]
        )
        self._join(str(uuid.uuid4()), founding)
        log.info("cluster founded", extra=fields(cluster=self.identity.cluster_id))

    async def _adopt_or_rejoin(self, member: peer_pb2.IdentifyResponse) -> None:
        founding = member.configuration
        if any(r.replica_id == self.identity.replica_id for r in founding.replicas):
            self._join(member.cluster_id, founding)
            log.info("cluster joined", extra=fields(cluster=member.cluster_id))
            return
        if not self._rejoin_empty:
            raise FatalError(
                f"the disk of node {self.identity.node!r} is empty, but cluster "
                f"{member.cluster_id} knows the node under another replica id; nothing was "
                "changed; restore the data directory, or set cluster.rejoin_empty = true to come "
                "back as a new replica",
                exit_code=FatalError.EXIT_CONFIG,
            )
        if self.phase != "rejoining":
            self.phase = "rejoining"
            log.warning("disk is empty, rejoining", extra=fields(replica=self.identity.replica_id))
        request = peer_pb2.RejoinRequest(
            node=self.identity.node,
            replica_id=self.identity.replica_id,
            peer_address=self._peers[self.identity.node],
        )
        others = [name for name in self._peers if name != self.identity.node]
        for name in others:
            try:
                answer = await self._calls.rejoin(self._peer(name), request, 10.0)
            except (grpc.RpcError, OSError, TimeoutError) as error:
                log.info("rejoin not answered", extra=fields(peer=name, error=str(error)[:200]))
                continue
            if answer.accepted:
                self._join(member.cluster_id, founding)
                log.info("cluster rejoined", extra=fields(replica=self.identity.replica_id))
                return
            log.info("rejoin not accepted yet", extra=fields(peer=name, reason=answer.reason))
        await asyncio.sleep(_ASK_INTERVAL_S)

    def _join(self, cluster_id: str, founding: log_pb2.Configuration) -> None:
        joined = self.identity.joined(cluster_id, founding)
        joined.save(self._data_dir)  # durable before anyone may count on it
        self.identity = joined


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
