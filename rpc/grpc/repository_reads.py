"""The reading methods of RepositoryService: existence, size, checks, archives and bundles."""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import AsyncIterator
from typing import Any

from quorepo.rpc import objects
from quorepo.rpc.context import EdgeContext
from quorepo.rpc.grpc.commit_trees import tree_of
from quorepo.rpc.grpc.commit_walks import commit_named
from quorepo.rpc.grpc.conversions import confirm, open_view, revision_message, time_left_s
from quorepo.rpc.grpc.errors import Context
from quorepo.rpc.grpc.interceptor import caller
from quorepo.rpc.grpc.read_messages import check_count, read_timeout_s
from quorepo.rpc.history import HistoryReads, head_of
from quorepo.storage.errors import InvalidArgument, NotFound
from quorepo.storage.history.revisions import shown
from quorepo.storage.history.source import History
from quorepo.storage.names import normalize_path
from quorepo.v1 import repository_pb2

__all__ = ["RepositoryReadMethods"]

_PREFIX_BYTES_MAX = 1024
_FORMATS = {
    repository_pb2.ARCHIVE_FORMAT_UNSPECIFIED: "tar",
    repository_pb2.ARCHIVE_FORMAT_TAR: "tar",
    repository_pb2.ARCHIVE_FORMAT_TAR_GZ: "tar.gz",
    repository_pb2.ARCHIVE_FORMAT_ZIP: "zip",
}


