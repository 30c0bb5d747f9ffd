"""How often a disk was started: `boots.json`, one random nonce for each start.

Each start adds a nonce, durably, before the node says anything. Peers remember the last start that
they heard of (`peer/known.py`): a disk that was restored from a copy, or runs twice, has another
history, or an older one. Owns the file; must not know who compares.

A file of its own beside `node.json`: a program from before it leaves it alone, so going back a
version and forth again is no wrong disk.
"""

from __future__ import annotations

import dataclasses
import json
import secrets
from pathlib import Path

from quorepo.internal.v1 import peer_pb2
from quorepo.storage.errors import FatalError
from quorepo.storage.failpoints import failpoint
from quorepo.storage.layout import write_durably

__all__ = ["FORMER_MAX", "Boot", "begin_boot"]

# Starts that a peer may miss and still see that the history is the one it knows.
FORMER_MAX = 512
_NONCE_BYTES = 8
_FORMAT_VERSION = 1


@dataclasses.dataclass(frozen=True, slots=True)
class Boot:
    """One start of a disk: its number, from 1, its nonce, and the nonces before it, newest last."""

    counter: int
    nonce: bytes
    former: tuple[bytes, ...] = ()

    def message(self) -> peer_pb2.BootRecord:
        """As peers are told of it, without what the disk holds."""
        return peer_pb2.BootRecord(counter=self.counter, nonce=self.nonce, former=self.former)


def begin_boot(data_dir: Path, replica_id: str, *, new: bool = False) -> Boot:
    """Records one more start of this disk; durable on return. `new`: its first, whatever a disk
    that was emptied but for this file says.

    A process that dies before that leaves the record of the start before, one that dies behind it
    a start that nobody heard of; the next one names both.

    Raises FatalError (EXIT_CONFIG) when the file is damaged, of another replica or newer.
    """
    path = data_dir / "boots.json"
    before = None if new else _read(path, replica_id)
    nonce = secrets.token_bytes(_NONCE_BYTES)
    former = () if before is None else (*before.former, before.nonce)[-FORMER_MAX:]
    boot = Boot(1 if before is None else before.counter + 1, nonce, former)
    content = {
        "format_version": _FORMAT_VERSION,
        "replica_id": replica_id,
        "counter": boot.counter,
        "nonces": [one.hex() for one in (*boot.former, boot.nonce)],
    }
    failpoint("boots.before_write")
    write_durably(path, (json.dumps(content) + "\n").encode())
    failpoint("boots.after_write")
    return boot


def _read(path: Path, replica_id: str) -> Boot | None:
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        return None
    try:
        stored = json.loads(raw)
        version, owner = int(stored["format_version"]), str(stored["replica_id"])
        nonces = [bytes.fromhex(one) for one in stored["nonces"]]
        boot = Boot(int(stored["counter"]), nonces[-1], tuple(nonces[:-1]))
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise _refused(path, f"is damaged ({error})") from error
    if version > _FORMAT_VERSION:
        raise FatalError(
            f"{path} has format version {version}, this program knows up to {_FORMAT_VERSION}; "
            "nothing was changed; start the newer quorepo again",
            exit_code=FatalError.EXIT_CONFIG,
        )
    if owner != replica_id:
        raise _refused(path, f"belongs to replica {owner!r}, node.json to {replica_id!r}")
    return boot


def _refused(path: Path, what: str) -> FatalError:
    return FatalError(
        f"{path} {what}; nothing was changed; the directory was put together of parts: empty it, "
        "start the node, and let it come back as a new replica (quorepo node replace)",
        exit_code=FatalError.EXIT_CONFIG,
    )
