"""The bytes of a journal segment, and whether a broken end is torn or damaged.

Owns the format. Pure: bytes in, values out; no file is opened here. Must not know what a record
means for a group's log (recovery.py) nor what the entries hold.

    segment   header, then batches until the end of the file header    magic, version, header
    length, segment number, length of the segment before, salt, crc32 of
              these (this part is the same in every version), then one line per group that had
              entries when the segment began (group, first index, last index, last term), then
              crc32 of all
    batch     one BATCH record, then the records of one sync: written by one write, made durable by
    one
              fdatasync, and nothing of the next batch is written before that returned
    record    crc32, length of the data, kind, group, index, term, data

The crc32 of a record covers everything behind it and starts from the segment's random salt, so
that a record of another segment (a disk block that was used before) never passes. A BATCH record
carries its number, its own offset, the salt and the length of the rest of its batch.

Torn or damaged --------------- Only the last batch of the last segment can be torn: every byte
before it was synced before it began. So

1. whatever is broken in an earlier segment, or in a batch that is followed by so much as one more
byte, is
   damage to acknowledged data: refuse. Where the BATCH record itself is broken and the batch's end
   unknown, a later BATCH record that passes (found by its salt) proves the same.
2. The last batch may have been acknowledged too, if its fdatasync returned; the file alone cannot
tell. But
   it can tell what a crash leaves: after the end of the process alone a prefix of the batch (the
   file ends too early); after a power cut any of its sectors may be missing, and sectors of a
   growing file that never reached the disk read as zeros. So a batch that ends too early, or that
   has a sector of zeros at or behind the first broken record, is torn and cut there: its fdatasync
   did not return, nothing in it was acknowledged. One that is complete, has no such hole and still
   does not pass is damage: refuse.

This takes it that a disk writes a sector of 512 bytes whole or not at all.

What remains undetected: a tail that was acknowledged and later vanished in just the shape of a
tear. The state machine's applied index (checked by the engine) catches it once the entries were
applied. And a file system that shows old blocks instead of zeros after a power cut (ext4
data=writeback) gets a refusal where a cut would do: safe, and an operator's business. Rejected:
cutting at the first bad record wherever it is (silently forgets acknowledged entries), and
refusing everything that no crash of a process alone can leave (a power cut of all nodes would
leave a cluster that does not start).
"""

from __future__ import annotations

import dataclasses
import enum
import re
import struct
import zlib
from collections.abc import Iterator, Mapping

__all__ = [
    "BATCH_BYTES",
    "FORMAT_VERSION",
    "RECORD_BYTES_MAX",
    "RECORD_HEADER_BYTES",
    "SALT_BYTES",
    "Broken",
    "HeaderError",
    "Kind",
    "LogBounds",
    "Record",
    "SegmentHeader",
    "decode_header",
    "decode_record",
    "encode_batch",
    "encode_header",
    "encode_record",
    "is_torn",
    "scan",
    "segment_name",
    "segment_number",
]

FORMAT_VERSION = 1
SALT_BYTES = 16
# A length above this is not a record; far above the engine's limit on a command.
RECORD_BYTES_MAX = 64 * 1024 * 1024

_MAGIC = b"quorepoJ"
_SECTOR_BYTES = 512  # the smallest unit that a disk writes
_CRC = struct.Struct("<I")
_PREFIX = struct.Struct(f"<8sIIQQ{SALT_BYTES}s")  # magic .. salt
_GROUP_LINE = struct.Struct("<IQQQ")
_RECORD = struct.Struct("<IIB3xIQQ")  # crc, data length, kind, group, index, term
_RECORD_TAIL = struct.Struct("<IB3xIQQ")  # the same without the crc: what it covers before the data
_BATCH_DATA = struct.Struct(f"<{SALT_BYTES}sQ")  # salt, bytes of the batch behind its BATCH record
_NAME = re.compile(r"([0-9]{10})\.segment")

RECORD_HEADER_BYTES = _RECORD.size
BATCH_BYTES = _RECORD.size + _BATCH_DATA.size


class Kind(enum.IntEnum):
    """What a record says."""

    BATCH = 1  # a sync begins here; index = its number in the segment, term = its own offset
    ENTRY = 2  # an entry is appended
    TRUNCATE = (
        3  # the group's entries from index on are gone; at or below its first: the log is empty
    )
    DROP = 4  # the group's entries before index are gone
    MOVED = 5  # a copy of an entry whose segment is about to be removed


