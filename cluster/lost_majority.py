"""A majority that is lost for good: one survivor becomes the first node of a new cluster.

Works on the data directory of a stopped node. Owns what a survivor knows and cannot know, and the
steps that make it a cluster of one; must not know who asks or how it is shown.

The new cluster has another id, and every other replica is on record as removed: should the old
majority come back, neither side talks to the other. Each group's log gets one entry, in a term
above every term that this disk has seen, with this replica as the only voter; the start after that
commits it with everything before it, so what stands in the log, acknowledged or not, is kept.

Crashes: `recovering` is written first and removed last, and no node starts over it. Run again, each
step finds what is done.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import time
import uuid
from collections.abc import AsyncIterator, Sequence
from pathlib import Path

from google.protobuf.message import DecodeError
from prometheus_client import CollectorRegistry

from quorepo.cluster.formation import voter
from quorepo.cluster.identity import NodeIdentity
from quorepo.cluster.metrics import ClusterMetrics
from quorepo.cluster.opening import NodeDisk, founding_configuration, open_disk
from quorepo.cluster.raft.entries import (
    CONFIGURATION,
    decode_configuration,
    decode_entry,
    encode_entry,
    is_configuration,
)
from quorepo.cluster.raft.votes import VoteFile
from quorepo.cluster.state.reader import StateReader
from quorepo.cluster.wrong_disk import read_wrong_disk
from quorepo.internal.v1 import log_pb2
from quorepo.storage.errors import FatalError, Rejected
from quorepo.storage.failpoints import failpoint
from quorepo.storage.layout import fsync_dir, write_durably

__all__ = [
    "GroupLook",
    "Pending",
    "Survivor",
    "furthest",
    "look",
    "recover",
    "refuse_unfinished",
]

_RECOVERING = "recovering"
_READ_BYTES = 1024 * 1024


@dataclasses.dataclass(frozen=True, slots=True)
class Pending:
    """An entry of the log that this disk does not know to be committed."""

    index: int
    term: int
    time_ms: int
    what: str
    repository: str = ""  # its path, or its id when the path is not known
    refs: tuple[str, ...] = ()
    request_id: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class GroupLook:
    """One group of a survivor."""

    group: int
    applied_index: int
    last_index: int
    last_term: int
    last_time_ms: int  # the leader's clock at the newest entry; what came later is not known
    voters: tuple[str, ...]  # nodes
    pending: tuple[Pending, ...]


@dataclasses.dataclass(frozen=True, slots=True)
class Survivor:
    """What one disk holds."""

    data_dir: Path
    node: str
    replica_id: str
    cluster_id: str
    groups: tuple[GroupLook, ...]
    repositories: tuple[tuple[str, int], ...]  # (path, revision counter)

    @property
    def reach(self) -> tuple[tuple[int, int], ...]:
        """How far its log goes, by group: (term, index) of the last entry (Raft 5.4.1)."""
        return tuple((g.last_term, g.last_index) for g in self.groups)


def furthest(survivors: Sequence[Survivor]) -> Survivor:
    """The one whose log goes furthest in every group. Raises Rejected when there is none such."""
    best = max(survivors, key=lambda survivor: survivor.reach)
    for other in survivors:
        if other.cluster_id != best.cluster_id:
            raise Rejected(
                f"{other.data_dir} is of cluster {other.cluster_id}, {best.data_dir} of "
                f"{best.cluster_id}; nothing was changed",
                next_step="give the data directories of one cluster",
            )
        pairs = zip(other.reach, best.reach, strict=True)
        if any(theirs > ours for theirs, ours in pairs):
            raise Rejected(
                f"neither of {best.data_dir} and {other.data_dir} has the longest log of every "
                "group; nothing was changed",
                next_step="look at both with --dry-run, and give only the one to go on with",
            )
    return best


@contextlib.asynccontextmanager
async def _opened(data_dir: Path, groups: Sequence[int]) -> AsyncIterator[NodeDisk]:
    async with contextlib.AsyncExitStack() as stack:
        metrics = ClusterMetrics(CollectorRegistry())
        yield await open_disk(data_dir, groups, 0, metrics, stack)


def _identity(data_dir: Path) -> NodeIdentity:
    try:
        node = str(json.loads((data_dir / "node.json").read_bytes())["node"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise Rejected(
            f"{data_dir} is no data directory of a node ({error}); nothing was changed",
            next_step="give the data directory of a survivor (node.data_dir)",
        ) from error
    identity = NodeIdentity.open(data_dir, node, start=False)
    wrong = read_wrong_disk(data_dir)
    if wrong is not None or not identity.formed:
        why = "belongs to no cluster yet" if wrong is None else f"was refused: {wrong.detail}"
        raise Rejected(f"the disk in {data_dir} {why}; nothing was changed")
    return identity


async def look(data_dir: Path, groups: Sequence[int]) -> Survivor:
    """What the disk holds. Opens it as a start of the node does, so no node may run on it.

    Raises Rejected, FatalError.
    """
    identity = _identity(data_dir)
    async with _opened(data_dir, groups) as disk:
        directory = StateReader(disk.layouts[groups[0]])
        try:
            looks = tuple(_look_at(disk, identity, group, directory) for group in groups)
            repositories = _repositories(disk, groups, directory)
        finally:
            directory.close()
    begun = _begun(data_dir)
    cluster_id = identity.cluster_id if begun is None else begun["former"]
    return Survivor(data_dir, identity.node, identity.replica_id, cluster_id, looks, repositories)


def _repositories(
    disk: NodeDisk, groups: Sequence[int], directory: StateReader
) -> tuple[tuple[str, int], ...]:
    found = []
    for group in groups[1:]:
        reader, after = StateReader(disk.layouts[group]), ""
        try:
            while rows := reader.repositories(after):
                after = rows[-1].repository_id
                found += [
                    (_path(directory, row.repository_id), row.counter)
                    for row in rows
                    if not row.deleted
                ]
        finally:
            reader.close()
    return tuple(sorted(found))


def _path(directory: StateReader, repository_id: str) -> str:
    rows = directory.paths_of(repository_id)
    return rows[0].path if rows else repository_id


def _look_at(
    disk: NodeDisk, identity: NodeIdentity, group: int, directory: StateReader
) -> GroupLook:
    store, journal = disk.stores[group], disk.journal
    last_index = journal.last_index(group)
    pending, last_time_ms = [], store.log_time_ms
    for index, term, data in _entries(disk, group, store.applied_index + 1):
        entry = decode_entry(group, index, term, data)
        last_time_ms = max(last_time_ms, entry.time_ms)
        if entry.kind == "command":
            pending.append(_pending(index, term, entry.time_ms, entry.data, directory))
        elif entry.kind == "configuration":
            pending.append(Pending(index, term, entry.time_ms, "change of the members"))
    configuration = _in_force(disk, identity, group)
    return GroupLook(
        group,
        store.applied_index,
        last_index,
        journal.term_at(group, last_index) or 0,
        last_time_ms,
        tuple(sorted(r.node for r in configuration.replicas if r.votes)),
        tuple(pending),
    )


def _entries(disk: NodeDisk, group: int, start: int) -> list[tuple[int, int, bytes]]:
    journal, found = disk.journal, []
    index, stop = max(start, journal.first_index(group), 1), journal.last_index(group) + 1
    while index < stop:
        for data, at, term in journal.read(group, index, stop, _READ_BYTES):
            found.append((at, term, data))
            index = at + 1
    return found


def _pending(
    index: int, term: int, time_ms: int, payload: bytes, directory: StateReader
) -> Pending:
    try:
        command = log_pb2.Command.FromString(payload)
    except DecodeError:
        return Pending(index, term, time_ms, "not readable")
    kind = command.WhichOneof("kind") or "nothing"
    repository_id = getattr(getattr(command, kind, None), "repository_id", "")
    refs = tuple(
        update.name.decode("utf-8", "replace") for update in command.transaction.ref_updates
    )
    return Pending(
        index,
        term,
        time_ms,
        kind.replace("_", " "),
        _path(directory, repository_id) if repository_id else "",
        refs,
        command.request_id.hex(),
    )


def _in_force(disk: NodeDisk, identity: NodeIdentity, group: int) -> log_pb2.Configuration:
    applied = disk.stores[group].configuration
    found = founding_configuration(identity)
    if applied is not None:
        found = log_pb2.Configuration.FromString(applied)
    for _, _, data in _entries(disk, group, disk.stores[group].applied_index + 1):
        if is_configuration(data):
            found = decode_configuration(data)
    return found


# ---- making it the only voter


async def recover(
    data_dir: Path, groups: Sequence[int], peer_address: str, marker: Path | None
) -> str:
    """Makes the node in `data_dir` the only voter of every group of a new cluster.

    Args:
        peer_address: where its peers will reach it.
        marker: the file beside the certificates that names the cluster; None: there is none.

    Returns:
        The id of the new cluster.
    """
    identity = _identity(data_dir)
    cluster_id = _begin(data_dir, identity.cluster_id)
    failpoint("recover.after_begin")
    me = voter(identity.node, identity.replica_id, peer_address)
    async with _opened(data_dir, groups) as disk:
        for group in groups:
            _take_over(disk, identity, group, me, cluster_id)
            failpoint("recover.after_group")
        disk.journal.sync()
    failpoint("recover.before_identity")
    identity.joined(cluster_id, log_pb2.Configuration(replicas=[me])).save(data_dir)
    failpoint("recover.after_identity")
    if marker is not None:
        write_durably(marker, f"{cluster_id}\n".encode())
    (data_dir / "known-disks.json").unlink(missing_ok=True)
    failpoint("recover.before_end")
    (data_dir / _RECOVERING).unlink()
    fsync_dir(data_dir)
    return cluster_id


def _begin(data_dir: Path, former: str) -> str:
    """The id of the new cluster; an earlier run that did not end gave one already."""
    begun = _begun(data_dir)
    if begun is not None:
        return begun["cluster_id"]
    content = {"cluster_id": str(uuid.uuid4()), "former": former}
    write_durably(data_dir / _RECOVERING, (json.dumps(content) + "\n").encode())
    return content["cluster_id"]


def _begun(data_dir: Path) -> dict[str, str] | None:
    path = data_dir / _RECOVERING
    try:
        stored = json.loads(path.read_bytes())
        return {name: str(stored[name]) for name in ("cluster_id", "former")}
    except FileNotFoundError:
        return None
    except (ValueError, KeyError, TypeError) as error:
        raise Rejected(f"{path} is damaged ({error}); nothing was changed") from error


def _take_over(
    disk: NodeDisk, identity: NodeIdentity, group: int, me: log_pb2.Replica, cluster_id: str
) -> None:
    """One entry as the leader of a new term would append it: this replica is all there is."""
    actor = f"recover:{cluster_id}"
    before = _in_force(disk, identity, group)
    if before.actor == actor:
        return  # an earlier run was here
    gone = {r.replica_id for r in before.replicas} | set(before.removed_replica_ids)
    configuration = log_pb2.Configuration(
        replicas=[me], removed_replica_ids=sorted(gone - {me.replica_id}), actor=actor
    )
    votes = VoteFile(disk.votes_dir / f"group-{group}.vote")
    last = disk.journal.last_index(group)
    term = max(votes.term, disk.journal.term_at(group, last) or 0) + 1
    votes.store(term, me.replica_id)  # before an entry of that term
    payload = configuration.SerializeToString(deterministic=True)
    now_ms = time.time_ns() // 1_000_000
    disk.journal.append(group, last + 1, term, encode_entry(CONFIGURATION, now_ms, payload))
    disk.journal.sync()


def refuse_unfinished(data_dir: Path) -> None:
    """Before a node starts. Raises FatalError (EXIT_CONFIG)."""
    if (data_dir / _RECOVERING).exists():
        raise FatalError(
            f"a recovery of {data_dir} was begun and did not end; run quorepo cluster recover "
            "again, with the same configuration",
            exit_code=FatalError.EXIT_CONFIG,
        )
