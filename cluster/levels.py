"""Two versions in one cluster: what may be proposed while some members run the older program.

Owns the comparison of what a command needs with what the members told, and when the cluster's level
may rise (cluster/state/levels.py has the levels). Must not know how a command is proposed.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable, Mapping

from quorepo.cluster.state.levels import LEVEL, LEVEL_MIN, cluster_level, level_of, told
from quorepo.cluster.state.members import Intentions
from quorepo.cluster.state.store import StateStore
from quorepo.internal.v1 import log_pb2
from quorepo.storage.errors import FatalError

__all__ = ["Held", "Levels", "refuse_older_program"]


@dataclasses.dataclass(frozen=True, slots=True)
class Held:
    """Why a command must not be proposed now."""

    reason: str
    passes: bool  # the members are only about to tell what they know


class Levels:
    """What this node knows of the members' levels; lives in the core's event loop."""

    def __init__(self, own: int = LEVEL) -> None:
        self.own = own
        self.cluster = LEVEL_MIN  # never more than what was reached
        self._told: dict[str, int] = {}  # of the members that registered
        self._versions: dict[str, str] = {}
        self._silent: list[str] = []  # members that did not
        self._busy = True  # nothing was read yet, or somebody comes

    def update(self, wanted: Intentions, configurations: Iterable[log_pb2.Configuration]) -> None:
        """Takes in what this node's directory says, and who the members are."""
        self.cluster = max(self.cluster, wanted.level)
        members = {r.replica_id: r.node for c in configurations for r in c.replicas}
        rows = {name: version for name, replica, version in wanted.registered if replica in members}
        self._versions = rows
        self._told = {name: told(version)[1] for name, version in rows.items()}
        self._silent = sorted(set(members.values()) - set(rows))
        self._busy = wanted.running is not None and wanted.running.comes

    def may_rise_to(self) -> int:
        """The level that all members have by now; 0 while it is the cluster's already."""
        if self._silent or self._busy or not self._told:
            return 0
        common = min(self.own, *self._told.values())
        return common if common > self.cluster else 0

    def held_back(self, command: log_pb2.Command) -> Held | None:
        """Why a command must wait for the members; None when it must not."""
        needed = level_of(command)
        if needed <= self.cluster or command.WhichOneof("kind") in _ALWAYS:
            return None
        leaving = _who_leaves(command)
        older = sorted(n for n, level in self._told.items() if level < needed and n != leaving)
        if older:
            names = ", ".join(f"{name} ({told(self._versions[name])[0]})" for name in older)
            return Held(
                f"level: this needs level {needed} of every member, and {names} run an older "
                "quorepo",
                passes=False,
            )
        silent = [name for name in self._silent if name != leaving]
        if not self._told or silent:
            who = ", ".join(silent) or "the members"
            return Held(
                f"level: this needs level {needed} of every member, and {who} did not tell yet "
                "which quorepo they run",
                passes=True,
            )
        # Everybody else knows it; the one that holds the level down is what this gets rid of.
        return None if leaving else Held("level: the cluster's level is about to rise", passes=True)


# Proposed because of what the members told, or after what needed the same.
_ALWAYS = ("raise_level", "end_membership_change")

_LEAVE = (log_pb2.MEMBERSHIP_KIND_REMOVE, log_pb2.MEMBERSHIP_KIND_REPLACE)


def _who_leaves(command: log_pb2.Command) -> str:
    """The node whose old replica goes with this command."""
    begin = command.begin_membership_change
    return begin.node if begin.kind in _LEAVE else ""


def refuse_older_program(stores: Mapping[int, StateStore], own: int) -> None:
    """A node must not go back to a program that does not know what the logs hold.

    Raises FatalError with EXIT_CONFIG.
    """
    for store in stores.values():
        reached = store.read("reading the level of", cluster_level)
        if reached > own:
            raise FatalError(
                f"this cluster is at level {reached}, and this program knows level {own}; nothing "
                "was changed; start the newer quorepo again on this node",
                exit_code=FatalError.EXIT_CONFIG,
            )
