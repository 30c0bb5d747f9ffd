"""Becoming a member: waiting until this node belongs to a cluster, and the command that tells the
directory where it can be reached.
"""

from __future__ import annotations

import asyncio
import secrets
import time
from collections.abc import Coroutine
from typing import Any, Protocol

from quorepo.cluster.formation import FormationPlan
from quorepo.cluster.identity import NodeIdentity
from quorepo.cluster.state.commands import COMMAND_VERSION
from quorepo.cluster.state.levels import registered_version
from quorepo.internal.v1 import log_pb2

__all__ = ["Reachable", "form_before", "registration"]


class Reachable(Protocol):
    """Where clients reach a node, and what its program is."""

    @property
    def http_url(self) -> str: ...
    @property
    def grpc_address(self) -> str: ...
    @property
    def metrics_url(self) -> str: ...
    @property
    def version(self) -> str: ...
    @property
    def formation(self) -> FormationPlan: ...


async def form_before(forming: Coroutine[Any, Any, object], stopping: asyncio.Event) -> bool:
    """Waits until this node belongs to a cluster; False when it is told to stop before."""
    task = asyncio.create_task(forming)
    told = asyncio.create_task(stopping.wait())
    await asyncio.wait({task, told}, return_when=asyncio.FIRST_COMPLETED)
    told.cancel()
    if not task.done():
        task.cancel()
        await asyncio.wait({task})
        return False
    task.result()
    return True


def registration(identity: NodeIdentity, peer_address: str, reached: Reachable) -> log_pb2.Command:
    """A new request each time: the newest registration stands."""
    return log_pb2.Command(
        version=COMMAND_VERSION,
        request_id=secrets.token_bytes(16),
        first_seen_ms=time.time_ns() // 1_000_000,
        actor=f"node:{identity.node}",
        register_node=log_pb2.RegisterNode(
            name=identity.node,
            replica_id=identity.replica_id,
            peer_address=peer_address,
            http_url=reached.http_url,
            grpc_address=reached.grpc_address,
            metrics_url=reached.metrics_url,
            version=registered_version(reached.version, reached.formation.level),
        ),
    )
