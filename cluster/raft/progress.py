"""What a leader knows of one follower beside its next and match index. Owns no rule;
replication.py does."""

from __future__ import annotations

import collections
import dataclasses
import enum

__all__ = ["Flow", "Progress"]


class Flow(enum.Enum):
    """How a leader sends to one follower."""

    PROBE = "probe"  # one append at a time, until one matches
    PIPELINE = "pipeline"  # the follower's log matches: many appends on their way
    SNAPSHOT = "snapshot"  # the log does not reach back to what it lacks: heartbeats and an offer
    WAIT = "wait"  # the follower fetches packs: heartbeats only, until it says that it has them


@dataclasses.dataclass(slots=True)
class Progress:
    """One follower in one term of office."""

    flow: Flow = Flow.PROBE
    probe_due: bool = True  # PROBE: nothing was sent yet that the follower has to answer
    inflight: collections.deque[int] = dataclasses.field(default_factory=collections.deque)
    # last index of each append that was not answered yet (PIPELINE)
    sent_commit_index: int = 0
    applied_index: int = 0
    disk_full: bool = False  # as the follower says
    disk_low: bool = False

    def probe(self) -> None:
        """From here on it has to be found out again where the follower's log ends."""
        self.flow = Flow.PROBE
        self.probe_due = True
        self.inflight.clear()
        self.sent_commit_index = 0

    def await_snapshot(self) -> None:
        """Nothing of the log is of use to it before it has a snapshot."""
        self.probe()
        self.flow = Flow.SNAPSHOT

    def answered(self, match_index: int) -> None:
        """Everything up to `match_index` has arrived."""
        while self.inflight and self.inflight[0] <= match_index:
            self.inflight.popleft()
