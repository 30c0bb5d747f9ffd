"""The capabilities this server offers, each one because a test shows it working with git.

Owns the strings; which of them a client took is read by the request parsers.
"""

from __future__ import annotations

from quorepo import __version__
from quorepo.storage.objectformat import ObjectFormat

__all__ = [
    "AGENT",
    "capabilities_v2",
    "object_format_capability",
    "receive_pack_capabilities",
    "upload_pack_capabilities",
]

AGENT = b"quorepo/" + __version__.encode("ascii")

_UPLOAD_PACK = (
    b"multi_ack",
    b"thin-pack",
    b"side-band",
    b"side-band-64k",
    b"ofs-delta",
    b"shallow",
    b"deepen-since",
    b"deepen-not",
    b"deepen-relative",
    b"no-progress",
    b"include-tag",
    b"multi_ack_detailed",
    b"no-done",
    # Safe to offer: `reachability.py` proves that a visible tip reaches such a want.
    b"allow-reachable-sha1-in-want",
    b"filter",
)

_RECEIVE_PACK = (
    b"report-status",
    b"report-status-v2",
    b"delete-refs",
    b"side-band-64k",
    b"quiet",
    b"atomic",
    b"ofs-delta",
    b"push-options",
)


def object_format_capability(object_format: ObjectFormat) -> bytes:
    """`object-format=sha1` or `object-format=sha256`."""
    return b"object-format=" + object_format.name_bytes


def upload_pack_capabilities(object_format: ObjectFormat, head: bytes | None) -> bytes:
    """The space-separated list of a v0 or v1 advertisement; `head` is what HEAD points to."""
    words = [*_UPLOAD_PACK]
    if head is not None:
        words.append(b"symref=HEAD:" + head)
    words += [object_format_capability(object_format), b"agent=" + AGENT]
    return b" ".join(words)


def receive_pack_capabilities(object_format: ObjectFormat) -> bytes:
    """The space-separated list of receive-pack's advertisement."""
    return b" ".join(
        [*_RECEIVE_PACK, object_format_capability(object_format), b"agent=" + AGENT],
    )


def capabilities_v2(object_format: ObjectFormat, *, bundle_uri: bool = False) -> tuple[bytes, ...]:
    """The lines of a protocol v2 capability advertisement, after `version 2`."""
    return (
        b"agent=" + AGENT,
        b"ls-refs=unborn",
        b"fetch=shallow wait-for-done filter ref-in-want sideband-all",
        b"server-option",
        object_format_capability(object_format),
        b"object-info",
        *((b"bundle-uri",) if bundle_uri else ()),
    )
