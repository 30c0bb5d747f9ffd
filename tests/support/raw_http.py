"""HTTP requests byte by byte, and git's wire formats by hand."""

from __future__ import annotations

import base64
import hashlib
import http.client
import struct
import zlib
from collections.abc import Iterable

from support.edge import TOKEN, EdgeUnderTest

AUTHORIZATION = "Basic " + base64.b64encode(f"admin:{TOKEN}".encode()).decode()
PUSH_TYPE = "application/x-git-receive-pack-request"
FETCH_TYPE = "application/x-git-upload-pack-request"
ZERO = "0" * 40
CAPABILITIES = "report-status side-band-64k agent=test"


class Answer:
    def __init__(self, response: http.client.HTTPResponse) -> None:
        self.status = response.status
        self.headers = response.headers
        self.body = response.read()

    def bands(self) -> dict[int, bytes]:
        """What each side-band carried."""
        found: dict[int, bytes] = {}
        for packet in packets(self.body):
            if packet is not None:
                found[packet[0]] = found.get(packet[0], b"") + packet[1:]
        return found

    def report(self) -> list[str]:
        """The lines of a push's report in side-band 1."""
        return [p.decode().rstrip("\n") for p in packets(self.bands()[1]) if p is not None]


def request(
    server: EdgeUnderTest,
    method: str,
    target: str,
    body: bytes | Iterable[bytes] | None = None,
    headers: dict[str, str] | None = None,
    *,
    authorized: bool = True,
) -> Answer:
    """One request on a connection of its own; a body that is an iterable is sent in chunks."""
    host, port = server.address.split(":")
    connection = http.client.HTTPConnection(host, int(port), timeout=20)
    try:
        all_headers = {"Authorization": AUTHORIZATION} if authorized else {}
        connection.request(method, target, body, {**all_headers, **(headers or {})})
        return Answer(connection.getresponse())
    finally:
        connection.close()


def push(server: EdgeUnderTest, path: str, body: bytes | Iterable[bytes]) -> Answer:
    return request(server, "POST", f"/{path}/git-receive-pack", body, {"Content-Type": PUSH_TYPE})


def packets(data: bytes) -> list[bytes | None]:
    """pkt-lines; None for a flush."""
    found: list[bytes | None] = []
    while data:
        length = int(data[:4], 16)
        if length == 0:
            found.append(None)
            data = data[4:]
        else:
            assert length >= 4
            found.append(data[4:length])
            data = data[length:]
    return found


def packet(payload: bytes) -> bytes:
    return b"%04x" % (len(payload) + 4) + payload


def commands(*lines: str, capabilities: str = CAPABILITIES) -> bytes:
    """The command list of a push, flush included."""
    first, *others = lines
    head = packet(first.encode() + b"\0 " + capabilities.encode())
    return head + b"".join(packet(line.encode()) for line in others) + b"0000"


def blob_entry(content: bytes) -> bytes:
    size = len(content)
    header = bytearray([3 << 4 | size & 15])
    size >>= 4
    while size:
        header[-1] |= 0x80
        header.append(size & 0x7F)
        size >>= 7
    return bytes(header) + zlib.compress(content)


def pack(*entries: bytes) -> bytes:
    """A pack of ready-made entries with a right trailer."""
    body = struct.pack(">4sLL", b"PACK", 2, len(entries)) + b"".join(entries)
    return body + hashlib.sha1(body).digest()


def blob_id(content: bytes) -> str:
    return hashlib.sha1(b"blob %d\0" % len(content) + content).hexdigest()
