"""The section [storage] of a node's configuration: upkeep of its disk. See config.py."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict, Field

__all__ = ["StorageSection"]


class StorageSection(BaseModel):
    """Upkeep of what is stored. The node that leads a group consolidates its repositories."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    reserve_bytes: int = Field(
        256 * 1024**2,
        ge=0,
        description="With less free below node.data_dir, this node takes no pushes and hands over "
        "what it leads; with less than half of it, it takes over nothing from others. Reads go on, "
        "and so does everything once there is room again. 0: no reserve.",
    )
    sweep: bool = Field(
        True,
        description="Are packs and deleted repositories removed from disk once nothing refers to "
        "them and their retention is over? Off: only abandoned uploads are removed.",
    )
    retired_retention_s: float = Field(
        14 * 86_400.0,
        ge=0,
        description="How long deleted repositories and replaced packs are kept on disk, seconds.",
    )
    undelete_retention_s: float = Field(
        14 * 86_400.0,
        ge=0,
        le=100 * 366 * 86_400.0,
        description="How long a deleted repository can be taken back with UndeleteRepository, "
        "seconds, as the node that is asked to delete it has it configured; 0: not at all.",
    )
    quarantine_retention_s: float = Field(
        3600.0,
        gt=0,
        description="How long packs are kept that no transaction refers to, seconds.",
    )
    sweep_interval_s: float = Field(
        600.0, gt=0, description="Seconds between two looks for files that may go."
    )
    scrub_interval_s: float = Field(
        7 * 86_400.0,
        ge=0,
        description="Seconds from one pass over all stored packs, which re-reads them against "
        "their SHA-256, to the next; 0: only when `quorepo cluster verify` asks for one.",
    )
    scrub_bytes_per_s: int = Field(
        16 * 1024**2,
        ge=0,
        description="How fast such a pass reads and fetches, bytes per second; 0: no limit.",
    )
    consolidate: bool = Field(
        True, description="Are the packs of pushes merged automatically while this node leads?"
    )
    consolidation_interval_s: float = Field(
        30.0, gt=0, description="Seconds between two looks for repositories to consolidate."
    )
    packs_max: int = Field(
        50, ge=2, description="A repository with more packs than this is consolidated."
    )
    repeated_fraction_max: float = Field(
        0.5,
        gt=0,
        le=1,
        description="So is one whose packs repeat each other's objects in more than this part "
        "of their bytes (pushes are stored with the objects that their deltas need).",
    )
    consolidation_bytes_max: int = Field(
        4 * 1024**3,
        ge=1,
        description="Most bytes of packs that one automatic consolidation merges; larger packs "
        "stay as they are.",
    )
    prune_grace_s: float = Field(
        14 * 86_400.0,
        ge=0,
        description="`quorepo repo prune` keeps objects that came, or that a ref led to, in this "
        "time.",
    )
