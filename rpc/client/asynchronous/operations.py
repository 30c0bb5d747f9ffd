"""`client.operations`: commits, branches and tags made by the server, each call one transaction."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

from quorepo.rpc.client import codecs
from quorepo.rpc.client.asynchronous.transport import Transport
from quorepo.rpc.client.session import Session
from quorepo.rpc.client.types import (
    BranchResult,
    CommitResult,
    FileAction,
    MergeCheck,
    MergeResult,
    Signature,
    TagResult,
)
from quorepo.v1 import operation_pb2 as pb

__all__ = ["Operations"]

_CHUNK_BYTES = 256 * 1024
_MODES = {
    "": pb.MergeRequest.MODE_UNSPECIFIED,
    "fast-forward-only": pb.MergeRequest.MODE_FAST_FORWARD_ONLY,
    "merge-commit": pb.MergeRequest.MODE_MERGE_COMMIT,
    "squash": pb.MergeRequest.MODE_SQUASH,
}


class Operations:
    """Calls of OperationService. All raise `quorepo.errors.ApiError`.

    `expected_oid`: what the branch has to be; None: as it is, empty: it must not exist.
    """

    def __init__(self, transport: Transport, session: Session) -> None:
        self._transport = transport
        self._session = session

    async def commit_files(
        self,
        repository: str,
        branch: str | bytes,
        actions: Sequence[FileAction],
        *,
        message: str | bytes,
        author: Signature,
        committer: Signature | None = None,
        expected_oid: str | None = None,
        start: str | bytes = b"",
        allow_empty: bool = False,
        timeout_s: float | None = None,
        request_id: str | None = None,
    ) -> CommitResult:
        """Commits files to a branch, which is made when it does not exist (from `start`).

        Raises:
            ReferenceMismatch: the branch is not at `expected_oid`.
        """
        header = pb.CommitFilesRequest.Header(
            request_id=codecs.request_uuid(request_id),
            repository=repository,
            branch=codecs.to_bytes(branch),
            expected=codecs.expectation(expected_oid),
            start=codecs.to_bytes(start),
            message=codecs.to_bytes(message),
            author=codecs.signature_message(author),
            committer=codecs.signature_message(committer),
            allow_empty=allow_empty,
        )
        answer = await self._transport.upload(
            pb.CommitFilesResponse,
            "OperationService/CommitFiles",
            header,
            lambda: _messages(header, actions),
            timeout_s=timeout_s,
        )
        self._session.saw(repository, answer.revision)
        return CommitResult(
            answer.commit_oid,
            answer.tree_oid,
            codecs.revision(answer.revision),
            answer.branch_created,
        )

    async def create_branch(
        self,
        repository: str,
        branch: str | bytes,
        start: str | bytes,
        *,
        request_id: str | None = None,
    ) -> BranchResult:
        """Makes a branch.

        Raises:
            ReferenceMismatch: there is one.
        """
        request = pb.CreateBranchRequest(
            request_id=codecs.request_uuid(request_id),
            repository=repository,
            branch=codecs.to_bytes(branch),
            start=codecs.to_bytes(start),
        )
        answer = await self._transport.unary(
            pb.CreateBranchResponse, "OperationService/CreateBranch", request
        )
        self._session.saw(repository, answer.revision)
        return BranchResult(answer.oid, codecs.revision(answer.revision))

    async def delete_branch(
        self,
        repository: str,
        branch: str | bytes,
        *,
        expected_oid: str | None = None,
        request_id: str | None = None,
    ) -> BranchResult:
        """Deletes a branch; the one that HEAD points to is refused.

        Raises:
            NotFound, ReferenceMismatch
        """
        request = pb.DeleteBranchRequest(
            request_id=codecs.request_uuid(request_id),
            repository=repository,
            branch=codecs.to_bytes(branch),
            expected=codecs.expectation(expected_oid),
        )
        answer = await self._transport.unary(
            pb.DeleteBranchResponse, "OperationService/DeleteBranch", request
        )
        self._session.saw(repository, answer.revision)
        return BranchResult(answer.oid, codecs.revision(answer.revision))

    async def create_tag(
        self,
        repository: str,
        tag: str | bytes,
        target: str | bytes,
        *,
        message: str | bytes = b"",
        tagger: Signature | None = None,
        request_id: str | None = None,
    ) -> TagResult:
        """Makes a tag, with a message an annotated one, which needs a tagger.

        Raises:
            ReferenceMismatch: there is one.
        """
        request = pb.CreateTagRequest(
            request_id=codecs.request_uuid(request_id),
            repository=repository,
            tag=codecs.to_bytes(tag),
            target=codecs.to_bytes(target),
            message=codecs.to_bytes(message),
            tagger=codecs.signature_message(tagger),
        )
        answer = await self._transport.unary(
            pb.CreateTagResponse, "OperationService/CreateTag", request
        )
        self._session.saw(repository, answer.revision)
        return TagResult(answer.oid, answer.target_oid, codecs.revision(answer.revision))

    async def delete_tag(
        self,
        repository: str,
        tag: str | bytes,
        *,
        expected_oid: str | None = None,
        request_id: str | None = None,
    ) -> BranchResult:
        """Deletes a tag.

        Raises:
            NotFound, ReferenceMismatch
        """
        request = pb.DeleteTagRequest(
            request_id=codecs.request_uuid(request_id),
            repository=repository,
            tag=codecs.to_bytes(tag),
            expected=codecs.expectation(expected_oid),
        )
        answer = await self._transport.unary(
            pb.DeleteTagResponse, "OperationService/DeleteTag", request
        )
        self._session.saw(repository, answer.revision)
        return BranchResult(answer.oid, codecs.revision(answer.revision))

    async def merge(
        self,
        repository: str,
        branch: str | bytes,
        source: str | bytes,
        *,
        mode: str = "",
        message: str | bytes = b"",
        author: Signature | None = None,
        expected_oid: str | None = None,
        request_id: str | None = None,
    ) -> MergeResult:
        """Brings a commit and its history into a branch.

        Args:
            mode: "" (fast-forward or merge commit), "fast-forward-only", "merge-commit", "squash".
            author: required when a commit is made.

        Raises:
            MergeConflict: and nothing was changed.
        """
        request = pb.MergeRequest(
            request_id=codecs.request_uuid(request_id),
            repository=repository,
            branch=codecs.to_bytes(branch),
            source=codecs.to_bytes(source),
            expected=codecs.expectation(expected_oid),
            mode=codecs.choice("mode", _MODES, mode),
            message=codecs.to_bytes(message),
            author=codecs.signature_message(author),
        )
        answer = await self._transport.unary(pb.MergeResponse, "OperationService/Merge", request)
        self._session.saw(repository, answer.revision)
        outcome = pb.MergeResponse.Outcome.Name(answer.outcome).removeprefix("OUTCOME_").lower()
        return MergeResult(outcome, answer.commit_oid, codecs.revision(answer.revision))

    async def merge_check(
        self,
        repository: str,
        target: str | bytes,
        source: str | bytes,
        *,
        consistency: str | None = None,
    ) -> MergeCheck:
        """What a merge would meet; writes nothing."""
        request = pb.MergeCheckRequest(
            repository=repository,
            target=codecs.to_bytes(target),
            source=codecs.to_bytes(source),
            consistency=self._session.wanted(repository, consistency),
        )
        answer = await self._transport.unary(
            pb.MergeCheckResponse, "OperationService/MergeCheck", request
        )
        self._session.saw(repository, answer.revision)
        return codecs.merge_check(answer)

    async def cherry_pick(
        self,
        repository: str,
        branch: str | bytes,
        commit: str | bytes,
        *,
        committer: Signature,
        mainline: int = 0,
        message: str | bytes = b"",
        expected_oid: str | None = None,
        request_id: str | None = None,
    ) -> CommitResult:
        """Repeats on a branch what a commit changed; `mainline`: of a merge, the parent's number.

        Raises:
            MergeConflict: and nothing was changed.
        """
        request = pb.CherryPickRequest(
            request_id=codecs.request_uuid(request_id),
            repository=repository,
            branch=codecs.to_bytes(branch),
            commit=codecs.to_bytes(commit),
            expected=codecs.expectation(expected_oid),
            mainline=mainline,
            message=codecs.to_bytes(message),
            committer=codecs.signature_message(committer),
        )
        answer = await self._transport.unary(
            pb.CherryPickResponse, "OperationService/CherryPick", request
        )
        self._session.saw(repository, answer.revision)
        return CommitResult(answer.commit_oid, answer.tree_oid, codecs.revision(answer.revision))

    async def revert(
        self,
        repository: str,
        branch: str | bytes,
        commit: str | bytes,
        *,
        author: Signature,
        mainline: int = 0,
        message: str | bytes = b"",
        expected_oid: str | None = None,
        request_id: str | None = None,
    ) -> CommitResult:
        """Takes back on a branch what a commit changed.

        Raises:
            MergeConflict: and nothing was changed.
        """
        request = pb.RevertRequest(
            request_id=codecs.request_uuid(request_id),
            repository=repository,
            branch=codecs.to_bytes(branch),
            commit=codecs.to_bytes(commit),
            expected=codecs.expectation(expected_oid),
            mainline=mainline,
            message=codecs.to_bytes(message),
            author=codecs.signature_message(author),
        )
        answer = await self._transport.unary(pb.RevertResponse, "OperationService/Revert", request)
        self._session.saw(repository, answer.revision)
        return CommitResult(answer.commit_oid, answer.tree_oid, codecs.revision(answer.revision))

    async def rebase(
        self,
        repository: str,
        branch: str | bytes,
        onto: str | bytes,
        *,
        committer: Signature,
        upstream: str | bytes = b"",
        expected_oid: str | None = None,
        request_id: str | None = None,
    ) -> BranchResult:
        """Replays a branch's commits that `upstream` (default: `onto`) has not, on `onto`.

        Raises:
            MergeConflict: and nothing was changed.
        """
        request = pb.RebaseRequest(
            request_id=codecs.request_uuid(request_id),
            repository=repository,
            branch=codecs.to_bytes(branch),
            onto=codecs.to_bytes(onto),
            upstream=codecs.to_bytes(upstream),
            expected=codecs.expectation(expected_oid),
            committer=codecs.signature_message(committer),
        )
        answer = await self._transport.unary(pb.RebaseResponse, "OperationService/Rebase", request)
        self._session.saw(repository, answer.revision)
        return BranchResult(answer.commit_oid, codecs.revision(answer.revision))


def _messages(
    header: pb.CommitFilesRequest.Header, actions: Sequence[FileAction]
) -> Iterator[pb.CommitFilesRequest]:
    """The stream of one attempt."""
    digest = hashlib.sha256()
    yield pb.CommitFilesRequest(header=header)
    for action in actions:
        content = action.content or b""
        digest.update(content)
        yield pb.CommitFilesRequest(
            action=pb.CommitFilesRequest.Action(
                kind=pb.CommitFilesRequest.Kind.Value(f"KIND_{action.kind.upper()}"),
                path=codecs.to_bytes(action.path),
                previous_path=codecs.to_bytes(action.previous_path),
                mode=action.mode,
                content=content[:_CHUNK_BYTES],
                expected_oid=action.expected_oid,
                has_content=action.content is not None,
            )
        )
        for offset in range(_CHUNK_BYTES, len(content), _CHUNK_BYTES):
            yield pb.CommitFilesRequest(chunk=content[offset : offset + _CHUNK_BYTES])
    yield pb.CommitFilesRequest(sha256=digest.digest())
