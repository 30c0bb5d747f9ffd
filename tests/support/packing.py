"""Packs made by hand, byte by byte, and a store of one repository to put them in.

`PackWriter` writes what git never would; `PackStore` ingests into a `GroupLayout` as a push does.
"""

from __future__ import annotations

import os
import re
import struct
import subprocess
import zlib
from collections.abc import Sequence
from pathlib import Path

from quorepo.storage.ingest import FsckPolicy, IngestResult, Tip, ingest_pack
from quorepo.storage.layout import (
    GroupLayout,
    ensure_repository,
    new_repository_id,
    promote_pack,
)
from quorepo.storage.limits import StorageLimits
from quorepo.storage.objectformat import ObjectFormat
from quorepo.storage.packfile import OFS_DELTA, REF_DELTA, TYPE_NAMES
from quorepo.storage.packs import PackCache, PackSet
from support.git import ENVIRONMENT

IDENT = b"A U Thor <author@example.com> 1700000000 +0000"


def git_bytes(*arguments: str, cwd: Path, stdin: bytes = b"", check: bool = True) -> bytes:
    """Runs git with bytes in and out."""
    process = subprocess.run(
        ["git", *arguments], cwd=cwd, env=ENVIRONMENT, input=stdin, capture_output=True, check=False
    )
    if check and process.returncode != 0:
        raise AssertionError(f"git {' '.join(arguments)}: {process.stderr!r}")
    return process.stdout if check else process.stdout + process.stderr


def object_id(
    type_num: int, content: bytes, object_format: ObjectFormat = ObjectFormat.SHA1
) -> bytes:
    return object_format.object_id(TYPE_NAMES[type_num], content)


def tree(*entries: tuple[str, bytes, bytes]) -> bytes:
    """(mode, name, id) in the order given."""
    return b"".join(b"%s %s\0%s" % (mode.encode(), name, oid) for mode, name, oid in entries)


def commit(
    tree_oid: bytes,
    parents: Sequence[bytes] = (),
    author: bytes = IDENT,
    committer: bytes = IDENT,
    message: bytes = b"message\n",
) -> bytes:
    lines = [b"tree " + tree_oid.hex().encode()]
    lines += [b"parent " + parent.hex().encode() for parent in parents]
    lines += [b"author " + author, b"committer " + committer]
    return b"\n".join(lines) + b"\n\n" + message


def tag(target: bytes, type_name: bytes = b"commit", name: bytes = b"v1") -> bytes:
    return b"object %s\ntype %s\ntag %s\ntagger %s\n\nmessage\n" % (
        target.hex().encode(),
        type_name,
        name,
        IDENT,
    )


def size_varint(size: int) -> bytes:
    out = bytearray()
    while True:
        out.append(size & 0x7F | (0x80 if size > 0x7F else 0))
        size >>= 7
        if not size:
            return bytes(out)


def copy(offset: int, size: int) -> bytes:
    """The delta instruction that copies from the base."""
    return b"\xff" + struct.pack("<L", offset) + struct.pack("<L", size)[:3]


def insert(data: bytes) -> bytes:
    """The delta instructions that insert new bytes."""
    return b"".join(
        bytes([len(data[start : start + 127])]) + data[start : start + 127]
        for start in range(0, len(data), 127)
    )


def delta(base_size: int, result_size: int, *instructions: bytes) -> bytes:
    return size_varint(base_size) + size_varint(result_size) + b"".join(instructions)


class PackWriter:
    """A pack in the making; every method returns the offset of the entry it wrote."""

    def __init__(self, object_format: ObjectFormat = ObjectFormat.SHA1) -> None:
        self.object_format = object_format
        self.count = 0
        self._body = bytearray(b"PACK\0\0\0\2\0\0\0\0")

    def whole(self, type_num: int, content: bytes, declared_size: int | None = None) -> int:
        size = len(content) if declared_size is None else declared_size
        return self.raw(self._header(type_num, size) + zlib.compress(content))

    def ofs_delta(self, base_offset: int, content: bytes) -> int:
        distance = len(self._body) - base_offset
        encoded = bytearray([distance & 0x7F])
        while distance := distance >> 7:
            distance -= 1
            encoded.insert(0, 0x80 | distance & 0x7F)
        return self.raw(self._header(OFS_DELTA, len(content)) + encoded + zlib.compress(content))

    def ref_delta(self, base_oid: bytes, content: bytes) -> int:
        return self.raw(self._header(REF_DELTA, len(content)) + base_oid + zlib.compress(content))

    def raw(self, entry: bytes) -> int:
        offset = len(self._body)
        self._body += entry
        self.count += 1
        return offset

    def finish(self, count: int | None = None) -> bytes:
        body = bytearray(self._body)
        body[8:12] = struct.pack(">L", self.count if count is None else count)
        return seal(bytes(body), self.object_format)

    def _header(self, type_num: int, size: int) -> bytes:
        header = bytearray([type_num << 4 | size & 15])
        size >>= 4
        while size:
            header[-1] |= 0x80
            header.append(size & 0x7F)
            size >>= 7
        return bytes(header)


def seal(body: bytes, object_format: ObjectFormat = ObjectFormat.SHA1) -> bytes:
    """The body of a pack with its trailer."""
    return body + object_format.new_hash(body).digest()


class PackStore:
    """One repository of one group on disk, written by ingest and promotion alone."""

    def __init__(self, data_dir: Path, object_format: ObjectFormat = ObjectFormat.SHA1) -> None:
        self.object_format = object_format
        self.layout = GroupLayout(data_dir, 1)
        self.layout.create()
        self.repository_id = new_repository_id()
        ensure_repository(self.layout, self.repository_id, object_format)
        self.path = self.layout.repository(self.repository_id)
        self.digests: list[bytes] = []
        self.cache = PackCache()

    @property
    def packs(self) -> PackSet:
        return self.cache.open(self.layout, self.repository_id, self.digests, self.object_format)

    def upload(self, pack: bytes) -> Path:
        path = self.layout.new_upload()
        path.write_bytes(pack)
        return path

    def ingest(
        self,
        pack: bytes,
        tips: Sequence[Tip] = (),
        limits: StorageLimits | None = None,
        fsck: FsckPolicy | None = None,
    ) -> IngestResult | None:
        return ingest_pack(
            self.upload(pack),
            self.layout,
            self.packs,
            tips,
            self.object_format,
            limits or StorageLimits(),
            fsck or FsckPolicy(),
        )

    def add(
        self, pack: bytes, tips: Sequence[Tip] = (), limits: StorageLimits | None = None
    ) -> IngestResult:
        """Ingests and promotes."""
        result = self.ingest(pack, tips, limits)
        assert result is not None
        promote_pack(self.layout, self.repository_id, result.digest)
        if result.digest not in self.digests:
            self.digests.append(result.digest)
        return result

    def quarantined(self) -> set[str]:
        return set(os.listdir(self.layout.quarantine))

    def fsck(self, *tips: bytes) -> None:
        """git's own verdict on what is stored."""
        for number, oid in enumerate(tips):
            (self.path / "refs" / "heads" / f"tip{number}").write_text(oid.hex() + "\n")
        git_bytes("fsck", "--full", "--strict", cwd=self.path)
        for index in self.path.glob("objects/pack/*.idx"):
            git_bytes("verify-pack", str(index), cwd=self.path)


def fsck_message_of_git(output: bytes) -> str | None:
    """The message id in what `git index-pack --fsck-objects` said; None when it found nothing."""
    match = re.search(rb"error: object [0-9a-f]+: ([A-Za-z0-9]+): ", output)
    return match[1].decode() if match else None
