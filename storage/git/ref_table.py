"""All refs of a repository at one revision, in the form in which they are sent.

Owns sorted blocks of about `_BLOCK_ROWS` refs, each written once as the lines of `ls-refs`. The
table of the next revision shares every block in which nothing changed, so what a push costs its
next reader depends on what it changed and not on how many refs there are; and a table that is read
from its file (`ref_table_file.py`) is not parsed before somebody asks for a row.

Immutable; threads may share it. Must not know what a client may see, nor where the refs come from.
"""

from __future__ import annotations

import hashlib
from binascii import hexlify, unhexlify
from bisect import bisect_left, bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from enum import Enum
from itertools import accumulate, chain
from operator import itemgetter
from typing import overload

from quorepo.storage.objectformat import ObjectFormat

__all__ = ["Block", "Form", "RefMap", "RefRow", "RefTable"]

# (full name, object id, peeled object id or None when it is no tag object).
RefRow = tuple[bytes, bytes, bytes | None]

_BLOCK_ROWS = 256
_PEELED = b" peeled:"


class Form(Enum):
    """How the lines of refs are written."""

    PLAIN = "plain"  # without what tags lead to
    PEELED = "peeled"  # protocol v2: at the end of a tag's line
    V0 = "v0"  # in a line of its own, behind the tag's


class Block:
    """Some refs in a row."""

    __slots__ = ("_digest", "_forms", "_tags", "_tips", "count", "first", "has_tags", "width")

    def __init__(self, lines: bytes, count: int, has_tags: bool, width: int) -> None:
        """`lines` are those of `Form.PEELED`, `width` the bytes of an object id."""
        self._forms: dict[Form, bytes] = {Form.PEELED: lines}
        if not has_tags:
            self._forms |= {Form.PLAIN: lines, Form.V0: lines}
        self.count = count
        self.has_tags = has_tags
        self.width = width
        line = lines[: int(lines[:4], 16) - 1]
        self.first = line[5 + 2 * width :].partition(_PEELED)[0]
        self._digest: bytes | None = None
        self._tips: tuple[str, ...] | None = None
        self._tags: tuple[RefRow, ...] | None = None

    @classmethod
    def of(cls, rows: Sequence[RefRow], width: int) -> Block:
        """The block of these rows, at least one."""
        size = 2 * width + len("0000 \n")
        lines = []
        has_tags = False
        for name, oid, peeled in rows:
            if peeled is not None:
                has_tags = True
                name = b"%b peeled:%b" % (name, hexlify(peeled))
            lines.append(b"%04x%b %b\n" % (size + len(name), hexlify(oid), name))
        return cls(b"".join(lines), len(rows), has_tags, width)

    def lines(self, form: Form) -> bytes:
        """All of it."""
        found = self._forms.get(form)
        if found is None:
            found = self._forms[form] = b"".join(_line(row, form) for row in self.rows())
        return found

    @property
    def stored(self) -> bytes:
        """The lines that the constructor takes."""
        return self._forms[Form.PEELED]

    def rows(self) -> list[RefRow]:
        """Parsed anew each time."""
        middle = 4 + 2 * self.width
        lines = self._forms[Form.PEELED].split(b"\n")
        del lines[-1]
        if not self.has_tags:
            return [(line[middle + 1 :], unhexlify(line[4:middle]), None) for line in lines]
        rows: list[RefRow] = []
        for line in lines:
            name, _, peeled = line[middle + 1 :].partition(_PEELED)
            rows.append((name, unhexlify(line[4:middle]), unhexlify(peeled) if peeled else None))
        return rows

    @property
    def digest(self) -> bytes:
        """SHA-256 of all that the block says."""
        if self._digest is None:
            self._digest = hashlib.sha256(self._forms[Form.PEELED]).digest()
        return self._digest

    @property
    def tips(self) -> tuple[str, ...]:
        """The object ids in hex, each once."""
        if self._tips is None:
            self._tips = tuple(dict.fromkeys(oid.hex() for _, oid, _ in self.rows()))
        return self._tips

    @property
    def tags(self) -> tuple[RefRow, ...]:
        """The rows of annotated tags."""
        if self._tags is None:
            rows = self.rows() if self.has_tags else ()
            self._tags = tuple(row for row in rows if row[2] is not None)
        return self._tags


