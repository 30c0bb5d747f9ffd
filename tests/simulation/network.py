"""Directed streams between nodes, as cluster/peer/transport.py gives them to the engine.

Owns: each node's outgoing streams, delays, partitions of one direction, broken and superseded
streams. What is promised is kept: first in, first out on a stream, nothing twice, the loss of a
stream is reported to its sender and what was on its way is lost; a newer stream of the same sender
ends the older one. Everything else may go wrong.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, Protocol

from simulation.events import Events

__all__ = ["Endpoint", "Network"]


class Endpoint(Protocol):
    """What the network sees of a node."""

    replica_id: str
    life: int  # of its process; 0 while it is down

    @property
    def known(self) -> Sequence[str]: ...  # whom it wants streams to

    def deliver(self, from_replica: str, frame: Any) -> None: ...
    def stream_up(self, to_replica: str) -> None: ...
    def stream_down(self, to_replica: str) -> None: ...


class Stream:
    """One connection from a sender to a receiver."""

    __slots__ = ("broken", "from_life", "held", "last_at", "receiver", "sender", "to_life")

    def __init__(self, sender: Endpoint, receiver: Endpoint) -> None:
        self.sender = sender
        self.receiver = receiver
        self.from_life = sender.life
        self.to_life = receiver.life
        self.broken = False
        self.last_at = 0.0
        self.held: list[Any] = []  # waits for the end of a partition, as in TCP's send buffer


class Network:
    """All streams of a cluster."""

    def __init__(self, events: Events) -> None:
        self._events = events
        self._rng = events.rng
        self.nodes: dict[str, Endpoint] = {}
        self.delay_s = (0.0002, 0.002)
        self.reconnect_s = (0.02, 0.2)
        self.patience_s = 1.5  # a stream that carries nothing for so long is given up
        self.blocked: set[tuple[str, str]] = set()
        self._outgoing: dict[tuple[str, str], Stream] = {}
        self._incoming: dict[tuple[str, str], Stream] = {}
        self._connecting: set[tuple[str, str]] = set()
        self.delivered = 0

    def _delay(self) -> float:
        return self._rng.uniform(*self.delay_s)

    # ---- streams come and go

    def look_after(self, sender: Endpoint) -> None:
        """The node started, or wants other streams: opens what is missing."""
        for receiver in sender.known:
            self._connect_later((sender.replica_id, receiver))

    def _connect_later(self, link: tuple[str, str]) -> None:
        if link not in self._connecting and link not in self._outgoing:
            self._connecting.add(link)
            self._events.after(
                self._rng.uniform(*self.reconnect_s), functools.partial(self._connect, link)
            )

    def _connect(self, link: tuple[str, str]) -> None:
        self._connecting.discard(link)
        sender, receiver = self.nodes.get(link[0]), self.nodes.get(link[1])
        if sender is None or not sender.life or link in self._outgoing:
            return
        if not self._wanted(sender, link):
            return
        back = (link[1], link[0])
        if receiver is None or not receiver.life or link in self.blocked or back in self.blocked:
            self._connect_later(link)
            return
        self._open(sender, receiver, link)

    def _wanted(self, sender: Endpoint, link: tuple[str, str]) -> bool:
        """A node keeps streams to its members, and back to guests: whoever has one to it."""
        guest = self._incoming.get((link[1], link[0]))
        here = guest is not None and not guest.broken and guest.to_life == sender.life
        return link[1] in sender.known or here

    def _open(self, sender: Endpoint, receiver: Endpoint, link: tuple[str, str]) -> None:
        """The hello has been answered: the newer stream takes the older one's place."""
        stream = Stream(sender, receiver)
        self._outgoing[link] = stream
        self._incoming[link] = stream
        sender.stream_up(link[1])
        self._connect_later((link[1], link[0]))

    def drop(self, link: tuple[str, str], notice_s: float = 0.0) -> None:
        """The stream breaks now; its sender notices within `notice_s`."""
        stream = self._outgoing.get(link)
        if stream is None or stream.broken:
            return
        if self._rng.random() < 0.5:
            stream.broken = True
        else:  # what is already near its goal still arrives
            self._events.after(self._delay(), functools.partial(setattr, stream, "broken", True))
        self._events.after(
            self._rng.uniform(0, notice_s), functools.partial(self._notice, link, stream)
        )

    def _notice(self, link: tuple[str, str], stream: Stream) -> None:
        stream.broken = True
        if self._outgoing.get(link) is not stream:
            return
        del self._outgoing[link]
        sender = self.nodes.get(link[0])
        if sender is not None and sender.life == stream.from_life:
            sender.stream_down(link[1])
            self._connect_later(link)

    def supersede(self, link: tuple[str, str]) -> None:
        """The sender opens a second stream while frames of the first are still on their way."""
        stream = self._outgoing.get(link)
        sender, receiver = self.nodes[link[0]], self.nodes[link[1]]
        back = (link[1], link[0])
        if stream is None or not receiver.life or link in self.blocked or back in self.blocked:
            return
        del self._outgoing[link]
        sender.stream_down(link[1])
        self._open(sender, receiver, link)

    def process_ended(self, node: Endpoint, notice_s: float) -> None:
        """All streams from and to it break; its own are gone at once."""
        for link in [link for link in self._outgoing if node.replica_id in link]:
            if link[0] == node.replica_id:
                stream = self._outgoing.pop(link)
                if self._rng.random() < 0.5:
                    stream.broken = True  # else: what it had sent still arrives
            else:
                self.drop(link, notice_s)

    # ---- partitions

    def block(self, link: tuple[str, str]) -> None:
        """Nothing travels in this direction; nobody is told."""
        if link in self.blocked:
            return
        self.blocked.add(link)
        stream = self._outgoing.get(link)
        if stream is not None:
            patience_s = self._rng.uniform(0.3, 1.0) * self.patience_s
            self._events.after(patience_s, functools.partial(self._give_up, link, stream))

    def _give_up(self, link: tuple[str, str], stream: Stream) -> None:
        if link in self.blocked:
            self._notice(link, stream)

    def heal(self) -> None:
        blocked = sorted(self.blocked)
        self.blocked.clear()
        for link in blocked:
            stream = self._outgoing.get(link)
            if stream is not None:
                held, stream.held = stream.held, []
                for frame in held:  # before everything that is still on its way
                    self._events.after(0.0, functools.partial(self._arrive, link, stream, frame))

    # ---- frames

    def is_up(self, sender: str, receiver: str) -> bool:
        return (sender, receiver) in self._outgoing

    def send(self, sender: Endpoint, to_replica: str, frame: Any, after_s: float) -> None:
        link = (sender.replica_id, to_replica)
        stream = self._outgoing.get(link)
        if stream is not None and not stream.broken:
            self._schedule(link, stream, frame, after_s)

    def _schedule(
        self, link: tuple[str, str], stream: Stream, frame: Any, after_s: float = 0.0
    ) -> None:
        events = self._events
        at = max(events.now + after_s + self._delay(), stream.last_at)
        stream.last_at = at
        events.after(at - events.now, functools.partial(self._arrive, link, stream, frame))

    def _arrive(self, link: tuple[str, str], stream: Stream, frame: Any) -> None:
        receiver = stream.receiver
        if stream.broken or self._incoming.get(link) is not stream:
            return
        if receiver.life != stream.to_life:
            return
        if link in self.blocked:
            stream.held.append(frame)
            return
        self.delivered += 1
        receiver.deliver(link[0], frame)
