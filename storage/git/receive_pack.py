"""receive-pack: reading what a push commands, and reporting what became of it.

Owns the grammar of the command list (git's Documentation/gitprotocol-pack.txt, "Reference Update
Request") and of the report. Decides nothing about refs: compare-and-swap, conflicts and
permissions are the caller's, and the pack after the commands is `quorepo.storage.ingest`'s.
"""

from __future__ import annotations

import binascii
from binascii import unhexlify
from collections.abc import Sequence
from dataclasses import dataclass

from quorepo.storage.errors import InvalidArgument, LimitExceeded
from quorepo.storage.git.fetch_answer import BAND_ERROR, BAND_PACK, BAND_PROGRESS, sideband
from quorepo.storage.git.pktline import (
    FLUSH,
    LINE_BYTES_MAX,
    PACKET_BYTES_MAX,
    Marker,
    PktLineReader,
    encode,
)
from quorepo.storage.objectformat import ObjectFormat

__all__ = [
    "KEEPALIVE",
    "Ng",
    "Ok",
    "PushCapabilities",
    "PushReport",
    "ReceivePackParser",
    "RefCommand",
    "RefStatus",
    "Unknown",
    "push_error",
    "push_progress",
    "report_status",
]

# An empty frame that keeps the connection alive while a pack is verified; git sends the same.
KEEPALIVE = b"0005\x01"


@dataclass(frozen=True)
class RefCommand:
    """One ref update. `old` and `new` are raw object ids; None is git's zero id: "does not
    exist".
    """

    name: bytes
    old: bytes | None
    new: bytes | None

    @property
    def deletes(self) -> bool:
        """Whether the ref shall be gone afterwards."""
        return self.new is None


@dataclass(frozen=True)
class PushCapabilities:
    """What the pushing client understands or asks for."""

    report_status: bool = False
    report_status_v2: bool = False
    side_band_64k: bool = False
    quiet: bool = False
    atomic: bool = False
    ofs_delta: bool = False
    push_options: bool = False
    agent: str = ""


@dataclass(frozen=True)
class Ok:
    """The ref has its new value, durably."""


@dataclass(frozen=True)
class Ng:
    """Certain: the ref was not changed. `reason` is one line."""

    reason: str


@dataclass(frozen=True)
class Unknown:
    """The ref may have changed or may yet: it gets no line in the report."""


RefStatus = Ok | Ng | Unknown


@dataclass(frozen=True)
class PushReport:
    """The outcome of a push: `unpack` is "ok" or why the pack was refused, then one status per
    command.
    """

    unpack: str
    statuses: Sequence[tuple[bytes, RefStatus]]


class ReceivePackParser:
    """Incremental parser of a push's body up to its pack.

    Call `feed` with each piece of the body; it returns the bytes that belong to the pack, which
    is empty until the commands (and push options) are complete, `finished`. Call `close` at the
    end of the body. All errors are InvalidArgument or LimitExceeded and mean that nothing
    happened.
    """

    def __init__(
        self,
        object_format: ObjectFormat = ObjectFormat.SHA1,
        *,
        refs_per_push_max: int = 10_000,
        ref_name_bytes_max: int = 1024,
        push_options_max: int = 64,
        push_options_bytes_max: int = 65_536,
    ) -> None:
        self._object_format = object_format
        self._refs_per_push_max = refs_per_push_max
        self._ref_name_bytes_max = ref_name_bytes_max
        self._push_options_max = push_options_max
        self._push_options_bytes_max = push_options_bytes_max
        self._reader = PktLineReader()
        self._in_options = False
        self._first_line = True
        self._option_bytes = 0
        self.finished = False
        self.commands: list[RefCommand] = []
        self.capabilities = PushCapabilities()
        self.push_options: list[str] = []
        self.shallow: list[bytes] = []

    @property
    def is_probe(self) -> bool:
        """A body of one flush: git asks whether it may send a large push. Answer 200, empty."""
        return self.finished and not self.commands

    @property
    def expects_pack(self) -> bool:
        """Whether a pack follows: always, unless all commands delete."""
        return any(not command.deletes for command in self.commands)

    def feed(self, data: bytes) -> bytes:
        """Take the next piece of the body; returns the part of it that belongs to the pack."""
        if self.finished:
            return data
        self._reader.feed(data)
        while not self.finished:
            packet = self._reader.next_packet()
            if packet is None:
                return b""
            if isinstance(packet, Marker):
                self._take_marker(packet)
            elif self._in_options:
                self._take_option(packet)
            else:
                self._take_line(packet)
        return self._reader.take_rest()

    def close(self) -> None:
        """Raises InvalidArgument when the body ended before its commands did."""
        if not self.finished:
            raise InvalidArgument("protocol error: the push ends inside its command list")

    def _take_marker(self, marker: Marker) -> None:
        if marker is not Marker.FLUSH:
            raise InvalidArgument("protocol error: expected a flush after the push commands")
        if self.capabilities.push_options and self.commands and not self._in_options:
            self._in_options = True
            return
        self.finished = True

    def _take_option(self, packet: bytes) -> None:
        self._option_bytes += len(packet)
        if len(self.push_options) >= self._push_options_max:
            raise LimitExceeded(
                f"push has more than {self._push_options_max} options, see limits.push_options_max",
                limit="limits.push_options_max",
            )
        if self._option_bytes > self._push_options_bytes_max:
            raise LimitExceeded(
                f"push options have more than {self._push_options_bytes_max} bytes, "
                "see limits.push_options_bytes_max",
                limit="limits.push_options_bytes_max",
            )
        self.push_options.append(packet.rstrip(b"\n").decode("utf-8", "replace"))

    def _take_line(self, packet: bytes) -> None:
        line, separator, features = packet.partition(b"\0")
        line = line.removesuffix(b"\n")
        if line.startswith(b"push-cert"):
            raise InvalidArgument(
                "signed pushes (push certificates) are not supported by this server",
                next_step="push with --no-signed",
            )
        if separator and self._first_line:
            self.capabilities = _parse_capabilities(features, self._object_format)
        if line.startswith(b"shallow "):
            self.shallow.append(self._oid(line[8:], line))
        else:
            self._take_command(line)
            self._first_line = False
        if len(self.commands) + len(self.shallow) > self._refs_per_push_max:
            raise LimitExceeded(
                f"push has more than {self._refs_per_push_max} commands, "
                "see limits.refs_per_push_max",
                limit="limits.refs_per_push_max",
                next_step="push fewer refs at a time",
            )

    def _take_command(self, line: bytes) -> None:
        parts = line.split(b" ", 2)
        if len(parts) != 3 or not parts[2]:
            raise InvalidArgument(
                f"protocol error: expected old/new/ref, got '{_shown(line)}'",
            )
        old, new, name = self._oid(parts[0], line), self._oid(parts[1], line), parts[2]
        if len(name) > self._ref_name_bytes_max:
            raise LimitExceeded(
                f"ref name has {len(name)} bytes, limits.ref_name_bytes_max is "
                f"{self._ref_name_bytes_max}: '{_shown(name[:80])}…'",
                limit="limits.ref_name_bytes_max",
            )
        zero = bytes(self._object_format.hash_bytes)
        self.commands.append(
            RefCommand(name, None if old == zero else old, None if new == zero else new),
        )

    def _oid(self, text: bytes, line: bytes) -> bytes:
        try:
            oid = unhexlify(text)
        except binascii.Error:
            oid = b""
        if len(oid) != self._object_format.hash_bytes:
            raise InvalidArgument(
                f"protocol error: expected old/new/ref, got '{_shown(line)}'",
            )
        return oid


