"""What a finished answer consists of. Must not know how it was built."""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from quorepo.storage.packs import PackFile

__all__ = ["PackResult", "Part"]


class Part(NamedTuple):
    """Bytes `start` to `end` of a stored pack, or of the written file when `pack` is None."""

    pack: PackFile | None
    start: int
    end: int


@dataclass(frozen=True)
class PackResult:
    """A finished pack: its size in bytes, its objects, and how many of their entries were copied
    rather than compressed again.

    The pack is its `parts` one after the other, followed, when `is_sealed` is False, by the hash
    of all of them.
    """

    pack_bytes: int
    objects: int
    reused: int
    parts: tuple[Part, ...]
    is_sealed: bool
