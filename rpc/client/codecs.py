"""Between the messages of quorepo.v1 and the types of the client. Must not know how calls are
made."""

from __future__ import annotations

import uuid
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime, timedelta, timezone
from typing import Any, TypeVar

from google.protobuf.timestamp_pb2 import Timestamp
from google.rpc import status_pb2

from quorepo.rpc.client import types
from quorepo.rpc.client.errors import InvalidArgument, LimitExceeded
from quorepo.rpc.request_ids import new_request_uuid
from quorepo.v1 import (
    blob_pb2,
    commit_pb2,
    common_pb2,
    diff_pb2,
    event_pb2,
    import_pb2,
    operation_pb2,
    ref_pb2,
    repository_pb2,
)

__all__ = [
    "batch_blob",
    "batch_item",
    "blame_hunk",
    "blob_info",
    "blob_oid",
    "choice",
    "commit",
    "commit_stats",
    "deleted_repository",
    "diff_options",
    "diff_range",
    "event",
    "expectation",
    "file_change",
    "file_patch",
    "found_object",
    "fsck_report",
    "limit_met",
    "long_running_operation",
    "merge_check",
    "pack_change",
    "ref",
    "ref_update",
    "ref_update_result",
    "repository",
    "repository_size",
    "request_uuid",
    "revision",
    "search_result",
    "signature_message",
    "timestamp",
    "to_bytes",
    "tree_entry",
]

_Value = TypeVar("_Value")


def to_bytes(value: str | bytes) -> bytes:
    """Names and paths may be given as text."""
    return value.encode() if isinstance(value, str) else bytes(value)


def choice(what: str, values: Mapping[str, _Value], asked: str) -> _Value:
    """The value that a word stands for.

    Raises:
        InvalidArgument: it stands for none; nothing was tried.
    """
    if asked not in values:
        known = ", ".join(repr(word) for word in values if word)
        raise InvalidArgument(
            f"{what} {asked!r} is none of {known}; nothing was tried",
            reason="INVALID_ARGUMENT",
            code="INVALID_ARGUMENT",
        )
    return values[asked]


def request_uuid(given: str | uuid.UUID | None) -> str:
    """The id of a call that changes something; the same in all its attempts."""
    return str(given or new_request_uuid())


def revision(message: common_pb2.Revision) -> types.Revision:
    return types.Revision(message.incarnation, message.counter)


def repository(message: repository_pb2.Repository) -> types.Repository:
    return types.Repository(
        path=message.path,
        repository_id=message.repository_id,
        revision=revision(message.revision),
        object_format=_word(common_pb2.ObjectFormat, message.object_format, "OBJECT_FORMAT_"),
        head=message.head,
        create_time=message.create_time.ToDatetime(UTC),
        ref_count=message.ref_count,
        pack_count=message.pack_count,
        checksum=message.checksum,
        description=message.description,
        read_only=message.read_only,
        detached_head_oid=message.detached_head_oid,
        forked_from_id=message.forked_from_id,
    )


def deleted_repository(message: repository_pb2.DeletedRepository) -> types.DeletedRepository:
    return types.DeletedRepository(
        repository_id=message.repository_id,
        path=message.path,
        delete_time=message.delete_time.ToDatetime(UTC),
        purge_time=message.purge_time.ToDatetime(UTC),
        revision=revision(message.revision),
    )


def repository_size(message: repository_pb2.GetRepositorySizeResponse) -> types.RepositorySize:
    return types.RepositorySize(
        pack_bytes=message.pack_bytes,
        objects=message.objects,
        pack_count=message.pack_count,
        ref_count=message.ref_count,
        revision=revision(message.revision),
    )


def fsck_report(message: repository_pb2.FsckRepositoryResponse) -> types.FsckReport:
    return types.FsckReport(
        problems=tuple(
            types.FsckProblem(found.message_id, found.oid, found.ref_name, found.text)
            for found in message.problems
        ),
        objects=message.objects,
        packs=message.packs,
        truncated=message.truncated,
        revision=revision(message.revision),
    )


def pack_change(at: common_pb2.Revision, message: repository_pb2.PackChange) -> types.PackChange:
    return types.PackChange(
        revision=revision(at),
        packs_before=message.packs_before,
        packs_after=message.packs_after,
        packs_removed=message.packs_removed,
        bytes_removed=message.bytes_removed,
        bytes_added=message.bytes_added,
        objects=message.objects,
        objects_dropped=message.objects_dropped,
    )


def ref(message: ref_pb2.Ref) -> types.Ref:
    return types.Ref(message.name, message.oid, message.peeled_oid, message.symbolic_target)


