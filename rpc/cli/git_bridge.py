"""git's stateful protocol on two pipes, as calls of TransferService.

Owns where one request ends: git waits for its answer there. Must not know click, or which node
answers. Fetches speak protocol 2 only, whose requests stand for themselves; a push is one request.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Iterator
from typing import Any, BinaryIO

from quorepo.storage.git.pktline import Marker, PktLineReader, encode
from quorepo.v1 import transfer_pb2

__all__ = ["CutOff", "fetch", "push"]

_CHUNK_BYTES = 256 * 1024
_REQUEST_BYTES_MAX = 64 * 1024 * 1024  # of commands and haves; git's own are far below
_MARKERS = {Marker.FLUSH: b"0000", Marker.DELIM: b"0001", Marker.RESPONSE_END: b"0002"}

Call = Callable[[Iterator[Any]], Iterable[Any]]
Read = Callable[[], bytes]  # what git wrote, as soon as there is some; b"" at the end
_Message = type[transfer_pb2.UploadPackRequest] | type[transfer_pb2.ReceivePackRequest]


class CutOff(Exception):
    """git's own end of the conversation, or the node's, came too early."""


class _Input:
    """What git writes: packets, and then raw bytes."""

    def __init__(self, read: Read) -> None:
        self._read = read
        self._reader = PktLineReader()

    def section(self) -> bytes:
        """Everything up to a flush, with it; b"" at the end of the input.

        Raises:
            CutOff: the input ends in between, or is too long.
            InvalidArgument: it is no pkt-line.
        """
        taken = bytearray()
        while len(taken) < _REQUEST_BYTES_MAX:
            packet = self._reader.next_packet()
            if packet is None:
                if not self._more():
                    if taken or self._reader.pending_bytes:
                        raise CutOff("git broke off inside a request")
                    return b""
                continue
            taken += _MARKERS[packet] if isinstance(packet, Marker) else encode(packet)
            if packet is Marker.FLUSH:
                return bytes(taken)
        raise CutOff(f"a request of git exceeds {_REQUEST_BYTES_MAX} bytes")

    def rest(self) -> Iterator[bytes]:
        """Everything up to the end of the input."""
        piece = self._reader.take_rest()
        while piece or (piece := self._read()):
            yield piece
            piece = b""

    def _more(self) -> bool:
        piece = self._read()
        self._reader.feed(piece)
        return bool(piece)


def fetch(call: Call, repository: str, version: str, read: Read, out: BinaryIO) -> None:
    """Serves a fetch until git ends it.

    Args:
        call: UploadPack of a node.
        version: GIT_PROTOCOL, with "version=2".

    Raises:
        CutOff, grpc.RpcError
    """
    message = transfer_pb2.UploadPackRequest
    given = transfer_pb2.TransferHeader(repository=repository, git_protocol=version)
    git = _Input(read)
    _copy(call(_advertisement(message, given)), out)
    while request := git.section():
        if request != b"0000":  # git ends with one
            _copy(call(_request(message, given, [request])), out)


def push(call: Call, repository: str, read: Read, out: BinaryIO) -> bool:
    """Serves a push.

    Args:
        call: ReceivePack of a node.

    Returns:
        False: git had nothing to push.

    Raises:
        CutOff, grpc.RpcError
    """
    message = transfer_pb2.ReceivePackRequest
    given = transfer_pb2.TransferHeader(repository=repository)
    git = _Input(read)
    _copy(call(_advertisement(message, given)), out)
    commands = git.section()
    if commands in (b"", b"0000"):
        return False
    _copy(call(_request(message, given, _push_body(git, commands))), out)
    return True


def _push_body(git: _Input, commands: bytes) -> Iterator[bytes]:
    yield commands
    capabilities, creates = _look_at(commands)
    if b"push-options" in capabilities:
        yield git.section()
    if creates:  # without a pack git keeps its end open, and waits
        yield from git.rest()


def _look_at(commands: bytes) -> tuple[frozenset[bytes], bool]:
    """The capabilities that git chose, and whether a pack follows."""
    reader = PktLineReader()
    reader.feed(commands)
    capabilities: frozenset[bytes] = frozenset()
    creates = False
    while isinstance(packet := reader.next_packet(), bytes):
        line, separator, features = packet.rstrip(b"\n").partition(b"\0")
        if separator:
            capabilities = frozenset(features.split())
        words = line.split(b" ", 2)
        creates = creates or (len(words) == 3 and bool(words[1].strip(b"0")))
    return capabilities, creates


def _advertisement(message: _Message, given: transfer_pb2.TransferHeader) -> Iterator[Any]:
    header = transfer_pb2.TransferHeader()
    header.CopyFrom(given)
    header.advertise = True
    yield message(header=header)


def _request(
    message: _Message, header: transfer_pb2.TransferHeader, pieces: Iterable[bytes]
) -> Iterator[Any]:
    yield message(header=header)
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(piece)
        for start in range(0, len(piece), _CHUNK_BYTES):
            yield message(chunk=piece[start : start + _CHUNK_BYTES])
    yield message(sha256=digest.digest())


def _copy(answer: Iterable[Any], out: BinaryIO) -> None:
    digest = hashlib.sha256()
    for part in answer:
        if part.WhichOneof("part") == "trailer":
            if part.trailer.sha256 != digest.digest():
                raise CutOff("the node's answer was damaged on its way")
            return
        digest.update(part.chunk)
        out.write(part.chunk)
        out.flush()
    raise CutOff("the node's answer was cut off")
