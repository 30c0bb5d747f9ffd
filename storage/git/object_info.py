"""The v2 command `object-info`: sizes of objects, without the objects.

Owns the arguments of its worker job, the job's lookups and the bytes of the answer (git's
protocol-caps.c). Nothing is told about an object that the client may not fetch: it is answered
like one that does not exist.
"""

from __future__ import annotations

from collections.abc import Container, Sequence
from typing import Any

from quorepo.storage.git.advertise import RefsView
from quorepo.storage.git.fetch_request import ObjectInfoRequest
from quorepo.storage.git.pktline import FLUSH, encode
from quorepo.storage.packs import PackSet

__all__ = ["object_info_answer", "object_info_arguments", "visible_sizes"]


def object_info_arguments(request: ObjectInfoRequest, view: RefsView) -> dict[str, Any]:
    """The arguments of the worker job `object_info`, as JSON values; add `repository`."""
    return {
        "oids": [oid.hex() for oid in request.oids],
        "tips": [oid.hex() for oid in view.tips()],
    }


def visible_sizes(
    objects: PackSet, oids: Sequence[bytes], visible: Container[bytes]
) -> list[int | None]:
    """The inflated size in bytes of each object; None for what is not there or not visible."""
    return [objects.object_size(oid) if oid in objects and oid in visible else None for oid in oids]


def object_info_answer(request: ObjectInfoRequest, sizes: Sequence[int | None]) -> bytes:
    """The whole answer: the attributes that were asked for, then a line for each object."""
    packets = [encode(b"size")] if request.size and request.oids else []
    for oid, size in zip(request.oids, sizes, strict=True):
        line = oid.hex().encode("ascii")
        if request.size:
            line += b" " if size is None else b" %d" % size
        packets.append(encode(line))
    packets.append(FLUSH)
    return b"".join(packets)