@dataclasses.dataclass(frozen=True, slots=True)
class LogBounds:
    """What one group's log held at some moment; indexes inclusive."""

    first_index: int
    last_index: int
    last_term: int


@dataclasses.dataclass(frozen=True, slots=True)
class SegmentHeader:
    """The beginning of a segment."""

    number: int
    previous_bytes: int  # length of the segment before this one; 0 when there was none
    salt: bytes
    logs: Mapping[int, LogBounds]  # every group that had entries when this segment began

    @property
    def seed(self) -> int:
        """What the crc32 of this segment's records starts from."""
        return zlib.crc32(self.salt)


@dataclasses.dataclass(frozen=True, slots=True)
class Record:
    """One record and where it stands."""

    kind: int
    group: int
    index: int
    term: int
    offset: int  # of its first byte in the segment
    data_bytes: int

    @property
    def data_offset(self) -> int:
        return self.offset + RECORD_HEADER_BYTES

    @property
    def end(self) -> int:
        return self.offset + RECORD_HEADER_BYTES + self.data_bytes


@dataclasses.dataclass(frozen=True, slots=True)
class Broken:
    """The first place of a segment that does not pass."""

    offset: int
    batch_offset: int  # where its batch begins
    batch_end: int | None  # where its batch should end; None when the BATCH record itself is broken
    what: str


class HeaderError(ValueError):
    """A header that cannot be used; `newer_version` when only its version is the reason."""

    def __init__(self, message: str, *, newer_version: bool = False) -> None:
        super().__init__(message)
        self.newer_version = newer_version


def segment_name(number: int) -> str:
    """The file name of segment `number`."""
    return f"{number:010d}.segment"


def segment_number(name: str) -> int | None:
    """The number in a segment's file name; None for other files."""
    match = _NAME.fullmatch(name)
    return int(match[1]) if match else None


def encode_header(header: SegmentHeader) -> bytes:
    """The bytes that a segment begins with."""
    lines = b"".join(
        _GROUP_LINE.pack(group, log.first_index, log.last_index, log.last_term)
        for group, log in sorted(header.logs.items())
    )
    total_bytes = _PREFIX.size + _CRC.size + len(lines) + _CRC.size
    prefix = _PREFIX.pack(
        _MAGIC, FORMAT_VERSION, total_bytes, header.number, header.previous_bytes, header.salt
    )
    body = prefix + _CRC.pack(zlib.crc32(prefix)) + lines
    return body + _CRC.pack(zlib.crc32(body))


def decode_header(data: bytes) -> tuple[SegmentHeader, int]:
    """Reads the header of a segment.

    Returns:
        The header and its length in bytes: where the first batch begins.

    Raises:
        HeaderError: damaged, no segment at all, or of a newer version.
    """
    prefix_end = _PREFIX.size + _CRC.size
    if len(data) < prefix_end:
        raise HeaderError(f"the header is cut off after {len(data)} bytes")
    magic, version, total_bytes, number, previous_bytes, salt = _PREFIX.unpack_from(data)
    if magic != _MAGIC:
        raise HeaderError("it does not begin as a journal segment does")
    if zlib.crc32(data[: _PREFIX.size]) != _CRC.unpack_from(data, _PREFIX.size)[0]:
        raise HeaderError("the checksum of the header is wrong")
    if version > FORMAT_VERSION:
        raise HeaderError(
            f"it has format version {version}, and this program knows up to {FORMAT_VERSION}",
            newer_version=True,
        )
    lines_end = total_bytes - _CRC.size
    if version < 1 or lines_end < prefix_end or (lines_end - prefix_end) % _GROUP_LINE.size:
        raise HeaderError(f"the header has version {version} and {total_bytes} bytes")
    if len(data) < total_bytes:
        raise HeaderError(f"the header is cut off after {len(data)} of {total_bytes} bytes")
    if zlib.crc32(data[:lines_end]) != _CRC.unpack_from(data, lines_end)[0]:
        raise HeaderError("the checksum of the header's table of groups is wrong")
    logs = {
        group: LogBounds(first_index, last_index, last_term)
        for group, first_index, last_index, last_term in _GROUP_LINE.iter_unpack(
            data[prefix_end:lines_end]
        )
    }
    return SegmentHeader(number, previous_bytes, salt, logs), total_bytes


