"""Object filters of partial clones: `blob:none`, `blob:limit=`, `tree:`, `object:type=`,
`combine:`.

Owns the grammar (git's Documentation/rev-list-options.txt, `--filter`) and the decision per
object; which objects are asked about is the enumeration's matter. A combination is a conjunction,
and each of these filters is a bound, so a combination is again one bound per kind.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Any
from urllib.parse import unquote_to_bytes

from quorepo.storage.errors import InvalidArgument, LimitExceeded

__all__ = ["FILTERS_COMBINED_MAX", "ObjectFilter", "parse_filter"]

FILTERS_COMBINED_MAX = 16

_UNITS = {b"": 1, b"k": 1 << 10, b"m": 1 << 20, b"g": 1 << 30}
_NUMBER = re.compile(rb"([0-9]{1,18})([kmg]?)", re.IGNORECASE)
_TYPES = {b"commit": 1, b"tree": 2, b"blob": 3, b"tag": 4}


@dataclass(frozen=True)
class ObjectFilter:
    """Which objects a client wants to do without, unless it names them as wants.

    `blob_bytes_limit`: blobs of at least so many bytes are left out (0 = all of them).
    `tree_depth`: trees and blobs at this depth below a commit's root tree and deeper are left out
    (0 = all of them). `only_type`: 1 commit, 2 tree, 3 blob, 4 tag; other objects are left out,
    and 0 leaves out everything. None means no such bound.
    """

    blob_bytes_limit: int | None = None
    tree_depth: int | None = None
    only_type: int | None = None

    def combined_with(self, other: ObjectFilter) -> ObjectFilter:
        """The filter that keeps what both keep."""
        only_type = _agreed(self.only_type, other.only_type)
        return ObjectFilter(
            _smaller(self.blob_bytes_limit, other.blob_bytes_limit),
            _smaller(self.tree_depth, other.tree_depth),
            only_type,
        )

    def keeps_type(self, type_number: int) -> bool:
        """Whether objects of this type may be sent at all."""
        return self.only_type is None or self.only_type == type_number

    def to_json(self) -> dict[str, Any]:
        """For the way to a worker process."""
        return {
            "blob_bytes_limit": self.blob_bytes_limit,
            "tree_depth": self.tree_depth,
            "only_type": self.only_type,
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> ObjectFilter:
        """The inverse of `to_json`."""
        return cls(value["blob_bytes_limit"], value["tree_depth"], value["only_type"])


def parse_filter(specification: bytes, combined_max: int = FILTERS_COMBINED_MAX) -> ObjectFilter:
    """Read one filter. Combinations may be nested; all filters in them, combinations too, are at
    most `combined_max`, which bounds the nesting as well.

    Raises InvalidArgument when it is malformed or of a kind not served here, LimitExceeded.
    """
    return _Parser(combined_max).parse(specification)


class _Parser:
    """Counts the filters of one specification."""

    def __init__(self, combined_max: int) -> None:
        self._combined_max = combined_max
        self._count = -1  # a combination does not count itself

    def parse(self, specification: bytes) -> ObjectFilter:
        self._count += 1
        if self._count > self._combined_max:
            raise LimitExceeded(
                f"a filter combines more than {self._combined_max} filters, "
                "see limits.filters_combined_max",
                limit="limits.filters_combined_max",
            )
        if not specification.startswith(b"combine:"):
            return _simple(specification)
        combined = ObjectFilter()
        for part in specification[8:].split(b"+"):
            combined = combined.combined_with(self.parse(unquote_to_bytes(part)))
        return combined


def _simple(specification: bytes) -> ObjectFilter:
    if specification == b"blob:none":
        return ObjectFilter(blob_bytes_limit=0)
    kind, separator, value = specification.partition(b"=")
    if kind == b"blob:limit" and separator:
        return ObjectFilter(blob_bytes_limit=_number(value, specification))
    if kind == b"object:type" and value in _TYPES:
        return ObjectFilter(only_type=_TYPES[value])
    if kind in (b"sparse:oid", b"sparse:path"):
        raise InvalidArgument(
            f"filter '{_shown(kind)}' is not supported by this server",
            next_step="use blob:none, blob:limit=, tree:, object:type= or combine:",
        )
    if specification.startswith(b"tree:"):
        return ObjectFilter(tree_depth=_number(specification[5:], specification))
    raise InvalidArgument(f"invalid filter-spec '{_shown(specification)}'")


def _number(value: bytes, specification: bytes) -> int:
    match = _NUMBER.fullmatch(value)
    if match is None:
        raise InvalidArgument(f"invalid filter-spec '{_shown(specification)}'")
    return int(match.group(1)) * _UNITS[match.group(2).lower()]


def _smaller(left: int | None, right: int | None) -> int | None:
    if left is None or right is None:
        return right if left is None else left
    return min(left, right)


def _agreed(left: int | None, right: int | None) -> int | None:
    if left is None or right is None or left == right:
        return right if left is None else left
    return 0


def _shown(value: bytes) -> str:
    return value[:200].decode("utf-8", "replace")
