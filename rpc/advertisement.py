"""What git clients are told first: which refs a repository has and what this server can do.

Owns what is asked of the read path for it, for every protocol that carries git. Must not know HTTP
or gRPC: a protocol's own preamble is given.
"""

from __future__ import annotations

from collections.abc import Callable

from quorepo.rpc.context import EdgeContext
from quorepo.rpc.reads import RepositoryView, empty_refs_view
from quorepo.storage.errors import NotFound
from quorepo.storage.git.advertise import (
    RefsView,
    advertise_capabilities_v2,
    advertise_receive_pack,
    advertise_upload_pack_v0,
)
from quorepo.storage.objectformat import ObjectFormat

__all__ = [
    "RECEIVE_PACK",
    "UPLOAD_PACK",
    "advertise_fetches",
    "advertise_pushes",
    "protocol_version",
]

UPLOAD_PACK = "git-upload-pack"
RECEIVE_PACK = "git-receive-pack"
_GIT_PROTOCOL_CHARACTERS_MAX = 1024


async def advertise_fetches(
    edge: EdgeContext, path: str, version: int, preamble: bytes = b""
) -> bytes:
    """The refs (protocol 0 and 1), or the capabilities (2: no preamble), for a fetch.

    Raises:
        NotFound, Unavailable
    """
    edge.metrics.advertisements.labels(UPLOAD_PACK).inc()
    view = await edge.reads.open(path)
    if version == 2:
        return advertise_capabilities_v2(view.object_format, bundle_uri=edge.config.git.bundle_uri)
    return await _encoded(
        edge,
        view,
        f"{UPLOAD_PACK} {version} {len(preamble)}",
        lambda refs: preamble + advertise_upload_pack_v0(refs, version),
    )


async def advertise_pushes(edge: EdgeContext, path: str, preamble: bytes = b"") -> bytes:
    """The refs for a push. Always protocol 0 or the like: git has no 2 for pushes. Nothing is
    created here.

    Raises:
        NotFound: no such repository, and a push may not create it.
        Unavailable
    """
    edge.metrics.advertisements.labels(RECEIVE_PACK).inc()

    def encode_refs(refs: RefsView) -> bytes:
        return preamble + advertise_receive_pack(refs)

    view = await edge.reads.find(path)
    if view is not None:
        return await _encoded(edge, view, f"{RECEIVE_PACK} {len(preamble)}", encode_refs)
    if not edge.config.push.create_on_push:
        raise NotFound(
            f"repository {path!r} does not exist",
            next_step=f"create it with: quorepo repo create {path}",
        )
    return encode_refs(empty_refs_view(ObjectFormat.SHA1))


async def _encoded(
    edge: EdgeContext, view: RepositoryView, key: str, encode: Callable[[RefsView], bytes]
) -> bytes:
    """In a thread the first time; what is remembered is at hand."""
    if view.has_encoded(key):
        return view.encoded(key, encode)
    return await edge.reads.in_thread(lambda: view.encoded(key, encode))


def protocol_version(git_protocol: str) -> int:
    """The highest protocol version that a client asks for and this server has: 0, 1 or 2.

    `git_protocol` is the header Git-Protocol or the variable GIT_PROTOCOL. Source: git's
    protocol.c, determine_protocol_version_server().
    """
    version = 0
    for item in git_protocol[:_GIT_PROTOCOL_CHARACTERS_MAX].split(":"):
        if item in ("version=1", "version=2"):
            version = max(version, int(item[-1]))
    return version
