"""Opening a journal: reads every segment, verifies it, cuts a torn end, refuses damage.

Owns: what the records of a journal mean when they are read in order, and the rewriting of the last
segment. Must not know how records get written while the node runs (journal.py), nor what entries
hold.

No segment is changed before everything has passed. Then the last segment is written anew and
synced: after a failed fsync its pages may read well from memory without being on the disk, and
acknowledging on that ground would be a lie. Segments before it need none of this, because the
journal begins a segment only after every sync of the one before succeeded, and ends the process
when one fails.
"""

from __future__ import annotations

import dataclasses
import itertools
import secrets
from pathlib import Path

from quorepo.cluster.raft.durable import (
    TEMPORARY_SUFFIX,
    fatal_on_os_error,
    replace_durably,
)
from quorepo.cluster.raft.log_index import LogIndex, Place
from quorepo.cluster.raft.segment import (
    BATCH_BYTES,
    SALT_BYTES,
    Broken,
    HeaderError,
    Kind,
    LogBounds,
    Record,
    SegmentHeader,
    decode_header,
    encode_batch,
    encode_header,
    is_torn,
    scan,
    segment_name,
    segment_number,
)
from quorepo.storage.errors import FatalError

__all__ = [
    "CREATE",
    "RECOVER",
    "ROLL",
    "Recovered",
    "Segment",
    "create_segment",
    "damaged",
    "recover",
]

# Failpoint prefixes of the files that are written here.
CREATE = "journal.create"
RECOVER = "journal.recover"
ROLL = "journal.roll"


@dataclasses.dataclass(frozen=True, slots=True)
class Segment:
    """A segment file that has passed."""

    path: Path
    header: SegmentHeader


@dataclasses.dataclass(slots=True)
class Recovered:
    """A journal as it was found: every entry in `logs` is on the disk."""

    logs: dict[int, LogIndex]
    segments: dict[int, Segment]  # in ascending order; the last is the one to append to
    last_bytes: int  # length of the last segment
    last_batch: int  # number of the last batch in it


@dataclasses.dataclass(slots=True)
class _Tail:
    """What is to be kept of the last segment."""

    data: bytes
    header: SegmentHeader
    kept_bytes: int
    last_batch: int  # number of the last batch of which something is kept
    cut_batch_offset: int | None  # of the batch that is kept in part


def damaged(path: Path, offset: int, what: str) -> FatalError:
    """The refusal to go on with a damaged segment."""
    return FatalError(
        f"journal segment {str(path)!r} is damaged at byte {offset}: {what}; entries that this "
        "node acknowledged may be lost, so it must not vote or answer with what is left: check the "
        "disk, move the data directory away, and let the node rejoin with an empty one (the other "
        "nodes have the data)",
        exit_code=FatalError.EXIT_IO_ERROR,
    )


def create_segment(
    directory: Path,
    number: int,
    previous_bytes: int,
    logs: dict[int, LogIndex],
    failpoint_prefix: str,
) -> tuple[Segment, int]:
    """Begins a segment; durable on return.

    Returns:
        The segment and its length in bytes.
    """
    header = SegmentHeader(
        number, previous_bytes, secrets.token_bytes(SALT_BYTES), _bounds_of(logs)
    )
    path = directory / segment_name(number)
    data = encode_header(header)
    replace_durably(path, [data], failpoint_prefix)
    return Segment(path, header), len(data)


def recover(directory: Path) -> Recovered:
    """Reads and verifies the journal in `directory`, which the caller has locked.

    Raises:
        FatalError: damage or an I/O error (EXIT_IO_ERROR), or a newer format (EXIT_CONFIG).
    """
    numbers = _segment_numbers(directory)
    if not numbers:
        segment, size = create_segment(directory, 1, 0, {}, CREATE)
        return Recovered({}, {1: segment}, size, 0)
    logs: dict[int, LogIndex] = {}
    segments: dict[int, Segment] = {}
    previous_bytes: int | None = None
    for number in numbers:
        path = directory / segment_name(number)
        with fatal_on_os_error("read", path):
            data = path.read_bytes()
        header, header_bytes = _read_header(path, number, data)
        _check_follows(path, header, logs, previous_bytes)
        if previous_bytes is None:
            logs = {g: LogIndex.located_nowhere(bounds) for g, bounds in header.logs.items()}
        segments[number] = Segment(path, header)
        tail = _replay(segments[number], data, header_bytes, logs, is_last=number == numbers[-1])
        previous_bytes = len(data)
    _check_complete(segments, logs)
    last = segments[numbers[-1]]
    last_bytes, last_batch = _rewrite(last.path, tail)
    for log in logs.values():
        log.durable_index = log.last_index
    return Recovered(logs, segments, last_bytes, last_batch)


def _segment_numbers(directory: Path) -> list[int]:
    """The segments' numbers in order; files that a crash left half-written are removed."""
    numbers = []
    with fatal_on_os_error("list", directory):
        for path in directory.iterdir():
            if segment_number(path.name.removesuffix(TEMPORARY_SUFFIX)) is None:
                continue
            if path.name.endswith(TEMPORARY_SUFFIX):
                path.unlink()
            elif (number := segment_number(path.name)) is not None:
                numbers.append(number)
    numbers.sort()
    for before, after in itertools.pairwise(numbers):
        if after != before + 1:
            raise damaged(directory / segment_name(before + 1), 0, "the file is missing")
    return numbers


