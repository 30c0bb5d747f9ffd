"""What this node knows of the other disks, and whether the one that calls is still that disk.

A replica is a disk. Its peers count on what it acknowledged and on the votes it gave; a disk that
was put back from a copy has forgotten both, and two copies of one would vote twice. So every stream
begins with a boot record (`cluster/boots.py`), and this node remembers, durably and before the
stream is accepted, the last one of every replica, with what the replica promised in Raft
(`raft/heard.py`). A caller is the wrong disk when

    older-start      its start is not after the last one known here, and is another one
    other-history    it was started more often, but the start known here is not among its own
    forgotten        its disk holds less than it promised before this start
    runs-twice       the start known here still answers, at the address it told

Each of these proves that a disk went back or was copied, whatever the network does: a record is
durable before it is told, promises are compared with what the disk held when the start began, and
"still answers" is asked after the newcomer was heard. While another stream of the replica is alive
and nobody answers, a caller has to wait. Callers of versions without boot records are let in.

Promises are in memory at once and on disk every few seconds and with each new start: what was
promised in the last seconds before this node's own end is forgotten here.

Owns the file `known-disks.json` and the judgement; must not know streams or the Raft thread.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import logging
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

from quorepo.cluster.peer.roster import node_of_replica
from quorepo.cluster.raft.heard import Heard
from quorepo.internal.v1 import peer_pb2
from quorepo.storage.errors import FatalError
from quorepo.storage.failpoints import failpoint
from quorepo.storage.layout import write_durably
from quorepo.storage.logs import fields

__all__ = ["KnownDisks", "Verdict"]

log = logging.getLogger(__name__)

_FORMAT_VERSION = 1
_SAVE_INTERVAL_S = 5.0


@dataclasses.dataclass(frozen=True, slots=True)
class Verdict:
    """`wrong`: why the caller is the wrong disk, one of a few words; `problem`: the same for
    people, or, with `wrong` empty, why it has to try again; both empty: it may speak."""

    wrong: str = ""
    problem: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class _Disk:
    """The last start of one replica that was let in here."""

    counter: int
    nonce: bytes
    address: str
    heard: Mapping[int, Heard]  # by group; of that start and those before it

    def and_also(self, heard: Mapping[int, Heard]) -> _Disk:
        merged = {
            group: self.heard.get(group, Heard()).and_also(heard.get(group, Heard()))
            for group in self.heard.keys() | heard.keys()
        }
        return dataclasses.replace(self, heard=merged)


class KnownDisks:
    """Judges callers, one call per replica at a time; lives in the core's event loop."""

    def __init__(
        self,
        path: Path,
        promises: Callable[[str], Awaitable[Mapping[int, Heard]]],
        answers_as: Callable[[str, str], Awaitable[bytes]],
    ) -> None:
        """
        Args:
            path: where it is kept.
            promises: what the Raft engine heard a replica promise, by group; raises Unavailable.
            answers_as: (replica id, address) -> the boot nonce of whoever answers there as that
                replica now; empty when nobody does.

        Raises FatalError when the file is damaged or newer.
        """
        self._path = path
        self._promises = promises
        self._answers_as = answers_as
        self._disks = _read(path)
        self._saved = dict(self._disks)
        self._one_at_a_time: dict[str, asyncio.Lock] = {}
        self._writing = asyncio.Lock()

    async def judge(self, first: peer_pb2.RaftFrame, *, another_is_here: bool) -> Verdict:
        """Whether the caller is the disk that it says; when it is, that start is known durably on
        return.

        Args:
            first: the first frame of a stream, checked in every other way.
            another_is_here: a stream of the same replica, not of this start, is alive.
        """
        replica_id, boot = first.from_replica, first.boot
        if not boot.counter:
            return Verdict()  # of a version before boot records
        async with self._one_at_a_time.setdefault(replica_id, asyncio.Lock()):
            known = self._disks.get(replica_id)
            if known is not None and (boot.counter, boot.nonce) != (known.counter, known.nonce):
                verdict = await self._compare(first, known, another_is_here=another_is_here)
                if verdict.problem:
                    return verdict
                known = self._disks[replica_id]  # with what it promised until now
            elif known is not None and first.from_address == known.address:
                return Verdict()
            heard = {} if known is None else known.heard
            self._disks[replica_id] = _Disk(boot.counter, boot.nonce, first.from_address, heard)
            failpoint("known.before_save")
            await self._save()
            failpoint("known.after_save")
        return Verdict()

    async def _compare(
        self, first: peer_pb2.RaftFrame, known: _Disk, *, another_is_here: bool
    ) -> Verdict:
        replica_id, boot = first.from_replica, first.boot
        if boot.counter <= known.counter:
            return Verdict(
                "older-start",
                f"replica {replica_id!r} is known here by its start {known.counter}, and this disk "
                f"was started {boot.counter} times, the last time another one: it is an older copy",
            )
        back = boot.counter - known.counter
        if back <= len(boot.former) and boot.former[-back] != known.nonce:
            return Verdict(
                "other-history",
                f"replica {replica_id!r} is known here by its start {known.counter}, and that of "
                "this disk was another one: one of them is a copy",
            )
        ask = known.address and (another_is_here or first.from_address != known.address)
        if ask and await self._answers_as(replica_id, known.address) == known.nonce:
            return Verdict(
                "runs-twice",
                f"replica {replica_id!r} runs already, at {known.address}: the data directory was "
                "copied",
            )
        if another_is_here:
            return Verdict("", f"the start before of {replica_id!r} is still connected; try again")
        known = known.and_also(await self._promises(replica_id))
        self._disks[replica_id] = known
        held = {group.group: (group.term, group.last_index) for group in boot.groups}
        for group, heard in sorted(known.heard.items()):
            if broken := heard.broken_by(*held.get(group, (0, 0))):
                return Verdict(
                    "forgotten",
                    f"replica {replica_id!r} forgot what it had promised in group {group}: "
                    f"{broken}; the disk is an older copy, or lost what it had synced",
                )
        return Verdict()

    def is_last_start(self, replica_id: str, boot: peer_pb2.BootRecord) -> bool:
        """Whether a call with this record comes from the disk that was let in last."""
        known = self._disks.get(replica_id)
        if known is None or not boot.counter:  # a version before boot records says nothing
            return True
        return (boot.counter, boot.nonce) == (known.counter, known.nonce)

    # ---- on disk

    async def keep(self) -> None:
        """Saves what is promised, for as long as the node lives."""
        while True:
            await asyncio.sleep(_SAVE_INTERVAL_S)
            await self.save_promises()

    async def save_promises(self) -> None:
        """Makes durable what every known replica has promised by now."""
        for replica_id in list(self._disks):
            promised = await self._promises(replica_id)
            self._disks[replica_id] = self._disks[replica_id].and_also(promised)
        await self._save()

    async def _save(self) -> None:
        async with self._writing:
            disks = dict(self._disks)
            if disks == self._saved:
                return
            data = (json.dumps(_document(disks)) + "\n").encode()
            await asyncio.to_thread(_write, self._path, data)
            self._saved = disks


