"""Reading what a fetching client sends: the bodies of git-upload-pack requests, v0 to v2.

Pure parsers: a complete request body goes in, a request value comes out. The grammar is git's
Documentation/gitprotocol-pack.txt (v0, v1) and gitprotocol-v2.txt; refusals use git's words.
Must not know refs, objects or how a request is answered.
"""

from __future__ import annotations

import binascii
from binascii import unhexlify
from collections.abc import Iterator
from typing import Any

from quorepo.storage.errors import InvalidArgument, LimitExceeded
from quorepo.storage.git.fetch_request import (
    INFINITE_DEPTH,
    BundleUriRequest,
    FetchRequest,
    LsRefsRequest,
    MultiAck,
    ObjectInfoRequest,
    V2Request,
)
from quorepo.storage.git.filters import FILTERS_COMBINED_MAX, parse_filter
from quorepo.storage.git.pktline import PACKET_BYTES_MAX, Marker, Packet, read_all
from quorepo.storage.git.refnames import check_ref_name
from quorepo.storage.objectformat import ObjectFormat

__all__ = ["LINES_MAX", "parse_v0_request", "parse_v2_request"]

# A stateless client repeats all its haves; git sends up to 16,384 and then 10 % more per round.
LINES_MAX = 262_144
# git's serve.c stops looking at prefixes above this number and lists everything.
_PREFIXES_MAX = 65_536
# `DEFAULT_PACKET_MAX` of git's sideband.h, for the capability `side-band`.
_SMALL_SIDE_BAND = 1000
_V2_FLAGS = frozenset(
    {
        b"deepen-relative",
        b"include-tag",
        b"no-progress",
        b"ofs-delta",
        b"sideband-all",
        b"thin-pack",
        b"wait-for-done",
    }
)


def parse_v0_request(
    body: bytes,
    object_format: ObjectFormat = ObjectFormat.SHA1,
    *,
    version: int = 0,
    lines_max: int = LINES_MAX,
    filters_max: int = FILTERS_COMBINED_MAX,
) -> FetchRequest:
    """Read the body of a v0 or v1 fetch over smart HTTP.

    No wants at all (an empty body, a lone flush) is a request that asks for nothing. Raises
    InvalidArgument in git's words, LimitExceeded for more than `lines_max` lines.
    """
    reader = _LineReader(body, lines_max)
    fields = _Fields(object_format, filters_max)
    for line in reader.until_marker():
        fields.take_v0_line(line)
    wants = fields.oids["want"]
    if not wants:
        return FetchRequest(version=version, wants=(), negotiates=False)
    haves: list[bytes] = []
    done = False
    negotiates = False
    for packet in reader.rest():
        negotiates = True
        if isinstance(packet, Marker):
            break
        line = packet.rstrip(b"\n")
        if line == b"done":
            done = True
            break
        if not line.startswith(b"have "):
            raise InvalidArgument(f"git upload-pack: expected SHA1 list, got '{_shown(line)}'")
        haves.append(fields.oid(line[5:]))
    return fields.request(version, tuple(haves), done=done, negotiates=negotiates)


def parse_v2_request(
    body: bytes,
    object_format: ObjectFormat = ObjectFormat.SHA1,
    *,
    lines_max: int = LINES_MAX,
    filters_max: int = FILTERS_COMBINED_MAX,
) -> V2Request:
    """Read the body of a protocol v2 request: `ls-refs`, `fetch`, `object-info`, `bundle-uri`.

    A lone flush (git's probe before a large POST) is a fetch that asks for nothing. Raises
    InvalidArgument for anything that was not advertised or follows the command, LimitExceeded for
    more than `lines_max` lines or `filters_max` filters in one.
    """
    reader = _LineReader(body, lines_max)
    fields = _Fields(object_format, filters_max)
    command = _read_v2_header(reader, fields)
    if command is None:
        return FetchRequest(version=2, wants=(), negotiates=False)
    arguments: list[bytes] = []
    if reader.last_marker is Marker.DELIM:
        arguments = [line.rstrip(b"\n") for line in reader.until_marker()]
        if reader.last_marker is Marker.DELIM:
            raise InvalidArgument("expected flush after arguments")
    if reader.last_marker is not Marker.FLUSH:
        raise InvalidArgument("protocol error: the request ends without a flush")
    if next(reader.rest(), None) is not None:
        raise InvalidArgument(f"only one command per request is served, after '{_shown(command)}'")
    if command == b"ls-refs":
        return _ls_refs_request(arguments)
    if command == b"object-info":
        return _object_info_request(arguments, fields)
    if command == b"bundle-uri":
        if arguments:
            raise InvalidArgument(f"bundle-uri: unexpected argument: '{_shown(arguments[0])}'")
        return BundleUriRequest()
    if command == b"fetch":
        for argument in arguments:
            fields.take_v2_argument(argument)
        return fields.request(2, tuple(fields.oids["have"]), done=fields.done, negotiates=True)
    raise InvalidArgument(f"invalid command '{_shown(command)}'")