def report_status(report: PushReport, capabilities: PushCapabilities) -> bytes:
    """The end of a push's answer: the report if the client wants one, framed if it has side-band.

    Versions 1 and 2 of the report differ in option lines only, for refs that the server stored
    under other names than commanded, which does not happen here.
    """
    body = b""
    if capabilities.report_status or capabilities.report_status_v2:
        packets = [encode(b"unpack " + _one_line(report.unpack) + b"\n")]
        for name, status in report.statuses:
            if isinstance(status, Ok):
                packets.append(encode(b"ok " + name + b"\n"))
            elif isinstance(status, Ng):
                packets.append(encode(b"ng " + name + b" " + _one_line(status.reason) + b"\n"))
        body = b"".join(packets) + FLUSH
    if capabilities.side_band_64k:
        return sideband(body, BAND_PACK, PACKET_BYTES_MAX) + FLUSH
    return body


def push_progress(text: str, capabilities: PushCapabilities) -> bytes:
    """Text for the user while the push is handled (`remote: …`); empty when the client has no
    band for it or is quiet.
    """
    if not capabilities.side_band_64k or capabilities.quiet:
        return b""
    return sideband(text.encode("utf-8", "replace"), BAND_PROGRESS, PACKET_BYTES_MAX)


def push_error(message: str, capabilities: PushCapabilities) -> bytes:
    """A failure of the whole push that no report can express; git prints it and fails."""
    if not capabilities.side_band_64k:
        return encode(b"ERR " + _one_line(message)) + FLUSH
    text = _one_line(message) + b"\n"
    return sideband(text, BAND_ERROR, PACKET_BYTES_MAX) + FLUSH


def _parse_capabilities(features: bytes, object_format: ObjectFormat) -> PushCapabilities:
    words = features.rstrip(b"\n").split(b" ")
    agent = ""
    client_format = b"sha1"
    for word in words:
        if word.startswith(b"object-format="):
            client_format = word[14:]
        elif word.startswith(b"agent="):
            agent = _shown(word[6:])
    if client_format != object_format.name_bytes:
        raise InvalidArgument(
            f"mismatched object format: server {_shown(object_format.name_bytes)}; "
            f"client {_shown(client_format)}",
            client_format=_shown(client_format),
        )
    return PushCapabilities(
        report_status=b"report-status" in words,
        report_status_v2=b"report-status-v2" in words,
        side_band_64k=b"side-band-64k" in words,
        quiet=b"quiet" in words,
        atomic=b"atomic" in words,
        ofs_delta=b"ofs-delta" in words,
        push_options=b"push-options" in words,
        agent=agent,
    )


def _one_line(text: str) -> bytes:
    line = " ".join(text.replace("\0", " ").split())
    return line.encode("utf-8", "replace")[: LINE_BYTES_MAX // 2]


def _shown(value: bytes) -> str:
    return value[:200].decode("utf-8", "replace")
