"""The machine's verdict on each ref update of a transaction; reads refs, writes nothing.

Order of evaluation:

1. Every update is checked against the state before the transaction: its name, then its expected
old value. 2. Deletes that passed count as done, wherever they stand in the list: one push may
replace `a` by `a/b`. 3. Updates that create a ref are taken in the order of the command. Each must
not conflict with a ref that stays or
   with one created before it: `a` and `a/b` can't both exist.
4. When the transaction is atomic and any update was refused, the others are ATOMIC_ABORTED.

git evaluates the non-atomic case one command at a time, so there a delete only helps the creates
behind it; this order is more generous in that one case, and independent of how a client sorts its
refs.

A delete of a ref that does not exist succeeds when its expected old value is empty (git only
warns); an update to the value that the ref has already succeeds too.

Pure, see machine.py. Conflicts cost one index lookup per parent and one range scan per created ref.
"""

from __future__ import annotations

import dataclasses
import sqlite3
from collections.abc import Iterator, Sequence

from quorepo.internal.v1 import log_pb2
from quorepo.storage.git.refnames import check_ref_name

__all__ = ["RefChange", "evaluate"]


@dataclasses.dataclass(frozen=True, slots=True)
class RefChange:
    """An update that succeeded. Both None: a delete of a ref that was not there."""

    name: bytes
    old_oid: bytes | None
    new_oid: bytes | None


def evaluate(
    connection: sqlite3.Connection,
    repository_id: str,
    updates: Sequence[log_pb2.RefUpdate],
    *,
    atomic: bool,
) -> tuple[list[log_pb2.RefResult], list[RefChange]]:
    """One result per update, and the changes to make, in the order of `updates`.

    No name may come twice.
    """
    refs = _Refs(connection, repository_id)
    results = []
    changes: list[RefChange | None] = []
    for update in updates:
        result, change = _compare(refs, update)
        results.append(result)
        changes.append(change)
    names = _Names(refs, changes)
    for position, change in enumerate(changes):
        if change is None or change.new_oid is None or change.old_oid is not None:
            continue
        conflict = names.conflict_of(change.name)
        if conflict is None:
            names.add(change.name)
            continue
        changes[position] = None
        results[position] = log_pb2.RefResult(
            name=change.name,
            status=log_pb2.REF_STATUS_NAME_CONFLICT,
            conflicting_name=conflict,
        )
    if atomic and None in changes:
        return [_aborted(result) for result in results], []
    return results, [change for change in changes if change is not None]


def _aborted(result: log_pb2.RefResult) -> log_pb2.RefResult:
    if result.status != log_pb2.REF_STATUS_OK:
        return result
    return log_pb2.RefResult(name=result.name, status=log_pb2.REF_STATUS_ATOMIC_ABORTED)


def _compare(refs: _Refs, update: log_pb2.RefUpdate) -> tuple[log_pb2.RefResult, RefChange | None]:
    """The update by itself: its name, and its expected old value."""
    if check_ref_name(update.name) is not None:
        status = log_pb2.REF_STATUS_INVALID_NAME
        return log_pb2.RefResult(name=update.name, status=status), None
    old_oid = refs.oid(update.name)
    if not update.any_old and update.expected_old_oid != (old_oid or b""):
        stale = log_pb2.RefResult(
            name=update.name, status=log_pb2.REF_STATUS_STALE, actual_old_oid=old_oid or b""
        )
        return stale, None
    change = RefChange(update.name, old_oid, update.new_oid or None)
    return log_pb2.RefResult(name=update.name, status=log_pb2.REF_STATUS_OK), change


class _Refs:
    """The refs of one repository before the transaction."""

    def __init__(self, connection: sqlite3.Connection, repository_id: str) -> None:
        self._connection = connection
        self._repository_id = repository_id
        self._known: dict[bytes, bytes | None] = {}

    def oid(self, name: bytes) -> bytes | None:
        if name not in self._known:
            row = self._connection.execute(
                "SELECT oid FROM refs WHERE repository_id = ? AND name = ?",
                (self._repository_id, name),
            ).fetchone()
            self._known[name] = None if row is None else row[0]
        return self._known[name]

    def below(self, name: bytes) -> Iterator[bytes]:
        """Names of the refs under `name/`, sorted."""
        rows = self._connection.execute(
            # '0' is the character after '/'.
            "SELECT name FROM refs WHERE repository_id = ? AND name > ? AND name < ? ORDER BY name",
            (self._repository_id, name + b"/", name + b"0"),
        )
        for row in rows:
            yield row[0]


class _Names:
    """Which names are taken while a transaction creates refs: those that stay, and the new ones."""

    def __init__(self, refs: _Refs, changes: Sequence[RefChange | None]) -> None:
        self._refs = refs
        self._deleted = dict.fromkeys(
            change.name for change in changes if change is not None and change.new_oid is None
        )
        self._created: dict[bytes, None] = {}
        self._created_below: dict[
            bytes, bytes
        ] = {}  # a parent of created refs -> the first of them

    def conflict_of(self, name: bytes) -> bytes | None:
        """A taken name that can't exist beside `name`; parents first, the shortest one first."""
        for parent in _parents(name):
            if parent in self._created:
                return parent
            if parent not in self._deleted and self._refs.oid(parent) is not None:
                return parent
        if name in self._created_below:
            return self._created_below[name]
        for child in self._refs.below(name):
            if child not in self._deleted:
                return child
        return None

    def add(self, name: bytes) -> None:
        self._created[name] = None
        for parent in _parents(name):
            self._created_below.setdefault(parent, name)


def _parents(name: bytes) -> Iterator[bytes]:
    """`refs/heads/a/b` -> `refs/heads`, `refs/heads/a`."""
    slash = name.find(b"/", len(b"refs/"))
    while slash != -1:
        yield name[:slash]
        slash = name.find(b"/", slash + 1)
