"""What a revision names: a ref or an object id, and the steps after it.

    NAME        HEAD, a full ref name, or one found as refs/NAME, refs/tags/NAME, refs/heads/NAME
    HEX         an object id, abbreviated to no less than four digits
    ~N  ^N      the Nth generation of first parents; the Nth parent, ^0 the commit itself
    ^{TYPE}     what it leads to of that type: commit, tree, blob, tag, object; ^{}: no tag

Owns that grammar. Must not know where refs come from. Source: gitrevisions(7); git looks a name up
before it takes it for an abbreviated id, and so does this.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from quorepo.storage.errors import InvalidArgument, NotFound
from quorepo.storage.history.source import History
from quorepo.storage.packs import BLOB, COMMIT, TAG, TREE, TYPE_NAMES

__all__ = ["REVISION_BYTES_MAX", "AmbiguousObject", "peel", "resolve", "shown"]

REVISION_BYTES_MAX = 4096
_ABBREVIATION_MIN = 4
_CANDIDATES_SHOWN_MAX = 16
_TAG_CHAIN_MAX = 64
_GENERATIONS_MAX = 10_000
_STEP = re.compile(rb"~(\d{0,9})|\^\{([a-z]*)\}|\^(\d{0,9})")
_HEX = re.compile(rb"[0-9a-fA-F]+")
_TYPES = {b"commit": COMMIT, b"tree": TREE, b"blob": BLOB, b"tag": TAG}

Lookup = Callable[[bytes], bytes | None]


class AmbiguousObject(InvalidArgument):
    """Several objects begin with an abbreviated id."""

    reason = "AMBIGUOUS_OBJECT_ID"

    def __init__(self, prefix: str, candidates: list[str]) -> None:
        super().__init__(
            f"object id {prefix!r} is ambiguous, {len(candidates)} objects or more begin with it",
            next_step="give more of its digits",
        )
        self.prefix = prefix
        self.candidates = candidates


def resolve(history: History, text: bytes, lookup: Lookup) -> bytes:
    """The raw id of what `text` names. `lookup` gives the value of `HEAD` or of a full ref name,
    None when there is no such ref.

    Raises:
        InvalidArgument: empty, too long, not of this grammar, or a step that leads nowhere.
        AmbiguousObject
        NotFound: nothing has that name.
    """
    if not text or len(text) > REVISION_BYTES_MAX:
        raise InvalidArgument(f"a revision must have 1 to {REVISION_BYTES_MAX} bytes")
    end = min((place for mark in b"~^" if (place := text.find(mark)) >= 0), default=len(text))
    oid = _named(history, text[:end], lookup)
    while end < len(text):
        step = _STEP.match(text, end)
        if step is None:
            raise InvalidArgument(
                f"revision {shown(text)} ends in {shown(text[end:])}, which is no step",
                next_step="use ~N, ^N, ^{commit}, ^{tree}, ^{blob}, ^{tag} or ^{}",
            )
        oid = _stepped(history, oid, step, text)
        end = step.end()
    return oid


def peel(history: History, oid: bytes, kind: int | None = None) -> tuple[bytes, int]:
    """Follows tags to what is no tag, or to the first object of `kind`; a commit leads to its tree.

    Returns the object and its type.

    Raises:
        InvalidArgument: it leads to something else.
        NotFound
    """
    for _ in range(_TAG_CHAIN_MAX):
        found = history.objects.object_type(oid)
        if found == kind or (kind is None and found != TAG):
            return oid, found
        if found == COMMIT and kind == TREE:
            return history.root_of(oid)[1], TREE
        if found != TAG:
            assert kind is not None
            raise history.wrong_kind(oid, found, kind)
        oid = history.reader.tag_target(oid)
    raise InvalidArgument(f"more than {_TAG_CHAIN_MAX} tags lead to each other at {oid.hex()}")


def _named(history: History, name: bytes, lookup: Lookup) -> bytes:
    for candidate in (name, b"refs/" + name, b"refs/tags/" + name, b"refs/heads/" + name):
        if candidate == b"HEAD" or candidate.startswith(b"refs/"):
            found = lookup(candidate)
            if found is not None:
                return found
    if name == b"HEAD":
        raise NotFound("'HEAD' points to a branch that does not exist yet")
    width = history.objects.object_format.hex_bytes
    if _HEX.fullmatch(name) and _ABBREVIATION_MIN <= len(name) <= width:
        digits = name.decode("ascii").lower()
        oids = _beginning_with(history, digits)
        if len(oids) > 1:
            raise AmbiguousObject(digits, [oid.hex() for oid in oids])
        if oids:
            return oids[0]
    raise NotFound(f"{shown(name)} is no ref and no object")


def _beginning_with(history: History, digits: str) -> list[bytes]:
    """Ids that begin with these digits, a few of them, in order."""
    if len(digits) == history.objects.object_format.hex_bytes:
        oid = bytes.fromhex(digits)
        return [oid] if oid in history.objects else []
    found: set[bytes] = set()
    for pack in history.objects.packs:
        found.update(pack.oids_beginning_with(digits, _CANDIDATES_SHOWN_MAX))
    return sorted(found)[:_CANDIDATES_SHOWN_MAX]


def _stepped(history: History, oid: bytes, step: re.Match[bytes], text: bytes) -> bytes:
    generations, type_name, number = step.groups()
    if type_name is not None:
        if type_name == b"object":
            return oid
        kind = _TYPES.get(type_name) if type_name else None
        if type_name and kind is None:
            raise InvalidArgument(f"revision {shown(text)}: {shown(type_name)} is no type")
        return peel(history, oid, kind)[0]
    oid, _ = peel(history, oid, COMMIT)
    if generations is not None:
        count = int(generations or b"1")
        if count > _GENERATIONS_MAX:
            raise InvalidArgument(f"revision {shown(text)}: at most ~{_GENERATIONS_MAX} is allowed")
        for _ in range(count):
            history.spend()
            oid = _parent(history, oid, 1, text)
        return oid
    nth = int(number or b"1")
    return _parent(history, oid, nth, text) if nth else oid


def _parent(history: History, oid: bytes, nth: int, text: bytes) -> bytes:
    parents = history.parents_of(oid)
    if nth > len(parents):
        raise NotFound(
            f"revision {shown(text)}: {TYPE_NAMES[COMMIT].decode()} {oid.hex()} has "
            f"{len(parents)} parents"
        )
    return parents[nth - 1]


def shown(name: bytes) -> str:
    """A name as messages quote it."""
    return repr(name[:200].decode("utf-8", "backslashreplace"))
