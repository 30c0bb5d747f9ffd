"""The bytes of a fetch's answer: acknowledgments, shallow lines and the frames around the pack.

Pure encoders; the pack itself is built by `pack_builder.py` in a worker. The order of the
sections and the acknowledgment rules are those of git's upload-pack.c.
"""

from __future__ import annotations

from collections.abc import Iterable

from quorepo.storage.git.fetch_request import FetchRequest, MultiAck, Negotiation
from quorepo.storage.git.pktline import DELIM, FLUSH, encode, error_packet

__all__ = [
    "BAND_ERROR",
    "BAND_PACK",
    "BAND_PROGRESS",
    "KEEPALIVE",
    "error_frames",
    "fetch_epilogue",
    "fetch_preamble",
    "pack_frames",
    "progress_frames",
    "request_error",
    "sends_pack",
    "sideband",
]

BAND_PACK = 1
BAND_PROGRESS = 2
BAND_ERROR = 3

# An empty frame of band 1: git and all clients skip it; proxies see that the connection lives.
KEEPALIVE = b"0005\x01"


def sends_pack(request: FetchRequest, negotiation: Negotiation) -> bool:
    """Whether the answer ends with a pack, or with acknowledgments that ask for more haves."""
    if not request.wants or not request.negotiates:
        return False
    if request.done:
        return True
    if request.version == 2:
        return not request.haves or (negotiation.ready and not request.wait_for_done)
    return (
        request.no_done
        and request.multi_ack is MultiAck.DETAILED
        and negotiation.ready
        and bool(negotiation.common)
    )


def fetch_preamble(request: FetchRequest, negotiation: Negotiation) -> bytes:
    """Everything before the pack, or the whole answer when no pack follows (`sends_pack`)."""
    if request.version == 2:
        return _preamble_v2(request, negotiation)
    if not request.wants:
        return b""
    shallow = b""
    if request.deepens:
        lines = _shallow_lines(negotiation, line_end=b"")
        shallow = b"".join(encode(line) for line in lines) + FLUSH
    if not request.negotiates:
        return shallow
    return shallow + _acknowledgments_v0(request, negotiation)


def fetch_epilogue(request: FetchRequest) -> bytes:
    """What follows the pack's last byte."""
    return FLUSH if request.side_band else b""


def sideband(data: bytes, band: int, packet_bytes_max: int) -> bytes:
    """`data` cut into side-band frames of at most `packet_bytes_max` bytes each, header and all."""
    view = memoryview(data)
    step = packet_bytes_max - 5
    frames: list[bytes | memoryview] = []
    for start in range(0, len(view), step):
        piece = view[start : start + step]
        frames.append(b"%04x%c" % (len(piece) + 5, band))
        frames.append(piece)
    return b"".join(frames)


def pack_frames(request: FetchRequest, data: bytes) -> bytes:
    """Pack bytes as this client reads them: in band 1, or bare."""
    return sideband(data, BAND_PACK, request.side_band) if request.side_band else data


def progress_frames(request: FetchRequest, text: str) -> bytes:
    """Progress in band 2, which git prints after `remote: `; nothing for a client that has no
    band or wants none. `text` ends with a newline or a carriage return.
    """
    if not request.side_band or request.no_progress:
        return b""
    return sideband(text.encode("utf-8", "replace"), BAND_PROGRESS, request.side_band)


def error_frames(request: FetchRequest, message: str) -> bytes:
    """A failure after the preamble was sent: band 3. A client without side-band can only be cut
    off.
    """
    if not request.side_band:
        return b""
    text = message.encode("utf-8", "replace")[: request.side_band - 6]
    return sideband(text + b"\n", BAND_ERROR, request.side_band) + FLUSH


def request_error(request: FetchRequest, message: str) -> bytes:
    """A refusal before anything was sent: an `ERR` packet, in band 3 where the client asked for
    bands everywhere. git prints `remote error: <message>`.
    """
    if not request.sideband_all:
        return error_packet(message)
    text = " ".join(message.split()).encode("utf-8", "replace")
    return sideband(text[: request.side_band - 5], BAND_ERROR, request.side_band)


def _preamble_v2(request: FetchRequest, negotiation: Negotiation) -> bytes:
    """With `sideband-all` every line goes into band 1; markers stay as they are
    (pkt-line.c, packet_writer_write).
    """
    sections = _sections_v2(request, negotiation)
    if not request.sideband_all:
        return b"".join(s if s in (FLUSH, DELIM) else encode(s) for s in sections)
    return b"".join(
        s if s in (FLUSH, DELIM) else sideband(s, BAND_PACK, request.side_band) for s in sections
    )


def _sections_v2(request: FetchRequest, negotiation: Negotiation) -> list[bytes]:
    """Lines and markers, not framed yet."""
    lines: list[bytes] = []
    if not request.wants and not request.haves:
        return lines
    if request.haves and not request.done:
        lines.append(b"acknowledgments\n")
        lines += _ack_lines(negotiation.common, b"")
        if not negotiation.common:
            lines.append(b"NAK\n")
        if not sends_pack(request, negotiation):
            return [*lines, FLUSH]
        lines += [b"ready\n", DELIM]
    if not request.wants:
        return lines
    if request.deepens or request.client_shallow:
        lines.append(b"shallow-info\n")
        lines += _shallow_lines(negotiation, line_end=b"\n")
        lines.append(DELIM)
    if request.wanted_refs:
        lines.append(b"wanted-refs\n")
        lines += [
            oid.hex().encode("ascii") + b" " + name + b"\n" for oid, name in request.wanted_refs
        ]
        lines.append(DELIM)
    lines.append(b"packfile\n")
    return lines


def _acknowledgments_v0(request: FetchRequest, negotiation: Negotiation) -> bytes:
    common = negotiation.common
    mode = request.multi_ack
    packets: list[bytes] = []
    if mode is MultiAck.NONE:
        packets += _acks(common[:1], b"")
        if not common:
            packets.append(encode(b"NAK\n"))
        return b"".join(packets)
    if mode is MultiAck.DETAILED:
        packets += _acks(common, b" common")
    else:
        packets += _acks(_continued(request, negotiation), b" continue")
    if request.done:
        packets += _acks(common[-1:], b"") or [encode(b"NAK\n")]
        return b"".join(packets)
    if mode is MultiAck.DETAILED and negotiation.ready:
        packets += _acks(common[-1:], b" ready")
    packets.append(encode(b"NAK\n"))
    if sends_pack(request, negotiation):
        packets += _acks(common[-1:], b"")
    return b"".join(packets)


def _continued(request: FetchRequest, negotiation: Negotiation) -> list[bytes]:
    """`multi_ack` has no word for "ready": git acknowledges what it does not have, so that the
    client stops going down that line of history.
    """
    if negotiation.ready:
        return list(request.haves)
    return list(negotiation.common)


def _acks(oids: Iterable[bytes], state: bytes) -> list[bytes]:
    return [encode(line) for line in _ack_lines(oids, state)]


def _ack_lines(oids: Iterable[bytes], state: bytes) -> list[bytes]:
    return [b"ACK " + oid.hex().encode("ascii") + state + b"\n" for oid in oids]


def _shallow_lines(negotiation: Negotiation, line_end: bytes) -> list[bytes]:
    lines = [b"shallow " + oid.hex().encode("ascii") for oid in negotiation.shallow]
    lines += [b"unshallow " + oid.hex().encode("ascii") for oid in negotiation.unshallow]
    return [line + line_end for line in lines]