def _read_header(path: Path, number: int, data: bytes) -> tuple[SegmentHeader, int]:
    try:
        header, header_bytes = decode_header(data)
    except HeaderError as error:
        if error.newer_version:
            raise FatalError(
                f"journal segment {str(path)!r} cannot be read: {error}; start this node with the "
                "release that wrote it, or a newer one",
                exit_code=FatalError.EXIT_CONFIG,
            ) from error
        raise damaged(path, 0, str(error)) from error
    if header.number != number:
        raise damaged(path, 0, f"its header says that it is segment {header.number}")
    return header, header_bytes


def _check_follows(
    path: Path, header: SegmentHeader, logs: dict[int, LogIndex], previous_bytes: int | None
) -> None:
    """What the header says of the segments before must be what was read from them."""
    if previous_bytes is None:
        return
    if header.previous_bytes != previous_bytes:
        raise damaged(
            path.with_name(segment_name(header.number - 1)),
            min(previous_bytes, header.previous_bytes),
            f"it had {header.previous_bytes} bytes when it was closed and has {previous_bytes} now",
        )
    if dict(header.logs) != _bounds_of(logs):
        raise damaged(path, 0, "its table of groups is not what the segments before hold")


def _bounds_of(logs: dict[int, LogIndex]) -> dict[int, LogBounds]:
    return {group: log.bounds for group, log in sorted(logs.items()) if log.bounds is not None}


def _replay(
    segment: Segment, data: bytes, header_bytes: int, logs: dict[int, LogIndex], *, is_last: bool
) -> _Tail:
    """Applies a segment's records to `logs`; returns what to keep of it."""
    kept_bytes = header_bytes
    last_batch = 0
    batch: Record | None = None
    for item in scan(data, segment.header, header_bytes):
        if isinstance(item, Broken):
            if not is_last or not is_torn(data, segment.header, item):
                raise damaged(segment.path, item.offset, item.what)
            # Of a batch that is cut right behind its BATCH record nothing is worth keeping.
            if batch is not None and item.offset == batch.end and batch.offset == item.batch_offset:
                return _Tail(data, segment.header, batch.offset, last_batch - 1, None)
            cut = item.batch_offset if item.batch_end is not None else None
            return _Tail(data, segment.header, item.offset, last_batch, cut)
        if item.kind == Kind.BATCH:
            batch = item
            last_batch = item.index
        else:
            log = logs.get(item.group)
            if log is None:
                log = logs[item.group] = LogIndex()
            reason = _apply(log, item, segment.header.number)
            if reason:
                raise damaged(segment.path, item.offset, f"group {item.group}: {reason}")
        kept_bytes = item.end
    return _Tail(data, segment.header, kept_bytes, last_batch, None)


def _apply(log: LogIndex, record: Record, segment: int) -> str:
    """Does to the log what the record says; a reason when it cannot be so."""
    index, term = record.index, record.term
    place = Place(segment, record.offset, record.data_bytes)
    if record.kind == Kind.ENTRY:
        if not log.accepts(index) or term < log.last_term:
            return f"entry {index} of term {term} follows {log.last_index} of {log.last_term}"
        log.append(index, term, place)
    elif record.kind == Kind.TRUNCATE:
        if index > log.last_index:
            return f"entries from {index} on are removed, and the last one is {log.last_index}"
        log.truncate_from(index, term)
    elif record.kind == Kind.DROP:
        if index not in log:
            return f"entries before {index} are dropped from {log.first_index}..{log.last_index}"
        log.drop_prefix(index)
    elif record.kind == Kind.MOVED:
        if not log.move(index, term, place):
            return f"entry {index} of term {term} is not a copy of what was there"
    else:
        return f"a record of the unknown kind {record.kind}"
    return ""


def _check_complete(segments: dict[int, Segment], logs: dict[int, LogIndex]) -> None:
    """Every entry must be in a segment that is there; somebody may have removed old ones."""
    for group, log in sorted(logs.items()):
        if not log.is_complete:
            first = min(segments)
            raise damaged(
                segments[first].path.with_name(segment_name(first - 1)),
                0,
                f"the file is missing, with entries of group {group} from {log.first_index} on",
            )


def _rewrite(path: Path, tail: _Tail) -> tuple[int, int]:
    """Writes the last segment anew as far as it passed; returns its length and its last batch.

    An empty batch closes it: so damage to what is acknowledged from here on can be told from a
    tear.
    """
    header, kept = tail.header, memoryview(tail.data)[: tail.kept_bytes]
    chunks = [bytes(kept)]
    if tail.cut_batch_offset is not None:
        begin = tail.cut_batch_offset
        rest = kept[begin + BATCH_BYTES :]
        batch = encode_batch(header, tail.last_batch, begin, len(rest))
        chunks = [bytes(kept[:begin]), batch, bytes(rest)]
    last_batch = tail.last_batch + 1
    chunks.append(encode_batch(header, last_batch, tail.kept_bytes, 0))
    replace_durably(path, chunks, RECOVER)
    return tail.kept_bytes + BATCH_BYTES, last_batch
