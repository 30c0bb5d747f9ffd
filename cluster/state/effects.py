"""What the parts of the machine share: a command's context, its effects on disk, checksums.

Pure: no clock, no randomness, no environment, no I/O beyond the connection that the context
carries.
"""

from __future__ import annotations

import dataclasses
import hashlib
import sqlite3
from collections.abc import Iterable
from typing import TYPE_CHECKING

from quorepo.internal.v1 import log_pb2
from quorepo.storage.objectformat import ObjectFormat

if TYPE_CHECKING:
    from quorepo.cluster.state.machine_batch import Batch

__all__ = [
    "UPDATE_REPOSITORY",
    "Applied",
    "Context",
    "PackPromotion",
    "PackStorage",
    "next_checksum",
    "object_format_of",
]

UPDATE_REPOSITORY = (
    "UPDATE repositories SET counter = ?, checksum = ?, head = ?, head_open = ?,"
    " deleted_ms = ?, detached_head = ?, description = ?, read_only = ?, purge_ms = ?,"
    " deleted_path = ? WHERE repository_id = ?"
)

PackPromotion = tuple[str, bytes, ObjectFormat]
PackStorage = tuple[str, log_pb2.PackAddition, ObjectFormat]


@dataclasses.dataclass(frozen=True, slots=True)
class Applied:
    """What applying one entry gave: the proposer's answer, and work on files for the caller.

    `promote` (repository id, pack digest, object format) is to be done before the SQLite commit,
    `retire` (repository ids) and `retire_packs` (repository id, pack digest) after it is durable.
    All must be idempotent: a crash makes them happen again. `store` is like `promote`, for packs
    whose bytes are in the entry.
    """

    result: log_pb2.Result | None = None  # None for entries that are no command
    promote: tuple[PackPromotion, ...] = ()
    store: tuple[PackStorage, ...] = ()
    retire: tuple[str, ...] = ()
    retire_packs: tuple[tuple[str, bytes], ...] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class Context:
    """One command on its way through the machine."""

    connection: sqlite3.Connection
    batch: Batch
    log_index: int
    time_ms: int  # log time
    actor: str
    request_id: bytes


def object_format_of(value: int) -> ObjectFormat | None:
    """The object format of a protobuf or database value; None for an unknown one."""
    if value == log_pb2.OBJECT_FORMAT_SHA1:
        return ObjectFormat.SHA1
    if value == log_pb2.OBJECT_FORMAT_SHA256:
        return ObjectFormat.SHA256
    return None


def next_checksum(previous: bytes, fields: Iterable[bytes]) -> bytes:
    """SHA-256 over the previous checksum and the fields, each behind its length in 8 bytes."""
    digest = hashlib.sha256(previous)
    for field in fields:
        digest.update(len(field).to_bytes(8, "big"))
        digest.update(field)
    return digest.digest()
