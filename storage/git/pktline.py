"""pkt-lines: the framing of every git protocol message.

Owns the length arithmetic and nothing else: no protocol words are known here. The format is git's
Documentation/gitprotocol-common.txt: four hex digits of length (themselves included), then the
payload; lengths 0, 1 and 2 are the flush, delim and response-end packets.
"""

from __future__ import annotations

import enum
from collections.abc import Iterator

from quorepo.storage.errors import InvalidArgument

__all__ = [
    "DELIM",
    "FLUSH",
    "LINE_BYTES_MAX",
    "PACKET_BYTES_MAX",
    "RESPONSE_END",
    "Marker",
    "Packet",
    "PktLineReader",
    "encode",
    "error_packet",
    "read_all",
]

FLUSH = b"0000"
DELIM = b"0001"
RESPONSE_END = b"0002"

# LARGE_PACKET_MAX of git's pkt-line.h: 65520 bytes in all, 65516 of payload.
PACKET_BYTES_MAX = 65520
LINE_BYTES_MAX = PACKET_BYTES_MAX - 4


class Marker(enum.Enum):
    """A packet without a payload."""

    FLUSH = 0
    DELIM = 1
    RESPONSE_END = 2


Packet = bytes | Marker

_MARKERS = {0: Marker.FLUSH, 1: Marker.DELIM, 2: Marker.RESPONSE_END}
_HEX_DIGITS = frozenset(b"0123456789abcdefABCDEF")


def encode(payload: bytes) -> bytes:
    """One data packet. `payload` is at most `LINE_BYTES_MAX` bytes; more is a bug of the caller."""
    if len(payload) > LINE_BYTES_MAX:
        raise ValueError(f"a pkt-line holds {LINE_BYTES_MAX} bytes, not {len(payload)}")
    return b"%04x" % (len(payload) + 4) + payload


def error_packet(message: str) -> bytes:
    """An `ERR` packet, which ends the conversation; git prints `remote error: <message>`."""
    text = " ".join(message.split()).encode("utf-8", "replace")
    return encode(b"ERR " + text[: LINE_BYTES_MAX - 4])


class PktLineReader:
    """Incremental parser: `feed` bytes in pieces of any size, take packets with `next_packet`.

    What follows the packets (a pack) is taken with `take_rest`. Memory is bounded by what was fed
    and not yet taken; a single packet never exceeds `PACKET_BYTES_MAX`.
    """

    def __init__(self) -> None:
        self._buffer = bytearray()
        self._position = 0

    @property
    def pending_bytes(self) -> int:
        """Bytes fed and not taken yet."""
        return len(self._buffer) - self._position

    def feed(self, data: bytes) -> None:
        """Add bytes to the input."""
        if self._position:
            del self._buffer[: self._position]
            self._position = 0
        self._buffer += data

    def next_packet(self) -> Packet | None:
        """The next packet, or None when more bytes are needed first.

        Raises InvalidArgument on a length that is not one.
        """
        start = self._position
        header = self._buffer[start : start + 4]
        if not _HEX_DIGITS.issuperset(header):
            raise InvalidArgument(f"protocol error: bad line length character: {bytes(header)!r}")
        if len(header) < 4:
            return None
        length = int(header, 16)
        if length in _MARKERS:
            self._position = start + 4
            return _MARKERS[length]
        if length < 4 or length > PACKET_BYTES_MAX:
            raise InvalidArgument(f"protocol error: bad line length {length}")
        if len(self._buffer) < start + length:
            return None
        self._position = start + length
        return bytes(self._buffer[start + 4 : start + length])

    def take_rest(self) -> bytes:
        """Everything fed and not taken as a packet; the reader is empty afterwards."""
        rest = bytes(self._buffer[self._position :])
        self._buffer.clear()
        self._position = 0
        return rest


def read_all(body: bytes) -> Iterator[Packet]:
    """All packets of a complete request body. Raises InvalidArgument when it ends inside of one."""
    reader = PktLineReader()
    reader.feed(body)
    while (packet := reader.next_packet()) is not None:
        yield packet
    if reader.pending_bytes:
        raise InvalidArgument("protocol error: the request ends inside a pkt-line")
