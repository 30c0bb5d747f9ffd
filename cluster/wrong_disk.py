"""A disk that must not take part any more: the file `wrong-disk` in the data directory.

Written once a peer has recognised that this disk is not the one that the cluster counts on: an old
copy, a second copy, one that lost what it had acknowledged. From then on the node starts without
its groups: it votes, acknowledges and serves nothing, and says so. The file stays until the data
directory is emptied. Owns the file and its words; must not know how a disk is recognised.
"""

from __future__ import annotations

import dataclasses
import json
import os
import time
from pathlib import Path

from quorepo.storage.errors import FatalError, Unavailable
from quorepo.storage.layout import write_durably

__all__ = [
    "FILE_NAME",
    "WrongDisk",
    "next_step",
    "read_wrong_disk",
    "record_wrong_disk",
    "refuse_wrong_disk",
]

FILE_NAME = "wrong-disk"


@dataclasses.dataclass(frozen=True, slots=True)
class WrongDisk:
    """What was found. `reason` is one of a few words (`peer/known.py`); `told_by` a node."""

    reason: str
    detail: str
    told_by: str
    time_ms: int

    def text(self, node: str) -> str:
        """For people: what happened and what to do."""
        return f"{self.detail} (said by {self.told_by}); {next_step(node)}"


def next_step(node: str) -> str:
    """What an operator does about it."""
    return (
        f"nothing more is changed on it; stop {node}, empty its data directory (keep a copy if in "
        f"doubt), start it again, and on another node: quorepo node replace {node}"
    )


def record_wrong_disk(data_dir: Path, reason: str, detail: str, told_by: str) -> None:
    """Writes the file durably; the first finding stands."""
    if (data_dir / FILE_NAME).exists():
        return
    found = WrongDisk(reason, detail, told_by, time.time_ns() // 1_000_000)
    content = json.dumps(dataclasses.asdict(found), indent=2) + "\n"
    write_durably(data_dir / FILE_NAME, content.encode())


def read_wrong_disk(data_dir: Path) -> WrongDisk | None:
    """None when nothing was found. Whatever the file holds, that it is there counts."""
    try:
        raw = (data_dir / FILE_NAME).read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        raise FatalError(
            f"cannot read {data_dir / FILE_NAME}: {error}; nothing was changed; look at the disk",
            exit_code=FatalError.EXIT_IO_ERROR,
        ) from error
    try:
        stored = json.loads(raw)
        return WrongDisk(
            str(stored["reason"]),
            str(stored["detail"]),
            str(stored["told_by"]),
            int(stored["time_ms"]),
        )
    except (ValueError, KeyError, TypeError):
        return WrongDisk("unknown", "this disk was refused, and the record of it is damaged", "", 0)


def refuse_wrong_disk(data_dir: Path) -> None:
    """Before anything is read for a client, in any process; one look at the folder.

    Raises Unavailable.
    """
    if os.path.exists(f"{data_dir}/{FILE_NAME}"):
        raise Unavailable(
            "this node is out of service: its disk is not the one that the cluster counts on",
            next_step="ask another node; quorepo status says why",
        )