class RefTable(Sequence[RefRow]):
    """The refs as a sequence of rows sorted by name, and as lines."""

    __slots__ = ("_firsts", "_starts", "blocks", "object_format")

    def __init__(self, blocks: Sequence[Block], object_format: ObjectFormat) -> None:
        self.blocks = tuple(blocks)
        self.object_format = object_format
        self._firsts = [block.first for block in self.blocks]
        self._starts = [0, *accumulate(block.count for block in self.blocks)]

    @classmethod
    def of(cls, rows: Sequence[RefRow], object_format: ObjectFormat) -> RefTable:
        """The table of rows that are sorted by name."""
        if isinstance(rows, RefTable):
            return rows
        return cls(_blocks(rows, object_format.hash_bytes), object_format)

    def patched(self, changes: Mapping[bytes, tuple[bytes, bytes | None] | None]) -> RefTable:
        """The table after `changes`: by name (object id, peeled), or None for a ref that is gone.

        Blocks without a change are shared.
        """
        by_block: dict[int, dict[bytes, tuple[bytes, bytes | None] | None]] = {}
        for name, value in changes.items():
            number = max(0, self.block_of(name))
            by_block.setdefault(number, {})[name] = value
        blocks: list[Block] = []
        taken = 0
        for number, news in sorted(by_block.items()):
            blocks += self.blocks[taken:number]
            taken = number + 1
            rows = {} if number >= len(self.blocks) else _by_name(self.blocks[number].rows())
            for name, value in news.items():
                if value is None:
                    rows.pop(name, None)
                else:
                    rows[name] = value
            merged = [(name, oid, peeled) for name, (oid, peeled) in sorted(rows.items())]
            blocks += _blocks(merged, self.object_format.hash_bytes)
        blocks += self.blocks[taken:]
        return RefTable(blocks, self.object_format)

    def without(self, hidden: Sequence[bytes]) -> RefTable:
        """The table without the refs of these names and those below them."""
        ranges = []
        for name in hidden:
            low = self.position(name)
            ranges.append((low, low + (self.find(name) is not None)))
            ranges += self._ranges([name + b"/"])
        kept: list[Block] = []
        position = 0
        for low, high in [*sorted(ranges), (len(self), len(self))]:
            kept += self._cut(position, low)
            position = max(position, high)
        return RefTable(kept, self.object_format)

    def find(self, name: bytes) -> RefRow | None:
        """The row of a ref by its full name."""
        number = self.block_of(name)
        if number < 0:
            return None
        rows = self.blocks[number].rows()
        place = bisect_left(rows, name, key=itemgetter(0))
        return rows[place] if place < len(rows) and rows[place][0] == name else None

    def block_of(self, name: bytes) -> int:
        """The number of the only block in which this name can be; -1 when there is none."""
        return bisect_right(self._firsts, name) - 1

    def names(self, prefix: bytes) -> Iterator[bytes]:
        """The names that start so, in order."""
        for low, high in self._ranges([prefix]):
            for block in self._cut(low, high):
                yield from (name for name, _, _ in block.rows())

    def page(self, prefix: bytes, after: bytes, limit: int) -> list[RefRow]:
        """At most `limit` rows with this prefix and a name behind `after`."""
        after_prefix = _after(prefix)
        # No ref name has a zero byte.
        low = self.position(max(prefix, after + b"\0" if after else b""))
        high = len(self) if after_prefix is None else self.position(after_prefix)
        return self[low : min(high, low + limit)]

    def position(self, name: bytes) -> int:
        """How many refs have a name before this one."""
        number = self.block_of(name)
        if number < 0:
            return 0
        rows = self.blocks[number].rows()
        return self._starts[number] + bisect_left(rows, name, key=itemgetter(0))

    def lines(self, form: Form, prefixes: Sequence[bytes] = ()) -> list[bytes]:
        """The lines of the refs whose name starts with one of `prefixes`, of all without any."""
        if not prefixes or b"" in prefixes:
            return [block.lines(form) for block in self.blocks]
        return [
            block.lines(form)
            for low, high in self._ranges(prefixes)
            for block in self._cut(low, high)
        ]

    @property
    def digest(self) -> bytes:
        """Of all refs. Tables of the same refs have the same one only if one became the other."""
        return hashlib.sha256(b"".join(block.digest for block in self.blocks)).digest()

    def tips(self) -> dict[str, None]:
        """The object ids of all refs in hex, each once, in their order."""
        return dict.fromkeys(chain.from_iterable(block.tips for block in self.blocks))

    def tags(self) -> Iterator[RefRow]:
        """The rows of annotated tags."""
        return chain.from_iterable(block.tags for block in self.blocks)

    def __len__(self) -> int:
        return self._starts[-1]

    def __iter__(self) -> Iterator[RefRow]:
        return chain.from_iterable(block.rows() for block in self.blocks)

    @overload
    def __getitem__(self, place: int) -> RefRow: ...
    @overload
    def __getitem__(self, place: slice) -> list[RefRow]: ...
    def __getitem__(self, place: int | slice) -> RefRow | list[RefRow]:
        if isinstance(place, slice):
            low, high, step = place.indices(len(self))
            rows = [row for block in self._cut(low, max(low, high)) for row in block.rows()]
            return rows if step == 1 else list(self)[place]
        index = range(len(self))[place]
        number = bisect_right(self._starts, index) - 1
        return self.blocks[number].rows()[index - self._starts[number]]

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Sequence) and list(self) == list(other)

    __hash__ = None  # type: ignore[assignment]

    def _ranges(self, prefixes: Sequence[bytes]) -> list[tuple[int, int]]:
        """Positions of the names that a prefix matches, in order, each once."""
        ranges: list[tuple[int, int]] = []
        end = 0
        for prefix in sorted(prefixes):
            after = _after(prefix)
            low = max(end, self.position(prefix))
            high = len(self) if after is None else self.position(after)
            if low < high:
                ranges.append((low, high))
                end = high
        return ranges

    def _cut(self, low: int, high: int) -> Iterator[Block]:
        """The blocks of the rows `low` to `high`; those at the ends may be new ones."""
        number = bisect_right(self._starts, low) - 1
        while low < high:
            block, start = self.blocks[number], self._starts[number]
            end = min(high, start + block.count)
            if (low, end) == (start, start + block.count):
                yield block
            else:
                yield Block.of(block.rows()[low - start : end - start], block.width)
            low, number = end, number + 1


