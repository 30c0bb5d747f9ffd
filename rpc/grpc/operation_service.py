"""OperationService of quorepo.v1: commits, branches and tags made by the server."""

from __future__ import annotations

from collections.abc import AsyncIterator
from typing import Any

from quorepo.internal.v1 import log_pb2
from quorepo.rpc.context import EdgeContext
from quorepo.rpc.grpc.commit_stream import CommitStream
from quorepo.rpc.grpc.commit_walks import commit_named
from quorepo.rpc.grpc.conversions import (
    open_view,
    request_uuid,
    telling_request_id,
    time_left_s,
)
from quorepo.rpc.grpc.errors import Context, NameConflict
from quorepo.rpc.grpc.expectations import expected_value, mismatch
from quorepo.rpc.grpc.interceptor import caller
from quorepo.rpc.grpc.merge_operations import MergeOperations
from quorepo.rpc.grpc.operation_record import recorded
from quorepo.rpc.grpc.ref_writes import branch_name, ref_name, revision_of
from quorepo.rpc.history import HistoryReads, resolve
from quorepo.rpc.operations import Built, Done, Operations
from quorepo.rpc.reads import RepositoryView
from quorepo.rpc.repositories import PROPOSE_TIMEOUT_S
from quorepo.rpc.uploads import Incoming, Upload
from quorepo.rpc.visible_refs import check_not_hidden, shown_to
from quorepo.storage.errors import InvalidArgument, NotFound, Rejected
from quorepo.storage.names import normalize_path
from quorepo.v1 import commit_pb2, common_pb2, operation_pb2, operation_pb2_grpc

__all__ = ["OperationService"]

PB = operation_pb2
_OFFSET_MINUTES_MAX = 14 * 60
_MESSAGE_BYTES_MAX = 1024 * 1024
_TAGS = b"refs/tags/"