def _write(path: Path, data: bytes) -> None:
    try:
        write_durably(path, data)
    except OSError as error:
        raise FatalError(
            f"cannot write {path}: {error}; no stream of a new start is accepted without it; look "
            "at the disk",
            exit_code=FatalError.EXIT_IO_ERROR,
        ) from error


def _document(disks: Mapping[str, _Disk]) -> dict[str, Any]:
    return {
        "format_version": _FORMAT_VERSION,
        "disks": {
            replica_id: {
                "counter": disk.counter,
                "nonce": disk.nonce.hex(),
                "address": disk.address,
                "promised": {
                    str(group): [heard.term, *heard.acked, heard.committed]
                    for group, heard in sorted(disk.heard.items())
                },
            }
            for replica_id, disk in sorted(disks.items())
        },
    }


def _read(path: Path) -> dict[str, _Disk]:
    try:
        raw = path.read_bytes()
    except FileNotFoundError:
        return {}
    try:
        stored = json.loads(raw)
        version = int(stored["format_version"])
        disks = {
            replica_id: _Disk(
                int(disk["counter"]),
                bytes.fromhex(disk["nonce"]),
                str(disk["address"]),
                {
                    int(group): Heard(int(term), (int(in_term), int(index)), int(committed))
                    for group, (term, in_term, index, committed) in disk["promised"].items()
                },
            )
            for replica_id, disk in stored["disks"].items()
            if node_of_replica(replica_id)
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise FatalError(
            f"{path} is damaged ({error}); nothing was changed; without it a copy of another "
            "node's disk is not recognised here: look at this disk, then remove the file",
            exit_code=FatalError.EXIT_CONFIG,
        ) from error
    if version > _FORMAT_VERSION:
        raise FatalError(
            f"{path} has format version {version}, this program knows up to {_FORMAT_VERSION}; "
            "nothing was changed; start the newer quorepo again",
            exit_code=FatalError.EXIT_CONFIG,
        )
    log.debug("known disks", extra=fields(replicas=",".join(sorted(disks))))
    return disks
