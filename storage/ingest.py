"""From an uploaded file to a verified, durable pack in quarantine.

Owns the order of the steps of a push's pack: hash, entries and deltas (resolve.py), strict checks
(fsck.py), references (connectivity.py), completion of a thin pack, index, fsync, name. Runs in a
worker process, because a pack is hostile until all of that was done. Must not know of refs beyond
the tips it is given, of Raft or of the network.

A thin pack is completed once, here, so that the same bytes lie on all replicas; where the part that
travelled ends is in the result, because fetches are served from that part.
"""

from __future__ import annotations

import base64
import errno
import hashlib
import io
import mmap
import os
import struct
import zlib
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import IO, Any, Final

from quorepo.storage.connectivity import Connectivity, Tip, check_tips
from quorepo.storage.errors import CorruptPack, StorageFull
from quorepo.storage.failpoints import failpoint
from quorepo.storage.fsck import Fsck
from quorepo.storage.fsck_blobs import gitattributes_problems, gitmodules_problems
from quorepo.storage.fsck_policy import FsckPolicy
from quorepo.storage.git.pack_entries import encode_header
from quorepo.storage.layout import GroupLayout, fsync_dir
from quorepo.storage.limits import StorageLimits, exceeded
from quorepo.storage.objectformat import Hash, ObjectFormat
from quorepo.storage.packfile import BLOB, COMMIT, TAG, TREE, TYPE_NAMES
from quorepo.storage.packindex import write_index
from quorepo.storage.packs import PackSet
from quorepo.storage.resolve import PACK_HEADER_BYTES, PackResolver
from quorepo.storage.syncing import fsync_together

__all__ = ["FsckPolicy", "IngestResult", "Tip", "check_tips", "index_in_progress", "ingest_pack"]

_READ_BYTES: Final = 1024 * 1024
_HEADER: Final = struct.Struct(">4sLL")


