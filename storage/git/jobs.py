"""The two worker jobs of a fetch: `negotiate` and `build_pack`.

Called in a worker process with JSON values and answering with JSON values;
`upload_pack.job_arguments` makes what both need. Order: negotiate (it refuses wants that no
visible tip reaches), then, when `upload_pack.sends_pack` says so, build_pack with the same
arguments plus the negotiation.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["JOBS", "run"]

Progress = Callable[[str], None]


def run(job: str, arguments: dict[str, Any], progress: Progress | None = None) -> dict[str, Any]:
    """Run the job of that name.

    negotiate: {repository, request, tips, tags, deepen_not} -> the JSON of `Negotiation`.
    build_pack: the same plus {negotiation, out} -> {path, bytes, objects, reused, deltas}.
    Raises QuorepoErrors; FileNotFoundError and other OSErrors when the disk fails.
    """
    return JOBS[job](arguments, progress)


def negotiate(arguments: dict[str, Any], progress: Progress | None) -> dict[str, Any]:
    """Which haves are common, whether they suffice, and where the history is cut off."""
    raise NotImplementedError


def build_pack(arguments: dict[str, Any], progress: Progress | None) -> dict[str, Any]:
    """Write the pack that answers the request to the file `out`."""
    raise NotImplementedError


JOBS: dict[str, Callable[[dict[str, Any], Progress | None], dict[str, Any]]] = {
    "negotiate": negotiate,
    "build_pack": build_pack,
}
