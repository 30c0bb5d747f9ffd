"""A replica whose state is not that of the others, found by comparing repositories by revision.

Every replica applies the same log, so a repository at one revision has one rolling checksum and one
table of refs everywhere. Where a majority of the members agrees on another one than this node has,
its state was changed by something else than the log: it goes out of service like a wrong disk
(`wrong_disk.py`), since what it would answer is wrong, and as a leader it would tell wrong results.
Whoever is not at that revision now is not judged, and nobody is judged by less than a majority.

Owns the comparison; must not know who asks for it or how answers travel.
"""

from __future__ import annotations

import asyncio
import collections
import contextlib
import hashlib
from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence

from quorepo.cluster.state.reader import StateReader
from quorepo.internal.v1 import core_pb2
from quorepo.storage.errors import NotFound, Unavailable
from quorepo.storage.layout import GroupLayout

__all__ = ["FINGERPRINTS_MAX", "diverged", "fingerprints", "watch_divergence"]

FINGERPRINTS_MAX = 50_000  # repositories compared at once: the first by id

_Revision = tuple[int, str, int, int]  # group, repository, incarnation, counter


def fingerprints(layouts: Mapping[int, GroupLayout]) -> list[core_pb2.CoreFingerprint]:
    """Of every repository on this node, each read in one snapshot. Blocks; for a thread."""
    found: list[core_pb2.CoreFingerprint] = []
    for group, layout in sorted(layouts.items()):
        reader, after = StateReader(layout), ""
        try:
            while (rows := reader.repositories(after)) and len(found) < FINGERPRINTS_MAX:
                after = rows[-1].repository_id
                for row in rows:
                    if not row.deleted:
                        found.extend(_fingerprint(reader, group, row.repository_id))
        finally:
            reader.close()
    return found[:FINGERPRINTS_MAX]


def _fingerprint(
    reader: StateReader, group: int, repository_id: str
) -> Iterable[core_pb2.CoreFingerprint]:
    try:
        snapshot = reader.snapshot(repository_id)
    except NotFound:
        return  # deleted meanwhile
    row = snapshot.repository
    digest = hashlib.sha256(row.checksum)
    for name, oid in snapshot.refs:
        digest.update(len(name).to_bytes(4, "big") + name + oid)
    yield core_pb2.CoreFingerprint(
        group=group,
        repository_id=repository_id,
        incarnation=row.incarnation,
        counter=row.counter,
        digest=digest.digest(),
    )


def diverged(
    nodes: Sequence[core_pb2.CoreNodeVerification], members: int
) -> dict[str, list[core_pb2.CorePackFault]]:
    """What each node has otherwise than a majority of the `members` at the same revision.

    A node counts once, whatever it sends.
    """
    seen: dict[_Revision, dict[bytes, set[str]]] = collections.defaultdict(dict)
    for node in nodes:
        for one in node.fingerprints:
            revision = (one.group, one.repository_id, one.incarnation, one.counter)
            seen[revision].setdefault(one.digest, set()).add(node.node)
    found: dict[str, list[core_pb2.CorePackFault]] = {}
    for (group, repository_id, _, counter), by_digest in seen.items():
        agreed = max(by_digest.values(), key=len)
        if 2 * len(agreed) <= members:
            continue
        for names in by_digest.values():
            for name in names if names is not agreed else ():
                fault = core_pb2.CorePackFault(
                    group=group,
                    repository_id=repository_id,
                    kind="diverged",
                    problem=f"at revision {counter} it is not as on {', '.join(sorted(agreed))}",
                )
                found.setdefault(name, []).append(fault)
    return found


async def watch_divergence(
    compare: Callable[[], Awaitable[Sequence[core_pb2.CorePackFault]]],
    now: asyncio.Event,
    interval_s: float,
    on_found: Callable[[str], None],
) -> None:
    """Compares this node with the others when `now` is set, and every `interval_s`; 0: only then.

    `on_found` is told of a difference that a second look confirms.
    """
    while True:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(interval_s or None):
                await now.wait()
        now.clear()
        try:
            faults = await compare() and await compare()
        except Unavailable:
            continue  # the next round
        if faults:
            where = f"repository {faults[0].repository_id} of group {faults[0].group}"
            on_found(f"the state is not that of the others: {where}: {faults[0].problem}")
