"""What stands before the zlib stream of a pack entry (gitformat-pack(5)).

Owns the encodings of type, size and distance to a delta's base. Reading whole headers is
`packfile.py`'s matter.
"""

from __future__ import annotations

__all__ = ["encode_distance", "encode_header", "split_ofs_delta"]


def split_ofs_delta(data: bytes) -> tuple[int, int, int]:
    """(bytes of type and size, distance to the base, where the zlib stream begins)."""
    position = 0
    while data[position] & 0x80:
        position += 1
    header_bytes = position = position + 1
    byte = data[position]
    distance = byte & 0x7F
    while byte & 0x80:
        position += 1
        byte = data[position]
        distance = (distance + 1) << 7 | byte & 0x7F
    return header_bytes, distance, position + 1


def encode_header(type_num: int, size: int) -> bytes:
    """Type in bits 4-6 of the first byte, the size in 4 bits and then 7 bits per byte."""
    byte = type_num << 4 | size & 15
    size >>= 4
    encoded = bytearray()
    while size:
        encoded.append(byte | 0x80)
        byte = size & 0x7F
        size >>= 7
    encoded.append(byte)
    return bytes(encoded)


def encode_distance(distance: int) -> bytes:
    """The offset encoding of OFS_DELTA: most significant group first, all but the last one less."""
    encoded = bytearray([distance & 0x7F])
    distance >>= 7
    while distance:
        distance -= 1
        encoded.append(distance & 0x7F | 0x80)
        distance >>= 7
    encoded.reverse()
    return bytes(encoded)
