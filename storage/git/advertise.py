"""What a server says first: the ref advertisement of v0 and v1, the capabilities of v2.

Pure: a `RefsView` goes in, bytes come out. The `# service=` preamble of smart HTTP,
authentication and the choice of what a client may see belong to the edge; only refs in the view
exist here.
"""

from __future__ import annotations

from binascii import hexlify
from collections.abc import Sequence
from dataclasses import dataclass

from quorepo.storage.git import capabilities
from quorepo.storage.git.pktline import FLUSH, encode
from quorepo.storage.objectformat import ObjectFormat

__all__ = [
    "RefsView",
    "advertise_capabilities_v2",
    "advertise_receive_pack",
    "advertise_upload_pack_v0",
]


@dataclass(frozen=True)
class RefsView:
    """The refs one client may see, at one revision.

    `head` is the full name that HEAD points to, which need not exist (an unborn branch);
    `detached_head` is the object HEAD names directly. At most one of them is set.
    `refs` are (full name, object id, peeled object id or None when it is no tag object), sorted by
    name; HEAD is not among them. Object ids are raw.
    """

    head: bytes | None
    detached_head: bytes | None
    refs: Sequence[tuple[bytes, bytes, bytes | None]]
    object_format: ObjectFormat

    def head_oid(self) -> bytes | None:
        """The object id HEAD resolves to; None when it is unborn."""
        if self.detached_head is not None:
            return self.detached_head
        if self.head is None:
            return None
        for name, oid, _ in self.refs:
            if name == self.head:
                return oid
        return None

    def tips(self) -> list[bytes]:
        """The distinct object ids of all refs and of a detached HEAD, in the order of the refs."""
        tips = dict.fromkeys(oid for _, oid, _ in self.refs)
        if self.detached_head is not None:
            tips[self.detached_head] = None
        return list(tips)


def advertise_upload_pack_v0(view: RefsView, version: int = 0) -> bytes:
    """The ref advertisement of protocol v0 (`version` 0) or v1 (`version` 1), flush included."""
    head_oid = view.head_oid()
    lines: list[bytes] = []
    if head_oid is not None:
        lines.append(_ref_line(head_oid, b"HEAD"))
    for name, oid, peeled in view.refs:
        lines.append(_ref_line(oid, name))
        if peeled is not None:
            lines.append(_ref_line(peeled, name + b"^{}"))
    # git names the target of HEAD only where HEAD resolves; v2 has `unborn` for the rest.
    symbolic_head = view.head if view.detached_head is None and head_oid is not None else None
    words = capabilities.upload_pack_capabilities(view.object_format, symbolic_head)
    return _advertisement(view, lines, words, version)


def advertise_receive_pack(view: RefsView, version: int = 0) -> bytes:
    """The advertisement that a push sees: refs without HEAD and without peeled values."""
    lines = [_ref_line(oid, name) for name, oid, _ in view.refs]
    words = capabilities.receive_pack_capabilities(view.object_format)
    return _advertisement(view, lines, words, version)


def advertise_capabilities_v2(object_format: ObjectFormat) -> bytes:
    """The capability advertisement of protocol v2, flush included."""
    lines = [b"version 2", *capabilities.capabilities_v2(object_format)]
    return b"".join(encode(line + b"\n") for line in lines) + FLUSH


def _ref_line(oid: bytes, name: bytes) -> bytes:
    return hexlify(oid) + b" " + name


def _advertisement(view: RefsView, lines: list[bytes], words: bytes, version: int) -> bytes:
    zero_oid = bytes(view.object_format.hash_bytes)
    first, *others = lines or [_ref_line(zero_oid, b"capabilities^{}")]
    packets = [encode(first + b"\0" + words + b"\n")]
    if version == 1:
        packets.insert(0, encode(b"version 1\n"))
    # Written out: with 100,000 refs the calls of `encode` would take longer than all the rest.
    packets += [b"%04x%b\n" % (len(line) + 5, line) for line in others]
    packets.append(FLUSH)
    return b"".join(packets)
