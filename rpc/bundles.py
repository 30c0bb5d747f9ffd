"""Bundles at signed, short-lived URLs: how a large clone begins with a plain download.

Owns the URL's form, its signature, and what is read from disk for it. A URL names one pack of one
repository and ends after `limits.bundle_url_s`; whoever has it needs no other credential, so it is
given only to clients that may read the repository. All nodes that have the same users accept it
(the key is derived from their tokens' digests), whichever node gave it. Must not know HTTP.

What is signed says what was offered, not what may be seen now: when it is asked for, the same
question is asked again, and a pack that is not the answer any more is not sent.
"""

from __future__ import annotations

import dataclasses
import hashlib
import hmac
import os
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlencode

from quorepo.rpc.context import EdgeContext
from quorepo.rpc.reads import RepositoryView
from quorepo.storage.errors import DamagedPack, NotFound, PermissionDenied

__all__ = ["SUFFIX", "BundleFile", "bundle_uri", "open_bundle"]

SUFFIX = ".bundle"
_BATCH_BYTES = 256 * 1024
_NEXT_STEP = "clone without the bundle, or ask for a new URL (git's command bundle-uri)"


@dataclasses.dataclass(frozen=True, slots=True)
class BundleFile:
    """One bundle, as it is sent."""

    header: bytes
    path: Path
    pack_bytes: int

    @property
    def size_bytes(self) -> int:
        return len(self.header) + self.pack_bytes

    async def pieces(self) -> AsyncIterator[bytes]:
        """The file. Raises DamagedPack when the pack's file is gone or too short."""
        yield self.header
        try:
            file = open(self.path, "rb")  # noqa: ASYNC230, SIM115 - a name in the page cache
        except FileNotFoundError as error:  # consolidated in this moment
            raise DamagedPack("the pack of this bundle was replaced") from error
        with file:
            for offset in range(0, self.pack_bytes, _BATCH_BYTES):
                size = min(_BATCH_BYTES, self.pack_bytes - offset)
                piece = os.pread(file.fileno(), size, offset)
                if len(piece) < size:
                    raise DamagedPack("a pack's file is shorter than it was")
                yield piece


async def bundle_uri(edge: EdgeContext, view: RepositoryView) -> str | None:
    """The URL of a bundle of this repository as its readers see it, relative to the host; None
    when there is nothing to offer.

    Raises Unavailable when no worker is free.
    """
    found = await _offered(edge, view)
    if found is None:
        return None
    digest, _file = found
    expires_s = edge.clock_ms() // 1000 + int(edge.config.limits.bundle_url_s)
    query = urlencode({"expires": expires_s, "signature": _sign(edge, view, digest, expires_s)})
    return f"/{quote(view.path)}.git/bundles/{digest}{SUFFIX}?{query}"


async def open_bundle(
    edge: EdgeContext, path: str, name: str, expires: str, signature: str
) -> BundleFile:
    """The file behind a URL.

    Raises:
        PermissionDenied: the URL is not one that this cluster gave, or its time is over.
        NotFound: the repository, or its pack, is not what it was; nothing is wrong with the URL.
        Unavailable: no worker is free.
    """
    digest = name.removesuffix(SUFFIX)
    view = await edge.reads.find(path, consistency="local")
    expected = ""
    expires_s = int(expires) if expires.isascii() and expires.isdigit() and len(expires) < 16 else 0
    if view is not None:
        expected = _sign(edge, view, digest, expires_s)
    if not hmac.compare_digest(expected.encode(), signature.encode("utf-8", "replace")):
        raise PermissionDenied(
            "this bundle URL was not given by this cluster", next_step=_NEXT_STEP
        )
    if expires_s * 1000 < edge.clock_ms():
        raise PermissionDenied("the time of this bundle URL is over", next_step=_NEXT_STEP)
    assert view is not None
    found = await _offered(edge, view)
    if found is None or found[0] != digest:
        raise NotFound("this bundle is not offered any more", next_step=_NEXT_STEP)
    return found[1]


async def _offered(edge: EdgeContext, view: RepositoryView) -> tuple[str, BundleFile] | None:
    """The digest of the pack that is offered now, and the file."""

    def prepare() -> dict[str, Any]:
        return {"repository": view.describe(), "tips": view.git_view().tips_in_hex()}

    with edge.fetch_slots.take():
        arguments = await edge.reads.in_thread(prepare)
        answer = await edge.workers.run("bundle", arguments, edge.config.limits.worker_timeout_s)
    if not answer:
        return None
    header = answer["header"].encode("ascii")
    return answer["pack"], BundleFile(header, Path(answer["path"]), answer["pack_bytes"])


def _sign(edge: EdgeContext, view: RepositoryView, digest: str, expires_s: int) -> str:
    key = edge.authenticator.derived_key(b"bundle URLs")
    what = f"{view.repository_id}\n{digest}\n{expires_s}".encode("utf-8", "replace")
    return hmac.new(key, what, hashlib.sha256).hexdigest()
