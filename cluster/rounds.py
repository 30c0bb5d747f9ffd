"""Which learners have caught up: by rounds, as Ongaro's dissertation (4.2.1) has it.

How many entries a learner lacks says nothing of the packs that they name: one entry may stand for
gigabytes. A round is what the log held at its beginning; the learner has caught up once it took a
round in little time. Owns the rounds of this leader; must not know what is done with the answer.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

from quorepo.cluster.raft.interface import GroupStatus

__all__ = ["ROUND_S_MAX", "Rounds"]

# What a learner takes in so little time it will not hold up a majority with.
ROUND_S_MAX = 2.0


@dataclasses.dataclass(frozen=True, slots=True)
class _Round:
    target_index: int
    began: float


class Rounds:
    """Looked at again and again while this node leads a group."""

    def __init__(self, monotonic: Callable[[], float]) -> None:
        self._monotonic = monotonic
        self._rounds: dict[tuple[int, str], _Round] = {}

    def caught_up(self, status: GroupStatus) -> frozenset[str]:
        """The learners that ended a round in time; the others are given another one."""
        now = self._monotonic()
        ready = []
        seen = {r.replica_id: r for r in status.replicas if not r.votes}
        for group, replica_id in list(self._rounds):
            if group == status.group and (status.role != "leader" or replica_id not in seen):
                del self._rounds[group, replica_id]
        if status.role != "leader":
            return frozenset()
        for replica_id, replica in seen.items():
            key = (status.group, replica_id)
            begins = _Round(status.last_index, now)
            if not replica.connected or not replica.match_index or replica.installs_snapshot:
                self._rounds.pop(key, None)
                continue
            current = self._rounds.setdefault(key, begins)
            if replica.match_index < current.target_index:
                continue
            if now - current.began <= ROUND_S_MAX:
                ready.append(replica_id)
            else:
                self._rounds[key] = begins
        return frozenset(ready)
