"""Answering a negotiated fetch: what is sent is selected, written to a file, and told about.

Owns that order, the progress lines and what becomes of a file that could not be written. Selecting
is `selection.py`'s matter, the bytes of the pack are `pack_writer.py`'s.
"""

from __future__ import annotations

import errno
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path

from quorepo.storage.errors import StorageFull
from quorepo.storage.git.commits import CommitReader
from quorepo.storage.git.fetch_request import FetchRequest, Negotiation
from quorepo.storage.git.filters import ObjectFilter
from quorepo.storage.git.pack_entries import encode_distance, encode_header
from quorepo.storage.git.pack_part import all_but_blobs
from quorepo.storage.git.pack_writer import PackResult, write_pack
from quorepo.storage.git.selection import select_objects
from quorepo.storage.git.tree_changes import Selection
from quorepo.storage.git.whole_pack import whole_pack_for

__all__ = [
    "PackResult",
    "Progress",
    "build_pack",
    "encode_distance",
    "encode_header",
    "write_pack",
]

Progress = Callable[[str], None]

_PROGRESS_INTERVAL_S = 0.5
_NO_BLOBS = ObjectFilter(blob_bytes_limit=0)


def build_pack(
    reader: CommitReader,
    request: FetchRequest,
    negotiation: Negotiation,
    tags: Sequence[tuple[bytes, bytes]],
    out: Path,
    progress: Progress | None = None,
    clock: Callable[[], float] = time.monotonic,
    *,
    tips: Sequence[bytes] = (),
    by_reference: bool = False,
) -> PackResult:
    """Write the pack that answers a negotiated request to the new file `out`.

    `tips` are what the client may see: when all of a large pack is reached from there, it is sent
    as it is stored. `by_reference`: such packs are named in the result instead of copied, and `out`
    is there only if a part of the result lies in it. `progress` gets lines as git's pack-objects
    writes them, at most one per half second. The file is removed when anything fails; it is not
    synced, since it is thrown away after it was sent.
    """
    meter = _Meter(progress, clock)
    selection = _select(reader, request, negotiation, tags, tips, meter)
    meter.enumerated(len(selection))
    try:
        with out.open("xb", buffering=0) as file:
            result = write_pack(
                file,
                reader.objects,
                selection,
                ofs_delta=request.ofs_delta,
                thin=_may_be_thin(request, negotiation),
                by_reference=by_reference,
                written=meter.writing,
            )
        meter.total(result)
    except BaseException as error:
        out.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise StorageFull(f"no room for the answer: {error.strerror}") from error
        raise
    if all(part.pack is not None for part in result.parts):
        out.unlink()
    return result


def _may_be_thin(request: FetchRequest, negotiation: Negotiation) -> bool:
    """A partial clone lacks bases that other clients have; `known` minds blob:none, but no more."""
    is_minded = request.filter in (None, _NO_BLOBS)
    return request.thin_pack and is_minded and bool(negotiation.common)


def _select(
    reader: CommitReader,
    request: FetchRequest,
    negotiation: Negotiation,
    tags: Sequence[tuple[bytes, bytes]],
    tips: Sequence[bytes],
    meter: _Meter,
) -> Selection:
    found = whole_pack_for(reader, request, negotiation, tips) if tips else None
    part = None
    if found is not None and request.filter is not None:
        part = all_but_blobs(reader.objects, found[0])
    if found is None or (part is None and request.filter is not None):
        by_parts = request.ofs_delta
        return select_objects(
            reader, request, negotiation, tags, meter.enumerating, by_parts=by_parts
        )
    pack, roots = found
    # The pack is closed: whoever has its roots has all of it, and all that its objects refer to.
    as_had = Negotiation(common=(*roots.commits, *roots.tags))
    others = replace(request, wants=tuple(oid for oid in request.wants if pack.find(oid) is None))
    selection = Selection()
    if others.wants:
        selection = select_objects(reader, others, as_had, tags, meter.enumerating)
    if request.include_tag:
        wanted = [tag for tag, peeled in tags if pack.find(peeled) is not None]
        selection.chosen.update(dict.fromkeys(reader.roots(wanted).tags, 0))
    commits = set(islice(selection.chosen, selection.commit_count))
    for oid in [oid for oid in selection.chosen if pack.find(oid) is not None]:
        del selection.chosen[oid]
        selection.commit_count -= oid in commits
    if part is None:
        selection.whole = pack
    else:
        selection.part = part
    return selection


class _Meter:
    """Progress in the words of git's pack-objects, at most one line per interval.

    Of work that is over sooner nothing is told: nobody would be shown it, and each line wakes the
    process that waits for the pack.
    """

    def __init__(self, progress: Progress | None, clock: Callable[[], float]) -> None:
        self._progress = progress
        self._clock = clock
        self._quiet_until_s = self._next_s = clock() + _PROGRESS_INTERVAL_S

    def enumerating(self, count: int) -> None:
        if self._due():
            self._tell(f"Enumerating objects: {count}\r")

    def enumerated(self, count: int) -> None:
        self._tell(f"Enumerating objects: {count}, done.\n")

    def writing(self, done: int, total: int) -> None:
        if self._due():
            self._tell(f"Writing objects: {done * 100 // total}% ({done}/{total})\r")

    def total(self, result: PackResult) -> None:
        self._tell(f"Total {result.objects}, reused {result.reused}\n")

    def _due(self) -> bool:
        now = self._clock()
        if self._progress is None or now < self._next_s:
            return False
        self._next_s = now + _PROGRESS_INTERVAL_S
        return True

    def _tell(self, line: str) -> None:
        if self._progress is not None and self._clock() >= self._quiet_until_s:
            self._progress(line)
