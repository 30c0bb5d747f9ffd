"""SQLite as the state uses it: how it is opened, what a state file is, what its errors mean.

Owns the pragmas, the format version, and the translation of SQLite's errors into the error tree.
Knows the schema only as text and nothing of what the rows mean.

Why these settings. WAL lets readers of other processes see the last committed batch while the next
one is written. `synchronous=NORMAL` leaves the fsync of commits out: the journal already holds
every entry durably, and after a power loss SQLite rolls back to the state after some earlier
batch, from which the journal is replayed. Where something irreversible depends on a commit,
`store.StateStore.sync` makes it durable first. Foreign keys are off: the machine is the only
writer and keeps tombstones and history on purpose.

Nothing but SQLite may open a live state file, not even to hash it: closing any other descriptor of
the file drops the POSIX locks of this process (reproduced: committed rows vanished).
"""

from __future__ import annotations

import importlib.resources
import os
import sqlite3
from pathlib import Path

from quorepo.storage.errors import FatalError, Unavailable

__all__ = [
    "FORMAT_VERSION",
    "add_tables",
    "check_format",
    "connect_reader",
    "connect_writer",
    "create_schema",
    "fatal_from_os",
    "fatal_from_sqlite",
    "initialize",
    "reader_error",
    "upgrade",
]

# 2: detached HEAD, descriptions, forks, deletions that can be taken back, an index for watchers.
FORMAT_VERSION = 2
_FORMAT_VERSION_MIN = 1
_APPLICATION_ID = 0x71726570  # "qrep", shown by file(1)
_SQLITE_VERSION_MIN = (3, 37, 0)  # STRICT tables

_WRITER_BUSY_TIMEOUT_S = 5.0
_WAL_BYTES_KEPT = 64 * 1024 * 1024
# A page that many batches write goes into the file once for all of them: 16 MiB of log.
_WAL_PAGES_PER_CHECKPOINT = 4096
_WRITER_CACHE_KIB = 32 * 1024

_IO_CODES = (
    sqlite3.SQLITE_FULL,
    sqlite3.SQLITE_IOERR,
    sqlite3.SQLITE_CORRUPT,
    sqlite3.SQLITE_NOTADB,
    sqlite3.SQLITE_CANTOPEN,
    sqlite3.SQLITE_READONLY,
)
_BUSY_CODES = (sqlite3.SQLITE_BUSY, sqlite3.SQLITE_LOCKED, sqlite3.SQLITE_PROTOCOL)


def _primary_code(error: sqlite3.Error) -> int:
    """SQLite's primary result code; -1 when the error did not come from SQLite itself."""
    code: int | None = getattr(error, "sqlite_errorcode", None)
    return -1 if code is None else code & 0xFF


def fatal_from_sqlite(error: sqlite3.Error, doing: str) -> FatalError:
    """What a failed statement of the writer means: always the end of the process.

    Disk full, I/O errors and damage carry `EXIT_IO_ERROR`, which no supervisor answers with a
    restart.
    """
    code = _primary_code(error)
    exit_code = FatalError.EXIT_IO_ERROR if code in _IO_CODES else FatalError.EXIT_BUG
    hint = "; another process writes this state file" if code in _BUSY_CODES else ""
    name = getattr(error, "sqlite_errorname", type(error).__name__)
    return FatalError(f"{doing}: {error} ({name}){hint}", exit_code=exit_code)


def fatal_from_os(error: OSError, doing: str) -> FatalError:
    """A failed file operation of the writer."""
    return FatalError(f"{doing}: {error}", exit_code=FatalError.EXIT_IO_ERROR)


def reader_error(error: sqlite3.Error, doing: str) -> FatalError | Unavailable:
    """What a failed statement of a reader means: busy passes, anything else does not."""
    if _primary_code(error) in _BUSY_CODES:
        return Unavailable(f"{doing}: {error}", next_step="try again")
    return fatal_from_sqlite(error, doing)


def _check_library() -> None:
    if sqlite3.sqlite_version_info < _SQLITE_VERSION_MIN:
        wanted = ".".join(str(part) for part in _SQLITE_VERSION_MIN)
        raise FatalError(
            f"sqlite {sqlite3.sqlite_version} is too old: {wanted} or newer is needed",
            exit_code=FatalError.EXIT_CONFIG,
        )


def connect_writer(path: Path) -> sqlite3.Connection:
    """Opens an existing state file for its one writer; transactions are explicit.

    The connection may be used from several threads, one at a time.
    """
    _check_library()
    connection = sqlite3.connect(
        _uri(path, "rw"),
        uri=True,
        isolation_level=None,
        check_same_thread=False,
        timeout=_WRITER_BUSY_TIMEOUT_S,
    )
    try:
        mode = connection.execute("PRAGMA journal_mode=WAL").fetchone()[0]
        if mode != "wal":
            raise FatalError(
                f"{path} can't use a write-ahead log (journal mode {mode!r})",
                exit_code=FatalError.EXIT_IO_ERROR,
            )
        connection.execute("PRAGMA synchronous=NORMAL")
        connection.execute("PRAGMA foreign_keys=OFF")
        connection.execute("PRAGMA temp_store=MEMORY")
        connection.execute(f"PRAGMA cache_size=-{_WRITER_CACHE_KIB}")
        connection.execute(f"PRAGMA wal_autocheckpoint={_WAL_PAGES_PER_CHECKPOINT}")
        connection.execute(f"PRAGMA journal_size_limit={_WAL_BYTES_KEPT}")
    except BaseException:
        connection.close()
        raise
    return connection