class RefMap(Mapping[bytes, bytes]):
    """A table as a mapping of names to object ids, in the order of the names."""

    __slots__ = ("_found", "_table")

    def __init__(self, table: RefTable) -> None:
        self._table = table
        # What was looked at is looked at again: a push asks for a name and for all above it.
        self._found: dict[int, dict[bytes, bytes]] = {}

    def __getitem__(self, name: bytes) -> bytes:
        number = self._table.block_of(name)
        if number < 0:
            raise KeyError(name)
        found = self._found.get(number)
        if found is None:
            rows = self._table.blocks[number].rows()
            found = self._found[number] = {row[0]: row[1] for row in rows}
        return found[name]

    def __iter__(self) -> Iterator[bytes]:
        return (name for name, _, _ in self._table)

    def __len__(self) -> int:
        return len(self._table)

    def starting_with(self, prefix: bytes) -> Iterator[bytes]:
        """The names that do, in order."""
        return self._table.names(prefix)


def _line(row: RefRow, form: Form) -> bytes:
    name, oid, peeled = row
    text = hexlify(oid)
    line = b"%04x%b %b\n" % (len(text) + len(name) + 6, text, name)
    if peeled is None or form is Form.PLAIN:
        return line
    text = hexlify(peeled)
    return line + b"%04x%b %b^{}\n" % (len(text) + len(name) + 9, text, name)


def _blocks(rows: Sequence[RefRow], width: int) -> list[Block]:
    if len(rows) <= 2 * _BLOCK_ROWS:
        return [Block.of(rows, width)] if rows else []
    starts: Iterable[int] = range(0, len(rows), _BLOCK_ROWS)
    return [Block.of(rows[start : start + _BLOCK_ROWS], width) for start in starts]


def _by_name(rows: Iterable[RefRow]) -> dict[bytes, tuple[bytes, bytes | None]]:
    return {name: (oid, peeled) for name, oid, peeled in rows}


def _after(prefix: bytes) -> bytes | None:
    """The first string after all that begin with `prefix`; None when there is none."""
    shortened = prefix.rstrip(b"\xff")
    if not shortened:
        return None
    return shortened[:-1] + bytes([shortened[-1] + 1])
