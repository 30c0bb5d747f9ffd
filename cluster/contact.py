"""The first contact: how this node's disk is shown to its peers, and theirs judged here.

Puts `boots.py`, `peer/known.py` and the Raft engine together. Owns what happens when a peer refuses
this disk: it is written down, durably, and the process ends, so that nothing is voted, acknowledged
or served any more; the next start finds the record. Must not know how a disk is judged.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import grpc

from quorepo.cluster.identity import NodeIdentity
from quorepo.cluster.peer.clients import PeerAddress, PeerClients
from quorepo.cluster.peer.known import KnownDisks
from quorepo.cluster.peer.roster import node_of_replica
from quorepo.cluster.raft.heard import Heard
from quorepo.cluster.raft.host import RaftHost
from quorepo.cluster.wrong_disk import record_wrong_disk
from quorepo.internal.v1 import peer_pb2
from quorepo.storage.errors import FatalError
from quorepo.storage.logs import fields

__all__ = ["Contact"]

log = logging.getLogger(__name__)

_ASK_TIMEOUT_S = 2.0


class Contact:
    """One node's way to show its disk and to judge those of others; for the event loop."""

    def __init__(
        self,
        data_dir: Path,
        identity: NodeIdentity,
        groups: Sequence[int],
        clients: PeerClients,
        end_process: Callable[[BaseException], None],
    ) -> None:
        self._data_dir = data_dir
        self._identity = identity
        self._groups = groups
        self._clients = clients
        self._end_process = end_process
        self._host: RaftHost | None = None
        self.disks = KnownDisks(data_dir / "known-disks.json", self._promises, self._answers_as)

    def begin(self, host: RaftHost) -> peer_pb2.BootRecord:
        """What peers are told of this disk; to be called before the host is started."""
        self._host = host
        boot = self._identity.boot.message()
        for group in self._groups:
            status = host.status(group)
            boot.groups.add(group=group, term=status.term, last_index=status.last_index)
        return boot

    async def _promises(self, replica_id: str) -> Mapping[int, Heard]:
        host = self._host
        assert host is not None
        futures = [
            asyncio.wrap_future(host.run_on(group, lambda raft: raft.promises_of(replica_id)))
            for group in self._groups
        ]
        return dict(zip(self._groups, await asyncio.gather(*futures), strict=True))

    async def _answers_as(self, replica_id: str, address: str) -> bytes:
        peer = PeerAddress(node_of_replica(replica_id), address)
        request = peer_pb2.IdentifyRequest(
            node=self._identity.node, replica_id=self._identity.replica_id
        )
        try:
            answer = await self._clients.identify(peer, request, _ASK_TIMEOUT_S)
        except (grpc.RpcError, OSError, TimeoutError) as error:
            log.debug("not answered", extra=fields(peer=str(peer), error=str(error)[:200]))
            return b""
        return answer.boot_nonce if answer.replica_id == replica_id else b""

    def refused(self, reason: str, detail: str, peer: str) -> None:
        """A peer says that this disk is the wrong one: the end of this process."""
        if reason == "other-cluster":
            return  # which of the two is wrong can't be told by two; neither hears the other
        record_wrong_disk(self._data_dir, reason, detail, node_of_replica(peer))
        error = FatalError(
            f"this disk is not taken back: {detail} (said by {peer})",
            exit_code=FatalError.EXIT_WRONG_DISK,
        )
        self._end_process(error)

    def diverged(self, detail: str) -> None:
        """A majority agrees on another state than this node has."""
        self.refused("diverged", detail, "a majority@its members")
