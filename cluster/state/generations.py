"""Which state file of a group is in force: CURRENT, and the step from one generation to the next.

A state file is never overwritten. A new one (the first, or one made from a snapshot) is completed
under a temporary name, synced, renamed to `state.<generation>.sqlite3`, and comes into force when
CURRENT names it; both renames are durable before anything depends on them. So at any instant
CURRENT names a complete file. Readers look at CURRENT before every transaction, and go on with the
old file, unlinked or not, until then.

Knows nothing of what a state means.
"""

from __future__ import annotations

import os
import re
import sqlite3
from pathlib import Path

from quorepo.cluster.state.database import (
    check_format,
    connect_reader,
    connect_writer,
    create_schema,
    fatal_from_sqlite,
    upgrade,
)
from quorepo.storage.errors import FatalError
from quorepo.storage.failpoints import failpoint
from quorepo.storage.layout import GroupLayout, fsync_dir, fsync_file, write_durably

__all__ = ["create_first", "current_generation", "install", "remove_stale", "state_path"]

_CURRENT_PATTERN = re.compile(rb"state\.([1-9][0-9]{0,17})\.sqlite3\n")
_STATE_PATTERN = re.compile(r"state\.([1-9][0-9]{0,17})\.sqlite3")
_CURRENT_BYTES_MAX = 4096  # of a damaged one as much as says so
_SIDE_FILES = ("-wal", "-shm", "-journal")
_BUSY_TIMEOUT_S = 5.0


def state_path(layout: GroupLayout, generation: int) -> Path:
    return layout.state_dir / f"state.{generation}.sqlite3"


def _current_path(layout: GroupLayout) -> Path:
    return layout.state_dir / "CURRENT"


def current_generation(layout: GroupLayout) -> int | None:
    """The generation that CURRENT names; None while the group has no state on this node.

    Raises FatalError when CURRENT is damaged.
    """
    path = _current_path(layout)
    try:
        # Before every read of a state: half as long as Path.read_bytes.
        descriptor = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    try:
        content = os.read(descriptor, _CURRENT_BYTES_MAX)
    finally:
        os.close(descriptor)
    match = _CURRENT_PATTERN.fullmatch(content)
    if match is None:
        raise FatalError(
            f"{path} is damaged: {content[:80]!r}; this node's copy of the group can't be trusted:"
            " restore its data directory, or empty it and let the node join again",
            exit_code=FatalError.EXIT_IO_ERROR,
        )
    return int(match.group(1))


def create_first(layout: GroupLayout, group: int) -> int:
    """Makes the empty state of a group whose folder has no CURRENT; returns its generation, 1.

    A crash in between is repaired here: an untouched first file is taken over. A used state file
    without CURRENT is somebody's data and is refused.
    """
    first = state_path(layout, 1)
    found = _generations(layout)
    if found and not (found == [1] and _is_untouched(first, group)):
        raise FatalError(
            f"{layout.state_dir} has state files of generations {found} but no CURRENT:"
            " restore CURRENT, or empty the data directory and let the node join again",
            exit_code=FatalError.EXIT_IO_ERROR,
        )
    if not found:
        building = layout.state_dir / "creating.sqlite3.tmp"
        _remove_database(building)
        create_schema(building, group)
        fsync_file(building)
        os.rename(building, first)
        fsync_dir(layout.state_dir)
    failpoint("state.create.before_current")
    _write_current(layout, 1)
    return 1


def _is_untouched(path: Path, group: int) -> bool:
    try:
        connection = connect_reader(path, _BUSY_TIMEOUT_S)
        try:
            check_format(connection, path, group, older=True)
            applied: int = connection.execute("SELECT applied_index FROM position").fetchone()[0]
        finally:
            connection.close()
    except sqlite3.Error as error:
        raise fatal_from_sqlite(error, f"reading {path}") from error
    return applied == 0


def install(layout: GroupLayout, group: int, database: Path) -> int:
    """Makes `database`, a complete closed state file on the same filesystem, the next generation.

    The caller has verified its digest. The file is moved; opened stores and readers keep the old
    one until they look again. Returns the new generation. Raises FatalError when the file is not a
    sound state of `group`.
    """
    _check_sound(database, group)
    fsync_file(database)
    generation = max([current_generation(layout) or 0, *_generations(layout)]) + 1
    os.rename(database, state_path(layout, generation))
    fsync_dir(layout.state_dir)
    failpoint("state.install.before_current")
    _write_current(layout, generation)
    return generation


def _check_sound(database: Path, group: int) -> None:
    """Also leaves the file in WAL mode, so that readers may open it as soon as CURRENT names it."""
    try:
        connection = connect_writer(database)
        try:
            upgrade(connection)
            check_format(connection, database, group)
            verdict = connection.execute("PRAGMA quick_check(1)").fetchone()[0]
        finally:
            connection.close()
    except sqlite3.Error as error:
        raise fatal_from_sqlite(error, f"checking {database}") from error
    if verdict != "ok":
        raise FatalError(f"{database} is damaged: {verdict}", exit_code=FatalError.EXIT_IO_ERROR)


def _write_current(layout: GroupLayout, generation: int) -> None:
    content = f"{state_path(layout, generation).name}\n".encode("ascii")
    write_durably(_current_path(layout), content)


def _generations(layout: GroupLayout) -> list[int]:
    matches = (_STATE_PATTERN.fullmatch(name) for name in os.listdir(layout.state_dir))
    return sorted(int(match.group(1)) for match in matches if match)


def remove_stale(layout: GroupLayout, generation: int) -> None:
    """Removes state files other than `generation` (left by a switch, or by a crash before one)."""
    for other in _generations(layout):
        if other != generation:
            _remove_database(state_path(layout, other))


def _remove_database(path: Path) -> None:
    for suffix in ("", *_SIDE_FILES):
        path.with_name(path.name + suffix).unlink(missing_ok=True)