class _LineReader:
    """The packets of one body, counted, with the marker that ended the last section."""

    def __init__(self, body: bytes, lines_max: int) -> None:
        self._packets = read_all(body)
        self._lines_left = lines_max
        self._lines_max = lines_max
        self.last_marker: Marker | None = None

    def rest(self) -> Iterator[Packet]:
        for packet in self._packets:
            self._lines_left -= 1
            if self._lines_left < 0:
                raise LimitExceeded(
                    f"request has more than {self._lines_max} lines, "
                    "see limits.negotiation_lines_max",
                    limit="limits.negotiation_lines_max",
                )
            yield packet

    def until_marker(self) -> Iterator[bytes]:
        """The data packets of one section; sets `last_marker` to what ended it, None at the end."""
        self.last_marker = None
        for packet in self.rest():
            if isinstance(packet, Marker):
                self.last_marker = packet
                return
            yield packet


class _Fields:
    """Collects the lines that v0 and v2 share."""

    def __init__(self, object_format: ObjectFormat, filters_max: int) -> None:
        self.object_format = object_format
        self._filters_max = filters_max
        self.oids: dict[str, list[bytes]] = {"want": [], "have": [], "shallow": []}
        self.values: dict[str, Any] = {}
        self.deepen_not: list[bytes] = []
        self.want_refs: dict[bytes, None] = {}
        self.done = False

    def oid(self, text: bytes) -> bytes:
        """Raises InvalidArgument for anything but a full lowercase or uppercase hex object id."""
        if len(text) != 2 * self.object_format.hash_bytes:
            raise InvalidArgument(f"protocol error, expected an object id, not '{_shown(text)}'")
        try:
            return unhexlify(text)
        except binascii.Error:
            raise InvalidArgument(
                f"protocol error, expected an object id, not '{_shown(text)}'",
            ) from None

    def take_v0_line(self, packet: bytes) -> None:
        line = packet.rstrip(b"\n")
        if self._take_shared(line):
            return
        if not line.startswith(b"want "):
            raise InvalidArgument(
                f"git upload-pack: protocol error, expected to get object ID, not '{_shown(line)}'",
            )
        hex_oid, _, features = line[5:].partition(b" ")
        self.oids["want"].append(self.oid(hex_oid))
        if features:
            self._take_features(features.split(b" "))

    def take_v2_argument(self, argument: bytes) -> None:
        if self._take_shared(argument):
            return
        word, _, value = argument.partition(b" ")
        if word in (b"want", b"have"):
            self.oids[word.decode("ascii")].append(self.oid(value))
        elif argument == b"done":
            self.done = True
        elif argument in _V2_FLAGS:
            self.values[argument.decode("ascii").replace("-", "_")] = True
        elif word == b"want-ref":
            self._take_want_ref(value)
        else:
            raise InvalidArgument(f"unexpected line: '{_shown(argument)}'")

    def request(
        self,
        version: int,
        haves: tuple[bytes, ...],
        *,
        done: bool,
        negotiates: bool,
    ) -> FetchRequest:
        """Raises InvalidArgument when the lines contradict each other."""
        values = dict(self.values)
        if values.get("depth") and ("deepen_since" in values or self.deepen_not):
            raise InvalidArgument(
                "git upload-pack: deepen and deepen-since (or deepen-not) cannot be used together",
            )
        offers_filter = values.pop("offers_filter", False)
        if "filter" in values and version < 2 and not offers_filter:
            raise InvalidArgument("git upload-pack: filtering capability not negotiated")
        if version == 2:
            values["side_band"] = PACKET_BYTES_MAX
        return FetchRequest(
            version=version,
            wants=tuple(dict.fromkeys(self.oids["want"])),
            haves=haves,
            done=done,
            negotiates=negotiates,
            want_refs=tuple(self.want_refs),
            client_shallow=tuple(dict.fromkeys(self.oids["shallow"])),
            deepen_not=tuple(self.deepen_not),
            **values,
        )

    def _take_shared(self, line: bytes) -> bool:
        word, _, value = line.partition(b" ")
        if word == b"shallow":
            self.oids["shallow"].append(self.oid(value))
        elif word == b"deepen":
            self.values["depth"] = _number(value, "deepen", INFINITE_DEPTH)
        elif word == b"deepen-since":
            self.values["deepen_since"] = _number(value, "deepen-since", 1 << 62)
        elif word == b"deepen-not":
            self.deepen_not.append(value)
        elif word == b"filter":
            if "filter" in self.values:
                raise InvalidArgument("multiple filter-specs cannot be combined")
            self.values["filter"] = parse_filter(value, self._filters_max)
        else:
            return False
        return True

    def _take_want_ref(self, name: bytes) -> None:
        if name != b"HEAD" and check_ref_name(name) is not None:
            raise InvalidArgument(f"unknown ref {_shown(name)}")
        if name in self.want_refs:
            raise InvalidArgument(f"duplicate want-ref {_shown(name)}")
        self.want_refs[name] = None

    def take_session(self, line: bytes) -> bool:
        """Whether the line names the client's program or its session: for the log alone."""
        for word, key in ((b"agent=", "agent"), (b"session-id=", "session_id")):
            if line.startswith(word):
                self.values[key] = _shown(line[len(word) :])
                return True
        return False

    def _take_features(self, features: list[bytes]) -> None:
        """Unknown features are ignored, as git ignores them: clients send what they please."""
        for feature in features:
            if feature in (b"ofs-delta", b"thin-pack", b"include-tag", b"no-progress", b"no-done"):
                self.values[feature.decode("ascii").replace("-", "_")] = True
            elif feature == b"multi_ack_detailed":
                self.values["multi_ack"] = MultiAck.DETAILED
            elif feature == b"multi_ack":
                self.values.setdefault("multi_ack", MultiAck.CONTINUE)
            elif feature == b"side-band-64k":
                self.values["side_band"] = PACKET_BYTES_MAX
            elif feature == b"side-band":
                self.values.setdefault("side_band", _SMALL_SIDE_BAND)
            elif feature == b"deepen-relative":
                self.values["deepen_relative"] = True
            elif feature == b"filter":
                self.values["offers_filter"] = True
            elif feature.startswith(b"object-format="):
                _check_object_format(feature[14:], self.object_format)
            else:
                self.take_session(feature)


