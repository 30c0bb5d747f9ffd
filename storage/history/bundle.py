"""Refs with their history as one file that git can fetch from: a bundle.

Owns the header (gitformat-bundle(5)); the pack is built as for a fetch. SHA-256 needs version 3.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import IO

from quorepo.storage.errors import InvalidArgument, LimitExceeded
from quorepo.storage.git.fetch_request import FetchRequest, Negotiation
from quorepo.storage.git.pack_builder import build_pack
from quorepo.storage.history.source import History
from quorepo.storage.objectformat import ObjectFormat

__all__ = ["write_bundle"]

_COPIED_BYTES = 1024 * 1024


def write_bundle(
    history: History,
    refs: Sequence[tuple[bytes, bytes]],
    exclusions: Sequence[bytes],
    out: IO[bytes],
    pack_path: Path,
    bytes_max: int,
) -> None:
    """Writes the bundle of `refs` (name, raw id) to `out`. `pack_path` is used meanwhile.

    Whoever uses the bundle has to have the commits `exclusions`. Raises InvalidArgument when there
    is nothing to send, LimitExceeded.
    """
    if not refs:
        raise InvalidArgument("there is no ref to make a bundle of")
    common = tuple(oid for oid in exclusions)
    wants = tuple(dict.fromkeys(oid for _, oid in refs))
    if set(wants) <= set(common):
        raise InvalidArgument("the bundle would be empty: exclusions reach all of its refs")
    request = FetchRequest(
        version=2, wants=wants, haves=common, done=True, ofs_delta=True, thin_pack=bool(common)
    )
    try:
        build_pack(history.reader, request, Negotiation(common=common), [], pack_path)
        size = pack_path.stat().st_size
        if size > bytes_max:
            raise LimitExceeded(
                f"the pack of this bundle has {size} bytes, api.bundle_bytes_max is {bytes_max}",
                limit="api.bundle_bytes_max",
                next_step="clone the repository",
            )
        out.write(_header(history.objects.object_format, refs, common))
        with pack_path.open("rb") as pack:
            while chunk := pack.read(_COPIED_BYTES):
                out.write(chunk)
    finally:
        pack_path.unlink(missing_ok=True)


def _header(
    object_format: ObjectFormat,
    refs: Sequence[tuple[bytes, bytes]],
    prerequisites: Sequence[bytes],
) -> bytes:
    lines = [b"# v2 git bundle"]
    if object_format is ObjectFormat.SHA256:
        lines = [b"# v3 git bundle", b"@object-format=sha256"]
    lines += [b"-%s " % oid.hex().encode() for oid in prerequisites]
    lines += [b"%s %s" % (oid.hex().encode(), name) for name, oid in refs]
    return b"\n".join(lines) + b"\n\n"