def connect_reader(path: Path, busy_timeout_s: float) -> sqlite3.Connection:
    """Opens a state file read-only; fails when it does not exist (never creates one)."""
    _check_library()
    connection = sqlite3.connect(
        _uri(path, "ro"),
        uri=True,
        isolation_level=None,
        check_same_thread=False,
        timeout=busy_timeout_s,
    )
    try:
        connection.execute("PRAGMA query_only=ON")
    except BaseException:
        connection.close()
        raise
    return connection


def _uri(path: Path, mode: str) -> str:
    return f"{Path(os.path.abspath(path)).as_uri()}?mode={mode}"


def create_schema(path: Path, group: int) -> None:
    """Makes an empty state file for `group` at `path`, which must not exist, and closes it."""
    _check_library()
    connection = sqlite3.connect(_uri(path, "rwc"), uri=True, isolation_level=None)
    try:
        connection.execute("PRAGMA journal_mode=WAL")
        initialize(connection, group)
    finally:
        connection.close()  # the last connection: checkpoints, removes the write-ahead log


def initialize(connection: sqlite3.Connection, group: int) -> None:
    """Writes the schema and the state before the first entry into an empty database."""
    schema = importlib.resources.files(__package__).joinpath("schema.sql").read_text("utf-8")
    connection.executescript(f"BEGIN;\n{schema}\n{_additions()}")
    connection.execute("INSERT INTO local (singleton, syncs) VALUES (1, 0)")
    connection.execute(
        "INSERT INTO position (singleton, group_id, applied_index, applied_term, log_time_ms,"
        " configuration, configuration_index) VALUES (1, ?, 0, 0, 0, NULL, 0)",
        (group,),
    )
    connection.execute(f"PRAGMA application_id={_APPLICATION_ID}")
    connection.execute(f"PRAGMA user_version={FORMAT_VERSION}")
    connection.execute("COMMIT")


def add_tables(connection: sqlite3.Connection) -> None:
    """Gives a state of an earlier release of this format the tables that came since."""
    connection.executescript(f"BEGIN;\n{_additions()}\nCOMMIT;")


def _additions() -> str:
    return importlib.resources.files(__package__).joinpath("additions.sql").read_text("utf-8")


_UPGRADE_FROM_1 = """
ALTER TABLE repositories ADD COLUMN detached_head BLOB;
ALTER TABLE repositories ADD COLUMN description TEXT NOT NULL DEFAULT '';
ALTER TABLE repositories ADD COLUMN read_only INTEGER NOT NULL DEFAULT 0;
ALTER TABLE repositories ADD COLUMN purge_ms INTEGER;
ALTER TABLE repositories ADD COLUMN deleted_path TEXT;
ALTER TABLE repositories ADD COLUMN forked_from TEXT;
CREATE TABLE transactions_2 (
    repository_id TEXT NOT NULL, counter INTEGER NOT NULL,
    kind TEXT NOT NULL CHECK (kind IN ('create', 'update', 'delete', 'replace', 'prune',
                                       'head', 'settings', 'undelete', 'fork')),
    log_index INTEGER NOT NULL, time_ms INTEGER NOT NULL, actor TEXT NOT NULL,
    request_id BLOB NOT NULL,
    PRIMARY KEY (repository_id, counter)
) STRICT, WITHOUT ROWID;
INSERT INTO transactions_2 SELECT repository_id, counter, kind, log_index, time_ms, actor,
    request_id FROM transactions;
DROP TABLE transactions;
ALTER TABLE transactions_2 RENAME TO transactions;
CREATE INDEX transactions_by_index ON transactions (log_index);
"""


def upgrade(connection: sqlite3.Connection) -> None:
    """Brings a state file of an older format to this one, in one transaction; for its writer.

    Leaves a file alone that is none of ours or of a newer format: `check_format` says why.
    """
    application_id = connection.execute("PRAGMA application_id").fetchone()[0]
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if application_id == _APPLICATION_ID and version == 1:
        connection.executescript(f"BEGIN IMMEDIATE;{_UPGRADE_FROM_1}PRAGMA user_version=2;COMMIT")


def check_format(
    connection: sqlite3.Connection, path: Path, group: int, *, older: bool = False
) -> None:
    """Refuses a file that is no state file, is of a newer format, or belongs to another group.

    Raises FatalError with EXIT_CONFIG: a restart of the same program would not help. A file of an
    older format is Unavailable until its writer has upgraded it, or taken as it is with `older`.
    """
    application_id = connection.execute("PRAGMA application_id").fetchone()[0]
    if application_id != _APPLICATION_ID:
        raise _refuse(f"{path} is not a quorepo state file (application id {application_id:#x})")
    version = connection.execute("PRAGMA user_version").fetchone()[0]
    if _FORMAT_VERSION_MIN <= version < FORMAT_VERSION:
        if not older:
            raise Unavailable(
                f"the state of group {group} is not upgraded from format {version} yet",
                next_step="try again",
            )
    elif version != FORMAT_VERSION:
        age = "newer" if version > FORMAT_VERSION else "unknown"
        raise _refuse(
            f"{path} has the {age} state format {version}; this program knows {FORMAT_VERSION}:"
            " start the version of quorepo that wrote it, or a newer one"
        )
    found = connection.execute("SELECT group_id FROM position").fetchone()[0]
    if found != group:
        raise _refuse(f"{path} holds the state of group {found}, not of group {group}")


def _refuse(message: str) -> FatalError:
    return FatalError(message, exit_code=FatalError.EXIT_CONFIG)
