"""upload-pack: listing refs, and what a fetch asks for in terms of this repository's refs.

Pure. Requests are read by `fetch_parser.py`, reading objects is the worker's business (`jobs.py`),
the bytes of an answer are in `fetch_answer.py`; this module gives all of it to the edge. Refusals
use git's words.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from quorepo.storage.errors import NotFound
from quorepo.storage.git.advertise import RefsView
from quorepo.storage.git.bundle import bundle_uri_answer
from quorepo.storage.git.fetch_answer import (
    error_frames,
    fetch_epilogue,
    fetch_preamble,
    pack_frames,
    progress_frames,
    request_error,
    sends_pack,
    sideband,
)
from quorepo.storage.git.fetch_parser import LINES_MAX, parse_v0_request, parse_v2_request
from quorepo.storage.git.fetch_request import (
    BundleUriRequest,
    FetchRequest,
    LsRefsRequest,
    MultiAck,
    Negotiation,
    ObjectInfoRequest,
    V2Request,
)
from quorepo.storage.git.object_info import object_info_answer, object_info_arguments
from quorepo.storage.git.pktline import FLUSH, encode, error_packet
from quorepo.storage.git.ref_table import Form

__all__ = [
    "LINES_MAX",
    "BundleUriRequest",
    "FetchRequest",
    "LsRefsRequest",
    "MultiAck",
    "Negotiation",
    "ObjectInfoRequest",
    "V2Request",
    "bundle_uri_answer",
    "error_frames",
    "error_packet",
    "fetch_epilogue",
    "fetch_preamble",
    "job_arguments",
    "ls_refs",
    "object_info_answer",
    "object_info_arguments",
    "pack_frames",
    "parse_v0_request",
    "parse_v2_request",
    "progress_frames",
    "request_error",
    "resolve_wanted_refs",
    "sends_pack",
    "sideband",
]

_REF_RULES = (
    b"%s",
    b"refs/%s",
    b"refs/tags/%s",
    b"refs/heads/%s",
    b"refs/remotes/%s",
    b"refs/remotes/%s/HEAD",
)


def ls_refs(request: LsRefsRequest, view: RefsView) -> bytes:
    """The whole answer to `ls-refs`."""
    prefixes = request.prefixes
    packets: list[bytes] = []
    if not prefixes or b"HEAD".startswith(prefixes):
        packets += _head_line(request, view)
    packets += view.table.lines(Form.PEELED if request.peel else Form.PLAIN, prefixes)
    packets.append(FLUSH)
    return b"".join(packets)


def job_arguments(request: FetchRequest, view: RefsView) -> dict[str, Any]:
    """The arguments that both worker jobs of a fetch share, as JSON values.

    Add `repository` (the description of its packs) for both, `negotiation` and `out` for the
    build. The names that `deepen-not` excludes are resolved here, in the refs that this client
    may see; raises NotFound when one is unknown or ambiguous.
    """
    tags = [
        [oid.hex(), peeled.hex()]
        for name, oid, peeled in (view.table.tags() if request.include_tag else ())
        if peeled is not None and name.startswith(b"refs/tags/")
    ]
    return {
        "request": request.to_json(),
        "tips": view.tips_in_hex(),
        "tags": tags,
        "deepen_not": [_resolve_name(name, view).hex() for name in request.deepen_not],
    }


def resolve_wanted_refs(
    request: FetchRequest, resolve: Callable[[bytes], bytes | None]
) -> FetchRequest:
    """The request with its `want-ref` lines turned into wants. `resolve` gives the object id of a
    full name or HEAD; None where this client sees no such ref.

    Raises NotFound, in git's words, for a ref that is not there (any more).
    """
    if not request.want_refs:
        return request
    resolved = []
    for name in request.want_refs:
        oid = resolve(name)
        if oid is None:
            raise NotFound(f"unknown ref {_shown(name)}")
        resolved.append((oid, name))
    wants = dict.fromkeys([*request.wants, *(oid for oid, _ in resolved)])
    return dataclasses.replace(
        request, wants=tuple(wants), want_refs=(), wanted_refs=tuple(resolved)
    )


def _head_line(request: LsRefsRequest, view: RefsView) -> list[bytes]:
    oid = view.head_oid()
    target = b""
    if request.symrefs and view.detached_head is None and view.head is not None:
        target = b" symref-target:" + view.head
    if oid is not None:
        return [encode(oid.hex().encode("ascii") + b" HEAD" + target + b"\n")]
    if request.unborn and target:
        return [encode(b"unborn HEAD" + target + b"\n")]
    return []


def _resolve_name(name: bytes, view: RefsView) -> bytes:
    """git's `expand_ref`: the one ref that the abbreviated `name` may mean."""
    rows = [view.table.find(candidate) for candidate in {rule % name for rule in _REF_RULES}]
    found = [row[1] for row in rows if row is not None]
    if name == b"HEAD" and (head := view.head_oid()) is not None:
        found.append(head)
    if len(found) != 1:
        problem = "ambiguous" if found else "unknown"
        raise NotFound(f"git upload-pack: {problem} deepen-not: {_shown(name)}")
    return found[0]


def _shown(value: bytes) -> str:
    return value[:200].decode("utf-8", "replace")
