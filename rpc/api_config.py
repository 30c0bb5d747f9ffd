"""The `[api]` section: limits of the public gRPC API.

Owns names, defaults and bounds. Exceeding one is RESOURCE_EXHAUSTED and names the key, or, where
the answer can be cut, a cut answer that names it.
"""

from __future__ import annotations

from pydantic import Field

from quorepo.rpc.config_types import Section

__all__ = ["ApiSection"]

KIB = 1024
MIB = 1024 * KIB
GIB = 1024 * MIB


class ApiSection(Section):
    """Limits of what one call of the gRPC API reads or writes. Sizes in bytes, times in seconds."""

    page_size_max: int = Field(
        1000, ge=1, le=10_000, description="Most rows in one page; a larger page_size is cut to it."
    )
    revisions_max: int = Field(
        64, ge=2, description="Most revisions, exclusions or paths in one request."
    )
    batch_objects_max: int = Field(
        10_000, ge=1, description="Most objects that one batch call may ask for."
    )
    batch_bytes_max: int = Field(
        1 * GIB, ge=1 * MIB, description="Most bytes of content that one BatchGetBlobs sends."
    )
    unary_bytes_max: int = Field(
        3 * MIB,
        ge=1,
        le=3 * MIB,
        description="Largest blob that GetBlob answers in one message; ReadBlob streams the rest.",
    )
    diff_files_max: int = Field(
        3000, ge=1, description="Most changed files of one diff; the rest is left out and marked."
    )
    diff_bytes_max: int = Field(
        64 * MIB, ge=1, description="Most bytes of all patches of one diff; then it is cut."
    )
    diff_file_bytes_max: int = Field(
        1 * MIB,
        ge=1,
        description="Largest file, and largest patch of one file, that a diff compares line by "
        "line; the file is marked otherwise.",
    )
    blame_lines_max: int = Field(100_000, ge=1, description="Most lines that one Blame explains.")
    blame_file_bytes_max: int = Field(
        4 * MIB, ge=1, description="Largest file that Blame reads, in bytes."
    )
    search_bytes_max: int = Field(
        512 * MIB, ge=1, description="Most bytes of files that one SearchContent looks at."
    )
    search_matches_max: int = Field(
        1000, ge=1, le=2000, description="Most matches that one SearchContent may ask for."
    )
    archive_bytes_max: int = Field(
        2 * GIB, ge=1, description="Most bytes of the files in one archive, before compression."
    )
    commit_files_max: int = Field(10_000, ge=1, description="Most actions in one CommitFiles.")
    commit_bytes_max: int = Field(
        256 * MIB, ge=1, description="Most bytes of content in one CommitFiles."
    )
    rebase_commits_max: int = Field(1000, ge=1, description="Most commits that one Rebase replays.")
    watchers_max: int = Field(
        64, ge=1, le=500, description="Most calls of Watch that one node serves at a time."
    )
    watch_heartbeat_s: float = Field(
        10.0, gt=0, description="Seconds without an event after which Watch tells its progress."
    )
    bundle_bytes_max: int = Field(4 * GIB, ge=1, description="Largest pack in one bundle.")
    fsck_problems_max: int = Field(
        1000, ge=1, le=10_000, description="Most problems that one FsckRepository lists."
    )
    read_timeout_s: float = Field(
        120.0, gt=0, description="Longest time that one read may keep a worker, in seconds."
    )
    fsck_timeout_s: float = Field(
        1800.0, gt=0, description="Longest time that FsckRepository may keep a worker, in seconds."
    )
    channelz: bool = Field(
        False,
        description="Serve grpc.channelz.v1, which tells of connections, to authenticated callers?",
    )
