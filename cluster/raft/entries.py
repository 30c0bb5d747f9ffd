"""The bytes of a log entry: what kind it is, when the leader appended it, and its payload.

Owns the framing, which pysyncobj's first byte begins: 0 a command, 1 a no-op, 2 a configuration.
Then come 8 bytes, big-endian: the leader's Unix clock in ms. Only the entry at index 1, the same
in every log, is the single byte that pysyncobj writes. Must not know what a command means.
Nothing is pickled (defect X2): type 3, pysyncobj's VERSION, and everything unknown are refused.
"""

from __future__ import annotations

import struct

from google.protobuf.message import DecodeError

from quorepo.cluster.raft.interface import Entry, EntryKind
from quorepo.internal.v1 import log_pb2

__all__ = [
    "COMMAND",
    "CONFIGURATION",
    "FIRST_ENTRY",
    "NO_OP",
    "check_entry",
    "decode_configuration",
    "decode_entry",
    "encode_entry",
    "is_command",
    "is_configuration",
    "payload_of",
]

COMMAND = 0
NO_OP = 1
CONFIGURATION = 2

# What stands at index 1 of every log, with term 0: pysyncobj's own beginning of a journal.
FIRST_ENTRY = bytes([NO_OP])

_HEADER = struct.Struct(">BQ")
_KINDS: dict[int, EntryKind] = {COMMAND: "command", NO_OP: "noop", CONFIGURATION: "configuration"}


def encode_entry(kind: int, time_ms: int, payload: bytes) -> bytes:
    """The bytes that go into the log."""
    return _HEADER.pack(kind, time_ms) + payload


def decode_entry(group: int, index: int, term: int, data: bytes) -> Entry:
    """A log entry as the state machine sees it. Raises ValueError when it is not one."""
    if index == 1 and data == FIRST_ENTRY:
        return Entry(group, index, term, 0, "noop", b"")
    if len(data) < _HEADER.size:
        raise ValueError(f"log entry {index} has only {len(data)} bytes")
    kind, time_ms = _HEADER.unpack_from(data)
    if kind not in _KINDS:
        raise ValueError(f"log entry {index} has unknown type {kind}")
    return Entry(group, index, term, time_ms, _KINDS[kind], data[_HEADER.size :])


def check_entry(index: int, data: bytes) -> None:
    """Raises ValueError unless `data`, which a peer sent, may stand in a log at `index` > 1."""
    if len(data) < _HEADER.size:
        raise ValueError(f"log entry {index} has only {len(data)} bytes")
    if data[0] not in _KINDS:
        raise ValueError(f"log entry {index} has unknown type {data[0]}")
    if data[0] == CONFIGURATION:
        decode_configuration(data)


def is_command(data: bytes) -> bool:
    """Whether the entry is for the state machine."""
    return data[0] == COMMAND


def is_configuration(data: bytes) -> bool:
    """Whether the entry changes who the replicas are."""
    return data[0] == CONFIGURATION


def payload_of(data: bytes) -> bytes:
    """The entry without the framing."""
    return data[_HEADER.size :]


def decode_configuration(data: bytes) -> log_pb2.Configuration:
    """The configuration in an entry. Raises ValueError when it does not parse or nobody would
    vote."""
    try:
        configuration = log_pb2.Configuration.FromString(payload_of(data))
    except DecodeError as error:
        raise ValueError(f"a configuration entry does not parse: {error}") from error
    if not any(replica.votes for replica in configuration.replicas):
        raise ValueError("a configuration entry has no voters")
    return configuration
