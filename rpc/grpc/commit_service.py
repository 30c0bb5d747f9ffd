"""CommitService of quorepo.v1: commits and the trees under them."""

from __future__ import annotations

from dulwich.objects import Commit

from quorepo.rpc import objects
from quorepo.rpc.context import EdgeContext
from quorepo.rpc.grpc.conversions import PageKey, open_view, page_size, revision_message
from quorepo.rpc.grpc.errors import Context
from quorepo.rpc.grpc.interceptor import caller
from quorepo.rpc.reads import RepositoryView
from quorepo.storage.errors import InvalidArgument
from quorepo.storage.packs import BLOB, COMMIT, TREE
from quorepo.v1 import commit_pb2, commit_pb2_grpc, common_pb2

__all__ = ["DATA_BYTES_MAX", "CommitService"]

_PAGE_SIZE, _PAGE_SIZE_MAX = 100, 1000
_TYPES = {
    COMMIT: common_pb2.OBJECT_TYPE_COMMIT,
    TREE: common_pb2.OBJECT_TYPE_TREE,
    BLOB: common_pb2.OBJECT_TYPE_BLOB,
}
DATA_BYTES_MAX = 3 * 1024 * 1024  # a unary answer stays under gRPC's default of 4 MiB


class CommitService(commit_pb2_grpc.CommitServiceServicer):
    """See protos/quorepo/v1/commit.proto."""

    def __init__(self, edge: EdgeContext) -> None:
        self._edge = edge

    async def GetCommit(
        self, request: commit_pb2.GetCommitRequest, context: Context
    ) -> commit_pb2.GetCommitResponse:
        """One commit."""
        self._edge.authenticator.authorize(caller(), "read", request.repository)
        view = await open_view(self._edge, context, request.repository, request.consistency)
        oid, commit = await self._edge.reads.in_thread(
            lambda: objects.read_commit(view, request.commit)
        )
        return commit_pb2.GetCommitResponse(
            commit=_commit_message(oid, commit), revision=revision_message(view)
        )

    async def ListTree(
        self, request: commit_pb2.ListTreeRequest, context: Context
    ) -> commit_pb2.ListTreeResponse:
        """A page of one level. The token names the tree, so a branch that moves changes nothing."""
        self._edge.authenticator.authorize(caller(), "read", request.repository)
        key = PageKey("tree", request.repository, request.commit, request.path)
        token = key.key(request.page_token)
        size = page_size(request.page_size, _PAGE_SIZE, _PAGE_SIZE_MAX)
        view = await open_view(self._edge, context, request.repository, request.consistency)

        def read() -> commit_pb2.ListTreeResponse:
            tree, position = _page_start(view, request, token)
            path = request.path.removesuffix(b"/")
            entries = list(objects.tree_entries(view, tree, path))
            page = entries[position : position + size]
            following = position + len(page)
            more = following < len(entries)
            return commit_pb2.ListTreeResponse(
                entries=[_entry_message(entry) for entry in page],
                next_page_token=key.token(tree + following.to_bytes(8, "big")) if more else "",
                tree_oid=tree.hex(),
                revision=revision_message(view),
            )

        return await self._edge.reads.in_thread(read)

    async def GetTreeEntry(
        self, request: commit_pb2.GetTreeEntryRequest, context: Context
    ) -> commit_pb2.GetTreeEntryResponse:
        """What lies at one path."""
        self._edge.authenticator.authorize(caller(), "read", request.repository)
        if request.data_bytes_max > DATA_BYTES_MAX:
            raise InvalidArgument(
                f"data_bytes_max is {request.data_bytes_max}, at most {DATA_BYTES_MAX} is allowed",
                next_step="use BlobService.ReadBlob",
            )
        view = await open_view(self._edge, context, request.repository, request.consistency)

        def read() -> commit_pb2.GetTreeEntryResponse:
            root = objects.root_tree(view, request.commit)
            entry = objects.entry_at(view, root, request.path)
            response = commit_pb2.GetTreeEntryResponse(
                entry=_entry_message(entry), revision=revision_message(view)
            )
            if entry.type in (BLOB, TREE):
                response.size = view.packs.object_size(entry.oid)
            if (
                entry.type == BLOB
                and request.data_bytes_max
                and (response.size <= request.data_bytes_max)
            ):
                response.data = objects.read_blob(view, entry.oid)
            return response

        return await self._edge.reads.in_thread(read)


def _page_start(
    view: RepositoryView, request: commit_pb2.ListTreeRequest, token: bytes
) -> tuple[bytes, int]:
    """The tree to list and the first entry of the page."""
    if not token:
        entry = objects.entry_at(view, objects.root_tree(view, request.commit), request.path)
        if entry.type != TREE:
            raise InvalidArgument(f"path {entry.path!r} is no folder")
        return entry.oid, 0
    if len(token) != view.object_format.hash_bytes + 8:
        raise InvalidArgument("page_token is not a token of this service")
    return token[:-8], int.from_bytes(token[-8:], "big")


def _entry_message(entry: objects.Entry) -> commit_pb2.TreeEntry:
    return commit_pb2.TreeEntry(
        name=entry.name,
        path=entry.path,
        mode=entry.mode,
        type=_TYPES[entry.type],
        oid=entry.oid.hex(),
    )


def _commit_message(oid: bytes, commit: Commit) -> commit_pb2.Commit:
    message = commit_pb2.Commit(
        oid=oid.hex(),
        tree_oid=commit.tree.decode("ascii"),
        parent_oids=[parent.decode("ascii") for parent in commit.parents],
        message=commit.message or b"",
        encoding=(commit.encoding or b"").decode("ascii", "replace"),
        pgp_signature=commit.gpgsig or b"",
    )
    _fill_signature(message.author, commit.author, commit.author_time, commit.author_timezone)
    _fill_signature(message.committer, commit.committer, commit.commit_time, commit.commit_timezone)
    return message


def _fill_signature(
    message: commit_pb2.Signature, person: bytes, unix_s: float, utc_offset_s: int
) -> None:
    name, _, rest = person.partition(b"<")
    message.name = name.rstrip(b" ")
    message.email = rest.rpartition(b">")[0]
    message.time.seconds = max(_SECONDS_MIN, min(int(unix_s), _SECONDS_MAX))
    message.utc_offset_minutes = utc_offset_s // 60


# google.protobuf.Timestamp covers the years 1 to 9999.
_SECONDS_MIN, _SECONDS_MAX = -62_135_596_800, 253_402_300_799
