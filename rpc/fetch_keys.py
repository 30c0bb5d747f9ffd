"""What the answer to a fetch depends on, as keys of the cache of finished answers.

Owns the completeness of the keys: two requests with the same key may be sent the same bytes. What
a client may see is part of every key, so nothing is shown to a client that may see less.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable

from quorepo.rpc.reads import RepositoryView
from quorepo.storage.git.fetch_request import FetchRequest, Negotiation

__all__ = ["answer_key", "is_at_hand", "negotiation_key", "view_digest"]

# Above that, what concerns every ref or line of a request takes long enough for a thread.
_REFS_AT_HAND_MAX = 1000
_LINES_AT_HAND_MAX = 1000
_DIGEST = "digest"

# What changes only how an answer is framed or spoken of.
_FORM = ("agent", "no_progress", "side_band", "thin_pack", "ofs_delta", "include_tag")


def view_digest(view: RepositoryView) -> bytes:
    """Of all that a client may see, and of the packs it lies in. Reads packs: call it off the event
    loop.
    """

    def digest() -> bytes:
        refs = view.git_view()
        head = (refs.head or b"", refs.detached_head or b"")
        packs = view.pack_digests
        return _digest([view.repository_id.encode(), *packs, b"refs", *head, refs.table.digest])

    return view.encoded(_DIGEST, lambda _refs: digest())


def is_at_hand(view: RepositoryView, request: FetchRequest) -> bool:
    """Whether keys and job arguments of this request are a matter of microseconds, so that a thread
    would cost more than it saves.
    """
    lines = len(request.wants) + len(request.haves) + len(request.client_shallow)
    return (
        view.has_encoded(_DIGEST)
        and len(view.refs) <= _REFS_AT_HAND_MAX
        and lines <= _LINES_AT_HAND_MAX
    )


def negotiation_key(view: bytes, request: FetchRequest) -> bytes:
    """`view` is a `view_digest`."""
    fields = {name: value for name, value in request.to_json().items() if name not in _FORM}
    return _digest([b"negotiation", view, json.dumps(fields, sort_keys=True).encode()])


def answer_key(view: bytes, request: FetchRequest, negotiation: Negotiation) -> bytes:
    """Of the pack. The haves count only as far as they are common."""
    bounds = request.filter.to_json() if request.filter else None
    form = [request.ofs_delta, request.thin_pack, request.include_tag, bounds]
    return _digest(
        [
            b"answer",
            view,
            json.dumps(form, sort_keys=True).encode(),
            *_sorted(request.wants),
            *_sorted(request.client_shallow),
            *_sorted(negotiation.common),
            *_sorted(negotiation.shallow),
            *_sorted(negotiation.unshallow),
        ]
    )


def _sorted(oids: Iterable[bytes]) -> list[bytes]:
    """In order and without repetition, with an end that is no object id."""
    return [*sorted(set(oids)), b""]


def _digest(pieces: Iterable[bytes]) -> bytes:
    digest = hashlib.sha256()
    for piece in pieces:
        digest.update(len(piece).to_bytes(8, "big") + piece)
    return digest.digest()
