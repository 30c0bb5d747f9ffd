"""What a server says first: the ref advertisement of v0 and v1, the capabilities of v2.

Pure: a `RefsView` goes in, bytes come out. The `# service=` preamble of smart HTTP,
authentication and the choice of what a client may see belong to the edge; only refs in the view
exist here.
"""

from __future__ import annotations

from binascii import hexlify
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

from quorepo.storage.git import capabilities
from quorepo.storage.git.pktline import FLUSH, encode
from quorepo.storage.git.ref_table import Form, RefTable
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
        row = None if self.head is None else self.table.find(self.head)
        return None if row is None else row[1]

    @cached_property
    def table(self) -> RefTable:
        """The refs in the form in which they are sent."""
        return RefTable.of(self.refs, self.object_format)

    def tips(self) -> list[bytes]:
        """The distinct object ids of all refs and of a detached HEAD, in the order of the refs."""
        return [bytes.fromhex(tip) for tip in self.tips_in_hex()]

    def tips_in_hex(self) -> list[str]:
        """The same."""
        tips = self.table.tips()
        if self.detached_head is not None:
            tips[self.detached_head.hex()] = None
        return list(tips)


def advertise_upload_pack_v0(view: RefsView, version: int = 0) -> bytes:
    """The ref advertisement of protocol v0 (`version` 0) or v1 (`version` 1), flush included."""
    head_oid = view.head_oid()
    first = None if head_oid is None else _ref_line(head_oid, b"HEAD")
    # git names the target of HEAD only where HEAD resolves; v2 has `unborn` for the rest.
    symbolic_head = view.head if view.detached_head is None and head_oid is not None else None
    words = capabilities.upload_pack_capabilities(view.object_format, symbolic_head)
    return _advertisement(view, first, Form.V0, words, version)


def advertise_receive_pack(view: RefsView, version: int = 0) -> bytes:
    """The advertisement that a push sees: refs without HEAD and without peeled values."""
    words = capabilities.receive_pack_capabilities(view.object_format)
    return _advertisement(view, None, Form.PLAIN, words, version)


def advertise_capabilities_v2(object_format: ObjectFormat, *, bundle_uri: bool = False) -> bytes:
    """The capability advertisement of protocol v2, flush included."""
    words = capabilities.capabilities_v2(object_format, bundle_uri=bundle_uri)
    lines = [b"version 2", *words]
    return b"".join(encode(line + b"\n") for line in lines) + FLUSH


def _ref_line(oid: bytes, name: bytes) -> bytes:
    return hexlify(oid) + b" " + name


def _advertisement(
    view: RefsView, first: bytes | None, form: Form, words: bytes, version: int
) -> bytes:
    """`first` is the line before all refs, which carries the words; else the first ref's does."""
    lines = view.table.lines(form)
    if first is None and lines:
        end = int(lines[0][:4], 16)
        first = lines[0][4 : end - 1]
        lines[0] = lines[0][end:]
    elif first is None:
        first = _ref_line(bytes(view.object_format.hash_bytes), b"capabilities^{}")
    packets = [encode(b"version 1\n")] if version == 1 else []
    return b"".join([*packets, encode(first + b"\0" + words + b"\n"), *lines, FLUSH])
