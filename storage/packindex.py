"""Writing pack indexes, version 2 (gitformat-pack(5)).

Owns the layout of the file. dulwich's `write_pack_index_v2` writes the same bytes (a test says
so), but wants a list of tuples, a gigabyte for five million objects, and writes each number by
itself.
"""

from __future__ import annotations

import hashlib
import sys
from array import array
from collections.abc import Mapping, Sequence
from itertools import islice
from typing import IO

from quorepo.storage.objectformat import ObjectFormat

__all__ = ["write_index"]

_CHUNK = 8192  # objects
_LARGE_OFFSET = 1 << 31


def write_index(
    file: IO[bytes],
    objects: Mapping[bytes, int],
    offsets: Sequence[int],
    crc32s: Sequence[int],
    pack_trailer: bytes,
    object_format: ObjectFormat,
) -> tuple[int, bytes]:
    """Writes the index of a pack; returns its size in bytes and its SHA-256.

    `objects` maps every raw id to the number of its entry, by which `offsets` and `crc32s` are
    read; `pack_trailer` is the hash at the end of the pack.
    """
    own_trailer = object_format.new_hash()
    digest = hashlib.sha256()
    size = 0

    def put(chunk: bytes, *, hashed: bool = True) -> None:
        nonlocal size
        file.write(chunk)
        digest.update(chunk)
        size += len(chunk)
        if hashed:
            own_trailer.update(chunk)

    oids = sorted(objects)
    put(b"\xfftOc\x00\x00\x00\x02")
    put(_big_endian(_fanout(oids)))
    for start in range(0, len(oids), _CHUNK):
        put(b"".join(islice(oids, start, start + _CHUNK)))
    numbers = array("I", map(objects.__getitem__, oids))
    put(_big_endian(array("I", [crc32s[number] for number in numbers])))
    large = array("Q")
    small = array("I")
    for number in numbers:
        offset = offsets[number]
        if offset < _LARGE_OFFSET:
            small.append(offset)
        else:
            small.append(_LARGE_OFFSET + len(large))
            large.append(offset)
    put(_big_endian(small))
    put(_big_endian(large))
    put(pack_trailer)
    put(own_trailer.digest(), hashed=False)
    return size, digest.digest()


def _fanout(oids: Sequence[bytes]) -> array[int]:
    """How many ids start with a byte up to 0, 1, … 255."""
    counts = [0] * 256
    for oid in oids:
        counts[oid[0]] += 1
    total = 0
    table = array("I")
    for count in counts:
        total += count
        table.append(total)
    return table


def _big_endian(numbers: array[int]) -> bytes:
    if sys.byteorder == "little":
        numbers.byteswap()
    return numbers.tobytes()
