"""What calls of the client return: frozen, without protobuf. Names, paths and messages are bytes:
git does not promise UTF-8. Object ids are lowercase hex. `content_types.py` has what is in a
repository: commits, trees, blobs, diffs."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from datetime import datetime
from typing import TYPE_CHECKING

from quorepo.rpc.client.content_types import (
    BatchBlob,
    BlameHunk,
    Blob,
    BlobInfo,
    Commit,
    CommitStats,
    DiffOptions,
    DiffStats,
    DivergingCounts,
    FileChange,
    FilePatch,
    FoundObject,
    LfsPointer,
    SearchMatch,
    SearchResult,
    Signature,
    TreeEntry,
)

if TYPE_CHECKING:  # it would import gRPC
    from quorepo.rpc.client.errors import ApiError

__all__ = [
    "BatchBlob",
    "BlameHunk",
    "Blob",
    "BlobInfo",
    "BranchResult",
    "Commit",
    "CommitResult",
    "CommitStats",
    "DefaultBranch",
    "DeletedRepository",
    "Deletion",
    "DiffOptions",
    "DiffStats",
    "DivergingCounts",
    "Event",
    "FileAction",
    "FileChange",
    "FilePatch",
    "ForkedRepository",
    "FoundObject",
    "FsckProblem",
    "FsckReport",
    "LfsPointer",
    "LongRunningOperation",
    "MergeCheck",
    "MergeResult",
    "PackChange",
    "Ref",
    "RefChange",
    "RefTransaction",
    "RefTransactionOutcome",
    "RefUpdate",
    "RefUpdateResult",
    "RenamedRepository",
    "Repository",
    "RepositoryChecksum",
    "RepositorySize",
    "Revision",
    "SearchMatch",
    "SearchResult",
    "Signature",
    "TagResult",
    "TreeEntry",
]


@dataclasses.dataclass(frozen=True, slots=True, order=True)
class Revision:
    """A repository's version."""

    incarnation: int
    counter: int

    def __str__(self) -> str:
        return f"{self.incarnation}.{self.counter}"


@dataclasses.dataclass(frozen=True, slots=True)
class Repository:
    """A repository at one revision; `head` is empty when `detached_head_oid` is not."""

    path: str
    repository_id: str
    revision: Revision
    object_format: str  # "sha1" or "sha256"
    head: bytes
    create_time: datetime
    ref_count: int
    pack_count: int
    checksum: str
    description: str
    read_only: bool
    detached_head_oid: str
    forked_from_id: str


@dataclasses.dataclass(frozen=True, slots=True)
class PackChange:
    """What became of the packs; `packs_removed` is 0 when there was nothing to do."""

    revision: Revision
    packs_before: int
    packs_after: int
    packs_removed: int
    bytes_removed: int
    bytes_added: int
    objects: int
    objects_dropped: int


@dataclasses.dataclass(frozen=True, slots=True)
class RenamedRepository:
    """Where a repository is now; `revision` is as before."""

    repository_id: str
    path: str
    revision: Revision


@dataclasses.dataclass(frozen=True, slots=True)
class ForkedRepository:
    """A fork, and the revision of the other repository that it shows."""

    repository_id: str
    path: str
    revision: Revision
    source_revision: Revision


@dataclasses.dataclass(frozen=True, slots=True)
class Deletion:
    """`repository_id` is what `repositories.undelete` needs, until `purge_time`."""

    repository_id: str
    purge_time: datetime
    revision: Revision


@dataclasses.dataclass(frozen=True, slots=True)
class DeletedRepository:
    """A repository that `repositories.undelete` can bring back until `purge_time`."""

    repository_id: str
    path: str
    delete_time: datetime
    purge_time: datetime
    revision: Revision


@dataclasses.dataclass(frozen=True, slots=True)
class RepositorySize:
    """`pack_bytes` without indexes; an object that is in two packs counts twice."""

    pack_bytes: int
    objects: int
    pack_count: int
    ref_count: int
    revision: Revision


@dataclasses.dataclass(frozen=True, slots=True)
class RepositoryChecksum:
    """A digest of all refs, equal on all replicas at one revision."""

    checksum: str
    revision: Revision


@dataclasses.dataclass(frozen=True, slots=True)
class FsckProblem:
    """`message_id` is git's, or "missingObject", "damagedPack" and the like."""

    message_id: str
    oid: str
    ref_name: bytes
    text: str


@dataclasses.dataclass(frozen=True, slots=True)
class FsckReport:
    """No problems: all is well. `truncated`: there are more than api.fsck_problems_max."""

    problems: tuple[FsckProblem, ...]
    objects: int
    packs: int
    truncated: bool
    revision: Revision


