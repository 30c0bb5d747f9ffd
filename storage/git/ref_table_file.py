"""A table of refs as a file, for the first reader after a start.

Owns the format. The file is derived from the state: its header says from which repository, revision
and state file, a checksum that it is whole; whoever reads it brings it up to date with what changed
since then, or makes it anew. It decides nothing and may be deleted at any time.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import uuid
from dataclasses import asdict, dataclass
from pathlib import Path

from quorepo.storage.git.ref_table import Block, RefTable
from quorepo.storage.logs import fields
from quorepo.storage.objectformat import ObjectFormat

__all__ = ["RefsOrigin", "read_ref_table", "write_ref_table"]

log = logging.getLogger(__name__)

_MAGIC = b"QUOREFS\1"
_DIGEST_BYTES = 32
_SIZE_BYTES = 4


@dataclass(frozen=True)
class RefsOrigin:
    """Where a table comes from: the repository, its revision, and the state file's generation."""

    repository_id: str
    incarnation: int
    counter: int
    generation: int


def read_ref_table(path: Path) -> tuple[RefsOrigin, RefTable] | None:
    """None when there is none, or it is damaged."""
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        return None
    except OSError as error:
        log.warning("table of refs can't be read", extra=fields(path=path, error=error))
        return None
    start = len(_MAGIC) + _DIGEST_BYTES
    with memoryview(content) as view:
        digest = hashlib.sha256(view[start:]).digest()
    if content[:start] != _MAGIC + digest:
        log.warning("table of refs is damaged and made anew", extra=fields(path=path))
        return None
    size = int.from_bytes(content[start : start + _SIZE_BYTES], "big")
    start += _SIZE_BYTES
    header = json.loads(content[start : start + size])
    start += size
    object_format = ObjectFormat.from_name(header["object_format"])
    blocks = []
    for size, count, has_tags in header["blocks"]:
        lines = content[start : start + size]
        blocks.append(Block(lines, count, has_tags, object_format.hash_bytes))
        start += size
    return RefsOrigin(**header["origin"]), RefTable(blocks, object_format)


def write_ref_table(path: Path, origin: RefsOrigin, table: RefTable) -> None:
    """Replaces the file. Not synced: after a power cut its checksum tells."""
    lines = [block.stored for block in table.blocks]
    header = {
        "origin": asdict(origin),
        "object_format": table.object_format.value,
        "blocks": [
            (len(text), block.count, block.has_tags)
            for text, block in zip(lines, table.blocks, strict=True)
        ],
    }
    encoded = json.dumps(header).encode()
    body = b"".join([len(encoded).to_bytes(_SIZE_BYTES, "big"), encoded, *lines])
    new = path.with_name(f"{path.name}.{uuid.uuid4().hex}.tmp")
    try:
        new.write_bytes(_MAGIC + hashlib.sha256(body).digest() + body)
        new.chmod(0o600)
        os.replace(new, path)
    except OSError as error:
        with contextlib.suppress(OSError):
            new.unlink()
        log.warning("table of refs is not stored", extra=fields(path=path, error=error))