@dataclass(frozen=True, slots=True)
class IngestResult:
    """A pack that lies verified and durable in quarantine: what a PackAddition needs. Of a small
    one that travels in its log entry there are no files, only the bytes here."""

    digest: bytes  # SHA-256 of the pack file, its name
    index_digest: bytes  # SHA-256 of the .idx file
    pack_bytes: int
    index_bytes: int
    object_count: int
    thin_bytes: int  # where the part that travelled ends, trailer excluded
    thin_object_count: int
    warnings: tuple[str, ...] = ()  # of fsck, for the client to see
    pack: bytes = b""
    index: bytes = b""

    def to_json(self) -> dict[str, Any]:
        """The result as JSON; digests are hex, files base64."""
        return asdict(self) | {
            "digest": self.digest.hex(),
            "index_digest": self.index_digest.hex(),
            "warnings": list(self.warnings),
            "pack": base64.b64encode(self.pack).decode("ascii"),
            "index": base64.b64encode(self.index).decode("ascii"),
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> IngestResult:
        """The result that `to_json` wrote. Raises KeyError when something is missing."""
        values = {field.name: value[field.name] for field in fields(cls)}
        values["digest"] = bytes.fromhex(values["digest"])
        values["index_digest"] = bytes.fromhex(values["index_digest"])
        values["warnings"] = tuple(values["warnings"])
        values["pack"] = base64.b64decode(values["pack"])
        values["index"] = base64.b64decode(values["index"])
        return cls(**values)


def ingest_pack(
    upload: Path,
    layout: GroupLayout,
    existing: PackSet,
    new_tips: Sequence[Tip],
    object_format: ObjectFormat,
    limits: StorageLimits,
    fsck: FsckPolicy,
    progress: Callable[[str], None] | None = None,
    inline_bytes_max: int = 0,
) -> IngestResult | None:
    """Verifies the pack in `upload` and moves it, complete and indexed, into the group's
    quarantine; or returns it, if it has no more than `inline_bytes_max` bytes with its index.

    `existing` are the objects of the repository at the revision that the push is checked against;
    `new_tips` the refs that the push sets. Returns None for a pack without objects, which is legal.
    The upload is gone afterwards, and on failure nothing else is left.

    Raises CorruptPack, LimitExceeded, StorageFull, and DamagedPack when a stored object that is
    needed cannot be read. Other OSErrors pass through.
    """
    index_path = index_in_progress(upload)
    try:
        ingest = _Ingest(existing, object_format, limits, fsck, progress or _no_progress)
        with upload.open("r+b") as file:
            count = ingest.verify(file, new_tips)
            if count == 0:
                return None
            return ingest.store(file, upload, index_path, layout, inline_bytes_max)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageFull(f"no room for the pack: {error.strerror}") from error
        raise
    finally:
        index_path.unlink(missing_ok=True)
        upload.unlink(missing_ok=True)


def index_in_progress(upload: Path) -> Path:
    """Where the index of an upload is written; named so that it is swept like an upload."""
    return upload.with_name(f"{upload.stem}.idx.tmp")


def _no_progress(_: str) -> None:
    """Nobody listens."""


class _Ingest:
    """The state of one ingest between its steps."""

    def __init__(
        self,
        existing: PackSet,
        object_format: ObjectFormat,
        limits: StorageLimits,
        policy: FsckPolicy,
        progress: Callable[[str], None],
    ) -> None:
        self._existing = existing
        self._format = object_format
        self._limits = limits
        self._resolver = PackResolver(
            existing, object_format, limits, self._on_object, self._on_external_base, progress
        )
        self._connectivity = Connectivity(existing, self._resolver.objects, self._resolver.types)
        self._fsck = Fsck(policy, object_format, self._connectivity.refer)
        self._checks = {
            COMMIT: self._fsck.commit,
            TREE: self._fsck.tree,
            TAG: self._fsck.tag,
        }

    def verify(self, file: IO[bytes], tips: Sequence[Tip]) -> int:
        """All checks; changes nothing on disk. Returns how many objects the pack has."""
        count = self._check_frame(file)
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as contents:
            self._resolver.run(contents, count)
            self._connectivity.settle()
            self._connectivity.check_tips(tips)
            self._check_special_blobs()
            self._check_stored_chains()
        return count

    def store(
        self,
        file: IO[bytes],
        upload: Path,
        index_path: Path,
        layout: GroupLayout,
        inline_bytes_max: int,
    ) -> IngestResult:
        """Completes the file, indexes it and makes both durable under their final names; a small
        one becomes part of the result."""
        thin_bytes = file.seek(0, os.SEEK_END) - self._format.hash_bytes
        thin_object_count = len(self._resolver.offsets)
        bases = sorted(self._resolver.externals - self._resolver.objects.keys())
        if bases:
            self._append_bases(file, thin_bytes, bases)
        trailer = self._pack_trailer(file)
        digest, pack_bytes = _sha256(file)
        if pack_bytes < inline_bytes_max:
            index = io.BytesIO()
            index_bytes, index_digest = self._write_index(index, trailer)
            if pack_bytes + index_bytes <= inline_bytes_max:
                file.seek(0)
                return self._result(
                    (digest, pack_bytes), (index_digest, index_bytes),
                    (thin_bytes, thin_object_count), file.read(), index.getvalue(),
                )  # fmt: skip
        with index_path.open("xb") as index_file:
            index_bytes, index_digest = self._write_index(index_file, trailer)
            index_file.flush()
            failpoint("ingest.index.before_fsync")
            file.flush()
            failpoint("ingest.pack.before_fsync")
            fsync_together([file.fileno(), index_file.fileno()])
        final_pack, final_index = layout.quarantine_paths(digest)
        failpoint("ingest.before_rename")
        upload.rename(final_pack)
        index_path.rename(final_index)
        failpoint("ingest.before_dir_fsync")
        fsync_dir(layout.quarantine)
        return self._result(
            (digest, pack_bytes), (index_digest, index_bytes), (thin_bytes, thin_object_count)
        )

    def _write_index(self, file: IO[bytes], trailer: bytes) -> tuple[int, bytes]:
        resolver = self._resolver
        return write_index(
            file, resolver.objects, resolver.offsets, resolver.crc32s, trailer, self._format
        )

    def _result(
        self,
        pack_is: tuple[bytes, int],
        index_is: tuple[bytes, int],
        thin: tuple[int, int],
        pack: bytes = b"",
        index: bytes = b"",
    ) -> IngestResult:
        return IngestResult(
            digest=pack_is[0],
            index_digest=index_is[0],
            pack_bytes=pack_is[1],
            index_bytes=index_is[1],
            object_count=len(self._resolver.objects),
            thin_bytes=thin[0],
            thin_object_count=thin[1],
            warnings=tuple(self._fsck.warnings),
            pack=pack,
            index=index,
        )

    def _check_frame(self, file: IO[bytes]) -> int:
        """Size, header and trailing hash. Returns the object count of the header."""
        size = os.fstat(file.fileno()).st_size
        if size > self._limits.push_bytes_max:
            raise exceeded(self._limits, "push_bytes_max", f"pack has {size} bytes")
        header = file.read(PACK_HEADER_BYTES)
        if len(header) < PACK_HEADER_BYTES or not header.startswith(b"PACK"):
            raise CorruptPack("pack signature mismatch")
        version: int
        count: int
        _, version, count = _HEADER.unpack(header)
        if version not in (2, 3):
            raise CorruptPack(f"pack version {version} unsupported")
        if count > self._limits.push_objects_max:
            raise exceeded(self._limits, "push_objects_max", f"pack has {count} objects")
        if size < PACK_HEADER_BYTES + self._format.hash_bytes:
            raise CorruptPack("early EOF: pack is shorter than a header and a trailer")
        hasher = self._format.new_hash()
        hashed = size - self._format.hash_bytes
        trailer = _feed(file, hasher, hashed).read(self._format.hash_bytes)
        if trailer != hasher.digest():
            name = self._format.value.upper()
            raise CorruptPack(f"pack is corrupted ({name} mismatch)")
        return count

    def _on_object(self, oid: bytes, type_num: int, content: bytes) -> None:
        self._connectivity.arrive(oid, type_num)
        check = self._checks.get(type_num)
        if check is not None:
            check(oid, content)
        located = self._existing.locate(oid)
        if located is not None and self._existing.get_at(*located) != (type_num, content):
            # As `git index-pack`: two contents with one id are an attack on the hash function.
            raise CorruptPack(f"{self._format.value.upper()} COLLISION FOUND WITH {oid.hex()}")

    def _on_external_base(self, oid: bytes, type_num: int, content: bytes) -> None:
        if type_num == TREE:
            self._fsck.trust_tree(content)

    def _check_special_blobs(self) -> None:
        """`.gitmodules` and `.gitattributes`, wherever in the pack or the store they lie."""
        for oids, problems in (
            (self._fsck.gitmodules, gitmodules_problems),
            (self._fsck.gitattributes, gitattributes_problems),
        ):
            for oid in sorted(oids):
                content = self._blob(oid)
                for message_id, text in problems(content) if content is not None else ():
                    self._fsck.report(oid, message_id, text)

    def _blob(self, oid: bytes) -> bytes | None:
        """The content of a blob; None when the id belongs to something else (a gitlink)."""
        number = self._resolver.objects.get(oid)
        if number is not None:
            is_blob = self._resolver.types[number] == BLOB
            return self._resolver.content(number) if is_blob else None
        located = self._existing.locate(oid)
        if located is None:
            return None
        type_num, content = self._existing.get_at(*located)
        return content if type_num == BLOB else None

    def _check_stored_chains(self) -> None:
        """Deltas against a stored object that the pack holds too will be read from the pack."""
        if self._resolver.externals.isdisjoint(self._resolver.objects):
            return
        depth = self._resolver.stored_depths_max()
        if depth > self._limits.delta_depth_max:
            raise exceeded(self._limits, "delta_depth_max", f"delta chain of {depth} deltas")

    def _append_bases(self, file: IO[bytes], thin_end: int, bases: Sequence[bytes]) -> None:
        """Makes a thin pack stand alone: the missing bases behind it, whole, and a new count."""
        resolver = self._resolver
        file.seek(thin_end)
        file.truncate()
        offset = thin_end
        for oid in bases:
            entry, type_num = self._whole_entry(oid)
            file.write(entry)
            resolver.objects[oid] = len(resolver.offsets)
            resolver.offsets.append(offset)
            resolver.crc32s.append(zlib.crc32(entry))
            resolver.types.append(type_num)
            resolver.depths.append(0)
            offset += len(entry)
        file.seek(0)
        file.write(_HEADER.pack(b"PACK", 2, len(resolver.offsets)))
        file.seek(0)
        hasher = self._format.new_hash()
        _feed(file, hasher, offset)
        file.seek(offset)
        file.write(hasher.digest())
        file.flush()

    def _whole_entry(self, oid: bytes) -> tuple[bytes, int]:
        """A stored object as a pack entry that needs no base: verbatim when it is stored so."""
        located = self._existing.locate(oid)
        assert located is not None, "an external base was read from the store before"
        pack, offset = located
        header = pack.header(offset)
        if header.type_num in TYPE_NAMES:
            _, end = pack.inflate(offset, header)
            return pack.slice(offset, end), header.type_num
        type_num, content = self._existing.get_at(pack, offset)
        return encode_header(type_num, len(content)) + zlib.compress(content), type_num

    def _pack_trailer(self, file: IO[bytes]) -> bytes:
        file.seek(-self._format.hash_bytes, os.SEEK_END)
        return file.read(self._format.hash_bytes)


def _feed(file: IO[bytes], hasher: Hash, size: int) -> IO[bytes]:
    """Hashes the first `size` bytes; the file is left behind them."""
    file.seek(0)
    for chunk in _chunks(file, size):
        hasher.update(chunk)
    return file


def _sha256(file: IO[bytes]) -> tuple[bytes, int]:
    """SHA-256 and size of the whole file."""
    hasher = hashlib.sha256()
    size = os.fstat(file.fileno()).st_size
    _feed(file, hasher, size)
    return hasher.digest(), size


def _chunks(file: IO[bytes], size: int) -> Iterator[bytes]:
    while size > 0:
        chunk = file.read(min(size, _READ_BYTES))
        if not chunk:
            raise CorruptPack("early EOF: the uploaded file became shorter")
        size -= len(chunk)
        yield chunk
