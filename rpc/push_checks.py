"""What can be refused before the pack is read, and the words for every refusal of a ref.

Pure: commands and one picture of the refs go in, reasons come out. Apply checks all of it again in
log order; a reason given here is certain because the picture was linearizable as the push began.
"""

from __future__ import annotations

import bisect
import collections
import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import takewhile

from quorepo.rpc.git_settings import is_hidden
from quorepo.storage.git.ref_table import RefMap
from quorepo.storage.git.refnames import check_ref_name
from quorepo.storage.limits import StorageLimits
from quorepo.storage.objectformat import ObjectFormat

__all__ = [
    "ATOMIC_FAILURE",
    "Change",
    "conflict_reason",
    "early_refusals",
    "stale_reason",
]

ATOMIC_FAILURE = "atomic push failure"  # git's words, receive-pack.c execute_commands_atomic()
_HIDDEN = "deny updating a hidden ref"  # git's words, reject_updates_to_hidden()
_DELETE_CURRENT = "deletion of the current branch prohibited"  # git's words, update()


@dataclasses.dataclass(frozen=True, slots=True)
class Change:
    """One ref to move. Raw object ids; `new` None deletes, `expected` None: it must not exist."""

    name: bytes
    new: bytes | None
    expected: bytes | None
    any_old: bool = False  # do not compare with `expected`


def early_refusals(
    changes: Sequence[Change],
    refs: Mapping[bytes, bytes],
    head: bytes | None,
    object_format: ObjectFormat,
    limits: StorageLimits,
    *,
    deny_delete_current: bool = True,
    hidden_prefixes: tuple[bytes, ...] = (),
) -> dict[int, str]:
    """The changes that cannot be applied to `refs`, by position, with the reason for the client.

    Source: the order of checks in git's receive-pack.c, update(): name, current branch, old value;
    then directory/file conflicts as in refs.c, refs_verify_refname_available(), deletions first.
    """
    refused: dict[int, str] = {}
    names = [change.name for change in changes]
    repeated = {name for name, count in collections.Counter(names).items() if count > 1}
    for position, change in enumerate(changes):
        reason = _name_reason(change, repeated, limits)
        if reason is None and is_hidden(change.name, hidden_prefixes):
            reason = _HIDDEN
        if reason is None and change.new is None and deny_delete_current and change.name == head:
            reason = _DELETE_CURRENT if change.name in refs else None
        if reason is None:
            reason = _stale(change, refs, object_format)
        if reason is not None:
            refused[position] = reason
    _add_conflicts(changes, refs, refused)
    return refused


def stale_reason(expected: bytes | None, actual: bytes | None, object_format: ObjectFormat) -> str:
    """A compare-and-swap missed; the zero id stands for "does not exist", as in git's protocol."""
    zero = bytes(object_format.hash_bytes)
    return f"stale info: expected {(expected or zero).hex()}, is {(actual or zero).hex()}"


def conflict_reason(name: bytes, existing: bytes) -> str:
    """`a` against `a/b`, in the words of git's refs.c."""
    return f"'{_text(existing)}' exists; cannot create '{_text(name)}'"


def _name_reason(change: Change, repeated: set[bytes], limits: StorageLimits) -> str | None:
    if change.name in repeated:
        return f"multiple updates for ref '{_text(change.name)}' not allowed"
    if len(change.name) > limits.ref_name_bytes_max:
        return (
            f"ref name has {len(change.name)} bytes, "
            f"limits.ref_name_bytes_max is {limits.ref_name_bytes_max}"
        )
    problem = check_ref_name(change.name)
    return None if problem is None else f"funny refname: {problem}"


def _stale(change: Change, refs: Mapping[bytes, bytes], object_format: ObjectFormat) -> str | None:
    actual = refs.get(change.name)
    if change.any_old or change.expected == actual:
        return None
    return stale_reason(change.expected, actual, object_format)


def _add_conflicts(
    changes: Sequence[Change], refs: Mapping[bytes, bytes], refused: dict[int, str]
) -> None:
    accepted = [(i, change) for i, change in enumerate(changes) if i not in refused]
    deleted = {change.name for _i, change in accepted if change.new is None}
    created: dict[bytes, bytes] = {}  # every proper prefix of a created name -> that name
    created_names: set[bytes] = set()
    under = _names_under(refs)
    for position, change in accepted:
        if change.new is None or (change.name in refs and change.name not in deleted):
            continue
        prefixes = _prefixes(change.name)
        other = next(
            (p for p in prefixes if (p in refs and p not in deleted) or p in created_names), None
        )
        other = other or created.get(change.name) or _child(change.name, under, deleted)
        if other is not None:
            refused[position] = conflict_reason(change.name, other)
            continue
        created_names.add(change.name)
        created.update(dict.fromkeys(prefixes, change.name))


def _prefixes(name: bytes) -> list[bytes]:
    parts = name.split(b"/")
    return [b"/".join(parts[:count]) for count in range(1, len(parts))]


def _names_under(refs: Mapping[bytes, bytes]) -> Callable[[bytes], Iterable[bytes]]:
    """What tells the names that start with a prefix, without a look at all of them each time."""
    if isinstance(refs, RefMap):
        return refs.starting_with
    ordered: list[bytes] = []

    def under(prefix: bytes) -> Iterable[bytes]:
        if not ordered:
            ordered.extend(sorted(refs))
        places = range(bisect.bisect_left(ordered, prefix), len(ordered))
        return takewhile(lambda name: name.startswith(prefix), map(ordered.__getitem__, places))

    return under


def _child(
    name: bytes, under: Callable[[bytes], Iterable[bytes]], deleted: set[bytes]
) -> bytes | None:
    return next((child for child in under(name + b"/") if child not in deleted), None)


def _text(name: bytes) -> str:
    return name.decode("utf-8", "replace")
