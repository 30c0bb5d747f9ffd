"""The lines of `ls-refs`, written once per picture of the refs and cut out for every request.

Owns a buffer with the line of every ref in the order of the names; a prefix is a range in it. What
a line says is `upload_pack.ls_refs`'s matter, and so is the line of HEAD.
"""

from __future__ import annotations

import dataclasses
from array import array
from binascii import hexlify
from bisect import bisect_left
from collections.abc import Sequence

from quorepo.storage.git.advertise import RefsView
from quorepo.storage.git.fetch_request import LsRefsRequest
from quorepo.storage.git.pktline import FLUSH
from quorepo.storage.git.upload_pack import ls_refs

__all__ = ["RefLines"]


class RefLines:
    """Answers to `ls-refs` about one view; equal to what `ls_refs` would write."""

    def __init__(self, view: RefsView) -> None:
        self._view = view
        self._names = [name for name, _, _ in view.refs]
        self._buffers: dict[bool, tuple[bytes, array[int]]] = {}

    def answer(self, request: LsRefsRequest) -> bytes:
        """The whole answer."""
        lines, starts = self._lines(request.peel)
        pieces = [self._head(request)]
        pieces += [lines[starts[low] : starts[high]] for low, high in self._ranges(request)]
        return b"".join([*pieces, FLUSH])

    def _head(self, request: LsRefsRequest) -> bytes:
        """What `ls_refs` writes for HEAD, which needs the ref that HEAD points to and no other."""
        position = bisect_left(self._names, self._view.head or b"")
        rows = self._view.refs[position : position + 1]
        view = dataclasses.replace(self._view, refs=rows)
        only_head = dataclasses.replace(request, prefixes=(b"HEAD",))
        if request.prefixes and not b"HEAD".startswith(request.prefixes):
            return b""
        return ls_refs(only_head, view).removesuffix(FLUSH)

    def _ranges(self, request: LsRefsRequest) -> Sequence[tuple[int, int]]:
        """Positions of the names that a prefix matches, in order, each once."""
        names = self._names
        if not request.prefixes:
            return [(0, len(names))]
        ranges: list[tuple[int, int]] = []
        end = 0
        for prefix in sorted(request.prefixes):
            low = max(end, bisect_left(names, prefix))
            after = _after(prefix)
            high = len(names) if after is None else bisect_left(names, after)
            if low < high:
                ranges.append((low, high))
                end = high
        return ranges

    def _lines(self, peel: bool) -> tuple[bytes, array[int]]:
        if peel not in self._buffers:
            lines = []
            size = 2 * self._view.object_format.hash_bytes + len("0000 \n")
            for name, oid, peeled in self._view.refs:
                if peel and peeled is not None:
                    name = b"%b peeled:%b" % (name, hexlify(peeled))
                lines.append(b"%04x%b %b\n" % (size + len(name), hexlify(oid), name))
            starts = array("Q", [0])
            position = 0
            for line in lines:
                position += len(line)
                starts.append(position)
            self._buffers[peel] = (b"".join(lines), starts)
        return self._buffers[peel]


def _after(prefix: bytes) -> bytes | None:
    """The first string after all that begin with `prefix`; None when there is none."""
    shortened = prefix.rstrip(b"\xff")
    if not shortened:
        return None
    return shortened[:-1] + bytes([shortened[-1] + 1])
