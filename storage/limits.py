"""The limits of the storage layer: one frozen model, the `[limits]` table of the configuration.

"Put a limit on everything" (TigerBeetle). Exceeding one raises LimitExceeded naming its key. Knows
nothing of how the limits are enforced.
"""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

from quorepo.storage.errors import LimitExceeded

__all__ = ["StorageLimits", "exceeded"]

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB


class StorageLimits(BaseModel):
    """Limits of pushes, fetches and workers. Sizes in bytes, times in seconds."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    push_bytes_max: int = Field(
        2 * GIB, ge=1, description="Largest pack that a push may send, in bytes on the wire."
    )
    inline_pack_bytes_max: int = Field(
        128 * KIB,
        ge=0,
        le=1 * MIB,
        description="A pack that is no larger, its index counted, travels in the log entry that "
        "adds it: one sync on each node makes both durable. A larger one is copied to a majority "
        "first. 0: every pack is.",
    )
    push_objects_max: int = Field(
        5_000_000,
        ge=1,
        le=20_000_000,
        description="Most objects in one pushed pack. A worker needs about 250 bytes for each.",
    )
    object_bytes_max: int = Field(
        256 * MIB, ge=1, description="Largest single object, inflated, in bytes."
    )
    push_inflated_bytes_max: int = Field(
        16 * GIB,
        ge=1,
        description="Most bytes that all objects of one push may have together, inflated, "
        "deltas resolved and the deltas themselves counted too.",
    )
    delta_result_bytes_max: int = Field(
        256 * MIB, ge=1, description="Largest object that a delta may produce, in bytes."
    )
    delta_depth_max: int = Field(
        4096, ge=1, le=65_535, description="Longest chain of deltas in a pushed pack."
    )
    refs_per_push_max: int = Field(10_000, ge=1, description="Most ref updates in one push.")
    batch_requests_max: int = Field(
        256, ge=1, le=4096, description="Most transactions in one BatchUpdateRefs call."
    )
    ref_name_bytes_max: int = Field(1024, ge=16, le=4096, description="Longest ref name, in bytes.")
    push_options_max: int = Field(64, ge=0, description="Most push options in one push.")
    push_options_bytes_max: int = Field(
        64 * KIB, ge=0, description="Most bytes that all push options of one push have together."
    )
    filters_combined_max: int = Field(
        16,
        ge=1,
        le=256,
        description="Most filters that one partial clone may combine, nested ones counted, so "
        "that this is the deepest nesting too.",
    )
    negotiation_lines_max: int = Field(
        200_000,
        ge=100,
        description="Most want, have and shallow lines in one fetch request. Each round of a "
        "negotiation repeats what was found in the ones before, so this bounds the rounds too.",
    )
    session_commands_max: int = Field(
        1000,
        ge=1,
        description="Most requests on one HTTP connection of a git client, each of which is one "
        "command; the last one's answer closes the connection, and a client opens another.",
    )
    fetch_request_bytes_max: int = Field(
        32 * MIB, ge=4 * KIB, description="Largest body of a fetch request, inflated, in bytes."
    )
    fetch_cache_bytes_max: int = Field(
        1 * GIB,
        ge=0,
        description="Files of finished answers to fetches that are kept for the next client who "
        "asks for the same, in bytes; they lie under data_dir/tmp.",
    )
    bundle_url_s: float = Field(
        3600.0,
        ge=10,
        description="How long the URL of a bundle (git's bundle-uri) may be used, in seconds.",
    )
    worker_memory_bytes_max: int = Field(
        2 * GIB,
        ge=128 * MIB,
        description="Private memory of one worker process in bytes (RLIMIT_DATA). "
        "A push that needs more is refused.",
    )
    worker_timeout_s: float = Field(
        1800.0, gt=0, description="Longest time that one job may keep a worker, in seconds."
    )
    worker_cache_bytes_max: int = Field(
        96 * MIB,
        ge=1 * MIB,
        description="Inflated objects that one worker keeps for later deltas, in bytes "
        "(git's core.deltaBaseCacheLimit).",
    )
    open_packs_max: int = Field(
        512, ge=8, description="Packs that one process keeps open while nobody reads them."
    )


def exceeded(limits: StorageLimits, key: str, what: str) -> LimitExceeded:
    """The error for the limit `key`: `what` says what was too large, factual and lowercase."""
    return LimitExceeded(
        f"{what}; limits.{key} is {getattr(limits, key)}",
        limit=f"limits.{key}",
        next_step=f"ask the operator to raise limits.{key}",
    )
