"""Packs on the move, as files: written under a temporary name, checked, made durable, renamed.

Blocking code for the threads of `packs.PackExchange`. Knows nothing of the network. Names of the
folders come from `storage.layout`; the temporary names `stage-<uuid>-*.tmp` are owned here.
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import threading
import uuid
from collections.abc import Iterable
from pathlib import Path

from quorepo.internal.v1 import peer_pb2
from quorepo.storage.errors import CorruptPack, InvalidArgument, NotFound
from quorepo.storage.failpoints import failpoint
from quorepo.storage.layout import GroupLayout, fsync_dir
from quorepo.storage.syncing import fsync_together

__all__ = ["PackReader", "PackWriter", "check_header", "sweep_temporary"]

_DIGEST_BYTES = 32


def check_header(header: peer_pb2.PackHeader, pack_bytes_max: int) -> None:
    """Raises InvalidArgument unless the header can be that of a pack."""
    if len(header.digest) != _DIGEST_BYTES or len(header.index_digest) != _DIGEST_BYTES:
        raise InvalidArgument("a pack and its index are named by 32 bytes each")
    for what, size in (("pack", header.pack_bytes), ("index", header.index_bytes)):
        if not 0 < size <= pack_bytes_max:
            raise InvalidArgument(f"{what} of {size} bytes; 1 to {pack_bytes_max} are accepted")


class PackWriter:
    """One arriving pack: `write` what comes, then `finish` or `discard`; on any thread."""

    def __init__(self, layout: GroupLayout, header: peer_pb2.PackHeader) -> None:
        self._layout = layout
        self._header = header
        self._lock = threading.Lock()  # a discard may overtake a write that is under way
        self._closed = False
        stem = f"stage-{uuid.uuid4().hex}"
        parts = (("pack", header.pack_bytes, header.digest),
                 ("idx", header.index_bytes, header.index_digest))  # fmt: skip
        self._files = [
            _Arriving(layout.quarantine / f"{stem}-{kind}.tmp", size, digest)
            for kind, size, digest in parts
        ]

    def write(self, chunks: Iterable[bytes]) -> None:
        """Appends to the pack, then to the index. Raises InvalidArgument past the sizes."""
        with self._lock:
            self._write(chunks)

    def finish(self, chunks: Iterable[bytes] = ()) -> None:
        """Writes the rest, checks sizes and digests, and returns once both files are durable.

        Raises InvalidArgument (too short, too long), CorruptPack (other bytes), OSError.
        """
        with self._lock:
            self._write(chunks)
            for file in self._files:
                file.check(self._header.digest)
            failpoint("peer.stage.before_fsync")
            fsync_together([file.descriptor for file in self._files])
            failpoint("peer.stage.before_rename")
            # The pack first: an index without its pack is never seen.
            targets = self._layout.quarantine_paths(self._header.digest)
            for file, target in zip(self._files, targets, strict=True):
                os.rename(file.path, target)
                failpoint("peer.stage.between_renames")
            failpoint("peer.stage.before_folder_fsync")
            fsync_dir(self._layout.quarantine)
            self._close()

    def restart(self) -> None:
        """Forgets what was written; the next byte is the first again."""
        with self._lock:
            for file in self._files:
                file.truncate()

    def discard(self) -> None:
        """Removes the temporary files; harmless after `finish`."""
        with self._lock:
            self._close()

    def _write(self, chunks: Iterable[bytes]) -> None:
        if self._closed:
            raise InvalidArgument("the transfer was given up")
        for chunk in chunks:
            rest = memoryview(chunk)
            for file in self._files:
                part = rest[: file.missing_bytes]
                if part:
                    file.write(part)
                    rest = rest[len(part) :]
            if rest:
                raise InvalidArgument("more bytes arrived than were announced")

    def _close(self) -> None:
        self._closed = True
        for file in self._files:
            file.close()


class _Arriving:
    """One temporary file, hashed while it is written."""

    def __init__(self, path: Path, size: int, digest: bytes) -> None:
        self.path = path
        self.descriptor = -1
        self.missing_bytes = size
        self._size = size
        self._digest = digest
        self._hash = hashlib.sha256()

    def write(self, data: memoryview) -> None:
        if self.descriptor < 0:
            flags = os.O_CREAT | os.O_EXCL | os.O_WRONLY | os.O_CLOEXEC
            self.descriptor = os.open(self.path, flags, 0o600)
        self._hash.update(data)
        self.missing_bytes -= len(data)
        while data:
            data = data[os.write(self.descriptor, data) :]

    def check(self, pack_digest: bytes) -> None:
        name = pack_digest.hex()
        if self.missing_bytes:
            raise InvalidArgument(f"pack {name} ended {self.missing_bytes} bytes early")
        if self._hash.digest() != self._digest:
            raise CorruptPack(
                f"pack {name}: {self._size} bytes arrived with SHA-256 {self._hash.hexdigest()}, "
                f"announced was {self._digest.hex()}"
            )

    def truncate(self) -> None:
        self.missing_bytes = self._size
        self._hash = hashlib.sha256()
        if self.descriptor >= 0:
            os.ftruncate(self.descriptor, 0)
            os.lseek(self.descriptor, 0, os.SEEK_SET)

    def close(self) -> None:
        """Closes and removes the file; after the rename there is nothing to remove."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1
            with contextlib.suppress(FileNotFoundError):
                self.path.unlink()