class OperationService(MergeOperations, operation_pb2_grpc.OperationServiceServicer):
    """See protos/quorepo/v1/operation.proto."""

    def __init__(self, edge: EdgeContext, history: HistoryReads) -> None:
        self._edge = edge
        self._history = history
        self._operations = Operations(edge)

    def close(self) -> None:
        """Closes the connections to the state."""
        self._operations.close()

    @recorded
    async def CommitFiles(
        self, requests: AsyncIterator[Any], context: Context
    ) -> PB.CommitFilesResponse:
        """Spools the content, builds in a worker, moves the branch."""
        stream = CommitStream(requests, self._edge.config.api)
        header = await stream.header()
        branch = self._branch(header.branch)
        with telling_request_id(request_id := request_uuid(header.request_id)):
            self._authorize(header.repository)
            author, committer = self._people(header.author, header.committer)
            message = _message(header.message)
            view = await self._edge.reads.find(
                normalize_path(header.repository), consistency="local"
            ) or await open_view(self._edge, context, header.repository, common_pb2.Consistency())
            async with Upload(view.layout, self._edge.disk) as spool:
                incoming = Incoming(stream.content(view.object_format))
                with self._edge.metrics.operation_phase("receive"):
                    await spool.receive(incoming, self._edge.config.limits.push_bytes_max)

                async def build(view: RepositoryView) -> Built:
                    tip = view.refs.get(branch)
                    base = await self._base(view, tip, header)
                    new, answer, packs = await self._operations.make(
                        view, branch, "files",
                        {
                            "base": (base or b"").hex(),
                            "actions": stream.actions,
                            "content": str(spool.path) if spool.size_bytes else "",
                            "author": author.hex(),
                            "committer": committer.hex(),
                            "message": message.hex(),
                            "allow_empty": header.allow_empty,
                        },
                    )  # fmt: skip
                    answer["created"] = tip is None
                    return Built(
                        new, expected_value(view, branch, tip, header.expected), answer, packs
                    )

                done = await self._run(
                    header.repository, branch, request_id.bytes, build, header.expected, context
                )
        return PB.CommitFilesResponse(
            commit_oid=done.answer["commit"],
            tree_oid=done.answer["tree"],
            branch_created=done.answer["created"],
            revision=revision_of(done.result.revision),
        )

    async def _base(
        self, view: RepositoryView, tip: bytes | None, header: PB.CommitFilesRequest.Header
    ) -> bytes | None:
        if tip is not None:
            return tip
        if not header.start and view.resolve(b"HEAD") is None:
            return None
        return await self._commit(view, header.start or b"HEAD")

    async def _commit(self, view: RepositoryView, name: bytes) -> bytes:
        view = shown_to(self._edge, caller(), view)
        return await self._history.read(
            view, lambda history: commit_named(history, view, name), small=True
        )

    @recorded
    async def CreateBranch(
        self, request: PB.CreateBranchRequest, context: Context
    ) -> PB.CreateBranchResponse:
        """No object is made."""
        branch = self._branch(request.branch)

        async def build(view: RepositoryView) -> Built:
            oid = await self._commit(view, request.start)
            return Built(oid, None, {"oid": oid.hex()})

        done = await self._change(request, branch, build, context)
        return PB.CreateBranchResponse(
            oid=done.answer["oid"], revision=revision_of(done.result.revision)
        )

    @recorded
    async def DeleteBranch(
        self, request: PB.DeleteBranchRequest, context: Context
    ) -> PB.DeleteBranchResponse:
        """Not the one that HEAD points to."""
        branch = self._branch(request.branch)

        async def build(view: RepositoryView) -> Built:
            if branch == view.head:
                raise Rejected(
                    f"{_text(branch)!r} is the default branch and can't be deleted",
                    next_step="choose another with RefService.SetDefaultBranch first",
                )
            return _deletion(view, branch, request.expected)

        done = await self._change(request, branch, build, context, request.expected)
        return PB.DeleteBranchResponse(
            oid=done.answer["oid"], revision=revision_of(done.result.revision)
        )

    @recorded
    async def CreateTag(
        self, request: PB.CreateTagRequest, context: Context
    ) -> PB.CreateTagResponse:
        """Annotated with a message, lightweight without."""
        tag = ref_name(request.tag, _TAGS, self._edge.config.limits.ref_name_bytes_max)
        tagger = self._person(request.tagger, "tagger") if request.message else b""
        message = _message(request.message)

        async def build(view: RepositoryView) -> Built:
            seen = shown_to(self._edge, caller(), view)
            target = await self._history.read(
                seen, lambda history: resolve(history, seen, request.target), small=True
            )
            if not message:
                return Built(target, None, {"oid": target.hex(), "target": target.hex()})
            new, answer, packs = await self._operations.make(
                view, tag, "tag",
                {
                    "target": target.hex(),
                    "name": tag.removeprefix(_TAGS).hex(),
                    "tagger": tagger.hex(),
                    "message": message.hex(),
                },
            )  # fmt: skip
            return Built(new, None, answer, packs)

        done = await self._change(request, tag, build, context)
        return PB.CreateTagResponse(
            oid=done.answer["oid"],
            target_oid=done.answer["target"],
            revision=revision_of(done.result.revision),
        )

    @recorded
    async def DeleteTag(
        self, request: PB.DeleteTagRequest, context: Context
    ) -> PB.DeleteTagResponse:
        """The ref; a tag object stays until a prune."""
        tag = ref_name(request.tag, _TAGS, self._edge.config.limits.ref_name_bytes_max)

        async def build(view: RepositoryView) -> Built:
            return _deletion(view, tag, request.expected)

        done = await self._change(request, tag, build, context, request.expected)
        return PB.DeleteTagResponse(
            oid=done.answer["oid"], revision=revision_of(done.result.revision)
        )

    # ---- what they share

    async def _change(
        self, request: Any, ref: bytes, build: Any, context: Context,
        expected: PB.BranchExpectation | None = None,
    ) -> Done:  # fmt: skip
        with telling_request_id(request_id := request_uuid(request.request_id)):
            self._authorize(request.repository)
            # Without an expectation of the client's a creation expects nothing to be there.
            wanted = PB.BranchExpectation(oid="") if expected is None else expected
            done: Done = await self._run(
                request.repository, ref, request_id.bytes, build, wanted, context
            )
        return done

    async def _run(
        self, path: str, ref: bytes, request_id: bytes, build: Any,
        expected: PB.BranchExpectation, context: Context,
    ) -> Done:  # fmt: skip
        check_not_hidden(self._edge, caller(), [ref])
        done: Done = await self._operations.run(
            normalize_path(path),
            ref,
            self._edge.origin(caller().user, request_id),
            build,
            again=expected.WhichOneof("kind") != "oid",
            timeout_s=time_left_s(context, PROPOSE_TIMEOUT_S),
        )
        _raise_refusal(done)
        return done

    def _authorize(self, path: str) -> None:
        self._edge.authenticator.authorize(caller(), "write", path)

    def _branch(self, name: bytes) -> bytes:
        return branch_name(name, self._edge.config.limits.ref_name_bytes_max)

    def _people(
        self, author: commit_pb2.Signature, committer: commit_pb2.Signature
    ) -> tuple[bytes, bytes]:
        by = committer if committer.ByteSize() else author
        return self._person(author, "author"), self._person(by, "committer")

    def _person(self, person: commit_pb2.Signature, what: str) -> bytes:
        """As git writes one; the time is this node's where the caller gives none."""
        for value in (person.name, person.email):
            if not value.strip() or any(byte in value for byte in b"<>\n\0"):
                raise InvalidArgument(f"{what} needs a name and an email without <, > and newlines")
        offset = person.utc_offset_minutes
        if abs(offset) > _OFFSET_MINUTES_MAX:
            raise InvalidArgument(f"{what}: utc_offset_minutes is {offset}")
        has_time = person.HasField("time")
        seconds = person.time.seconds if has_time else self._edge.clock_ms() // 1000
        if not 0 <= seconds < 1 << 40:
            raise InvalidArgument(f"{what}: time {seconds} s is out of range")
        zone = b"%b%02d%02d" % (b"-" if offset < 0 else b"+", *divmod(abs(offset), 60))
        return b"%b <%b> %d %b" % (person.name.strip(), person.email.strip(), seconds, zone)


def _message(message: bytes) -> bytes:
    if len(message) > _MESSAGE_BYTES_MAX or b"\0" in message:
        raise InvalidArgument(f"a message has at most {_MESSAGE_BYTES_MAX} bytes, none of them NUL")
    return message if not message or message.endswith(b"\n") else message + b"\n"


def _deletion(view: RepositoryView, ref: bytes, expected: PB.BranchExpectation) -> Built:
    actual = view.refs.get(ref)
    if actual is None:
        raise NotFound(f"ref {_text(ref)!r} of {view.path!r} does not exist")
    return Built(None, expected_value(view, ref, actual, expected), {"oid": actual.hex()})


def _raise_refusal(done: Done) -> None:
    (verdict,) = done.result.refs
    if verdict.status == log_pb2.REF_STATUS_STALE:
        raise mismatch(verdict.name, done.change.expected, verdict.actual_old_oid)
    if verdict.status == log_pb2.REF_STATUS_NAME_CONFLICT:
        raise NameConflict(verdict.name, verdict.conflicting_name)
    if verdict.status != log_pb2.REF_STATUS_OK:
        raise Rejected(f"refused: {log_pb2.RefStatus.Name(verdict.status)}")


def _text(name: bytes) -> str:
    return name[:200].decode("utf-8", "backslashreplace")