class RepositoryReadMethods:
    """A part of RepositoryService."""

    _edge: EdgeContext
    _history: HistoryReads

    async def CheckRepositoryExists(
        self, request: repository_pb2.CheckRepositoryExistsRequest, context: Context
    ) -> repository_pb2.CheckRepositoryExistsResponse:
        """Whether a path has a repository."""
        self._edge.authenticator.authorize(caller(), "read", request.path)
        path = normalize_path(request.path)
        await confirm(self._edge, context, request.consistency)
        view = await self._edge.reads.find(path, consistency="local")
        if view is None:
            return repository_pb2.CheckRepositoryExistsResponse(exists=False)
        return repository_pb2.CheckRepositoryExistsResponse(
            exists=True, revision=revision_message(view)
        )

    async def GetRepositorySize(
        self, request: repository_pb2.GetRepositorySizeRequest, context: Context
    ) -> repository_pb2.GetRepositorySizeResponse:
        """What is stored on one replica."""
        self._edge.authenticator.authorize(caller(), "read", request.path)
        view = await open_view(self._edge, context, request.path, request.consistency)

        def read() -> repository_pb2.GetRepositorySizeResponse:
            packs = view.packs.packs
            return repository_pb2.GetRepositorySizeResponse(
                pack_bytes=sum(pack.pack_bytes for pack in packs),
                objects=sum(pack.object_count for pack in packs),
                pack_count=len(packs),
                ref_count=len(view.refs),
                revision=revision_message(view),
            )

        return await self._edge.reads.in_thread(read)

    async def GetRepositoryChecksum(
        self, request: repository_pb2.GetRepositoryChecksumRequest, context: Context
    ) -> repository_pb2.GetRepositoryChecksumResponse:
        """The checksum that apply keeps."""
        self._edge.authenticator.authorize(caller(), "read", request.path)
        view = await open_view(self._edge, context, request.path, request.consistency)
        return repository_pb2.GetRepositoryChecksumResponse(
            checksum=view.row.checksum.hex(), revision=revision_message(view)
        )

    async def FsckRepository(
        self, request: repository_pb2.FsckRepositoryRequest, context: Context
    ) -> repository_pb2.FsckRepositoryResponse:
        """Everything read and checked, in a worker."""
        self._edge.authenticator.authorize(caller(), "admin", request.path)
        api = self._edge.config.api
        view = await open_view(self._edge, context, request.path, request.consistency)

        def prepare(history: History) -> dict[str, Any]:
            return {
                "refs": [[name.hex(), oid.hex()] for name, oid in view.refs.items()],
                "problems_max": api.fsck_problems_max,
                "overrides": {},
            }

        def finish(
            history: History, found: dict[str, Any]
        ) -> repository_pb2.FsckRepositoryResponse:
            return repository_pb2.FsckRepositoryResponse(
                problems=[
                    repository_pb2.FsckRepositoryResponse.Problem(
                        message_id=problem["message_id"],
                        oid=problem["oid"],
                        ref_name=bytes.fromhex(problem["ref_name"]),
                        text=problem["text"],
                    )
                    for problem in found["problems"]
                ],
                objects=found["objects"],
                packs=found["packs"],
                truncated=found["truncated"],
                revision=revision_message(view),
            )

        timeout_s = time_left_s(context, api.fsck_timeout_s)
        return await self._history.ask(
            view, "fsck", prepare, finish, timeout_s, "api.fsck_timeout_s"
        )

    async def GetArchive(
        self, request: repository_pb2.GetArchiveRequest, context: Context
    ) -> AsyncIterator[repository_pb2.GetArchiveResponse]:
        """The files of a commit in one stream."""
        self._edge.authenticator.authorize(caller(), "read", request.path)
        kind = _FORMATS.get(request.format)
        if kind is None:
            raise InvalidArgument(f"format {request.format} is unknown")
        _check_prefix(request.prefix)
        folder = objects.normal_path(request.folder)
        view = await open_view(self._edge, context, request.path, request.consistency)
        api = self._edge.config.api

        def prepare(history: History) -> dict[str, Any]:
            commit, tree = tree_of(history, view, request.commit, folder)
            moment = objects.commit_of(view, commit).commit_time if commit else 0
            return {
                "tree": tree.hex(),
                "format": kind,
                "prefix": request.prefix.hex(),
                "moment": int(moment),
                "comment": commit.hex() if commit else "",
                "archive_bytes_max": api.archive_bytes_max,
            }

        arguments = await self._history.read(view, prepare)
        yield repository_pb2.GetArchiveResponse(
            header=repository_pb2.GetArchiveResponse.Header(
                commit_oid=arguments["comment"],
                tree_oid=arguments["tree"],
                revision=revision_message(view),
            )
        )
        digest, size = hashlib.sha256(), 0
        parts = self._history.stream(
            view, "archive", lambda _: arguments, read_timeout_s(self._edge, context)
        )
        async with contextlib.aclosing(parts):
            async for part in parts:
                assert isinstance(part, bytes)
                digest.update(part)
                size += len(part)
                yield repository_pb2.GetArchiveResponse(chunk=part)
        yield repository_pb2.GetArchiveResponse(
            trailer=repository_pb2.GetArchiveResponse.Trailer(sha256=digest.digest(), size=size)
        )

    async def CreateBundle(
        self, request: repository_pb2.CreateBundleRequest, context: Context
    ) -> AsyncIterator[repository_pb2.CreateBundleResponse]:
        """Refs with their history in one stream."""
        self._edge.authenticator.authorize(caller(), "read", request.path)
        api = self._edge.config.api
        check_count(api, len(request.exclusions), "exclusions")
        view = await open_view(self._edge, context, request.path, request.consistency)

        def prepare(history: History) -> dict[str, Any]:
            refs = dict(view.refs)
            head = head_of(view)
            if head is not None:
                refs = {b"HEAD": head, **refs}
            names = list(dict.fromkeys(request.refs)) or list(refs)
            for name in names:
                if name not in refs:
                    raise NotFound(f"ref {shown(name)} of {view.path!r} does not exist")
            exclusions = [commit_named(history, view, name) for name in request.exclusions]
            return {
                "refs": [[name.hex(), refs[name].hex()] for name in names],
                "exclusions": [oid.hex() for oid in exclusions],
                "bundle_bytes_max": api.bundle_bytes_max,
            }

        arguments = await self._history.read(view, prepare)
        yield repository_pb2.CreateBundleResponse(
            header=repository_pb2.CreateBundleResponse.Header(
                refs=len(arguments["refs"]), revision=revision_message(view)
            )
        )
        digest, size = hashlib.sha256(), 0
        parts = self._history.stream(
            view, "bundle", lambda _: arguments, read_timeout_s(self._edge, context)
        )
        async with contextlib.aclosing(parts):
            async for part in parts:
                assert isinstance(part, bytes)
                digest.update(part)
                size += len(part)
                yield repository_pb2.CreateBundleResponse(chunk=part)
        yield repository_pb2.CreateBundleResponse(
            trailer=repository_pb2.CreateBundleResponse.Trailer(sha256=digest.digest(), size=size)
        )


def _check_prefix(prefix: bytes) -> None:
    """A prefix must not lead out of the folder that an archive is unpacked in."""
    parts = prefix.removesuffix(b"/").split(b"/")
    if len(prefix) > _PREFIX_BYTES_MAX or b"\0" in prefix:
        raise InvalidArgument(f"prefix must have at most {_PREFIX_BYTES_MAX} bytes and no zero")
    if prefix and any(part in (b"", b".", b"..") for part in parts):
        raise InvalidArgument(
            f"prefix {shown(prefix)} must be relative, without empty, '.' or '..' parts"
        )
