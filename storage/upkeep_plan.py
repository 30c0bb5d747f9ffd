"""Which packs of a repository are worth merging; pure.

The idea is git's `repack --geometric=2` (builtin/repack.c, split_pack_geometry): packs sorted by
size shall each have at least twice the objects of all smaller ones together. Then there are few of
them, and an object is copied only a logarithmic number of times in its life. Object counts decide,
as in git, but the bytes of one run are bounded: what does not fit stays as it is.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final, NamedTuple

__all__ = ["PackSize", "geometric", "within_bytes"]

_FACTOR: Final = 2


class PackSize(NamedTuple):
    """One pack of a repository."""

    digest: bytes
    object_count: int
    pack_bytes: int


def geometric(packs: Sequence[PackSize]) -> list[PackSize]:
    """The packs to merge into one so that all form a geometric progression; none when they do."""
    ordered = sorted(packs, key=lambda pack: (pack.object_count, pack.pack_bytes, pack.digest))
    split = len(ordered) - 1
    while split > 0:
        if ordered[split].object_count < _FACTOR * ordered[split - 1].object_count:
            break
        split -= 1
    if split <= 0:
        return []
    split += 1  # the larger one of the pair that breaks the progression is merged too
    total = sum(pack.object_count for pack in ordered[:split])
    while split < len(ordered) and ordered[split].object_count < _FACTOR * total:
        total += ordered[split].object_count
        split += 1
    return ordered[:split]


def within_bytes(packs: Sequence[PackSize], bytes_max: int) -> list[PackSize]:
    """The smallest of the packs that have at most `bytes_max` together; none when that is one."""
    chosen: list[PackSize] = []
    total = 0
    for pack in sorted(packs, key=lambda pack: (pack.pack_bytes, pack.digest)):
        total += pack.pack_bytes
        if total > bytes_max:
            break
        chosen.append(pack)
    return chosen if len(chosen) > 1 else []
