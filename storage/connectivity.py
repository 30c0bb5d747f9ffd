"""Whether everything that the objects of a push refer to is there, and is what it is taken for.

Owns the set of references that are still open. The store is closed: whatever a stored object
refers to is stored (invariant 6 of the architecture), so an object that exists needs no walk. Must
not know how references are found.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Final

from quorepo.storage.errors import CorruptPack
from quorepo.storage.packfile import COMMIT, TYPE_NAMES
from quorepo.storage.packs import PackSet

__all__ = ["Connectivity", "Tip", "check_tips"]

# Full ref name and the raw id that the ref is to have.
Tip = tuple[bytes, bytes]

_BRANCH_PREFIX: Final = b"refs/heads/"


class Connectivity:
    """References of one push. `objects` maps the ids in the pack to numbers, by which `types` holds
    object types (1-4); both grow while the pack is read."""

    def __init__(
        self, existing: PackSet, objects: Mapping[bytes, int], types: Sequence[int]
    ) -> None:
        self._existing = existing
        self._objects = objects
        self._types = types
        self._open: dict[bytes, int] = {}

    def refer(self, oid: bytes, type_num: int) -> None:
        """Some object refers to `oid` as an object of that type. Raises CorruptPack."""
        number = self._objects.get(oid)
        known = self._open.setdefault(oid, type_num) if number is None else self._types[number]
        if known != type_num:
            raise _mismatch(oid, known, type_num)

    def arrive(self, oid: bytes, type_num: int) -> None:
        """An object of the pack is known. Raises CorruptPack when it was taken for another type."""
        expected = self._open.pop(oid, type_num)
        if expected != type_num:
            raise _mismatch(oid, type_num, expected)

    def settle(self) -> None:
        """All objects arrived: what is still open must exist. Raises CorruptPack; its metadata
        `missing` names an object that is nowhere.
        """
        for oid, type_num in self._open.items():
            located = self._existing.locate(oid)
            if located is None:
                name = TYPE_NAMES[type_num].decode()
                raise CorruptPack(
                    f"did not receive expected object {oid.hex()}, a {name}",
                    object=oid.hex(),
                    missing=oid.hex(),
                )
            actual = self._existing.type_at(*located)
            if actual != type_num:
                raise _mismatch(oid, actual, type_num)

    def check_tips(self, tips: Sequence[Tip]) -> None:
        """Every ref's new object is there, and a branch's is a commit. Raises CorruptPack."""
        _check_tips(tips, self._existing, self._type_in_pack)

    def _type_in_pack(self, oid: bytes) -> int | None:
        number = self._objects.get(oid)
        return None if number is None else self._types[number]


def check_tips(existing: PackSet, new_tips: Sequence[Tip]) -> None:
    """The check of a push without a pack: every new tip exists, and a branch's is a commit.

    Raises CorruptPack; its metadata `ref` names the ref.
    """
    _check_tips(new_tips, existing, lambda _: None)


def _check_tips(
    tips: Sequence[Tip], existing: PackSet, type_in_pack: Callable[[bytes], int | None]
) -> None:
    for name, oid in tips:
        type_num = type_in_pack(oid)
        shown = name.decode("utf-8", "backslashreplace")
        if type_num is None:
            located = existing.locate(oid)
            if located is None:
                raise CorruptPack(
                    f"missing necessary objects: {shown} is to be {oid.hex()}, which is nowhere",
                    ref=shown,
                    object=oid.hex(),
                )
            type_num = existing.type_at(*located)
        if name.startswith(_BRANCH_PREFIX) and type_num != COMMIT:
            raise CorruptPack(
                f"cannot update ref {shown!r}: trying to write non-commit object {oid.hex()} "
                f"to branch {shown!r}",
                ref=shown,
                object=oid.hex(),
            )


def _mismatch(oid: bytes, actual: int, expected: int) -> CorruptPack:
    actual_name, expected_name = TYPE_NAMES[actual].decode(), TYPE_NAMES[expected].decode()
    return CorruptPack(
        f"object {oid.hex()} is a {actual_name}, not a {expected_name}", object=oid.hex()
    )