def ref_update(update: types.RefUpdate) -> ref_pb2.RefUpdate:
    message = ref_pb2.RefUpdate(name=to_bytes(update.name), new_oid=update.new_oid)
    if update.expected_oid is None:
        message.any_old = True
    else:
        message.expected_old_oid = update.expected_oid
    return message


def ref_update_result(message: ref_pb2.RefUpdateResult) -> types.RefUpdateResult:
    return types.RefUpdateResult(
        name=message.name,
        status=_word(ref_pb2.RefUpdateStatus, message.status, "REF_UPDATE_STATUS_"),
        actual_oid=message.actual_old_oid,
        conflicting_name=message.conflicting_name,
    )


def status(error: ref_pb2.BatchError) -> status_pb2.Status:
    """The error of one item of a batch as the status that a call of its own would have had."""
    return status_pb2.Status(code=error.code, message=error.message, details=error.details)


def signature_message(signature: types.Signature | None) -> commit_pb2.Signature | None:
    if signature is None:
        return None
    message = commit_pb2.Signature(name=to_bytes(signature.name), email=to_bytes(signature.email))
    if signature.time is not None:
        message.time.FromDatetime(signature.time)
        message.time.nanos = 0
        offset = signature.time.utcoffset() or timedelta()
        message.utc_offset_minutes = int(offset.total_seconds() // 60)
    return message


def commit(message: commit_pb2.Commit) -> types.Commit:
    return types.Commit(
        oid=message.oid,
        tree_oid=message.tree_oid,
        parent_oids=tuple(message.parent_oids),
        author=_signature(message.author),
        committer=_signature(message.committer),
        message=message.message,
        encoding=message.encoding,
        pgp_signature=message.pgp_signature,
    )


def _signature(message: commit_pb2.Signature) -> types.Signature:
    zone = timezone(timedelta(minutes=message.utc_offset_minutes))
    return types.Signature(message.name, message.email, message.time.ToDatetime(zone))


def commit_stats(message: commit_pb2.GetCommitStatsResponse) -> types.CommitStats:
    return types.CommitStats(
        oid=message.oid,
        files=message.files,
        additions=message.additions,
        deletions=message.deletions,
        truncated=message.truncated,
    )


def found_object(message: commit_pb2.CheckObjectsExistResponse.Object) -> types.FoundObject:
    kind = _word(common_pb2.ObjectType, message.type, "OBJECT_TYPE_") if message.oid else ""
    return types.FoundObject(message.name, message.oid, kind)


def blame_hunk(message: commit_pb2.BlameResponse.Hunk, of: types.Commit) -> types.BlameHunk:
    return types.BlameHunk(
        commit=of,
        first_line=message.first_line,
        line_count=message.line_count,
        original_first_line=message.original_first_line,
        original_path=message.original_path,
        boundary=message.boundary,
    )


def search_result(message: commit_pb2.SearchContentResponse) -> types.SearchResult:
    return types.SearchResult(
        matches=tuple(
            types.SearchMatch(
                path=match.path,
                line_number=match.line_number,
                column=match.column,
                line=match.line,
                blob_oid=match.blob_oid,
            )
            for match in message.matches
        ),
        commit_oid=message.commit_oid,
        truncated_by=message.truncated_by,
    )


def blob_info(message: blob_pb2.BlobInfo) -> types.BlobInfo:
    pointer = None
    if message.HasField("lfs_pointer"):
        pointer = types.LfsPointer(message.lfs_pointer.oid_sha256, message.lfs_pointer.size)
    return types.BlobInfo(message.path, message.oid, message.mode, message.size, pointer)


def batch_item(wanted: str | bytes) -> blob_pb2.BatchGetBlobsRequest.Item:
    """An object id is text, a path bytes."""
    if isinstance(wanted, str):
        return blob_pb2.BatchGetBlobsRequest.Item(oid=wanted)
    return blob_pb2.BatchGetBlobsRequest.Item(path=wanted)


def batch_blob(
    wanted: Sequence[str | bytes],
    message: blob_pb2.BatchGetBlobsResponse.Blob,
    data: bytes | None,
) -> types.BatchBlob:
    return types.BatchBlob(wanted[message.index], message.oid, message.size, data)


def tree_entry(message: commit_pb2.TreeEntry) -> types.TreeEntry:
    return types.TreeEntry(
        name=message.name,
        path=message.path,
        mode=message.mode,
        type=_word(common_pb2.ObjectType, message.type, "OBJECT_TYPE_"),
        oid=message.oid,
        last_commit=commit(message.last_commit) if message.HasField("last_commit") else None,
    )


def diff_range(base: str | bytes, head: str | bytes, from_merge_base: bool) -> diff_pb2.DiffRange:
    return diff_pb2.DiffRange(
        base=to_bytes(base), head=to_bytes(head), from_merge_base=from_merge_base
    )


def diff_options(
    options: types.DiffOptions | None, paths: Sequence[str | bytes]
) -> diff_pb2.DiffOptions:
    wanted = options or types.DiffOptions()
    return diff_pb2.DiffOptions(
        paths=[to_bytes(path) for path in paths],
        no_renames=not wanted.renames,
        rename_similarity=wanted.rename_similarity,
        context_lines=wanted.context_lines,
        find_copies=wanted.find_copies,
    )


def limit_met(what: str, limit: str) -> LimitExceeded:
    """The error of an answer that says that it was cut at a limit."""
    return LimitExceeded(
        f"{what} was cut at the limit {limit}",
        reason="LIMIT_EXCEEDED",
        code="RESOURCE_EXHAUSTED",
        metadata={"limit": limit},
    ).named(limit)


def file_change(message: diff_pb2.FileChange) -> types.FileChange:
    return types.FileChange(
        status=_word(diff_pb2.ChangeStatus, message.status, "CHANGE_STATUS_"),
        old_path=message.old_path,
        new_path=message.new_path,
        old_mode=message.old_mode,
        new_mode=message.new_mode,
        old_oid=message.old_oid,
        new_oid=message.new_oid,
        similarity=message.similarity,
        additions=message.additions,
        deletions=message.deletions,
        binary=message.binary,
        left_out=message.patch_left_out,
    )


def file_patch(message: diff_pb2.FileChange, patch: bytes) -> types.FilePatch:
    return types.FilePatch(file_change(message), patch, message.patch_left_out)


def expectation(oid: str | None) -> operation_pb2.BranchExpectation | None:
    """How a branch is expected to be: None as it is, empty not there."""
    return None if oid is None else operation_pb2.BranchExpectation(oid=oid)


def merge_check(message: operation_pb2.MergeCheckResponse) -> types.MergeCheck:
    return types.MergeCheck(
        clean=message.clean,
        up_to_date=message.up_to_date,
        fast_forward=message.fast_forward,
        tree_oid=message.tree_oid,
        conflict_paths=tuple(conflict.path for conflict in message.conflicts),
        conflict_count=message.conflict_count,
    )


def event(cursor: bytes, message: event_pb2.Event) -> types.Event:
    return types.Event(
        cursor=cursor,
        kind=_word(event_pb2.Event.Kind, message.kind, "KIND_"),
        time=message.time.ToDatetime(UTC),
        actor=message.actor,
        request_id=message.request_id,
        repository_id=message.repository_id,
        path=message.path,
        revision=revision(message.revision),
        ref_changes=tuple(
            types.RefChange(change.name, change.old_oid, change.new_oid)
            for change in message.ref_changes
        ),
        continued=message.continued,
    )


def long_running_operation(message: import_pb2.LongRunningOperation) -> types.LongRunningOperation:
    return types.LongRunningOperation(
        name=message.name,
        request_id=message.request_id,
        path=message.path,
        state=_word(import_pb2.LongRunningOperation.State, message.state, "STATE_"),
        phase=message.phase,
        bytes_done=message.bytes_done,
        objects=message.objects,
        error_reason=message.error_reason,
        error_message=message.error_message,
        revision=revision(message.revision) if message.HasField("revision") else None,
        start_time=message.start_time.ToDatetime(UTC) if message.HasField("start_time") else None,
        end_time=message.end_time.ToDatetime(UTC) if message.HasField("end_time") else None,
    )


def timestamp(value: datetime | None) -> Timestamp | None:
    """A time as a field of a message; one without a zone is in UTC."""
    if value is None:
        return None
    message = Timestamp()
    message.FromDatetime(value)
    return message


def _word(enum: Any, number: int, prefix: str) -> str:
    """The name of a value without its prefix; a number that a newer node made, as it is."""
    try:
        name: str = enum.Name(number)
    except ValueError:
        return str(number)
    return name.removeprefix(prefix).lower()


def blob_oid(entry: types.TreeEntry) -> str:
    """The id of a file's content.

    Raises:
        InvalidArgument: it is a folder or a submodule.
    """
    if entry.type != "blob":
        raise InvalidArgument(
            f"{entry.path.decode('utf-8', 'backslashreplace')!r} is no file but a {entry.type}",
            reason="INVALID_ARGUMENT",
            code="INVALID_ARGUMENT",
        )
    return entry.oid
