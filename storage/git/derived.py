"""Files that are derived from one pack, in `objects/info` of its repository.

Owns their names, how they are written and when they are removed. They may be thrown away at any
time, so nothing here ever fails: what cannot be read is missing, what cannot be written is not
there for the next process. What they hold has to tell by itself whether it is intact and about the
right pack.
"""

from __future__ import annotations

import contextlib
import logging
import mmap
import os
import time
import uuid
from pathlib import Path

from quorepo.storage.logs import fields
from quorepo.storage.packs import PackFile

__all__ = ["derived_path", "has_derived", "read_derived", "write_derived"]

log = logging.getLogger(__name__)

_PREFIX = "quorepo-"
# A file that is still being written after that time belongs to a process that was killed.
_ABANDONED_S = 3600


def read_derived(pack: PackFile, kind: str) -> mmap.mmap | None:
    """The file of this kind, mapped; None when there is none."""
    path = _path(pack, kind)
    try:
        with path.open("rb") as file:
            return mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ)
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:  # ValueError: mmap refuses an empty file
        log.warning("derived file can't be read", extra=fields(path=path, error=error))
        return None


def has_derived(pack: PackFile, kind: str) -> bool:
    """Whether there is a file of this kind; it may be damaged."""
    return _path(pack, kind).exists()


def write_derived(pack: PackFile, kind: str, content: bytes) -> None:
    """Replace the file. Not synced: after a power cut its checksum tells."""
    path = _path(pack, kind)
    new = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        path.parent.mkdir(exist_ok=True)
        new.write_bytes(content)
        os.replace(new, path)
        _sweep(path.parent, pack.path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            new.unlink()
        log.warning("derived file is not stored", extra=fields(path=path, error=error))


def derived_path(pack_path: Path, digest: bytes, kind: str) -> Path:
    """Where the file of a pack lies."""
    return pack_path.parent.parent / "info" / f"{_PREFIX}{digest.hex()}.{kind}"


def _path(pack: PackFile, kind: str) -> Path:
    return derived_path(pack.path, pack.digest, kind)


def _sweep(folder: Path, packs: Path) -> None:
    """Remove what belongs to packs that are gone, and what was never finished."""
    for path in folder.glob(f"{_PREFIX}*"):
        digest = path.name.removeprefix(_PREFIX).partition(".")[0]
        with contextlib.suppress(FileNotFoundError):  # another process sweeps, too
            if path.suffix == ".tmp":
                is_useless = path.stat().st_mtime < time.time() - _ABANDONED_S
            else:
                is_useless = not (packs / f"pack-{digest}.pack").exists()
            if is_useless:
                path.unlink()
