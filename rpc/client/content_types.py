"""What calls of the client return of commits, trees, blobs and diffs; see `types.py`."""

from __future__ import annotations

import dataclasses
from datetime import datetime

__all__ = [
    "BatchBlob",
    "BlameHunk",
    "Blob",
    "BlobInfo",
    "Commit",
    "CommitStats",
    "DiffOptions",
    "DiffStats",
    "DivergingCounts",
    "FileChange",
    "FilePatch",
    "FoundObject",
    "LfsPointer",
    "SearchMatch",
    "SearchResult",
    "Signature",
    "TreeEntry",
]


@dataclasses.dataclass(frozen=True, slots=True)
class Signature:
    """Who and when; without a time: now, by the clock of the node."""

    name: str | bytes
    email: str | bytes
    time: datetime | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Commit:
    """A commit; times have the offset that was recorded."""

    oid: str
    tree_oid: str
    parent_oids: tuple[str, ...]
    author: Signature
    committer: Signature
    message: bytes
    encoding: str
    pgp_signature: bytes


@dataclasses.dataclass(frozen=True, slots=True)
class CommitStats:
    """What a commit changed against its first parent; lower bounds when `truncated`."""

    oid: str
    files: int
    additions: int
    deletions: int
    truncated: bool


@dataclasses.dataclass(frozen=True, slots=True)
class DivergingCounts:
    """Commits that only the left history has, and only the right one."""

    left: int
    right: int


@dataclasses.dataclass(frozen=True, slots=True)
class FoundObject:
    """What a revision names; `oid` and `type` are empty when it names nothing."""

    name: bytes
    oid: str
    type: str


@dataclasses.dataclass(frozen=True, slots=True)
class BlameHunk:
    """Lines of a file, counted from 1, and the commit that they come from.

    Attributes:
        original_first_line: and `original_path`: in that commit.
        boundary: it is a root commit.
    """

    commit: Commit
    first_line: int
    line_count: int
    original_first_line: int
    original_path: bytes
    boundary: bool


@dataclasses.dataclass(frozen=True, slots=True)
class SearchMatch:
    """A line with a match: at most 1024 bytes of it; `column` in bytes, from 1."""

    path: bytes
    line_number: int
    column: int
    line: bytes
    blob_oid: str


@dataclasses.dataclass(frozen=True, slots=True)
class SearchResult:
    """`truncated_by` names the limit that ended the search early; empty: it is complete."""

    matches: tuple[SearchMatch, ...]
    commit_oid: str
    truncated_by: str


@dataclasses.dataclass(frozen=True, slots=True)
class TreeEntry:
    """`type` is "blob", "tree" or "commit" (a submodule)."""

    name: bytes
    path: bytes
    mode: int
    type: str
    oid: str
    last_commit: Commit | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class Blob:
    """A blob with its content."""

    oid: str
    size: int
    data: bytes


@dataclasses.dataclass(frozen=True, slots=True)
class LfsPointer:
    """What a Git LFS pointer file says of the large file."""

    oid_sha256: str
    size: int


@dataclasses.dataclass(frozen=True, slots=True)
class BlobInfo:
    """A blob of a commit, without its content; `lfs_pointer` when it is one."""

    path: bytes
    oid: str
    mode: int
    size: int
    lfs_pointer: LfsPointer | None = None


@dataclasses.dataclass(frozen=True, slots=True)
class BatchBlob:
    """An answer of `blobs.batch`, in the order of what was asked for.

    Attributes:
        asked: the object id (text) or path (bytes) that was asked for.
        oid: empty: `missing`.
        data: None when it is missing, or larger than `blob_bytes_max`.
    """

    asked: str | bytes
    oid: str
    size: int
    data: bytes | None

    @property
    def missing(self) -> bool:
        """There is no such object or path, or it is no blob."""
        return not self.oid


@dataclasses.dataclass(frozen=True, slots=True)
class DiffOptions:
    """How changes are found and shown.

    Attributes:
        renames: look for them.
        rename_similarity: percent, 1 to 100; 0: 50, as git.
        context_lines: None: 3; at most 100.
        find_copies: from files that changed, as `git diff -C`.
    """

    renames: bool = True
    rename_similarity: int = 0
    context_lines: int | None = None
    find_copies: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class FileChange:
    """`status`: "added", "modified", "deleted", "renamed", "copied" or "type_changed".

    `left_out`: it is above api.diff_file_bytes_max, so its lines were not compared or counted.
    """

    status: str
    old_path: bytes
    new_path: bytes
    old_mode: int
    new_mode: int
    old_oid: str
    new_oid: str
    similarity: int
    additions: int
    deletions: int
    binary: bool
    left_out: bool = False


@dataclasses.dataclass(frozen=True, slots=True)
class FilePatch:
    """A change with its patch; empty when it was above the limit for a file."""

    change: FileChange
    patch: bytes
    patch_left_out: bool


@dataclasses.dataclass(frozen=True, slots=True)
class DiffStats:
    """With `truncated_by`, the name of a limit, the figures are lower bounds."""

    base_oid: str
    head_oid: str
    files: int
    additions: int
    deletions: int
    truncated_by: str
