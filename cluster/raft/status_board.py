"""The published status of a node's groups: written by the Raft thread, read by any other.

Owns: when a new picture is built. Must not know what is in it; `RaftGroup.build_status` does.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

from quorepo.cluster.raft.group import RaftGroup
from quorepo.cluster.raft.interface import GroupStatus

__all__ = ["StatusBoard"]

# Indexes in the published status may be this old, since they change with every step; who leads, who
# is connected and who is a member is told at once.
_INTERVAL_S = 0.02


class StatusBoard:
    """The newest picture of each group."""

    def __init__(self, groups: Mapping[int, RaftGroup], now: float) -> None:
        self._groups = groups
        self._published = {number: group.build_status() for number, group in groups.items()}
        self._keys: dict[int, tuple[object, ...]] = {}
        self._at = dict.fromkeys(groups, now)
        self._stale: set[int] = set()

    def get(self, group: int) -> GroupStatus:
        """Thread-safe: a picture is replaced, never changed."""
        return self._published[group]

    def publish(self, changed: Iterable[int], now: float) -> None:
        """Something may have happened to the groups `changed`. For the Raft thread."""
        self._stale.update(changed)
        for number in list(self._stale):
            group = self._groups[number]
            key = group.status_key()
            if key != self._keys.get(number) or now >= self._at[number] + _INTERVAL_S:
                self._published[number] = group.build_status()
                self._keys[number] = key
                self._at[number] = now
                self._stale.discard(number)

    def wake_at(self) -> list[float]:
        """When the pictures that are out of date may be replaced."""
        return [self._at[number] + _INTERVAL_S for number in self._stale]
