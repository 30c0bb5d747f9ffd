"""What pysyncobj is given in place of its sockets. Owns no rule and no state of the group.

X1: its own transport unpickles whatever reaches its port, from anybody.
"""

from __future__ import annotations

from collections.abc import Callable

from quorepo.cluster.raft.pin import Node as PysyncobjNode
from quorepo.cluster.raft.pin import Transport
from quorepo.cluster.raft.wire import Message

__all__ = ["EngineTransport", "Node", "NothingToPoll"]


class Node(str, PysyncobjNode):  # type: ignore[misc]
    """A replica by its id. A string, because tables and sets of nodes are looked into all the time:
    pysyncobj's own hash and comparison, in Python, took a tenth of the Raft thread."""

    id: str = ""  # plain; pysyncobj has a property here

    def __init__(self, replica_id: str) -> None:
        self.__dict__["id"] = replica_id

    def __str__(self) -> str:
        return self.id


class EngineTransport(Transport):  # type: ignore[misc]
    """What pysyncobj sends through and is called back by; carries to and from the host's outbox."""

    def __init__(self, carry: Callable[[Node, Message], bool]) -> None:
        super().__init__(None, None, [])
        self._carry = carry

    def send(self, node: Node, message: Message) -> bool:
        return self._carry(node, message)

    def deliver(self, node: Node, message: Message) -> None:
        """A message from a peer, checked by wire.py."""
        self._onMessageReceived(node, message)

    def connected(self, node: Node) -> None:
        self._onNodeConnected(node)

    def disconnected(self, node: Node) -> None:
        self._onNodeDisconnected(node)

    def destroy(self) -> None:
        """There is nothing to close: the host's transport outlives the groups."""


class NothingToPoll:
    """In place of pysyncobj's poller: there are no sockets, and waiting is the host's."""

    def poll(self, timeout: float) -> None:
        pass
