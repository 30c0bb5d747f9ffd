"""upload-pack: reading what a fetching client asks for, and listing refs.

Pure parsers: a complete request body goes in, a request value comes out. Reading objects is the
worker's business (`jobs.py`), the bytes of an answer are in `fetch_answer.py`. The grammar is
git's Documentation/gitprotocol-pack.txt (v0, v1) and gitprotocol-v2.txt; refusals use git's
words.
"""

from __future__ import annotations

import binascii
from binascii import unhexlify
from collections.abc import Iterator
from typing import Any

from quorepo.storage.errors import InvalidArgument, LimitExceeded, NotFound
from quorepo.storage.git.advertise import RefsView
from quorepo.storage.git.fetch_answer import (
    error_frames,
    fetch_epilogue,
    fetch_preamble,
    pack_frames,
    progress_frames,
    sends_pack,
    sideband,
)
from quorepo.storage.git.fetch_request import (
    INFINITE_DEPTH,
    FetchRequest,
    LsRefsRequest,
    MultiAck,
    Negotiation,
)
from quorepo.storage.git.filters import parse_filter
from quorepo.storage.git.pktline import (
    FLUSH,
    PACKET_BYTES_MAX,
    Marker,
    Packet,
    encode,
    error_packet,
    read_all,
)
from quorepo.storage.objectformat import ObjectFormat

__all__ = [
    "LINES_MAX",
    "FetchRequest",
    "LsRefsRequest",
    "MultiAck",
    "Negotiation",
    "error_frames",
    "error_packet",
    "fetch_epilogue",
    "fetch_preamble",
    "job_arguments",
    "ls_refs",
    "pack_frames",
    "parse_v0_request",
    "parse_v2_request",
    "progress_frames",
    "sends_pack",
    "sideband",
]

# A stateless client repeats all its haves; git sends up to 16,384 and then 10 % more per round.
LINES_MAX = 262_144
# git's serve.c stops looking at prefixes above this number and lists everything.
_PREFIXES_MAX = 65_536
# `DEFAULT_PACKET_MAX` of git's sideband.h, for the capability `side-band`.
_SMALL_SIDE_BAND = 1000
_REF_RULES = (
    b"%s",
    b"refs/%s",
    b"refs/tags/%s",
    b"refs/heads/%s",
    b"refs/remotes/%s",
    b"refs/remotes/%s/HEAD",
)


def parse_v0_request(
    body: bytes,
    object_format: ObjectFormat = ObjectFormat.SHA1,
    *,
    version: int = 0,
    lines_max: int = LINES_MAX,
) -> FetchRequest:
    """Read the body of a v0 or v1 fetch over smart HTTP.

    No wants at all (an empty body, a lone flush) is a request that asks for nothing. Raises
    InvalidArgument in git's words, LimitExceeded for more than `lines_max` lines.
    """
    reader = _LineReader(body, lines_max)
    fields = _Fields(object_format)
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
) -> LsRefsRequest | FetchRequest:
    """Read the body of a protocol v2 request: `ls-refs` or `fetch`.

    A lone flush (git's probe before a large POST) is a fetch that asks for nothing. Raises
    InvalidArgument for anything that was not advertised, LimitExceeded for more than `lines_max`
    lines.
    """
    reader = _LineReader(body, lines_max)
    command = _read_v2_header(reader, object_format)
    if command is None:
        return FetchRequest(version=2, wants=(), negotiates=False)
    arguments: list[bytes] = []
    if reader.last_marker is Marker.DELIM:
        arguments = [line.rstrip(b"\n") for line in reader.until_marker()]
        if reader.last_marker is Marker.DELIM:
            raise InvalidArgument("expected flush after arguments")
    if command == b"ls-refs":
        return _ls_refs_request(arguments)
    if command == b"fetch":
        fields = _Fields(object_format)
        for argument in arguments:
            fields.take_v2_argument(argument)
        return fields.request(2, tuple(fields.oids["have"]), done=fields.done, negotiates=True)
    raise InvalidArgument(f"invalid command '{_shown(command)}'")


def ls_refs(request: LsRefsRequest, view: RefsView) -> bytes:
    """The whole answer to `ls-refs`."""
    prefixes = request.prefixes
    packets: list[bytes] = []
    if not prefixes or b"HEAD".startswith(prefixes):
        packets += _head_line(request, view)
    for name, oid, peeled in view.refs:
        if prefixes and not name.startswith(prefixes):
            continue
        line = oid.hex().encode("ascii") + b" " + name
        if request.peel and peeled is not None:
            line += b" peeled:" + peeled.hex().encode("ascii")
        packets.append(encode(line + b"\n"))
    packets.append(FLUSH)
    return b"".join(packets)


