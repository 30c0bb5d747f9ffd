"""What a check of the doctor says, and the facts that checks share.

Owns the numbers, which stay: runbooks name them. Must not know how anything is checked.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Literal

from quorepo.rpc.config import NodeConfig

__all__ = ["CHECKS", "Finding", "Machine", "Severity"]

Severity = Literal["ok", "info", "skipped", "warning", "error"]

CHECKS = {
    1: "configuration",
    2: "data directory",
    3: "disk sync latency",
    4: "free space",
    5: "open-file limit",
    6: "secret files",
    7: "peer certificate",
    8: "listener certificates",
    9: "versions",
    10: "listening addresses",
    11: "peers, from here",
    12: "this node, from the peers",
    13: "clock against the peers",
}


@dataclasses.dataclass(frozen=True, slots=True)
class Finding:
    """One line of the doctor. `error`: the node does not work so; `warning`: it will not for long,
    or only by luck; `skipped`: could not be checked, `what` says why."""

    number: int
    severity: Severity
    what: str
    next_step: str = ""

    def document(self) -> dict[str, object]:
        """As `-o json` shows it."""
        return {
            "number": self.number,
            "check": CHECKS[self.number],
            "severity": self.severity,
            "finding": self.what,
            "next_step": self.next_step or None,
        }


@dataclasses.dataclass(frozen=True, slots=True)
class Machine:
    """What the checks work on.

    `core_pid` is the process that uses the data directory now, None when the node is stopped.
    `token` is for asking the other nodes; empty when there is none.
    """

    config: NodeConfig
    config_file: Path
    core_pid: int | None
    token: str = dataclasses.field(repr=False, default="")
    timeout_s: float = 3.0

    @property
    def running(self) -> bool:
        return self.core_pid is not None
