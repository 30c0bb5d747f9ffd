"""The files of a tree as tar, tar.gz or zip.

Owns what an archive holds: names under a prefix, git's modes as `git archive` widens them, and the
time of the commit. Attributes (export-ignore, export-subst) are not looked at.
"""

from __future__ import annotations

import gzip
import io
import tarfile
import time
import zipfile
from collections.abc import Callable, Iterator
from typing import IO

from quorepo.storage.errors import LimitExceeded
from quorepo.storage.history.source import History
from quorepo.storage.history.trees import Listed, list_tree

__all__ = ["FORMATS", "write_archive"]

FORMATS = ("tar", "tar.gz", "zip")
_LIMIT = "api.archive_bytes_max"
_DOS_EPOCH = 315_532_800  # zip knows no time before 1980


def write_archive(
    history: History,
    tree: bytes,
    out: IO[bytes],
    *,
    kind: str,
    prefix: bytes,
    moment: int,
    comment: str,
    bytes_max: int,
) -> None:
    """Writes the archive of everything below `tree` to `out`, which need not be seekable.

    `moment` in seconds since 1970 for every entry. `comment` is the commit's id, or empty. Raises
    LimitExceeded when the files have more than `bytes_max` bytes together.
    """
    entries = _bounded(history, tree, bytes_max)
    if kind == "zip":
        _write_zip(history, entries, out, prefix, moment, comment)
    elif kind == "tar":
        _write_tar(history, entries, out, prefix, moment, comment)
    else:
        with gzip.GzipFile(fileobj=out, mode="wb", mtime=0, filename="", compresslevel=6) as packed:
            _write_tar(history, entries, packed, prefix, moment, comment)


def _bounded(history: History, tree: bytes, bytes_max: int) -> Iterator[Listed]:
    left = bytes_max
    for entry in list_tree(history, tree, recursive=True, with_folders=True):
        left -= 512 + (history.objects.object_size(entry.oid) if entry.is_blob else 0)
        if left < 0:
            raise LimitExceeded(
                f"the files of this archive have more than {bytes_max} bytes",
                limit=_LIMIT,
                next_step="ask for one folder, or clone the repository",
            )
        yield entry


def _write_tar(
    history: History,
    entries: Iterator[Listed],
    out: IO[bytes] | gzip.GzipFile,
    prefix: bytes,
    moment: int,
    comment: str,
) -> None:
    headers = {"comment": comment} if comment else {}
    with tarfile.open(
        fileobj=out,
        mode="w|",
        format=tarfile.PAX_FORMAT,
        pax_headers=headers,
        encoding="utf-8",
        errors="surrogateescape",
        bufsize=tarfile.RECORDSIZE,
    ) as archive:
        for path, mode in _folders_of(prefix):
            archive.addfile(_tar_entry(path, mode, moment))
        for entry in entries:
            info = _tar_entry(prefix + entry.path, entry.mode, moment)
            if not entry.is_blob:
                archive.addfile(info)
                continue
            content = history.blob(entry.oid)
            if entry.mode == 0o120000:
                info.linkname = content.decode("utf-8", "surrogateescape")
                archive.addfile(info)
            else:
                info.size = len(content)
                archive.addfile(info, io.BytesIO(content))


def _tar_entry(path: bytes, mode: int, moment: int) -> tarfile.TarInfo:
    info = tarfile.TarInfo(path.decode("utf-8", "surrogateescape"))
    info.mtime = moment
    info.uname = info.gname = "root"
    if mode in (0o040000, 0o160000):
        info.type, info.mode = tarfile.DIRTYPE, 0o775
    elif mode == 0o120000:
        info.type, info.mode = tarfile.SYMTYPE, 0o777
    else:
        info.mode = 0o775 if mode & 0o100 else 0o664
    return info


def _write_zip(
    history: History,
    entries: Iterator[Listed],
    out: IO[bytes],
    prefix: bytes,
    moment: int,
    comment: str,
) -> None:
    stamp = time.gmtime(max(moment, _DOS_EPOCH))[:6]
    with zipfile.ZipFile(_Unseekable(out.write), "w", zipfile.ZIP_DEFLATED) as archive:
        archive.comment = comment.encode("ascii")
        for path, mode in _folders_of(prefix):
            archive.writestr(_zip_entry(path, mode, stamp), b"")
        for entry in entries:
            info = _zip_entry(prefix + entry.path, entry.mode, stamp)
            archive.writestr(info, history.blob(entry.oid) if entry.is_blob else b"")


def _zip_entry(path: bytes, mode: int, stamp: tuple[int, ...]) -> zipfile.ZipInfo:
    is_folder = mode in (0o040000, 0o160000)
    name = path.decode("utf-8", "replace") + ("/" if is_folder and path[-1:] != b"/" else "")
    info = zipfile.ZipInfo(name, (stamp[0], stamp[1], stamp[2], stamp[3], stamp[4], stamp[5]))
    info.create_system = 3  # Unix: the mode counts
    info.external_attr = (0o040755 if is_folder else mode) << 16 | (0x10 if is_folder else 0)
    info.compress_type = zipfile.ZIP_STORED if is_folder else zipfile.ZIP_DEFLATED
    return info


def _folders_of(prefix: bytes) -> list[tuple[bytes, int]]:
    """The folder that a prefix with a slash at its end names."""
    return [(prefix.rstrip(b"/"), 0o040000)] if prefix.endswith(b"/") else []


class _Unseekable(io.RawIOBase):
    """Makes zipfile write sizes after the content instead of going back."""

    def __init__(self, write: Callable[[bytes], int]) -> None:
        self._write = write

    def writable(self) -> bool:
        return True

    def write(self, data: object) -> int:
        content = bytes(data)  # type: ignore[call-overload]
        self._write(content)
        return len(content)
