"""The worker jobs that change which packs hold a repository's objects, and the check of the result.

    consolidate        {repository, merge: [digest], upload} -> {result: IngestResult}
    prune              {repository, merge: [digest], tips: [id], recent: [id], upload}
                       -> {result: IngestResult | null, dropped: number}
    check_replacement  {repository, merge: [digest], added: [[digest, index digest]], complete,
                       retain?: {tips: [id], recent: [id]}} -> {objects: number}

`repository` is `packs.describe`'s, with all packs of one revision; `merge` are those of them that
are merged, pruned or replaced. Ids and digests are hex. Owns the JSON; the work is done in
consolidate.py, retention.py and replacement.py.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from quorepo.storage.consolidate import merge_packs
from quorepo.storage.errors import InvalidArgument
from quorepo.storage.layout import GroupLayout
from quorepo.storage.limits import StorageLimits
from quorepo.storage.packs import PackSet
from quorepo.storage.replacement import NewPack, check_replacement
from quorepo.storage.retention import retained_objects

__all__ = ["run"]


def run(
    job: str,
    arguments: Mapping[str, Any],
    limits: StorageLimits,
    progress: Callable[[str], None],
) -> dict[str, Any]:
    """Does one of the jobs above."""
    repository = arguments["repository"]
    layout = GroupLayout(Path(repository["data_dir"]), int(repository["group"]))
    packs = PackSet.from_description(repository)
    merge = frozenset(_raw(arguments["merge"]))
    if job == "check_replacement":
        return _check(layout, packs, merge, arguments, limits, progress)
    if not merge <= {pack.digest for pack in packs.packs}:
        raise InvalidArgument("a pack to merge is none of the repository's")
    keep = None
    merged = _subset(packs, lambda digest: digest in merge)
    if job == "prune":
        kept = _subset(packs, lambda digest: digest not in merge)
        keep = retained_objects(packs, _raw(arguments["tips"]), _raw(arguments["recent"]), kept)
        if all(oid in keep for pack in merged.packs for oid in pack.iter_oids()):
            return {"result": None, "dropped": 0}
    result = merge_packs(merged, Path(arguments["upload"]), layout, progress, keep)
    answer: dict[str, Any] = {"result": None if result is None else result.to_json()}
    if keep is not None:
        distinct = {oid for pack in merged.packs for oid in pack.iter_oids()}
        answer["dropped"] = len(distinct) - (0 if result is None else result.object_count)
    return answer


def _check(
    layout: GroupLayout,
    packs: PackSet,
    merge: frozenset[bytes],
    arguments: Mapping[str, Any],
    limits: StorageLimits,
    progress: Callable[[str], None],
) -> dict[str, Any]:
    retained: set[bytes] | None = None
    if (retain := arguments.get("retain")) is not None:
        kept = _subset(packs, lambda digest: digest not in merge)
        retained = retained_objects(packs, _raw(retain["tips"]), _raw(retain["recent"]), kept)
    objects = check_replacement(
        layout,
        str(arguments["repository"]["repository_id"]),
        packs.object_format,
        sorted(merge),
        [NewPack(bytes.fromhex(a), bytes.fromhex(b)) for a, b in arguments["added"]],
        limits,
        progress,
        complete=bool(arguments["complete"]),
        retained=retained,
    )
    return {"objects": objects}


def _subset(packs: PackSet, wanted: Callable[[bytes], bool]) -> PackSet:
    return PackSet([p for p in packs.packs if wanted(p.digest)], packs.object_format)


def _raw(values: Iterable[str]) -> list[bytes]:
    return [bytes.fromhex(value) for value in values]