@dataclasses.dataclass(frozen=True, slots=True)
class Ref:
    """A ref; `peeled_oid` is what an annotated tag leads to, else empty."""

    name: bytes
    oid: str
    peeled_oid: str = ""
    symbolic_target: bytes = b""


@dataclasses.dataclass(frozen=True, slots=True)
class DefaultBranch:
    """`name` is empty when HEAD is detached, `oid` when the branch does not exist yet."""

    name: bytes
    oid: str


@dataclasses.dataclass(frozen=True, slots=True)
class RefUpdate:
    """One change of `refs.update`.

    Attributes:
        new_oid: empty: delete.
        expected_oid: empty: it must not exist; None: whatever it is now.
    """

    name: str | bytes
    new_oid: str
    expected_oid: str | None


@dataclasses.dataclass(frozen=True, slots=True)
class RefUpdateResult:
    """`status` is "ok", "stale" (see `actual_oid`) or "name_conflict"."""

    name: bytes
    status: str
    actual_oid: str
    conflicting_name: bytes


@dataclasses.dataclass(frozen=True, slots=True)
class RefTransaction:
    """One transaction of `refs.update_many`; its fields are the arguments of `refs.update`."""

    repository: str
    updates: Sequence[RefUpdate]
    allow_partial: bool = False
    request_id: str | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class RefTransactionOutcome:
    """What became of one transaction of `refs.update_many`.

    Attributes:
        error: what `refs.update` would have raised; None: it was applied, and the rest is set.
    """

    request_id: str
    error: ApiError | None = None
    revision: Revision | None = None
    results: tuple[RefUpdateResult, ...] = ()


@dataclasses.dataclass(frozen=True, slots=True)
class FileAction:
    """One action of `operations.commit_files`.

    Attributes:
        kind: "create", "update", "write", "delete", "move" or "chmod".
        content: None: none (a move keeps what is there).
        mode: 0: 0o100644 for a new file, else as it is.
        expected_oid: of the blob at the path before; empty: any.
    """

    kind: str
    path: str | bytes
    content: bytes | None = None
    mode: int = 0
    previous_path: str | bytes = b""
    expected_oid: str = ""


@dataclasses.dataclass(frozen=True, slots=True)
class CommitResult:
    """Of operations that make a commit; `branch_created` of `commit_files` only."""

    commit_oid: str
    tree_oid: str
    revision: Revision
    branch_created: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class BranchResult:
    """`oid` is what the branch or tag has, or had."""

    oid: str
    revision: Revision


@dataclasses.dataclass(frozen=True, slots=True)
class TagResult:
    """`oid` is that of the tag object, or of the target of a lightweight tag."""

    oid: str
    target_oid: str
    revision: Revision


@dataclasses.dataclass(frozen=True, slots=True)
class MergeResult:
    """`outcome` is "up_to_date", "fast_forward" or "commit"; `commit_oid` where the branch is."""

    outcome: str
    commit_oid: str
    revision: Revision


@dataclasses.dataclass(frozen=True, slots=True)
class MergeCheck:
    """What a merge would meet."""

    clean: bool
    up_to_date: bool
    fast_forward: bool
    tree_oid: str
    conflict_paths: tuple[bytes, ...]
    conflict_count: int


@dataclasses.dataclass(frozen=True, slots=True)
class LongRunningOperation:
    """An import in the background. `state`: "running", "done", "failed" or "cancelled"; nothing was
    made by one that failed, unless `error_reason` is "OUTCOME_UNKNOWN": then repeat it with
    `request_id`. Times are None when they are not known."""

    name: str
    request_id: str
    path: str
    state: str
    phase: str
    bytes_done: int
    objects: int
    error_reason: str
    error_message: str
    revision: Revision | None
    start_time: datetime | None
    end_time: datetime | None


@dataclasses.dataclass(frozen=True, slots=True)
class RefChange:
    """An empty old oid: created; an empty new one: deleted."""

    name: bytes
    old_oid: str
    new_oid: str


@dataclasses.dataclass(frozen=True, slots=True)
class Event:
    """A committed change; keep `cursor` once it is handled. `kind`: "refs_changed",
    "repository_created" and so on, as Event.Kind of event.proto."""

    cursor: bytes
    kind: str
    time: datetime
    actor: str
    request_id: str
    repository_id: str
    path: str
    revision: Revision
    ref_changes: tuple[RefChange, ...]
    continued: bool