class PackReader:
    """The bytes of a held pack and then of its index, from wherever they are.

    Calls may come from any thread; a `close` may overtake a read that is under way.
    """

    def __init__(self, layout: GroupLayout, header: peer_pb2.PackHeader, offset: int = 0) -> None:
        self._layout = layout
        self._header = header
        self._sizes = (header.pack_bytes, header.index_bytes)
        self._offset = offset
        self._lock = threading.Lock()
        self._closed = False
        self._descriptors: list[int] = []

    def open(self) -> None:
        """Raises NotFound when this node lacks the pack, or has other sizes under its name."""
        with self._lock:
            if not self._closed:
                for part in (0, 1):
                    self._descriptors.append(_open_part(self._layout, self._header, part))

    def read(self, size: int) -> bytes:
        """Up to `size` bytes, less only at the end; empty at the end, and when closed."""
        with self._lock:
            return self._read(size)

    def _read(self, size: int) -> bytes:
        pieces = []
        start = 0
        # No descriptors after a close: then nothing is read.
        for descriptor, length in zip(self._descriptors, self._sizes, strict=False):
            while size and self._offset < start + length:
                wanted = min(size, start + length - self._offset)
                piece = os.pread(descriptor, wanted, self._offset - start)
                if not piece:
                    raise OSError("a pack became shorter while it was read")
                pieces.append(piece)
                size -= len(piece)
                self._offset += len(piece)
            start += length
        return pieces[0] if len(pieces) == 1 else b"".join(pieces)

    def close(self) -> None:
        """Idempotent."""
        with self._lock:
            self._closed = True
            for descriptor in self._descriptors:
                os.close(descriptor)
            self._descriptors.clear()


def _open_part(layout: GroupLayout, header: peer_pb2.PackHeader, part: int) -> int:
    """Opens the pack (0) or the index (1); a promotion may be moving them, one after the other."""
    candidates = [layout.quarantine_paths(header.digest)[part]]
    if header.repository_id:
        candidates.append(layout.pack_paths(header.repository_id, header.digest)[part])
    # Removed since, but whoever catches up by the log needs it first.
    candidates.append(layout.retired_pack_paths(header.digest)[part])
    copy = None
    for path in candidates:
        with contextlib.suppress(FileNotFoundError):
            copy = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            break
    else:
        for paths in _copies(layout, header.digest):
            with contextlib.suppress(FileNotFoundError):
                copy = os.open(paths[part], os.O_RDONLY | os.O_CLOEXEC)
                break
    name = header.digest.hex()
    if copy is None:
        raise NotFound(f"pack {name} is not on this node")
    size = (header.pack_bytes, header.index_bytes)[part]
    found = os.fstat(copy).st_size
    if found != size:
        os.close(copy)
        raise NotFound(f"pack {name} has a file of {found} bytes here, {size} were expected")
    return copy


def _copies(layout: GroupLayout, digest: bytes) -> Iterable[tuple[Path, Path]]:
    """The same pack in any repository of the group, deleted ones last. Slow, for rare cases."""
    for root in (layout.repositories, layout.retired):
        for pack in sorted(root.glob(f"*/objects/pack/pack-{digest.hex()}.pack")):
            yield pack, pack.with_suffix(".idx")


def sweep_temporary(layout: GroupLayout) -> int:
    """Removes what half-received packs left; for the start of a node. Returns how many files."""
    removed = 0
    if layout.quarantine.is_dir():
        for path in sorted(layout.quarantine.glob("stage-*.tmp")):
            path.unlink(missing_ok=True)
            removed += 1
    return removed