def job_arguments(request: FetchRequest, view: RefsView) -> dict[str, Any]:
    """The arguments that both worker jobs of a fetch share, as JSON values.

    Add `repository` (the description of its packs) for both, `negotiation` and `out` for the
    build. The names that `deepen-not` excludes are resolved here, in the refs that this client
    may see; raises NotFound when one is unknown or ambiguous.
    """
    tags = [
        [oid.hex(), peeled.hex()]
        for name, oid, peeled in view.refs
        if request.include_tag and peeled is not None and name.startswith(b"refs/tags/")
    ]
    return {
        "request": request.to_json(),
        "tips": [oid.hex() for oid in view.tips()],
        "tags": tags,
        "deepen_not": [_resolve_name(name, view).hex() for name in request.deepen_not],
    }


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
                    f"request has more than {self._lines_max} lines",
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

    def __init__(self, object_format: ObjectFormat) -> None:
        self._object_format = object_format
        self.oids: dict[str, list[bytes]] = {"want": [], "have": [], "shallow": []}
        self.values: dict[str, Any] = {}
        self.deepen_not: list[bytes] = []
        self.done = False

    def oid(self, text: bytes) -> bytes:
        """Raises InvalidArgument for anything but a full lowercase or uppercase hex object id."""
        if len(text) != 2 * self._object_format.hash_bytes:
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
        elif argument in (b"thin-pack", b"no-progress", b"include-tag", b"ofs-delta"):
            self.values[argument.decode("ascii").replace("-", "_")] = True
        elif argument == b"wait-for-done":
            self.values["wait_for_done"] = True
        elif argument == b"deepen-relative":
            self.values["deepen_relative"] = True
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
            self.values["filter"] = parse_filter(value)
        else:
            return False
        return True

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
            elif feature.startswith(b"agent="):
                self.values["agent"] = _shown(feature[6:])
            elif feature.startswith(b"object-format="):
                _check_object_format(feature[14:], self._object_format)


def _read_v2_header(reader: _LineReader, object_format: ObjectFormat) -> bytes | None:
    """The command; None for a body of nothing but a flush."""
    command: bytes | None = None
    empty = True
    for packet in reader.until_marker():
        empty = False
        line = packet.rstrip(b"\n")
        if line.startswith(b"command="):
            if command is not None:
                raise InvalidArgument("command requested after already requesting a command")
            command = line[8:]
        elif line.startswith(b"object-format="):
            _check_object_format(line[14:], object_format)
        elif not line.startswith((b"agent=", b"server-option=")):
            raise InvalidArgument(f"unknown capability '{_shown(line)}'")
    if command is None and not (empty and reader.last_marker is not Marker.DELIM):
        raise InvalidArgument("no command requested")
    return command


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


def _head_line(request: LsRefsRequest, view: RefsView) -> list[bytes]:
    oid = view.head_oid()
    target = b""
    if request.symrefs and view.detached_head is None and view.head is not None:
        target = b" symref-target:" + view.head
    if oid is not None:
        return [encode(oid.hex().encode("ascii") + b" HEAD" + target + b"\n")]
    if request.unborn and target:
        return [encode(b"unborn HEAD" + target + b"\n")]
    return []


def _check_object_format(name: bytes, expected: ObjectFormat) -> None:
    if name != expected.name_bytes:
        raise InvalidArgument(
            f"mismatched object format: server {_shown(expected.name_bytes)}; "
            f"client {_shown(name)}",
        )


def _resolve_name(name: bytes, view: RefsView) -> bytes:
    """git's `expand_ref`: the one ref that the abbreviated `name` may mean."""
    candidates = {rule % name for rule in _REF_RULES}
    found = [oid for ref, oid, _ in view.refs if ref in candidates]
    if name == b"HEAD" and (head := view.head_oid()) is not None:
        found.append(head)
    if len(found) != 1:
        problem = "ambiguous" if found else "unknown"
        raise NotFound(f"git upload-pack: {problem} deepen-not: {_shown(name)}")
    return found[0]


def _number(text: bytes, word: str, largest: int) -> int:
    if not (text.isdigit() and len(text) < 20 and 0 < int(text) <= largest):
        raise InvalidArgument(f"Invalid {word}: {_shown(text)}")
    return int(text)


def _shown(value: bytes) -> str:
    return value[:200].decode("utf-8", "replace")