def encode_record(seed: int, kind: int, group: int, index: int, term: int, data: bytes) -> bytes:
    """One record with its data; the offset does not matter."""
    tail = _RECORD_TAIL.pack(len(data), kind, group, index, term)
    return b"".join((_CRC.pack(zlib.crc32(data, zlib.crc32(tail, seed))), tail, data))


def encode_batch(header: SegmentHeader, number: int, offset: int, batch_bytes: int) -> bytes:
    """The BATCH record at `offset` before `batch_bytes` bytes of records; BATCH_BYTES long."""
    data = _BATCH_DATA.pack(header.salt, batch_bytes)
    return encode_record(header.seed, Kind.BATCH, 0, number, offset, data)


def decode_record(data: bytes, offset: int, seed: int) -> Record | None:
    """The record at `offset`; None when it is cut off or its checksum is wrong."""
    data_offset = offset + RECORD_HEADER_BYTES
    if data_offset > len(data):
        return None
    crc, data_bytes, kind, group, index, term = _RECORD.unpack_from(data, offset)
    end = data_offset + data_bytes
    if data_bytes > RECORD_BYTES_MAX or end > len(data):
        return None
    if zlib.crc32(memoryview(data)[offset + _CRC.size : end], seed) != crc:
        return None
    return Record(kind, group, index, term, offset, data_bytes)


def scan(data: bytes, header: SegmentHeader, header_bytes: int) -> Iterator[Record | Broken]:
    """The records of a segment in order, BATCH records too; a `Broken`, if any, comes last."""
    seed = header.seed
    offset = header_bytes
    number = 0
    while offset < len(data):
        batch = decode_record(data, offset, seed)
        number += 1
        if batch is None:
            yield Broken(offset, offset, None, "a batch that does not pass its checksum")
            return
        batch_end = _batch_end(data, batch, header, number)
        if batch_end is None:
            yield Broken(offset, offset, None, f"a record where batch {number} should begin")
            return
        yield batch
        position = batch.end
        while position < batch_end:
            record = decode_record(data, position, seed)
            if record is None or record.end > batch_end or record.kind == Kind.BATCH:
                yield Broken(
                    position, offset, batch_end, "a record that does not pass its checksum"
                )
                return
            yield record
            position = record.end
        offset = batch_end


def _batch_end(data: bytes, record: Record, header: SegmentHeader, number: int) -> int | None:
    """Where the batch ends that `record` begins; None unless it is the BATCH record to come."""
    if record.kind != Kind.BATCH or record.data_bytes != _BATCH_DATA.size:
        return None
    if record.index != number or record.term != record.offset:
        return None
    salt, batch_bytes = _BATCH_DATA.unpack_from(data, record.data_offset)
    return record.end + int(batch_bytes) if salt == header.salt else None


def is_torn(data: bytes, header: SegmentHeader, broken: Broken) -> bool:
    """Whether a crash before the end of a sync explains `broken`, in the last segment.

    The reasoning is in the module's docstring. False means: acknowledged data is damaged.
    """
    if broken.batch_end is None:
        if _later_batch(data, header, broken.offset):
            return False
        ends_early = len(data) - broken.offset < BATCH_BYTES
    else:
        if len(data) > broken.batch_end:
            return False
        ends_early = len(data) < broken.batch_end and _runs_past_end(data, broken.offset)
    return ends_early or _has_hole(data, broken)


def _later_batch(data: bytes, header: SegmentHeader, offset: int) -> bool:
    """Whether a BATCH record that passes stands behind `offset`."""
    in_record = RECORD_HEADER_BYTES  # the salt is the first thing in a BATCH record's data
    position = data.find(header.salt, offset + 1 + in_record)
    while position >= 0:
        record = decode_record(data, position - in_record, header.seed)
        if record is not None and record.kind == Kind.BATCH and record.term == record.offset:
            return True
        position = data.find(header.salt, position + 1)
    return False


def _runs_past_end(data: bytes, offset: int) -> bool:
    data_offset = offset + RECORD_HEADER_BYTES
    if data_offset > len(data):
        return True
    data_bytes: int = _RECORD.unpack_from(data, offset)[1]
    return data_offset + data_bytes > len(data)


def _has_hole(data: bytes, broken: Broken) -> bool:
    """Whether a sector's share of the batch, at or behind the broken record, is all zeros."""
    sector = broken.offset - broken.offset % _SECTOR_BYTES
    while sector < len(data):
        share = data[max(sector, broken.batch_offset) : sector + _SECTOR_BYTES]
        if not any(share):
            return True
        sector += _SECTOR_BYTES
    return False
