"""A bundle of a repository's base pack: what a client downloads before it fetches the rest.

Owns which pack is offered, the bundle's header (gitformat-bundle.txt) and the answer to the v2
command `bundle-uri`. Only a pack that is complete in itself, and all of which the client may see,
is ever offered (`whole_pack.py`). Must not know how it travels or who may ask for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from quorepo.storage.git.commits import CommitReader
from quorepo.storage.git.pktline import FLUSH, encode
from quorepo.storage.git.whole_pack import complete_pack
from quorepo.storage.objectformat import ObjectFormat
from quorepo.storage.packs import PackFile

__all__ = ["Bundle", "base_bundle", "bundle_uri_answer"]


@dataclass(frozen=True)
class Bundle:
    """`header`, then the bytes of `pack`, are the file."""

    pack: PackFile
    header: bytes


def base_bundle(reader: CommitReader, tips: Sequence[bytes]) -> Bundle | None:
    """The bundle for a client that may see what `tips` reach; None when no pack is fit for it.

    The names of its refs are made up, since branches move and the bundle stays the same: git keeps
    them as refs/bundles/base-1 and so on, and only uses them to tell what it has.
    """
    found = complete_pack(reader, tips)
    if found is None or not found[1].commits:
        return None
    pack, roots = found
    lines = [
        b"%s refs/heads/base-%d\n" % (oid.hex().encode("ascii"), number)
        for number, oid in enumerate(roots.commits, 1)
    ]
    if pack.object_format is ObjectFormat.SHA1:
        signature = b"# v2 git bundle\n"
    else:
        signature = b"# v3 git bundle\n@object-format=%s\n" % pack.object_format.name_bytes
    return Bundle(pack, signature + b"".join(lines) + b"\n")


def bundle_uri_answer(uri: str | None) -> bytes:
    """The whole answer to `bundle-uri`; an empty list when there is no bundle."""
    if uri is None:
        return FLUSH
    pairs = ("bundle.version=1", "bundle.mode=all", f"bundle.base.uri={uri}")
    return b"".join(encode(pair.encode("ascii") + b"\n") for pair in pairs) + FLUSH
