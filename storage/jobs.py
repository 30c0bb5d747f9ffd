"""The jobs that worker processes do, by name, with arguments and results in JSON.

    ingest        a pushed pack: {repository, upload, tips, fsck?} -> {result: IngestResult | null}
    negotiate     a fetch's common commits     (storage/git/jobs.py)
    build_pack    a fetch's pack               (storage/git/jobs.py)
    object_info   sizes of objects             (storage/git/jobs.py)
    bundle        the pack offered as a bundle (storage/git/jobs.py)
    derive        a pack's derived files       (storage/git/jobs.py)
    operate       commits and tags made here   (storage/operations/jobs.py)
    consolidate, prune, check_replacement      (storage/upkeep_jobs.py)
    history_answer, history_stream             (storage/history/jobs.py)

Owns the registry and the JSON of `ingest`; `ingest` below is the typed way to run it in a pool.
Must not know how a worker is started or talked to.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from quorepo.storage.errors import InvalidArgument
from quorepo.storage.ingest import FsckPolicy, IngestResult, Tip, index_in_progress, ingest_pack
from quorepo.storage.layout import GroupLayout
from quorepo.storage.limits import StorageLimits
from quorepo.storage.packs import PackSet

if TYPE_CHECKING:
    from quorepo.storage.worker_pool import WorkerPool

__all__ = ["abandoned_files", "ingest", "ingest_arguments", "preload", "run_job"]

_FETCH_MODULE: Final = "quorepo.storage.git.jobs"
_FETCH_JOBS: Final = frozenset({"negotiate", "build_pack", "object_info", "bundle", "derive"})
_HISTORY_MODULE: Final = "quorepo.storage.history.jobs"
_HISTORY_JOBS: Final = frozenset({"history_answer", "history_stream"})
_OPERATIONS_MODULE: Final = "quorepo.storage.operations.jobs"
_UPKEEP_MODULE: Final = "quorepo.storage.upkeep_jobs"
_UPKEEP_JOBS: Final = frozenset({"consolidate", "prune", "check_replacement"})


async def ingest(
    pool: WorkerPool,
    upload: Path,
    repository: Mapping[str, Any],
    tips: Sequence[Tip],
    timeout_s: float,
    on_progress: Callable[[str], None] | None = None,
    fsck: FsckPolicy | None = None,
) -> IngestResult | None:
    """Runs `ingest_pack` in a worker; raises what it raises, and what `WorkerPool.run` raises.

    `repository` is `packs.describe`'s. The upload is gone afterwards, however it ends.
    """
    arguments = ingest_arguments(upload, repository, tips, fsck)
    answer = await pool.run("ingest", arguments, timeout_s, on_progress)
    result = answer["result"]
    return None if result is None else IngestResult.from_json(result)


def ingest_arguments(
    upload: Path,
    repository: Mapping[str, Any],
    tips: Sequence[Tip],
    fsck: FsckPolicy | None = None,
) -> dict[str, Any]:
    """The arguments of the job "ingest"."""
    return {
        "repository": dict(repository),
        "upload": str(upload),
        "tips": [[name.hex(), oid.hex()] for name, oid in tips],
        "fsck": {} if fsck is None else dict(fsck.overrides),
    }


def abandoned_files(job: str, arguments: Mapping[str, Any]) -> list[Path]:
    """The temporary files, and folders, of a job whose worker was killed."""
    if "upload" in arguments:
        upload = Path(arguments["upload"])
        folder = [Path(arguments["folder"])] if "folder" in arguments else []
        return [upload, index_in_progress(upload), *folder]
    if job == "build_pack" and "out" in arguments:
        return [Path(arguments["out"])]
    if job == "history_stream":
        pack = arguments["arguments"].get("pack")  # of a bundle
        return [Path(arguments["out"]), *([Path(pack)] if pack else [])]
    return []


def preload() -> None:
    """Imports what jobs need, so that the first job does not wait for it."""
    importlib.import_module(_FETCH_MODULE)


def run_job(
    job: str,
    arguments: Mapping[str, Any],
    limits: StorageLimits,
    progress: Callable[[str], None],
) -> dict[str, Any]:
    """Does a job in this process. Raises what the job raises; InvalidArgument for an unknown
    one."""
    if job == "ingest":
        return {"result": _run_ingest(arguments, limits, progress)}
    if job in _FETCH_JOBS:
        result: dict[str, Any] = importlib.import_module(_FETCH_MODULE).run(
            job, arguments, progress
        )
        return result
    if job in _HISTORY_JOBS:
        found: dict[str, Any] = importlib.import_module(_HISTORY_MODULE).run(
            job, arguments, progress
        )
        return found
    if job == "operate":
        made: dict[str, Any] = importlib.import_module(_OPERATIONS_MODULE).run(
            arguments, limits, progress
        )
        return made
    if job in _UPKEEP_JOBS:
        done: dict[str, Any] = importlib.import_module(_UPKEEP_MODULE).run(
            job, arguments, limits, progress
        )
        return done
    raise InvalidArgument(f"unknown job {job!r}")


def _run_ingest(
    arguments: Mapping[str, Any], limits: StorageLimits, progress: Callable[[str], None]
) -> dict[str, Any] | None:
    repository = arguments["repository"]
    existing = PackSet.from_description(repository)
    result = ingest_pack(
        Path(arguments["upload"]),
        GroupLayout(Path(repository["data_dir"]), int(repository["group"])),
        existing,
        [(bytes.fromhex(name), bytes.fromhex(oid)) for name, oid in arguments["tips"]],
        existing.object_format,
        limits,
        FsckPolicy(arguments.get("fsck")),
        progress,
        limits.inline_pack_bytes_max,
    )
    return None if result is None else result.to_json()