def _read_v2_header(reader: _LineReader, fields: _Fields) -> bytes | None:
    """The command; None for a body of nothing but a flush. Server options are for hooks, which
    there are none of: they are accepted, as git's server accepts them, and mean nothing.
    """
    command: bytes | None = None
    # A client that names no format means SHA-1, as in git's serve.c.
    object_format = ObjectFormat.SHA1.name_bytes
    empty = True
    for packet in reader.until_marker():
        empty = False
        line = packet.rstrip(b"\n")
        if line.startswith(b"command="):
            if command is not None:
                raise InvalidArgument("command requested after already requesting a command")
            command = line[8:]
        elif line.startswith(b"object-format="):
            object_format = line[14:]
        elif not line.startswith(b"server-option=") and not fields.take_session(line):
            raise InvalidArgument(f"unknown capability '{_shown(line)}'")
    if command is None and not (empty and reader.last_marker is not Marker.DELIM):
        raise InvalidArgument("no command requested")
    if command is not None:
        _check_object_format(object_format, fields.object_format)
    return command


def _object_info_request(arguments: list[bytes], fields: _Fields) -> ObjectInfoRequest:
    oids: list[bytes] = []
    size = False
    for argument in arguments:
        if argument == b"size":
            size = True
        elif argument.startswith(b"oid "):
            oids.append(fields.oid(argument[4:]))
        else:
            raise InvalidArgument(f"object-info: unexpected line: '{_shown(argument)}'")
    return ObjectInfoRequest(tuple(oids), size)


def _ls_refs_request(arguments: list[bytes]) -> LsRefsRequest:
    prefixes: list[bytes] = []
    flags = {b"symrefs": False, b"peel": False, b"unborn": False}
    for argument in arguments:
        if argument in flags:
            flags[argument] = True
        elif argument.startswith(b"ref-prefix "):
            prefixes.append(argument[11:])
        else:
            raise InvalidArgument(f"unexpected line: '{_shown(argument)}'")
    if len(prefixes) >= _PREFIXES_MAX or b"" in prefixes:
        prefixes = []
    return LsRefsRequest(
        tuple(prefixes),
        symrefs=flags[b"symrefs"],
        peel=flags[b"peel"],
        unborn=flags[b"unborn"],
    )


def _check_object_format(name: bytes, expected: ObjectFormat) -> None:
    if name != expected.name_bytes:
        raise InvalidArgument(
            f"mismatched object format: server {_shown(expected.name_bytes)}; "
            f"client {_shown(name)}",
        )


def _number(text: bytes, word: str, largest: int) -> int:
    if not (text.isdigit() and len(text) < 20 and 0 < int(text) <= largest):
        raise InvalidArgument(f"Invalid {word}: {_shown(text)}")
    return int(text)


def _shown(value: bytes) -> str:
    return value[:200].decode("utf-8", "replace")
