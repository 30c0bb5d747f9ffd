"""What this replica heard another one promise: the least that its disk must still hold.

Owns: which promises survive anything that Raft does to a log. Must not know who asks or why.

    term         it voted, campaigned or acknowledged in this term; its vote file is not older
    acked        (term, index): the leader of `term`, this replica, has its word for the log up to
                 `index`. As long as its term is that one, nobody shortens its log below
    committed    acknowledged and committed: no leader of any term removes it

An acknowledged entry that was not committed may rightly be gone in a later term, so an index alone
proves nothing.
"""

from __future__ import annotations

import dataclasses

from quorepo.cluster.raft.engine import Engine, Node

__all__ = ["Heard", "HeardOf"]


@dataclasses.dataclass(frozen=True, slots=True)
class Heard:
    """Promises of one replica in one group; see the module."""

    term: int = 0
    acked: tuple[int, int] = (0, 0)
    committed: int = 0

    def and_also(self, other: Heard) -> Heard:
        """Both."""
        return Heard(
            max(self.term, other.term),
            max(self.acked, other.acked),
            max(self.committed, other.committed),
        )

    def broken_by(self, term: int, last_index: int) -> str:
        """Why a log that ends at `last_index`, with a vote file of `term`, is not what made these
        promises; empty when it may be."""
        if term < self.term:
            return f"it took part in term {self.term}, and its disk knows term {term}"
        index = self.committed
        if term == self.acked[0]:
            index = max(index, self.acked[1])
        if last_index < index:
            return f"it acknowledged entry {index}, and its log ends at {last_index}"
        return ""


class HeardOf(Engine):
    """The part of a group that remembers promises."""

    def _begin_heard(self) -> None:
        self._heard: dict[Node, Heard] = {}
        self._led_term = 0

    def note_leading(self) -> None:
        """This replica leads the current term: acknowledgements are of it."""
        self._led_term = self.current_term

    def note_term_of(self, node: Node, term: int) -> None:
        """`node` made `term` durable before it said what came just now."""
        known = self._heard.get(node)
        if known is None or known.term < term:
            self._heard[node] = (known or Heard()).and_also(Heard(term=term))

    def note_acknowledged(self) -> None:
        """This replica led until now: what was acknowledged to it stays true."""
        for node in self.match_index:
            self._heard[node] = self.heard_of(node, leading=True)

    def heard_of(self, node: Node, *, leading: bool) -> Heard:
        """All promises of `node` so far; `leading`: with those to the leader that this one is."""
        heard = self._heard.get(node, Heard())
        index = self.match_index.get(node, 0) if leading else 0
        if not index:
            return heard
        acked = (self._led_term, index)
        return heard.and_also(Heard(self._led_term, acked, min(index, self.commit_index)))
