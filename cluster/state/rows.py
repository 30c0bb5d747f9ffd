"""What readers get: rows of the state as plain values. Object ids and ref names are raw bytes."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

from quorepo.storage.objectformat import ObjectFormat

__all__ = [
    "NodeRow",
    "PackRow",
    "PackUse",
    "PathRow",
    "PruneRoots",
    "RefChangeRow",
    "RefRow",
    "RepositoryChanges",
    "RepositoryRow",
    "RepositorySnapshot",
    "TransactionRow",
    "repository_row",
]


class RefRow(NamedTuple):
    """A ref. What an annotated tag peels to is not known here: it lies in the packs."""

    name: bytes
    oid: bytes


class PackRow(NamedTuple):
    """A pack of a repository; see PackAddition in log.proto."""

    digest: bytes  # SHA-256 of the pack file
    index_digest: bytes  # SHA-256 of the .idx file
    pack_bytes: int
    index_bytes: int
    object_count: int
    thin_bytes: int  # where the part that travelled from the client ends
    thin_object_count: int
    added_counter: int  # revision counter of the transaction that added it
    arrived_ms: int = 0  # log time at which its youngest object was pushed


class PackUse(NamedTuple):
    """How much of what a repository stores its packs are."""

    repository_id: str
    pack_count: int
    pack_bytes: int
    repeated_bytes: int  # of objects that are in another pack too: bases of completed thin packs


@dataclasses.dataclass(frozen=True, slots=True)
class PruneRoots:
    """What decides which objects of a repository are needed, at one revision."""

    counter: int
    deleted: bool
    tips: tuple[bytes, ...]  # what refs point to
    recent: tuple[bytes, ...]  # what refs pointed to after the time that was asked for
    packs: tuple[bytes, ...]  # digests, the oldest first


class RefChangeRow(NamedTuple):
    """One change of one ref."""

    counter: int  # revision counter that the change led to
    log_index: int
    time_ms: int  # log time
    actor: str
    name: bytes
    old_oid: bytes | None
    new_oid: bytes | None


class TransactionRow(NamedTuple):
    """One step of a repository to its next revision."""

    log_index: int
    repository_id: str
    incarnation: int
    counter: int  # revision counter that it led to
    kind: str
    time_ms: int  # log time
    actor: str
    request_id: bytes


class PathRow(NamedTuple):
    """Which repository a path names, and the group that has it."""

    path: str
    repository_id: str
    group: int
    created_ms: int


class NodeRow(NamedTuple):
    """A node as it registered itself last."""

    name: str
    replica_id: str
    peer_address: str
    http_url: str
    grpc_address: str
    metrics_url: str
    version: str
    registered_ms: int


@dataclasses.dataclass(frozen=True, slots=True)
class RepositoryRow:
    """A repository; a deleted one too."""

    repository_id: str
    incarnation: int
    counter: int
    object_format: ObjectFormat
    head: bytes  # full name of the branch HEAD points to, born or not
    prune_epoch: int
    checksum: bytes  # rolling; equal on all replicas at the same revision
    created_ms: int
    deleted_ms: int | None
    detached_head: bytes | None = None  # HEAD points to this object id instead of `head`
    description: str = ""
    read_only: int = 0  # 1: refs can't be changed
    purge_ms: int | None = None  # of a tombstone: from then on it can't be taken back
    deleted_path: str | None = None  # of a tombstone: the path that named it
    forked_from: str | None = None  # repository id of a fork's source

    @property
    def deleted(self) -> bool:
        return self.deleted_ms is not None

    @property
    def revision(self) -> tuple[int, int]:
        """(incarnation, counter)."""
        return self.incarnation, self.counter


@dataclasses.dataclass(frozen=True, slots=True)
class RepositorySnapshot:
    """A repository at one moment."""

    repository: RepositoryRow
    refs: list[RefRow]  # sorted by name
    packs: list[PackRow]  # the oldest first
    generation: int  # of the state file that was read
    applied_index: int


@dataclasses.dataclass(frozen=True, slots=True)
class RepositoryChanges:
    """A repository at one moment, its refs as what has become of them since an older revision."""

    repository: RepositoryRow
    refs: dict[bytes, bytes | None]  # by name, None: gone
    packs: list[PackRow]  # the oldest first


def repository_row(row: Sequence[Any]) -> RepositoryRow:
    """From the columns in the order of RepositoryRow's fields, the object format as its number."""
    identity, incarnation, counter, object_format, *rest = row
    return RepositoryRow(
        identity, incarnation, counter, ObjectFormat.from_number(object_format), *rest
    )
