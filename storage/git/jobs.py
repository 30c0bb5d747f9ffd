"""The worker jobs of upload-pack: `negotiate`, `build_pack`, `object_info`, `bundle`; and `derive`.

Called in a worker process with JSON values and answering with JSON values;
`upload_pack.job_arguments` makes what both need. Order: negotiate (it refuses wants that no
visible tip reaches), then, when `upload_pack.sends_pack` says so, build_pack with the same
arguments plus the negotiation.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from quorepo.storage.errors import QuorepoError
from quorepo.storage.git import negotiation as negotiation_module
from quorepo.storage.git import pack_builder
from quorepo.storage.git.bundle import base_bundle
from quorepo.storage.git.commit_graph import commit_graphs
from quorepo.storage.git.commits import CommitCache, CommitReader
from quorepo.storage.git.fetch_request import FetchRequest, Negotiation
from quorepo.storage.git.object_info import visible_sizes
from quorepo.storage.git.pack_changes import pack_changes
from quorepo.storage.git.pack_changes_build import write_pack_changes
from quorepo.storage.git.reachability import VisibleObjects
from quorepo.storage.git.whole_pack import pack_roots
from quorepo.storage.packs import PackSet

__all__ = ["JOBS", "Progress", "run"]

Progress = Callable[[str], None]

# A worker keeps the parsed commits of the repositories it served last, about 400 bytes each.
_REPOSITORIES_CACHED_MAX = 4

# A client of a partial clone asks for one object after the other. About 100 bytes per object.
_VISIBLE_CACHED_MAX = 1_000_000

_visible: dict[tuple[str | int | bytes, ...], VisibleObjects] = {}
_commit_caches: OrderedDict[tuple[str, int, str], CommitCache] = OrderedDict()


def run(
    job: str,
    arguments: Mapping[str, Any],
    progress: Progress | None = None,
) -> dict[str, Any]:
    """Run the job of that name; KeyError for any other.

    negotiate: {repository, request, tips, tags, deepen_not} -> the JSON of `Negotiation`.
    build_pack: the same plus {negotiation, out, by_reference?} -> {pack_bytes, objects, reused,
    parts: [[path, start, end]], is_sealed}; see `PackResult`.
    object_info: {repository, tips, oids} -> {sizes}.
    bundle: {repository, tips} -> {pack, path, pack_bytes, header}; {} when there is none.
    derive: {repository, pack} -> {}; see `derived.py`.
    Raises QuorepoErrors; OSErrors when the disk fails.
    """
    return JOBS[job](arguments, progress)


def negotiate(arguments: Mapping[str, Any], progress: Progress | None) -> dict[str, Any]:
    """Which haves are common, whether they suffice, and where the history is cut off."""
    reader = _reader(arguments["repository"])
    request = FetchRequest.from_json(arguments["request"])
    tips = [bytes.fromhex(oid) for oid in arguments["tips"]]
    deepen_not = [bytes.fromhex(oid) for oid in arguments["deepen_not"]]
    visible = None
    if not set(tips).issuperset(request.wants):
        visible = _visible_objects(arguments["repository"], reader, tips)
    try:
        result = negotiation_module.negotiate(reader, request, tips, deepen_not, visible)
    except QuorepoError:
        # A walk that failed half way must not be continued.
        _visible.clear()
        raise
    if visible is not None and len(visible) > _VISIBLE_CACHED_MAX:
        _visible.clear()
    return result.to_json()


def build_pack(arguments: Mapping[str, Any], progress: Progress | None) -> dict[str, Any]:
    """Write the pack that answers the request: to the new file `out`, or as parts."""
    out = Path(arguments["out"])
    result = pack_builder.build_pack(
        _reader(arguments["repository"]),
        FetchRequest.from_json(arguments["request"]),
        Negotiation.from_json(arguments["negotiation"]),
        [(bytes.fromhex(tag), bytes.fromhex(peeled)) for tag, peeled in arguments["tags"]],
        out,
        progress,
        tips=[bytes.fromhex(oid) for oid in arguments["tips"]],
        by_reference=bool(arguments.get("by_reference")),
    )
    return {
        "pack_bytes": result.pack_bytes,
        "objects": result.objects,
        "reused": result.reused,
        "parts": [
            [str(part.pack.path if part.pack else out), part.start, part.end]
            for part in result.parts
        ],
        "is_sealed": result.is_sealed,
    }


def object_info(arguments: Mapping[str, Any], progress: Progress | None) -> dict[str, Any]:
    """The sizes of the objects that a visible tip reaches, null for all others."""
    reader = _reader(arguments["repository"])
    tips = [bytes.fromhex(oid) for oid in arguments["tips"]]
    visible = _visible_objects(arguments["repository"], reader, tips)
    oids = [bytes.fromhex(oid) for oid in arguments["oids"]]
    try:
        return {"sizes": visible_sizes(reader.objects, oids, visible)}
    except QuorepoError:
        _visible.clear()
        raise


def bundle(arguments: Mapping[str, Any], progress: Progress | None) -> dict[str, Any]:
    """Which pack is offered as a bundle, and what stands before it there."""
    tips = [bytes.fromhex(oid) for oid in arguments["tips"]]
    found = base_bundle(_reader(arguments["repository"]), tips)
    if found is None:
        return {}
    return {
        "pack": found.pack.digest.hex(),
        "path": str(found.pack.path),
        "pack_bytes": found.pack.pack_bytes,
        "header": found.header.decode("ascii"),
    }


def _visible_objects(
    repository: Mapping[str, Any], reader: CommitReader, tips: list[bytes]
) -> VisibleObjects:
    """The one of the last question when it was about the same tips of the same repository."""
    key = (repository["data_dir"], repository["group"], repository["repository_id"], *tips)
    if key not in _visible:
        _visible.clear()
        _visible[key] = VisibleObjects(reader, tips)
    return _visible[key]


def _reader(repository: Mapping[str, Any]) -> CommitReader:
    objects = PackSet.from_description(repository)
    key = (repository["data_dir"], repository["group"], repository["repository_id"])
    cache = _commit_caches.setdefault(key, CommitCache())
    _commit_caches.move_to_end(key)
    if len(_commit_caches) > _REPOSITORIES_CACHED_MAX:
        _commit_caches.popitem(last=False)
    return CommitReader(objects, cache)


def derive(arguments: Mapping[str, Any], progress: Progress | None) -> dict[str, Any]:
    """Make the derived files of one pack of the repository, unless they are there."""
    objects = PackSet.from_description(arguments["repository"])
    digest = bytes.fromhex(arguments["pack"])
    for pack in objects.packs:
        if pack.digest == digest:
            commit_graphs(objects)
            pack_roots(objects, pack)
            if pack_changes(objects, pack) is None:
                write_pack_changes(objects, pack, progress or (lambda text: None))
    return {}


JOBS: dict[str, Callable[[Mapping[str, Any], Progress | None], dict[str, Any]]] = {
    "negotiate": negotiate,
    "build_pack": build_pack,
    "object_info": object_info,
    "bundle": bundle,
    "derive": derive,
}
