"""What a fetch asks for and what its negotiation came to, independent of the protocol version.

Owns the two values that travel between the edge and its worker processes, with their JSON form
(worker pipes carry JSON, never pickles). Knows no wire format.
"""

from __future__ import annotations

import enum
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from quorepo.storage.git.filters import ObjectFilter

__all__ = [
    "INFINITE_DEPTH",
    "BundleUriRequest",
    "FetchRequest",
    "LsRefsRequest",
    "MultiAck",
    "Negotiation",
    "ObjectInfoRequest",
    "V2Request",
]

# git's INFINITE_DEPTH: `git fetch --unshallow` asks for this depth.
INFINITE_DEPTH = 0x7FFFFFFF


class MultiAck(enum.Enum):
    """How a v0 client wants its `have` lines acknowledged."""

    NONE = "none"
    CONTINUE = "multi_ack"
    DETAILED = "multi_ack_detailed"


@dataclass(frozen=True)
class LsRefsRequest:
    """The v2 command `ls-refs`. No prefixes means all refs."""

    prefixes: tuple[bytes, ...] = ()
    symrefs: bool = False
    peel: bool = False
    unborn: bool = False


@dataclass(frozen=True)
class ObjectInfoRequest:
    """The v2 command `object-info`: what is known of these objects. `size` is the one question."""

    oids: tuple[bytes, ...] = ()
    size: bool = False


@dataclass(frozen=True)
class BundleUriRequest:
    """The v2 command `bundle-uri`: where files are that save a client most of a clone."""


@dataclass(frozen=True)
class FetchRequest:
    """One fetch request of any protocol version. Object ids are raw; `wants` and `haves` keep
    their order.

    `negotiates` is False for a v0 request that ends after its wants: it is answered with the
    shallow lines alone. `side_band` is the size of a whole packet in bytes, 0 for a client
    without side-band, and `sideband_all` says that every line of a v2 answer is framed, not the
    pack alone.

    `want_refs` are full names of refs that the client wants, whatever they point to by now;
    `upload_pack.resolve_wanted_refs` turns them into `wants` and into `wanted_refs`, which the
    answer names. These three are the edge's matter and do not travel to workers.
    """

    version: int
    wants: tuple[bytes, ...]
    haves: tuple[bytes, ...] = ()
    done: bool = False
    negotiates: bool = True
    client_shallow: tuple[bytes, ...] = ()
    depth: int = 0
    deepen_since: int | None = None
    deepen_not: tuple[bytes, ...] = ()
    deepen_relative: bool = False
    filter: ObjectFilter | None = None
    multi_ack: MultiAck = MultiAck.NONE
    no_done: bool = False
    wait_for_done: bool = False
    ofs_delta: bool = False
    thin_pack: bool = False
    include_tag: bool = False
    no_progress: bool = False
    side_band: int = 0
    agent: str = ""
    session_id: str = ""
    sideband_all: bool = False
    want_refs: tuple[bytes, ...] = ()
    wanted_refs: tuple[tuple[bytes, bytes], ...] = ()

    @property
    def deepens(self) -> bool:
        """Whether the client asks for a history cut off somewhere, or for less of a cut."""
        return bool(self.depth or self.deepen_since is not None or self.deepen_not)

    def to_json(self) -> dict[str, Any]:
        """For the way to a worker process."""
        return {
            "version": self.version,
            "wants": _hexes(self.wants),
            "haves": _hexes(self.haves),
            "done": self.done,
            "negotiates": self.negotiates,
            "client_shallow": _hexes(self.client_shallow),
            "depth": self.depth,
            "deepen_since": self.deepen_since,
            "deepen_not": [name.decode("utf-8", "surrogateescape") for name in self.deepen_not],
            "deepen_relative": self.deepen_relative,
            "filter": self.filter.to_json() if self.filter else None,
            "multi_ack": self.multi_ack.value,
            "no_done": self.no_done,
            "wait_for_done": self.wait_for_done,
            "ofs_delta": self.ofs_delta,
            "thin_pack": self.thin_pack,
            "include_tag": self.include_tag,
            "no_progress": self.no_progress,
            "side_band": self.side_band,
            "agent": self.agent,
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> FetchRequest:
        """The inverse of `to_json`."""
        fields = dict(value)
        for name in ("wants", "haves", "client_shallow"):
            fields[name] = _raw(fields[name])
        fields["deepen_not"] = tuple(
            name.encode("utf-8", "surrogateescape") for name in fields["deepen_not"]
        )
        fields["filter"] = ObjectFilter.from_json(fields["filter"]) if fields["filter"] else None
        fields["multi_ack"] = MultiAck(fields["multi_ack"])
        return cls(**fields)


V2Request = LsRefsRequest | FetchRequest | ObjectInfoRequest | BundleUriRequest


@dataclass(frozen=True)
class Negotiation:
    """What the server found out about a fetch request.

    `common` are the haves that this repository holds, in the order of the request; `ready` says
    that every want reaches one of them, so that more haves would not make the pack smaller.
    `shallow` are the commits whose parents the client will not get and does not yet know to be
    missing; `unshallow` those of its shallow commits whose parents it gets now.
    """

    common: tuple[bytes, ...] = ()
    ready: bool = False
    shallow: tuple[bytes, ...] = ()
    unshallow: tuple[bytes, ...] = ()

    def to_json(self) -> dict[str, Any]:
        """For the way to and from a worker process."""
        return {
            "common": _hexes(self.common),
            "ready": self.ready,
            "shallow": _hexes(self.shallow),
            "unshallow": _hexes(self.unshallow),
        }

    @classmethod
    def from_json(cls, value: dict[str, Any]) -> Negotiation:
        """The inverse of `to_json`."""
        return cls(
            _raw(value["common"]),
            value["ready"],
            _raw(value["shallow"]),
            _raw(value["unshallow"]),
        )


def _hexes(oids: Iterable[bytes]) -> list[str]:
    return [oid.hex() for oid in oids]


def _raw(oids: Sequence[str]) -> tuple[bytes, ...]:
    return tuple(bytes.fromhex(oid) for oid in oids)
