"""Framing survives any way of cutting a stream, and garbage is an error, not an accident."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from quorepo.storage.errors import InvalidArgument
from quorepo.storage.git.fetch_answer import sideband
from quorepo.storage.git.pktline import (
    LINE_BYTES_MAX,
    Marker,
    Packet,
    PktLineReader,
    encode,
    error_packet,
    read_all,
)

PACKETS = st.lists(st.one_of(st.binary(max_size=200), st.sampled_from(list(Marker))), max_size=12)


def encoded(packets: list[Packet]) -> bytes:
    return b"".join(
        b"%04x" % packet.value if isinstance(packet, Marker) else encode(packet)
        for packet in packets
    )


@given(packets=PACKETS, rest=st.binary(max_size=20), cuts=st.lists(st.integers(0, 400)))
def test_any_cutting_gives_the_same_packets(
    packets: list[Packet], rest: bytes, cuts: list[int]
) -> None:
    stream = encoded(packets) + rest
    reader = PktLineReader()
    found: list[Packet] = []
    borders = sorted({0, len(stream), *(cut for cut in cuts if cut < len(stream))})
    for start, stop in itertools.pairwise(borders):
        reader.feed(stream[start:stop])
        while len(found) < len(packets) and (packet := reader.next_packet()) is not None:
            found.append(packet)
    while len(found) < len(packets) and (packet := reader.next_packet()) is not None:
        found.append(packet)
    assert found == packets
    assert reader.take_rest() == rest


@given(body=st.binary(max_size=64))
def test_garbage_ends_in_one_kind_of_error(body: bytes) -> None:
    try:
        packets = list(read_all(body))
    except InvalidArgument:
        return
    assert encoded(packets).lower() == body.lower()


@pytest.mark.parametrize("body", [b"0003", b"fff1", b"zzzz", b"-001", b"000", b"0009done", b" 4  "])
def test_bad_lengths_are_refused(body: bytes) -> None:
    with pytest.raises(InvalidArgument):
        list(read_all(body))


def test_largest_packet() -> None:
    payload = bytes(LINE_BYTES_MAX)
    assert list(read_all(encode(payload))) == [payload]
    with pytest.raises(ValueError, match="65516"):
        encode(payload + b"x")


def test_error_packet_is_one_line() -> None:
    assert error_packet("not\nour ref  x") == b"0015ERR not our ref x"


@given(data=st.binary(max_size=5000), size=st.integers(6, 1000))
def test_sideband_carries_every_byte(data: bytes, size: int) -> None:
    frames = list(read_all(sideband(data, 1, size)))
    assert all(isinstance(f, bytes) and f[0] == 1 and len(f) + 4 <= size for f in frames)
    assert b"".join(f[1:] for f in frames if isinstance(f, bytes)) == data
